//! Disks from descriptors that a client hands over.

use std::path::{Path, PathBuf};

use ferrovirt_compat::{Daemon, halting, run};

use crate::daemon;

/// An image where nobody finds it by the name that the guest has for it: `(the name, where it is)`.
fn image(daemon: &Daemon, name: &str, arguments: &[&str]) -> (PathBuf, PathBuf) {
    let (named, real) = (daemon.path(name), daemon.path(&format!("{name}.real")));
    run("qemu-img", &[&["create", "-q", "-f", "qcow2"], arguments, &[real.to_str().unwrap(), "1M"]].concat())
        .ok();
    (named, real)
}

fn disk(group: &str, named: &Path, target: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}' fdgroup='{group}'/>\
         <target dev='{target}' bus='virtio'/></disk>",
        named.display()
    )
}

const REFUSED: &str = "def refused(call, *arguments):\n    try:\n        call(*arguments)\n    except libvirt.libvirtError as error:\n        \
    print(error.get_error_code(), error)\n    else:\n        print('done')\n";

#[test]
fn a_disk_is_read_from_what_was_handed_over() {
    let daemon = daemon();
    let base = daemon.path("base.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]).ok();
    let (named, real) = image(&daemon, "top", &["-b", base.to_str().unwrap(), "-F", "qcow2"]);
    let (other_named, other) = image(&daemon, "other", &[]);
    daemon.define(&halting("handed").device(&disk("mine", &named, "vda")));
    let out = daemon
        .python(&format!(
            "{REFUSED}
domain = conn.lookupByName('handed')
refused(domain.create)
image = os.open('{}', os.O_RDWR)
domain.FDAssociate('mine', [image])
os.close(image)
domain.create()
print(domain.XMLDesc().count('base.qcow2'), domain.XMLDesc().count(\"fdgroup='mine'\"))
refused(domain.blockInfo, 'vda')
refused(domain.blockPeek, 'vda', 0, 512)
both = [os.open('{other}', mode) for mode in (os.O_RDONLY, os.O_RDWR)]
domain.FDAssociate('also mine', both)
refused(domain.attachDevice, \"\"\"{}\"\"\")
refused(domain.attachDevice, \"\"\"{}\"\"\")
refused(domain.FDAssociate, 'mine', both, 1 << 5)
",
            real.display(),
            disk("not mine", &other_named, "vdb"),
            disk("also mine", &other_named, "vdb"),
            other = other.display(),
        ))
        .ok();
    let lines: Vec<_> = out.lines().collect();
    let missing = "8 invalid argument: file descriptor group 'mine' was not associated with the domain";
    assert_eq!(lines[0], missing);
    assert_eq!(lines[1], "1 1", "what is below is found in the descriptor");
    assert_eq!(lines[2], "84 Operation not supported: block info is not supported for FD passed disk image");
    assert!(lines[3].starts_with("84 Operation not supported: peeking is "), "{out}");
    assert_eq!(lines[4], missing.replace("'mine'", "'not mine'"));
    assert_eq!(lines[5], "done");
    assert_eq!(lines[6], "8 unsupported flags (0x20) in function qemuDomainFDAssociate");
    let nodes = daemon.ok(&["qemu-monitor-command", "handed", r#"{"execute": "query-named-block-nodes"}"#]);
    for opened in [r#""filename": "/dev/fdset/0""#, r#""filename": "/dev/fdset/1""#] {
        let opened = opened.replace(": ", ":");
        assert!(nodes.contains(&opened), "{opened}: {nodes}");
    }
    // The client has left: the guest keeps what it has, and nobody else gets it.
    assert_eq!(daemon.ok(&["domstate", "handed"]).trim(), "running");
    daemon.ok(&["destroy", "handed"]);
    let refused = daemon.virsh(&["start", "handed"]).fails();
    assert!(refused.contains("file descriptor group 'mine' was not associated"), "{refused}");
}

#[test]
fn virsh_hands_over_its_own_descriptors() {
    let daemon = daemon();
    let real = daemon.path("real");
    run("qemu-img", &["create", "-q", real.to_str().unwrap(), "1M"]).ok();
    daemon.define(&halting("v").device(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/nowhere' fdgroup='group'/>\
         <target dev='hda' bus='ide'/><readonly/></disk>",
    ));
    // virsh has it open as number 3, and is one client from the first command to the last.
    let start = |flags: &str| {
        let script = format!(
            "exec 3<>'{}'; virsh -c '{}' 'dom-fd-associate v group 3 {flags}; start v; domstate v'",
            real.display(),
            daemon.uri()
        );
        run("bash", &["-c", &script])
    };
    // What can be written to is not what QEMU looks for below a disk that is only read.
    let refused = start("").err;
    assert!(refused.contains("Failed to find file descriptor with matching flags"), "{refused}");
    let started = start("--seclabel-writable");
    assert!(started.out.contains("running"), "{started:?}");
    let stats = daemon.ok(&["domstats", "v", "--block", "--raw"]);
    assert!(stats.contains("block.0.capacity=1048576"), "{stats}");
}
