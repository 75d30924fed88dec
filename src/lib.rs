//! ferrovirt: a daemon that speaks libvirt's RPC protocol and runs QEMU guests.
//!
//! Floors, top to bottom: `rpc` → `drivers` → `qemu` → `conf` → `util`. A floor imports only floors
//! below it; `tests/tidy.rs` reads the `use` lines and fails otherwise.

pub mod conf;
pub mod config;
pub mod daemon;
pub mod drivers;
pub mod error;
pub mod logging;
pub mod qemu;
pub mod reload;
pub mod rpc;
pub mod service;
pub mod util;
