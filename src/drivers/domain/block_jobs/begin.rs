//! Pulling into the top of a chain, committing into an image below.

use std::sync::Arc;

use super::{chain, check_idle, check_supported, disk_of, speed};
use crate::conf::devices::{Disk, Mirror, MirrorJob, Storage};
use crate::drivers::domain::flags::{BlockCommitFlags, BlockPullFlags, BlockRebaseFlags, CallFlags};
use crate::drivers::domain::reads::{persistent, running};
use crate::drivers::domain::usage::disk_named;
use crate::drivers::domain::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::block::{Layers, Nodes, device_node};
use crate::qemu::block_jobs::{BlockJob, Phase, Work};
use crate::qemu::job::{DomainHandle, DomainObject, Live, Modify, State};
use crate::qemu::monitor::{BlockCommit, BlockStream, Command};

/// A job that is about to begin.
pub(in crate::drivers::domain) struct Begun {
    pub name: String,
    pub job: BlockJob,
    /// What the disk may stand on afterwards.
    pub mirror: Option<Mirror>,
    /// The highest number of an image, if there are new ones.
    pub last_node: Option<u32>,
}

/// What is committed where, by positions.
#[derive(Debug, Clone, Copy)]
pub(in crate::drivers::domain) struct Commit {
    pub top: usize,
    pub base: usize,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
    /// Whether it takes effect of itself.
    pub finalizes: bool,
    pub flags: BlockCommitFlags,
}

impl Domains {
    /// `virDomainBlockPull`
    pub async fn block_pull(
        &self,
        domain: DomainHandle,
        disk: &str,
        bandwidth: u64,
        flags: u32,
    ) -> Result<()> {
        BlockPullFlags::accept(flags)?;
        self.pull(domain, disk, None, bandwidth, BlockRebaseFlags::from_bits_retain(flags)).await
    }

    pub(super) async fn pull(
        &self,
        mut domain: DomainHandle,
        disk: &str,
        base: Option<&str>,
        bandwidth: u64,
        flags: BlockRebaseFlags,
    ) -> Result<()> {
        if flags.contains(BlockRebaseFlags::RELATIVE) && base.is_none() {
            let sentence = "flag VIR_DOMAIN_BLOCK_REBASE_RELATIVE is valid only with non-null base";
            return Err(Error::invalid_arg(sentence));
        }
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let disk = disk_of(running(live.state())?, disk)?;
        check_idle(live.state(), disk)?;
        check_supported(disk)?;
        let layers = Layers::of(disk);
        let base = base.map(|base| chain::find(disk, &layers, Some(base), Some(0))).transpose()?;
        let backing_file = match base {
            Some(base) if flags.contains(BlockRebaseFlags::RELATIVE) => {
                Some(relative(&layers, 1, base).await?)
            }
            Some(base) => chain::backing_name(&layers, base),
            None => None,
        };
        let speed = speed(bandwidth, flags.contains(BlockRebaseFlags::BANDWIDTH_BYTES))?;
        let top = node(&layers, 0)?;
        let name = format!("pull-{}-{top}", disk.name());
        let base_node = base.map(|base| node(&layers, base)).transpose()?;
        let command = BlockStream {
            device: top,
            job_id: name.clone(),
            speed: (speed > 0).then_some(speed),
            base_node,
            backing_file,
            auto_finalize: true,
            auto_dismiss: false,
            backing_mask_protocol: true,
        };
        let work = Work::Pull { base: base.and_then(|base| layers.images().get(base)?.storage.index) };
        let job = BlockJob { disk: disk.name().into(), work, phase: Phase::New, flags: flags.bits() };
        let begun = Begun { name, job, mirror: None, last_node: None };
        self.begin_block_job(&object, &live, begun, command).await
    }

    /// `virDomainBlockCommit`
    pub async fn block_commit(
        &self,
        mut domain: DomainHandle,
        disk: &str,
        (base, top): (Option<&str>, Option<&str>),
        bandwidth: u64,
        flags: u32,
    ) -> Result<()> {
        let flags = BlockCommitFlags::accept(flags)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let speed = speed(bandwidth, flags.contains(BlockCommitFlags::BANDWIDTH_BYTES))?;
        // Which images are meant is asked first, also of a guest that does not run.
        let state = job.state();
        let disk = disk_of(running(&state).or_else(|_| persistent(&state))?, disk)?;
        let layers = Layers::of(disk);
        let top = match top {
            Some(top) if top != disk.name() => chain::find(disk, &layers, Some(top), None)?,
            _ => 0,
        };
        let base = match base {
            None if flags.contains(BlockCommitFlags::SHALLOW) => top + 1,
            base => chain::find(disk, &layers, base, Some(top))?,
        };
        let commit = Commit { top, base, speed, finalizes: true, flags };
        let live = job.live()?;
        self.begin_commit(&object, &live, disk, commit).await.map(drop)
    }

    /// Begins to commit; answers the job's name.
    pub(in crate::drivers::domain) async fn begin_commit(
        &self,
        object: &DomainObject,
        live: &Live<'_>,
        disk: &Disk,
        commit: Commit,
    ) -> Result<String> {
        let layers = Layers::of(disk);
        check_commit(live.state(), disk, &layers, commit)?;
        let Commit { top, base, speed, finalizes, flags } = commit;
        let backing_file = match top {
            0 => None,
            _ if flags.contains(BlockCommitFlags::RELATIVE) => Some(relative(&layers, top, base).await?),
            _ => chain::backing_name(&layers, base),
        };
        let top_node = node(&layers, top)?;
        let base_node = node(&layers, base)?;
        let name = format!("commit-{}-{top_node}", disk.name());
        let number = |at: usize| layers.images().get(at).and_then(|layer| layer.storage.index).unwrap_or(0);
        let work = Work::Commit {
            top: number(top),
            base: number(base),
            above: top.checked_sub(1).map(number),
            deletes: flags.contains(BlockCommitFlags::DELETE),
        };
        let mirror = layers.images().get(base).filter(|_| top == 0).map(|layer| Mirror {
            job: MirrorJob::ActiveCommit,
            state: None,
            format: layer.format.clone(),
            storage: Storage { backing: None, ..layer.storage.clone() },
        });
        let command = BlockCommit {
            device: device_node(disk).ok_or_else(|| no_node(disk.name()))?,
            job_id: name.clone(),
            speed: (speed > 0).then_some(speed),
            top_node,
            base_node,
            backing_file,
            auto_finalize: finalizes,
            auto_dismiss: false,
            backing_mask_protocol: true,
        };
        let job = BlockJob { disk: disk.name().into(), work, phase: Phase::New, flags: flags.bits() };
        let begun = Begun { name: name.clone(), job, mirror, last_node: None };
        self.begin_block_job(object, live, begun, command).await?;
        Ok(name)
    }

    /// Notes a job and has QEMU begin it. Its first event may come before the reply.
    pub(in crate::drivers::domain) async fn begin_block_job<C: Command>(
        &self,
        object: &DomainObject,
        live: &Live<'_>,
        begun: Begun,
        command: C,
    ) -> Result<()> {
        let Begun { name, job, mirror, last_node } = begun;
        let target = job.disk.clone();
        self.note_block_job(object, &name, job, mirror, last_node);
        if let Err(error) = live.monitor().execute(command).await {
            let forget = |state: &mut State| {
                Arc::make_mut(&mut state.block_jobs).remove(&*name);
                with_disk(state, &target, |disk| disk.mirror = None);
            };
            object.observe(forget, |state, ()| self.save_status(state));
            return Err(error.into());
        }
        self.change_block_job(object, &name, |job| {
            if job.phase == Phase::New {
                job.phase = Phase::Running;
            }
        });
        Ok(())
    }

    /// Writes down that a job is about to begin.
    pub(in crate::drivers::domain) fn note_block_job(
        &self,
        object: &DomainObject,
        name: &str,
        job: BlockJob,
        mirror: Option<Mirror>,
        last_node: Option<u32>,
    ) {
        let note = |state: &mut State| {
            if let Some(mirror) = mirror {
                with_disk(state, &job.disk, |disk| disk.mirror = Some(Box::new(mirror)));
            }
            last_node.into_iter().for_each(|last_node| state.note_last_node(last_node));
            Arc::make_mut(&mut state.block_jobs).insert(name.into(), job);
        };
        object.observe(note, |state, ()| self.save_status(state));
    }
}

/// Changes a disk of a running guest.
pub(in crate::drivers::domain) fn with_disk(state: &mut State, target: &str, change: impl FnOnce(&mut Disk)) {
    let disks = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.disks);
    if let Some(disk) = disks.into_iter().flatten().find(|disk| disk.name() == target) {
        change(disk);
    }
}

fn check_commit(state: &State, disk: &Disk, layers: &Layers, commit: Commit) -> Result<()> {
    let Commit { top, base, flags, .. } = commit;
    check_supported(disk)?;
    if disk.storage.is_empty() {
        let sentence = format!("disk {} has no source file to be committed", disk.name());
        return Err(Error::config_unsupported(sentence));
    }
    check_idle(state, disk)?;
    let path = |at: usize| layers.images().get(at).and_then(|it| it.storage.path()).unwrap_or("(null)");
    if top == 0 && !flags.contains(BlockCommitFlags::ACTIVE) {
        let sentence = format!("commit of '{}' active layer requires active flag", disk.name());
        return Err(Error::invalid_arg(sentence));
    }
    if top != 0 && flags.contains(BlockCommitFlags::ACTIVE) {
        let sentence = format!("active commit requested but '{}' is not active", path(top));
        return Err(Error::invalid_arg(sentence));
    }
    if top + 1 >= layers.images().len() {
        let sentence = format!("top '{}' in chain for '{}' has no backing file", path(top), path(0));
        return Err(Error::invalid_arg(sentence));
    }
    if flags.contains(BlockCommitFlags::SHALLOW) && base != top + 1 {
        return Err(Error::invalid_arg(format!(
            "base '{}' is not immediately below '{}' in chain for '{}'",
            path(base),
            path(top),
            path(0)
        )));
    }
    Ok(())
}

async fn relative(layers: &Layers, first: usize, last: usize) -> Result<String> {
    let layers = layers.clone();
    blocking(move || chain::relative_name(&layers, first, last)).await
}

fn no_node(disk: &str) -> Error {
    Error::internal_error(format!("disk {disk} has no block node"))
}

/// The node of an image.
pub(super) fn node(layers: &Layers, at: usize) -> Result<String> {
    match layers.nodes(at) {
        Some(Nodes { top, .. }) => Ok(top),
        None => Err(Error::internal_error("disk source has no node number")),
    }
}

/// The disk as it is now.
pub(in crate::drivers::domain) fn current_disk(state: &State, target: &str) -> Result<Disk> {
    let disk = disk_named(running(state)?, target).cloned();
    disk.ok_or_else(|| Error::operation_failed(format!("disk '{target}' is no more")))
}
