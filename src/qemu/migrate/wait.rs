//! Following a stream to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{MigrateError, job_name};
use crate::qemu::job::{AbortWish, AsyncJob, AsyncOp, JobStatus};
use crate::qemu::monitor::{MigrateCancel, MigrationInfo, MigrationStatus, QueryMigrate};

/// How long nothing may be reported before QEMU is asked.
const POLL: Duration = Duration::from_secs(1);
/// How long QEMU may take to give a stream up.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

/// What else than its end a stream is followed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Until {
    /// The vCPUs stand still and the disks are not yet given away.
    pub switchover: bool,
    /// The guest runs on the other side.
    pub postcopy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Completed,
    Switchover,
    Postcopy,
}

/// Follows a stream that has begun. A client's wish that the operation ends is passed on to QEMU, which may have
/// come to the end before. When this fails otherwise, QEMU may still be at it: see [`cancel`]. May be dropped at
/// any point and called again.
pub async fn wait<O: AsyncOp>(job: &mut AsyncJob<O>, until: Until) -> Result<Reached, MigrateError> {
    let name = job_name(O::OPERATION);
    let mut progress = job.nested().await?.live()?.monitor().progress();
    job.note(|statistics| statistics.status = JobStatus::Migrating);
    let mut abort = job.state().operation.as_ref().map(|underway| Arc::clone(&underway.abort));
    loop {
        let reported = progress.borrow_and_update().clone();
        if reported.lost {
            return Err(MigrateError::Gone);
        }
        let asked;
        let status = match reported.migration {
            Some(status) if verdict(status, until).is_some() => {
                asked = look(job).await?;
                // It may have gone on meanwhile; an end that was reported is one.
                if verdict(asked.status, until).is_some() { asked.status } else { status }
            }
            _ => {
                tokio::select! {
                    _ = progress.changed() => continue,
                    () = wish(&abort) => {
                        abort = None;
                        job.nested().await?.live()?.monitor().execute(MigrateCancel {}).await?;
                        continue;
                    }
                    () = sleep(POLL) => asked = look(job).await?,
                }
                asked.status
            }
        };
        match verdict(status, until) {
            None => {}
            Some(Verdict::Reached(reached)) => {
                if reached == Reached::Completed {
                    job.complete();
                }
                return Ok(reached);
            }
            Some(Verdict::Canceled) => return Err(MigrateError::Canceled { job: name }),
            Some(Verdict::Postcopy) => return Err(MigrateError::Postcopy { job: name }),
            Some(Verdict::Failed) => {
                return Err(MigrateError::Failed { job: name, reason: asked.error_desc });
            }
        }
    }
}

/// Returns when a client wants the operation to end; never, where nobody can want it.
pub async fn wish(abort: &Option<Arc<AbortWish>>) {
    match abort {
        Some(abort) => abort.wanted().await,
        None => std::future::pending().await,
    }
}

/// Has QEMU give a stream up; returns when it has, or the guest is gone. Nothing happens where none is under way.
pub async fn cancel<O: AsyncOp>(job: &mut AsyncJob<O>) -> Result<(), MigrateError> {
    let mut progress = {
        let nested = job.nested().await?;
        let live = nested.live()?;
        live.monitor().execute(MigrateCancel {}).await?;
        live.monitor().progress()
    };
    let limit = Instant::now() + CANCEL_LIMIT;
    loop {
        if progress.borrow_and_update().lost || look(job).await?.status.is_over() {
            return Ok(());
        }
        if Instant::now() >= limit {
            return Err(MigrateError::Failed { job: job_name(O::OPERATION), reason: None });
        }
        // A report or the time to ask again: either way QEMU is asked.
        let _ = timeout(POLL, progress.changed()).await;
    }
}

/// Asks QEMU how far it is, for whoever asks us.
pub async fn look<O: AsyncOp>(job: &mut AsyncJob<O>) -> Result<MigrationInfo, MigrateError> {
    let info = job.nested().await?.live()?.monitor().execute(QueryMigrate {}).await?;
    job.note(|statistics| statistics.take_migration(&info));
    Ok(info)
}

enum Verdict {
    Reached(Reached),
    Canceled,
    Failed,
    Postcopy,
}

/// None: it goes on.
fn verdict(status: MigrationStatus, until: Until) -> Option<Verdict> {
    match status {
        MigrationStatus::Completed => Some(Verdict::Reached(Reached::Completed)),
        MigrationStatus::PreSwitchover if until.switchover => Some(Verdict::Reached(Reached::Switchover)),
        MigrationStatus::PostcopyActive if until.postcopy => Some(Verdict::Reached(Reached::Postcopy)),
        MigrationStatus::PostcopyPaused => Some(Verdict::Postcopy),
        MigrationStatus::Cancelled => Some(Verdict::Canceled),
        MigrationStatus::Failed => Some(Verdict::Failed),
        // `Inactive` too: on the way in, QEMU says so until the other side has come.
        _ => None,
    }
}
