//! Definitions: kept on disk where libvirt keeps them, in libvirt's form.

use std::fs;

use ferrovirt_compat::halting;

use crate::{daemon, on_upstream};

#[test]
fn unknown_names_are_refused_where_validation_is_asked() {
    let daemon = daemon();
    let xml = halting("tiny").device("<serial type='null' colour='red'/>").xml();
    for command in ["define", "create"] {
        let error = daemon.with_xml(&xml, |file| daemon.virsh(&[command, "--validate", file]).fails());
        assert!(error.contains("error: XML document failed to validate against schema: "), "{error}");
        if !on_upstream() {
            assert!(error.contains("unknown attribute 'colour' in element 'serial'"), "{error}");
        }
    }
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let known = halting("other").xml();
    daemon.with_xml(&known, |file| daemon.ok(&["define", "--validate", file]));
    daemon.with_xml(&daemon.ok(&["dumpxml", "tiny"]), |file| daemon.ok(&["define", "--validate", file]));
}

#[test]
fn of_a_misnamed_definition_the_content_counts() {
    let mut daemon = daemon();
    daemon.define(&halting("tiny"));
    daemon.define(&halting("broken"));
    daemon.ok(&["autostart", "tiny"]);
    daemon.terminate();
    let below = |name: &str| daemon.path(&format!("etc/libvirt/qemu/{name}"));
    fs::rename(below("tiny.xml"), below("odd.xml")).unwrap();
    fs::write(below("broken.xml"), "<domain type='kvm'><na").unwrap();
    daemon.restart();
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "tiny");
    assert!(daemon.ok(&["dominfo", "tiny"]).contains("Autostart:      disable"), "its link leads nowhere");
    if !on_upstream() {
        let log = daemon.log();
        assert!(log.contains("does not have its domain's name") && log.contains("odd.xml"), "{log}");
        assert!(log.contains("skipped a definition") && log.contains("broken.xml"), "{log}");
    }
}

#[test]
fn definition_and_autostart_are_files_where_libvirt_has_them() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let file = daemon.path("etc/libvirt/qemu/tiny.xml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("<!--") && text.contains("<name>tiny</name>"), "{text}");
    daemon.ok(&["autostart", "tiny"]);
    let link = daemon.path("etc/libvirt/qemu/autostart/tiny.xml");
    assert!(fs::read_link(&link).is_ok());
    assert!(daemon.ok(&["dominfo", "tiny"]).contains("Autostart:      enable"));
    daemon.ok(&["undefine", "tiny"]);
    assert!(!file.exists() && fs::symlink_metadata(&link).is_err());
}

#[test]
fn definitions_survive_the_daemon() {
    let mut daemon = daemon();
    for name in ["a", "b"] {
        daemon.define(&halting(name));
    }
    let before = daemon.ok(&["dumpxml", "a"]);
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(daemon.ok(&["dumpxml", "a"]), before);
}

#[test]
fn what_is_printed_can_be_defined_again_and_stays() {
    let daemon = daemon();
    daemon.define(&halting("tiny").device("<serial type='pty'/><video><model type='vga'/></video>"));
    let printed = daemon.ok(&["dumpxml", "tiny"]);
    daemon.with_xml(&printed, |file| daemon.ok(&["define", file]));
    assert_eq!(daemon.ok(&["dumpxml", "tiny"]), printed);
    // Defaults that libvirt adds, so that this is more than an echo.
    for added in [
        "<uuid>",
        "<currentMemory unit='KiB'>16384</currentMemory>",
        "<emulator>",
        "<on_crash>destroy</on_crash>",
    ] {
        assert!(printed.contains(added), "{added} is not in {printed}");
    }
}

#[test]
fn foreign_metadata_stays_and_unknown_elements_go() {
    let daemon = daemon();
    let metadata = "<app:owner xmlns:app=\"http://example.org/app\" id=\"7\">\n      <app:note>kept &amp; whole</app:note>\n    </app:owner>";
    let xml = halting("tiny")
        .xml()
        .replace("<devices>", &format!("<metadata>{metadata}</metadata><bogus/><devices><gadget/>"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let printed = daemon.ok(&["dumpxml", "tiny"]);
    assert!(printed.contains("kept &amp; whole") && printed.contains("http://example.org/app"), "{printed}");
    assert!(!printed.contains("bogus") && !printed.contains("gadget"), "{printed}");
    let one = daemon.ok(&["metadata", "tiny", "http://example.org/app"]);
    assert!(one.contains("note"), "{one}");
}

#[test]
fn a_second_definition_replaces_the_first_and_keeps_the_uuid() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let uuid = daemon.ok(&["domuuid", "tiny"]);
    let titled = halting("tiny").xml().replace("<memory", "<title>new</title><memory");
    daemon.with_xml(&titled.replace("<name>", &format!("<uuid>{}</uuid><name>", uuid.trim())), |file| {
        daemon.ok(&["define", file])
    });
    assert_eq!(daemon.ok(&["domuuid", "tiny"]), uuid);
    assert_eq!(daemon.ok(&["desc", "--title", "tiny"]).trim(), "new");
}

#[test]
fn a_running_guest_takes_a_new_definition_at_its_next_start() {
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    let larger = daemon.ok(&["dumpxml", "--inactive", "tiny"]).replace("16384", "32768");
    daemon.with_xml(&larger, |file| daemon.ok(&["define", file]));
    assert!(daemon.ok(&["dumpxml", "tiny"]).contains("<memory unit='KiB'>16384</memory>"));
    assert!(daemon.ok(&["dumpxml", "--inactive", "tiny"]).contains("<memory unit='KiB'>32768</memory>"));
    daemon.ok(&["destroy", "tiny"]);
    daemon.ok(&["start", "tiny"]);
    assert!(daemon.ok(&["dumpxml", "tiny"]).contains("<memory unit='KiB'>32768</memory>"));
}

#[test]
fn a_running_transient_guest_becomes_persistent_by_its_definition() {
    let daemon = daemon();
    daemon.create(&halting("tiny"));
    let live = daemon.ok(&["dumpxml", "tiny"]);
    daemon.with_xml(&live, |file| daemon.ok(&["define", file]));
    assert!(daemon.ok(&["dominfo", "tiny"]).contains("Persistent:     yes"));
    daemon.ok(&["destroy", "tiny"]);
    assert_eq!(daemon.state("tiny"), "shut off");
}
