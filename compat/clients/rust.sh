#!/bin/bash
# The crate `virt`, in a small program that is no part of the workspace: building it needs libvirt's headers.
# needs cargo: cargo
# needs /usr/include/libvirt/libvirt.h: libvirt-dev

prepare() { CARGO_TARGET_DIR=$CACHE/rust cargo build --quiet --locked --manifest-path "$CLIENTS/rust/Cargo.toml" 2>&1; }
version() { sed -n '/name = "virt"/{n;s/version = "\(.*\)"/\1/p}' "$CLIENTS/rust/Cargo.lock"; }

play() {
    guest rusty "$(disk a.qcow2 vda)"
    step life "$CACHE/rust/debug/virt-client" "$DIR/rusty.xml"
}
. "$(dirname "$0")/lib.sh"
