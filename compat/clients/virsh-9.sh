#!/bin/bash
# virsh of Debian 12 itself, beside the one of its backports; scripts/deps test puts its packages aside.

store=${XDG_CACHE_HOME:-$HOME/.cache}/ferrovirt/packages
old=(env "LD_LIBRARY_PATH=$CACHE/virsh-9/usr/lib/x86_64-linux-gnu" "$CACHE/virsh-9/usr/bin/virsh")
without_times() { "$@" | sed -E '/CPU time|CPU:/d'; }

prepare() {
    local name
    for name in libvirt-clients_9 libvirt0_9 libyajl2; do
        set -- "$store/$name"*.deb
        [ -e "$1" ] || { echo "the installed virsh is the release's own, or scripts/deps test did not run"; return 1; }
        dpkg-deb -x "$1" "$CACHE/virsh-9"
    done
}
version() { "${old[@]}" --version; }

play() {
    guest old "$(disk a.qcow2 vda)<serial type='pty'/><console type='pty'/>"
    watch "${old[@]}"
    step hostname bash -c 'test -n "$1"' - "$("${old[@]}" hostname)"
    step define "${old[@]}" define "$DIR/old.xml"
    step defined "${old[@]}" list --all
    step start "${old[@]}" start old
    step list "${old[@]}" list --all --title --managed-save
    for question in domstate dominfo dumpxml domblklist domiflist vcpuinfo vcpucount schedinfo domjobinfo domcontrol \
        snapshot-list memtune blkiotune numatune guestvcpus iothreadinfo emulatorpin vcpupin domuuid domid; do
        step "$question" without_times "${old[@]}" "$question" old
    done
    step suspend "${old[@]}" suspend old
    step resume "${old[@]}" resume old
    step snapshot "${old[@]}" snapshot-create-as old one --disk-only
    step snapshots "${old[@]}" snapshot-list old --tree
    step commit "${old[@]}" blockcommit old vda --active --pivot --wait
    step setmem "${old[@]}" setmem old 20M --config
    step save "${old[@]}" save old "$DIR/saved"
    step restore "${old[@]}" restore "$DIR/saved"
    step pool "${old[@]}" pool-define-as images dir --target "$DIR/pool"
    step build "${old[@]}" pool-build images
    step pool-start "${old[@]}" pool-start images
    step volume "${old[@]}" vol-create-as images v.qcow2 1M --format qcow2
    step attach "${old[@]}" attach-disk old "$DIR/pool/v.qcow2" vdb --subdriver qcow2
    step detach "${old[@]}" detach-disk old vdb
    step volumes "${old[@]}" vol-list images
    step destroy "${old[@]}" destroy old
    step undefine "${old[@]}" undefine old --snapshots-metadata
    step pool-destroy "${old[@]}" pool-destroy images
    step pool-undefine "${old[@]}" pool-undefine images
    step nobody "${old[@]}" domstate nobody
    step events heard "event '"
}
. "$(dirname "$0")/lib.sh"
