//! Many at once.

use std::fs;
use std::path::PathBuf;
use std::thread;

use ferrovirt_compat::{Daemon, eventually, halting, install_script, run};

use crate::{daemon, on_upstream};

/// A QEMU that begins when the gate is open: when somebody has the pipe open for writing.
fn gated(daemon: &Daemon) -> (String, PathBuf) {
    let (gate, emulator) = (daemon.path("gate"), daemon.path("gated-qemu"));
    run("mkfifo", &[gate.to_str().unwrap()]).ok();
    let wait = format!("case \"$*\" in *guest=*) : <{};; esac", gate.display());
    install_script(&emulator, &format!("#!/bin/sh\n{wait}\nexec qemu-system-x86_64 \"$@\"\n"));
    (format!("<emulator>{}</emulator>", emulator.display()), gate)
}

#[test]
fn twenty_guests_start_at_once_while_lists_answer() {
    let daemon = daemon();
    let (emulator, gate) = gated(&daemon);
    let names: Vec<String> = (1..=20).map(|n| format!("g{n}")).collect();
    for name in &names {
        daemon.define(&halting(name).device(&emulator));
    }
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| daemon.ok(&["start", name]));
        }
        // libvirt's daemon notes a process only when it is up.
        if !on_upstream() {
            eventually("all begin", || (daemon.qemu_pids().len() == 20).then_some(()));
            // None of them can be up before the gate is open, so nothing of this has waited for a start.
            let told = daemon.python("print(len([domain.info() for domain in conn.listAllDomains()]))");
            assert_eq!(told.ok().trim(), "20");
            assert_eq!(daemon.ok(&["list", "--name", "--state-running"]).trim(), "");
        }
        // Open for as long as somebody starts, whoever comes late.
        fs::File::options().read(true).write(true).open(&gate).unwrap()
    });
    assert_eq!(daemon.ok(&["list", "--name", "--state-running"]).split_whitespace().count(), 20);
    assert_eq!(daemon.qemu_pids().len(), 20);
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| daemon.ok(&["destroy", name]));
        }
    });
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "");
    assert!(daemon.qemu_pids().is_empty());
}

#[test]
fn one_guest_is_started_by_one_of_many() {
    let daemon = daemon();
    daemon.define(&halting("contested"));
    let results: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| daemon.virsh(&["start", "contested"]))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(|ran| ran.success);
    assert_eq!(won.len(), 1);
    for ran in lost {
        assert!(
            ran.err.contains("Domain is already active") || ran.err.contains("already running"),
            "{}",
            ran.err
        );
    }
    assert_eq!(daemon.qemu_pids().len(), 1);
}

#[test]
fn a_stuck_guest_slows_nobody() {
    if on_upstream() {
        return; // there, destroy and more wait 30 s for the call that hangs
    }
    let daemon = daemon();
    for name in ["stuck", "well"] {
        daemon.run(&halting(name));
    }
    ferrovirt_compat::signal(daemon.qemu_pid("stuck"), ferrovirt_compat::Signal::STOP);
    // This call hangs in the guest's monitor, as it should.
    let mut hanging = daemon.python_beside("print('calling')\nconn.lookupByName('stuck').suspend()");
    hanging.expect("calling\n");
    assert_eq!(daemon.ok(&["list", "--name"]).split_whitespace().count(), 2);
    assert_eq!(daemon.state("stuck"), "running");
    assert!(daemon.ok(&["dumpxml", "stuck"]).contains("<name>stuck</name>"));
    daemon.ok(&["suspend", "well"]);
    daemon.ok(&["destroy", "stuck"]);
    assert_eq!((daemon.state("stuck"), daemon.state("well")), ("shut off".into(), "paused".into()));
}

#[test]
fn a_guest_that_runs_gives_way_to_nobody() {
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    // Where the kernel schedules by session; a starting QEMU is put behind the others.
    let Ok(share) = fs::read_to_string(format!("/proc/{}/autogroup", daemon.qemu_pid("tiny"))) else {
        return;
    };
    assert!(share.trim_end().ends_with("nice 0"), "{share}");
}
