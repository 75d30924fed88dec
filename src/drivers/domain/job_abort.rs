//! Ending a long operation before its time.

use super::Domains;
use super::flags::{AbortFlags, CallFlags, DumpFlags};
use crate::error::{Error, Result};
use crate::qemu::job::{Abort, DomainHandle, JobStatus, Live, Operation, Underway};
use crate::qemu::monitor::{MigrateCancel, MigratePause};

impl Domains {
    /// Ends the async operation under way; the guest goes on as before it.
    pub async fn abort_job(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = AbortFlags::accept(flags)?;
        let object = domain.object().clone();
        let job = domain.begin::<Abort>().await?;
        let live = job.live()?;
        let state = object.state();
        let underway = state.operation.as_ref();
        if flags.contains(AbortFlags::POSTCOPY) && !underway.is_some_and(is_postcopy) {
            return Err(invalid("current job is not outgoing migration in post-copy mode"));
        }
        match object.operation() {
            None => Err(invalid("no job is active on the domain")),
            Some(Operation::Start) => Err(invalid("cannot abort VM start; use virDomainDestroy instead")),
            Some(Operation::MigrationIn) => {
                Err(invalid("cannot abort incoming migration; use virDomainDestroy instead"))
            }
            Some(Operation::Backup) => self.cancel_backup(&object, &live).await,
            Some(_) => abort(&live, underway, flags).await,
        }
    }
}

/// Whether the guest runs, or ran, on the other side already.
fn is_postcopy(underway: &Underway) -> bool {
    let status = underway.statistics.status;
    underway.operation == Operation::MigrationOut
        && matches!(status, JobStatus::Postcopy | JobStatus::PostcopyPaused | JobStatus::PostcopyRecover)
}

async fn abort(live: &Live<'_>, underway: Option<&Underway>, flags: AbortFlags) -> Result<()> {
    let underway = underway.ok_or_else(|| invalid("no job is active on the domain"))?;
    if is_postcopy(underway) {
        if !flags.contains(AbortFlags::POSTCOPY) {
            return Err(invalid("cannot abort migration in post-copy mode"));
        }
        underway.abort.want();
        return Ok(live.monitor().execute(MigratePause {}).await.map(drop)?);
    }
    // Known from the first moment on, before QEMU is asked for the dump.
    if underway.operation == Operation::Dump && underway.flags & DumpFlags::MEMORY_ONLY.bits() != 0 {
        return Err(invalid("cannot abort memory-only dump"));
    }
    underway.abort.want();
    // Whoever drives it does the same, should he only be about to begin.
    Ok(live.monitor().execute(MigrateCancel {}).await.map(drop)?)
}

fn invalid(sentence: &'static str) -> Error {
    Error::operation_invalid(sentence)
}
