//! What QEMU reports of images and memory reaches clients.

use ferrovirt_compat::halting;
use serde_json::json;

use crate::daemon;
use crate::endings::{needs_fake, reporting};

#[test]
fn thresholds_and_failing_memory_are_told() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let events = [
        (
            "BLOCK_WRITE_THRESHOLD",
            json!({ "node-name": "libvirt-1-storage", "amount-exceeded": 7, "write-threshold": 4096 }),
        ),
        (
            "MEMORY_FAILURE",
            json!({ "recipient": "guest", "action": "inject", "flags": { "action-required": true, "recursive": true } }),
        ),
        ("MEMORY_DEVICE_SIZE_CHANGE", json!({ "id": "nothing", "size": 1024, "qom-path": "/x" })),
    ];
    let path = daemon.path("image");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let disk = format!(
        "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        path.display()
    );
    let emulator = reporting(&events).install(&daemon.path(""));
    let emulator = format!("<emulator>{}</emulator>", emulator.display());
    daemon.run(&halting("g").device(&emulator).device(&disk));
    let said = daemon.python(
        "import libvirt_qemu\n\
         seen = []\n\
         def threshold(conn, dom, dev, path, threshold, excess, opaque):\n    \
             seen.append(f'{dev} {os.path.basename(path)} {threshold} {excess}')\n\
         def failure(conn, dom, recipient, action, flags, opaque):\n    \
             seen.append(f'{recipient} {action} {flags}')\n\
         def size(conn, dom, alias, size, opaque): seen.append(alias)\n\
         for number, call in ((24, threshold), (25, failure), (26, size)):\n    \
             conn.domainEventRegisterAny(None, number, call, None)\n\
         g = conn.lookupByName('g')\n\
         for event in ('BLOCK_WRITE_THRESHOLD', 'MEMORY_DEVICE_SIZE_CHANGE', 'MEMORY_FAILURE'):\n    \
             libvirt_qemu.qemuMonitorCommand(g, '{\"execute\": \"x-%s\"}' % event, 0)\n\
         while len(seen) < 3: libvirt.virEventRunDefaultImpl()\n\
         print('\\n'.join(seen))",
    );
    let said = said.ok();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["vda image 4096 7", "vda[1] image 4096 7", "1 1 3"]);
}
