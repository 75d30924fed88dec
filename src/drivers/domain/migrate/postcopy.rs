//! Guests that run on the other side before all of them is there.
//!
//! ```text
//!   source                                        destination
//!   ──────                                        ───────────
//!   PERFORMED ─────────confirm────► gone          finish ────────────────────────► runs here
//!     │ the stream breaks            ▲ ▲             │ the stream breaks              ▲ ▲
//!     ▼                              │ │             ▼                                │ │
//!   POSTCOPY_FAILED ─ QEMU is done ──┘ │          POSTCOPY_FAILED ─── QEMU is done ───┘ │
//!     │ begin                  confirm │             │ prepare                   finish │
//!     ▼                                │             ▼                                  │
//!   BEGIN_RESUME ──perform──► PERFORM_RESUME      PREPARE_RESUME ───────────────────────┘
//! ```
//!
//! From the switch on neither side has the whole guest: nobody ends it there, nobody lets it go on here. What failed
//! stays parked, for whoever resumes it, and is over when QEMU says so.

use std::sync::Arc;

use super::Outcome;
use super::arrival::Awaited;
use super::connect::OtherEnd;
use super::destination::Prepared;
use super::phases::{
    BEGIN_RESUME, FINISHING, Incoming, Outgoing, PERFORM_RESUME, PERFORMED, POSTCOPY_FAILED, PREPARE_RESUME,
    Vcpus,
};
use super::place::Target;
use super::request::{MigrateFlags, Request};
use super::settings::Side;
use super::source::Begun;
use super::{peer_of, statistics};
use crate::conf::migration::{Cookie, Feature};
use crate::drivers::ClientId;
use crate::drivers::domain::Domains;
use crate::drivers::domain::event::{DomainEvent, Lifecycle, Resumed, Suspended};
use crate::error::{Error, Result};
use crate::qemu::job::{
    Allowed, AsyncJob, AsyncOp, DomainHandle, DomainObject, JobSubject, Kind, MigrationIn, MigrationOut,
    Operation, Phase, Start, State,
};
use crate::qemu::migrate::{self, Until};
use crate::qemu::monitor::{MigrationParameters, MigrationStatus};
use crate::qemu::run_state::{Paused, RunState, Running};

/// Whether part of a guest is here and part of it is there.
pub(super) fn is_postcopy(run: RunState) -> bool {
    has_failed(run)
        || matches!(run, RunState::Paused(Paused::Postcopy) | RunState::Running(Running::Postcopy))
}

fn has_failed(run: RunState) -> bool {
    matches!(run, RunState::Paused(Paused::PostcopyFailed) | RunState::Running(Running::PostcopyFailed))
}

/// Whether a guest was left by an earlier daemon with a part of it here and a part there.
pub(in crate::drivers::domain) fn was_left_in_halves(
    operation: Operation,
    phase: &str,
    run: RunState,
) -> bool {
    let is = |phases: &[Phase]| phases.iter().any(|Phase(name)| *name == phase);
    match operation {
        Operation::MigrationOut => {
            is(&[PERFORMED, POSTCOPY_FAILED, BEGIN_RESUME, PERFORM_RESUME]) && is_postcopy(run)
        }
        Operation::MigrationIn => {
            is(&[POSTCOPY_FAILED, PREPARE_RESUME]) || (is(&[FINISHING]) && is_postcopy(run))
        }
        _ => false,
    }
}

impl Domains {
    /// The stream is broken, or nobody watches it: what is left waits for somebody.
    pub(super) fn park_failed<O: AsyncOp>(self: &Arc<Self>, job: AsyncJob<O>) {
        self.note_postcopy_failed(job.object());
        self.park_unattended(job);
    }

    /// Leaves the migration to QEMU, and to whoever resumes it.
    pub(super) fn park_unattended<O: AsyncOp>(self: &Arc<Self>, job: AsyncJob<O>) {
        self.write_down(&job, POSTCOPY_FAILED);
        let object = Arc::clone(job.object());
        job.park(POSTCOPY_FAILED);
        // It may have come to its end while nobody could take notice.
        if object.state().reported_migration() == Some(MigrationStatus::Completed) {
            tokio::spawn(Arc::clone(self).finish_unattended(object));
        }
    }

    pub(super) fn note_postcopy_failed(&self, object: &DomainObject) {
        self.tell(object, |state| {
            let Some(operation) = state.operation.as_ref().map(|underway| underway.operation) else {
                return Vec::new();
            };
            let event = match (operation, state.run) {
                _ if has_failed(state.run) => return Vec::new(),
                (Operation::MigrationOut, RunState::Paused(_)) => {
                    state.run = RunState::Paused(Paused::PostcopyFailed);
                    Lifecycle::Suspended(Suspended::PostcopyFailed)
                }
                (Operation::MigrationIn, RunState::Running(_)) => {
                    state.run = RunState::Running(Running::PostcopyFailed);
                    Lifecycle::Resumed(Resumed::PostcopyFailed)
                }
                // It stands still for a reason of its own.
                (Operation::MigrationIn, RunState::Paused(_)) => {
                    Lifecycle::Suspended(Suspended::PostcopyFailed)
                }
                _ => return Vec::new(),
            };
            tracing::warn!(domain = %state.name, "post-copy migration failed; neither side has the whole guest");
            vec![DomainEvent::Lifecycle(event)]
        });
    }

    /// What QEMU reports of a stream that perhaps nobody follows.
    pub(in crate::drivers::domain) fn note_migration(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        status: MigrationStatus,
    ) {
        let state = object.state();
        let Some(underway) = &state.operation else { return };
        let leaves = underway.operation == Operation::MigrationOut;
        match status {
            MigrationStatus::PostcopyActive if leaves => self.tell(object, |state| {
                if state.run != RunState::Paused(Paused::Migration) {
                    return Vec::new();
                }
                state.run = RunState::Paused(Paused::Postcopy);
                vec![DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::Postcopy))]
            }),
            MigrationStatus::PostcopyPaused if leaves && matches!(state.run, RunState::Paused(_)) => {
                self.note_postcopy_failed(object);
            }
            MigrationStatus::PostcopyRecover => self.tell(object, |state| {
                let event = match state.run {
                    RunState::Paused(Paused::PostcopyFailed) => {
                        state.run = RunState::Paused(Paused::Postcopy);
                        Lifecycle::Suspended(Suspended::Postcopy)
                    }
                    RunState::Running(Running::PostcopyFailed) => {
                        state.run = RunState::Running(Running::Postcopy);
                        Lifecycle::Resumed(Resumed::Postcopy)
                    }
                    _ => return Vec::new(),
                };
                vec![DomainEvent::Lifecycle(event)]
            }),
            MigrationStatus::Completed if underway.phase == Some(POSTCOPY_FAILED) => {
                tokio::spawn(Arc::clone(self).finish_unattended(Arc::clone(object)));
            }
            _ => {}
        }
    }

    /// QEMU has come to the end of what nobody watched.
    pub(super) async fn finish_unattended(self: Arc<Self>, object: Arc<DomainObject>) {
        let name = Arc::clone(&object.state().name);
        let domain = || DomainHandle::new(Arc::clone(&object));
        let finished = if let Ok(mut job) = domain().resume::<MigrationOut>(POSTCOPY_FAILED) {
            self.end_here(&mut job).await
        } else if let Ok(mut job) = domain().resume::<MigrationIn>(POSTCOPY_FAILED) {
            let incoming = self.migrations.has_arrived(object.state().uuid);
            self.note_all_arrived(&job);
            self.settle_here(&mut job, incoming.and_then(|incoming| incoming.before).as_deref()).await;
            Ok(())
        } else {
            return;
        };
        match finished {
            Ok(()) => tracing::info!(domain = %name, "a migration that nobody watched is complete"),
            Err(error) => tracing::error!(domain = %name, %error, "cannot end a guest that has left"),
        }
        self.forget_unused(&object);
    }

    /// All of the guest is here.
    pub(super) fn note_all_arrived(&self, job: &AsyncJob<MigrationIn>) {
        self.tell(job.object(), |state| {
            // All but the times is of before the switch.
            state.completed = None;
            if matches!(state.run, RunState::Running(_)) {
                state.run = RunState::Running(Running::Migrated);
            }
            vec![DomainEvent::Lifecycle(Lifecycle::Resumed(Resumed::Migrated))]
        });
    }

    /// Takes up what an earlier daemon left, in the place of the job under which the guest was found.
    pub(in crate::drivers::domain) async fn take_up_postcopy<O: AsyncOp>(
        self: &Arc<Self>,
        found: AsyncJob<Start>,
        flags: u32,
    ) -> Result<()> {
        let object = Arc::clone(found.object());
        let begin = DomainHandle::new(Arc::clone(&object)).begin_async::<O>();
        let (job, ()) = tokio::join!(begin, async { drop(found) });
        let mut job = job?;
        job.allow(match O::OPERATION {
            Operation::MigrationIn => Allowed::DESTROY_ONLY.and(&[Kind::MigrationSafe]),
            _ => super::source::ALLOWED,
        });
        job.describe(flags, JobSubject::Migration);
        // A next daemon has to find it as this one did.
        self.write_down(&job, POSTCOPY_FAILED);
        match migrate::look(&mut job).await.map(|told| told.status) {
            Ok(MigrationStatus::PostcopyActive) => self.park_unattended(job),
            Ok(MigrationStatus::Completed) => {
                self.park_unattended(job);
                Arc::clone(self).finish_unattended(object).await;
            }
            _ => self.park_failed(job),
        }
        Ok(())
    }

    /// The first phase of going on.
    pub(super) async fn begin_again(
        self: &Arc<Self>,
        domain: &DomainHandle,
        request: &Request,
        client: ClientId,
    ) -> Result<Begun> {
        let mut job = self.resume_failed::<MigrationOut>(domain, request, POSTCOPY_FAILED)?;
        match self.offer_again(&mut job, request).await {
            Ok(begun) => {
                self.wait_for_client(job, client, BEGIN_RESUME);
                Ok(begun)
            }
            Err(error) => {
                self.park_unattended(job);
                Err(error)
            }
        }
    }

    pub(super) async fn offer_again(
        &self,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
    ) -> Result<Begun> {
        check_broken(job).await?;
        let state = job.state();
        let mut cookie = Cookie::new(peer_of(&state.name, state.uuid, self.host_uuid), &super::hostname());
        let nested = job.nested().await?;
        let live = nested.live()?;
        cookie.capabilities = Side::Source.told(&migrate::supported(&live).await?);
        if let (Some(live), Some(launched)) = (&state.live, &state.launched)
            && launched.defined_cpu.is_some()
        {
            cookie.cpu = live.cpu.clone();
        }
        Ok(Begun { cookie: cookie.to_bytes()?, xml: self.portable_xml(&state, request).await? })
    }

    /// The second one, where the guest is to be complete.
    pub(super) async fn prepare_again(
        self: &Arc<Self>,
        request: &Request,
        cookie: &[u8],
        (client, target): (ClientId, Target),
    ) -> Result<Prepared> {
        let xml = request.destination_xml().ok_or_else(|| Error::internal_error("no domain XML passed"))?;
        let definition = Arc::new(self.read_definition(xml).await?);
        let source_name: Arc<str> = (&*definition.name).into();
        let domain = self.list.by_name(request.destination_name().unwrap_or(&source_name))?;
        let mut job = self.resume_failed::<MigrationIn>(&domain, request, POSTCOPY_FAILED)?;
        let uuid = job.state().uuid;
        let prepared = async {
            check_broken(&mut job).await?;
            let peer = peer_of(&source_name, uuid, self.host_uuid);
            Cookie::parse(cookie, peer, &[Feature::Capabilities])?;
            let mut ours = Cookie::new(peer, &super::hostname());
            let nested = job.nested().await?;
            let live = nested.live()?;
            let chosen = self.listen(&live, target, (request, Awaited::Rest)).await?;
            ours.capabilities = Side::Destination.told(&migrate::supported(&live).await?);
            Ok(Prepared { cookie: ours.to_bytes()?, uri: chosen })
        };
        match prepared.await {
            Ok(prepared) => {
                let before = self.migrations.has_arrived(uuid).and_then(|incoming| incoming.before);
                self.migrations.arrives(uuid, Incoming { client, source_name, definition, before });
                self.write_down(&job, PREPARE_RESUME);
                job.park(PREPARE_RESUME);
                Ok(prepared)
            }
            Err(error) => {
                self.ports.release_arrival(uuid);
                self.park_unattended(job);
                Err(error)
            }
        }
    }

    /// The third: the rest streams again.
    pub(super) async fn perform_again(
        self: &Arc<Self>,
        domain: &DomainHandle,
        request: &Request,
        (target, cookie): (Target, &[u8]),
        client: ClientId,
    ) -> Result<Vec<u8>> {
        let mut job = self.resume_failed::<MigrationOut>(domain, request, BEGIN_RESUME)?;
        self.migrations.has_left(job.state().uuid);
        match self.stream_again(&mut job, request, (target, cookie)).await {
            Ok(cookie) => {
                self.wait_for_client(job, client, PERFORM_RESUME);
                Ok(cookie)
            }
            Err(error) => {
                self.park_unattended(job);
                Err(error)
            }
        }
    }

    pub(super) async fn stream_again(
        &self,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
        (target, cookie): (Target, &[u8]),
    ) -> Result<Vec<u8>> {
        self.write_down(job, PERFORM_RESUME);
        let state = job.state();
        let peer = peer_of(&state.name, state.uuid, self.host_uuid);
        let theirs = Cookie::parse(cookie, peer, &[Feature::Capabilities])?;
        let settings = Side::Source.settings(request, theirs.as_ref())?;
        // Whoever interrupted it did so the last time.
        job.update(|state| state.operation.iter_mut().for_each(|underway| underway.abort = Arc::default()));
        let other_end = OtherEnd::at(target, request)?.open(request).await?;
        {
            let nested = job.nested().await?;
            let live = nested.live()?;
            if let Some(speed) = settings.parameters.max_postcopy_bandwidth {
                let speed = MigrationParameters { max_postcopy_bandwidth: Some(speed), ..Default::default() };
                live.monitor().execute(speed).await?;
            }
            migrate::restart(&live, other_end).await?;
        }
        migrate::wait(job, Until { switchover: false, postcopy: true }).await?;
        let mut ours = Cookie::new(peer, &super::hostname());
        let told = job.state().operation.as_ref().map(|underway| statistics::told(&underway.statistics));
        ours.statistics = told.map(Box::new);
        Ok(ours.to_bytes()?)
    }

    /// The fourth: returns when all of the guest is here.
    pub(super) async fn finish_again(
        &self,
        job: &mut AsyncJob<MigrationIn>,
        (cookie, incoming): (&[u8], Option<&Incoming>),
    ) -> Result<Vec<u8>> {
        let state = job.state();
        let source_name = incoming.map_or(&state.name, |incoming| &incoming.source_name);
        let peer = peer_of(source_name, state.uuid, self.host_uuid);
        let understood = [Feature::Network, Feature::Statistics, Feature::Nbd, Feature::Persistent];
        Cookie::parse(cookie, peer, &understood)?;
        migrate::wait(job, Until::default()).await?;
        self.note_all_arrived(job);
        self.settle_here(job, incoming.and_then(|incoming| incoming.before.as_deref())).await;
        Ok(Cookie::new(peer, &super::hostname()).to_bytes()?)
    }

    fn wait_for_client(&self, job: AsyncJob<MigrationOut>, client: ClientId, phase: Phase) {
        let outgoing = Outgoing { client, vcpus: Vcpus::Ran, before: None, screens: false, locked: None };
        self.migrations.leaves(job.state().uuid, outgoing);
        self.write_down(&job, phase);
        job.park(phase);
    }

    /// Takes a failed migration over where the last phase of going on left it.
    pub(super) fn resume_failed<O: AsyncOp>(
        &self,
        domain: &DomainHandle,
        request: &Request,
        expected: Phase,
    ) -> Result<AsyncJob<O>> {
        let unsupported = |sentence: &'static str| Err(Error::argument_unsupported(sentence));
        if !request.has(MigrateFlags::POSTCOPY) {
            return unsupported("resuming failed post-copy migration requires post-copy to be enabled");
        }
        let protected = request.flags.intersects(MigrateFlags::CHANGE_PROTECTION | MigrateFlags::PEER2PEER);
        if O::OPERATION == Operation::MigrationOut && expected != PERFORM_RESUME && !protected {
            return unsupported("resuming failed post-copy migration requires change protection");
        }
        let state = domain.state();
        // The stream may have broken before the client came to hear of it.
        let broken = expected == POSTCOPY_FAILED && has_failed(state.run);
        let also = [expected, PERFORMED];
        super::phases::resume(domain, if broken { &also } else { &also[..1] })
            .map_err(|error| why_not::<O>(&state, expected).unwrap_or(error))
    }
}

/// A stream that goes on need not be mended.
async fn check_broken<O: AsyncOp>(job: &mut AsyncJob<O>) -> Result<()> {
    match migrate::look(job).await?.status {
        MigrationStatus::PostcopyPaused => Ok(()),
        _ => Err(Error::operation_invalid("QEMU reports migration is still running")),
    }
}

/// Why a migration cannot be gone on with; None: there is none.
fn why_not<O: AsyncOp>(state: &State, expected: Phase) -> Option<Error> {
    let underway = state.operation.as_ref().filter(|underway| underway.operation == O::OPERATION)?;
    let name = &state.name;
    let phase = underway.phase;
    let resuming = [BEGIN_RESUME, PERFORM_RESUME, PREPARE_RESUME];
    let sentence = if phase == Some(expected) {
        format!("migration of domain {name} is being actively monitored by another thread")
    } else if !is_postcopy(state.run) {
        format!("migration of domain {name} is not in post-copy phase")
    } else if phase.is_some_and(|phase| resuming.contains(&phase)) {
        format!("resuming failed post-copy migration of domain {name} already in progress")
    } else {
        format!("post-copy migration of domain {name} has not failed")
    };
    Some(Error::operation_invalid(sentence))
}

/// What the end of the last phase means for one that has failed.
pub(super) fn failure(outcome: Outcome, error: Error) -> Error {
    match outcome {
        Outcome::Canceled => Error::operation_failed("job 'migration in' failed in post-copy phase"),
        Outcome::Good => error,
    }
}
