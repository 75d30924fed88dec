//! What QEMU did to the images of a guest while no daemon watched: it has the last word.

use std::sync::Arc;

use crate::drivers::domain::Domains;
use crate::error::Result;
use crate::qemu::block_jobs::{Phase, Work};
use crate::qemu::job::{DomainObject, Live, State};
use crate::qemu::monitor::{BlockJobCancel, JobDismiss, JobInfo, QueryBlockGraph, QueryJobs};

/// How the names begin under which jobs are begun here.
const OURS: [&str; 6] = ["create-", "internal-snapshot-", "pull-", "copy-", "commit-", "backup-"];

impl Domains {
    /// Has disks stand where QEMU has them, and jobs be as far as QEMU is.
    pub(in crate::drivers::domain) async fn adopt_images(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
    ) -> Result<()> {
        match live.monitor().execute(QueryBlockGraph {}).await {
            Ok(graph) => self.adopt_overlays(object, &graph).await,
            Err(error) => {
                tracing::warn!(domain = %object.state().name, %error, "cannot ask QEMU what stands on what");
            }
        }
        self.refresh_block_jobs(object, live).await
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
