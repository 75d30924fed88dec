#!/bin/bash
# libguestfs, whose appliance is a guest of the daemon. Its kernel is the sample guest's.
# needs guestfish: libguestfs-tools
# needs supermin: supermin

store=${XDG_CACHE_HOME:-$HOME/.cache}/ferrovirt/packages
prepare() {
    set -- "$store"/linux-image-*.deb
    [ -e "$1" ] || { echo "no kernel: scripts/deps test did not run"; return 1; }
    [ -d "$CACHE/kernel/boot" ] || dpkg-deb -x "$1" "$CACHE/kernel"
    [ -e "$CACHE"/kernel/lib/modules/*/modules.dep ] || depmod --basedir "$CACHE/kernel" "$(ls "$CACHE/kernel/lib/modules")"
}
version() { guestfish --version | cut -d' ' -f2; }

fish() {
    local kernel
    kernel=$(ls "$CACHE/kernel/lib/modules")
    SUPERMIN_KERNEL=$CACHE/kernel/boot/vmlinuz-$kernel SUPERMIN_KERNEL_VERSION=$kernel \
        SUPERMIN_MODULES=$CACHE/kernel/lib/modules/$kernel \
        LIBGUESTFS_BACKEND=libvirt:qemu:///system LIBGUESTFS_BACKEND_SETTINGS=force_tcg TMPDIR=$CACHE HOME=$DIR \
        timeout 400 "$@"
}
events() { heard lifecycle | sed -E "s/guestfs-[a-z0-9]*/guestfs/g"; }
play() {
    watch virsh
    printf 'hi there\n' >"$DIR/hello"
    step make fish guestfish -N "$DIR/d.img=fs:ext4:64M" -m /dev/sda1 upload "$DIR/hello" /hello : cat /hello : list-filesystems
    step read fish virt-ls -a "$DIR/d.img" -m /dev/sda1 /
    step left virsh list --all
    step events events
}
. "$(dirname "$0")/lib.sh"
