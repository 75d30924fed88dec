//! What a watcher sees of other clients' doings.

use std::time::Duration;

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Program, command, eventually, halting};
use ferrovirt_protocol::remote::{self, procedure};
use ferrovirt_protocol::xdr;

use crate::daemon;

/// `virDomainEventType`
const SUSPENDED: i32 = 3;
const RESUMED: i32 = 4;

/// The lines of `virsh event` that are about lifecycle, without what precedes the guest's name. QEMU may or may not
/// get to say that it was shut down by a signal before it is gone.
fn lifecycle(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| Some(line.split_once("event 'lifecycle' for domain ")?.1.to_owned()))
        .filter(|event| !event.ends_with("Shutdown Finished after host request"))
        .collect()
}

#[test]
fn virsh_event_shows_every_change_in_order() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let mut virsh = command("stdbuf");
    virsh.args(["-oL", "virsh", "-c", &daemon.uri(), "event", "--all", "--loop"]);
    let mut watcher = Program::start(virsh);
    // virsh does not say when it listens: that it reports something shows it.
    eventually("virsh reports an event", || {
        daemon.ok(&["start", "tiny"]);
        daemon.ok(&["destroy", "tiny"]);
        watcher.expect_within("Stopped Destroyed", Duration::from_millis(200))
    });
    daemon.define(&halting("marker"));
    watcher.expect("'marker': Defined Added\n");
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["suspend", "tiny"]);
    daemon.ok(&["resume", "tiny"]);
    daemon.ok(&["destroy", "tiny"]);
    daemon.ok(&["undefine", "tiny"]);
    let seen = watcher.expect("Undefined Removed");
    assert_eq!(
        lifecycle(&seen),
        [
            "'tiny': Resumed Unpaused",
            "'tiny': Started Booted",
            "'tiny': Suspended Paused",
            "'tiny': Resumed Unpaused",
            "'tiny': Stopped Destroyed",
            "'tiny': Undefined Removed",
        ]
    );
}

#[test]
fn every_subscriber_gets_every_event_and_filters_hold() {
    let daemon = daemon();
    for name in ["one", "two"] {
        daemon.define(&halting(name));
    }
    let mut all: Vec<Program> = (0..3).map(|_| daemon.events()).collect();
    let mut only_two = daemon.python_beside(
        "conn.domainEventRegisterAny(conn.lookupByName('two'), libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,\n\
         \x20   lambda conn, domain, event, detail, opaque: print(domain.name(), event, detail), None)\n\
         print('watching')\nrun_events()",
    );
    only_two.expect("watching\n");
    for name in ["one", "two"] {
        daemon.ok(&["start", name]);
        daemon.ok(&["destroy", name]);
    }
    for watcher in &mut all {
        for event in
            ["one started booted", "one stopped destroyed", "two started booted", "two stopped destroyed"]
        {
            watcher.expect(event);
        }
    }
    let seen = only_two.expect("two 5 1");
    assert!(!seen.contains("one"), "{seen}");
}

#[test]
fn a_deregistered_callback_stays_silent() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let out = daemon
        .python(
            "seen = []\n\
             def first(conn, domain, event, detail, opaque): seen.append(('first', event))\n\
             def second(conn, domain, event, detail, opaque): seen.append(('second', event))\n\
             kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE\n\
             conn.domainEventDeregisterAny(conn.domainEventRegisterAny(None, kind, first, None))\n\
             conn.domainEventRegisterAny(None, kind, second, None)\n\
             conn.lookupByName('tiny').create()\n\
             while len(seen) < 2: libvirt.virEventRunDefaultImpl()\n\
             print(seen)",
        )
        .ok();
    assert!(!out.contains("first") && out.contains("('second', 2)"), "{out}");
}

/// QEMU reports each stop and start beside its reply; a report that is taken late would undo what came after it.
#[test]
fn suspends_and_resumes_in_a_row_are_each_seen_once() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    daemon.ok(&["start", "tiny"]);
    // Many watchers keep who tells them busy, while the calls go on.
    let every = remote::ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: None };
    let mut watchers: Vec<Wire> = (0..100).map(|_| Wire::open(&daemon.socket()).unwrap()).collect();
    for watcher in &mut watchers {
        watcher.call::<procedure::ConnectDomainEventCallbackRegisterAny>(&every).unwrap();
    }
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let args = remote::DomainLookupByNameArgs { name: "tiny".into() };
    let dom = wire.call::<procedure::DomainLookupByName>(&args).unwrap().dom;
    for _ in 0..100 {
        wire.call::<procedure::DomainSuspend>(&remote::DomainSuspendArgs { dom: dom.clone() }).unwrap();
        wire.call::<procedure::DomainResume>(&remote::DomainResumeArgs { dom: dom.clone() }).unwrap();
    }
    for turn in 0..100 {
        for expected in [SUSPENDED, RESUMED] {
            let frame = watchers[0].receive().unwrap();
            let seen: remote::DomainEventCallbackLifecycleMsg = xdr::decode(&frame.payload).unwrap();
            assert_eq!(seen.msg.event, expected, "turn {turn}");
        }
    }
}
