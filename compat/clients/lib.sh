# What every client's script ends with. A script has up to three functions:
#
#   prepare   unpacks or builds what is needed, outside of any daemon's sight; what it says last when it fails is why
#             the client is not here
#   version   prints the client's
#   play      uses it, as a row of steps
#
# and lines `# needs PROGRAM: PACKAGE` at its top. While it plays, qemu:///system is the daemon, DIR an empty directory,
# ROM a firmware that halts, CLIENTS this directory; CACHE is kept from run to run.
set -u -o pipefail
export LIBVIRT_DEFAULT_URI=qemu:///system

# step NAME COMMAND…: a question; what the command prints is the answer.
step() {
    local name=$1
    shift
    echo "== $name"
    "$@" 2>&1 </dev/null
    echo "exit status $?"
}

# until_ok COMMAND…: waits for what nothing announces, half a minute at most.
until_ok() {
    local attempt
    for attempt in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "never: $*"
    return 1
}

# watch VIRSH…: notes all events from here on.
watch() {
    timeout 170 "$@" event --all --loop >"$DIR/events" 2>/dev/null &
    until_ok noted the-beginning
}

# heard PATTERN: events that were noted, once all are there.
heard() {
    until_ok noted the-end
    grep -E "$1" "$DIR/events" | grep -v "'the-"
}

# noted NAME: whether a guest's coming and going, behind whatever came before, is among the events.
noted() {
    guest "$1"
    virsh define "$DIR/$1.xml" && virsh undefine "$1" && grep -q "'$1'.*Undefined" "$DIR/events"
}

kind() { if [ -e /dev/kvm ]; then echo kvm; else echo qemu; fi; }

# guest NAME [DEVICES]: $DIR/NAME.xml describes a guest that halts at once.
guest() {
    cat >"$DIR/$1.xml" <<XML
<domain type='$(kind)'><name>$1</name><memory unit='MiB'>32</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><loader type='rom'>$ROM</loader></os>
<devices><controller type='usb' model='none'/><memballoon model='none'/>${2:-}</devices></domain>
XML
}

# disk FILE TARGET: a disk element of an image that this makes.
disk() {
    qemu-img create -q -f qcow2 "$DIR/$1" 20M
    echo "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$DIR/$1'/><target dev='$2' bus='virtio'/></disk>"
}

# Nothing of a client's outlives it.
trap 'kill $(jobs -p) 2>/dev/null' EXIT
if declare -F "$1" >/dev/null; then "$1"; fi
