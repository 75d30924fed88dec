//! What a new daemon does about guests: it takes hold of those that run and starts those that are to run.
//!
//! ```text
//!  status file ─► domain shown as it was, held by a start job ─► process and monitor prove who they are
//!                                │                                            │
//!                                └─ gone, or another ─► shut off (crashed)    └─► followed as before
//! ```
//!
//! Reads answer from the first moment on; calls that need the monitor wait for the job.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Domains;
use super::list::Existing;
use crate::drivers::ClientId;
use crate::error::Error;
use crate::qemu::agent::Patience;
use crate::qemu::capabilities::CapSet;
use crate::qemu::job::{AsyncJob, DomainHandle, DomainObject, Ending, Launched, Machine, Start, State};
use crate::qemu::monitor::{QueryChardev, QueryStatus, Status as QemuStatus};
use crate::qemu::process::{self, AdoptError, Adopted, Claim, Files, How};
use crate::qemu::run_state::{Crashed, Paused, RunState, Running};
use crate::qemu::status::Status;
use crate::util::file::{self, Durability};

/// How long a running QEMU may take to answer a new daemon.
const ADOPT_LIMIT: Duration = Duration::from_secs(30);

/// A boot's id has 36 characters.
const MAX_STAMP: u64 = 64;

/// The owner of guests that start with the host: no connection ever has this number.
const HOST: ClientId = ClientId(0);

/// A guest that was running when the last daemon ended.
#[derive(Debug)]
pub(super) struct Inherited {
    object: Arc<DomainObject>,
    claim: Claim,
}

impl Domains {
    /// Shows the guests that ran under the last daemon, before their processes have been asked.
    pub(super) fn inherit(&self) -> io::Result<Vec<Inherited>> {
        Ok(self.status_files()?.iter().filter_map(|path| self.inherit_one(path)).collect())
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
                tracing::error!(%error, "skipped a status file; its guest, if it runs, is not known");
                return None;
            }
        };
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
        self.last_id.fetch_max(id, Ordering::Relaxed);
        self.list.bind_id(id, &object);
        self.ports.reserve(&live);
        let launched = Launched {
            capabilities: CapSet::from_names(status.capabilities.iter().map(|flag| flag.name.as_str())),
            last_node: u32::try_from(status.last_node).unwrap_or(u32::MAX),
            defined_cpu: status.defined_cpu.clone(),
        };
        let claim = status.claim(&self.directories);
        object.observe(
            |state| {
                state.id = Some(id);
                state.live = Some(live);
                state.run = status.run;
                state.reboots = status.fake_reboot;
                state.agent_patience = Patience::from_number(status.agent_timeout).unwrap_or(Patience::BLOCK);
                state.vcpu_threads = status.vcpus.iter().map(|vcpu| vcpu.pid).collect();
                state.launched = Some(Arc::new(launched));
            },
            |_, ()| (),
        );
        Some(Inherited { object, claim })
    }

    /// Takes hold of the guests; returns when every one of them is held by a job.
    pub(super) async fn adopt_all(self: &Arc<Self>, inherited: Vec<Inherited>) {
        for Inherited { object, claim } in inherited {
            let Ok(job) = DomainHandle::new(object).begin_async::<Start>().await else { continue };
            let domains = Arc::clone(self);
            tokio::spawn(async move { domains.adopt(job, claim).await });
        }
    }

    async fn adopt(self: Arc<Self>, job: AsyncJob<Start>, claim: Claim) {
        let name = claim.name.clone();
        let files = claim.files.clone();
        if job.state().run == RunState::Paused(Paused::StartingUp) {
            self.abandon(job, &claim).await;
            return;
        }
        match process::adopt(claim, ADOPT_LIMIT).await {
            Ok(adopted) => self.go_on(job, adopted).await,
            // It stays on the list as it was written down, so that nobody starts it a second time.
            Err(error @ (AdoptError::Watch { .. } | AdoptError::Other { .. })) => {
                tracing::error!(domain = name, %error, "the guest runs on unwatched");
            }
            Err(error) => {
                tracing::warn!(domain = name, %error, "the guest is lost");
                if let AdoptError::Silent { process, .. } = &error
                    && let Err(error) = process::stop(process, How::Forced).await
                {
                    tracing::error!(domain = name, %error, "the guest runs on unwatched");
                    return;
                }
                self.clear_away(job, &files).await;
            }
        }
    }

    /// The last daemon died before the guest ran: nobody was told that it is there.
    async fn abandon(&self, job: AsyncJob<Start>, claim: &Claim) {
        let ended = match claim.process() {
            Ok(process) => process::stop(&process, How::Forced).await.map(drop).map_err(Error::from),
            Err(AdoptError::Gone { .. }) => Ok(()),
            Err(error) => Err(Error::internal_error(error.to_string())),
        };
        match ended {
            Ok(()) => {
                job.update(|state| state.ending = Some(Ending::Failed));
                self.clear_away(job, &claim.files).await;
            }
            Err(error) => {
                tracing::error!(domain = claim.name, %error, "cannot end a half-started guest");
            }
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

    /// Follows a guest that proved to be ours.
    async fn go_on(self: Arc<Self>, job: AsyncJob<Start>, adopted: Adopted) {
        let Adopted { running, events } = adopted;
        let status = running.monitor.execute(QueryStatus {}).await;
        let ports = running.monitor.execute(QueryChardev {}).await.unwrap_or_default();
        let object = Arc::clone(job.object());
        let process = running.process.clone();
        job.update_then(
            |state| {
                state.attach(Machine::new(running));
                if let Ok(status) = &status {
                    state.run = actual(state.run, status);
                }
            },
            |state, ()| self.save_status(state),
        );
        tracing::info!(domain = %object.state().name, pid = process.pid(), "took hold of a running guest");
        self.note_ports(&object, &ports);
        drop(job);
        self.follow(&object, process, events);
        if matches!(object.state().run, RunState::Shutdown(_)) {
            // The last daemon had noted it, and died before QEMU did.
            object.observe(|state| state.ending = Some(Ending::Shutdown), |_, ()| ());
            self.end_or_restart(&object);
        } else if status.is_ok_and(|status| status.status == "shutdown") {
            self.note_shutdown(&object, None);
        }
    }

    /// Starts what is to start with the host, once after each boot.
    pub(super) async fn start_marked(self: Arc<Self>) {
        match self.first_start_since_boot() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether the host has just booted; nothing is started");
                return;
            }
        }
        for object in self.list.all() {
            let state = object.state();
            if !state.autostart || state.is_active() {
                continue;
            }
            if let Err(error) = self.start(DomainHandle::new(object), 0, HOST).await {
                tracing::error!(domain = %state.name, %error, "cannot start with the host");
            }
        }
    }

    /// The runtime directory is empty after a boot, unless it lies on a disk: then the stamp is of another
    /// boot. libvirt's own stamp is empty.
    fn first_start_since_boot(&self) -> io::Result<bool> {
        let stamp = self.directories.runtime.join("autostarted");
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
        match file::read_at_most(&stamp, MAX_STAMP) {
            Ok(noted) if noted.is_empty() || noted == boot => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        file::replace(&stamp, &boot, 0o600, Durability::Crash)?;
        Ok(true)
    }
}

/// What a guest does by its own account, where that differs from what was written down.
fn actual(noted: RunState, status: &QemuStatus) -> RunState {
    match (noted, status.status.as_str()) {
        (RunState::Running(_), _) | (RunState::PmSuspended(_), _) if status.running => noted,
        (_, _) if status.running => RunState::Running(Running::Unpaused),
        (RunState::Running(_), "io-error") => RunState::Paused(Paused::IoError),
        (RunState::Running(_), "watchdog") => RunState::Paused(Paused::Watchdog),
        (RunState::Running(_), "guest-panicked") => RunState::Crashed(Crashed::Panicked),
        // What comes of a power off depends on more than this.
        (RunState::Running(_), "suspended" | "shutdown") => noted,
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
        let running = RunState::Running(Running::Booted);
        let paused = RunState::Paused(Paused::User);
        for (noted, status, expected) in [
            (running, status(true, "running"), running),
            (paused, status(false, "paused"), paused),
            (paused, status(true, "running"), RunState::Running(Running::Unpaused)),
            (running, status(false, "paused"), RunState::Paused(Paused::Unknown)),
            (running, status(false, "io-error"), RunState::Paused(Paused::IoError)),
            (running, status(false, "guest-panicked"), RunState::Crashed(Crashed::Panicked)),
            (running, status(false, "shutdown"), running),
        ] {
            assert_eq!(actual(noted, &status), expected, "{noted:?} {status:?}");
        }
    }
}
