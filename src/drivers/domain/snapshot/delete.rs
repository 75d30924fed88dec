//! Removing snapshots: from the images, by merging images, or from what is known only.

use std::sync::Arc;

use serde_json::json;

use super::merge::Merged;
use super::{SnapshotDeleteFlags, Snapshots, find};
use crate::conf::devices::{Backing, Disk, Place};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{KeptDomain, Snapshot};
use crate::drivers::domain::Domains;
use crate::drivers::domain::block_jobs::is_any_busy;
use crate::drivers::domain::flags::CallFlags;
use crate::drivers::domain::reads::running;
use crate::error::{Error, Result};
use crate::qemu::block::Nodes;
use crate::qemu::block_jobs::{self, RunError};
use crate::qemu::job::{self, AsyncJob, DomainHandle, JobSubject, State};
use crate::qemu::monitor::{NodeImages, QueryNodeImages};

impl Domains {
    /// `virDomainSnapshotDelete`
    pub async fn snapshot_delete(
        self: &Arc<Self>,
        domain: DomainHandle,
        name: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = SnapshotDeleteFlags::accept(flags)?;
        if flags.contains(SnapshotDeleteFlags::CHILDREN | SnapshotDeleteFlags::CHILDREN_ONLY) {
            let sentence = "Flags 'VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN' and \
                            'VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN_ONLY' are mutually exclusive";
            return Err(Error::invalid_arg(sentence).from_origin(crate::error::Origin::DOMAIN));
        }
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<job::Snapshot>().await?;
        job.describe(flags.bits(), JobSubject::None);
        self.save_status(&job.state());
        let deleted = self.delete_snapshots(&mut job, name, flags).await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        deleted
    }

    async fn delete_snapshots(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        name: &str,
        flags: SnapshotDeleteFlags,
    ) -> Result<()> {
        let state = job.state();
        let snapshot = Arc::clone(find(&state, name)?);
        let only_metadata = flags.contains(SnapshotDeleteFlags::METADATA_ONLY);
        if !only_metadata {
            check_delete(&state, &snapshot, flags)?;
        }
        if !flags.intersects(SnapshotDeleteFlags::CHILDREN | SnapshotDeleteFlags::CHILDREN_ONLY) {
            return self.delete_one(job, &snapshot, only_metadata).await;
        }
        let below: Vec<_> = state.snapshots.descendants(Some(name)).into_iter().map(Arc::clone).collect();
        let mut deleted = Ok(());
        // Leaves first: nobody needs another parent.
        for snapshot in below.into_iter().rev() {
            let one = self.delete_one(job, &snapshot, only_metadata).await;
            deleted = deleted.and(one);
        }
        deleted?;
        match flags.contains(SnapshotDeleteFlags::CHILDREN_ONLY) {
            true => Ok(()),
            false => self.delete_one(job, &snapshot, only_metadata).await,
        }
    }

    async fn delete_one(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
        only_metadata: bool,
    ) -> Result<()> {
        let mut merged = Vec::new();
        if !only_metadata {
            let state = job.state();
            if snapshot.is_external() {
                merged = self.delete_outside(job, snapshot).await?;
            } else if state.is_active() {
                delete_inside(job, snapshot).await?;
            } else if let Some(then) = snapshot.domain.as_ref().map(|it| &it.0).or(state.inactive.as_ref()) {
                // What is not there any more need not be removed.
                self.apply_inside(then, snapshot, "-d").await;
            }
        }
        self.forget_one(job, snapshot, &merged).await
    }

    /// Its children get its parent, and images that are no more are replaced in what is known of those below.
    async fn forget_one(
        self: &Arc<Self>,
        job: &AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
        merged: &[Merged],
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        let state = job.state();
        let snapshots = &state.snapshots;
        let name = snapshot.name();
        let parent = snapshots.parent(snapshot).cloned();
        let mut changed: Vec<Snapshot> = Vec::new();
        for below in snapshots.descendants(Some(name)) {
            let mut edited = Snapshot::clone(below);
            if edited.parent() == Some(name) {
                edited.set_parent(parent.as_ref().map(|parent| parent.name()));
            }
            for merged in merged {
                replace_image(&mut edited, snapshot, merged);
            }
            if edited != **below {
                changed.push(edited);
            }
        }
        if let Some(parent) = &parent
            && !parent.revert_disks.is_empty()
        {
            let mut edited = Snapshot::clone(parent);
            edited.disks = std::mem::take(&mut edited.revert_disks);
            changed.push(edited);
        }
        let current = snapshots.current().map(|current| current.name());
        let current = match current == Some(name) {
            true => parent.as_ref().map(|parent| parent.name().into()),
            false => current.map(Into::into),
        };
        self.forget_snapshot(&object, name).await?;
        self.keep_snapshots(&object, changed, current).await
    }
}

fn check_delete(state: &State, snapshot: &Snapshot, flags: SnapshotDeleteFlags) -> Result<()> {
    let unsupported = |sentence: &'static str| Err(Error::config_unsupported(sentence));
    let snapshots = &state.snapshots;
    if !snapshot.is_external() && state.is_active() {
        check_same_images(state, snapshot)?;
    }
    let name = snapshot.name();
    if flags.intersects(SnapshotDeleteFlags::CHILDREN | SnapshotDeleteFlags::CHILDREN_ONLY) {
        let below = snapshots.descendants(Some(name));
        let external = below.iter().filter(|it| it.is_external()).count();
        if external > 0 && external < below.len() {
            return unsupported("deletion of external and internal children disk snapshots not supported");
        }
        if external > 0 {
            return unsupported("deletion of external children disk snapshots not supported");
        }
    }
    if !snapshot.is_external() {
        return Ok(());
    }
    if is_any_busy(state) {
        return Err(Error::operation_unsupported(
            "cannot delete external snapshots when there is another active block job",
        ));
    }
    if flags.contains(SnapshotDeleteFlags::CHILDREN) {
        return unsupported("deletion of external disk snapshots with children not supported");
    }
    check_place_in_tree(snapshots, name)
}

/// Which external snapshots can be taken out of the tree.
fn check_place_in_tree(snapshots: &Snapshots, name: &str) -> Result<()> {
    let unsupported = |sentence: &'static str| Err(Error::config_unsupported(sentence));
    let children = snapshots.children(Some(name)).count();
    let current = snapshots.current().map(|current| current.name());
    if children == 0 {
        return Ok(());
    }
    if current == Some(name) {
        return unsupported(
            "deletion of active external snapshot that is not a leaf snapshot is not supported",
        );
    }
    if !current.is_some_and(|current| snapshots.is_below(current, name)) {
        return unsupported(
            "deletion of non-leaf external snapshot that is not in active chain is not supported",
        );
    }
    match children > 1 {
        true => {
            unsupported("deletion of external disk snapshot with multiple children snapshots not supported")
        }
        false => Ok(()),
    }
}

/// The guest's images are those that the snapshot is in.
fn check_same_images(state: &State, snapshot: &Snapshot) -> Result<()> {
    let live = running(state)?;
    let name = snapshot.name();
    for wanted in &snapshot.disks {
        let of = |definition: &Domain| {
            definition
                .devices
                .disks
                .iter()
                .find(|disk| *disk.name() == *wanted.name)
                .map(|it| it.storage.place.clone())
        };
        let missing = |where_: &str| {
            let disk = &wanted.name;
            Error::operation_failed(format!(
                "disk '{disk}' referenced by snapshot '{name}' not found in the {where_}"
            ))
        };
        let now = of(live).ok_or_else(|| missing("current definition"))?;
        let then = snapshot.domain.as_ref().and_then(|it| of(&it.0));
        if then.ok_or_else(|| missing("VM definition of the deleted snapshot"))? != now {
            return Err(Error::operation_unsupported(format!(
                "disk image '{}' for internal snapshot '{name}' is not the same as disk image currently used by VM",
                wanted.name
            )));
        }
    }
    Ok(())
}

/// Removes a snapshot from wherever QEMU finds it.
async fn delete_inside(job: &mut AsyncJob<job::Snapshot>, snapshot: &Snapshot) -> Result<()> {
    let nested = job.nested().await?;
    let live = nested.live()?;
    let name = snapshot.name();
    let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
    let has = |node: &String| {
        let found = nodes.iter().find(|it| it.node_name.as_ref() == Some(node));
        found.is_some_and(|found| NodeImages::snapshot(found, name).is_some())
    };
    let disks = running(live.state())?.devices.disks.iter().filter(|disk| !disk.readonly);
    let tops = disks.filter_map(|disk| Nodes::of(&disk.storage, disk.format())).map(|nodes| nodes.top);
    let devices: Vec<String> = tops.filter(has).collect();
    if devices.is_empty() {
        return Ok(());
    }
    let id = format!("internal-snapshot-delete-{name}");
    let arguments = json!({ "tag": name, "devices": devices });
    block_jobs::run(live.monitor(), &id, "snapshot-delete", arguments).await.map_err(|error| match error {
        RunError::Monitor(error) => error.into(),
        RunError::Failed(why) => {
            Error::operation_failed(format!("deletion of internal snapshot '{name}' job failed: {why}"))
        }
    })
}

/// Of a snapshot whose domain stood on an image that is no more: it stands on the one that has its content.
fn replace_image(edited: &mut Snapshot, deleted: &Snapshot, merged: &Merged) {
    let external = edited.is_external();
    for (kept, then) in [
        (&mut edited.domain, deleted.domain.as_ref()),
        (&mut edited.inactive, deleted.inactive.as_ref().or(deleted.domain.as_ref())),
    ] {
        let Some(KeptDomain(domain)) = kept else { continue };
        let named = |disk: &&Disk| *disk.name() == *merged.disk;
        let parent = then.and_then(|then| then.0.devices.disks.iter().find(named));
        for disk in &mut Arc::make_mut(domain).devices.disks {
            if !named(&&*disk) {
                continue;
            }
            if let Some(parent) = parent.filter(|_| external && disk.storage.place == merged.place) {
                disk.storage = parent.storage.clone();
                disk.driver.format = parent.driver.format;
            }
            forget_layer(disk, &merged.place);
        }
    }
}

fn forget_layer(disk: &mut Disk, place: &Place) {
    let mut here = &mut disk.storage;
    loop {
        let is_next = here.layer().is_some_and(|layer| layer.storage.place == *place);
        if is_next && let Some(Backing::Layer(gone)) = here.backing.take().map(|backing| *backing) {
            here.backing = gone.storage.backing;
        }
        match here.backing.as_deref_mut() {
            Some(Backing::Layer(layer)) => here = &mut layer.storage,
            _ => return,
        }
    }
}
