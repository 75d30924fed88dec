//! A thousand calls at once on one guest whose QEMU answers when it likes, and then no more.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{eventually, halting};
use ferrovirt_protocol::frame::Status;
use ferrovirt_protocol::net;
use ferrovirt_protocol::procedure::Event;
use ferrovirt_protocol::qemu::{DomainMonitorCommandArgs, procedure::DomainMonitorCommand};
use ferrovirt_protocol::remote::event::DomainEventCallbackLifecycle;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use ferrovirt_protocol::xdr;
use serde_json::{Value, json};

use crate::daemon;
use crate::endings::needs_fake;
use crate::fake_qemu::Behaviour;

const CLIENTS: usize = 200;
/// As many calls as one client may have under way.
const CALLS: usize = 5;
/// `virDomainEventID`
const LIFECYCLE: i32 = 0;
const BALLOON_CHANGE: i32 = 13;
/// `virDomainEventType`
const SUSPENDED: i32 = 3;
const RESUMED: i32 = 4;
const STOPPED: i32 = 5;

/// Stalls at random, and for ever after some hundred commands; reports what it is asked to.
fn unreliable() -> Behaviour {
    let mut behaviour = Behaviour { stall_ms: 5, hang_after: 500, ..Behaviour::default() };
    for (command, event, data) in [
        ("stop", "STOP", Value::Null),
        ("cont", "RESUME", Value::Null),
        ("x-tick", "BALLOON_CHANGE", json!({ "actual": 16 << 20 })),
    ] {
        behaviour.events.insert(command.to_owned(), vec![(event.to_owned(), data)]);
    }
    behaviour
}

/// Queues a call of the kind that is this one's turn. True: it is answered from memory.
fn queue(client: &mut Wire, turn: usize, dom: &Domain) -> (u32, bool) {
    let dom = dom.clone();
    let (serial, from_memory) = match turn % 6 {
        0 => (client.queue::<DomainSuspend>(&DomainSuspendArgs { dom }), false),
        1 => (client.queue::<DomainResume>(&DomainResumeArgs { dom }), false),
        2 => (client.queue::<DomainGetInfo>(&DomainGetInfoArgs { dom }), true),
        3 => (client.queue::<DomainGetXmlDesc>(&DomainGetXmlDescArgs { dom, flags: 0 }), true),
        _ => {
            let cmd = r#"{"execute": "x-tick"}"#.to_owned();
            (client.queue::<DomainMonitorCommand>(&DomainMonitorCommandArgs { dom, cmd, flags: 0 }), false)
        }
    };
    (serial.unwrap(), from_memory)
}

/// What a subscriber saw up to the guest's end: suspends and resumes in order, and how many ticks.
fn seen(watcher: &mut Wire) -> (Vec<i32>, usize) {
    let (mut changes, mut ticks) = (Vec::new(), 0);
    loop {
        let frame = watcher.receive().unwrap();
        if frame.header.procedure != DomainEventCallbackLifecycle::NUMBER {
            ticks += 1;
            continue;
        }
        let event: DomainEventCallbackLifecycleMsg = xdr::decode(&frame.payload).unwrap();
        match event.msg.event {
            STOPPED => return (changes, ticks),
            change => changes.push(change),
        }
    }
}

#[test]
fn a_thousand_calls_end_and_destroy_wins() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let directory = daemon.path("fake");
    fs::create_dir_all(&directory).unwrap();
    let emulator = unreliable().install(&directory);
    daemon.run(&halting("busy").device(&format!("<emulator>{}</emulator>", emulator.display())));
    let mut hand = Wire::open(&daemon.socket()).unwrap();
    let args = DomainLookupByNameArgs { name: "busy".into() };
    let dom = hand.call::<DomainLookupByName>(&args).unwrap().dom;
    let mut watcher = Wire::open(&daemon.socket()).unwrap();
    for event_id in [LIFECYCLE, BALLOON_CHANGE] {
        let every = ConnectDomainEventCallbackRegisterAnyArgs { event_id, dom: None };
        watcher.call::<ConnectDomainEventCallbackRegisterAny>(&every).unwrap();
    }

    let mut clients: Vec<Wire> = (0..CLIENTS).map(|_| Wire::open(&daemon.socket()).unwrap()).collect();
    let mut kinds = BTreeMap::new();
    for (number, client) in clients.iter_mut().enumerate() {
        for call in 0..CALLS {
            let turn = number + call;
            let (serial, from_memory) = queue(client, turn, &dom);
            kinds.insert((number, serial), (turn % 6 > 3, from_memory));
        }
        client.flush().unwrap();
    }
    let log = daemon.path("var/log/libvirt/qemu/busy.log");
    eventually("QEMU hangs", || fs::read_to_string(&log).unwrap().contains("hangs").then_some(()));
    // Reads do not mind, and destroy does not either, where a call that waits for QEMU does so for minutes.
    let begin = Instant::now();
    hand.call::<DomainGetInfo>(&DomainGetInfoArgs { dom: dom.clone() }).unwrap();
    hand.call::<DomainDestroy>(&DomainDestroyArgs { dom }).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());

    let (mut done, mut told) = (0, 0);
    for (number, client) in clients.iter_mut().enumerate() {
        for _ in 0..CALLS {
            let frame = client.reply().unwrap();
            let (tick, from_memory) = kinds.remove(&(number, frame.header.serial)).unwrap();
            if frame.header.status == Status::OK {
                done += 1;
                told += usize::from(tick);
                continue;
            }
            let error: net::Error = xdr::decode(&frame.payload).unwrap();
            let text = error.message.unwrap_or_default();
            let known = ["domain is not running", "monitor was closed", "already running"];
            assert!(!from_memory && known.iter().any(|known| text.contains(known)), "{text}");
        }
    }
    assert!(kinds.is_empty() && done > CLIENTS, "{done}");
    let (changes, ticks) = seen(&mut watcher);
    // The last one may have been reported without a reply that got through.
    assert!(ticks == told || ticks == told + 1, "{ticks} of {told}");
    let in_turn = [SUSPENDED, RESUMED].into_iter().cycle();
    assert!(changes.iter().copied().zip(in_turn).all(|(seen, expected)| seen == expected), "{changes:?}");
    assert_eq!(daemon.ok(&["domstate", "--reason", "busy"]).trim(), "shut off (destroyed)");
}
