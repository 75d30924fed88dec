#!/bin/bash
# virtualbmc: power and boot device of a guest over IPMI, from PyPI.
# needs /usr/lib/python3/dist-packages/libvirt.py: python3-libvirt

prepare() {
    [ -x "$CACHE/vbmc/bin/vbmcd" ] && return
    /usr/bin/python3 -m venv --system-site-packages "$CACHE/vbmc" >/dev/null 2>&1 &&
        "$CACHE/vbmc/bin/pip" install --quiet virtualbmc pyghmi >/dev/null 2>&1 || { echo "pip install virtualbmc failed (python3-venv, PyPI)"; return 1; }
}
version() { "$CACHE/vbmc/bin/pip" show virtualbmc 2>/dev/null | sed -n 's/^Version: //p'; }

play() {
    export HOME=$DIR PATH=$CACHE/vbmc/bin:$PATH VIRTUALBMC_CONFIG=$DIR/vbmc.conf
    mkdir -p "$DIR/vbmc"
    printf '[default]\nconfig_dir=%s/vbmc\npid_file=%s/pid\n[log]\nlogfile=%s/log\n' "$DIR" "$DIR" "$DIR" >"$VIRTUALBMC_CONFIG"
    guest metal "$(disk a.qcow2 vda)"
    watch virsh
    step define virsh define "$DIR/metal.xml"
    vbmcd --foreground >"$DIR/out" 2>&1 & server=$!
    until_ok vbmc list
    step add vbmc add metal --port 16230 --address 127.0.0.1 --libvirt-uri qemu:///system
    step begin vbmc start metal
    until_ok bash -c 'vbmc list | grep -q running'
    step list vbmc list
    step power "$CACHE/vbmc/bin/python" -B "$CLIENTS/ipmi.py"
    step boot virsh dumpxml --inactive metal --xpath //os/boot
    step delete vbmc delete metal
    step state virsh domstate metal
    step undefine virsh undefine metal
    kill $server
    step events heard lifecycle
    step errors bash -c 'grep -hE "ERROR|Traceback" "$@" | sed "s/^[-0-9:,. ]*//"' - "$DIR/log" "$DIR/out"
}
. "$(dirname "$0")/lib.sh"
