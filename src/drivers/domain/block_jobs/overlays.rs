//! Disks that come to stand on new images, all at the same moment.
//!
//! ```text
//!  noted in the status file ─► images opened ─► QEMU switches ─► definitions follow ─► note removed
//!                                     └───────────────┴─ no daemon left: the next one asks QEMU which way it went
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use super::{disk_of, with_disk};
use crate::conf::devices::{Disk, StorageKind};
use crate::conf::domain::Domain;
use crate::conf::xml::YesNo;
use crate::drivers::domain::Domains;
use crate::drivers::domain::reads::running;
use crate::drivers::domain::snapshot::offline::{put_on, remove};
use crate::error::Result;
use crate::qemu::block::{Layers, as_defined};
use crate::qemu::block_jobs::Overlays;
use crate::qemu::job::{DomainObject, State};
use crate::qemu::monitor::BlockGraph;

impl Domains {
    /// Writes down what disks are about to stand on; without that, QEMU must not begin.
    pub(in crate::drivers::domain) fn note_overlays(
        &self,
        object: &DomainObject,
        overlays: Overlays,
        last_node: u32,
    ) -> Result<()> {
        let note = |state: &mut State| {
            state.overlays = Some(Arc::new(overlays));
            state.note_last_node(last_node);
        };
        let mut written = Ok(());
        object.observe(note, |state, ()| written = self.write_status(state));
        written.map_err(|error| {
            self.forget_overlays(object);
            error.into()
        })
    }

    /// Nothing is about to change any more.
    pub(in crate::drivers::domain) fn forget_overlays(&self, object: &DomainObject) {
        object.observe(|state| state.overlays = None, |state, ()| self.save_status(state));
    }

    /// Follows a QEMU that writes to new images.
    pub(in crate::drivers::domain) async fn take_up_overlays(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        disks: Vec<Disk>,
    ) {
        let before = object.state();
        let change = |state: &mut State| {
            disks.iter().for_each(|disk| with_disk(state, disk.name(), |now| *now = disk.clone()))
        };
        object.observe(change, |state, ()| self.save_status(state));
        for disk in &disks {
            if let Ok(was) = running(&before).and_then(|live| disk_of(live, disk.name()))
                && was.storage.index != disk.storage.index
            {
                self.hand_down(object, was).await;
            }
        }
        if let Err(error) = self.amend_definition(object, move |definition| follow(definition, &disks)).await
        {
            tracing::error!(domain = %before.name, %error, "the next start will have older images");
        }
        self.forget_overlays(object);
    }

    /// What the last daemon was about to do: QEMU did it, or never will.
    pub(super) async fn adopt_overlays(self: &Arc<Self>, object: &Arc<DomainObject>, graph: &BlockGraph) {
        let state = object.state();
        let Some(overlays) = &state.overlays else { return };
        let (mut switched, mut given_up) = (Vec::new(), Vec::new());
        for disk in &overlays.disks {
            match is_switched(disk, graph) {
                Some(true) => switched.push(disk.clone()),
                Some(false) => given_up.extend(file_of(disk)),
                None => {
                    tracing::error!(domain = %state.name, disk = disk.name(), "stands on an unknown image")
                }
            }
        }
        self.take_up_overlays(object, switched).await;
        if overlays.reused != Some(YesNo::Yes) {
            remove(given_up).await;
        }
    }
}

/// Nothing if QEMU has it on neither image.
fn is_switched(disk: &Disk, graph: &BlockGraph) -> Option<bool> {
    let layers = Layers::of(disk);
    let (new, old) = (layers.nodes(0)?.top, layers.nodes(1)?.top);
    graph.first_below(disk.info.alias.as_deref()?, &[&new, &old]).map(|found| found == new)
}

fn file_of(disk: &Disk) -> Option<PathBuf> {
    disk.storage.path().filter(|_| disk.storage.kind() == StorageKind::File).map(PathBuf::from)
}

/// The definition for the next start has the disks on the images that the guest now writes to, if they stood on the
/// same ones before.
fn follow(definition: &mut Domain, disks: &[Disk]) -> bool {
    let mut changed = false;
    for switched in disks {
        let layers = Layers::of(switched);
        let [top, below, ..] = layers.images() else { continue };
        let mut top = top.clone();
        top.storage = as_defined(&top.storage);
        for disk in &mut definition.devices.disks {
            if disk.name() == switched.name() && disk.storage.place == below.storage.place {
                put_on(disk, top.clone(), true);
                changed = true;
            }
        }
    }
    changed
}
