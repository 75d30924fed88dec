//! What the daemon costs a host: while nothing happens, while many ask, and when it comes back to guests that run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferrovirt_compat::wire::{Wire, result};
use ferrovirt_compat::{Daemon, Kind, Signal, eventually, halting, signal};
use ferrovirt_protocol::remote::{self, procedure};

use crate::CONFIG;
use crate::calls::{ask_all_stats, call, define, open, throughput};
use crate::guests::{all, start, undefine};
use crate::scale::before_exec;
use crate::timing::{Samples, as_micros, micros};

/// Guests that run while the daemon is killed.
const LEFT: usize = 20;
/// Guests that start while somebody asks.
const STARTED: usize = 10;

pub(crate) fn measure(daemon: &Daemon, put: &mut dyn FnMut(&'static str, f64)) {
    put("wake-ups", wake_ups(daemon));
    put("processor", processor_seconds(daemon));
    put("busy-p99", beside_a_hung_monitor(daemon) / 1e3);
}

/// How often any thread of the daemon ran in ten seconds in which nobody wanted anything.
fn wake_ups(daemon: &Daemon) -> f64 {
    // What its start still owes is done when a second passes without any.
    eventually("the daemon has nothing to do", || (switches_within(daemon, 1) == 0.0).then_some(()));
    switches_within(daemon, 10)
}

fn switches_within(daemon: &Daemon, seconds: u64) -> f64 {
    let before = switches(daemon);
    // What happens in a time when nothing should is the measure.
    let until = Instant::now() + Duration::from_secs(seconds);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
    // Threads that have ended meanwhile woke up for that.
    let after = switches(daemon);
    let ended = before.keys().filter(|task| !after.contains_key(*task)).count() as f64;
    let more = |(task, count): (&OsString, &f64)| count - before.get(task).unwrap_or(&0.0);
    ended + after.iter().map(more).sum::<f64>()
}

/// Of each thread of the daemon, how often it has waited.
fn switches(daemon: &Daemon) -> HashMap<OsString, f64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("the daemon runs");
    let waits = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    let of = |task: fs::DirEntry| {
        Some((task.file_name(), waits(fs::read_to_string(task.path().join("status")).ok()?)?))
    };
    tasks.flatten().filter_map(of).collect()
}

/// Of 100,000 calls, eight connections with five under way on each.
fn processor_seconds(daemon: &Daemon) -> f64 {
    let before = used_seconds(daemon);
    let begin = Instant::now();
    let calls = throughput(8, 5, || open(daemon)) * begin.elapsed().as_secs_f64();
    (used_seconds(daemon) - before) / calls * 100_000.0
}

/// In user and kernel mode, in the kernel's hundredths.
fn used_seconds(daemon: &Daemon) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("the daemon runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The 99th percentile of get-info, in microseconds, while ten guests start and a call waits for one that is stopped
/// like with a debugger.
fn beside_a_hung_monitor(daemon: &Daemon) -> f64 {
    let mut wire = open(daemon);
    let hung = define(&mut wire, halting("hung").xml());
    start(&mut wire, &hung);
    let pid = daemon.qemu_pid("hung");
    signal(pid, Signal::STOP);
    wire.queue::<procedure::DomainSuspend>(&remote::DomainSuspendArgs { dom: hung.clone() })
        .expect("it encodes");
    wire.flush().expect("the daemon reads");

    let mut guests = defined(daemon, "busy", STARTED);
    let args = remote::DomainGetInfoArgs { dom: hung.clone() };
    let mut samples = Samples::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asker = open(daemon);
            while !over.load(Ordering::Relaxed) {
                samples.add(micros(|| {
                    call::<procedure::DomainGetInfo>(&mut asker, &args);
                }));
            }
        });
        all(&mut guests, start);
        over.store(true, Ordering::Relaxed);
        asking.join().expect("the asking thread");
    });

    signal(pid, Signal::CONT);
    result::<procedure::DomainSuspend>(&wire.reply().expect("an answer")).expect("it goes on");
    guests.push((wire, hung));
    all(&mut guests, crate::guests::destroy);
    undefine(guests);
    samples.percentile(99)
}

pub(crate) fn defined(daemon: &Daemon, name: &str, count: usize) -> Vec<(Wire, remote::Domain)> {
    let define = |number| {
        let mut wire = open(daemon);
        let dom = define(&mut wire, halting(&format!("{name}{number}")).xml());
        (wire, dom)
    };
    (0..count).map(define).collect()
}

/// From the exec of the daemon after one that was killed: until it lists all guests as running, and has numbers of all.
pub(crate) fn come_back(kind: Kind, rounds: usize, put: &mut dyn FnMut(&'static str, f64)) {
    let mut daemon = Daemon::start(kind, CONFIG);
    all(&mut defined(&daemon, "left", LEFT), start);
    let (mut listed, mut told) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        daemon.kill();
        let until_listening = daemon.restart();
        let until_listening = until_listening.saturating_sub(match kind {
            Kind::Ours(_) => Duration::ZERO,
            Kind::Upstream | Kind::Instead(_) => before_exec(&daemon, until_listening),
        });
        let begin = Instant::now();
        let mut wire = open(&daemon);
        eventually("all guests are back", || (running(&mut wire) == LEFT).then_some(()));
        listed.add(as_micros(until_listening + begin.elapsed()));
        ask_all_stats(&mut wire);
        told.add(as_micros(until_listening + begin.elapsed()));
    }
    put("back20", listed.median() / 1e3);
    put("back20-stats", told.median() / 1e3);
}

fn running(wire: &mut Wire) -> usize {
    /// `VIR_CONNECT_LIST_DOMAINS_RUNNING`
    const RUNNING: u32 = 1 << 4;
    let args = remote::ConnectListAllDomainsArgs { need_results: 1, flags: RUNNING };
    call::<procedure::ConnectListAllDomains>(wire, &args).domains.len()
}
