//! Snapshots: made, listed, gone back to, deleted; inside images and outside, of guests that run and that do not.

use ferrovirt_compat::{Daemon, eventually, halting, run};

use crate::daemon;

/// A defined guest on a new image.
fn define(daemon: &Daemon, name: &str) -> String {
    let directory = daemon.path("images");
    std::fs::create_dir_all(&directory).unwrap();
    let image = directory.join(format!("{name}.qcow2")).display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "16M"]).ok();
    daemon.define(&halting(name).device(&format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
         <target dev='vda' bus='virtio'/></disk>"
    )));
    image
}

/// The files that the disk stands on, from the top.
fn images(daemon: &Daemon, name: &str, flags: &[&str]) -> Vec<String> {
    let xml = daemon.ok(&[&["dumpxml", name], flags].concat());
    let disk = xml.split("<disk ").nth(1).unwrap().split("</disk>").next().unwrap();
    let sources = disk.lines().filter_map(|line| line.trim().strip_prefix("<source file='"));
    sources.map(|rest| rest.split('\'').next().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
}

fn names(daemon: &Daemon, name: &str, flags: &[&str]) -> String {
    let list = daemon.ok(&[&["snapshot-list", name, "--name"], flags].concat());
    list.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn refused(daemon: &Daemon, arguments: &[&str], sentence: &str) {
    let error = daemon.virsh(arguments).fails();
    assert!(error.contains(sentence), "{arguments:?}: {error}");
}

#[test]
fn a_domain_that_is_off_goes_back_and_forth_inside_its_image() {
    let daemon = daemon();
    let image = define(&daemon, "s");
    daemon.ok(&["snapshot-create-as", "s", "one", "the first one"]);
    daemon.ok(&["snapshot-create-as", "s", "two"]);
    assert!(run("qemu-img", &["snapshot", "-l", &image]).ok().contains("two"));
    let xml = daemon.ok(&["snapshot-dumpxml", "s", "two"]);
    for part in [
        "  <state>shutoff</state>\n  <parent>\n    <name>one</name>\n  </parent>\n  <creationTime>",
        "  <memory snapshot='no'/>\n  <disks>\n    <disk name='vda' snapshot='internal'/>\n  </disks>\n  <domain type=",
        "  </domain>\n</domainsnapshot>",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    assert_eq!(daemon.ok(&["snapshot-current", "s", "--name"]).trim(), "two");
    assert_eq!(daemon.ok(&["snapshot-parent", "s", "two"]).trim(), "one");
    refused(&daemon, &["snapshot-parent", "s", "one"], "snapshot 'one' has no parent");
    refused(&daemon, &["snapshot-create-as", "s", "one"], "moment one already exists");
    daemon.ok(&["snapshot-revert", "s", "one"]);
    assert_eq!(daemon.ok(&["snapshot-current", "s", "--name"]).trim(), "one");
    daemon.ok(&["snapshot-revert", "s", "two", "--running"]);
    assert_eq!(daemon.state("s"), "running");
    daemon.ok(&["snapshot-revert", "s", "one"]);
    assert_eq!(daemon.state("s"), "shut off");
    refused(&daemon, &["undefine", "s"], "cannot delete inactive domain with 2 snapshots");
    daemon.ok(&["snapshot-delete", "s", "one", "--children-only"]);
    assert_eq!(names(&daemon, "s", &[]), "one");
    daemon.ok(&["undefine", "s", "--snapshots-metadata"]);
    assert!(!daemon.path("var/lib/libvirt/qemu/snapshot/s/one.xml").exists());
}

#[test]
fn a_guest_goes_back_to_its_memory_inside_the_image() {
    let daemon = daemon();
    let image = define(&daemon, "s");
    daemon.ok(&["start", "s"]);
    let mut events = daemon.events();
    daemon.ok(&["snapshot-create-as", "s", "in"]);
    assert_eq!(daemon.state("s"), "running");
    events.expect("s suspended paused\n");
    events.expect("s resumed unpaused\n");
    daemon.ok(&["suspend", "s"]);
    daemon.ok(&["snapshot-create-as", "s", "still"]);
    assert_eq!(daemon.state("s"), "paused");
    let info = daemon.ok(&["snapshot-info", "s", "in"]);
    for (key, value) in [("State", "running"), ("Location", "internal"), ("Children", "1"), ("Current", "no")]
    {
        assert!(info.lines().any(|line| line.starts_with(key) && line.ends_with(value)), "{key}: {info}");
    }
    daemon.ok(&["snapshot-revert", "s", "in"]);
    assert_eq!(daemon.state("s"), "running");
    for event in ["stopped snapshot", "started snapshot", "resumed snapshot", "defined snapshot"] {
        events.expect(&format!("s {event}\n"));
    }
    daemon.ok(&["snapshot-revert", "s", "still"]);
    assert!(daemon.ok(&["domstate", "s", "--reason"]).contains("paused (from snapshot)"));
    daemon.ok(&["destroy", "s"]);
    daemon.ok(&["snapshot-revert", "s", "in", "--paused"]);
    assert_eq!(daemon.state("s"), "paused");
    daemon.ok(&["snapshot-delete", "s", "in"]);
    assert_eq!(names(&daemon, "s", &[]), "still");
    daemon.ok(&["snapshot-delete", "s", "still"]);
    daemon.ok(&["destroy", "s"]);
    let left = run("qemu-img", &["snapshot", "-l", &image]).ok();
    assert!(!left.contains("still") && !left.contains("in "), "{left}");
}

#[test]
fn disks_of_a_guest_stand_on_new_images_and_come_back() {
    let daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["start", "s"]);
    daemon.ok(&["snapshot-create-as", "s", "a", "--disk-only", "--atomic"]);
    assert_eq!(images(&daemon, "s", &[]), ["s.a", "s.qcow2"]);
    assert_eq!(images(&daemon, "s", &["--inactive"]), ["s.a", "s.qcow2"]);
    let xml = daemon.ok(&["snapshot-dumpxml", "s", "a"]);
    let image = daemon.path("images/s.a").display().to_string();
    for part in [
        "  <state>disk-snapshot</state>\n",
        &format!(
            "    <disk name='vda' snapshot='external' type='file'>\n      <driver type='qcow2'/>\n      \
             <source file='{image}'/>\n    </disk>\n"
        ),
        "  </domain>\n  <inactiveDomain type=",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let memory = daemon.path("images/memory").display().to_string();
    daemon.ok(&["snapshot-create-as", "s", "b", "--memspec", &format!("file={memory}")]);
    assert_eq!(daemon.state("s"), "running");
    assert_eq!(images(&daemon, "s", &[]), ["s.b", "s.a", "s.qcow2"]);
    daemon.ok(&["snapshot-create-as", "s", "c", "--disk-only", "--no-metadata", "--diskspec", "vda"]);
    assert_eq!(names(&daemon, "s", &[]), "a b");
    daemon.ok(&["blockcommit", "s", "vda", "--active", "--shallow", "--pivot", "--wait"]);
    assert_eq!(images(&daemon, "s", &[]), ["s.b", "s.a", "s.qcow2"]);
    // In the middle of the chain, then at its top.
    daemon.ok(&["snapshot-delete", "s", "a"]);
    assert_eq!(images(&daemon, "s", &[]), ["s.b", "s.qcow2"]);
    assert!(!daemon.path("images/s.a").exists());
    let left = daemon.ok(&["snapshot-dumpxml", "s", "b"]);
    assert!(!left.contains("s.a") && !left.contains("<parent>"), "{left}");
    daemon.ok(&["snapshot-revert", "s", "b"]);
    assert_eq!(daemon.state("s"), "running");
    let reverted = images(&daemon, "s", &[]);
    assert_eq!(reverted.len(), 2, "{reverted:?}");
    assert_eq!(reverted[1], "s.qcow2");
    assert!(!daemon.path("images/s.b").exists());
    daemon.ok(&["destroy", "s"]);
    daemon.ok(&["snapshot-delete", "s", "b"]);
    assert_eq!(daemon.state("s"), "shut off");
    assert_eq!(images(&daemon, "s", &[]), ["s.qcow2"]);
    assert!(!daemon.path("images/memory").exists());
    assert_eq!(std::fs::read_dir(daemon.path("images")).unwrap().count(), 2, "the base and what `c` left");
}

#[test]
fn a_transient_guest_goes_back_and_stays_transient() {
    let daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["start", "s"]);
    daemon.ok(&["undefine", "s"]);
    daemon.ok(&["snapshot-create-as", "s", "in"]);
    daemon.ok(&["snapshot-revert", "s", "in"]);
    assert_eq!(daemon.state("s"), "running");
    assert!(daemon.ok(&["dominfo", "s"]).contains("Persistent:     no"));
    daemon.ok(&["destroy", "s"]);
    refused(&daemon, &["domstate", "s"], "failed to get domain 's'");
    assert!(!daemon.path("lib/libvirt/qemu/snapshot/s/in.xml").exists());
}

#[test]
fn a_domain_that_is_off_stands_on_new_images() {
    let daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["snapshot-create-as", "s", "x", "--disk-only"]);
    assert_eq!(images(&daemon, "s", &[]), ["s.x"]);
    daemon.ok(&["snapshot-revert", "s", "x"]);
    let reverted = images(&daemon, "s", &[]);
    assert!(reverted.len() == 1 && reverted[0] != "s.x", "{reverted:?}");
    assert!(!daemon.path("images/s.x").exists());
    daemon.ok(&["snapshot-delete", "s", "x"]);
    assert_eq!(images(&daemon, "s", &[]), ["s.qcow2"]);
    assert_eq!(daemon.state("s"), "shut off");
}

#[test]
fn a_guest_that_is_halted_by_its_snapshot_is_off() {
    let daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["start", "s"]);
    daemon.ok(&["snapshot-create-as", "s", "h", "--halt", "--disk-only"]);
    assert!(daemon.ok(&["domstate", "s", "--reason"]).contains("shut off (from snapshot)"));
    assert_eq!(images(&daemon, "s", &["--inactive"]), ["s.h", "s.qcow2"]);
}

#[test]
fn what_cannot_be_is_refused_in_libvirts_words() {
    let daemon = daemon();
    define(&daemon, "s");
    let memory = daemon.path("m").display().to_string();
    for (arguments, sentence) in [
        (&["a", "--disk-only", "--diskspec", "vda,snapshot=no"][..], "nothing selected for snapshot"),
        (&["a/b"], "invalid snapshot name 'a/b': name can't contain '/'"),
        (&[".x"], "invalid snapshot name '.x': name can't start with '.'"),
        (
            &["q", "--quiesce"],
            "Flag 'VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY' is required by flag 'VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE'",
        ),
        (&["q", "--live"], "live snapshot creation is supported only during full system snapshots"),
        (&["q", "--diskspec", "vdz"], "no disk named 'vdz'"),
        (&["q", "--memspec", &format!("file={memory}")], "memory state cannot be saved with offline"),
        (
            &["q", "--disk-only", "--diskspec", "vda,file=rel"],
            "disk snapshot image path 'rel' must be absolute",
        ),
        (
            &["q", "--disk-only", "--diskspec", "vda,driver=raw"],
            "external snapshot format for disk vda is unsupported: raw",
        ),
        (&["q", "--disk-only", "--reuse-external"], "missing existing file for disk vda"),
    ] {
        refused(&daemon, &[&["snapshot-create-as", "s"], arguments].concat(), sentence);
    }
    refused(&daemon, &["snapshot-dumpxml", "s", "no"], "no domain snapshot with matching name 'no'");
    refused(&daemon, &["snapshot-current", "s"], "domain 's' has no current snapshot");
    assert_eq!(names(&daemon, "s", &[]), "");
}

#[test]
fn lists_are_filtered_and_the_next_daemon_knows_them() {
    let mut daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["snapshot-create-as", "s", "off"]);
    daemon.ok(&["start", "s"]);
    daemon.ok(&["snapshot-create-as", "s", "on"]);
    daemon.ok(&["snapshot-create-as", "s", "disks", "--disk-only"]);
    let all = |daemon: &Daemon| {
        [
            &[][..],
            &["--roots"],
            &["--leaves"],
            &["--no-leaves"],
            &["--inactive"],
            &["--active"],
            &["--disk-only"],
            &["--internal"],
            &["--external"],
            &["--no-metadata"],
            &["--from", "off"],
            &["--from", "off", "--descendants"],
        ]
        .map(|flags| names(daemon, "s", flags))
    };
    let expected = [
        "disks off on",
        "off",
        "disks",
        "off on",
        "off",
        "on",
        "disks",
        "off on",
        "disks",
        "",
        "on",
        "disks on",
    ];
    assert_eq!(all(&daemon), expected);
    daemon.kill();
    daemon.restart();
    eventually("the guest is held again", || daemon.virsh(&["domblkinfo", "s", "vda"]).success.then_some(()));
    assert_eq!(all(&daemon), expected);
    assert_eq!(daemon.ok(&["snapshot-current", "s", "--name"]).trim(), "disks");
}

#[test]
fn a_snapshot_is_described_anew() {
    let daemon = daemon();
    define(&daemon, "s");
    daemon.ok(&["snapshot-create-as", "s", "one"]);
    let xml = daemon.ok(&["snapshot-dumpxml", "s", "one"]);
    daemon.ok(&["snapshot-delete", "s", "one", "--metadata"]);
    assert_eq!(names(&daemon, "s", &[]), "");
    daemon.with_xml(&xml, |file| daemon.ok(&["snapshot-create", "s", file, "--redefine", "--current"]));
    assert_eq!(daemon.ok(&["snapshot-dumpxml", "s", "one"]), xml);
    assert_eq!(daemon.ok(&["snapshot-current", "s", "--name"]).trim(), "one");
    daemon.ok(&["snapshot-revert", "s", "one"]);
    for (from, to, sentence) in [
        ("<name>one</name>", "", "a redefined snapshot must have a name"),
        ("<state>shutoff</state>", "<state>odd</state>", "Invalid state 'odd' in domain snapshot XML"),
        ("<state>shutoff</state>", "<state>running</state>", "cannot change between online and offline"),
        ("<creationTime>", "<x>", ""),
        ("</state>", "</state><parent><name>gone</name></parent>", "parent gone for moment one not found"),
    ] {
        let text = xml.replacen(from, to, 1);
        daemon.with_xml(&text, |file| {
            refused(&daemon, &["snapshot-create", "s", file, "--redefine"], sentence)
        });
    }
    daemon.ok(&["domrename", "s", "t"]);
    assert_eq!(names(&daemon, "t", &[]), "one");
}
