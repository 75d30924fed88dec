//! What tests and benchmark share: a daemon in a root of its own, clients, guests, waiting.
//!
//! Ours and libvirt's own daemon (`compat/upstream`) lie the same below their roots, so whatever is
//! written against [`Daemon`] runs on both: an expectation is checked on the original before ours
//! has to meet it.

#![allow(clippy::expect_used, clippy::panic, reason = "for tests: a failure says where and ends the test")]

mod daemon;
mod guest;
mod program;
pub mod wire;

pub use daemon::{Daemon, Kind, gone_within, signal, upstream_is_here};
pub use guest::{Guest, counting, dirtying, halting, linux, part};
pub use program::{LIMIT, Program, Ran, command, eventually, install_script, run, wait_for_listener};
pub use rustix::process::Signal;
