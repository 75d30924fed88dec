//! The daemon as its users meet it: in a private root, driven by stock virsh, libvirt-python and raw bytes.
//!
//! One module per area. `FERROVIRT_TEST_DAEMON=upstream` runs the same tests on libvirt's own daemon,
//! which is how an expectation is checked before ours has to meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

use ferrovirt_compat::{Daemon, Kind};

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/bus.rs"]
mod bus;
#[path = "../fake_qemu/mod.rs"]
mod fake_qemu;

mod access;
mod agent;
mod associated;
mod attach;
mod audit;
mod autodestroy;
mod backups;
mod block_jobs;
mod catalogue;
mod compared;
mod console;
mod cpu;
mod dac;
mod define;
mod dump;
mod endings;
mod errors;
mod events;
mod everyday;
mod flags;
mod host;
mod hostile;
mod hotplug;
mod images;
mod iothreads;
mod kerberos;
mod lifecycle;
mod live;
mod luks;
mod many;
mod metadata;
mod migrate;
mod migrate_failures;
mod migrate_postcopy;
mod migrate_soak;
mod migrate_tls;
mod migrate_upstream;
mod migrate_ways;
mod migrate_wire;
mod mistrust;
mod old_client;
mod packaging;
mod plugged_in;
mod pools;
mod python;
mod questions;
mod readopt;
mod reports;
mod resize;
mod save;
mod save_trouble;
mod secret;
mod service;
mod session;
mod shortage;
mod snapshots;
mod ssh;
mod stats;
mod storage;
mod storage_hostile;
mod strays;
mod stress;
mod takeover;
mod traffic;
mod tunables;
mod unwatched;
mod update;
mod usage;

/// The daemon under test.
fn kind() -> Kind {
    Kind::for_tests(env!("CARGO_BIN_EXE_ferrovirtd"))
}

/// One with default configuration.
fn daemon() -> Daemon {
    Daemon::start(kind(), "")
}

/// Whether a test of what only ours does has to be left out.
fn on_upstream() -> bool {
    kind() == Kind::Upstream
}
