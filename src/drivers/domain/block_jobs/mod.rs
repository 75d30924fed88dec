//! Long work on the images of running guests: pulling, committing, copying.
//!
//! ```text
//!  a call ─► noted in the status file ─► QEMU begins ─► … ─► JOB_STATUS_CHANGE ─┬─ ready ─────► subscribers hear
//!                    │                                                           └─ concluded ─► conclude
//!                    └─ refused: forgotten                                                           │
//!            images changed in the live definition and the inactive one, left nodes removed ◄───────┘
//! ```
//!
//! Who concludes a job holds a job on the guest: the call that waits for it, or a task that the event begins. Whoever
//! comes second finds nothing to do.

mod adopt;
mod begin;
pub(super) mod chain;
mod copy;
mod end;
pub(super) mod image;
mod overlays;

use std::sync::Arc;

pub(super) use begin::{Commit, with_disk};
pub use copy::CopyRequest;
pub(super) use end::Concluded;

use super::Domains;
use super::event::{BlockJobKind, BlockJobStatus, DomainEvent};
use super::flags::{CallFlags, JobBandwidthFlags};
use super::reads::running;
use super::usage::disk_named;
use crate::conf::devices::{Disk, DiskBus, Place};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::block_jobs::{BlockJob, BlockJobs, Work, of_disk};
use crate::qemu::job::{DomainHandle, DomainObject, MigrationSafe, Query, State};
use crate::qemu::monitor::{BlockJobInfo as Told, BlockJobSetSpeed, QueryBlockJobs};

/// `virDomainBlockJobInfo`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJobInfo {
    pub kind: BlockJobKind,
    /// In MiB a second, or in bytes.
    pub bandwidth: u64,
    pub current: u64,
    pub end: u64,
}

impl Domains {
    /// `virDomainGetBlockJobInfo`; nothing for a disk that nothing is done with.
    pub async fn block_job_info(
        &self,
        mut domain: DomainHandle,
        disk: &str,
        flags: u32,
    ) -> Result<Option<BlockJobInfo>> {
        let flags = JobBandwidthFlags::accept_in(flags, "qemuDomainGetBlockJobInfo")?;
        let job = domain.begin::<Query>().await?;
        let live = job.live()?;
        let disk = disk_of(running(live.state())?, disk)?;
        let Some((name, job)) = of_disk(&live.state().block_jobs, disk.name()) else { return Ok(None) };
        let told = live.monitor().execute(QueryBlockJobs {}).await?;
        let told = told.iter().find(|told| told.device == name);
        let (current, end) = told.map_or((0, 1), progress);
        let bandwidth = match told.map_or(0, |told| told.speed) {
            bytes if flags.contains(JobBandwidthFlags::BYTES) => bytes,
            bytes => bytes.div_ceil(1 << 20),
        };
        Ok(Some(BlockJobInfo { kind: kind(&job.work), bandwidth, current, end }))
    }

    /// `virDomainBlockJobSetSpeed`
    pub async fn block_job_set_speed(
        &self,
        mut domain: DomainHandle,
        disk: &str,
        bandwidth: u64,
        flags: u32,
    ) -> Result<()> {
        let flags = JobBandwidthFlags::accept(flags)?;
        let speed = speed(bandwidth, flags.contains(JobBandwidthFlags::BYTES))?;
        let job = domain.begin::<MigrationSafe>().await?;
        let live = job.live()?;
        let disk = disk_of(running(live.state())?, disk)?;
        let (name, _) = job_of(&live.state().block_jobs, disk)?;
        live.monitor().execute(BlockJobSetSpeed { device: name.to_owned(), speed }).await?;
        Ok(())
    }

    /// Tells subscribers how a job stands.
    fn publish_block_job(&self, state: &State, job: &BlockJob, status: BlockJobStatus) {
        let disk = state.live.as_ref().and_then(|live| disk_named(live, &job.disk));
        let path = disk.and_then(|disk| match &disk.storage.place {
            Place::File(path) | Place::Block(path) | Place::Dir(path) => path.as_deref().map(str::to_owned),
            _ => None,
        });
        let (target, kind) = (job.disk.to_string(), kind(&job.work));
        self.publish(state, DomainEvent::BlockJob { path, target, kind, status });
    }

    /// Changes what is known of a job, and writes it down.
    fn change_block_job(&self, object: &DomainObject, name: &str, change: impl FnOnce(&mut BlockJob)) {
        let change = |state: &mut State| {
            if let Some(job) = Arc::make_mut(&mut state.block_jobs).get_mut(name) {
                change(job);
            }
        };
        object.observe(change, |state, ()| self.save_status(state));
    }
}

/// Clients take a job for done when both are the same.
fn progress(told: &Told) -> (u64, u64) {
    match (told.offset, told.len, told.ready) {
        (0, 0, Some(ready)) => (u64::from(ready), 1),
        (offset, len, Some(false)) if offset == len && offset > 0 => (offset - 1, len),
        (offset, len, _) => (offset, len),
    }
}

fn kind(work: &Work) -> BlockJobKind {
    match work {
        Work::Pull { .. } => BlockJobKind::Pull,
        Work::Copy { .. } => BlockJobKind::Copy,
        Work::Commit { above: Some(_), .. } => BlockJobKind::Commit,
        Work::Commit { above: None, .. } => BlockJobKind::ActiveCommit,
        Work::Backup { .. } => BlockJobKind::Backup,
    }
}

/// Bytes a second, from MiB a second unless a client says that they are.
pub(super) fn speed(bandwidth: u64, is_bytes: bool) -> Result<u64> {
    const MAX_MIB: u64 = i64::MAX.cast_unsigned() >> 20;
    match is_bytes {
        true => Ok(bandwidth),
        false if bandwidth > MAX_MIB => {
            Err(Error::overflow(format!("bandwidth must be less than {MAX_MIB}")))
        }
        false => Ok(bandwidth << 20),
    }
}

pub(super) fn disk_of<'a>(live: &'a Domain, name: &str) -> Result<&'a Disk> {
    disk_named(live, name).ok_or_else(|| Error::invalid_arg(format!("disk '{name}' not found in domain")))
}

fn job_of<'a>(jobs: &'a BlockJobs, disk: &Disk) -> Result<(&'a str, &'a BlockJob)> {
    of_disk(jobs, disk.name())
        .ok_or_else(|| Error::invalid_arg(format!("disk {} does not have an active block job", disk.name())))
}

/// Refuses a disk that is being worked on.
pub(super) fn check_idle(state: &State, disk: &Disk) -> Result<()> {
    let sentence = || format!("disk '{}' already in active block job", disk.name());
    if disk.mirror.is_some() {
        return Err(Error::block_copy_active(sentence()));
    }
    match of_disk(&state.block_jobs, disk.name()) {
        Some((_, job)) if job.is_running() => Err(Error::operation_unsupported(sentence())),
        _ => Ok(()),
    }
}

/// Refuses a guest of which any disk is being worked on.
pub(super) fn check_all_idle(state: &State) -> Result<()> {
    match is_any_busy(state) {
        true => Err(Error::operation_invalid("domain has active block job")),
        false => Ok(()),
    }
}

pub(super) fn is_any_busy(state: &State) -> bool {
    state.block_jobs.values().any(BlockJob::is_running)
}

pub(super) fn check_supported(disk: &Disk) -> Result<()> {
    let name = disk.name();
    let refused = |what: &str| {
        Err(Error::operation_unsupported(format!("block jobs are not supported on {what} '{name}'")))
    };
    if disk.target.bus == Some(DiskBus::Sd) {
        let sentence = format!("block jobs are not supported on disk '{name}' using bus 'sd'");
        return Err(Error::operation_unsupported(sentence));
    }
    match &disk.storage.place {
        _ if disk.transient.is_some() => refused("transient disk"),
        Place::VhostUser(_) => refused("vhostuser disk"),
        _ => Ok(()),
    }
}
