//! Ends of jobs: as a client wants, or of themselves.

use std::sync::Arc;

use serde_json::json;

use super::begin::{current_disk, with_disk};
use super::image::standing_on;
use super::{disk_of, job_of};
use crate::conf::devices::{Devices, Disk, Mirror, MirrorState, Place, Storage};
use crate::conf::domain::Domain;
use crate::drivers::domain::event::BlockJobStatus;
use crate::drivers::domain::flags::{BlockCopyFlags, BlockJobAbortFlags, CallFlags};
use crate::drivers::domain::reads::running;
use crate::drivers::domain::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::block::{Layers, Nodes, as_defined};
use crate::qemu::block_jobs::{BlockJob, Effect, Phase, Work, effect, wait_for};
use crate::qemu::hotplug::{self, Opened};
use crate::qemu::job::{DomainHandle, DomainObject, JobError, Live, Modify, State};
use crate::qemu::monitor::{
    BlockJobCancel, JobComplete, JobDismiss, QueryBlockGraph, QueryJobs, Transaction,
};

/// Kept by QEMU from the moment of the pivot on, for bitmaps that are to go with the disk.
const PIVOT_BITMAP: &str = "libvirt-tmp-activewrite";

/// How a job went.
#[derive(Debug)]
pub(in crate::drivers::domain) struct Concluded {
    pub phase: Phase,
    pub error: Option<String>,
}

impl Domains {
    /// `virDomainBlockJobAbort`
    pub async fn block_job_abort(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        disk: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = BlockJobAbortFlags::accept(flags)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let disk = disk_of(running(live.state())?, disk)?;
        let (name, block_job) = job_of(&live.state().block_jobs, disk)?;
        if block_job.is_ending() {
            let sentence = format!("block job on disk '{}' is still being ended", disk.name());
            return Err(Error::operation_invalid(sentence));
        }
        let pivots = flags.contains(BlockJobAbortFlags::PIVOT);
        match pivots {
            true => self.pivot(&object, &live, name, disk).await?,
            false => {
                let cancel = BlockJobCancel { device: name.to_owned(), force: false };
                let refused =
                    |error: crate::qemu::monitor::MonitorError| match error.is_class("DeviceNotActive") {
                        true => Error::operation_invalid(format!("No active block job '{name}'")),
                        false => error.into(),
                    };
                live.monitor().execute(cancel).await.map_err(refused)?;
                self.note_ending(&object, name, (Phase::Aborting, MirrorState::Abort));
            }
        }
        if flags.contains(BlockJobAbortFlags::ASYNC) {
            return Ok(());
        }
        let ended = self.await_block_job(&object, &live, name).await?;
        match ended {
            Some(Concluded { phase: Phase::Failed, error }) if pivots => {
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                Err(Error::operation_failed(format!("block job '{name}' failed while pivoting{why}")))
            }
            _ => Ok(()),
        }
    }

    /// Returns when a job has ended and taken effect. Nothing if somebody else has seen to it.
    pub(in crate::drivers::domain) async fn await_block_job(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        name: &str,
    ) -> Result<Option<Concluded>> {
        wait_for(live.monitor(), name, |job| job.status == "concluded").await?;
        // Subscribers hear that it is ready before they hear that it is over.
        live.monitor().events_handled().await;
        self.conclude(object, live, name).await
    }

    /// Has a disk stand on what it was copied or committed to, as soon as QEMU is done.
    pub(in crate::drivers::domain) async fn pivot(
        &self,
        object: &DomainObject,
        live: &Live<'_>,
        name: &str,
        disk: &Disk,
    ) -> Result<()> {
        let state = object.state();
        let Some(job) = state.block_jobs.get(name) else { return Ok(()) };
        if job.phase != Phase::Ready {
            return Err(Error::block_copy_active(format!("block job '{name}' not ready for pivot yet")));
        }
        let disk = current_disk(&state, disk.name())?;
        let Some(Mirror { format, storage, .. }) = disk.mirror.as_deref() else {
            let kind = job.work.name();
            return Err(Error::operation_invalid(format!("job type '{kind}' does not support pivot")));
        };
        let nodes = Nodes::of(storage, format.kind).map(|nodes| nodes.top).unwrap_or_default();
        let late = BlockCopyFlags::SHALLOW | BlockCopyFlags::REUSE_EXT;
        if matches!(job.work, Work::Copy { .. })
            && BlockCopyFlags::from_bits_retain(job.flags).contains(late)
            && storage.layer().is_some()
        {
            self.open_below(live, &disk, storage, &nodes).await?;
        }
        let bitmap = json!({ "type": "block-dirty-bitmap-add",
            "data": { "node": nodes, "name": PIVOT_BITMAP, "persistent": false, "disabled": false } });
        // Images of some formats and sizes have none.
        let _ = live.monitor().execute(Transaction { actions: vec![bitmap] }).await;
        // QEMU may write to the other image before its reply is here.
        self.note_ending(object, name, (Phase::Pivoting, MirrorState::Pivot));
        let complete = JobComplete { id: name.to_owned() };
        live.monitor().execute(complete).await.map(drop).map_err(|error| {
            self.note_ending(object, name, (Phase::Ready, MirrorState::Ready));
            error.into()
        })
    }

    /// Opens what is below a copy, and puts the copy on it.
    async fn open_below(&self, live: &Live<'_>, disk: &Disk, storage: &Storage, overlay: &str) -> Result<()> {
        let Some(below) = storage.layer() else { return Ok(()) };
        let view = standing_on(disk, Layers::from_top(below.format.clone(), below.storage.clone()));
        let steps = self.image_steps(live, &view).await?;
        hotplug::plug(live.monitor(), &steps, Opened::default()).await?;
        let node = Nodes::of(&below.storage, below.format.kind).map(|nodes| nodes.top);
        let snapshot = json!({ "type": "blockdev-snapshot", "data": { "node": node, "overlay": overlay } });
        let installed = live.monitor().execute(Transaction { actions: vec![snapshot] }).await;
        if installed.is_err() {
            hotplug::clear_away(live.monitor(), &steps).await;
        }
        Ok(installed.map(drop)?)
    }

    fn note_ending(&self, object: &DomainObject, name: &str, (phase, mirror): (Phase, MirrorState)) {
        let note = |state: &mut State| {
            let Some(job) = Arc::make_mut(&mut state.block_jobs).get_mut(name) else { return };
            job.phase = phase;
            let target = job.disk.clone();
            with_disk(state, &target, |disk| {
                if let Some(found) = &mut disk.mirror {
                    found.state = Some(mirror);
                }
            });
        };
        object.observe(note, |state, ()| self.save_status(state));
    }

    /// QEMU reports how a job stands.
    pub(in crate::drivers::domain) fn note_job_status(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        name: &str,
        status: &str,
    ) {
        if !object.peek(|state| state.block_jobs.contains_key(name)) {
            return;
        }
        match status {
            "ready" => self.note_job_ready(object, name),
            "concluded" => {
                let (domains, object, name) = (Arc::clone(self), Arc::clone(object), name.to_owned());
                tokio::spawn(async move { domains.conclude_later(&object, &name).await });
            }
            _ => {}
        }
    }

    pub(super) fn note_job_ready(&self, object: &DomainObject, name: &str) {
        let note = |state: &mut State| {
            let job = Arc::make_mut(&mut state.block_jobs).get_mut(name);
            // QEMU may come back to it on its way to the end.
            let job = job.filter(|job| matches!(job.phase, Phase::New | Phase::Running))?;
            job.phase = Phase::Ready;
            let job = job.clone();
            with_disk(state, &job.disk, |disk| {
                if let Some(mirror) = &mut disk.mirror {
                    mirror.state = Some(MirrorState::Ready);
                }
            });
            Some(job)
        };
        object.observe(note, |state, job| {
            if let Some(job) = job {
                self.publish_block_job(state, job, BlockJobStatus::Ready);
                self.save_status(state);
            }
        });
    }

    /// Sees to a job that has ended of itself, when nobody else holds the guest.
    async fn conclude_later(self: Arc<Self>, object: &Arc<DomainObject>, name: &str) {
        while object.peek(|state| state.block_jobs.contains_key(name)) {
            let mut domain = DomainHandle::new(Arc::clone(object));
            let concluded = match domain.begin::<Modify>().await {
                Ok(job) => match job.live() {
                    Ok(live) => self.conclude(object, &live, name).await.map(drop),
                    Err(error) => Err(error.into()),
                },
                // Who holds the guest for so long may be the one who waits for the job.
                Err(JobError::Timeout(_)) => continue,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = concluded {
                tracing::warn!(domain = %object.state().name, job = name, %error, "a block job was not seen to its end");
            }
            return;
        }
    }

    /// Has a job that has ended take effect. Nothing if it has not, or if somebody else has seen to it.
    pub(in crate::drivers::domain) async fn conclude(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        name: &str,
    ) -> Result<Option<Concluded>> {
        let Some(mut job) = object.state().block_jobs.get(name).cloned() else { return Ok(None) };
        let told = live.monitor().execute(QueryJobs {}).await?.into_iter().find(|told| told.id == name);
        if told.as_ref().is_some_and(|told| told.status != "concluded") {
            return Ok(None);
        }
        let error = told.as_ref().and_then(|told| told.error.clone());
        let mut success = told.is_some() && error.is_none();
        if let Some(pivoted) = has_pivoted(&object.state(), live, &job).await {
            success = pivoted || (success && job.phase != Phase::Pivoting);
            if pivoted {
                job.phase = Phase::Pivoting;
            }
        }
        let phase = match (job.phase, success) {
            (Phase::Aborting, _) => Phase::Canceled,
            (_, true) => Phase::Completed,
            (_, false) => Phase::Failed,
        };
        match job.work {
            Work::Backup { .. } => {
                dismiss(live, name).await;
                self.end_of_backup(object, live, (name, &job), (phase, told.as_ref())).await;
                object.observe(|_| (), |state, ()| self.publish_block_job(state, &job, status_of(phase)));
            }
            _ => self.take_effect(object, live, (name, &job), (phase, success)).await?,
        }
        Ok(Some(Concluded { phase, error }))
    }

    async fn take_effect(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        (name, job): (&str, &BlockJob),
        (phase, success): (Phase, bool),
    ) -> Result<()> {
        let before = current_disk(&object.state(), &job.disk)?;
        let Effect { disk, removed, deletes } = effect(&before, job, success);
        let removed = removed.map(|removed| standing_on(&before, removed));
        let steps = match &removed {
            Some(removed) => self.image_steps(live, removed).await?,
            None => Vec::new(),
        };
        if success {
            self.follow_in_definition(object, (&before, &disk)).await;
        }
        let moved = disk.storage.place != before.storage.place;
        let mut changed = disk.clone();
        let change = |state: &mut State| {
            with_disk(state, &job.disk, |now| std::mem::swap(now, &mut changed));
            Arc::make_mut(&mut state.block_jobs).remove(name);
        };
        object.observe(change, |state, ()| {
            self.publish_block_job(state, job, status_of(phase));
            self.save_status(state);
        });
        // As long as QEMU has it, the next daemon finds out what has not been written down yet.
        dismiss(live, name).await;
        hotplug::clear_away(live.monitor(), &steps).await;
        // A copy was given to QEMU's user when it began.
        if moved && matches!(job.work, Work::Commit { .. }) {
            self.hand_on(object, &disk).await;
        }
        if let Some(removed) = removed {
            let devices = Devices { disks: vec![removed.clone()], ..Devices::default() };
            self.take_back_devices(&object.state(), devices).await;
            if deletes {
                delete(&removed).await;
            }
        }
        Ok(())
    }

    /// An image that was below others is the guest's own from now on.
    async fn hand_on(self: &Arc<Self>, object: &DomainObject, disk: &Disk) {
        let state = object.state();
        let Ok(live) = running(&state) else { return };
        let mut view = Domain::clone(live);
        view.devices = Devices { disks: vec![disk.clone()], ..Devices::default() };
        let (domains, taken) = (Arc::clone(self), Arc::clone(&state));
        let given = blocking(move || {
            domains.give_devices(&taken, &view)?.keep();
            Ok(())
        });
        if let Err(error) = given.await {
            tracing::warn!(domain = %state.name, %error, "an image stays as it is on the host");
        }
    }

    /// The guest's own image is below another from now on, where others may stand on it, too: nobody waits to have it
    /// back.
    pub(in crate::drivers::domain) async fn hand_down(
        self: &Arc<Self>,
        object: &DomainObject,
        before: &Disk,
    ) {
        let state = object.state();
        let Ok(live) = running(&state) else { return };
        let mut own = Layers::of(before);
        own.remove(1..own.images().len());
        let own = Devices { disks: vec![standing_on(before, own)], ..Devices::default() };
        self.take_back_devices(&state, own).await;
        let mut view = Domain::clone(live);
        let shared = Disk { readonly: true, ..before.clone() };
        view.devices = Devices { disks: vec![shared], ..Devices::default() };
        let (domains, taken) = (Arc::clone(self), Arc::clone(&state));
        let given = blocking(move || {
            domains.give_devices(&taken, &view)?.keep();
            Ok(())
        });
        if let Err(error) = given.await {
            tracing::warn!(domain = %state.name, %error, "QEMU may not reach an image below another");
        }
    }

    /// The definition for the next start names the image that the disk now stands on.
    async fn follow_in_definition(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        (before, now): (&Disk, &Disk),
    ) {
        if before.storage.layers().eq(now.storage.layers()) && before.storage.place == now.storage.place {
            return;
        }
        let (before, now) = (before.clone(), now.clone());
        let edit = move |definition: &mut Domain| {
            let stands = |place: &Place| place == &before.storage.place;
            let mut disks = definition.devices.disks.iter_mut();
            let Some(disk) = disks.find(|disk| disk.name() == now.name() && stands(&disk.storage.place))
            else {
                return false;
            };
            if now.storage.place == before.storage.place {
                return disk.storage.backing.take().is_some();
            }
            disk.storage = as_defined(&now.storage);
            disk.driver.format = now.driver.format;
            true
        };
        if let Err(error) = self.amend_definition(object, edit).await {
            tracing::error!(%error, "the next start will have the disk's older image");
        }
    }
}

/// It may be gone already.
async fn dismiss(live: &Live<'_>, name: &str) {
    let _ = live.monitor().execute(JobDismiss { id: name.to_owned() }).await;
}

/// Whether a disk stands on what it was copied or committed to, by QEMU's own account. Nothing where that was never
/// to be, or QEMU does not say.
async fn has_pivoted(state: &State, live: &Live<'_>, job: &BlockJob) -> Option<bool> {
    let disk = current_disk(state, &job.disk).ok()?;
    let mirror = disk.mirror.as_deref()?;
    let own = Nodes::of(&disk.storage, disk.format())?.top;
    let other = Nodes::of(&mirror.storage, mirror.format.kind)?.top;
    let graph = live.monitor().execute(QueryBlockGraph {}).await.ok()?;
    graph.first_below(disk.info.alias.as_deref()?, &[&own, &other]).map(|found| found == other)
}

/// Deletes images that nothing stands on any more.
async fn delete(removed: &Disk) {
    let files = Layers::of(removed);
    let files: Vec<_> = files.images().iter().map(|layer| layer.storage.place.clone()).collect();
    for place in files {
        if let Place::File(Some(path)) = place
            && let Err(error) = tokio::fs::remove_file(&*path).await
        {
            tracing::warn!(%path, %error, "cannot remove a committed image");
        }
    }
}

/// What subscribers hear of a job that has come to this.
fn status_of(phase: Phase) -> BlockJobStatus {
    match phase {
        Phase::Completed => BlockJobStatus::Completed,
        Phase::Canceled => BlockJobStatus::Canceled,
        _ => BlockJobStatus::Failed,
    }
}
