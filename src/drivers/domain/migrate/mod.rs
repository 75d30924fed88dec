//! Guests that leave for another host, and guests that come from one: libvirt's migration protocol, version 3.
//!
//! ```text
//!   source                client (or the source itself)              destination
//!   ──────                ─────────────────────────────              ───────────
//!   begin   ◄───────────────────────┤
//!     job out, cookie, XML ────────►├──────────────────────────────► prepare
//!                                   │◄────────── job in, cookie, URI  QEMU waits
//!   perform ◄───────────────────────┤
//!     QEMU ══════════════ memory, devices ═════════════════════════► QEMU
//!     stands still, cookie ────────►├──────────────────────────────► finish
//!                                   │◄──────────────── cookie, guest  runs
//!   confirm ◄───────────────────────┤
//!     gone; or goes on, if finish failed
//! ```
//!
//! The jobs last from call to call; what is kept between them is in [`phases`]. If the client leaves, the
//! destination kills what waits, and the source goes on unless all of the guest has left it: then nobody knows
//! where it runs, and it stands still here until somebody decides.

mod allowed;
mod arrival;
mod connect;
pub mod destination;
mod disks;
mod images;
mod peer;
mod phases;
mod place;
pub(super) mod postcopy;
pub(super) mod recover;
mod remote;
pub mod request;
mod screens;
mod settings;
pub mod source;
mod statistics;
mod tell;
mod transport;
mod tuning;
mod tunnel;

pub use self::phases::Migrations;
use self::request::{MigrateFlags, Request};
use crate::conf::migration::Peer;
use crate::drivers::domain::Domains;
use crate::error::{Error, Result};
use crate::qemu::job::{Operation, State, Underway};
use crate::util::uuid::Uuid;

/// What one side has heard of the other before it ends the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Canceled,
}

impl From<i32> for Outcome {
    fn from(cancelled: i32) -> Self {
        if cancelled == 0 { Self::Good } else { Self::Canceled }
    }
}

/// Refuses a second migration of one guest.
fn check_alone(state: &State) -> Result<()> {
    let migrates =
        |underway: &Underway| matches!(underway.operation, Operation::MigrationOut | Operation::MigrationIn);
    match state.operation.as_ref().is_some_and(migrates) {
        true => Err(Error::operation_invalid(format!(
            "another migration job is already running for domain '{}'",
            state.name
        ))),
        false => Ok(()),
    }
}

/// The guest under the name it has at the source, and this host.
fn peer_of(name: &str, uuid: Uuid, host_uuid: Uuid) -> Peer<'_> {
    Peer { name, uuid, host_uuid }
}

/// What this host is called.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Domains {
    /// Refuses what contradicts itself, and what the administrator does not want.
    fn accept(&self, request: &Request) -> Result<()> {
        request.check()?;
        let flags = request.flags;
        if self.rules.migration.force_tls && !flags.intersects(MigrateFlags::TUNNELLED | MigrateFlags::TLS) {
            let sentence = "this libvirtd instance allows migration only with VIR_MIGRATE_TLS flag";
            return Err(Error::operation_invalid(sentence));
        }
        Ok(())
    }
}
