//! From libvirt's own daemon to ours and back, on the same directories, while a guest runs.

use std::path::Path;

use ferrovirt_compat::{Daemon, Kind, Program, eventually, halting, linux};

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");

/// Whether libvirt's daemon is there to take over from.
pub(crate) fn has_upstream() -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        path.split(':').chain(["/usr/sbin"]).any(|directory| Path::new(directory).join("libvirtd").exists());
    if !found {
        eprintln!("left out: libvirt's own daemon is not installed (scripts/deps upstream)");
    }
    found
}

/// The next number that the guest counts to.
fn next_count(console: &mut Program) -> u64 {
    console.expect("count ");
    let line = console.expect("\n");
    line.trim().parse().unwrap_or_else(|_| panic!("no number: {line:?}"))
}

fn next_daemon(daemon: &mut Daemon, kind: Kind) {
    daemon.kill();
    daemon.hand_over_to(kind);
    daemon.restart();
}

/// The guest counts on, and its process is the one that it was.
fn goes_on(daemon: &Daemon, pid: i32, counted: u64) -> u64 {
    assert_eq!(daemon.ok(&["domstate", "--reason", "penguin"]).trim(), "running (booted)");
    assert_eq!(daemon.qemu_pid("penguin"), pid);
    let count = next_count(&mut daemon.console("penguin"));
    assert!(count > counted, "counted to {counted}, and now {count}");
    count
}

fn there_and_back(first: Kind, second: Kind) {
    let mut daemon = Daemon::start(first, "");
    daemon.define(&halting("defined"));
    daemon.ok(&["autostart", "defined"]);
    daemon.create(&halting("transient"));
    daemon.run(&linux("penguin", "guest.count=0.5").device(
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <interface type='user'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    ));
    let pid = daemon.qemu_pid("penguin");
    let mut counted = next_count(&mut daemon.console("penguin"));
    daemon.ok(&["suspend", "transient"]);
    for kind in [second, first, second] {
        next_daemon(&mut daemon, kind);
        counted = goes_on(&daemon, pid, counted);
        assert_eq!(daemon.ok(&["domstate", "--reason", "transient"]).trim(), "paused (user)");
        let autostarted = daemon.ok(&["list", "--all", "--autostart", "--name"]);
        assert_eq!(autostarted.trim(), "defined");
    }
    // Not only listed: what concerns the process works as well.
    daemon.ok(&["resume", "transient"]);
    daemon.ok(&["shutdown", "penguin"]);
    eventually("the guest powers off", || (daemon.state("penguin") == "shut off").then_some(()));
    daemon.ok(&["destroy", "transient"]);
    assert_eq!(
        daemon.ok(&["list", "--all", "--name"]).split_whitespace().collect::<Vec<_>>(),
        ["defined", "penguin"]
    );
}

#[test]
fn a_guest_of_libvirts_goes_on_under_ours_and_back() {
    if has_upstream() {
        there_and_back(Kind::Upstream, Kind::Instead(OURS));
    }
}

#[test]
fn a_guest_of_ours_goes_on_under_libvirts_and_back() {
    if has_upstream() {
        there_and_back(Kind::Instead(OURS), Kind::Upstream);
    }
}
