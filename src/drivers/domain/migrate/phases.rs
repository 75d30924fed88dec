//! What is kept of a migration between two of its calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::conf::domain::Domain;
use crate::drivers::ClientId;
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, AsyncOp, DomainHandle, MigrationIn, MigrationOut, Operation, Phase};
use crate::qemu::monitor::MigrationParameters;
use crate::util::process::LockLimit;
use crate::util::uuid::Uuid;

/// The source has said what the guest is, and nothing has happened yet.
pub(super) const BEGUN: Phase = Phase("begin3");
/// The source's QEMU works.
pub(super) const PERFORMING: Phase = Phase("perform3");
/// All of the guest has left the source, where it stands still.
pub(super) const PERFORMED: Phase = Phase("perform3_done");
/// The guest runs on the other side.
pub(super) const CONFIRMED: Phase = Phase("confirm3");
/// The destination's QEMU waits for the guest.
pub(super) const PREPARED: Phase = Phase("prepare");
/// The destination is about to let the guest go, or has done so.
pub(super) const FINISHING: Phase = Phase("finish3");
/// Part of the guest is on either side, and nobody sees to it; see [`super::postcopy`].
pub(super) const POSTCOPY_FAILED: Phase = Phase("postcopy_failed");
/// The same, and the source is about to send the rest.
pub(super) const BEGIN_RESUME: Phase = Phase("begin_resume");
/// The rest leaves the source.
pub(super) const PERFORM_RESUME: Phase = Phase("perform_resume");
/// The destination's QEMU waits for the rest.
pub(super) const PREPARE_RESUME: Phase = Phase("prepare_resume");

/// The migrations under way, by guest.
#[derive(Debug, Default)]
pub struct Migrations {
    outgoing: Mutex<HashMap<Uuid, Outgoing>>,
    incoming: Mutex<HashMap<Uuid, Incoming>>,
}

/// The fastest that can be said, which stands for no limit.
pub(super) const MAX_MIB_PER_SECOND: u64 = i64::MAX.cast_unsigned() >> 20;

/// Of a guest that leaves.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    /// Who drives it.
    pub client: ClientId,
    /// Whether it ran when it was asked to leave.
    pub vcpus: Vcpus,
    /// What its QEMU had been told before.
    pub before: Option<Box<MigrationParameters>>,
    /// Whether viewers of its screen go with it.
    pub screens: bool,
    /// How much memory its QEMU could lock before.
    pub locked: Option<LockLimit>,
}

/// Of a guest that arrives.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub client: ClientId,
    /// What it is called where it comes from.
    pub source_name: Arc<str>,
    /// What it is, as it came with the call.
    pub definition: Arc<Domain>,
    /// What its QEMU had been told before.
    pub before: Option<Box<MigrationParameters>>,
}

/// Whether a guest ran before it was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vcpus {
    Ran,
    StoodStill,
}

impl Migrations {
    pub(super) fn leaves(&self, guest: Uuid, outgoing: Outgoing) {
        self.outgoing().insert(guest, outgoing);
    }

    pub(super) fn has_left(&self, guest: Uuid) -> Option<Outgoing> {
        self.outgoing().remove(&guest)
    }

    pub(super) fn arrives(&self, guest: Uuid, incoming: Incoming) {
        self.incoming().insert(guest, incoming);
    }

    pub(super) fn has_arrived(&self, guest: Uuid) -> Option<Incoming> {
        self.incoming().remove(&guest)
    }

    /// Nothing is under way with a guest any more.
    pub(in crate::drivers::domain) fn forget(&self, guest: Uuid) {
        self.outgoing().remove(&guest);
        self.incoming().remove(&guest);
    }

    /// The guests that a client was moving when it left.
    pub(super) fn abandoned(&self, client: ClientId) -> (Vec<Uuid>, Vec<Uuid>) {
        let outgoing =
            self.outgoing().iter().filter(|(_, it)| it.client == client).map(|(uuid, _)| *uuid).collect();
        let incoming =
            self.incoming().iter().filter(|(_, it)| it.client == client).map(|(uuid, _)| *uuid).collect();
        (outgoing, incoming)
    }

    fn outgoing(&self) -> MutexGuard<'_, HashMap<Uuid, Outgoing>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self) -> MutexGuard<'_, HashMap<Uuid, Incoming>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a migration over where an earlier call left it.
pub(super) fn resume<O: AsyncOp>(domain: &DomainHandle, phases: &[Phase]) -> Result<AsyncJob<O>> {
    let object = domain.object();
    let resumed =
        phases.iter().find_map(|phase| DomainHandle::new(Arc::clone(object)).resume::<O>(*phase).ok());
    resumed.ok_or_else(|| {
        let name = &object.state().name;
        Error::operation_invalid(match O::OPERATION {
            Operation::MigrationIn => format!("domain '{name}' is not processing incoming migration"),
            _ => format!("domain '{name}' is not being migrated"),
        })
    })
}

pub(super) fn resume_out(domain: &DomainHandle, phases: &[Phase]) -> Result<AsyncJob<MigrationOut>> {
    resume(domain, phases)
}

pub(super) fn resume_in(domain: &DomainHandle, phase: Phase) -> Result<AsyncJob<MigrationIn>> {
    resume(domain, &[phase])
}
