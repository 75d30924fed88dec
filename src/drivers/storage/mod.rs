//! Storage pools and their volumes.
//!
//! ```text
//!            define                  start                     destroy
//!  (nothing) ─────► inactive ───────────────► active, persistent ─────► inactive
//!      │                │ undefine                        ▲
//!      │ create         ▼                                 │ define
//!      │            (nothing)                             │
//!      └─────────────────────────────────────► active, transient ─────► (nothing)
//! ```
//!
//! | file | |
//! |---|---|
//! | `pool`, `list` | one pool; which there are |
//! | `files` | definitions and states on disk |
//! | `define`, `lifecycle` | what becomes of a pool as a whole |
//! | `backend` | what each type of pool stands on |
//! | `refresh` | which volumes there are |
//! | `reads` | lookups, lists, descriptions |
//! | `volumes` | lookups of volumes, descriptions, deletion |
//! | `create`, `change` | how volumes come into being, and what is done to them |
//! | `transfer` | volumes as streams |
//! | `guest` | volumes as disks of guests |
//! | `event` | what subscribers hear |

mod backend;
mod change;
mod create;
mod define;
mod errors;
pub mod event;
mod files;
pub mod flags;
mod guest;
mod lifecycle;
mod list;
pub mod pool;
pub mod reads;
mod refresh;
pub mod transfer;
mod volumes;

use std::ffi::OsString;
use std::sync::Arc;

use self::backend::Backend;
use self::event::PoolEvent;
use self::files::Files;
use self::list::PoolList;
use self::pool::PoolState;
use crate::conf::storage::PoolType;
use crate::drivers::event_bus::{Event, EventBus};
use crate::drivers::secret::Secrets;
use crate::error::{Error, Result};
use crate::qemu::storage::QemuImg;
use crate::util::paths::Paths;

pub use self::transfer::{Download, Upload};
pub use self::volumes::VolumeRef;

/// The driver of storage.
#[derive(Debug)]
pub struct Storage {
    list: PoolList,
    files: Files,
    events: Arc<EventBus>,
    tools: QemuImg,
    secrets: Arc<Secrets>,
}

impl Storage {
    /// `search_path` is $PATH, where `qemu-img` and its like are.
    pub fn new(paths: &Paths, events: Arc<EventBus>, secrets: Arc<Secrets>, search_path: OsString) -> Self {
        Self {
            list: PoolList::default(),
            files: Files::new(paths),
            events,
            tools: QemuImg::new(search_path),
            secrets,
        }
    }

    fn require_backend(kind: PoolType) -> Result<()> {
        Backend::of(kind).map(drop).ok_or_else(|| errors::missing_backend(kind))
    }

    /// Tells subscribers. Called while the state is being replaced, so that events keep the states' order.
    fn publish(&self, state: &PoolState, event: PoolEvent) {
        self.events.publish(Event::Pool { pool: state.reference(), event });
    }

    fn io(what: impl std::fmt::Display, error: std::io::Error) -> Error {
        errors::ours(Error::io(what, error))
    }
}
