//! Long work of QEMU's on a disk's images: what is known of it, and what is asked of it.
//!
//! ```text
//!  New ─► Running ─┬───────────────────────► Concluded, of itself      pull, commit, backup
//!                  └─► Ready ─┬─► Pivoting ──► Concluded                copy, active commit
//!                             └─► Aborting ──► Concluded
//! ```
//!
//! QEMU keeps a job that has concluded until it is dismissed, so a daemon that was not there finds out.

mod effect;
mod overlays;
mod record;
mod run;

use std::collections::BTreeMap;

pub use effect::{Effect, effect};
pub use overlays::Overlays;
pub use record::{BlockJobRecord, BlockJobsRecord};
pub use run::{RunError, run, wait_for};

use crate::conf::backup::Backup;
use crate::conf::devices::Storage;
use crate::conf::xml::xml_enum;

/// Those of one guest, by the names under which QEMU knows them.
pub type BlockJobs = BTreeMap<Box<str>, BlockJob>;

/// One that works on a disk.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockJob {
    /// The disk's name in the guest.
    pub disk: Box<str>,
    pub work: Work,
    pub phase: Phase,
    /// The flag word of the call that began it.
    pub flags: u32,
}

/// What it does. Images are meant by their numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Into the top from all that is above `base`.
    Pull { base: Option<u32> },
    /// To another image, which the disk may then stand on; `inherits` what is below its own first image.
    Copy { inherits: bool },
    /// From `top` and all between into `base`. Without an image `above`, `top` is the one that the guest writes to.
    Commit { top: u32, base: u32, above: Option<u32>, deletes: bool },
    /// To `store`, or to whoever reads it from there.
    Backup { store: Box<Store>, bitmap: Option<Box<str>> },
}

/// A backup as long as it lasts.
#[derive(Debug, Clone)]
pub struct RunningBackup {
    pub backup: Backup,
    /// Images were there before, and stay.
    pub reused: bool,
    /// What is over of it: done, and how much there was to do.
    pub ended: (u64, u64),
    pub error: Option<String>,
}

/// An image that a backup is written to.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub format: crate::conf::devices::StorageFormat,
    pub storage: Storage,
}

xml_enum! {
    /// How far it is, in the words of status files.
    pub enum Phase {
        Completed = "completed",
        Failed = "failed",
        Canceled = "cancelled",
        Ready = "ready",
        New = "new",
        Running = "running",
        Concluded = "concluded",
        Aborting = "aborting",
        Pending = "pending",
        Pivoting = "pivoting",
    }
}

impl BlockJob {
    /// Whether QEMU works on it.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Ready | Phase::Aborting | Phase::Pivoting)
    }

    /// Whether somebody has said how it is to end, and it has not yet.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Aborting | Phase::Pivoting)
    }
}

impl Work {
    /// As it stands in status files and in sentences.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pull { .. } => "pull",
            Self::Copy { .. } => "copy",
            Self::Commit { above: Some(_), .. } => "commit",
            Self::Commit { above: None, .. } => "active-commit",
            Self::Backup { .. } => "backup",
        }
    }
}

/// The job of a disk, with its name.
pub fn of_disk<'a>(jobs: &'a BlockJobs, disk: &str) -> Option<(&'a str, &'a BlockJob)> {
    jobs.iter().find(|(_, job)| &*job.disk == disk).map(|(name, job)| (&**name, job))
}
