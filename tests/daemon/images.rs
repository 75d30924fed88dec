//! Disks that are encrypted or somewhere else: what QEMU needs to read them comes with the guest.

use std::fs;
use std::path::Path;
use std::process::Child;

use ferrovirt_compat::{Daemon, command, halting, run, wait_for_listener};

use crate::daemon;

const UUID: &str = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f";
const PASSPHRASE: &str = "hunter2";

/// An encrypted image, and the secret that opens it.
fn encrypted(daemon: &Daemon) -> String {
    let image = daemon.path("luks.img").display().to_string();
    let usage = format!("<usage type='volume'><volume>{image}</volume></usage>");
    let secret = format!("<secret private='yes'><uuid>{UUID}</uuid>{usage}</secret>");
    daemon.with_xml(&secret, |file| daemon.ok(&["secret-define", file]));
    let key = format!("secret,id=s,data={PASSPHRASE}");
    let options = ["-o", "key-secret=s,iter-time=10"];
    run(
        "qemu-img",
        &[&["create", "-q", "--object", &key, "-f", "luks"], &options[..], &[&image, "1M"]].concat(),
    )
    .ok();
    image
}

fn luks_disk(image: &str, target: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{image}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{UUID}'/></encryption></source>\
         <target dev='{target}' bus='virtio'/></disk>"
    )
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An image behind a socket.
fn export(image: &Path, socket: &Path) -> Server {
    fs::write(image, vec![0; 1 << 20]).unwrap();
    let mut command = command("qemu-nbd");
    command.args(["--persistent", "--shared=4", "--format=raw", "--export-name=export", "--socket"]);
    let server = Server(command.arg(socket).arg(image).spawn().unwrap());
    wait_for_listener(socket);
    server
}

fn nodes(daemon: &Daemon, guest: &str) -> String {
    daemon.ok(&[
        "qemu-monitor-command",
        guest,
        r#"{"execute": "query-named-block-nodes", "arguments": {"flat": true}}"#,
    ])
}

#[test]
fn an_encrypted_disk_opens_with_its_secret_and_nobody_sees_it() {
    let daemon = daemon();
    let image = encrypted(&daemon);
    let guest = halting("tiny").device(&luks_disk(&image, "vda"));
    daemon.with_xml(&guest.xml(), |file| daemon.ok(&["define", file]));
    let error = daemon.virsh(&["start", "tiny"]).fails();
    assert!(error.contains(&format!("Secret not found: secret '{UUID}' does not have a value")), "{error}");
    let value = daemon.path("value");
    fs::write(&value, PASSPHRASE).unwrap();
    daemon.ok(&["secret-set-value", UUID, "--file", value.to_str().unwrap(), "--plain"]);
    daemon.ok(&["start", "tiny"]);
    let open = nodes(&daemon, "tiny");
    assert!(open.contains(r#""drv":"luks""#) && open.contains("libvirt-1-format"), "{open}");
    let log = fs::read_to_string(daemon.path("log/libvirt/qemu/tiny.log")).unwrap_or_default();
    assert!(!log.contains(PASSPHRASE) && !daemon.log().contains(PASSPHRASE));
    let live = daemon.ok(&["dumpxml", "tiny"]);
    assert!(live.contains(&format!("<secret type='passphrase' uuid='{UUID}'/>")), "{live}");
    // A disk that comes later needs its secret just the same.
    daemon.ok(&["detach-disk", "tiny", "vda", "--config"]);
    daemon.ok(&["destroy", "tiny"]);
    daemon.ok(&["start", "tiny"]);
    daemon.with_xml(&luks_disk(&image, "vdb"), |file| daemon.ok(&["attach-device", "tiny", file, "--live"]));
    let open = nodes(&daemon, "tiny");
    assert!(open.contains(r#""drv":"luks""#), "{open}");
    daemon.ok(&["destroy", "tiny"]);
}

#[test]
fn a_disk_of_another_host_starts_and_is_plugged() {
    let daemon = daemon();
    let socket = daemon.path("nbd.sock");
    let _server = export(&daemon.path("served.img"), &socket);
    let disk = |target: &str| {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <source protocol='nbd' name='export'><host transport='unix' socket='{}'/></source>\
             <target dev='{target}' bus='virtio'/></disk>",
            socket.display()
        )
    };
    daemon.run(&halting("tiny").device(&disk("vda").replace("<target", "<readonly/><target")));
    assert!(nodes(&daemon, "tiny").contains(r#""drv":"nbd""#));
    daemon.run(&halting("other"));
    daemon.with_xml(&disk("vda"), |file| daemon.ok(&["attach-device", "other", file, "--live"]));
    let open = nodes(&daemon, "other");
    assert!(open.contains(r#""drv":"nbd""#), "{open}");
    let live = daemon.ok(&["dumpxml", "other"]);
    assert!(live.contains("<source protocol='nbd' name='export' index='"), "{live}");
    daemon.ok(&["destroy", "other"]);
    daemon.ok(&["destroy", "tiny"]);
}

#[test]
fn what_is_written_to_a_transient_disk_goes_with_its_guest() {
    let daemon = crate::daemon();
    let base = daemon.path("base.raw");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let disk = |more: &str| {
        format!(
            "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/><transient{more}/></disk>",
            base.display()
        )
    };
    let overlay = |guest: &str| daemon.path(&format!("base.raw.TRANSIENT-{guest}"));
    std::fs::write(overlay("fleeting"), "left over").unwrap();
    daemon.run(&ferrovirt_compat::halting("fleeting").device(&disk("")));
    let xml = daemon.ok(&["dumpxml", "fleeting"]);
    assert!(xml.contains("base.raw.TRANSIENT-fleeting' index='2'/>"), "{xml}");
    assert!(xml.contains("<backingStore type='file' index='1'>") && xml.contains("<transient/>"), "{xml}");
    daemon.ok(&["qemu-monitor-command", "fleeting", "--hmp", "qemu-io virtio-disk0 \"write -P 9 0 4096\""]);
    assert!(!daemon.ok(&["dumpxml", "fleeting", "--inactive"]).contains("TRANSIENT"));
    daemon.ok(&["destroy", "fleeting"]);
    assert!(!overlay("fleeting").exists());
    assert_eq!(std::fs::read(&base).unwrap(), vec![7; 1 << 20]);
    // Guests may share what is below.
    for guest in ["one", "two"] {
        daemon.run(&ferrovirt_compat::halting(guest).device(&disk(" shareBacking='yes'")));
        assert!(overlay(guest).exists());
    }
    daemon.ok(&["detach-disk", "one", "vda", "--config"]);
    for guest in ["one", "two"] {
        daemon.ok(&["destroy", guest]);
        assert!(!overlay(guest).exists());
    }
    for (change, sentence) in [
        ("<readonly/><transient/>", "transient disk 'vda' must not be read-only"),
        ("<transient/><address type='pci'/>", ""),
    ] {
        let xml = ferrovirt_compat::halting("wrong").device(&disk("").replace("<transient/>", change)).xml();
        let defined = daemon.with_xml(&xml, |file| daemon.virsh(&["define", file]));
        match sentence {
            "" => drop(defined.ok()),
            _ => assert!(defined.fails().contains(sentence)),
        }
    }
}
