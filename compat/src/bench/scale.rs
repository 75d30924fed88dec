//! What a host full of definitions costs: memory, and time until the next daemon is ready.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Daemon, Kind, halting};
use ferrovirt_protocol::remote::{self, procedure};

use crate::calls::{all_stats, call, define, open};
use crate::timing::{Samples, as_micros};
use crate::{CONFIG, Effort};

pub(crate) fn measure(kind: Kind, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut daemon = Daemon::start(kind, CONFIG);
    put("ready0", ready_ms(kind, &mut daemon, effort));
    let mut defined = 0;
    let empty = resident_mib(&daemon);
    for (count, ready, resident) in [
        (1000, "ready1000", "resident1000"),
        (5000, "ready5000", "resident5000"),
        (10_000, "ready10000", "resident10000"),
    ] {
        if count > effort.definitions {
            return;
        }
        let mut wire = open(&daemon);
        while defined < count {
            define(&mut wire, halting(&format!("d{defined}")).xml());
            defined += 1;
        }
        if count == 1000 {
            put("stats1000", all_stats(&mut wire, effort) / 1e3);
        }
        drop(wire);
        put(ready, ready_ms(kind, &mut daemon, effort));
        put(resident, resident_mib(&daemon));
        if count == 1000 {
            put("definition", (resident_mib(&daemon) - empty) * 1024.0 / count as f64);
        }
    }
}

/// What a client costs that has opened its connection and says nothing more; and what the one over the limit gets.
pub(crate) fn connections(kind: Kind, put: &mut dyn FnMut(&'static str, f64)) {
    const LIMIT: usize = 5000;
    let daemon = Daemon::start(kind, CONFIG);
    let mut crowd = vec![open(&daemon)];
    let before = resident_mib(&daemon);
    for (count, row) in [(1000, "client1000"), (LIMIT, "client5000")] {
        let held = crowd.len();
        crowd.extend((held..count).map(|_| open(&daemon)));
        put(row, (resident_mib(&daemon) - before) * 1024.0 / (count - 1) as f64);
    }
    let before = resident_mib(&daemon);
    for wire in crowd.iter_mut().take(1000) {
        let args = remote::ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: None };
        call::<procedure::ConnectDomainEventCallbackRegisterAny>(wire, &args);
    }
    put("subscriber", (resident_mib(&daemon) - before) * 1024.0 / 1000.0);
    // One more waits, and gets its turn when another leaves; those who are there notice nothing.
    let mut waiting = Wire::connect(&daemon.socket()).expect("the backlog has room");
    waiting.set_limit(Duration::from_millis(300)).expect("a socket takes a limit");
    assert!(waiting.call::<procedure::AuthList>(&()).is_err(), "one more than {LIMIT} was served");
    let last = crowd.last_mut().expect("thousands");
    call::<procedure::ConnectGetLibVersion>(last, &());
    crowd.truncate(LIMIT - 10);
    waiting.set_limit(ferrovirt_compat::LIMIT).expect("a socket takes a limit");
    waiting.reply().expect("the turn of the one that waited");
}

/// From exec until a call is answered, by a daemon that has seen this host before.
fn ready_ms(kind: Kind, daemon: &mut Daemon, effort: Effort) -> f64 {
    let mut samples = Samples::default();
    for _ in 0..effort.rounds.min(5) {
        daemon.terminate();
        let until_listening = daemon.restart();
        let mut wire = None;
        let rest = crate::timing::micros(|| {
            let mut open = open(daemon);
            call::<procedure::ConnectGetLibVersion>(&mut open, &());
            wire = Some(open);
        });
        let before = match kind {
            Kind::Ours(_) => Duration::ZERO,
            Kind::Upstream | Kind::Instead(_) => before_exec(daemon, until_listening),
        };
        samples.add(as_micros(until_listening.saturating_sub(before)) + rest);
    }
    samples.median() / 1e3
}

/// What the script that starts upstream spent before it became the daemon is not the daemon's.
pub(crate) fn before_exec(daemon: &Daemon, until_listening: Duration) -> Duration {
    let text = fs::read_to_string(daemon.path("run/exec-time")).unwrap_or_default();
    let Ok(seconds) = text.trim().parse::<f64>() else { return Duration::ZERO };
    let since = (UNIX_EPOCH + Duration::from_secs_f64(seconds)).elapsed().unwrap_or_default();
    until_listening.saturating_sub(since)
}

pub(crate) fn resident_mib(daemon: &Daemon) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number of KiB") / 1024.0
}
