//! Jobs: who may act on a domain, as types.
//!
//! A lookup yields a [`DomainHandle`], one per call. Reading takes no job: [`DomainHandle::state`] is an
//! immutable snapshot. To act, a call begins a job and gets a guard that ends it when dropped:
//!
//! ```text
//!                begin::<K>() ──► Job<K> ──── live() ──► Live ── monitor()
//!  DomainHandle  begin_agent() ─► AgentJob ── agent() ─► LiveAgent
//!                begin_async() ─► AsyncJob<O> ── nested() ──► NestedJob ── live() ──► Live
//!                                    │  ▲
//!                               park(at) resume(at)       between two calls of one migration
//! ```
//!
//! [`DomainHandle::stop`] ends the guest without a job, and thereby every job that waits for its monitor.
//! What QEMU reports is taken over without one ([`DomainObject::observe`]), and so is a change of what the
//! domain starts with the next time ([`DomainObject::configure`]).
//!
//! `begin` borrows the handle mutably and `begin_async` consumes it, so one call cannot wait for a second
//! job while it holds a first (libvirt's source of deadlocks); the compiler refuses it:
//!
//! ```compile_fail,E0499
//! # use ferrovirt::qemu::job::*;
//! # async fn misuse(mut domain: DomainHandle) -> Result<(), JobError> {
//! let job = domain.begin::<Modify>().await?;
//! let agent = domain.begin_agent().await?; // two at once
//! # drop((job, agent)); Ok(()) }
//! ```
//!
//! An async operation reaches its guest through nested jobs only, one at a time:
//!
//! ```compile_fail,E0499
//! # use ferrovirt::qemu::job::*;
//! # async fn misuse(domain: DomainHandle) -> Result<(), JobError> {
//! let mut operation = domain.begin_async::<Save>().await?;
//! let first = operation.nested().await?;
//! let second = operation.nested().await?; // would wait for the first for ever
//! # drop((first, second)); Ok(()) }
//! ```
//!
//! What is reached through a job does not outlive it:
//!
//! ```compile_fail,E0505
//! # use ferrovirt::qemu::job::*;
//! # async fn misuse(mut domain: DomainHandle) -> Result<(), JobError> {
//! let job = domain.begin::<Query>().await?;
//! let live = job.live()?;
//! drop(job);
//! let _ = live.monitor(); // the job is over
//! # Ok(()) }
//! ```
//!
//! A query does not write:
//!
//! ```compile_fail,E0277
//! # use ferrovirt::qemu::job::*;
//! # async fn misuse(mut domain: DomainHandle) -> Result<(), JobError> {
//! let job = domain.begin::<Query>().await?;
//! job.update(|state| state.autostart = true);
//! # Ok(()) }
//! ```

mod desk;
mod guards;
mod kinds;
mod object;
mod slots;
mod state;
mod statistics;

use std::sync::Arc;

use thiserror::Error;

use crate::qemu::process::StopError;
use crate::util::uuid::Uuid;

pub use self::desk::Limits;
pub use self::guards::{AgentJob, AsyncJob, Job, Live, LiveAgent, NestedJob};
pub use self::kinds::{
    Abort, Allowed, AsyncOp, Backup, Beginnable, Destroy, Dump, Kind, MigrationIn, MigrationOp, MigrationOut,
    MigrationSafe, Modify, Operation, Phase, Query, Save, Snapshot, Start, Suspend, Writes,
};
pub use self::object::{Configuration, DomainHandle, DomainObject};
pub use self::slots::{Blocker, SlotName};
pub use self::state::{AbortWish, Ending, Launched, Machine, Starting, State, Underway};
pub use self::statistics::{
    JobOperation, JobStatistics, JobStatus, JobSubject, Pages, Traffic, Xbzrle, now_ms,
};

/// Why a job did not begin.
#[derive(Debug, Error)]
pub enum JobError {
    #[error("cannot acquire state change lock{}", held(.0))]
    Timeout(Option<Blocker>),
    #[error("cannot acquire state change lock{} due to max_queued limit", held(.0))]
    TooManyWaiting(Option<Blocker>),
    #[error("domain is not running")]
    NotRunning,
    /// The domain was removed while the caller waited, or before.
    #[error("no domain with matching uuid '{uuid}' ({name})")]
    Gone { uuid: Uuid, name: Arc<str> },
    #[error("no operation of this kind waits for its next phase")]
    NotParked,
    /// The guest's process does not go.
    #[error(transparent)]
    Stop(#[from] StopError),
}

/// Who it is, since when, how far he is, and what would end him.
fn held(blocker: &Option<Blocker>) -> String {
    let Some(Blocker { by, age, slot, percent }) = blocker else { return String::new() };
    let (slot, ends) = match (slot, Operation::from_name(by)) {
        (SlotName::Agent, _) => ("agent", "its time limit"),
        (SlotName::Monitor, None | Some(Operation::Start | Operation::MigrationIn)) => {
            ("monitor", "destroying the guest")
        }
        (SlotName::Monitor, Some(_)) => ("monitor", "aborting the job"),
    };
    let done = percent.map(|percent| format!(", {percent} % done")).unwrap_or_default();
    format!(" (held by {slot}={by} for {} s{done}; {ends} ends it)", age.as_secs())
}

#[cfg(test)]
mod tests;
