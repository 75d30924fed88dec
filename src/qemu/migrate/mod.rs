//! A stream of a guest's state: out of one QEMU, into another one, a file, or a program in between.
//!
//! ```text
//!  configure ──► start ──► setup ─► active ─► (pre-switchover ─► device) ─► completed
//!   (on the       (descriptor,  │              │        │                      ▲
//!    way in:       URI, file)   │              │        └► postcopy-active ────┤
//!    receive)                   │              ▼            │         ▲        │
//!                               └────────► failed,          ▼         │ recover
//!                                          cancelled    postcopy-paused ┘
//! ```
//!
//! [`wait`] follows this from what QEMU reports; should a report be lost, it asks. Who drives a stream holds an
//! async job and takes the normal slot for moments only, so that others may ask how far it is, or end it.

mod policy;
mod settings;
mod stream;
mod tls;
mod wait;

use thiserror::Error;

pub use self::policy::{Keys, Policy, TlsKeys, is_loopback};
pub use self::settings::{KNOWN, Settings, configure, parameters, supported};
pub use self::stream::{Target, forget, receive, recover, restart, start};
pub use self::tls::{CREDENTIALS, Credentials, Endpoint, add_credentials, remove_credentials};
pub use self::wait::{Reached, Until, cancel, look, wait, wish};

use crate::qemu::job::{JobError, Operation};
use crate::qemu::monitor::MonitorError;

/// Why a stream did not get to its end. libvirt's code is `VIR_ERR_OPERATION_FAILED` unless a variant says
/// otherwise.
#[derive(Debug, Error)]
pub enum MigrateError {
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// libvirt's code: `VIR_ERR_ARGUMENT_UNSUPPORTED`.
    #[error("Migration option '{option}' is not supported by QEMU binary")]
    Unsupported { option: String },
    #[error("domain is not running")]
    Gone,
    #[error("job '{job}' {}", failure(reason))]
    Failed { job: &'static str, reason: Option<String> },
    #[error("job '{job}' failed in post-copy phase")]
    Postcopy { job: &'static str },
    /// libvirt's code: `VIR_ERR_OPERATION_ABORTED`.
    #[error("job '{job}' canceled by client")]
    Canceled { job: &'static str },
}

fn failure(reason: &Option<String>) -> String {
    match reason {
        Some(reason) => format!("failed: {reason}"),
        None => "unexpectedly failed".to_owned(),
    }
}

/// What an operation is called in errors.
pub fn job_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Start => "start",
        Operation::Save => "domain save",
        Operation::Dump => "domain core dump",
        Operation::Snapshot => "snapshot",
        Operation::Backup => "backup",
        Operation::MigrationOut => "migration out",
        Operation::MigrationIn => "migration in",
    }
}
