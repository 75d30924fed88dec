#!/bin/bash
# libvirt-dbus on a bus of its own; its package needs a system's libvirt, so it is unpacked and not installed.
# needs dbus-run-session: dbus-daemon
# needs gdbus: libglib2.0-bin

prepare() {
    [ -x "$CACHE/dbus/usr/sbin/libvirt-dbus" ] && return
    mkdir -p "$CACHE/dbus"
    (cd "$CACHE/dbus" && apt-get -o APT::Sandbox::User=root -qq download libvirt-dbus 2>&1 && dpkg-deb -x libvirt-dbus_*.deb .) ||
        { echo "apt-get download libvirt-dbus failed"; return 1; }
}
version() { (cd "$CACHE/dbus" && echo libvirt-dbus_*.deb | cut -d_ -f2); }

call() { timeout 20 gdbus call --session -d org.libvirt -o "$1" -m "${@:2}" | sed -E 's/[0-9a-f]{8}(_[0-9a-f]{4}){3}_[0-9a-f]{12}/UUID/g'; }
keys() { call "$@" | grep -oE "'[a-z][a-z0-9._-]*': <" | sort; }

all() {
    "$CACHE/dbus/usr/sbin/libvirt-dbus" --session --threads 2 & server=$!
    local qemu=/org/libvirt/QEMU name domain
    until_ok gdbus call --session -d org.libvirt -o $qemu -m org.freedesktop.DBus.Peer.Ping
    timeout 60 gdbus monitor --session -d org.libvirt >"$DIR/heard" & monitor=$!
    until_ok grep -q 'owned by' "$DIR/heard"
    step connection call $qemu org.freedesktop.DBus.Properties.GetAll org.libvirt.Connect
    for name in Domains StoragePools Secrets Networks NWFilters; do
        step "List$name" call $qemu "org.libvirt.Connect.List$name" 0
    done
    step models call $qemu org.libvirt.Connect.GetCPUModelNames x86_64 0
    step cpus call $qemu org.libvirt.Connect.NodeGetCPUMap 0
    step sources call $qemu org.libvirt.Connect.FindStoragePoolSources dir '' 0
    guest bus "$(disk a.qcow2 vda)"
    domain=$(gdbus call --session -d org.libvirt -o $qemu -m org.libvirt.Connect.DomainDefineXML "$(<"$DIR/bus.xml")" |
        grep -o "/org[^']*")
    step create call "$domain" org.libvirt.Domain.Create 0
    step again call "$domain" org.libvirt.Domain.Create 0
    step properties call "$domain" org.freedesktop.DBus.Properties.GetAll org.libvirt.Domain
    step state call "$domain" org.libvirt.Domain.GetState 0
    step stats keys "$domain" org.libvirt.Domain.GetStats 0 0
    for name in Suspend Resume GetJobInfo; do step $name call "$domain" "org.libvirt.Domain.$name"; done
    for name in GetMemoryParameters GetBlkioParameters GetSchedulerParameters GetInterfaceParameters GetNumaParameters \
        GetVcpus GetTime ListDomainSnapshots GetHostname GetControlInfo GetFSInfo GetGuestVcpus GetDiskErrors; do
        case $name in
            GetInterfaceParameters) step $name call "$domain" "org.libvirt.Domain.$name" vnet0 0 ;;
            *) step $name call "$domain" "org.libvirt.Domain.$name" 0 ;;
        esac
    done
    step metadata call "$domain" org.libvirt.Domain.SetMetadata 1 title '' '' 0
    step title call "$domain" org.libvirt.Domain.GetMetadata 1 '' 0
    step secret call $qemu org.libvirt.Connect.SecretDefineXML "<secret ephemeral='yes' private='no'><usage type='ceph'><name>bus</name></usage></secret>" 0
    step pool call $qemu org.libvirt.Connect.StoragePoolCreateXML "<pool type='dir'><name>bus</name><target><path>$DIR</path></target></pool>" 0
    step destroy call "$domain" org.libvirt.Domain.Destroy 0
    step undefine call "$domain" org.libvirt.Domain.Undefine 0
    until_ok grep -q "DomainEvent (.* 1, 0)" "$DIR/heard"
    kill $monitor $server
    wait $monitor $server 2>/dev/null
    step events bash -c 'grep -E "Event|Refresh" "$1" | sed -E "s/[0-9a-f]{8}(_[0-9a-f]{4}){3}_[0-9a-f]{12}/UUID/g"' - "$DIR/heard"
}
play() { dbus-run-session -- "$0" all 2>/dev/null; }
. "$(dirname "$0")/lib.sh"
