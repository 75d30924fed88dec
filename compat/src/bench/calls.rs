//! Calls that touch no guest: latency, throughput, lists, definitions, connections.

use std::thread;
use std::time::{Duration, Instant};

use ferrovirt_compat::wire::{Wire, result};
use ferrovirt_compat::{Daemon, halting};
use ferrovirt_protocol::frame::{Frame, Status};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::{self, procedure};

use crate::Effort;
use crate::timing::{Samples, micros, repeat};

pub(crate) fn open(daemon: &Daemon) -> Wire {
    Wire::open(&daemon.socket()).expect("the daemon serves")
}

pub(crate) fn call<P: Procedure>(wire: &mut Wire, args: &P::Args) -> P::Ret {
    wire.call::<P>(args).unwrap_or_else(|error| panic!("{}: {error}", P::NAME))
}

pub(crate) fn define(wire: &mut Wire, xml: String) -> remote::Domain {
    call::<procedure::DomainDefineXml>(wire, &remote::DomainDefineXmlArgs { xml }).dom
}

/// A call whose answer is received and not read: what thousands of records cost this client is not the daemon's.
pub(crate) fn ask<P: Procedure>(wire: &mut Wire, args: &P::Args) -> Frame {
    wire.queue::<P>(args).and_then(|_| wire.flush()).expect("the daemon reads");
    let reply = wire.reply().unwrap_or_else(|error| panic!("{}: {error}", P::NAME));
    assert_eq!(reply.header.status, Status::OK, "{}", P::NAME);
    reply
}

/// What a dashboard asks every few seconds: all that is known of all domains.
pub(crate) fn ask_all_stats(wire: &mut Wire) {
    let args = remote::ConnectGetAllDomainStatsArgs { doms: Vec::new(), stats: 0, flags: 0 };
    ask::<procedure::ConnectGetAllDomainStats>(wire, &args);
}

/// The median of that in microseconds.
pub(crate) fn all_stats(wire: &mut Wire, effort: Effort) -> f64 {
    repeat(effort.rounds * 5, || ask_all_stats(wire)).median()
}

pub(crate) fn measure(daemon: &Daemon, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut wire = open(daemon);
    let version = |wire: &mut Wire| {
        call::<procedure::ConnectGetLibVersion>(wire, &());
    };

    let mut samples = repeat(effort.calls, || version(&mut wire));
    put("lib-version", samples.median());
    put("lib-version-p99", samples.percentile(99));
    for (row, connections, depth) in [
        ("calls-1x1", 1, 1),
        ("calls-1x5", 1, 5),
        ("calls-8x5", 8, 5),
        ("calls-16x1", 16, 1),
        ("calls-16x5", 16, 5),
    ] {
        put(row, throughput(connections, depth, || open(daemon)));
    }
    put("connect", repeat(effort.calls / 10, || drop(open(daemon))).median());
    let crowd: Vec<Wire> = (0..1000).map(|_| open(daemon)).collect();
    put("crowd", repeat(effort.calls, || version(&mut wire)).median());
    drop(crowd);

    domains(&mut wire, effort, put);
}

fn domains(wire: &mut Wire, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let (mut defines, mut undefines) = (Samples::default(), Samples::default());
    for _ in 0..effort.calls / 20 {
        let mut dom = None;
        defines.add(micros(|| dom = Some(define(wire, halting("short").xml()))));
        let dom = dom.expect("defined above");
        undefines.add(micros(|| {
            call::<procedure::DomainUndefine>(wire, &remote::DomainUndefineArgs { dom });
        }));
    }
    put("define", defines.median() / 1e3);
    put("undefine", undefines.median() / 1e3);

    let all: Vec<remote::Domain> = (0..1000).map(|n| define(wire, halting(&format!("d{n}")).xml())).collect();
    let dom = all.first().expect("a thousand").clone();
    let name = remote::DomainLookupByNameArgs { name: dom.name.clone() };
    let info = remote::DomainGetInfoArgs { dom: dom.clone() };
    let xml = remote::DomainGetXmlDescArgs { dom, flags: 0 };
    let list = remote::ConnectListAllDomainsArgs { need_results: 1, flags: 0 };

    let mut lookups = repeat(effort.calls, || drop(call::<procedure::DomainLookupByName>(wire, &name)));
    put("lookup", lookups.median());
    put("lookup-p99", lookups.percentile(99));
    let mut infos = repeat(effort.calls, || {
        call::<procedure::DomainGetInfo>(wire, &info);
    });
    put("info", infos.median());
    put("info-p99", infos.percentile(99));
    let mut xmls = repeat(effort.calls, || drop(call::<procedure::DomainGetXmlDesc>(wire, &xml)));
    put("xml", xmls.median());
    put("xml-p99", xmls.percentile(99));
    let mut lists = repeat(effort.calls / 20, || {
        ask::<procedure::ConnectListAllDomains>(wire, &list);
    });
    assert_eq!(call::<procedure::ConnectListAllDomains>(wire, &list).domains.len(), 1000);
    put("list", lists.median() / 1e3);
    put("list-p99", lists.percentile(99) / 1e3);

    for dom in all {
        call::<procedure::DomainUndefine>(wire, &remote::DomainUndefineArgs { dom });
    }
}

/// Calls a second: each connection has a thread that keeps `depth` calls under way.
pub(crate) fn throughput(connections: usize, depth: usize, open: impl Fn() -> Wire) -> f64 {
    const TIME: Duration = Duration::from_secs(1);
    let wires: Vec<Wire> = (0..connections).map(|_| open()).collect();
    let begin = Instant::now();
    let calls: usize = thread::scope(|scope| {
        let threads: Vec<_> =
            wires.into_iter().map(|wire| scope.spawn(move || batches(wire, depth, begin + TIME))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client thread")).sum()
    });
    calls as f64 / begin.elapsed().as_secs_f64()
}

fn batches(mut wire: Wire, depth: usize, until: Instant) -> usize {
    let mut calls = 0;
    while Instant::now() < until {
        for _ in 0..depth {
            wire.queue::<procedure::ConnectGetLibVersion>(&()).expect("it encodes");
        }
        wire.flush().expect("the daemon reads");
        for _ in 0..depth {
            let reply = wire.reply().expect("the daemon answers");
            result::<procedure::ConnectGetLibVersion>(&reply).expect("with the version");
        }
        calls += depth;
    }
    calls
}
