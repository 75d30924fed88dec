#!/bin/bash
# A playbook with community.libvirt's modules.
# needs ansible-playbook: ansible-core
# needs /usr/lib/python3/dist-packages/ansible_collections/community/libvirt/plugins/modules/virt.py: ansible

version() { sed -n 's/.*"version": "\(.*\)".*/\1/p' /usr/lib/python3/dist-packages/ansible_collections/community/libvirt/MANIFEST.json; }

play() {
    export HOME=$DIR ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_NOCOLOR=1 ANSIBLE_HOME=$DIR/.ansible ANSIBLE_RETRY_FILES_ENABLED=0
    guest tower "$(disk a.qcow2 vda)"
    watch virsh
    step playbook timeout 150 ansible-playbook -i localhost, -c local -e ansible_python_interpreter=/usr/bin/python3 \
        -e "directory=$DIR" "$CLIENTS/playbook.yml"
    step events heard lifecycle
}
. "$(dirname "$0")/lib.sh"
