//! Starting and destroying, one and twenty; events on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Daemon, halting};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::{self, procedure};

use crate::Effort;
use crate::calls::{all_stats, call, define, open};
use crate::host::defined;
use crate::timing::{Samples, longest, micros, repeat};

const MANY: usize = 20;
const MORE: usize = 50;

pub(crate) fn measure(daemon: &Daemon, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut wire = open(daemon);
    let dom = define(&mut wire, halting("one").xml());
    let (mut starts, mut destroys) = (Samples::default(), Samples::default());
    for _ in 0..effort.rounds {
        starts.add(micros(|| start(&mut wire, &dom)));
        destroys.add(micros(|| destroy(&mut wire, &dom)));
    }
    put("start", starts.median() / 1e3);
    put("destroy", destroys.median() / 1e3);
    at_once(daemon, &dom, effort, put);
    start(&mut wire, &dom);
    put("event", to_the_last_subscriber(daemon, &mut wire, &dom, effort) / 1e3);
    destroy(&mut wire, &dom);
}

pub(crate) fn start(wire: &mut Wire, dom: &remote::Domain) {
    call::<procedure::DomainCreate>(wire, &remote::DomainCreateArgs { dom: dom.clone() });
}

pub(crate) fn destroy(wire: &mut Wire, dom: &remote::Domain) {
    call::<procedure::DomainDestroy>(wire, &remote::DomainDestroyArgs { dom: dom.clone() });
}

/// Twenty clients start a guest each while one more asks about a guest that nobody touches.
fn at_once(
    daemon: &Daemon,
    bystander: &remote::Domain,
    effort: Effort,
    put: &mut dyn FnMut(&'static str, f64),
) {
    let mut guests = defined(daemon, "many", MANY);
    let over = AtomicBool::new(false);
    let mut asker = open(daemon);
    let args = remote::DomainGetInfoArgs { dom: bystander.clone() };
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            longest(&over, || {
                call::<procedure::DomainGetInfo>(&mut asker, &args);
            })
        });
        put("start20", all(&mut guests, start) / 1e3);
        over.store(true, Ordering::Relaxed);
        put("stall", asking.join().expect("the asking thread") / 1e3);
    });
    put("stats20", all_stats(&mut asker, effort) / 1e3);
    put("destroy20", all(&mut guests, destroy) / 1e3);
    undefine(guests);

    let mut guests = defined(daemon, "more", MORE);
    put("start50", all(&mut guests, start) / 1e3);
    all(&mut guests, destroy);
    undefine(guests);
}

pub(crate) fn undefine(guests: Vec<(Wire, remote::Domain)>) {
    for (mut wire, dom) in guests {
        call::<procedure::DomainUndefine>(&mut wire, &remote::DomainUndefineArgs { dom });
    }
}

pub(crate) fn all(guests: &mut [(Wire, remote::Domain)], work: fn(&mut Wire, &remote::Domain)) -> f64 {
    micros(|| {
        thread::scope(|scope| {
            for (wire, dom) in guests.iter_mut() {
                scope.spawn(move || work(wire, dom));
            }
        });
    })
}

/// From the call that causes an event until the last of a hundred connections has it, beside what the call takes anyway.
fn to_the_last_subscriber(daemon: &Daemon, wire: &mut Wire, dom: &remote::Domain, effort: Effort) -> f64 {
    let suspend = remote::DomainSuspendArgs { dom: dom.clone() };
    let resume = remote::DomainResumeArgs { dom: dom.clone() };
    let mut toggle = |turn: usize| {
        if turn.is_multiple_of(2) {
            call::<procedure::DomainSuspend>(wire, &suspend);
        } else {
            call::<procedure::DomainResume>(wire, &resume);
        }
    };
    let mut turn = 0;
    let alone = repeat(effort.rounds * 10, || {
        toggle(turn);
        turn += 1;
    })
    .median();
    let mut subscribers: Vec<Wire> = (0..100)
        .map(|_| {
            let mut wire = open(daemon);
            let args = remote::ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: None };
            call::<procedure::ConnectDomainEventCallbackRegisterAny>(&mut wire, &args);
            wire
        })
        .collect();
    let with_all = repeat(effort.rounds * 10, || {
        toggle(turn);
        turn += 1;
        for subscriber in &mut subscribers {
            let event = subscriber.receive().expect("an event").header;
            assert_eq!(event.program, <procedure::DomainCreate as Procedure>::PROGRAM.number);
        }
    })
    .median();
    (with_all - alone).max(0.0)
}
