//! Why a command did not give its reply. The texts are libvirt's, without the code's short form.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::util::reason::Reason;

/// libvirt's code is `VIR_ERR_INTERNAL_ERROR` unless a variant says otherwise.
#[derive(Debug, Clone, Error)]
pub enum MonitorError {
    /// QEMU ran the command and refused.
    #[error("unable to execute QEMU command '{command}': {text}")]
    Command { command: String, class: String, text: String },
    #[error("unexpected type returned by QEMU command '{command}'")]
    Reply { command: String, detail: String },
    /// QEMU closed the connection: it is gone or about to be.
    #[error("End of file from qemu monitor (vm='{vm}')")]
    Eof { vm: String },
    /// The daemon ended the conversation. libvirt's code: `VIR_ERR_OPERATION_FAILED`.
    #[error("QEMU monitor was closed")]
    Closed,
    #[error("failed to connect to monitor socket: {}", Reason(source))]
    Connect { source: Arc<io::Error> },
    #[error("Unable to read from monitor: {}", Reason(source))]
    Read { source: Arc<io::Error> },
    #[error("Unable to write to monitor: {}", Reason(source))]
    Write { source: Arc<io::Error> },
    #[error("QEMU monitor reply exceeds buffer size ({limit} bytes)")]
    TooLarge { limit: usize },
    #[error("Unknown JSON reply '{line}'")]
    Garbage { line: String },
    #[error("QEMU sent no greeting")]
    NoGreeting,
    /// What a user gave as a command is not JSON.
    #[error("failed to parse JSON: {detail} in {text}")]
    Json { text: String, detail: String },
    /// libvirt's code: `VIR_ERR_OPERATION_TIMEOUT`.
    #[error("QEMU did not answer command '{command}' within {} s", limit.as_secs())]
    Timeout { command: String, limit: Duration },
    #[error("more than {limit} commands wait for QEMU")]
    Busy { limit: usize },
    /// libvirt's code: `VIR_ERR_OPERATION_UNSUPPORTED`.
    #[error("Human monitor command is not available to run {command_line}")]
    NoHumanMonitor { command_line: String },
}

impl MonitorError {
    /// Whether QEMU itself refused, and said that this class of thing is why (`DeviceNotFound`,
    /// `CommandNotFound`, …).
    pub fn is_class(&self, wanted: &str) -> bool {
        matches!(self, Self::Command { class, .. } if class == wanted)
    }
}
