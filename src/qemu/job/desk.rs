//! Where callers wait for a slot: [`Slots`] behind a lock, wake-ups, the time limit.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::JobError;
use super::kinds::{Allowed, Kind, Operation, Phase};
use super::slots::{Answer, Blocker, Slots, Ticket, Want};

/// How long and in what company a caller may wait for a job.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub wait: Duration,
    pub max_queued: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { wait: Duration::from_secs(30), max_queued: 4096 }
    }
}

#[derive(Debug)]
pub(super) struct Desk {
    slots: Mutex<Slots<oneshot::Sender<()>>>,
    limits: Limits,
}

impl Desk {
    pub(super) fn new(limits: Limits) -> Self {
        Self { slots: Mutex::new(Slots::new(limits.max_queued)), limits }
    }

    /// Returns when the job has begun. Dropping the future gives the place in the queue up.
    pub(super) async fn enter(&self, want: Want) -> Result<(), JobError> {
        let (wake, woken) = oneshot::channel();
        let answer = self.slots().ask(want, wake, Instant::now());
        let ticket = match answer {
            Answer::Begun => return Ok(()),
            Answer::Queued(ticket) => ticket,
            Answer::Full(_) => {
                return Err(JobError::TooManyWaiting(self.slots().blocker(want, Instant::now())));
            }
        };
        let mut place = Place { desk: self, want, ticket: Some(ticket) };
        match tokio::time::timeout(self.limits.wait, woken).await {
            Ok(Ok(())) => {
                place.ticket = None;
                Ok(())
            }
            _ => {
                let blocker = self.slots().blocker(want, Instant::now());
                tracing::warn!(?want, ?blocker, "gave up waiting for a job");
                Err(JobError::Timeout(blocker))
            }
        }
    }

    /// How long anybody waits here.
    pub(super) fn limit(&self) -> Duration {
        self.limits.wait
    }

    /// What keeps a destroy from being over.
    pub(super) fn holder(&self) -> Option<Blocker> {
        self.slots().blocker(Want::Normal(Kind::Destroy), Instant::now())
    }

    pub(super) fn leave(&self, want: Want) {
        self.change(|slots, now| match want {
            Want::Normal(_) | Want::Nested => slots.end_normal(now),
            Want::Agent => slots.end_agent(now),
            Want::Async(..) => slots.end_async(now),
        });
    }

    pub(super) fn allow(&self, allowed: Allowed) {
        self.change(|slots, now| slots.allow(allowed, now));
    }

    pub(super) fn park(&self, at: Phase) {
        self.slots().park(at);
    }

    pub(super) fn resume(&self, operation: Operation, at: Phase) -> bool {
        self.slots().resume(operation, at)
    }

    pub(super) fn drop_parked(&self) {
        self.change(Slots::drop_parked);
    }

    /// The operation under way and its age, for those who report it.
    pub(super) fn operation(&self) -> Option<(Operation, Duration)> {
        self.slots().operation(Instant::now())
    }

    /// The normal job under way and its age.
    pub(super) fn normal(&self) -> Option<(&'static str, Duration)> {
        self.slots().normal(Instant::now())
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Slots<oneshot::Sender<()>>, Instant) -> Vec<oneshot::Sender<()>>,
    ) {
        let begun = change(&mut self.slots(), Instant::now());
        for wake in begun {
            // A receiver that is gone gives its place up, which ends the job that began here.
            let _ = wake.send(());
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots<oneshot::Sender<()>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; leaving it early must not leave a job behind that nobody ends.
struct Place<'a> {
    desk: &'a Desk,
    want: Want,
    ticket: Option<Ticket>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let waited = self.desk.slots().give_up(ticket);
        if !waited {
            self.desk.leave(self.want);
        }
    }
}
