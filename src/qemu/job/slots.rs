//! Who may start now: the three slots of one domain as plain data.
//!
//! ```text
//!            ┌ normal ┐   one at a time: query, modify, suspend, abort, … or a nested job
//!   domain ──┤ agent  │   one at a time, independent of the other two
//!            └ async  ┘   one operation; while it lasts, only normal jobs it allows (and its own nested
//!                         ones) get the normal slot; parked between two calls of the same migration
//! ```
//!
//! Whoever cannot start waits in one queue. Every change starts the first in the queue that may start, so
//! nobody in the queue may start, ever. A destroy goes to the queue's head.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::kinds::{Allowed, Kind, Operation, Phase};

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Normal(Kind),
    /// The normal slot, for the owner of the async operation.
    Nested,
    Agent,
    Async(Operation, Allowed),
}

/// Names a waiter, for giving up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// The answer to [`Slots::ask`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<W> {
    Begun,
    Queued(Ticket),
    /// The queue is full; the waiter comes back.
    Full(W),
}

/// Who holds a slot, since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    by: &'static str,
    since: Instant,
}

/// What stands in the way of a waiter, for its error and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocker {
    pub by: &'static str,
    pub age: Duration,
    pub slot: SlotName,
    /// How far it is, if it is an operation that tells.
    pub percent: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotName {
    Monitor,
    Agent,
}

#[derive(Debug)]
struct Running {
    operation: Operation,
    allowed: Allowed,
    since: Instant,
    parked: Option<Phase>,
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: Ticket,
    want: Want,
    waiter: W,
}

/// `W` is what wakes a waiter; it is handed out when its job has begun.
#[derive(Debug)]
pub(super) struct Slots<W> {
    normal: Option<Held>,
    agent: Option<Held>,
    running: Option<Running>,
    queue: VecDeque<Waiting<W>>,
    max_queued: usize,
    last_ticket: u64,
}

impl<W> Slots<W> {
    pub(super) fn new(max_queued: usize) -> Self {
        Self { normal: None, agent: None, running: None, queue: VecDeque::new(), max_queued, last_ticket: 0 }
    }

    /// Takes the slot at once, or queues.
    pub(super) fn ask(&mut self, want: Want, waiter: W, now: Instant) -> Answer<W> {
        if self.may_start(want) {
            self.start(want, now);
            return Answer::Begun;
        }
        let destroy = want == Want::Normal(Kind::Destroy);
        if self.queue.len() >= self.max_queued && !destroy {
            return Answer::Full(waiter);
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let waiting = Waiting { ticket, want, waiter };
        match destroy {
            true => self.queue.push_front(waiting),
            false => self.queue.push_back(waiting),
        }
        Answer::Queued(ticket)
    }

    /// Leaves the queue. False: the job has begun in the meantime, and its owner must end it.
    pub(super) fn give_up(&mut self, ticket: Ticket) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| waiting.ticket != ticket);
        self.queue.len() < before
    }

    /// Ends the normal (or nested) job. Returns those whose jobs began by that.
    pub(super) fn end_normal(&mut self, now: Instant) -> Vec<W> {
        self.normal = None;
        self.drain(now)
    }

    pub(super) fn end_agent(&mut self, now: Instant) -> Vec<W> {
        self.agent = None;
        self.drain(now)
    }

    pub(super) fn end_async(&mut self, now: Instant) -> Vec<W> {
        self.running = None;
        self.drain(now)
    }

    /// Changes which normal jobs the running operation lets through.
    pub(super) fn allow(&mut self, allowed: Allowed, now: Instant) -> Vec<W> {
        if let Some(running) = &mut self.running {
            running.allowed = allowed;
        }
        self.drain(now)
    }

    /// The owner leaves; the operation stays, until somebody resumes or drops it.
    pub(super) fn park(&mut self, at: Phase) {
        if let Some(running) = &mut self.running {
            running.parked = Some(at);
        }
    }

    /// Takes over a parked operation, if it is this one and stands at `at`.
    pub(super) fn resume(&mut self, operation: Operation, at: Phase) -> bool {
        match &mut self.running {
            Some(running) if running.operation == operation && running.parked == Some(at) => {
                running.parked = None;
                true
            }
            _ => false,
        }
    }

    /// Drops an operation that nobody owns at present (its guest is gone).
    pub(super) fn drop_parked(&mut self, now: Instant) -> Vec<W> {
        if self.running.as_ref().is_some_and(|running| running.parked.is_some()) {
            return self.end_async(now);
        }
        Vec::new()
    }

    /// The operation under way and its age.
    pub(super) fn operation(&self, now: Instant) -> Option<(Operation, Duration)> {
        self.running.as_ref().map(|running| (running.operation, now.saturating_duration_since(running.since)))
    }

    /// The normal job under way and its age.
    pub(super) fn normal(&self, now: Instant) -> Option<(&'static str, Duration)> {
        self.normal.map(|held| (held.by, now.saturating_duration_since(held.since)))
    }

    /// What keeps `want` from starting.
    pub(super) fn blocker(&self, want: Want, now: Instant) -> Option<Blocker> {
        let held = |held: Held, slot| Blocker {
            by: held.by,
            age: now.saturating_duration_since(held.since),
            slot,
            percent: None,
        };
        let operation = self.running.as_ref().map(|it| Held { by: it.operation.name(), since: it.since });
        let masked = match want {
            Want::Normal(kind) => !self.admits(kind),
            Want::Async(..) => true,
            Want::Nested | Want::Agent => false,
        };
        match want {
            Want::Agent => self.agent.map(|it| held(it, SlotName::Agent)),
            _ => operation.filter(|_| masked).or(self.normal).map(|it| held(it, SlotName::Monitor)),
        }
    }

    fn admits(&self, kind: Kind) -> bool {
        self.running.as_ref().is_none_or(|running| running.allowed.contains(kind))
    }

    fn may_start(&self, want: Want) -> bool {
        match want {
            Want::Normal(kind) => self.normal.is_none() && self.admits(kind),
            Want::Nested => self.normal.is_none(),
            Want::Agent => self.agent.is_none(),
            Want::Async(..) => self.normal.is_none() && self.running.is_none(),
        }
    }

    fn start(&mut self, want: Want, now: Instant) {
        match want {
            Want::Normal(kind) => self.normal = Some(Held { by: kind.name(), since: now }),
            Want::Nested => {
                let by = self.running.as_ref().map_or("nested", |running| running.operation.name());
                self.normal = Some(Held { by, since: now });
            }
            Want::Agent => self.agent = Some(Held { by: "agent command", since: now }),
            Want::Async(operation, allowed) => {
                self.running = Some(Running { operation, allowed, since: now, parked: None });
            }
        }
    }

    fn drain(&mut self, now: Instant) -> Vec<W> {
        let mut begun = Vec::new();
        let mut at = 0;
        while let Some(want) = self.queue.get(at).map(|waiting| waiting.want) {
            if !self.may_start(want) {
                at += 1;
                continue;
            }
            self.start(want, now);
            begun.extend(self.queue.remove(at).map(|waiting| waiting.waiter));
        }
        begun
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
