#!/bin/bash
# collectd's plugin: what it measures.
# needs collectd: collectd-core
# needs /usr/lib/collectd/virt.so: collectd-core

version() { dpkg-query -W -f='${Version}' collectd-core; }

play() {
    guest measured "$(disk a.qcow2 vda)<interface type='user'/>"
    cat >"$DIR/collectd.conf" <<CONF
BaseDir "$DIR"
PIDFile "$DIR/pid"
PluginDir "/usr/lib/collectd"
TypesDB "/usr/share/collectd/types.db"
Interval 0.5
LoadPlugin logfile
<Plugin logfile>
  LogLevel err
  File "$DIR/log"
  Timestamp false
</Plugin>
LoadPlugin virt
<Plugin virt>
  Connection "qemu:///system"
  RefreshInterval 1
  ExtraStats "cpu_util disk disk_allocation disk_capacity disk_err disk_physical domain_state job_stats_background memory pcpu vcpu vcpupin perf"
  PersistentNotification true
  HostnameFormat name
</Plugin>
LoadPlugin csv
<Plugin csv>
  DataDir "$DIR/csv"
</Plugin>
CONF
    step define virsh define "$DIR/measured.xml"
    step start virsh start measured
    collectd -f -C "$DIR/collectd.conf" & collector=$!
    # A processor's load takes two looks at it.
    until_ok test -d "$DIR/csv/measured"
    until_ok bash -c 'test "$(cat "$1"/csv/measured/virt/percent-virt_cpu_total-* | wc -l)" -ge 3' - "$DIR"
    step destroy virsh destroy measured
    until_ok grep -q 'forced poweroff' "$DIR/log"
    step undefine virsh undefine measured
    kill $collector
    wait $collector
    step measured bash -c 'cd "$1/csv" && find . -type f | sed "s/-20[0-9-]*$//" | sort' - "$DIR"
    step log bash -c 'sort -u "$1" | grep -v "being shut down"' - "$DIR/log"
}
. "$(dirname "$0")/lib.sh"
