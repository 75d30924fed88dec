#!/bin/bash
# libvirt-python under asyncio.
# needs /usr/lib/python3/dist-packages/libvirtaio.py: python3-libvirt

version() { /usr/bin/python3 -c 'import libvirt; print(".".join(str(libvirt.getVersion() // n % 1000) for n in (1000000, 1000, 1)))'; }

play() {
    guest snake "$(disk a.qcow2 vda)"
    step asyncio /usr/bin/python3 -B "$CLIENTS/aio.py" "$DIR/snake.xml"
}
. "$(dirname "$0")/lib.sh"
