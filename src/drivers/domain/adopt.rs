//! What a new daemon does about guests: it takes hold of those that run and starts those that are to run.
//!
//! ```text
//!  status file ─► domain shown as it was, ─► its process is there, ─► its QEMU says who it is ─► goes on as before
//!                 held by a start job        followed
//!                                │                    (for as long as it is stopped or too busy to answer)
//!                                └─ gone ─► shut off (crashed); never let run, or its owner is gone ─► ended
//! ```
//!
//! A guest whose status file is gone or broken is looked for among the processes (`strays`).
//!
//! Reads answer from the first moment on, and so does destroy; calls that need the monitor wait for the job.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Domains;
use super::attach::Found;
use super::flags::StartFlags;
use super::hotplug::Answer;
use super::list::Existing;
use super::migrate::postcopy::was_left_in_halves;
use super::migrate::recover::{given_up, may_have_arrived, note_halves};
use crate::drivers::ClientId;
use crate::error::Error;
use crate::qemu::agent::Patience;
use crate::qemu::block_jobs::BlockJobsRecord;
use crate::qemu::capabilities::CapSet;
use crate::qemu::hotplug::{self, vcpu};
use crate::qemu::job::{
    AsyncJob, DomainHandle, DomainObject, Ending, Launched, Machine, MigrationIn, MigrationOut, Operation,
    Start, State,
};
use crate::qemu::monitor::{
    Cont, MigrateCancel, Monitor, MonitorError, QueryChardev, QueryStatus, Status as QemuStatus,
};
use crate::qemu::process::{self, AdoptError, Adopted, Claim, Files, How, Running};
use crate::qemu::run_state::{Crashed, Paused, PmSuspended, RunState, Running as Runs};
use crate::qemu::security::Owners;
use crate::qemu::status::{JobRecord, Status};
use crate::util::boot;

/// The owner of guests that start with the host: no connection ever has this number.
const HOST: ClientId = ClientId(0);

/// A guest that was running when the last daemon ended.
#[derive(Debug)]
pub(super) struct Inherited {
    object: Arc<DomainObject>,
    pub(super) claim: Claim,
    /// For want of a status file: what its process was started with.
    pub(super) found: Option<Found>,
}

/// The devices that a guest has let go of while nobody listened.
async fn gone_since(job: &AsyncJob<Start>, monitor: &Monitor) -> Vec<String> {
    let state = job.state();
    let noted = state.launched.as_ref().map(|launched| Arc::clone(&launched.devices)).unwrap_or_default();
    let there = hotplug::devices(monitor).await;
    // A QEMU that says nothing has not lost everything.
    let gone = noted.iter().filter(|alias| !there.is_empty() && !there.contains(alias)).cloned().collect();
    job.update(|state| state.note_devices(there));
    gone
}

impl Domains {
    /// Shows the guests that ran under the last daemon, before their processes have been asked.
    pub(super) fn inherit(&self) -> io::Result<Vec<Inherited>> {
        let mut inherited: Vec<_> =
            self.status_files()?.iter().filter_map(|path| self.inherit_one(path)).collect();
        inherited.extend(self.inherit_strays(&inherited)?);
        Ok(inherited)
    }

    fn status_files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.directories.runtime)?;
        let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        paths.retain(|path| path.extension() == Some(OsStr::new("xml")));
        Ok(paths)
    }

    fn inherit_one(&self, path: &std::path::Path) -> Option<Inherited> {
        let status = match Status::load(path) {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(%error, "skipped a status file; its guest, if it runs, is looked for");
                return None;
            }
        };
        self.inherit_status(&status)
    }

    /// Shows a guest as it was written down.
    pub(super) fn inherit_status(&self, status: &Status) -> Option<Inherited> {
        let live = Arc::clone(&status.domain.0);
        let (name, uuid) = (&*live.name, live.uuid);
        let Some(id) = live.id else {
            tracing::error!(domain = name, "skipped a status file without an id");
            return None;
        };
        let fresh = || DomainObject::new(State::new(name, uuid), self.limits);
        let object = match self.list.add((name, uuid), Existing::Redefine, fresh) {
            Ok(added) => added.object,
            Err(error) => {
                tracing::error!(domain = name, %error, "a guest runs that cannot be shown");
                return None;
            }
        };
        if status.run == RunState::Paused(Paused::StartingUp) {
            // Whatever it was to go on from is still to be gone on from.
            self.bring_kept_back(name);
        }
        self.last_id.fetch_max(id, Ordering::Relaxed);
        self.list.bind_id(id, &object);
        self.ports.reserve(&live);
        self.keep_bounded(&live);
        let launched = Launched {
            capabilities: CapSet::from_names(status.capabilities.iter().map(|flag| flag.name.as_str())),
            last_node: u32::try_from(status.last_node).unwrap_or(u32::MAX),
            defined_cpu: status.defined_cpu.clone(),
            owners: if status.remember_owner { Owners::Remembered } else { Owners::Forgotten },
            devices: status.devices.iter().map(|device| device.alias.clone()).collect(),
        };
        let claim = status.claim(&self.directories);
        let (block_jobs, broken) = status.block_jobs.as_ref().map(BlockJobsRecord::jobs).unwrap_or_default();
        for (job, error) in broken {
            tracing::warn!(domain = name, %job, error = error.message, "skipped a block job");
        }
        object.observe(
            |state| {
                state.id = Some(id);
                state.live = Some(live);
                state.run = status.run;
                state.reboots = status.fake_reboot;
                state.agent_patience = Patience::from_number(status.agent_timeout).unwrap_or(Patience::BLOCK);
                state.autodestroy = status.autodestroy;
                state.interrupted = status.job.clone().map(Arc::new);
                state.vcpu_threads =
                    vcpu::threads(status.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.pid))).into();
                state.launched = Some(Arc::new(launched));
                state.block_jobs = Arc::new(block_jobs);
                state.overlays = status.overlays.clone().map(Arc::new);
            },
            |_, ()| (),
        );
        Some(Inherited { object, claim, found: None })
    }

    /// Takes hold of the guests; returns when every one of them is held by a job.
    pub(super) async fn adopt_all(self: &Arc<Self>, inherited: Vec<Inherited>) {
        for guest in inherited {
            let object = Arc::clone(&guest.object);
            let Ok(job) = DomainHandle::new(object).begin_async::<Start>().await else { continue };
            let domains = Arc::clone(self);
            tokio::spawn(async move { domains.adopt(job, guest).await });
        }
    }

    async fn adopt(self: Arc<Self>, job: AsyncJob<Start>, guest: Inherited) {
        let Inherited { claim, found, .. } = guest;
        let state = job.state();
        self.drop_half_written(&state).await;
        if state.run == RunState::Paused(Paused::StartingUp) {
            // Nobody was told that it is there.
            return self.end_inherited(job, &claim, Ending::Failed).await;
        }
        if state.autodestroy && !may_have_arrived(&state) {
            // Its connection ended with the last daemon.
            return self.end_inherited(job, &claim, Ending::Destroyed).await;
        }
        let (name, files) = (claim.name.clone(), claim.files.clone());
        match process::adopt(claim).await {
            Ok(adopted) => self.go_on(job, adopted, found).await,
            Err(AdoptError::Gone { pid, .. }) => {
                tracing::warn!(domain = name, pid, "the guest ended while no daemon watched it");
                self.clear_away(job, &files).await;
            }
            Err(AdoptError::Deaf { process, source, .. }) => {
                // It is worth more than its monitor. It stays on the list, so nobody starts it twice, and it can be
                // destroyed.
                tracing::error!(domain = name, error = %source, "the guest runs, and there is no way to its monitor");
                match Monitor::unreachable(&name, &source) {
                    Ok((monitor, events)) => {
                        let running = Running { process: process.clone(), monitor, files };
                        job.update(|state| state.attach(Machine::new(running)));
                        self.follow(job.object(), process, events);
                    }
                    Err(error) => tracing::error!(domain = name, %error, "the guest runs on unwatched"),
                }
            }
            // It stays on the list as it was written down, so that nobody starts it a second time.
            Err(error) => tracing::error!(domain = name, %error, "the guest runs on unwatched"),
        }
    }

    /// Ends a guest that is not to outlive the daemon which started it.
    async fn end_inherited(&self, job: AsyncJob<Start>, claim: &Claim, ending: Ending) {
        let ended = match claim.process() {
            Ok(process) => process::stop(&process, How::Forced).await.map(drop).map_err(Error::from),
            Err(AdoptError::Gone { .. }) => Ok(()),
            Err(error) => Err(Error::internal_error(error.to_string())),
        };
        match ended {
            Ok(()) => {
                job.update(|state| state.ending = Some(ending));
                self.clear_away(job, &claim.files).await;
            }
            Err(error) => tracing::error!(domain = claim.name, %error, "cannot end the guest"),
        }
    }

    /// Takes a domain down that never had more than files.
    async fn clear_away(&self, job: AsyncJob<Start>, files: &Files) {
        if let Err(error) = files.remove() {
            tracing::warn!(domain = %job.state().name, %error, "cannot remove the guest's files");
        }
        let object = Arc::clone(job.object());
        drop(job);
        self.take_down(&object).await;
    }

    /// Follows a guest whose process is there, and asks its QEMU what it does now.
    async fn go_on(self: Arc<Self>, job: AsyncJob<Start>, adopted: Adopted, found: Option<Found>) {
        let Adopted { running, events, introduction } = adopted;
        let (monitor, process) = (running.monitor.clone(), running.process.clone());
        let object = Arc::clone(job.object());
        job.update(|state| state.attach(Machine::new(running)));
        self.follow(&object, process.clone(), events);
        if let Err(error) = introduction.heard().await {
            tracing::error!(domain = %object.state().name, %error, "the guest cannot be steered");
            // Nothing is ever asked of another guest; this one's process can still be ended.
            return monitor.fail_all(&MonitorError::Closed);
        }
        let is_stray = found.is_some();
        if let Some(found) = found
            && let Err(error) = self.complete_stray(&job, &monitor, &found).await
        {
            tracing::error!(domain = %object.state().name, %error, "the guest's definition stays incomplete");
        }
        let status = monitor.execute(QueryStatus {}).await;
        if is_stray && status.as_ref().is_ok_and(|status| status.status == "inmigrate") {
            // Its state will not come any more, and it never ran.
            if let Err(error) = DomainHandle::new(Arc::clone(&object)).stop(How::Forced, Ending::Failed).await
            {
                tracing::error!(domain = %object.state().name, %error, "cannot end the guest");
            }
            return;
        }
        let ports = monitor.execute(QueryChardev {}).await.unwrap_or_default();
        monitor.events_handled().await;
        let noted = object.state().run;
        job.update_then(
            |state| {
                if let (Ok(status), true) = (&status, state.is_active()) {
                    state.run = actual(state.run, status);
                }
            },
            |state, ()| self.save_status(state),
        );
        tracing::info!(domain = %object.state().name, pid = process.pid(), "took hold of a running guest");
        self.note_ports(&object, &ports);
        if self.was_kept(&job.state(), status.as_ref().ok()).await {
            return self.end_kept(job).await;
        }
        let Some(mut job) = self.recover(job, &monitor).await else { return };
        self.adopt_images_of(&mut job).await;
        if job.state().interrupted.is_some() {
            job.update_then(|state| state.interrupted = None, |state, ()| self.save_status(state));
        }
        let gone = gone_since(&job, &monitor).await;
        drop(job);
        for alias in gone {
            self.note_unplugged(&object, alias, Answer::Gone);
        }
        if let Ok(status) = status {
            self.make_up(&object, noted, &status.status);
        }
    }

    /// Sees to what the last daemon had under way; None: it goes on, and no longer under this job.
    async fn recover(
        self: &Arc<Self>,
        mut job: AsyncJob<Start>,
        monitor: &Monitor,
    ) -> Option<AsyncJob<Start>> {
        let Some(record) = job.state().interrupted.clone() else {
            self.drop_old_memory(&job.state());
            return Some(job);
        };
        let (phase, flags) = (record.phase.as_deref().unwrap_or_default(), record.flag_bits());
        let operation = Operation::from_name(&record.operation);
        // One that was arriving may never have run.
        if operation != Some(Operation::MigrationIn) {
            self.drop_old_memory(&job.state());
        }
        if may_have_arrived(&job.state()) {
            note_halves(&job, monitor).await;
        }
        let in_halves = |operation| was_left_in_halves(operation, phase, job.state().run);
        if let Some(operation) = operation.filter(|operation| in_halves(*operation)) {
            let object = Arc::clone(job.object());
            let taken_up = match operation {
                Operation::MigrationIn => self.take_up_postcopy::<MigrationIn>(job, flags).await,
                _ => self.take_up_postcopy::<MigrationOut>(job, flags).await,
            };
            if let Err(error) = taken_up {
                tracing::error!(domain = %object.state().name, %error, "nobody sees to a post-copy migration");
            }
            return None;
        }
        match operation {
            Some(Operation::MigrationOut) => self.recover_leaving(&mut job, monitor, &record).await,
            _ if may_have_arrived(&job.state()) => self.recover_arriving(&mut job).await,
            Some(operation) => self.give_up(&job, monitor, operation).await,
            None => {}
        }
        Some(job)
    }

    /// What QEMU did to images meanwhile.
    async fn adopt_images_of(self: &Arc<Self>, job: &mut AsyncJob<Start>) {
        let object = Arc::clone(job.object());
        let refreshed = async {
            let nested = job.nested().await?;
            let live = nested.live()?;
            self.adopt_images(&object, &live).await?;
            match live.state().interrupted.as_deref() {
                Some(JobRecord { snapshot_delete: true, .. }) => self.give_up_delete(&object, &live).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = refreshed.await {
            tracing::warn!(domain = %object.state().name, %error, "cannot ask QEMU what it did to images");
        }
    }

    /// Ends an operation whose daemon is gone. A guest that stood still for it goes on.
    async fn give_up(&self, job: &AsyncJob<Start>, monitor: &Monitor, operation: Operation) {
        let object = job.object();
        let RunState::Paused(reason) = job.state().run else { return };
        let for_it = match operation {
            Operation::Save => reason == Paused::Save,
            Operation::Dump => reason == Paused::Dump,
            Operation::Snapshot => matches!(reason, Paused::Snapshot | Paused::Save | Paused::Migration),
            _ => return,
        };
        tracing::warn!(domain = %object.state().name, operation = operation.name(), "gives up what the last daemon began");
        // There may be nothing to cancel any more.
        let _ = monitor.execute(MigrateCancel {}).await;
        if for_it || reason == Paused::Unknown {
            job.update(|state| state.resuming = Runs::SaveCanceled);
            let resumed = monitor.execute(Cont {}).await;
            monitor.events_handled().await;
            match resumed {
                Ok(_) => self.note_resume(object),
                Err(error) => {
                    tracing::warn!(domain = %object.state().name, %error, "the guest stays paused");
                }
            }
        }
        if let Err(error) = given_up(monitor).await {
            tracing::warn!(domain = %object.state().name, %error, "what it began may go on");
        }
    }

    /// Does what a daemon would have done, had one seen it.
    fn make_up(self: &Arc<Self>, object: &Arc<DomainObject>, noted: RunState, status: &str) {
        match (noted, status) {
            // The last daemon had noted it, and died before QEMU did.
            (RunState::Shutdown(_), _) => {
                object.observe(|state| state.ending = Some(Ending::Shutdown), |_, ()| ());
                self.end_or_restart(object);
            }
            (RunState::Crashed(_), "guest-panicked") => self.after_panic(object),
            (RunState::Running(_), "guest-panicked") => self.note_panic(object),
            (_, "shutdown") => self.note_shutdown(object, None),
            _ => {}
        }
    }

    /// Whether a domain starts this time only; it does not say so twice.
    async fn take_autostart_once(self: &Arc<Self>, object: &Arc<DomainObject>) -> bool {
        let handle = || DomainHandle::new(Arc::clone(object));
        if !self.autostart_once(handle()).await.unwrap_or(false) {
            return false;
        }
        if let Err(error) = self.set_autostart_once(handle(), false).await {
            tracing::warn!(%error, "a domain will start with the host again");
        }
        true
    }

    /// Starts what is to start with the host, once after each boot.
    pub(super) async fn start_marked(self: Arc<Self>) {
        match boot::is_first_since(&self.directories.runtime.join("autostarted")) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether the host has just booted; nothing is started");
                return;
            }
        }
        let mut flags = StartFlags::empty();
        flags.set(StartFlags::BYPASS_CACHE, self.rules.saving.auto_start_bypass_cache);
        for object in self.list.all() {
            let state = object.state();
            let once = self.take_autostart_once(&object).await;
            if !(state.autostart || once) || state.is_active() {
                continue;
            }
            if let Err(error) = self.start(DomainHandle::new(object), flags.bits(), HOST).await {
                tracing::error!(domain = %state.name, %error, "cannot start with the host");
            }
        }
    }
}

/// What a guest does by its own account, where that differs from what was written down.
fn actual(noted: RunState, status: &QemuStatus) -> RunState {
    match (noted, status.status.as_str()) {
        (RunState::Running(_), _) | (RunState::PmSuspended(_), _) if status.running => noted,
        (_, _) if status.running => RunState::Running(Runs::Unpaused),
        (RunState::Running(_), "io-error") => RunState::Paused(Paused::IoError),
        (RunState::Running(_), "watchdog") => RunState::Paused(Paused::Watchdog),
        (RunState::Running(_), "guest-panicked") => RunState::Crashed(Crashed::Panicked),
        (RunState::Running(_), "suspended") => RunState::PmSuspended(PmSuspended::Unknown),
        // What comes of a power off depends on more than this.
        (RunState::Running(_), "shutdown") => noted,
        (RunState::Running(_), _) => RunState::Paused(Paused::Unknown),
        _ => noted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_has_the_last_word_about_what_the_guest_does() {
        let status = |running, status: &str| QemuStatus { running, status: status.to_owned() };
        let running = RunState::Running(Runs::Booted);
        let paused = RunState::Paused(Paused::User);
        for (noted, status, expected) in [
            (running, status(true, "running"), running),
            (paused, status(false, "paused"), paused),
            (paused, status(true, "running"), RunState::Running(Runs::Unpaused)),
            (running, status(false, "paused"), RunState::Paused(Paused::Unknown)),
            (running, status(false, "io-error"), RunState::Paused(Paused::IoError)),
            (running, status(false, "guest-panicked"), RunState::Crashed(Crashed::Panicked)),
            (running, status(false, "shutdown"), running),
            (running, status(false, "suspended"), RunState::PmSuspended(PmSuspended::Unknown)),
        ] {
            assert_eq!(actual(noted, &status), expected, "{noted:?} {status:?}");
        }
    }
}
