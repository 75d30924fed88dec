//! Images of an external snapshot that is deleted: committed into the ones below, all disks together.
//!
//! ```text
//!  parent ◄── image ◄── (guest or next image)      parent's disk marked ─► commit ─► ready or pending ─► takes effect
//! ```
//!
//! A domain that is off is run for it, without ever letting its vCPUs go.

use std::sync::Arc;
use std::time::Duration;

use super::offline::remove;
use crate::conf::devices::{Disk, Place};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{KeptDomain, Snapshot, SnapshotDisk};
use crate::drivers::domain::Domains;
use crate::drivers::domain::block_jobs::{Commit, Concluded, disk_of};
use crate::drivers::domain::flags::BlockCommitFlags;
use crate::drivers::domain::reads::{definition, persistent, running};
use crate::drivers::domain::start::{Beginning, Plan, Variables};
use crate::error::{Error, Origin, Result};
use crate::qemu::block::Layers;
use crate::qemu::block_jobs::{Phase, Work};
use crate::qemu::job::{self, AsyncJob, DomainObject, Ending, Live, State};
use crate::qemu::monitor::{BlockJobCancel, JobFinalize, JobInfo, QueryJobs};
use crate::qemu::process::How;
use crate::qemu::run_state::Paused;

/// How long nothing may be reported before QEMU is asked.
const POLL: Duration = Duration::from_millis(500);

/// An image that is no more.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub disk: Box<str>,
    pub place: Place,
}

/// One disk's part.
struct Part {
    disk: Box<str>,
    /// The snapshot above it that has an image of this disk, by name.
    parent: Option<Box<str>>,
    top: usize,
    place: Place,
    below: (Box<str>, &'static str),
}

impl Domains {
    pub(super) async fn delete_outside(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Vec<Merged>> {
        let state = job.state();
        let name = snapshot.name();
        let marked = snapshot.disks.iter().find(|disk| disk.is_external() && disk.is_deleted);
        if let Some(disk) = marked {
            let sentence =
                format!("snapshot disk '{}' was target of not completed snapshot delete", disk.name);
            return Err(Error::operation_invalid(sentence));
        }
        if !state.snapshots.is_current(name) && state.snapshots.is_leaf(name) {
            remove(unused_images(&state, snapshot)?).await;
            self.remove_memory(snapshot).await;
            return Ok(Vec::new());
        }
        check_parents(&state, snapshot)?;
        if state.is_active() {
            return self.merge(job, snapshot).await;
        }
        let own = Arc::clone(persistent(&state)?);
        let beginning = Beginning::Loaded(Paused::StartingUp);
        let variables = Variables::Kept;
        self.run(job, Plan { definition: &own, owner: None, beginning, exact_cpu: None, variables }).await?;
        let merged = self.merge(job, snapshot).await;
        let ended = job.stop(How::Patient, Ending::Shutdown).await;
        let merged = merged?;
        ended?;
        Ok(merged)
    }

    async fn merge(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Vec<Merged>> {
        let state = job.state();
        let mut parts = Vec::new();
        for disk in snapshot.disks.iter().filter(|disk| disk.is_external()) {
            parts.push(part(&state, snapshot, disk)?);
        }
        let note = |state: &mut State| {
            if let Some(underway) = &mut state.operation {
                underway.deletes_snapshot = true;
            }
        };
        job.update_then(note, |state, ()| self.save_status(state));
        self.mark(job, &parts, true).await?;
        let mut names = Vec::new();
        let merged = async {
            for part in &parts {
                names.push(self.begin_part(job, part).await?);
            }
            for (name, part) in names.iter().zip(&parts) {
                let until =
                    |told: &JobInfo| matches!(told.status.as_str(), "ready" | "pending" | "concluded");
                let told = wait(job, name, until).await?;
                if let Some(error) = told.and_then(|told| told.error) {
                    let disk = &part.disk;
                    let sentence =
                        format!("block commit failed while deleting disk '{disk}' snapshot: '{error}'");
                    return Err(Error::internal_error(sentence));
                }
            }
            for (name, part) in names.iter().zip(&parts) {
                self.finish_part(job, name, part).await?;
            }
            Ok(())
        };
        let merged: Result<()> = merged.await;
        if let Err(error) = merged {
            self.call_off(job, &names).await;
            return Err(error);
        }
        self.rebase_others(&state, snapshot, &parts).await;
        self.mark(job, &parts, false).await?;
        self.remove_memory(snapshot).await;
        Ok(parts.into_iter().map(|part| Merged { disk: part.disk, place: part.place }).collect())
    }

    async fn begin_part(self: &Arc<Self>, job: &mut AsyncJob<job::Snapshot>, part: &Part) -> Result<String> {
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let live = nested.live()?;
        let disk = disk_of(running(live.state())?, &part.disk)?;
        let mut flags = BlockCommitFlags::DELETE;
        flags.set(BlockCommitFlags::ACTIVE, part.top == 0);
        let commit = Commit { top: part.top, base: part.top + 1, speed: 0, finalizes: part.top == 0, flags };
        self.begin_commit(&object, &live, disk, commit).await
    }

    async fn finish_part(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        name: &str,
        part: &Part,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        {
            let nested = job.nested().await?;
            let live = nested.live()?;
            live.monitor().events_handled().await;
            match part.top {
                0 => {
                    let disk = disk_of(running(live.state())?, &part.disk)?;
                    self.pivot(&object, &live, name, disk).await?;
                }
                _ => drop(live.monitor().execute(JobFinalize { id: name.to_owned() }).await?),
            }
        }
        wait(job, name, |told| told.status == "concluded").await?;
        let nested = job.nested().await?;
        let live = nested.live()?;
        match self.conclude(&object, &live, name).await? {
            Some(Concluded { phase: Phase::Failed, error }) => {
                let (disk, error) = (&part.disk, error.unwrap_or_default());
                Err(Error::internal_error(format!(
                    "finishing block job failed while deleting disk '{disk}' snapshot: '{error}'"
                )))
            }
            _ => Ok(()),
        }
    }

    async fn call_off(self: &Arc<Self>, job: &mut AsyncJob<job::Snapshot>, names: &[String]) {
        let object = Arc::clone(job.object());
        for name in names {
            let ended = async {
                let nested = job.nested().await?;
                self.cancel_commit(&object, &nested.live()?, name).await
            };
            if let Err(error) = ended.await {
                tracing::warn!(job = name, %error, "a commit was not called off");
            }
        }
    }

    async fn cancel_commit(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        name: &str,
    ) -> Result<()> {
        // It may have ended.
        let _ = live.monitor().execute(BlockJobCancel { device: name.to_owned(), force: true }).await;
        self.await_block_job(object, live, name).await.map(drop)
    }

    /// Ends what the last daemon was merging. Images that are still what the snapshots take them for can be merged
    /// another time.
    pub(in crate::drivers::domain) async fn give_up_delete(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
    ) -> Result<()> {
        for (name, job) in object.state().block_jobs.iter() {
            if matches!(job.work, Work::Commit { .. }) {
                self.cancel_commit(object, live, name).await?;
            }
        }
        let state = object.state();
        let is_whole = |parent: &Snapshot, disk: &SnapshotDisk| {
            state.snapshots.descendants(Some(parent.name())).into_iter().any(|below| {
                let own = below.disks.iter().find(|it| it.name == disk.name && it.is_external());
                own.and_then(|own| part(&state, below, own).ok())
                    .is_some_and(|part| part.parent.as_deref() == Some(parent.name()))
            })
        };
        let mut changed = Vec::new();
        for snapshot in state.snapshots.descendants(None) {
            let mut edited = Snapshot::clone(snapshot);
            for disk in edited.disks.iter_mut().filter(|disk| disk.is_deleted) {
                disk.is_deleted = !is_whole(snapshot, disk);
            }
            if edited != **snapshot {
                changed.push(edited);
            }
        }
        self.keep_changed(object, changed).await
    }

    /// Notes with the parents that what they have is being changed, or no more.
    async fn mark(
        self: &Arc<Self>,
        job: &AsyncJob<job::Snapshot>,
        parts: &[Part],
        is_deleted: bool,
    ) -> Result<()> {
        for part in parts {
            let state = job.state();
            let parent = part.parent.as_deref().and_then(|name| state.snapshots.get(name));
            let Some(parent) = parent else { continue };
            let mut edited = Snapshot::clone(parent);
            for disk in edited.disks.iter_mut().filter(|disk| disk.name == part.disk) {
                disk.is_deleted = is_deleted;
            }
            self.keep_changed(&Arc::clone(job.object()), vec![edited]).await?;
        }
        Ok(())
    }

    /// Images of snapshots that are not what the guest runs on may stand on the one that is gone.
    async fn rebase_others(&self, state: &State, snapshot: &Snapshot, parts: &[Part]) {
        let current = state.snapshots.current().map(|current| current.name().to_owned()).unwrap_or_default();
        for other in state.snapshots.descendants(Some(snapshot.name())) {
            if other.name() == current || state.snapshots.is_below(&current, other.name()) {
                continue;
            }
            let Some(KeptDomain(then)) = &other.domain else { continue };
            for part in parts {
                let disk = then.devices.disks.iter().find(|disk| *disk.name() == *part.disk);
                let stands =
                    |disk: &&Disk| disk.storage.layer().is_some_and(|it| it.storage.place == part.place);
                let Some(disk) = disk.filter(stands) else { continue };
                let (Some(path), (below, format)) = (disk.storage.path(), &part.below) else { continue };
                let own = disk.format();
                let arguments = ["rebase", "-u", "-F", format, "-f", own.as_str(), "-b", below, path];
                if let Err(error) = self.qemu_img(&arguments).await {
                    tracing::warn!(path, %error, "an image stands on one that is no more");
                }
            }
        }
    }

    async fn remove_memory(&self, snapshot: &Snapshot) {
        remove(snapshot.memory_file().map(Into::into).into_iter().collect()).await;
    }
}

/// What a leaf was made of that is not current: nothing stands on the images that it froze.
fn unused_images(state: &State, snapshot: &Snapshot) -> Result<Vec<std::path::PathBuf>> {
    let mut images = Vec::new();
    for disk in snapshot.disks.iter().filter(|disk| disk.is_external()) {
        let then = then_of(snapshot, disk)?;
        let parent = parent_of(state, snapshot, disk);
        if parent.is_some_and(|parent| parent.is_external()) {
            images.extend(then.storage.path().map(Into::into));
        }
    }
    Ok(images)
}

fn then_of<'a>(snapshot: &'a Snapshot, disk: &SnapshotDisk) -> Result<&'a Disk> {
    let then = snapshot.domain.as_ref().map(|it| &it.0.devices.disks);
    let found = then.and_then(|disks| disks.iter().find(|it| *it.name() == *disk.name));
    found.ok_or_else(|| {
        Error::operation_failed(format!("failed to find disk '{}' in snapshot VM XML", disk.name))
    })
}

/// The next snapshot above that has this disk in it.
fn parent_of<'a>(state: &'a State, snapshot: &Snapshot, disk: &SnapshotDisk) -> Option<&'a Arc<Snapshot>> {
    let takes_part = |it: &SnapshotDisk| {
        it.name == disk.name && it.location != Some(crate::conf::devices::SnapshotLocation::No)
    };
    let above = std::iter::successors(state.snapshots.parent(snapshot), |it| state.snapshots.parent(it));
    above.take(state.snapshots.len()).find(|above| above.disks.iter().any(takes_part))
}

fn check_parents(state: &State, snapshot: &Snapshot) -> Result<()> {
    for disk in snapshot.disks.iter().filter(|disk| disk.is_external()) {
        then_of(snapshot, disk)?;
        if parent_of(state, snapshot, disk).is_some_and(|parent| !parent.is_external()) {
            return Err(Error::operation_unsupported(
                "deleting external snapshot that has internal snapshot as parent not supported",
            ));
        }
    }
    Ok(())
}

fn part(state: &State, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<Part> {
    let own = definition(state)?;
    let live = disk_of(own, &disk.name)?;
    let layers = Layers::of(live);
    let wanted = image_of(state, own, snapshot, disk);
    let place = |at: usize| layers.images().get(at).map(|layer| &layer.storage.place);
    let top = (0..layers.images().len()).find(|at| place(*at) == Some(&wanted)).ok_or_else(|| {
        Error::invalid_arg("could not find base disk source in disk source chain")
            .from_origin(Origin::STORAGE)
    })?;
    let Some(below) = layers.images().get(top + 1) else {
        return Err(Error::operation_failed("failed to find parent disk source in backing chain"));
    };
    if below.storage.place != then_of(snapshot, disk)?.storage.place {
        let sentence = "snapshot VM disk source and parent disk source are not the same";
        return Err(Error::operation_failed(sentence));
    }
    Ok(Part {
        disk: disk.name.clone(),
        parent: parent_of(state, snapshot, disk).map(|parent| parent.name().into()),
        top,
        place: wanted,
        below: (below.storage.path().unwrap_or_default().into(), below.format.kind.as_str()),
    })
}

/// The image that was written to after the snapshot.
fn image_of(state: &State, own: &Domain, snapshot: &Snapshot, disk: &SnapshotDisk) -> Place {
    let of = |definition: &Domain| {
        let found = definition.devices.disks.iter().find(|it| *it.name() == *disk.name);
        found.map(|found| found.storage.place.clone())
    };
    let child = state.snapshots.children(Some(snapshot.name())).next();
    let next = match child {
        Some(child) => child.domain.as_ref().and_then(|it| of(&it.0)),
        None if state.snapshots.is_current(snapshot.name()) => of(own),
        None => None,
    };
    next.unwrap_or_else(|| disk.storage.place.clone())
}

/// Returns when a job is as wanted, or is no more; others may ask the guest meanwhile.
async fn wait(
    job: &mut AsyncJob<job::Snapshot>,
    name: &str,
    wanted: impl Fn(&JobInfo) -> bool,
) -> Result<Option<JobInfo>> {
    loop {
        let (told, mut progress) = {
            let nested = job.nested().await?;
            let live = nested.live()?;
            let progress = live.monitor().progress();
            (live.monitor().execute(QueryJobs {}).await?, progress)
        };
        match told.into_iter().find(|told| told.id == name) {
            Some(told) if !wanted(&told) => {}
            found => return Ok(found),
        }
        // A change that was missed is found by asking.
        let _ = tokio::time::timeout(POLL, progress.changed()).await;
    }
}
