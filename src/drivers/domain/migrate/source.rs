//! The side that a guest leaves.
//!
//! ```text
//!   begin ──► BEGUN ──► perform ──► PERFORMED ──► confirm ──► gone, or goes on here
//!    what it is          its memory               what the other side made of it
//!                        streams out
//! ```
//!
//! Without change protection the job begins with perform. Peer to peer, all phases are within one call.

use std::sync::Arc;

use super::connect::{self, OtherEnd};
use super::disks::{self, Copied, Server};
use super::phases::{
    BEGIN_RESUME, BEGUN, CONFIRMED, Outgoing, PERFORM_RESUME, PERFORMED, PERFORMING, Vcpus, resume_out,
};
use super::place::Target;
use super::postcopy::is_postcopy;
use super::request::{MigrateFlags, Request};
use super::settings::Side;
use super::tell::put_back;
use super::{Outcome, allowed, peer_of, screens, statistics, tuning};
use crate::conf::domain::Domain;
use crate::conf::migration::{Cookie, Feature, Nbd, Persistent};
use crate::conf::xml::Form;
use crate::drivers::ClientId;
use crate::drivers::domain::event::DomainEvent;
use crate::drivers::domain::{Domains, blocking, reads};
use crate::error::{Error, Result};
use crate::qemu::job::{
    Allowed, AsyncJob, AsyncOp, DomainHandle, Ending, JobError, JobSubject, Kind, Live, MigrationOut, Modify,
    Phase, State, Underway,
};
use crate::qemu::migrate::{self, MigrateError, Reached, Until};
use crate::qemu::monitor::{Cont, MigrateContinue, MigrationStatus, MonitorError, QueryMigrate, Stop};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::util::process::LockLimit;

/// What may be done to a guest on its way.
pub(super) const ALLOWED: Allowed =
    Allowed::USUAL.and(&[Kind::Suspend, Kind::MigrationOp, Kind::MigrationSafe]);

/// What the first phase answers.
#[derive(Debug)]
pub struct Begun {
    pub cookie: Vec<u8>,
    /// The guest as the other host is to start it.
    pub xml: String,
}

impl Domains {
    /// Says what the guest is, and that it can leave. With change protection it stays as it is until the end.
    pub async fn migrate_begin(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        request: &Request,
        client: ClientId,
    ) -> Result<Begun> {
        self.accept(request)?;
        if request.has(MigrateFlags::POSTCOPY_RESUME) {
            return self.begin_again(&domain, request, client).await;
        }
        super::check_alone(&domain.state())?;
        if !request.has(MigrateFlags::CHANGE_PROTECTION) {
            let job = domain.begin::<Modify>().await?;
            let live = job.live().ok();
            return self.offer(&job.state(), live.as_ref(), request).await;
        }
        let mut job = self.leave(domain, request).await?;
        let begun = self.offer_within(&mut job, request).await?;
        let state = job.state();
        self.migrations.leaves(
            state.uuid,
            Outgoing { client, vcpus: vcpus(&state), before: None, screens: false, locked: None },
        );
        job.park(BEGUN);
        Ok(begun)
    }

    /// Streams the guest out. When this returns it stands still here, and all of it is there.
    pub async fn migrate_perform(
        self: &Arc<Self>,
        domain: DomainHandle,
        request: &Request,
        cookie: &[u8],
        client: ClientId,
    ) -> Result<Vec<u8>> {
        self.accept(request)?;
        let uri = request.uri().ok_or_else(|| Error::internal_error("missing migration URI"))?;
        let target = Target::parse(uri)?;
        if request.has(MigrateFlags::POSTCOPY_RESUME) {
            return self.perform_again(&domain, request, (target, cookie), client).await;
        }
        let mut job = match request.has(MigrateFlags::CHANGE_PROTECTION) {
            true => resume_out(&domain, &[BEGUN])?,
            false => self.leave(domain, request).await?,
        };
        let state = job.state();
        let uuid = state.uuid;
        let kept = self.migrations.has_left(uuid);
        let vcpus = kept.map_or_else(|| vcpus(&state), |kept| kept.vcpus);
        let mut outgoing = Outgoing { client, vcpus, before: None, screens: false, locked: None };
        self.write_down(&job, PERFORMING);
        let streamed = async {
            let other_end = OtherEnd::at(target, request)?;
            self.stream_out(&mut job, request, (other_end, cookie), &mut outgoing).await
        };
        match streamed.await {
            Ok(cookie) => {
                self.migrations.leaves(uuid, outgoing);
                self.write_down(&job, PERFORMED);
                job.park(PERFORMED);
                Ok(cookie)
            }
            Err(error) if is_postcopy(job.state().run) => {
                self.park_failed(job);
                Err(error)
            }
            Err(error) => {
                self.go_on_here(&mut job, &outgoing).await;
                Err(error)
            }
        }
    }

    /// Ends the migration: the guest runs there and is gone here, or goes on here.
    pub async fn migrate_confirm(
        self: &Arc<Self>,
        domain: DomainHandle,
        request: &Request,
        cookie: &[u8],
        outcome: Outcome,
    ) -> Result<()> {
        let job = match request.has(MigrateFlags::POSTCOPY_RESUME) {
            true => self.resume_failed(&domain, request, PERFORM_RESUME)?,
            false => resume_out(&domain, &[PERFORMED, BEGUN])?,
        };
        let outgoing = self.migrations.has_left(job.state().uuid);
        self.settle(job, request, cookie, (outcome, outgoing)).await
    }

    /// Notes how far it is, for the next daemon.
    pub(super) fn write_down<O: AsyncOp>(&self, job: &AsyncJob<O>, phase: Phase) {
        job.update_then(
            |state| {
                if let Some(underway) = &mut state.operation {
                    underway.phase = Some(phase);
                }
            },
            |state, ()| self.save_status(state),
        );
    }

    /// Takes the job of a guest that leaves.
    pub(super) async fn leave(
        &self,
        domain: DomainHandle,
        request: &Request,
    ) -> Result<AsyncJob<MigrationOut>> {
        super::check_alone(&domain.state())?;
        let job = domain.begin_async::<MigrationOut>().await?;
        job.allow(ALLOWED);
        job.note(|statistics| statistics.subject = JobSubject::Migration);
        job.update(|state| {
            state.completed = None;
            if let Some(underway) = &mut state.operation {
                underway.flags = request.flags.bits();
            }
        });
        if !request.has(MigrateFlags::OFFLINE) && !job.state().is_active() {
            return Err(Error::operation_invalid("domain is not running"));
        }
        self.save_status(&job.state());
        Ok(job)
    }

    pub(super) async fn offer_within(
        &self,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
    ) -> Result<Begun> {
        let state = job.state();
        let nested = job.nested().await?;
        let live = nested.live().ok();
        self.offer(&state, live.as_ref(), request).await
    }

    /// The first phase.
    async fn offer(&self, state: &State, live: Option<&Live<'_>>, request: &Request) -> Result<Begun> {
        let offline = request.has(MigrateFlags::OFFLINE);
        let mut blockers = Vec::new();
        let mut cookie = Cookie::new(peer_of(&state.name, state.uuid, self.host_uuid), &super::hostname());
        match live {
            None if !offline => return Err(Error::operation_invalid("domain is not running")),
            Some(live) if !offline => {
                blockers = live.monitor().execute(QueryMigrate {}).await?.blocked_reasons;
                cookie.capabilities = Side::Source.told(&migrate::supported(live).await?);
                if let Some(definition) = &state.live {
                    let copied = disks::of(definition, request)?;
                    if !copied.is_empty() {
                        cookie.nbd = Some(Nbd { port: None, disks: disks::sizes(live, &copied).await? });
                    }
                }
            }
            _ => {}
        }
        allowed::check(state, request, &blockers)?;
        // There is no lock manager, as libvirt says it.
        cookie.demand(Feature::Lockstate);
        let persists = request.has(MigrateFlags::PERSIST_DEST);
        let definitions = [state.definition(), state.inactive.as_ref().filter(|_| persists)];
        if definitions
            .into_iter()
            .flatten()
            .any(|it| it.has_memory_hotplug() || !it.devices.memories.is_empty())
        {
            cookie.demand(Feature::MemoryHotplug);
        }
        if let (Some(live), Some(launched)) = (&state.live, &state.launched)
            && launched.defined_cpu.is_some()
        {
            cookie.cpu = live.cpu.clone();
        }
        let xml = self.portable_xml(state, request).await?;
        Ok(Begun { cookie: cookie.to_bytes()?, xml })
    }

    /// What the other host is to start.
    pub(super) async fn portable_xml(&self, state: &State, request: &Request) -> Result<String> {
        let form = Form::SECURE | Form::MIGRATABLE;
        let Some(xml) = request.destination_xml() else { return Ok(reads::portable(state)?.to_xml(form)) };
        let mut wanted = self.read_definition(xml).await?;
        // Both with what every guest of the machine is given.
        reads::as_defined(state, reads::definition(state)?)?.check_same_machine(&wanted)?;
        wanted.remove_given();
        Ok(wanted.to_xml(form))
    }

    /// The second phase, on this side.
    pub(super) async fn stream_out(
        &self,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
        (other_end, cookie): (OtherEnd, &[u8]),
        outgoing: &mut Outgoing,
    ) -> Result<Vec<u8>> {
        let state = job.state();
        let peer = peer_of(&state.name, state.uuid, self.host_uuid);
        let understood = [Feature::Graphics, Feature::Capabilities, Feature::Nbd, Feature::Bitmaps];
        let theirs = Cookie::parse(cookie, peer, &understood)?;
        outgoing.screens = screens::announce(job, theirs.as_ref(), request.text("graphics_uri")).await;
        let persistent = match request.has(MigrateFlags::PERSIST_DEST) {
            true => Some(self.persistent(&state, request).await?),
            false => None,
        };
        let mut settings = Side::Source.settings(request, theirs.as_ref())?;
        let speed = settings.parameters.max_bandwidth.unwrap_or_else(|| tuning::speed(&state));
        settings.parameters.max_bandwidth = Some(speed);
        let target = request.uri().map(Target::parse).transpose()?;
        let host = target.as_ref().and_then(|target| connect::unseen_host(target, request));
        outgoing.before = Some(self.tell_qemu(job, (Side::Source, request), settings, host).await?);
        if request.has(MigrateFlags::ZEROCOPY) {
            outgoing.locked = lock_all(&state);
        }
        if !request.has(MigrateFlags::LIVE) && outgoing.vcpus == Vcpus::Ran {
            stand_still(job).await?;
        }
        let copied = match &state.live {
            Some(live) => disks::of(live, request)?,
            None => Vec::new(),
        };
        let until = Until { switchover: true, postcopy: request.has(MigrateFlags::POSTCOPY) };
        let streamed = async {
            if !copied.is_empty() {
                let server = server(request, theirs.as_ref())?;
                disks::mirror(job, &copied, &server, (request, speed)).await?;
            }
            let other_end = other_end.open(request).await?;
            run(job, (other_end, &copied), until).await
        };
        if let Err(failure) = streamed.await {
            let error = give_up(job, failure).await;
            disks::give_up(job, &copied).await;
            return Err(error);
        }
        let mut ours = Cookie::new(peer, &super::hostname());
        if let Some(persistent) = persistent {
            ours.demand(Feature::Persistent);
            ours.persistent = Some(Persistent(Box::new(persistent)));
        }
        let state = job.state();
        let told = match &state.completed {
            Some(completed) => Some(statistics::told(completed)),
            None => state.operation.as_ref().map(|underway| statistics::told(&underway.statistics)),
        };
        ours.statistics = told.map(Box::new);
        Ok(ours.to_bytes()?)
    }

    /// What the guest is to be defined as on the other host.
    async fn persistent(&self, state: &State, request: &Request) -> Result<Domain> {
        if let Some(xml) = request.persistent_xml() {
            return self.read_definition(xml).await;
        }
        let source = state.inactive.as_ref().or(state.live.as_ref());
        let source = source.ok_or_else(|| Error::operation_invalid("domain is not running"))?;
        let text = source.to_xml(Form::SECURE | Form::MIGRATABLE);
        Ok(Domain::parse(&text, Form::INACTIVE)?)
    }

    /// A migration has failed: the guest goes on as it was before.
    pub(super) async fn go_on_here(&self, job: &mut AsyncJob<MigrationOut>, outgoing: &Outgoing) {
        let name = job.state().name.clone();
        if let Err(error) = put_back(job, outgoing.before.as_deref()).await {
            tracing::warn!(domain = %name, %error, "the guest's QEMU keeps what it was told for the migration");
        }
        if let (Some(before), Some(process)) = (outgoing.locked, job.state().process())
            && let Err(error) = process.limit_locked(before)
        {
            tracing::warn!(domain = %name, %error, "the guest's QEMU may go on locking memory");
        }
        if outgoing.vcpus == Vcpus::Ran
            && let Err(error) = self.let_go_on(job).await
        {
            tracing::error!(domain = %name, %error, "cannot let the guest go on after a failed migration");
        }
    }

    async fn let_go_on(&self, job: &mut AsyncJob<MigrationOut>) -> Result<()> {
        // It stands still for no other reason than this.
        if !matches!(job.state().run, RunState::Paused(Paused::Migration | Paused::Unknown | Paused::User)) {
            return Ok(());
        }
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let live = nested.live()?;
        nested.update(|state| state.resuming = Running::MigrationCanceled);
        live.monitor().execute(Cont {}).await?;
        live.monitor().events_handled().await;
        self.note_resume(&object);
        Ok(())
    }

    /// The last phase.
    pub(super) async fn settle(
        self: &Arc<Self>,
        mut job: AsyncJob<MigrationOut>,
        request: &Request,
        cookie: &[u8],
        (outcome, outgoing): (Outcome, Option<Outgoing>),
    ) -> Result<()> {
        let state = job.state();
        let peer = peer_of(&state.name, state.uuid, self.host_uuid);
        let theirs = Cookie::parse(cookie, peer, &[Feature::Statistics])?;
        // What runs there runs there, whatever was heard of it.
        let canceled = outcome == Outcome::Canceled && !self.is_beyond_postcopy(&mut job).await;
        if canceled {
            job.update(|state| state.completed = None);
            if is_postcopy(state.run) {
                self.park_failed(job);
            } else if let Some(outgoing) = outgoing.filter(|_| !request.has(MigrateFlags::OFFLINE)) {
                self.go_on_here(&mut job, &outgoing).await;
            }
            return Ok(());
        }
        if let Some(told) = theirs.and_then(|cookie| cookie.statistics) {
            job.update(|state| {
                if let Some(completed) = &mut state.completed {
                    statistics::take_over(Arc::make_mut(completed), &told);
                }
            });
        }
        let object = Arc::clone(job.object());
        if !request.has(MigrateFlags::OFFLINE) {
            if outgoing.is_some_and(|outgoing| outgoing.screens) {
                screens::wait(&mut job).await;
            }
            self.end_here(&mut job).await?;
        }
        if request.has(MigrateFlags::UNDEFINE_SOURCE) && !object.state().is_active() {
            let domains = Arc::clone(self);
            blocking(move || domains.forget_migrated(&object)).await?;
        }
        Ok(())
    }

    /// All of the guest runs on the other side: here it ends.
    pub(super) async fn end_here(&self, job: &mut AsyncJob<MigrationOut>) -> Result<()> {
        self.write_down(job, CONFIRMED);
        // What was noted at the switch is not all of it.
        if is_postcopy(job.state().run) && migrate::look(job).await.is_ok() {
            job.complete();
        }
        let object = Arc::clone(job.object());
        let completed = object.state().completed.clone();
        DomainHandle::new(Arc::clone(&object)).stop(How::Forced, Ending::Migrated).await?;
        if let Some(statistics) = completed {
            let tell = |state: &Arc<State>, (): &()| {
                self.publish(state, DomainEvent::JobCompleted { statistics });
            };
            object.observe(|_| (), tell);
        }
        Ok(())
    }

    /// Whether all of a guest that was let run on the other side has got there.
    async fn is_beyond_postcopy(&self, job: &mut AsyncJob<MigrationOut>) -> bool {
        is_postcopy(job.state().run)
            && migrate::look(job).await.is_ok_and(|told| told.status == MigrationStatus::Completed)
    }

    /// A client has left in the middle: nobody will come for what it began.
    pub(in crate::drivers::domain) fn migrations_abandoned(self: &Arc<Self>, client: ClientId) {
        let (outgoing, incoming) = self.migrations.abandoned(client);
        for guest in outgoing {
            let Ok(domain) = self.list.by_uuid(guest) else { continue };
            let name = domain.state().name.clone();
            if let Ok(job) = resume_out(&domain, &[BEGUN]) {
                self.migrations.has_left(guest);
                drop(job);
            } else if let Ok(job) = resume_out(&domain, &[PERFORMED, BEGIN_RESUME, PERFORM_RESUME]) {
                self.migrations.has_left(guest);
                if is_postcopy(job.state().run) {
                    self.park_failed(job);
                    continue;
                }
                tracing::warn!(domain = %name, "migrated, and nobody knows whether it runs on the other host");
                drop(job);
            }
        }
        for guest in incoming {
            self.incoming_abandoned(guest);
        }
    }
}

/// Whether the guest runs, as it is now.
pub(super) fn vcpus(state: &State) -> Vcpus {
    match state.run {
        RunState::Running(_) => Vcpus::Ran,
        _ => Vcpus::StoodStill,
    }
}

/// Pages that are sent without a copy are locked meanwhile: all may be at once. Answers what was allowed before. Where
/// the host does not allow it, QEMU says whether it needs it.
fn lock_all(state: &State) -> Option<LockLimit> {
    let (process, live) = (state.process()?, state.live.as_ref()?);
    let limit = live.memtune.as_ref().and_then(|memtune| memtune.hard_limit?.0);
    let bytes = limit.unwrap_or(live.memory.total_kib) << 10;
    let allowed = process.limit_locked(LockLimit::of(bytes));
    let refused =
        |error| tracing::warn!(domain = %state.name, %error, "QEMU may not lock the guest's memory");
    allowed.map_err(refused).ok()
}

async fn stand_still(job: &mut AsyncJob<MigrationOut>) -> Result<()> {
    let nested = job.nested().await?;
    let live = nested.live()?;
    nested.update(|state| state.pausing = Paused::Migration);
    live.monitor().execute(Stop {}).await?;
    live.monitor().events_handled().await;
    Ok(())
}

/// From the first page to the last device, or to where the guest may run on the other side.
async fn run(
    job: &mut AsyncJob<MigrationOut>,
    (other_end, copied): (migrate::Target, &[Copied]),
    until: Until,
) -> Result<(), Failure> {
    {
        let nested = job.nested().await?;
        migrate::start(&nested.live()?, other_end).await?;
    }
    if migrate::wait(job, until).await? == Reached::Switchover {
        {
            let nested = job.nested().await?;
            let live = nested.live()?;
            // That it stands still is known before it is gone.
            live.monitor().events_handled().await;
        }
        if !copied.is_empty() {
            disks::complete(job, copied).await?;
        }
        {
            let nested = job.nested().await?;
            let live = nested.live()?;
            match live.monitor().execute(MigrateContinue { state: "pre-switchover" }).await {
                // It has failed or was canceled meanwhile; the wait tells which.
                Err(MonitorError::Command { .. }) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        migrate::wait(job, Until { switchover: false, ..until }).await?;
    }
    let nested = job.nested().await?;
    nested.live()?.monitor().events_handled().await;
    Ok(())
}

/// What a stream that failed leaves behind, and what is said of it.
async fn give_up(job: &mut AsyncJob<MigrationOut>, failure: Failure) -> Error {
    let over =
        matches!(failure, Failure::Memory(MigrateError::Failed { .. } | MigrateError::Canceled { .. }));
    if !over && let Err(error) = migrate::cancel(job).await {
        tracing::warn!(domain = %job.state().name, %error, "the migration is not canceled");
    }
    // The guest does not run on the other side: that is said to it by the client after this call.
    job.update(|state| {
        if state.run == RunState::Paused(Paused::Postcopy) {
            state.run = RunState::Paused(Paused::Migration);
        }
    });
    let state = job.state();
    let wants = |underway: &Underway| underway.flags & MigrateFlags::ABORT_ON_ERROR.bits() != 0;
    match failure {
        Failure::Memory(MigrateError::Canceled { .. })
            if state.run == RunState::Paused(Paused::IoError)
                && state.operation.as_ref().is_some_and(wants) =>
        {
            Error::operation_failed("job 'migration out' failed due to I/O error")
        }
        Failure::Memory(error) => error.into(),
        Failure::Other(error) => error,
    }
}

/// Why a guest did not get away.
enum Failure {
    Memory(MigrateError),
    Other(Error),
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        Self::Memory(error)
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        Self::Memory(error.into())
    }
}

impl From<MonitorError> for Failure {
    fn from(error: MonitorError) -> Self {
        Self::Memory(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Where the other side serves disks.
fn server(request: &Request, theirs: Option<&Cookie>) -> Result<Server> {
    let port = theirs.and_then(|cookie| cookie.nbd.as_ref()).and_then(|nbd| nbd.port);
    let host = match request.uri().map(Target::parse).transpose()? {
        Some(Target::Tcp { host, .. }) => Some(host),
        _ => None,
    };
    let server = match request.text("disks_uri").map(Server::named).transpose()? {
        // The destination chose the port.
        Some(Server::Tcp { host, port: 0 }) => port.map(|port| Server::Tcp { host, port }),
        Some(named) => Some(named),
        None => host.zip(port).map(|(host, port)| Server::Tcp { host, port }),
    };
    match server {
        Some(Server::Unix(_)) if request.has(MigrateFlags::TLS) => {
            Err(Error::operation_unsupported("NBD migration with TLS is not supported over UNIX socket"))
        }
        Some(server) => Ok(server),
        None => Err(Error::internal_error("migration of non-shared disks requested but NBD is not set up")),
    }
}
