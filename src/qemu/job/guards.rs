//! The guards: a job lasts as long as its value.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::JobError;
use super::kinds::{Allowed, AsyncOp, Beginnable, Destroy, Phase, Writes};
use super::object::{DomainHandle, DomainObject};
use super::slots::Want;
use super::state::{Ending, Machine, State};
use super::statistics::{JobStatistics, JobSubject};
use crate::qemu::agent::{Agent, AgentError, Done, Patience, Request};
use crate::qemu::monitor::Monitor;
use crate::qemu::process::{Files, How};

/// A normal job.
#[derive(Debug)]
#[must_use = "a job ends when it is dropped"]
pub struct Job<'a, K: Beginnable> {
    object: &'a DomainObject,
    kind: PhantomData<K>,
}

impl<'a, K: Beginnable> Job<'a, K> {
    pub(super) async fn begin(object: &'a DomainObject) -> Result<Self, JobError> {
        object.enter(Want::Normal(K::KIND)).await?;
        let job = Self { object, kind: PhantomData };
        job.object.still_there()?;
        Ok(job)
    }

    /// The running guest, for as long as the job lasts.
    pub fn live(&self) -> Result<Live<'_>, JobError> {
        Live::of(self.object)
    }

    pub fn state(&self) -> Arc<State> {
        self.object.state()
    }

    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R
    where
        K: Writes,
    {
        self.object.observe(change, |_, _| ())
    }

    /// [`Job::update`], and then, before anybody else changes the state, `then`: for events, which must
    /// come in the order of the states they tell of.
    pub fn update_then<R>(
        &self,
        change: impl FnOnce(&mut State) -> R,
        then: impl FnOnce(&Arc<State>, &R),
    ) -> R
    where
        K: Writes,
    {
        self.object.observe(change, then)
    }
}

impl Job<'_, Destroy> {
    /// Ends an operation whose owner waits for a next call that will find no guest.
    pub fn drop_parked(&self) {
        self.object.desk.drop_parked();
    }
}

impl<K: Beginnable> Drop for Job<'_, K> {
    fn drop(&mut self) {
        self.object.desk.leave(Want::Normal(K::KIND));
    }
}

/// The right to talk to the guest's agent; independent of the monitor's jobs.
#[derive(Debug)]
#[must_use = "a job ends when it is dropped"]
pub struct AgentJob<'a> {
    object: &'a DomainObject,
}

impl<'a> AgentJob<'a> {
    pub(super) async fn begin(object: &'a DomainObject) -> Result<Self, JobError> {
        object.enter(Want::Agent).await?;
        let job = Self { object };
        job.object.still_there()?;
        Ok(job)
    }

    /// The agent of the running guest, for as long as the job lasts.
    pub fn agent(&self) -> Result<LiveAgent<'_>, AgentError> {
        let state = self.object.state();
        let agent = Arc::clone(state.agent()?);
        Ok(LiveAgent { agent, patience: state.agent_patience, job: PhantomData })
    }
}

impl Drop for AgentJob<'_> {
    fn drop(&mut self) {
        self.object.desk.leave(Want::Agent);
    }
}

/// A guest's agent in the hands of somebody who holds the job on it: the only way to it.
#[derive(Debug)]
pub struct LiveAgent<'a> {
    agent: Arc<Agent>,
    patience: Patience,
    job: PhantomData<&'a ()>,
}

impl LiveAgent<'_> {
    /// Runs a command, as long as clients let this agent take.
    pub async fn ask<R: DeserializeOwned>(&self, request: &Request) -> Result<R, AgentError> {
        self.agent.request(request, self.patience).await?.ok_or(AgentError::Disappeared)
    }

    /// Runs a command that ends with its reply or with what it [awaits](Request::awaits).
    pub async fn tell(&self, request: &Request, patience: Option<Patience>) -> Result<(), AgentError> {
        let told: Option<Done> = self.agent.request(request, patience.unwrap_or(self.patience)).await?;
        // Whether it replied is all the same.
        let _ = told;
        Ok(())
    }

    /// Runs a client's own command and answers what the agent wrote.
    pub async fn ask_text(&self, request: &Request, patience: Patience) -> Result<String, AgentError> {
        self.agent.request_text(request, patience).await
    }
}

/// A long operation; it keeps its slot between its nested jobs.
#[derive(Debug)]
#[must_use = "a job ends when it is dropped"]
pub struct AsyncJob<O: AsyncOp> {
    handle: DomainHandle,
    ends: bool,
    operation: PhantomData<O>,
}

impl<O: AsyncOp> AsyncJob<O> {
    pub(super) async fn begin(handle: DomainHandle) -> Result<Self, JobError> {
        handle.object().enter(Want::Async(O::OPERATION, O::ALLOWED)).await?;
        let job = Self::own(handle);
        job.handle.object().still_there()?;
        job.update(|state| state.begin(O::OPERATION));
        Ok(job)
    }

    pub(super) fn own(handle: DomainHandle) -> Self {
        Self { handle, ends: true, operation: PhantomData }
    }

    /// The normal slot, for as long as the returned guard lives.
    pub async fn nested(&mut self) -> Result<NestedJob<'_>, JobError> {
        NestedJob::begin(self.handle.object()).await
    }

    /// Changes which normal jobs get through from now on.
    pub fn allow(&self, allowed: Allowed) {
        self.handle.object().desk.allow(allowed);
    }

    /// Leaves the operation standing at a phase, for [`DomainHandle::resume`].
    pub fn park(mut self, at: Phase) {
        self.ends = false;
        self.update(|state| {
            if let Some(underway) = &mut state.operation {
                underway.phase = Some(at);
            }
        });
        self.handle.object().desk.park(at);
    }

    pub fn object(&self) -> &Arc<DomainObject> {
        self.handle.object()
    }

    /// What a client asked for, and which numbers will tell how far it is.
    pub fn describe(&self, flags: u32, subject: JobSubject) {
        self.update(|state| {
            if let Some(underway) = &mut state.operation {
                underway.flags = flags;
                underway.note(|statistics| statistics.subject = subject);
            }
        });
    }

    /// Notes which file it writes.
    pub fn writes(&self, file: &Path) {
        let file: Arc<str> = file.to_string_lossy().into();
        self.update(|state| {
            if let Some(underway) = &mut state.operation {
                underway.file = Some(file);
            }
        });
    }

    /// Ends the guest's process with the operation, as [`DomainHandle::stop`] does.
    pub async fn stop(&mut self, how: How, ending: Ending) -> Result<(), JobError> {
        self.handle.stop(how, ending).await
    }

    /// Changes what is told of how far it is.
    pub fn note(&self, note: impl FnOnce(&mut JobStatistics)) {
        self.update(|state| {
            if let Some(underway) = &mut state.operation {
                underway.note(note);
            }
        });
    }

    /// Keeps how it went, as of now, for those who ask later.
    pub fn complete(&self) {
        self.update(|state| {
            if let Some(underway) = &state.operation {
                state.completed = Some(Arc::new(underway.statistics.completed()));
            }
        });
    }

    pub fn state(&self) -> Arc<State> {
        self.handle.state()
    }

    /// See [`Job::update_then`].
    pub fn update_then<R>(
        &self,
        change: impl FnOnce(&mut State) -> R,
        then: impl FnOnce(&Arc<State>, &R),
    ) -> R {
        self.handle.object().observe(change, then)
    }

    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.handle.object().observe(change, |_, _| ())
    }
}

impl<O: AsyncOp> Drop for AsyncJob<O> {
    fn drop(&mut self) {
        if self.ends {
            self.update(|state| state.operation = None);
            self.handle.object().desk.leave(Want::Async(O::OPERATION, O::ALLOWED));
        }
    }
}

/// A normal job inside an async operation.
#[derive(Debug)]
#[must_use = "a job ends when it is dropped"]
pub struct NestedJob<'a> {
    object: &'a DomainObject,
}

impl<'a> NestedJob<'a> {
    async fn begin(object: &'a DomainObject) -> Result<Self, JobError> {
        object.enter(Want::Nested).await?;
        Ok(Self { object })
    }

    /// The running guest, for as long as the job lasts.
    pub fn live(&self) -> Result<Live<'_>, JobError> {
        Live::of(self.object)
    }

    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.object.observe(change, |_, _| ())
    }
}

impl Drop for NestedJob<'_> {
    fn drop(&mut self) {
        self.object.desk.leave(Want::Nested);
    }
}

/// A running guest in the hands of somebody who holds a job on it: the only way to its monitor.
#[derive(Debug)]
pub struct Live<'a> {
    machine: Arc<Machine>,
    state: Arc<State>,
    job: PhantomData<&'a ()>,
}

impl Live<'_> {
    fn of(object: &DomainObject) -> Result<Self, JobError> {
        let state = object.state();
        let machine = state.machine().map(Arc::clone).ok_or(JobError::NotRunning)?;
        Ok(Self { machine, state, job: PhantomData })
    }

    /// For commands within this job; a clone of it must not outlive the job.
    pub fn monitor(&self) -> &Monitor {
        &self.machine.running.monitor
    }

    pub fn files(&self) -> &Files {
        &self.machine.running.files
    }

    /// The domain as it was when the job got to its guest.
    pub fn state(&self) -> &State {
        &self.state
    }
}
