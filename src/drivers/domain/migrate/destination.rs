//! The side that a guest comes to.
//!
//! ```text
//!   prepare ──► PREPARED ──► finish ──► runs here
//!    its QEMU waits    │        └──────► was canceled, or does not come up: killed
//!                      └─ the client leaves: killed
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::arrival::Awaited;
use super::phases::{FINISHING, Incoming, PREPARE_RESUME, PREPARED, resume_in};
use super::place::Target;
use super::request::{MigrateFlags, Request};
use super::settings::Side;
use super::tell::put_back;
use super::{Outcome, disks, peer_of, postcopy, screens, statistics, tunnel};
use crate::conf::domain::Domain;
use crate::conf::migration::{Cookie, Feature, Persistent};
use crate::drivers::ClientId;
use crate::drivers::domain::Domains;
use crate::drivers::domain::blocking;
use crate::drivers::domain::event::{DomainEvent, Lifecycle, Started, Suspended};
use crate::drivers::domain::list::{Added, Existing};
use crate::drivers::domain::start::{Beginning, Plan, Variables};
use crate::error::{Error, Result};
use crate::qemu::job::{
    Allowed, AsyncJob, DomainHandle, DomainObject, Ending, JobSubject, Kind, MigrationIn, State, now_ms,
};
use crate::qemu::migrate::{self, Reached, Until};
use crate::qemu::monitor::{MigrationParameters, QueryChardev};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::util::uuid::Uuid;
use tokio::net::UnixStream;

/// What is understood of the source's first cookie.
const OFFERED: [Feature; 7] = [
    Feature::Lockstate,
    Feature::Nbd,
    Feature::MemoryHotplug,
    Feature::CpuHotplug,
    Feature::Cpu,
    Feature::Capabilities,
    Feature::Bitmaps,
];

/// What the second phase answers.
#[derive(Debug)]
pub struct Prepared {
    pub cookie: Vec<u8>,
    /// Where the guest's state is to go, where the client did not say it.
    pub uri: Option<String>,
}

/// How the guest's state gets to its QEMU.
#[derive(Debug)]
pub(super) enum Way {
    /// QEMU listens.
    Direct(Target),
    /// Through the daemon.
    Tunnel(OwnedFd),
    /// The guest does not run; clients want to hear of a place all the same.
    Offline(Target),
}

impl Domains {
    /// Has a QEMU wait for a guest.
    pub async fn migrate_prepare(
        self: &Arc<Self>,
        request: &Request,
        cookie: &[u8],
        client: ClientId,
    ) -> Result<Prepared> {
        if request.has(MigrateFlags::TUNNELLED) {
            let sentence = "Tunnelled migration requested but invalid RPC method called";
            return Err(Error::internal_error(sentence));
        }
        self.accept(request)?;
        let target = match request.uri() {
            Some(uri) => Target::parse(uri)?,
            None => self.own_address()?,
        };
        if request.has(MigrateFlags::POSTCOPY_RESUME) {
            return self.prepare_again(request, cookie, (client, target)).await;
        }
        let way = if request.has(MigrateFlags::OFFLINE) { Way::Offline(target) } else { Way::Direct(target) };
        // A whole start is in it.
        Box::pin(self.prepare(request, cookie, client, way)).await
    }

    /// Has a QEMU wait for a guest that comes through this daemon; answers where what comes is to be written as well.
    pub async fn migrate_prepare_tunnel(
        self: &Arc<Self>,
        request: &Request,
        cookie: &[u8],
        client: ClientId,
    ) -> Result<(Prepared, UnixStream)> {
        if !request.has(MigrateFlags::TUNNELLED) {
            return Err(Error::internal_error("PrepareTunnel called but no TUNNELLED flag set"));
        }
        self.accept(request)?;
        let (ours, qemus) =
            tunnel::pair().map_err(|error| Error::io("cannot create a socket pair", error))?;
        let prepared = Box::pin(self.prepare(request, cookie, client, Way::Tunnel(qemus))).await?;
        Ok((prepared, ours))
    }

    /// The second phase, on this side.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        request: &Request,
        cookie: &[u8],
        client: ClientId,
        way: Way,
    ) -> Result<Prepared> {
        // What cannot be meant is said before the other side is looked at.
        Side::Destination.settings(request, None)?;
        let xml = request.destination_xml().ok_or_else(|| Error::internal_error("no domain XML passed"))?;
        let mut definition = self.read_definition(xml).await?;
        let source_name: Arc<str> = (&*definition.name).into();
        if let Some(name) = request.destination_name() {
            definition.name = name.into();
        }
        let peer = peer_of(&source_name, definition.uuid, self.host_uuid);
        let theirs = Cookie::parse(cookie, peer, &OFFERED)?;
        let (name, uuid) = (&*definition.name, definition.uuid);
        let Added { object, .. } = self
            .list
            .add((name, uuid), Existing::Start, || DomainObject::new(State::new(name, uuid), self.limits))?;
        let prepared = async {
            let mut job = DomainHandle::new(Arc::clone(&object)).begin_async::<MigrationIn>().await?;
            job.allow(Allowed::DESTROY_ONLY.and(&[Kind::MigrationSafe]));
            job.note(|statistics| statistics.subject = JobSubject::Migration);
            job.update(|state| {
                if let Some(underway) = &mut state.operation {
                    underway.flags = request.flags.bits();
                }
            });
            if job.state().is_active() {
                return Err(Error::operation_invalid(format!("domain '{name}' is already active"))
                    .from_origin(crate::error::Origin::DOMAIN));
            }
            let answer =
                self.receive(&mut job, request, (&definition, theirs.as_ref()), (client, way)).await?;
            Ok((job, answer))
        };
        match prepared.await {
            Ok((job, (answer, before))) => {
                let definition = Arc::new(definition);
                self.migrations.arrives(uuid, Incoming { client, source_name, definition, before });
                job.park(PREPARED);
                Ok(answer)
            }
            Err(error) => {
                self.ports.release_arrival(uuid);
                self.forget_unused(&object);
                Err(error)
            }
        }
    }

    async fn receive(
        self: &Arc<Self>,
        job: &mut AsyncJob<MigrationIn>,
        request: &Request,
        (definition, theirs): (&Domain, Option<&Cookie>),
        (client, way): (ClientId, Way),
    ) -> Result<(Prepared, Option<Box<MigrationParameters>>)> {
        let source_name = theirs.map_or(&definition.name, |cookie| &cookie.name);
        let mut ours = Cookie::new(peer_of(source_name, definition.uuid, self.host_uuid), &super::hostname());
        if let Way::Offline(target) = way {
            let (_, uri) = self.choose_port(target, definition.uuid)?;
            return Ok((Prepared { cookie: ours.to_bytes()?, uri }, None));
        }
        if let Some(nbd) = theirs.and_then(|cookie| cookie.nbd.as_ref()) {
            self.make_images(definition, request, nbd).await?;
        }
        let settings = Side::Destination.settings(request, theirs)?;
        let exact_cpu = theirs.and_then(|cookie| cookie.cpu.clone());
        let beginning = Beginning::Incoming(Paused::Migration);
        let variables = Variables::Kept;
        let plan = Plan { definition, owner: Some(client), beginning, exact_cpu, variables };
        self.run(job, plan).await?;
        let opened = async {
            let before = self.tell_qemu(job, (Side::Destination, request), settings, None).await?;
            ours.nbd = self.serve_disks(job, request, theirs).await?;
            let nested = job.nested().await?;
            let live = nested.live()?;
            ours.graphics = live.state().live.as_deref().and_then(screens::offered);
            ours.capabilities = Side::Destination.told(&migrate::supported(&live).await?);
            let uri = match way {
                Way::Tunnel(descriptor) => {
                    migrate::receive(&live, migrate::Target::Descriptor(descriptor)).await?;
                    None
                }
                Way::Direct(target) | Way::Offline(target) => {
                    self.listen(&live, target, (request, Awaited::Guest)).await?
                }
            };
            Ok::<_, Error>((before, uri))
        };
        let (before, uri) = match opened.await {
            Ok(before) => before,
            Err(error) => {
                self.end_incoming(job.object()).await;
                return Err(error);
            }
        };
        let object = Arc::clone(job.object());
        object.observe(
            |_| (),
            |state, ()| {
                self.publish(state, DomainEvent::Lifecycle(Lifecycle::Started(Started::Migrated)));
            },
        );
        Ok((Prepared { cookie: ours.to_bytes()?, uri }, Some(before)))
    }

    /// The guest has come, or does not come.
    pub async fn migrate_finish(
        self: &Arc<Self>,
        domain: DomainHandle,
        request: &Request,
        cookie: &[u8],
        outcome: Outcome,
    ) -> Result<(Arc<State>, Vec<u8>)> {
        let received_ms = now_ms();
        let again = request.has(MigrateFlags::POSTCOPY_RESUME);
        let mut job = match again {
            true => self.resume_failed(&domain, request, PREPARE_RESUME)?,
            false => resume_in(&domain, PREPARED)?,
        };
        if !again && !request.has(MigrateFlags::OFFLINE) {
            self.write_down(&job, FINISHING);
        }
        let uuid = job.state().uuid;
        let incoming = self.migrations.has_arrived(uuid);
        let object = Arc::clone(job.object());
        let finished = match outcome {
            Outcome::Canceled => Err(Error::migrate_finish_ok("")),
            Outcome::Good if again => self.finish_again(&mut job, (cookie, incoming.as_ref())).await,
            Outcome::Good => self.finish(&mut job, request, (cookie, incoming.as_ref()), received_ms).await,
        };
        match finished {
            Ok(cookie) => {
                let state = object.state();
                drop(job);
                object.observe(|_| (), |state, ()| self.save_status(state));
                Ok((state, cookie))
            }
            // It has begun to run here, and cannot do so anywhere else.
            Err(error) if object.state().is_active() && !object.state().autodestroy => {
                if let Some(incoming) = incoming {
                    self.migrations.arrives(uuid, incoming);
                }
                self.ports.release_arrival(uuid);
                self.park_failed(job);
                Err(postcopy::failure(outcome, error))
            }
            Err(error) => {
                let error = match outcome {
                    Outcome::Canceled => self.why_it_failed(&mut job).await.unwrap_or(error),
                    Outcome::Good => error,
                };
                self.end_incoming(&object).await;
                drop(job);
                self.ports.release_arrival(uuid);
                self.forget_unused(&object);
                Err(error)
            }
        }
    }

    async fn finish(
        self: &Arc<Self>,
        job: &mut AsyncJob<MigrationIn>,
        request: &Request,
        (cookie, incoming): (&[u8], Option<&Incoming>),
        received_ms: u64,
    ) -> Result<Vec<u8>> {
        let state = job.state();
        let incoming = incoming.ok_or_else(|| Error::internal_error("guest unexpectedly quit"))?;
        let source_name = &incoming.source_name;
        let peer = peer_of(source_name, state.uuid, self.host_uuid);
        let understood = [Feature::Network, Feature::Statistics, Feature::Nbd, Feature::Persistent];
        let theirs = Cookie::parse(cookie, peer, &understood)?;
        let mut ours = Cookie::new(peer, &super::hostname());
        if request.has(MigrateFlags::OFFLINE) {
            let definition =
                theirs.and_then(|cookie| cookie.persistent).map(|Persistent(definition)| *definition);
            let definition = definition.unwrap_or_else(|| Domain::clone(&incoming.definition));
            self.persist(job.object(), definition).await?;
            self.ports.release_arrival(state.uuid);
            return Ok(ours.to_bytes()?);
        }
        if !state.is_active() {
            return Err(Error::internal_error("guest unexpectedly quit"));
        }
        let until = Until { switchover: false, postcopy: request.has(MigrateFlags::POSTCOPY) };
        if request.flags.copies_disks() {
            let nested = job.nested().await?;
            disks::end_serving(&nested.live()?).await?;
        }
        let reached = migrate::wait(job, until).await?;
        if request.has(MigrateFlags::PERSIST_DEST) {
            let told = theirs.as_ref().and_then(|cookie| cookie.persistent.clone());
            let definition = told.map(|Persistent(definition)| *definition);
            let definition = definition.unwrap_or_else(|| Domain::clone(&incoming.definition));
            self.persist(job.object(), definition).await?;
        }
        self.note_channels(job).await?;
        if !request.has(MigrateFlags::PAUSED) {
            self.let_arrived_go(job, reached).await?;
        }
        let completed = theirs
            .and_then(|cookie| cookie.statistics)
            .map(|told| Arc::new(statistics::received(&told, received_ms)));
        ours.statistics = completed.as_ref().map(|completed| Box::new(statistics::told(completed)));
        job.update(|state| state.completed = completed);
        if reached == Reached::Postcopy {
            self.owners.release(state.uuid);
            job.update_then(|state| state.autodestroy = false, |state, ()| self.save_status(state));
            migrate::wait(job, Until::default()).await?;
            self.note_all_arrived(job);
        }
        self.settle_here(job, incoming.before.as_deref()).await;
        Ok(ours.to_bytes()?)
    }

    /// Nothing of the migration is left but the guest.
    pub(super) async fn settle_here(
        &self,
        job: &mut AsyncJob<MigrationIn>,
        before: Option<&MigrationParameters>,
    ) {
        let state = job.state();
        self.owners.release(state.uuid);
        self.ports.release_arrival(state.uuid);
        if let Err(error) = put_back(job, before).await {
            tracing::warn!(domain = %state.name, %error, "the guest's QEMU keeps what it was told for the migration");
        }
        job.update_then(
            |state| {
                state.autodestroy = false;
                let stands_still = matches!(state.run, RunState::Paused(_));
                if stands_still {
                    state.run = RunState::Paused(Paused::User);
                }
                stands_still
            },
            |state, stands_still| {
                self.save_status(state);
                if *stands_still {
                    self.publish(state, DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::Paused)));
                }
            },
        );
        tracing::info!(domain = %state.name, "arrived");
    }

    async fn let_arrived_go(&self, job: &mut AsyncJob<MigrationIn>, reached: Reached) -> Result<()> {
        let reason = if reached == Reached::Postcopy { Running::Postcopy } else { Running::Migrated };
        // Once it runs here it is to stay, whoever leaves or dies; so that is written down before it does.
        self.owners.release(job.state().uuid);
        job.update_then(|state| state.autodestroy = false, |state, ()| self.save_status(state));
        let let_go = self.let_go(job, reason).await;
        if let_go.is_err() {
            // It does not run, so it ends with the call.
            job.update(|state| state.autodestroy = true);
        }
        let_go
    }

    /// Which ends of the guest's channels are open came along with the guest.
    async fn note_channels(self: &Arc<Self>, job: &mut AsyncJob<MigrationIn>) -> Result<()> {
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let ports = nested.live()?.monitor().execute(QueryChardev {}).await?;
        self.note_ports(&object, &ports);
        Ok(())
    }

    /// What QEMU says of a guest that did not come.
    async fn why_it_failed(&self, job: &mut AsyncJob<MigrationIn>) -> Option<Error> {
        if !job.state().is_active() {
            return None;
        }
        let told = migrate::look(job).await.ok()?;
        told.error_desc.map(|reason| Error::operation_failed(format!("job 'migration in' failed: {reason}")))
    }

    async fn end_incoming(&self, object: &Arc<DomainObject>) {
        let mut domain = DomainHandle::new(Arc::clone(object));
        if !domain.state().is_active() {
            return;
        }
        if let Err(error) = domain.stop(How::Forced, Ending::Failed).await {
            tracing::warn!(domain = %object.state().name, %error, "cannot end a guest that did not arrive");
        }
    }

    async fn persist(self: &Arc<Self>, object: &Arc<DomainObject>, definition: Domain) -> Result<()> {
        let mut definition = self.complete(definition).await?;
        definition.name = (&*object.state().name).into();
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        blocking(move || domains.make_persistent(&object, definition)).await
    }

    /// The client of a guest that was to come has left. Its QEMU ends with the client like any other guest of
    /// its; what is left is one that was not to run.
    pub(super) fn incoming_abandoned(self: &Arc<Self>, guest: Uuid) {
        let Ok(domain) = self.list.by_uuid(guest) else { return };
        if let Ok(job) = resume_in(&domain, PREPARE_RESUME) {
            return self.park_failed(job);
        }
        if domain.state().is_active() {
            return;
        }
        if let Ok(job) = resume_in(&domain, PREPARED) {
            self.migrations.has_arrived(guest);
            self.ports.release_arrival(guest);
            drop(job);
            self.forget_unused(domain.object());
        }
    }
}
