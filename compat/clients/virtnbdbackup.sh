#!/bin/bash
# virtnbdbackup: full and incremental backups over NBD, and one of them restored.
# needs virtnbdbackup: virtnbdbackup

version() { virtnbdbackup --version; }

said() { timeout 120 "$@" 2>&1 | sed -E 's/^\[?[0-9-]+ [0-9:,.]+\]? //; s/[0-9]+(\.[0-9]+)?[kMG]?B\/s//; s/\r.*//; s/(virtnbdbackup\.)[0-9]+/\1PID/; s/[0-9:]{5,}.*$//; s/pid[^0-9]*[0-9]+/PID/' |
    grep -vE '%\||[Vv]ersion|Total saved disk size|Connecting|NBD'; return "${PIPESTATUS[0]}"; }
play() {
    export HOME=$DIR
    guest kept "$(disk a.qcow2 vda)"
    qemu-io -c 'write -P 7 0 1M' "$DIR/a.qcow2" >/dev/null
    watch virsh
    step define virsh define "$DIR/kept.xml"
    step stopped said virtnbdbackup -d kept -l copy -o "$DIR/copy"
    step start virsh start kept
    step full said virtnbdbackup -d kept -l full -o "$DIR/backup" --nogziplogs
    step checkpoints virsh checkpoint-list kept
    step incremental said virtnbdbackup -d kept -l inc -o "$DIR/backup"
    step differential said virtnbdbackup -d kept -l diff -o "$DIR/backup"
    step checkpoints virsh checkpoint-list kept --tree
    step twice said virtnbdbackup -d kept -l full -o "$DIR/backup"
    step destroy virsh destroy kept
    step dump said virtnbdrestore -i "$DIR/backup" -o dump
    step restore said virtnbdrestore -i "$DIR/backup" -o "$DIR/restored"
    step same qemu-img compare "$DIR/a.qcow2" "$DIR/restored/a.qcow2"
    step undefine virsh undefine kept --checkpoints-metadata
    step events heard "lifecycle|block-job|job-completed"
}
. "$(dirname "$0")/lib.sh"
