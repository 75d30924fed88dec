//! The end of a guest's process, on request.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use crate::util::process::{Exit, Process, Signal};
use crate::util::reason::Reason;

/// How long a QEMU that is only asked may take: it writes its caches out.
const ASK_LIMIT: Duration = Duration::from_secs(15);
/// How long a QEMU that will be killed may take before: what it has not written out by then is lost.
const GRACE: Duration = Duration::from_millis(1600);
/// How much longer for each device of the host that it has to give back.
const GRACE_PER_HOST_DEVICE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed process: it may sit in a disk that does not answer.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// SIGTERM only.
    Graceful,
    /// The same, and SIGKILL when even that was in vain: for a guest that ends on the way to something else, and
    /// whose images are to be whole.
    Patient,
    /// SIGTERM, then SIGKILL.
    Forced,
    /// The same for a guest with that many devices of the host.
    ForcedWith { host_devices: usize },
}

impl How {
    /// How long the process may take after SIGTERM.
    fn patience(self) -> Duration {
        match self {
            Self::Graceful | Self::Patient => ASK_LIMIT,
            Self::Forced => GRACE,
            Self::ForcedWith { host_devices } => {
                let devices = u32::try_from(host_devices).unwrap_or(u32::MAX);
                GRACE.saturating_add(GRACE_PER_HOST_DEVICE.saturating_mul(devices))
            }
        }
    }
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
    let pid = process.pid();
    if let Some(exit) = end(process, Signal::TERM, "TERM", how.patience()).await? {
        return Ok(exit);
    }
    if how == How::Graceful {
        return Err(StopError::Stays { pid, signal: "TERM" });
    }
    warn!(pid, "QEMU ignores SIGTERM, killing it");
    match end(process, Signal::KILL, "KILL", KILL_LIMIT).await? {
        Some(exit) => Ok(exit),
        None => Err(StopError::Stays { pid, signal: "KILL" }),
    }
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
