//! The end of a guest's process, on request.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use crate::util::process::{Exit, Process, Signal};
use crate::util::reason::Reason;

/// How long a QEMU that is only asked may take: it writes its caches out.
const ASK_LIMIT: Duration = Duration::from_secs(15);
/// How long a QEMU that will be killed may take before, as with libvirt: what it has not written out by then
/// is lost.
const TERM_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a killed process: it may sit in a disk that does not answer.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// SIGTERM only.
    Graceful,
    /// SIGTERM, then SIGKILL.
    Forced,
}

/// libvirt's code is `VIR_ERR_SYSTEM_ERROR`.
#[derive(Debug, Error)]
pub enum StopError {
    /// It is still there. `errno` is EBUSY.
    #[error("Failed to terminate process {pid} with SIG{signal}: Device or resource busy")]
    Stays { pid: u32, signal: &'static str },
    #[error("Failed to terminate process {pid} with SIG{signal}: {}", Reason(source))]
    Signal { pid: u32, signal: &'static str, source: io::Error },
}

/// Ends a process; ready the moment it is gone.
pub async fn stop(process: &Process, how: How) -> Result<Exit, StopError> {
    let (limit, last) = match how {
        How::Graceful => (ASK_LIMIT, "TERM"),
        How::Forced => (TERM_LIMIT, "KILL"),
    };
    if let Some(exit) = end(process, Signal::TERM, "TERM", limit).await? {
        return Ok(exit);
    }
    if how == How::Forced {
        warn!(pid = process.pid(), "QEMU ignores SIGTERM, killing it");
        if let Some(exit) = end(process, Signal::KILL, "KILL", KILL_LIMIT).await? {
            return Ok(exit);
        }
    }
    Err(StopError::Stays { pid: process.pid(), signal: last })
}

/// Returns when a process that was killed is gone.
pub async fn gone(process: &Process) {
    if !matches!(process.exited_within(KILL_LIMIT).await, Ok(Some(_))) {
        warn!(pid = process.pid(), "a killed QEMU stays");
    }
}

async fn end(
    process: &Process,
    signal: Signal,
    name: &'static str,
    limit: Duration,
) -> Result<Option<Exit>, StopError> {
    let failed = |source| StopError::Signal { pid: process.pid(), signal: name, source };
    process.signal(signal).map_err(failed)?;
    let exit = process.exited_within(limit).await.map_err(failed)?;
    if let Some(exit) = exit {
        info!(pid = process.pid(), ?exit, "QEMU is gone");
    }
    Ok(exit)
}
