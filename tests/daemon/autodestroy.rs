//! Guests that end with the connection which started them.

use std::time::Duration;

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Daemon, LIMIT, Program, command, eventually, gone_within, halting};
use ferrovirt_protocol::remote::{self, procedure};

use crate::{daemon, kind, on_upstream};

/// A virsh that keeps its connection open for as long as the answer is kept.
fn shell(daemon: &Daemon) -> Program {
    let mut virsh = command("stdbuf");
    virsh.args(["-oL", "virsh", "-c", &daemon.uri()]);
    Program::start(virsh)
}

#[test]
fn a_guest_ends_with_its_virsh_and_no_other_does() {
    let daemon = daemon();
    for name in ["bound", "free"] {
        daemon.define(&halting(name));
    }
    let mut events = daemon.events();
    daemon.ok(&["start", "free"]);
    let mut owner = shell(&daemon);
    let mut other = shell(&daemon);
    owner.send("start bound --autodestroy\n");
    events.expect("bound started booted");
    // Whoever else deals with the guest does not become its owner.
    other.send("suspend bound\nresume bound\n");
    events.expect("bound resumed unpaused");
    drop(other);
    let pid = daemon.qemu_pid("bound");
    assert!(!gone_within(pid, Duration::from_millis(300)), "another connection's end was its end");
    // Killed: nothing is closed in good order.
    drop(owner);
    assert!(gone_within(pid, LIMIT));
    events.expect("bound stopped destroyed");
    assert_eq!((daemon.state("bound"), daemon.state("free")), ("shut off".into(), "running".into()));
}

#[test]
fn a_guest_that_was_started_again_belongs_to_nobody() {
    let daemon = daemon();
    daemon.define(&halting("bound"));
    let mut events = daemon.events();
    let mut owner = shell(&daemon);
    owner.send("start bound --autodestroy\n");
    events.expect("bound started booted");
    daemon.ok(&["destroy", "bound"]);
    events.expect("bound stopped destroyed");
    daemon.ok(&["start", "bound"]);
    let pid = daemon.qemu_pid("bound");
    drop(owner);
    assert!(!gone_within(pid, Duration::from_millis(300)));
    assert_eq!(daemon.state("bound"), "running");
}

#[test]
fn a_guest_does_not_outlive_the_daemon_that_knew_its_connection() {
    if on_upstream() {
        return; // it does not note whose guest it was
    }
    let mut daemon = daemon();
    for name in ["bound", "free"] {
        daemon.define(&halting(name));
    }
    daemon.ok(&["start", "free"]);
    let mut events = daemon.events();
    let mut owner = shell(&daemon);
    owner.send("start bound --autodestroy\n");
    events.expect("bound started booted");
    let pid = daemon.qemu_pid("bound");
    daemon.kill();
    daemon.restart();
    eventually("it is ended", || (daemon.state("bound") == "shut off").then_some(()));
    assert!(gone_within(pid, Duration::ZERO));
    assert_eq!(daemon.ok(&["domstate", "--reason", "bound"]).trim(), "shut off (destroyed)");
    assert_eq!(daemon.state("free"), "running");
}

/// A connection that is pinged, and a guest that ends with it.
fn owner(daemon: &Daemon, name: &str) -> Wire {
    const AUTODESTROY: u32 = 2;
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let args = remote::DomainCreateXmlArgs { xml_desc: halting(name).xml(), flags: AUTODESTROY };
    wire.call::<procedure::DomainCreateXml>(&args).unwrap();
    let pinged = remote::ConnectSupportsFeatureArgs { feature: 10 };
    wire.call::<procedure::ConnectSupportsFeature>(&pinged).unwrap();
    wire
}

#[test]
fn a_guest_ends_however_its_connection_does() {
    // Who watches is pinged as well, and may have to wait for a processor.
    let daemon = Daemon::start(kind(), "keepalive_interval = 1\nkeepalive_count = 9\n");
    daemon.run(&halting("free"));
    let mut events = daemon.events();
    // The client closes in order.
    let mut orderly = owner(&daemon, "orderly");
    orderly.call::<procedure::ConnectClose>(&()).unwrap();
    drop(orderly);
    events.expect("orderly stopped destroyed");
    // The daemon closes it: it is not understood,
    let mut garbled = owner(&daemon, "garbled");
    garbled.send(&[0xff; 64]).unwrap();
    events.expect("garbled stopped destroyed");
    // or has not answered for too long.
    let _silent = owner(&daemon, "silent");
    events.expect("silent stopped destroyed");
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "free");
    assert_eq!(daemon.state("free"), "running");
}
