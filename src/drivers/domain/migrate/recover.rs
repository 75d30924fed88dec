//! Guests that were leaving when the daemon ended.
//!
//! | it had come to | then |
//! |---|---|
//! | `begin3` | nothing has happened |
//! | `perform3` | the stream is ended, the guest goes on here |
//! | `perform3_done` | all of it is on the other side, and may run there: it stands still here |
//! | `confirm3` | it runs there: it is ended here |
//!
//! A guest of which a part is on either side is taken up again: see [`super::postcopy`].
//!
//! A guest that was arriving is ended like every guest that was to end with its connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::phases::{CONFIRMED, PERFORMED, PERFORMING};
use crate::drivers::domain::Domains;
use crate::qemu::job::{AsyncJob, DomainHandle, Ending, Start};
use crate::qemu::monitor::{Cont, MigrateCancel, Monitor, MonitorError, QueryMigrate};
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
            match self.stop_leaving(job, monitor).await {
                Ok(()) => {}
                Err(error) => tracing::error!(domain = %name, %error, "the guest stays as it is"),
            }
        }
    }

    async fn stop_leaving(&self, job: &AsyncJob<Start>, monitor: &Monitor) -> Result<(), MonitorError> {
        monitor.execute(MigrateCancel {}).await?;
        given_up(monitor).await?;
        monitor.events_handled().await;
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
}

/// Waits until QEMU has given a stream up, if there was one. It begins no other before.
pub(in crate::drivers::domain) async fn given_up(monitor: &Monitor) -> Result<(), MonitorError> {
    let mut progress = monitor.progress();
    let limit = Instant::now() + CANCEL_LIMIT;
    while !monitor.execute(QueryMigrate {}).await?.status.is_over() && Instant::now() < limit {
        // A report or the time to ask again: either way QEMU is asked.
        let _ = timeout(POLL, progress.changed()).await;
    }
    Ok(())
}
