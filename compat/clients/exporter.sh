#!/bin/bash
# The Prometheus exporter: names and labels of what it finds.
# needs prometheus-libvirt-exporter: prometheus-libvirt-exporter
# needs curl: curl

version() { dpkg-query -W -f='${Version}' prometheus-libvirt-exporter; }

scrape() { curl -sf 127.0.0.1:19177/metrics | grep '^libvirt_' | sed -E 's/ [0-9.e+-]+$//'; }
play() {
    guest measured "$(disk a.qcow2 vda)<interface type='user'/>"
    virsh define "$DIR/measured.xml" >"$DIR/defined"
    prometheus-libvirt-exporter --web.listen-address 127.0.0.1:19177 --libvirt.uri qemu:///system 2>"$DIR/log" & exporter=$!
    until_ok curl -sf 127.0.0.1:19177/metrics
    step stopped scrape
    virsh start measured >"$DIR/started"
    step running scrape
    step state bash -c 'curl -sf 127.0.0.1:19177/metrics | grep -E "^libvirt_(up|domains_number|domain_state_code|domain_info_(max|mem|virt))"'
    virsh destroy measured >"$DIR/destroyed"
    step destroyed scrape
    virsh undefine measured >"$DIR/undefined"
    step gone scrape
    kill $exporter
}
. "$(dirname "$0")/lib.sh"
