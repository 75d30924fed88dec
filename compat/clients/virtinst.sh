#!/bin/bash
# virt-install, virt-clone, virt-xml.
# needs virt-install: virtinst
# needs virt-clone: virtinst
# needs virt-xml: virtinst

version() { virt-install --version; }

quiet() { "$@" 2>&1 | sed -E 's/^\[[^]]*\]//; s/[0-9.:]+ [kMG]?B\/s.*//; s/\r.*\r//g' | grep -v '^Allocating\|^Starting'; return "${PIPESTATUS[0]}"; }
shown() { virsh dumpxml "$@" | sed -E "s/channel\/[0-9]+-/channel\/N-/"; }
play() {
    export HOME=$DIR
    local install=(quiet virt-install --memory 64 --vcpus 1 --noautoconsole --virt-type qemu --osinfo debian11 --import
        --graphics none --boot "loader=$ROM,loader.type=rom" --network none)
    watch virsh
    step install "${install[@]}" --name one --disk size=0.01
    step again "${install[@]}" --name one --disk none
    step installed shown one
    step pools virsh pool-list --all --persistent --autostart --name
    step print "${install[@]}" --name two --disk none --print-xml
    step bus "${install[@]}" --name three --disk size=0.01,format=raw,bus=scsi,serial=abc --controller scsi,model=virtio-scsi
    step three shown three --inactive
    step running quiet virt-clone -o one --auto-clone
    step destroy virsh destroy one
    step clone quiet virt-clone -o one --auto-clone
    step named quiet virt-clone -o one -n four -f "$DIR/four.qcow2" --mac 52:54:00:11:22:33
    step cloned shown one-clone
    step edit quiet virt-xml one --edit --vcpus 2 --memory 128 --define
    step add quiet virt-xml one --add-device --disk size=0.01
    step remove quiet virt-xml one --remove-device --disk target=vdb
    step print-diff quiet virt-xml one --edit --cpu host-passthrough --print-diff
    step start quiet virt-xml one --edit --no-define --start --metadata title=once
    step update quiet virt-xml one --add-device --rng /dev/urandom --update
    step edited shown one
    step list virsh list --all --title
    step volumes bash -c 'virsh vol-list default | sort'
    for name in one one-clone three four; do
        step "destroy $name" virsh destroy $name
        step "undefine $name" virsh undefine $name --remove-all-storage
    done
    # A QEMU that has not begun may be gone before it reports the signal.
    step events heard 'lifecycle.*(Defined|Undefined|Started|Stopped|Resumed)'
}
. "$(dirname "$0")/lib.sh"
