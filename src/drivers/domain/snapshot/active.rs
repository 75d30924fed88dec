//! Snapshots of guests that run.
//!
//! ```text
//!  outside: [frozen] ─► [stands still ─► memory to a file] ─► new images, all disks at once ─► [goes on] ─► [thawed]
//!  inside:  stands still ─► QEMU writes disks and memory into the images ─► goes on
//! ```

use std::sync::Arc;

use serde_json::{Value, json};

use super::SnapshotCreateFlags;
use super::offline::overlay;
use crate::conf::devices::{Disk, SnapshotLocation};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{Cookie, Snapshot, SnapshotDisk};
use crate::conf::xml::YesNo;
use crate::drivers::domain::Domains;
use crate::drivers::domain::audit::Exchange;
use crate::drivers::domain::block_jobs::disk_of;
use crate::drivers::domain::block_jobs::image::{Added, Origin, standing_on};
use crate::drivers::domain::checkpoint::add_action;
use crate::drivers::domain::event::{DomainEvent, Lifecycle, Suspended};
use crate::drivers::domain::flags::SaveFlags;
use crate::drivers::domain::reads::running;
use crate::drivers::domain::save::{Request, check_may_stream, settings};
use crate::error::{Error, Result};
use crate::qemu::block::{Layers, Nodes, number_disk};
use crate::qemu::block_jobs::{self, Overlays, RunError};
use crate::qemu::job::{self, Allowed, AsyncJob, Ending, JobSubject, Kind, Live, State};
use crate::qemu::migrate;
use crate::qemu::monitor::{NodeImages, QueryNodeImages, Transaction};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::save_file::Packer;
use crate::util::audit::Outcome;

/// A disk that is about to stand on a new image.
struct Overlay {
    /// As it is to be.
    disk: Disk,
    /// The same without what is below the new image.
    alone: Disk,
    /// What it stands on now, and then.
    node: String,
    overlay: String,
}

impl Domains {
    /// With the disks on new images, and the memory in a file if it is wanted.
    pub(super) async fn snapshot_outside(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &mut Snapshot,
        flags: SnapshotCreateFlags,
        has_manual: bool,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        let frozen = match flags.contains(SnapshotCreateFlags::QUIESCE) {
            true => self.quiesce(&object).await?,
            false => 0,
        };
        let (ran, slept) = match job.state().run {
            RunState::Running(_) => (true, false),
            RunState::PmSuspended(_) => (false, true),
            _ => (false, false),
        };
        let memory = snapshot.memory_location() == Some(SnapshotLocation::External);
        let mut made = self.keep_memory_and_disks(job, snapshot, flags, (memory, ran, has_manual)).await;
        let mut resumes = ran && memory && !has_manual;
        let mut thaws = frozen > 0;
        if made.is_ok() && flags.contains(SnapshotCreateFlags::HALT) {
            made = job.stop(How::Patient, Ending::FromSnapshot).await.map_err(Error::from);
            (resumes, thaws) = (false, false);
        } else if made.is_ok() && memory && slept {
            self.tell(&object, |state| {
                state.run = RunState::Paused(Paused::FromSnapshot);
                vec![DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::FromSnapshot))]
            });
        }
        if resumes && job.state().is_active() && matches!(job.state().run, RunState::Paused(_)) {
            self.let_go_again(job, Running::Unpaused).await;
        }
        if thaws && let Err(error) = self.unquiesce(&object).await {
            made = made.and(Err(error));
        }
        made
    }

    async fn keep_memory_and_disks(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &mut Snapshot,
        flags: SnapshotCreateFlags,
        (memory, ran, has_manual): (bool, bool, bool),
    ) -> Result<()> {
        if ran && (memory || has_manual) {
            match flags.contains(SnapshotCreateFlags::LIVE) {
                // QEMU stops it when all of its memory is written.
                true => job.update(|state| state.pausing = Paused::Snapshot),
                false => drop(self.stop_vcpus(job, Paused::Snapshot).await?),
            }
        }
        let mut file = None;
        if memory {
            file = snapshot.memory_file().map(std::path::PathBuf::from).filter(|path| !path.exists());
            self.keep_memory(job, snapshot, ran && !has_manual).await?;
        }
        let reused = flags.contains(SnapshotCreateFlags::REUSE_EXT);
        let made = self.put_disks_on_overlays(job, &snapshot.disks, reused).await;
        if made.is_err()
            && let Some(file) = file
            && let Err(error) = tokio::fs::remove_file(&file).await
        {
            tracing::warn!(path = %file.display(), %error, "cannot remove a snapshot's memory");
        }
        made
    }

    async fn keep_memory(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &mut Snapshot,
        runs: bool,
    ) -> Result<()> {
        check_may_stream(job).await?;
        job.note(|statistics| statistics.subject = JobSubject::SaveDump);
        job.allow(Allowed::USUAL.and(&[Kind::Suspend, Kind::MigrationOp]));
        let format = self.rules.saving.snapshot_format;
        let packer = Packer::find(format, self.search_path(), "snapshot")?;
        let request = Request {
            path: snapshot.memory_file().unwrap_or_default().into(),
            format,
            xml: None,
            channels: None,
            flags: SaveFlags::empty(),
        };
        let settings = settings(format, None, SaveFlags::empty())?;
        let prologue = self.prologue(&job.state(), &request, runs)?;
        snapshot.cookie = cookie(&job.state())?;
        let saved = self.save_image(job, &request, prologue, settings, packer.as_ref()).await;
        job.allow(Allowed::USUAL);
        if saved.is_ok() {
            self.publish_completed(job);
        }
        saved
    }

    /// Has the guest write to new images from now on: all disks at the same moment.
    pub(super) async fn put_disks_on_overlays(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        wanted: &[SnapshotDisk],
        reused: bool,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let live = nested.live()?;
        let mut last_node = live.state().launched.as_ref().map_or(0, |launched| launched.last_node);
        let wanted = wanted.iter().filter(|disk| disk.is_external());
        let planned = wanted.map(|wanted| plan_overlay(running(live.state())?, wanted, &mut last_node));
        let planned: Vec<_> = planned.collect::<Result<_>>()?;
        if planned.is_empty() {
            return Ok(());
        }
        let disks: Vec<_> = planned.iter().map(|it| it.disk.clone()).collect();
        let noted = Overlays { reused: reused.then_some(YesNo::Yes), disks: disks.clone() };
        self.note_overlays(&object, noted, last_node)?;
        let mut added = Vec::new();
        if let Err(mut error) = self.switch(&live, &planned, reused, &mut added).await {
            for added in added.into_iter().rev() {
                error = added.give_up(&live, error).await;
            }
            self.forget_overlays(&object);
            return Err(error);
        }
        added.into_iter().for_each(Added::keep);
        drop(nested);
        self.take_up_overlays(&object, disks).await;
        Ok(())
    }

    /// Opens new images and has the disks stand on them; on failure `added` has what was opened.
    async fn switch(
        self: &Arc<Self>,
        live: &Live<'_>,
        planned: &[Overlay],
        reused: bool,
        added: &mut Vec<Added>,
    ) -> Result<()> {
        let state = live.state();
        let definition = running(state)?;
        for it in planned {
            let disk = disk_of(definition, it.disk.name())?;
            let origin = match reused {
                true => Origin::Existing,
                false => Origin::New(Layers::of(disk).images().first().cloned()),
            };
            added.push(self.add_images(live, disk, &it.alone, origin).await?);
        }
        let action = |it: &Overlay| json!({ "type": "blockdev-snapshot", "data": { "node": it.node, "overlay": it.overlay } });
        let mut actions: Vec<_> = planned.iter().map(action).collect();
        if !state.checkpoints.is_empty() {
            let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
            actions.extend(planned.iter().flat_map(|it| noted_on(state, &nodes, it)));
        }
        let done = live.monitor().execute(Transaction { actions }).await;
        for Overlay { disk, .. } in planned {
            let was = disk_of(definition, disk.name()).ok().map(|was| &was.storage);
            let images = (was, Some(&disk.storage));
            self.audit_image(definition, Exchange::Snapshot, images, Outcome::of(&done));
        }
        Ok(done.map(drop)?)
    }

    /// With disks and memory inside the images.
    pub(super) async fn snapshot_inside(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &mut Snapshot,
        flags: SnapshotCreateFlags,
    ) -> Result<()> {
        check_may_stream(job).await?;
        let ran = self.stop_vcpus(job, Paused::Save).await?;
        let mut made = write_inside(job, snapshot).await;
        if made.is_ok() {
            snapshot.cookie = cookie(&job.state())?;
        }
        if made.is_ok() && flags.contains(SnapshotCreateFlags::HALT) {
            made = job.stop(How::Patient, Ending::FromSnapshot).await.map_err(Error::from);
        } else if ran && job.state().is_active() {
            self.let_go_again(job, Running::Unpaused).await;
        }
        made
    }
}

/// What is written goes on being noted, in the new image.
fn noted_on(state: &State, nodes: &[NodeImages], overlay: &Overlay) -> Vec<Value> {
    let node = nodes.iter().find(|node| node.node_name.as_ref() == Some(&overlay.node));
    let bitmaps = node.map_or(&[][..], |node| &node.dirty_bitmaps);
    let known =
        bitmaps.iter().filter(|bitmap| bitmap.persistent && !bitmap.inconsistent).filter_map(|bitmap| {
            let name = bitmap.name.as_deref().filter(|name| state.checkpoints.get(name).is_some())?;
            Some((name, bitmap.granularity))
        });
    let add = |(name, granularity): (&str, u64)| {
        let data = json!({ "persistent": true, "disabled": false, "granularity": granularity });
        add_action(&overlay.overlay, name, data)
    };
    known.map(add).collect()
}

fn plan_overlay(definition: &Domain, wanted: &SnapshotDisk, last_node: &mut u32) -> Result<Overlay> {
    let disk = disk_of(definition, &wanted.name)?;
    let layer = overlay(wanted);
    let mut top = Layers::from_top(layer.format, layer.storage);
    top.end();
    let mut alone = standing_on(disk, top);
    number_disk(&mut alone, last_node);
    let mut whole = Layers::of(&alone);
    whole.stand_on(Layers::of(disk));
    let mut changed = disk.clone();
    whole.install(&mut changed);
    let node =
        |disk: &Disk| Nodes::of(&disk.storage, disk.format()).map(|nodes| nodes.top).unwrap_or_default();
    let (node, overlay) = (node(disk), node(&alone));
    Ok(Overlay { disk: changed, alone, node, overlay })
}

async fn write_inside(job: &mut AsyncJob<job::Snapshot>, snapshot: &Snapshot) -> Result<()> {
    let nested = job.nested().await?;
    let live = nested.live()?;
    let inside = snapshot.disks.iter().filter(|disk| disk.location == Some(SnapshotLocation::Internal));
    let mut devices = Vec::new();
    for disk in inside {
        let disk = disk_of(running(live.state())?, &disk.name)?;
        devices.extend(Nodes::of(&disk.storage, disk.format()).map(|nodes| nodes.top));
    }
    // QEMU writes it as a stream: what the last one was told does not hold for it.
    migrate::configure(&live, &migrate::Settings::default()).await?;
    let name = snapshot.name();
    let arguments = json!({ "tag": name, "vmstate": devices.first(), "devices": devices });
    let id = format!("internal-snapshot-save-{name}");
    block_jobs::run(live.monitor(), &id, "snapshot-save", arguments).await.map_err(|error| match error {
        RunError::Monitor(error) => error.into(),
        RunError::Failed(why) => Error::operation_failed(format!("snapshot-save job failed: {why}")),
    })
}

/// What is kept of a guest beside its definition: the CPU that it has.
fn cookie(state: &State) -> Result<Option<Cookie>> {
    let live = running(state)?;
    let expanded = state.launched.as_ref().is_some_and(|launched| launched.defined_cpu.is_some());
    let cpu = live.cpu.clone().filter(|_| expanded);
    Ok(Some(Cookie { cpu, slirp_helper: true }))
}
