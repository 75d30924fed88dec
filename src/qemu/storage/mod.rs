//! Images as volumes: what a file says of itself, and how images are made, copied, changed and wiped.
//!
//! | file | |
//! |---|---|
//! | `image` | what the first bytes of an image say |
//! | `inspect` | what a file is: sizes, owner, times, format, the image below it |
//! | `raw` | images without a format |
//! | `changes` | what has changed in a directory |
//! | `copy` | bytes from one file to another, without their holes |
//! | `qemu_img` | images in a format, through `qemu-img` |

mod changes;
mod copy;
mod image;
mod inspect;
mod qemu_img;
mod raw;

use std::io;

use thiserror::Error;

use crate::util::reason::Reason;

pub use changes::{Changes, Watch};
pub use copy::next_data;
pub use image::Facts;
pub use inspect::{directory, is_name, names, open, probe, probe_device, update};
pub use qemu_img::{Opening, QemuImg};
pub use raw::{
    Allocate, Build, Reflink, build, build_directory, clear_ends, fill_device, make_directory,
    open_to_change, own_device, reserve, resize, set_permissions, wipe,
};

/// Why nothing became of a volume. The texts are libvirt's.
#[derive(Debug, Error)]
pub enum VolumeError {
    #[error("{what}: {}", Reason(source))]
    System { what: String, source: io::Error },
    /// The same where libvirt says it in no driver's name.
    #[error("{what}: {}", Reason(source))]
    Helper { what: String, source: io::Error },
    /// A program that failed, or could not be run.
    #[error("{0}")]
    Tool(String),
    #[error("{sentence}")]
    Refused { kind: Refusal, sentence: String },
}

/// Which of libvirt's codes a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Internal,
    InvalidArg,
    NoSupport,
    NoVolume,
    OperationInvalid,
    OperationUnsupported,
    Unsupported,
    Xml,
}

impl VolumeError {
    pub fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }

    pub fn helper(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Helper { what: what.into(), source: source.into() }
    }

    pub fn refused(kind: Refusal, sentence: impl Into<String>) -> Self {
        Self::Refused { kind, sentence: sentence.into() }
    }
}

pub type Result<T, E = VolumeError> = std::result::Result<T, E>;
