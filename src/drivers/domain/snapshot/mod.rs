//! Snapshots: states of a domain that it can go back to.
//!
//! ```text
//!             create                         revert                          delete
//!  internal   inside the images, with memory ─► QEMU anew, state loaded       removed from the images
//!  external   disks stand on new images      ─► QEMU anew on the old images,  new images committed into old ones
//!             (memory in a file)                new images over them
//! ```
//!
//! What is known of them is kept in files as libvirt does, and with the domain's state, so that reading needs no job.

mod active;
mod create;
mod delete;
mod merge;
pub(super) mod offline;
mod revert;

use std::sync::Arc;

use super::{Domains, blocking};
use crate::conf::devices::SnapshotLocation;
use crate::conf::moments::{Moment, Moments};
use crate::conf::snapshot::{Snapshot, SnapshotState};
use crate::conf::xml::Form;
use crate::drivers::flags::{CallFlags, flag_words};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainObject, State};

flag_words!(
    /// `virDomainSnapshotCreateFlags`
    SnapshotCreateFlags of "qemuSnapshotCreateXML" {
        REDEFINE = 1,
        CURRENT = 1 << 1,
        NO_METADATA = 1 << 2,
        HALT = 1 << 3,
        DISK_ONLY = 1 << 4,
        REUSE_EXT = 1 << 5,
        QUIESCE = 1 << 6,
        ATOMIC = 1 << 7,
        LIVE = 1 << 8,
        VALIDATE = 1 << 9,
    }
    /// `virDomainSnapshotRevertFlags`
    SnapshotRevertFlags of "qemuSnapshotRevert" {
        RUNNING = 1,
        PAUSED = 1 << 1,
        FORCE = 1 << 2,
        RESET_NVRAM = 1 << 3,
    }
    /// `virDomainSnapshotDeleteFlags`
    SnapshotDeleteFlags of "qemuSnapshotDelete" {
        CHILDREN = 1,
        METADATA_ONLY = 1 << 1,
        CHILDREN_ONLY = 1 << 2,
    }
    /// `virDomainSnapshotListFlags`. The first one means the roots of a domain's snapshots, and all that are below
    /// a snapshot.
    SnapshotListFlags of "qemuDomainListAllSnapshots" {
        ROOTS = 1,
        METADATA = 1 << 1,
        LEAVES = 1 << 2,
        NO_LEAVES = 1 << 3,
        NO_METADATA = 1 << 4,
        INACTIVE = 1 << 5,
        ACTIVE = 1 << 6,
        DISK_ONLY = 1 << 7,
        INTERNAL = 1 << 8,
        EXTERNAL = 1 << 9,
        TOPOLOGICAL = 1 << 10,
    }
    /// `virDomainSnapshotXMLFlags`
    SnapshotXmlFlags of "qemuDomainSnapshotGetXMLDesc" {
        SECURE = 1,
    }
);

pub type Snapshots = Moments<Snapshot>;

/// Those of a domain, or below one of them, that a client wants to see; `function` is libvirt's name of the call.
pub fn list(state: &State, from: Option<&str>, flags: u32, function: &'static str) -> Result<Vec<String>> {
    let flags = SnapshotListFlags::accept_in(flags, function)?;
    if let Some(name) = from {
        find(state, name)?;
    }
    // Each has a file.
    if flags.contains(SnapshotListFlags::NO_METADATA) && !flags.contains(SnapshotListFlags::METADATA) {
        return Ok(Vec::new());
    }
    let all = flags.contains(SnapshotListFlags::ROOTS) == from.is_some();
    let snapshots = &state.snapshots;
    let found = match all {
        true => snapshots.descendants(from),
        false => snapshots.children(from).collect(),
    };
    let wanted = found.into_iter().filter(|snapshot| is_wanted(snapshots, snapshot, flags));
    Ok(wanted.map(|snapshot| snapshot.name().to_owned()).collect())
}

fn is_wanted(snapshots: &Snapshots, snapshot: &Snapshot, flags: SnapshotListFlags) -> bool {
    let among = |choices: &[(SnapshotListFlags, bool)]| {
        let mut asked = choices.iter().filter(|(flag, _)| flags.contains(*flag)).peekable();
        asked.peek().is_none() || asked.any(|(_, is)| *is)
    };
    let is_leaf = snapshots.is_leaf(snapshot.name());
    let (off, disks) = (SnapshotState::Shutoff, SnapshotState::DiskSnapshot);
    let (is_off, is_disks) = (snapshot.state == Some(off), snapshot.state == Some(disks));
    let is_external = snapshot.is_external();
    among(&[(SnapshotListFlags::LEAVES, is_leaf), (SnapshotListFlags::NO_LEAVES, !is_leaf)])
        && among(&[
            (SnapshotListFlags::INACTIVE, is_off),
            (SnapshotListFlags::DISK_ONLY, is_disks),
            (SnapshotListFlags::ACTIVE, !is_off && !is_disks),
        ])
        && among(&[(SnapshotListFlags::INTERNAL, !is_external), (SnapshotListFlags::EXTERNAL, is_external)])
}

pub fn find<'a>(state: &'a State, name: &str) -> Result<&'a Arc<Snapshot>> {
    let missing = || Error::no_domain_snapshot(format!("no domain snapshot with matching name '{name}'"));
    state.snapshots.get(name).ok_or_else(missing)
}

pub fn current(state: &State) -> Result<&Arc<Snapshot>> {
    let none = || Error::no_domain_snapshot("the domain does not have a current snapshot");
    state.snapshots.current().ok_or_else(none)
}

pub fn parent<'a>(state: &'a State, name: &str) -> Result<&'a str> {
    let none = || Error::no_domain_snapshot(format!("snapshot '{name}' does not have a parent"));
    find(state, name)?.parent().ok_or_else(none)
}

pub fn xml(state: &State, name: &str, flags: u32) -> Result<String> {
    let flags = SnapshotXmlFlags::accept(flags)?;
    let form = if flags.contains(SnapshotXmlFlags::SECURE) { Form::SECURE } else { Form::INACTIVE };
    Ok(find(state, name)?.to_xml(form))
}

impl Domains {
    /// Takes over the snapshots that were made before.
    pub(super) fn load_snapshots(&self) {
        for (domain, texts) in self.snapshot_files.load() {
            let Ok(found) = self.list.by_name(&domain) else { continue };
            let mut snapshots = Snapshots::default();
            for text in texts {
                match Snapshot::from_file(&text) {
                    Ok((snapshot, is_current)) => {
                        if is_current {
                            snapshots.set_current(Some(snapshot.name()));
                        }
                        snapshots.insert(Arc::new(snapshot));
                    }
                    Err(error) => {
                        tracing::error!(%domain, error = error.message, "skipped the file of a snapshot");
                    }
                }
            }
            found.object().observe(|state| state.snapshots = Arc::new(snapshots), |_, ()| ());
        }
    }

    /// Writes snapshots down and takes them over; `is_current` becomes the current one. Those that are not mentioned
    /// stay as they are, but for one that was current.
    async fn keep_snapshots(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        changed: Vec<Snapshot>,
        is_current: Option<Box<str>>,
    ) -> Result<()> {
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        blocking(move || {
            let state = object.state();
            let mut snapshots = Snapshots::clone(&state.snapshots);
            let before = snapshots.current().map(|snapshot| Box::<str>::from(snapshot.name()));
            let mut names: Vec<Box<str>> = Vec::new();
            for snapshot in changed {
                names.push(snapshot.name().into());
                snapshots.insert(Arc::new(snapshot));
            }
            names.extend(before.filter(|before| Some(before) != is_current.as_ref()));
            names.extend(is_current.clone());
            snapshots.set_current(is_current.as_deref());
            names.sort_unstable();
            names.dedup();
            for name in names {
                let Some(snapshot) = snapshots.get(&name) else { continue };
                let text = snapshot.to_file(snapshots.is_current(&name));
                domains.snapshot_files.save(&state.name, &name, &text).map_err(|error| {
                    Error::io(format_args!("unable to save metadata for snapshot {name}"), error)
                })?;
            }
            object.observe(|state| state.snapshots = Arc::new(snapshots), |_, ()| ());
            Ok(())
        })
        .await
    }

    /// The current one stays so.
    async fn keep_changed(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        changed: Vec<Snapshot>,
    ) -> Result<()> {
        let current = object.state().snapshots.current().map(|snapshot| snapshot.name().into());
        self.keep_snapshots(object, changed, current).await
    }

    async fn forget_snapshot(self: &Arc<Self>, object: &Arc<DomainObject>, name: &str) -> Result<()> {
        let (domains, object, name) = (Arc::clone(self), Arc::clone(object), name.to_owned());
        blocking(move || {
            let domain = Arc::clone(&object.state().name);
            domains.snapshot_files.remove(&domain, &name).map_err(|error| {
                Error::io(format_args!("cannot remove the file of snapshot '{name}'"), error)
            })?;
            let forget = |state: &mut State| Arc::make_mut(&mut state.snapshots).remove(&name);
            object.observe(forget, |_, _| ());
            Ok(())
        })
        .await
    }

    /// Removes what is known of a domain's snapshots.
    pub(super) fn remove_snapshots(&self, state: &State) -> Result<()> {
        self.snapshot_files.remove_all(&state.name).map_err(|error| {
            Error::io(format_args!("cannot remove the snapshots of domain '{}'", state.name), error)
        })
    }
}

/// Whether its memory is inside an image.
fn is_internal(snapshot: &Snapshot) -> bool {
    snapshot.memory_location() == Some(SnapshotLocation::Internal)
}
