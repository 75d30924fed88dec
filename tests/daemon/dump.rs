//! Guests' memory in files, for whoever looks at it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ferrovirt_compat::{Daemon, Program, eventually, halting, linux, run};

use crate::save::beside;
use crate::{daemon, on_upstream};

fn dumped(daemon: &Daemon, arguments: &[&str]) -> Vec<u8> {
    let file = daemon.path("core");
    let _ = fs::remove_file(&file);
    daemon.ok(&[&["dump", "h", file.to_str().unwrap()], arguments].concat());
    fs::read(&file).unwrap()
}

#[test]
fn each_kind_of_dump_leaves_the_guest_as_it_was() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    for arguments in [&[][..], &["--live"], &["--bypass-cache"], &["--reset"]] {
        let core = dumped(&daemon, arguments);
        assert_eq!(&core[..4], b"QEVM", "{arguments:?}");
        assert_eq!(daemon.ok(&["domstate", "--reason", "h"]).trim(), "running (unpaused)", "{arguments:?}");
    }
    let told = daemon.ok(&["domjobinfo", "h", "--completed"]);
    assert!(told.contains("Operation:        Dump") && told.contains("Memory total:"), "{told}");
    for arguments in
        [&["--memory-only"][..], &["--memory-only", "--live"], &["--memory-only", "--bypass-cache"]]
    {
        let core = dumped(&daemon, arguments);
        assert_eq!(&core[..4], b"\x7fELF", "{arguments:?}");
        // All of the guest's memory is in it.
        assert!(core.len() > 16 << 20, "{}", core.len());
        assert_eq!(daemon.state("h"), "running");
    }
    let named = run("file", &["-b", daemon.path("core").to_str().unwrap()]).ok();
    assert!(named.contains("ELF 64-bit LSB core file"), "{named}");
    // Of the formats, one that every QEMU has.
    let core = dumped(&daemon, &["--memory-only", "--format", "kdump-zlib"]);
    assert_eq!(&core[..12], b"makedumpfile");
    daemon.ok(&["suspend", "h"]);
    dumped(&daemon, &["--memory-only"]);
    dumped(&daemon, &[]);
    assert_eq!(daemon.state("h"), "paused");
}

#[test]
fn a_dump_ends_a_guest_that_is_to_crash() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    let mut events = daemon.events();
    dumped(&daemon, &["--crash", "--memory-only"]);
    events.expect("h stopped crashed");
    assert_eq!(daemon.ok(&["domstate", "--reason", "h"]).trim(), "shut off (crashed)");
}

#[test]
fn what_cannot_be_dumped_is_refused_and_leaves_no_file() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    let file = daemon.path("core");
    let file = file.to_str().unwrap();
    for (target, arguments, sentence) in [
        (file, &["--memory-only", "--format", "win-dmp"][..], "operation failed: memory-only dump failed: "),
        ("/dev/full", &["--memory-only"], "No space left on device"),
        ("/dev/full", &[], "No space left on device"),
        ("/nonexistent/core", &[], "Failed to create file '/nonexistent/core': No such file or directory"),
    ] {
        // The original says so of a pipe it has between.
        let sentence = if on_upstream() && target == "/dev/full" { "" } else { sentence };
        let error = daemon.virsh(&[&["dump", "h", target], arguments].concat()).fails();
        assert!(error.contains(sentence), "{error}");
        assert_eq!(daemon.state("h"), "running");
        assert!(!Path::new(file).exists());
    }
    daemon.ok(&["destroy", "h"]);
    assert!(daemon.virsh(&["dump", "h", file]).fails().contains("domain is not running"));
}

/// A pipe with a name, which takes nothing until somebody reads.
fn full_pipe(daemon: &Daemon) -> (PathBuf, File) {
    let path = daemon.path("pipe");
    run("mkfifo", &[path.to_str().unwrap()]).ok();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, file)
}

fn begin(daemon: &Daemon, path: &Path, arguments: &[&str]) -> Program {
    let dump = beside(daemon, &[&["dump", "penguin", path.to_str().unwrap()], arguments].concat());
    eventually("it is under way", || {
        let told = daemon.ok(&["domjobinfo", "penguin"]);
        let moves = told.contains("Memory processed: ") && !told.contains("Memory processed: 0.000 B");
        (told.contains("Operation:        Dump") && moves).then_some(())
    });
    dump
}

#[test]
fn a_dump_that_takes_long_is_told_of_and_aborted() {
    let daemon = daemon();
    daemon.run(&linux("penguin", ""));
    daemon.console("penguin").expect("GUEST READY");
    let (pipe, reader) = full_pipe(&daemon);
    let mut dump = begin(&daemon, &pipe, &["--memory-only"]);
    let refused = daemon.virsh(&["domjobabort", "penguin"]).fails();
    assert!(refused.contains("cannot abort memory-only dump"), "{refused}");
    let sink = std::thread::spawn({
        let mut reader = reader.try_clone().unwrap();
        move || std::io::copy(&mut reader, &mut std::io::sink())
    });
    dump.expect("dumped to");
    drop((sink, reader));
    fs::remove_file(&pipe).unwrap();
    let (pipe, _reader) = full_pipe(&daemon);
    let mut dump = begin(&daemon, &pipe, &["--live"]);
    daemon.ok(&["domjobabort", "penguin"]);
    dump.expect("operation aborted: job 'domain core dump' canceled by client");
    assert_eq!(daemon.state("penguin"), "running");
}

#[test]
fn a_daemon_that_dies_over_a_dump_leaves_a_guest_that_goes_on() {
    let mut daemon = daemon();
    daemon.run(&linux("penguin", "guest.count=0.5"));
    daemon.console("penguin").expect("count 1");
    let (pipe, _reader) = full_pipe(&daemon);
    let mut dump = begin(&daemon, &pipe, &[]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "penguin"]).trim(), "paused (dumping)");
    daemon.kill();
    daemon.restart();
    dump.rest();
    eventually("it goes on", || (daemon.state("penguin") == "running").then_some(()));
    daemon.console("penguin").expect("count ");
}
