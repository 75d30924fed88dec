//! One guest's QEMU process, from an empty directory to its end.
//!
//! ```text
//! Prepared::new ──▶ Prepared ──start──▶ Started ──keep──▶ Running ──stop──▶ gone ──▶ Files::remove
//!  directories,      │  listen, pass       │  QEMU waits      │                          ▲
//!  monitor socket    │                     │  in -S           │                          │
//!                    ▼ drop                ▼ drop             └─ the daemon ends: QEMU   │
//!                 files removed      killed, files removed       stays; the next one     │
//!                                                                adopts it ──────────────┘
//! ```
//!
//! Until [`Started::keep`] everything cleans up behind itself, also when the future of a start is dropped
//! half-way. From then on the process belongs to nobody but itself.

mod adopt;
mod files;
mod start;
mod stop;
mod strays;

use std::path::Path;

pub use adopt::{AdoptError, Adopted, Claim, Introduction, adopt};
pub use files::{Directories, Files, Language, Prepared, listen_at, short_name};
pub use start::{Launch, Spawned, StartError, Started};
pub use stop::{How, StopError, gone, stop};
pub use strays::{Stray, strays, twin};

use super::monitor::Monitor;
use crate::util::process::Process;

/// A guest's process, its monitor, and the files that go with it.
#[derive(Debug, Clone)]
pub struct Running {
    pub process: Process,
    pub monitor: Monitor,
    pub files: Files,
}

/// The socket name below a guest's directory.
fn monitor_path(directory: &Path) -> std::path::PathBuf {
    directory.join("monitor.sock")
}
