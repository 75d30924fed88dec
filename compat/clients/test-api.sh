#!/bin/bash
# libvirt-test-api: Red Hat's own tests of libvirt's API, from PyPI, as many as a guest without a system can run.
# needs /usr/lib/python3/dist-packages/libvirt.py: python3-libvirt

prepare() {
    [ -d "$CACHE/test-api/libvirttestapi" ] && return
    /usr/bin/python3 -m venv "$CACHE/pip" >/dev/null 2>&1 &&
        "$CACHE/pip/bin/pip" install --quiet --target "$CACHE/test-api" libvirt-test-api >/dev/null 2>&1 || { echo "pip install libvirt-test-api failed (python3-venv, PyPI)"; return 1; }
}
version() { sed -n 's/^Version: //p' "$CACHE"/test-api/libvirt_test_api-*.dist-info/METADATA; }

play() {
    export TYPE=$(kind)
    /usr/bin/python3 -B "$CLIENTS/test_api.py" "$CACHE/test-api"
}
. "$(dirname "$0")/lib.sh"
