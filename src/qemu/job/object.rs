//! One domain: its state as an immutable snapshot, its job slots, the handle that calls use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::JobError;
use super::desk::{Desk, Limits};
use super::guards::{AgentJob, AsyncJob, Job};
use super::kinds::{AsyncOp, Beginnable, Operation, Phase};
use crate::qemu::run_state::RunState;
use crate::util::uuid::Uuid;

/// Everything about a domain that changes. Cheap to clone: writers replace it as a whole, readers keep the
/// one they took.
#[derive(Debug, Clone)]
pub struct State {
    pub name: Arc<str>,
    pub uuid: Uuid,
    /// While it runs.
    pub id: Option<i32>,
    pub run: RunState,
    /// Starts with the host.
    pub autostart: bool,
    /// No longer in the list: whoever still holds a handle begins no job on it.
    pub gone: bool,
}

/// A domain as the list keeps it.
#[derive(Debug)]
pub struct DomainObject {
    state: ArcSwap<State>,
    writing: Mutex<()>,
    pub(super) desk: Desk,
}

impl DomainObject {
    pub fn new(state: State, limits: Limits) -> Self {
        Self { state: ArcSwap::from_pointee(state), writing: Mutex::new(()), desk: Desk::new(limits) }
    }

    /// What the domain is at this moment; stays as it is while the domain changes.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Replaces the state by a changed copy. What `change` returns is published by `then` before anybody
    /// else changes the state, so that events have the order of the states.
    pub(super) fn update_then<R>(
        &self,
        change: impl FnOnce(&mut State) -> R,
        then: impl FnOnce(&Arc<State>, &R),
    ) -> R {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&self.state.load());
        let result = change(&mut next);
        let next = Arc::new(next);
        self.state.store(Arc::clone(&next));
        then(&next, &result);
        result
    }

    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.update_then(change, |_, _| ())
    }

    pub(super) fn still_there(&self) -> Result<(), JobError> {
        let state = self.state.load();
        match state.gone {
            true => Err(JobError::Gone { uuid: state.uuid, name: Arc::clone(&state.name) }),
            false => Ok(()),
        }
    }
}

/// A call's access to one domain. One per call, from a lookup; not `Clone`, so that a call holds one job.
#[derive(Debug)]
pub struct DomainHandle {
    object: Arc<DomainObject>,
}

impl DomainHandle {
    pub fn new(object: Arc<DomainObject>) -> Self {
        Self { object }
    }

    pub(super) fn object(&self) -> &DomainObject {
        &self.object
    }

    /// What the domain is at this moment. Takes no job and waits for nobody.
    pub fn state(&self) -> Arc<State> {
        self.object.state()
    }

    /// The async operation under way, and for how long.
    pub fn operation(&self) -> Option<(Operation, Duration)> {
        self.object.desk.operation()
    }

    /// The normal job under way, and for how long.
    pub fn occupied(&self) -> Option<(&'static str, Duration)> {
        self.object.desk.normal()
    }

    /// Waits for its turn, in order, at most as long as the limit says.
    pub async fn begin<K: Beginnable>(&mut self) -> Result<Job<'_, K>, JobError> {
        Job::begin(&self.object).await
    }

    pub async fn begin_agent(&mut self) -> Result<AgentJob<'_>, JobError> {
        AgentJob::begin(&self.object).await
    }

    pub async fn begin_async<O: AsyncOp>(self) -> Result<AsyncJob<O>, JobError> {
        AsyncJob::begin(self).await
    }

    /// Takes over an operation that was parked at `phase`.
    pub fn resume<O: AsyncOp>(self, phase: Phase) -> Result<AsyncJob<O>, JobError> {
        self.object.still_there()?;
        match self.object.desk.resume(O::OPERATION, phase) {
            true => Ok(AsyncJob::own(self)),
            false => Err(JobError::NotParked),
        }
    }
}
