//! Guests that were leaving when the daemon ended.
//!
//! | it had come to | then |
//! |---|---|
//! | `begin3` | nothing has happened |
//! | `perform3` | the stream and the copies of its disks are ended, the guest goes on here |
//! | `perform3_done` | all of it is on the other side, and may run there: it stands still here |
//! | `confirm3` | it runs there: it is ended here |
//!
//! A guest of which a part is on either side is taken up again: see [`super::postcopy`].
//!
//! A guest that was arriving is ended like every guest that was to end with its connection, unless it has come to
//! `finish3` and runs: then it is here and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::disks;
use super::phases::{CONFIRMED, FINISHING, PERFORMED, PERFORMING};
use super::request::MigrateFlags;
use super::tell::{nothing_special, put_back};
use crate::drivers::domain::Domains;
use crate::error::Result;
use crate::qemu::job::{AsyncJob, DomainHandle, Ending, Operation, Start, State};
use crate::qemu::monitor::{Cont, MigrateCancel, MigrationStatus, Monitor, MonitorError, QueryMigrate};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::status::JobRecord;

/// How long QEMU may take to give a stream up, and how long it may say nothing meanwhile.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);

impl Domains {
    /// Ends what an earlier daemon had begun.
    pub(in crate::drivers::domain) async fn recover_leaving(
        &self,
        job: &mut AsyncJob<Start>,
        monitor: &Monitor,
        record: &JobRecord,
    ) {
        let object = Arc::clone(job.object());
        let name = object.state().name.clone();
        let phase = record.phase.as_deref().unwrap_or_default();
        if phase == CONFIRMED.0 {
            tracing::warn!(domain = %name, "it runs on another host; ending it here");
            if let Err(error) = DomainHandle::new(object).stop(How::Forced, Ending::Migrated).await {
                tracing::error!(domain = %name, %error, "cannot end a guest that runs on another host");
            }
        } else if phase == PERFORMED.0 {
            tracing::warn!(domain = %name, "migrated, and nobody knows whether it runs on the other host");
        } else if phase == PERFORMING.0 {
            tracing::warn!(domain = %name, "gives up the migration that the last daemon began");
            match self.stop_leaving(job, monitor, MigrateFlags::from_bits_truncate(record.flag_bits())).await
            {
                Ok(()) => {}
                Err(error) => tracing::error!(domain = %name, %error, "the guest stays as it is"),
            }
        }
    }

    async fn stop_leaving(
        &self,
        job: &mut AsyncJob<Start>,
        monitor: &Monitor,
        flags: MigrateFlags,
    ) -> Result<()> {
        monitor.execute(MigrateCancel {}).await?;
        given_up(monitor).await?;
        monitor.events_handled().await;
        let live = job.state().live.clone();
        if let Some(live) = live.filter(|_| flags.copies_disks()) {
            disks::give_up(job, &disks::all(&live)).await;
        }
        if let Err(error) = put_back(job, Some(&nothing_special())).await {
            tracing::warn!(domain = %job.state().name, %error, "the guest's QEMU keeps what it was told for the migration");
        }
        let for_it = matches!(
            job.state().run,
            RunState::Paused(Paused::Migration | Paused::Unknown | Paused::Postcopy)
        );
        if !for_it {
            return Ok(());
        }
        job.update(|state| state.resuming = Running::MigrationCanceled);
        monitor.execute(Cont {}).await?;
        monitor.events_handled().await;
        self.note_resume(job.object());
        Ok(())
    }

    /// The last daemon was about to let a guest go that had come, or had done so.
    pub(in crate::drivers::domain) async fn recover_arriving(&self, job: &mut AsyncJob<Start>) {
        let state = job.state();
        let may_run_there = state.autodestroy || state.run == RunState::Paused(Paused::Migration);
        if may_run_there && !matches!(state.run, RunState::Running(_)) {
            tracing::warn!(domain = %state.name, "it has not run here, and may do so where it came from; ending it");
            if let Err(error) = job.stop(How::Forced, Ending::Failed).await {
                tracing::error!(domain = %state.name, %error, "cannot end a guest that did not arrive");
            }
            return;
        }
        job.update(|state| state.autodestroy = false);
        self.drop_old_memory(&state);
        if let Err(error) = put_back(job, Some(&nothing_special())).await {
            tracing::warn!(domain = %state.name, %error, "the guest's QEMU keeps what it was told for the migration");
        }
    }
}

/// Whether a guest that was to end with its connection may have been let go by the daemon that had it.
pub(in crate::drivers::domain) fn may_have_arrived(state: &State) -> bool {
    state.interrupted.as_ref().is_some_and(|job| {
        Operation::from_name(&job.operation) == Some(Operation::MigrationIn)
            && job.phase.as_deref() == Some(FINISHING.0)
    })
}

/// Has a guest that runs here without all of it known as one, should the last daemon not have come to note it.
pub(in crate::drivers::domain) async fn note_halves(job: &AsyncJob<Start>, monitor: &Monitor) {
    if !matches!(job.state().run, RunState::Running(_)) {
        return;
    }
    let told = monitor.execute(QueryMigrate {}).await;
    if told.is_ok_and(|told| {
        matches!(
            told.status,
            MigrationStatus::PostcopyActive
                | MigrationStatus::PostcopyPaused
                | MigrationStatus::PostcopyRecover
        )
    }) {
        job.update(|state| state.run = RunState::Running(Running::Postcopy));
    }
}

/// Waits until QEMU has given a stream up, if there was one. It begins no other before.
pub(in crate::drivers::domain) async fn given_up(monitor: &Monitor) -> std::result::Result<(), MonitorError> {
    let mut progress = monitor.progress();
    let limit = Instant::now() + CANCEL_LIMIT;
    while !monitor.execute(QueryMigrate {}).await?.status.is_over() && Instant::now() < limit {
        // A report or the time to ask again: either way QEMU is asked.
        let _ = timeout(POLL, progress.changed()).await;
    }
    Ok(())
}
