//! A host that has no room left, or lets nobody write: what was there stays, and nothing is half there.

use std::fs;

use ferrovirt_compat::halting;

use crate::migrate_failures::Small;
use crate::{daemon, on_upstream};

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
