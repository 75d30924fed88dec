#!/bin/bash
# virt-viewer on a screen that nobody sees.
# needs virt-viewer: virt-viewer
# needs Xvfb: xvfb
# needs xwininfo: x11-utils

version() { virt-viewer --version | sed 's/.*version //'; }

play() {
    export HOME=$DIR XDG_RUNTIME_DIR=$DIR GSETTINGS_BACKEND=memory NO_AT_BRIDGE=1
    Xvfb -displayfd 3 -screen 0 800x600x24 3>"$DIR/display" >/dev/null 2>&1 & screen=$!
    until_ok test -s "$DIR/display"
    export DISPLAY=:$(<"$DIR/display")
    guest seen "<graphics type='vnc' port='-1' autoport='yes'/><video><model type='vga'/></video>"
    step define virsh define "$DIR/seen.xml"
    for mode in --direct --attach; do
        virt-viewer -c qemu:///system --wait $mode --debug seen >"$DIR/log" 2>&1 & viewer=$!
        until_ok grep -q 'Waiting for\|waiting for\|wait' "$DIR/log"
        step start virsh start seen
        step window until_ok bash -c 'xwininfo -root -tree | grep -q "seen (1).*Viewer"'
        step picture until_ok grep -q 'desktop resize' "$DIR/log"
        step suspend virsh suspend seen
        step resume virsh resume seen
        step destroy virsh destroy seen
        # It hears of the end, and ends itself.
        step over until_ok bash -c '! kill -0 "$1"' - $viewer
        kill $viewer 2>/dev/null
        step "log $mode" bash -c 'grep -oE "Guest .*|Opening connection .*|Got domain event.*" "$1" | sed -E "s/590[0-9]/PORT/; s/fd=[0-9]+/fd/" | grep -v "event 6 2" | sort -u' - "$DIR/log"
    done
    step undefine virsh undefine seen
    kill $screen
}
. "$(dirname "$0")/lib.sh"
