//! A host that has no room left, or lets nobody write: what was there stays, and nothing is half there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ferrovirt_compat::{Daemon, eventually, halting, run};

use crate::migrate_failures::Small;
use crate::{backups, daemon, on_upstream};

const SECRET: &str = "5f1f2f50-8403-4b23-88d6-21ccc2f80d70";

/// All files below a directory, with what is in them.
fn tree(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(tree(&path));
        } else if kind.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        } else {
            found.push((path, Vec::new()));
        }
    }
    found.sort();
    found
}

/// Files that the daemon keeps what clients tell it in, on file systems of their own; with one of each kind in them.
struct Kept {
    daemon: Daemon,
    mounts: Vec<Small>,
}

impl Kept {
    fn new() -> Self {
        let mut daemon = daemon();
        let places = ["etc/libvirt", "var/lib/libvirt/qemu/snapshot", "var/lib/libvirt/qemu/checkpoint"];
        let mounts = places.map(|place| Small::new(&daemon.path(place), "128k,nr_inodes=48"));
        daemon.terminate();
        daemon.restart();
        daemon.define(&halting("g"));
        daemon.ok(&["pool-define-as", "p", "dir", "--target", daemon.path("pool").to_str().unwrap()]);
        let secret = format!("<secret><uuid>{SECRET}</uuid></secret>");
        daemon.with_xml(&secret, |file| daemon.ok(&["secret-define", file]));
        daemon.ok(&["secret-set-value", SECRET, "--base64", "b2xk"]);
        daemon.with_xml(&moment(&daemon, "domainsnapshot", "s"), |file| {
            daemon.ok(&["snapshot-create", "g", file, "--redefine"])
        });
        Self { daemon, mounts: mounts.into() }
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.mounts.iter().flat_map(|mount| tree(&mount.0)).collect()
    }

    /// What clients are told of what is kept.
    fn told(&self) -> String {
        let ask = |arguments: &[&str]| self.daemon.ok(arguments);
        [
            ask(&["list", "--all", "--name"]),
            ask(&["dumpxml", "g"]),
            ask(&["dominfo", "g"]),
            ask(&["pool-list", "--all"]),
            ask(&["pool-dumpxml", "p"]),
            ask(&["secret-list"]),
            ask(&["secret-get-value", SECRET]),
            ask(&["snapshot-list", "g", "--name"]),
            ask(&["checkpoint-list", "g", "--name"]),
        ]
        .join("\n")
    }

    /// Everything that has to be written down.
    fn writes(&self) -> Vec<(&'static str, Vec<String>)> {
        let daemon = &self.daemon;
        let file = |name: &str, text: &str| {
            let path = daemon.path(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let long = "<description>LONG</description></domain>".replace("LONG", &"long ".repeat(20_000));
        let new = file("new.xml", &halting("new").xml());
        let longer = file("longer.xml", &daemon.ok(&["dumpxml", "g"]).replace("</domain>", &long));
        let usage = "<usage type='volume'><volume>/v</volume></usage>";
        let secret = file("secret.xml", &format!("<secret>{usage}</secret>"));
        let pool = file("pool.xml", &daemon.ok(&["pool-dumpxml", "p"]).replace("<path>", "<path>/elsewhere"));
        let snapshot = file("snapshot.xml", &moment(daemon, "domainsnapshot", "t"));
        vec![
            ("a new guest", words(&["define", &new])),
            ("another definition", words(&["define", &longer])),
            ("metadata", words(&["desc", "g", "--config", "other"])),
            ("a new pool", words(&["pool-define-as", "q", "dir", "--target", "/nowhere"])),
            ("another pool", words(&["pool-define", &pool])),
            ("a new secret", words(&["secret-define", &secret])),
            ("another value", words(&["secret-set-value", SECRET, "--base64", "bmV3"])),
            ("a snapshot", words(&["snapshot-create", "g", &snapshot, "--redefine"])),
        ]
    }

    /// Has everything refused for this cause, with nothing changed.
    fn refuses_all(&self, cause: &str, more: &[(&'static str, Vec<String>)]) {
        let (files, told) = (self.files(), self.told());
        for (what, words) in self.writes().iter().chain(more) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let error = self.daemon.virsh(&words).fails();
            assert!(error.contains(cause), "{what}: {error}");
            assert!(self.files() == files, "{what} has left something behind");
            assert_eq!(self.told(), told, "{what}");
        }
    }

    fn takes_all(&self) {
        for (what, words) in self.writes() {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let ran = self.daemon.virsh(&words);
            assert!(ran.success, "{what}: {}", ran.err);
        }
        assert_eq!(self.daemon.ok(&["secret-get-value", SECRET]).trim(), "bmV3");
    }
}

/// One that was made before.
fn moment(daemon: &Daemon, kind: &str, name: &str) -> String {
    let uuid = daemon.ok(&["domuuid", "g"]);
    format!(
        "<{kind}><name>{name}</name><state>shutoff</state><creationTime>1700000000</creationTime>\
         <domain type='kvm'><name>g</name><uuid>{}</uuid><memory>1024</memory><os><type>hvm</type></os></domain></{kind}>",
        uuid.trim()
    )
}

#[test]
fn without_room_what_was_kept_stays_and_nothing_is_half_there() {
    if on_upstream() {
        return; // It does not see what is mounted here.
    }
    let kept = Kept::new();
    let full = |mount: &Small| {
        let filler = mount.0.join("filler");
        // As much as there is room for; then no more names either.
        let _ = fs::write(&filler, vec![1; 256 << 10]);
        (0..64).take_while(|at| fs::write(mount.0.join(format!("filler-{at}")), "").is_ok()).count();
    };
    kept.mounts.iter().for_each(full);
    let links = [
        ("a guest's autostart", vec!["autostart".to_owned(), "g".to_owned()]),
        ("a pool's autostart", vec!["pool-autostart".to_owned(), "p".to_owned()]),
    ];
    kept.refuses_all("No space left on device", &links);
    for mount in &kept.mounts {
        for (path, _) in tree(&mount.0).iter().filter(|(path, _)| path.to_string_lossy().contains("filler")) {
            fs::remove_file(path).unwrap();
        }
    }
    kept.takes_all();
}

#[test]
fn where_nobody_may_write_nothing_changes() {
    if on_upstream() {
        return; // It does not see what is mounted here.
    }
    let kept = Kept::new();
    let mount = |how: &str| {
        for small in &kept.mounts {
            run("mount", &["-o", how, small.0.to_str().unwrap()]).ok();
        }
    };
    mount("remount,ro");
    let more = [
        ("a guest's autostart", vec!["autostart".to_owned(), "g".to_owned()]),
        ("a pool's autostart", vec!["pool-autostart".to_owned(), "p".to_owned()]),
        ("a guest's end", vec!["undefine".to_owned(), "g".to_owned(), "--snapshots-metadata".to_owned()]),
        ("a pool's end", vec!["pool-undefine".to_owned(), "p".to_owned()]),
        ("a secret's end", vec!["secret-undefine".to_owned(), SECRET.to_owned()]),
        (
            "a snapshot's end",
            vec!["snapshot-delete".to_owned(), "g".to_owned(), "s".to_owned(), "--metadata".to_owned()],
        ),
    ];
    kept.refuses_all("Read-only file system", &more);
    mount("remount,rw");
    kept.takes_all();
}

/// A guest of which no next daemon would know is not started, and one that runs goes on.
#[test]
fn a_guest_that_cannot_be_noted_does_not_start_and_one_that_runs_goes_on() {
    if on_upstream() {
        return; // It does not see what is mounted here.
    }
    let mut daemon = daemon();
    let small = Small::new(&daemon.path("run/libvirt/qemu"), "256k");
    daemon.terminate();
    daemon.restart();
    daemon.define(&halting("late"));
    daemon.run(&halting("early"));
    let noted = || fs::read(small.0.join("early.xml")).unwrap();
    let before = noted();
    let _ = fs::write(small.0.join("filler"), vec![1; 512 << 10]);
    let error = daemon.virsh(&["start", "late"]).fails();
    assert!(error.contains("No space left on device"), "{error}");
    assert_eq!(daemon.state("late"), "shut off");
    assert_eq!(daemon.qemu_pids().len(), 1);
    // What cannot be noted of the one that runs is still so.
    daemon.virsh(&["suspend", "early"]);
    assert!(noted() == before || noted().ends_with(b"</domstatus>\n"), "the file is torn");
    fs::remove_file(small.0.join("filler")).unwrap();
    daemon.virsh(&["resume", "early"]);
    daemon.ok(&["start", "late"]);
    daemon.kill();
    daemon.restart();
    let listed = daemon.ok(&["list", "--name"]);
    let mut listed: Vec<_> = listed.split_whitespace().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["early", "late"]);
    daemon.ok(&["destroy", "early"]);
    daemon.ok(&["destroy", "late"]);
    drop(small);
}

/// Fills a file system; what is answered is removed to have room again.
fn fill(small: &Small) -> PathBuf {
    let filler = small.0.join("filler");
    let _ = fs::write(&filler, vec![1; 8 << 20]);
    filler
}

/// A checkpoint is in QEMU and in a file, or in neither.
#[test]
fn a_checkpoint_that_cannot_be_written_down_is_not_made() {
    if on_upstream() {
        return; // It does not see what is mounted here.
    }
    let daemon = daemon();
    let small = Small::new(&daemon.path("var/lib/libvirt/qemu/checkpoint"), "128k");
    let image = backups::start(&daemon, "g");
    let bitmaps = || {
        let nodes = daemon.ok(&["qemu-monitor-command", "g", r#"{"execute": "query-named-block-nodes"}"#]);
        ["first", "second"].map(|name| nodes.contains(&format!("\"name\":\"{name}\"")))
    };
    let create = |name: &str| daemon.virsh(&["checkpoint-create-as", "g", name]);
    create("first").ok();
    let filler = fill(&small);
    let copy = format!("{image}.copy");
    let backup = format!(
        "<domainbackup><disks><disk name='vda' type='file'><target file='{copy}'/></disk></disks></domainbackup>"
    );
    let with_backup = || backups::backup(&daemon, "g", &backup, Some("second"));
    for ran in [create("second"), with_backup()] {
        let error = ran.fails();
        assert!(error.contains("unable to save metadata for checkpoint second"), "{error}");
        assert!(error.contains("No space left on device"), "{error}");
        eventually("no backup is left", || daemon.ok(&["domjobinfo", "g"]).contains("None").then_some(()));
        assert_eq!(bitmaps(), [true, false]);
        assert_eq!(daemon.ok(&["checkpoint-list", "g", "--name"]).trim(), "first");
    }
    fs::remove_file(filler).unwrap();
    let _ = fs::remove_file(&copy);
    with_backup().ok();
    backups::ended(&daemon, "g");
    assert_eq!(bitmaps(), [true, true]);
    assert_eq!(daemon.ok(&["checkpoint-list", "g", "--name"]).split_whitespace().count(), 2);
    daemon.ok(&["destroy", "g"]);
    drop(small);
}

#[test]
fn a_guest_needs_no_room_for_its_log() {
    if on_upstream() {
        return; // It does not see what is mounted here.
    }
    let mut daemon = daemon();
    let small = Small::new(&daemon.path("var/log/libvirt/qemu"), "3m");
    daemon.terminate();
    daemon.restart();
    daemon.define(&halting("late"));
    daemon.run(&halting("early"));
    let filler = fill(&small);
    daemon.ok(&["start", "late"]);
    daemon.ok(&["destroy", "late"]);
    assert!(daemon.log().contains("cannot write the guest's log"), "{}", daemon.log());
    fs::remove_file(filler).unwrap();
    // QEMU writes on until the disk is full: there is room again, and the end of what it wrote is kept.
    let log = small.0.join("early.log");
    let mut flood = fs::OpenOptions::new().append(true).open(&log).unwrap();
    let _ = flood.write_all(&vec![b'x'; 4 << 20]);
    eventually("the log is cut", || (fs::metadata(&log).unwrap().len() < 2 << 20).then_some(()));
    let kept = small.0.join("early.log.0");
    eventually("its end is kept", || (fs::metadata(&kept).unwrap().len() > 0).then_some(()));
    daemon.ok(&["suspend", "early"]);
    daemon.ok(&["destroy", "early"]);
    assert!(fs::read_to_string(&log).unwrap().contains("shutting down, reason=destroyed"));
    drop(small);
}
