//! Many at once.

use std::fs;
use std::thread;
use std::time::Duration;

use ferrovirt_compat::halting;

use crate::{daemon, on_upstream};

#[test]
fn twenty_guests_start_at_once_while_lists_answer() {
    let daemon = daemon();
    let names: Vec<String> = (1..=20).map(|n| format!("g{n}")).collect();
    for name in &names {
        daemon.define(&halting(name));
    }
    // One open connection asks without pause for as long as the others start.
    let mut lister = daemon.python_beside(
        "import time\n\
         longest = 0\n\
         print('ready')\n\
         asking = threading.Event()\n\
         threading.Thread(target=lambda: (sys.stdin.readline(), asking.set()), daemon=True).start()\n\
         while not asking.is_set():\n\
         \x20   for domain in conn.listAllDomains():\n\
         \x20       begin = time.monotonic()\n\
         \x20       domain.info()\n\
         \x20       longest = max(longest, time.monotonic() - begin)\n\
         print('longest', int(longest * 1000), 'ms')",
    );
    lister.expect("ready\n");
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| daemon.ok(&["start", name]));
        }
    });
    lister.send("enough\n");
    lister.expect("longest ");
    let longest = lister.expect(" ms");
    let longest = Duration::from_millis(longest.trim_end_matches(" ms").parse().unwrap());
    assert_eq!(daemon.ok(&["list", "--name", "--state-running"]).split_whitespace().count(), 20);
    assert_eq!(daemon.qemu_pids().len(), 20);
    // A call that waits for starts takes seconds. One that waits for nothing but a processor, with forty processes
    // on two of them, does not.
    assert!(on_upstream() || longest < Duration::from_millis(800), "{longest:?}");
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
