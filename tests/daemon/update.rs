//! Devices that are changed where they are: media, links, passwords.

use std::fs;

use ferrovirt_compat::{Daemon, halting};

use crate::daemon;

fn image(daemon: &Daemon, name: &str) -> String {
    let path = daemon.path(name);
    fs::write(&path, [0; 4096]).unwrap();
    path.display().to_string()
}

#[test]
fn media_go_in_and_out_of_a_running_guest_and_its_definition() {
    let daemon = daemon();
    let (first, second) = (image(&daemon, "first.iso"), image(&daemon, "second.iso"));
    daemon.run(&halting("reader").device(&format!(
        "<disk type='file' device='cdrom'><source file='{first}'/><target dev='hdc' bus='ide'/></disk>\
         <disk type='file' device='disk'><source file='{second}'/><target dev='hdd' bus='ide'/></disk>"
    )));
    let media = || {
        let blocks = daemon.ok(&["qemu-monitor-command", "reader", "--hmp", "info block"]);
        (blocks.contains("first.iso"), daemon.ok(&["dumpxml", "reader"]).contains("first.iso"))
    };
    let nodes = || daemon.ok(&["qemu-monitor-command", "reader", "--hmp", "info block -n"]);
    assert_eq!(media(), (true, true));
    daemon.ok(&["change-media", "reader", "hdc", "--eject", "--live"]);
    assert_eq!(media(), (false, false));
    assert!(!nodes().contains("first.iso"), "its image is closed");
    assert!(daemon.ok(&["dumpxml", "reader", "--inactive"]).contains("first.iso"));
    daemon.ok(&["change-media", "reader", "hdc", &first, "--insert", "--live"]);
    assert_eq!(media(), (true, true));
    let other = image(&daemon, "other.iso");
    daemon.ok(&["change-media", "reader", "hdc", &other, "--update", "--live", "--config"]);
    assert_eq!(media(), (false, false));
    assert!(nodes().contains("other.iso"));
    assert!(daemon.ok(&["dumpxml", "reader", "--inactive"]).contains("other.iso"));
    let error =
        daemon.virsh(&["change-media", "reader", "hdc", "/nonexistent/x.iso", "--update", "--live"]).fails();
    assert!(error.contains("No such file or directory"), "{error}");
    assert!(nodes().contains("other.iso"));
    for (xml, sentence) in [
        (
            format!("<disk type='file'><source file='{other}'/><target dev='hdd' bus='ide'/></disk>"),
            "disk source can be changed only in removable drives",
        ),
        (
            format!("<disk type='file'><source file='{other}'/><target dev='hdc' bus='ide'/></disk>"),
            "cannot modify field 'device' of the disk",
        ),
        ("<sound model='ich6'/>".to_owned(), "live update of device 'sound' is not supported"),
    ] {
        let error =
            daemon.with_xml(&xml, |file| daemon.virsh(&["update-device", "reader", file, "--live"])).fails();
        assert!(error.contains(sentence), "{xml}: {error}");
    }
}

#[test]
fn a_link_is_pulled_and_plugged() {
    let daemon = daemon();
    let card = "<interface type='user'><mac address='52:54:00:00:00:05'/><model type='virtio'/></interface>";
    daemon.run(&halting("linked").device(card));
    daemon.ok(&["domif-setlink", "linked", "52:54:00:00:00:05", "down"]);
    assert!(daemon.ok(&["dumpxml", "linked"]).contains("<link state='down'/>"));
    assert!(!daemon.ok(&["dumpxml", "linked", "--inactive"]).contains("<link state"));
    assert!(daemon.ok(&["domif-getlink", "linked", "52:54:00:00:00:05"]).contains("down"));
    daemon.ok(&["domif-setlink", "linked", "52:54:00:00:00:05", "up"]);
    assert!(daemon.ok(&["dumpxml", "linked"]).contains("<link state='up'/>"));
    daemon.ok(&["domif-setlink", "linked", "52:54:00:00:00:05", "down", "--config"]);
    assert!(daemon.ok(&["dumpxml", "linked", "--inactive"]).contains("<link state='down'/>"));
    let other = card.replace("00:05", "00:06");
    let error =
        daemon.with_xml(&other, |file| daemon.virsh(&["update-device", "linked", file, "--live"])).fails();
    assert!(error.contains("matching MAC address '52:54:00:00:00:06' and alias '(<null>)'"), "{error}");
}

#[test]
fn a_password_is_changed_while_somebody_may_look() {
    let daemon = daemon();
    // No other test has a port chosen for a screen: two daemons on one host may choose the same.
    daemon.run(&halting("seen").device("<graphics type='vnc' autoport='yes' passwd='old'/>"));
    let change =
        |xml: &str| daemon.with_xml(xml, |file| daemon.virsh(&["update-device", "seen", file, "--live"]));
    change("<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='new'/>").ok();
    assert!(daemon.ok(&["dumpxml", "seen", "--security-info"]).contains("passwd='new'"));
    let error = change("<graphics type='vnc' autoport='yes' listen='0.0.0.0'/>").fails();
    assert!(error.contains("cannot change listen address setting on 'vnc' graphics"), "{error}");
    let error = change("<graphics type='vnc' port='5999' listen='127.0.0.1' passwd='new'/>").fails();
    assert!(error.contains("cannot change port settings on vnc graphics"), "{error}");
}

/// The fake QEMU has no drives; what it is told is enough.
#[test]
fn a_medium_that_does_not_go_in_leaves_the_one_that_was_there() {
    if crate::endings::needs_fake() {
        return;
    }
    let daemon = daemon();
    let (first, second) = (image(&daemon, "first.iso"), image(&daemon, "second.iso"));
    let behaviour = crate::fake_qemu::Behaviour {
        refuse: [("blockdev-insert-medium".to_owned(), "no".to_owned())].into(),
        ..Default::default()
    };
    let emulator = behaviour.install(&daemon.path(""));
    let guest = halting("stubborn").device(&format!(
        "<emulator>{}</emulator><disk type='file' device='cdrom'><source file='{first}'/>\
         <target dev='hdc' bus='ide'/></disk>",
        emulator.display()
    ));
    daemon.run(&guest);
    let before = daemon.ok(&["dumpxml", "stubborn"]);
    let error = daemon.virsh(&["change-media", "stubborn", "hdc", &second, "--update", "--live"]).fails();
    assert!(error.contains("no"), "{error}");
    assert_eq!(daemon.ok(&["dumpxml", "stubborn"]), before);
    daemon.ok(&["destroy", "stubborn"]);
}
