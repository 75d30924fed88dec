//! One domain: its state as an immutable snapshot, its job slots, the handle that calls use.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::JobError;
use super::desk::{Desk, Limits};
use super::guards::{AgentJob, AsyncJob, Job};
use super::kinds::{AsyncOp, Beginnable, Modify, Operation, Phase};
use super::slots::{Blocker, Want};
use super::state::{Ending, Machine, State};
use crate::qemu::monitor::MonitorError;
use crate::qemu::process::{self, How};
use crate::qemu::run_state::RunState;

/// A domain as the list keeps it.
#[derive(Debug)]
pub struct DomainObject {
    state: ArcSwap<State>,
    writing: Mutex<()>,
    files: Mutex<()>,
    pub(super) desk: Desk,
}

impl DomainObject {
    pub fn new(state: State, limits: Limits) -> Self {
        Self {
            state: ArcSwap::from_pointee(state),
            writing: Mutex::new(()),
            files: Mutex::new(()),
            desk: Desk::new(limits),
        }
    }

    /// What the domain is at this moment; stays as it is while the domain changes.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Looks at the state where it is: cheaper than [`DomainObject::state`] for whoever looks at all domains.
    pub fn peek<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.load())
    }

    /// The right to change what the domain starts with the next time, and the files that say so. Needs no
    /// job, so that a hung guest keeps nobody from it; not held across an await, by its type.
    pub fn configure(&self) -> Configuration<'_> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        Configuration { object: self, _files: files }
    }

    /// Changes the state to what QEMU or the kernel reported. Facts need no job; what a client asks for
    /// does. `then` runs before anybody else changes the state, so that events have the states' order.
    pub fn observe<R>(&self, change: impl FnOnce(&mut State) -> R, then: impl FnOnce(&Arc<State>, &R)) -> R {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&self.state.load());
        let result = change(&mut next);
        let next = Arc::new(next);
        self.state.store(Arc::clone(&next));
        then(&next, &result);
        result
    }

    /// Returns when a change that is being made can be seen, and all has been done that goes with it.
    fn settle(&self) {
        drop(self.writing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The async operation under way.
    pub fn operation(&self) -> Option<Operation> {
        self.desk.operation().map(|(operation, _)| operation)
    }

    /// Returns when the job has begun.
    pub(super) async fn enter(&self, want: Want) -> Result<(), JobError> {
        self.desk.enter(want).await.map_err(|error| match error {
            JobError::Timeout(blocker) => JobError::Timeout(blocker.map(|it| self.how_far(it))),
            JobError::TooManyWaiting(blocker) => JobError::TooManyWaiting(blocker.map(|it| self.how_far(it))),
            error => error,
        })
    }

    fn how_far(&self, blocker: Blocker) -> Blocker {
        let state = self.state.load();
        let underway = state.operation.as_ref().filter(|it| it.operation.name() == blocker.by);
        let percent = underway.and_then(|it| {
            let memory = it.statistics.memory;
            (memory.processed.min(memory.total) * 100).checked_div(memory.total)
        });
        Blocker { percent, ..blocker }
    }

    pub(super) fn still_there(&self) -> Result<(), JobError> {
        let state = self.state.load();
        match state.gone {
            true => Err(JobError::Gone { uuid: state.uuid, name: Arc::clone(&state.name) }),
            false => Ok(()),
        }
    }
}

/// See [`DomainObject::configure`].
#[derive(Debug)]
pub struct Configuration<'a> {
    object: &'a DomainObject,
    _files: MutexGuard<'a, ()>,
}

impl Configuration<'_> {
    pub fn state(&self) -> Arc<State> {
        self.object.state()
    }

    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R, then: impl FnOnce(&Arc<State>, &R)) -> R {
        self.object.observe(change, then)
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

    pub fn object(&self) -> &Arc<DomainObject> {
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

    /// Ends the guest's process, whatever anybody waits for: takes no job, and if the guest is to go surely,
    /// fails every monitor command of this guest at once. Returns when the domain is shut off.
    ///
    /// Whoever watches the process (the event task, or the start that has not handed over yet) takes the
    /// domain down, with the reason given here. A start that has no process yet is called off.
    pub async fn stop(&mut self, how: How, ending: Ending) -> Result<(), JobError> {
        if self.state().machine().is_none() && self.call_off().await? {
            return Ok(());
        }
        let state = self.state();
        let machine = state.machine().ok_or(JobError::NotRunning)?;
        self.intend(machine, ending);
        let how = match how {
            How::Forced => How::ForcedWith {
                host_devices: state.live.as_ref().map_or(0, |live| live.devices.hostdevs.len()),
            },
            how => how,
        };
        if how != How::Graceful {
            machine.running.monitor.fail_all(&MonitorError::Closed);
        }
        if let Err(error) = process::stop(&machine.running.process, how).await {
            self.take_back(machine);
            return Err(error.into());
        }
        let limit = self.object.desk.limit();
        match tokio::time::timeout(limit, machine.ended()).await {
            Ok(()) => {
                self.object.settle();
                Ok(())
            }
            Err(_) => Err(JobError::Timeout(self.object.desk.holder())),
        }
    }

    /// Waits until a domain without a process has one or is to have none. True: there was a start, and nothing
    /// is left of it.
    async fn call_off(&mut self) -> Result<bool, JobError> {
        let state = self.state();
        if let Some(starting) = &state.starting {
            starting.cancel();
        } else if !state.is_active() {
            return Ok(false);
        }
        // What starts it, or takes hold of it in a new daemon, keeps this job waiting.
        match self.begin::<Modify>().await {
            Ok(_) => {}
            Err(JobError::Gone { .. }) if state.starting.is_some() => return Ok(true),
            Err(error) => return Err(error),
        }
        Ok(state.starting.as_ref().is_some_and(|starting| starting.is_canceled())
            && !self.state().is_active())
    }

    /// Notes what the end of this very process will mean.
    fn intend(&self, machine: &Arc<Machine>, ending: Ending) {
        let set = |state: &mut State| {
            machine.stoppers.fetch_add(1, Ordering::Relaxed);
            if state.machine().is_some_and(|it| Arc::ptr_eq(it, machine)) {
                state.ending = Some(ending);
                // It is not to come back.
                state.reboots = false;
            }
        };
        self.object.observe(set, |_, ()| ());
    }

    /// The process did not go. Should it do so later, that is a power off if it has said so, and else its own doing.
    /// Whoever else is about to end it goes on.
    fn take_back(&self, machine: &Arc<Machine>) {
        let set = |state: &mut State| {
            if machine.stoppers.fetch_sub(1, Ordering::Relaxed) > 1 {
                return;
            }
            machine.running.monitor.admit();
            if state.machine().is_some_and(|it| Arc::ptr_eq(it, machine)) {
                state.ending = matches!(state.run, RunState::Shutdown(_)).then_some(Ending::Shutdown);
            }
        };
        self.object.observe(set, |_, ()| ());
    }
}
