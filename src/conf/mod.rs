//! XML models of libvirt's objects: pure functions of their input, no IO, no clock, no tokio.
//!
//! Every model goes through three steps: read (syntax) → defaults (needs facts of the host) → validate.
//! [`xml`] has the machinery, [`devices`] what a guest is plugged together from.

pub mod backup;
pub mod capabilities;
pub mod checkpoint;
pub mod devices;
pub mod domain;
pub mod error;
pub mod fuzz;
pub mod migration;
pub mod moments;
pub mod secret;
pub mod snapshot;
pub mod storage;
pub mod xml;

pub use error::{ConfError, ErrorKind, Origin, Result};
