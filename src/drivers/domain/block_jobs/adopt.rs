//! What QEMU did to the images of a guest while no daemon watched: it has the last word.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use crate::conf::devices::{Disk, HostdevSource, Storage};
use crate::drivers::domain::Domains;
use crate::drivers::domain::reads::running;
use crate::drivers::domain::usage::disk_named;
use crate::error::Result;
use crate::qemu::block_jobs::{Phase, Work};
use crate::qemu::job::{DomainObject, Live, State};
use crate::qemu::monitor::{
    BlockGraph, BlockJobCancel, JobDismiss, JobInfo, QueryBlockGraph, QueryJobs, node_number,
};

/// How the names begin under which jobs are begun here.
const OURS: [&str; 6] = ["create-", "internal-snapshot-", "pull-", "copy-", "commit-", "backup-"];

impl Domains {
    /// Has disks stand where QEMU has them, and jobs be as far as QEMU is.
    pub(in crate::drivers::domain) async fn adopt_images(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
    ) -> Result<()> {
        if object.state().overlays.is_some() {
            let graph = live.monitor().execute(QueryBlockGraph {}).await?;
            self.adopt_overlays(object, &graph).await;
        }
        let refreshed = self.refresh_block_jobs(object, live).await;
        let graph = live.monitor().execute(QueryBlockGraph {}).await?;
        self.raise_last_node(object, graph.last_number());
        clear_unused_nodes(&object.state(), live, &graph).await?;
        refreshed
    }

    /// No number is given a second time.
    fn raise_last_node(&self, object: &DomainObject, last_node: u32) {
        let known = object.state().launched.as_ref().map_or(0, |launched| launched.last_node);
        if known < last_node {
            object.observe(|state| state.note_last_node(last_node), |state, ()| self.save_status(state));
        }
    }

    /// Asks a guest that ran under another daemon how its jobs stand.
    async fn refresh_block_jobs(self: &Arc<Self>, object: &Arc<DomainObject>, live: &Live<'_>) -> Result<()> {
        let told = live.monitor().execute(QueryJobs {}).await?;
        let known: Vec<_> = object.state().block_jobs.keys().cloned().collect();
        let waited_for = |told: &&JobInfo| {
            let is_ours = OURS.iter().any(|it| told.id.starts_with(it));
            is_ours && told.status == "concluded" && !known.iter().any(|name| **name == *told.id)
        };
        for job in told.iter().filter(waited_for) {
            live.monitor().execute(JobDismiss { id: job.id.clone() }).await?;
        }
        for name in known {
            match told.iter().find(|told| *told.id == *name) {
                Some(told) if told.status == "ready" => {
                    // QEMU may never have heard that it is to pivot; if it has, that shows at the end.
                    self.change_block_job(object, &name, |job| {
                        if job.phase == Phase::Pivoting {
                            job.phase = Phase::Running;
                        }
                    });
                    self.note_job_ready(object, &name);
                }
                // Who asked for it has nobody any more who would tell him.
                Some(told)
                    if told.status == "pending"
                        || (told.status != "concluded" && is_backup(&object.state(), &name)) =>
                {
                    self.change_block_job(object, &name, |job| job.phase = Phase::Aborting);
                    let cancel = BlockJobCancel { device: name.to_string(), force: true };
                    live.monitor().execute(cancel).await?;
                }
                Some(told) if told.status != "concluded" => {}
                _ => drop(self.conclude(object, live, &name).await?),
            }
        }
        Ok(())
    }
}

fn is_backup(state: &State, name: &str) -> bool {
    state.block_jobs.get(name).is_some_and(|job| matches!(job.work, Work::Backup { .. }))
}

/// Removes nodes that were added for something that never came to be.
async fn clear_unused_nodes(state: &State, live: &Live<'_>, graph: &BlockGraph) -> Result<()> {
    let definition = running(state)?;
    let known = known_numbers(state)?;
    let is_unwanted = |name: &str| match (node_number(name), name.strip_prefix("libvirt-CoR-")) {
        (Some(number), _) => !known.contains(&number),
        (None, Some(disk)) => disk_named(definition, disk).is_none(),
        (None, None) => false,
    };
    for node in graph.unused(is_unwanted) {
        let removed = live.monitor().execute_value("blockdev-del", Some(json!({ "node-name": node }))).await;
        match removed {
            Ok(_) => tracing::info!(domain = %state.name, node, "removed a block node that nobody uses"),
            Err(error) => {
                tracing::warn!(domain = %state.name, node, %error, "a block node stays that nobody uses")
            }
        }
    }
    Ok(())
}

/// The numbers of all images that a guest has, or is to have.
fn known_numbers(state: &State) -> Result<BTreeSet<u32>> {
    let live = running(state)?;
    let mut known = BTreeSet::new();
    let mut note = |storage: &Storage| {
        known.extend(storage.index);
        known.extend(storage.layers().filter_map(|layer| layer.storage.index));
    };
    let overlays = state.overlays.iter().flat_map(|overlays| &overlays.disks);
    let disks: Vec<&Disk> = live.devices.disks.iter().chain(overlays).collect();
    for disk in &disks {
        note(&disk.storage);
        disk.mirror.iter().for_each(|mirror| note(&mirror.storage));
    }
    for job in state.block_jobs.values() {
        if let Work::Backup { store, .. } = &job.work {
            note(&store.storage);
        }
    }
    let filters = disks.iter().flat_map(|disk| &disk.throttle_filters.0);
    known.extend(filters.filter_map(|filter| node_number(filter.node.as_deref()?)));
    known.extend(live.devices.hostdevs.iter().filter_map(|hostdev| match &hostdev.source {
        HostdevSource::Scsi(scsi) => scsi.index,
        _ => None,
    }));
    Ok(known)
}
