//! Guests that run and whose status file is gone or says nothing: they must neither be lost nor be run twice.
//!
//! ```text
//!  files of a guest that no status file accounts for ─► processes with their key there ─► command line ─► definition
//!       ─► shown, adopted like any other guest ─► definition completed by its QEMU, and written down
//! ```
//!
//! One that still waits for its state, which the last daemon would have sent it, is ended; and files of which no process
//! knows are removed.
//!
//! What was plugged in since the start is on no command line; the guest has it all the same, unlike its definition.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Domains;
use super::adopt::Inherited;
use super::attach::{self, Found};
use super::status::status;
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::error::{Error, Result};
use crate::qemu::capabilities::CapSet;
use crate::qemu::job::{AsyncJob, Launched, Start, State};
use crate::qemu::monitor::Monitor;
use crate::qemu::native;
use crate::qemu::process::{self, Files, Stray};
use crate::qemu::run_state::{RunState, Running};
use crate::util::file;
use crate::util::process::Process;
use crate::util::uuid::Uuid;

/// The number of a process is shorter.
const MAX_PIDFILE: u64 = 32;

impl Domains {
    /// Shows the guests that run and are not among the `known` ones.
    pub(super) fn inherit_strays(&self, known: &[Inherited]) -> io::Result<Vec<Inherited>> {
        let is_known = |directory: &Path| known.iter().any(|it| it.claim.files.directory == directory);
        let named = |path: &Path| known.iter().any(|it| it.claim.files.pidfile == path);
        let left: Vec<_> = guests_directories(&self.directories.state)?;
        let pidfiles =
            entries(&self.directories.runtime, |path| path.extension() == Some(OsStr::new("pid")))?;
        if left.iter().all(|path| is_known(path)) && pidfiles.iter().all(|path| named(path)) {
            return Ok(Vec::new());
        }
        let mut strays = process::strays(&self.directories)?;
        strays.retain(|stray| !is_known(&stray.directory));
        for path in pidfiles.iter().filter(|path| !named(path)) {
            let noted = noted_process(path).filter(|noted| !strays.iter().any(|it| it.process.is(noted)));
            strays.extend(noted.and_then(|process| self.attached_once(path, process, &left)));
        }
        for directory in left.iter().filter(|path| !is_known(path)) {
            if strays.iter().all(|stray| stray.directory != **directory) {
                self.sweep(directory);
            }
        }
        Ok(strays.into_iter().filter_map(|stray| self.inherit_stray(stray)).collect())
    }

    /// Removes what was prepared for a guest that never came to run.
    fn sweep(&self, directory: &Path) {
        if let Err(error) = Files::remove_left_in(&self.directories, directory) {
            tracing::warn!(directory = %directory.display(), %error, "cannot remove a guest's files");
        }
    }

    /// A guest that the last daemon had attached to: it has no key of the daemon's, but its name on a pid file.
    fn attached_once(&self, pidfile: &Path, process: Process, left: &[PathBuf]) -> Option<Stray> {
        let name = pidfile.file_stem()?.to_str()?;
        let (_, seen) = describe(&process).ok()?;
        let of_it = |path: &&PathBuf| {
            let id = id_of(path)?;
            (Files::new(&self.directories, id, name).directory == **path).then_some(())
        };
        let directory = left.iter().find(|path| of_it(path).is_some())?.clone();
        (*seen.name == *name).then_some(Stray { process, id: id_of(&directory)?, directory })
    }

    fn inherit_stray(&self, stray: Stray) -> Option<Inherited> {
        let pid = stray.process.pid();
        match self.try_inherit(stray) {
            Ok(inherited) => inherited,
            Err(error) => {
                tracing::error!(pid, %error, "a guest runs that cannot be shown");
                None
            }
        }
    }

    fn try_inherit(&self, stray: Stray) -> Result<Option<Inherited>> {
        let Stray { process, directory, id } = stray;
        let (mut found, mut live) = describe(&process)?;
        if !live.has_uuid() {
            live.uuid = super::complete::random_uuid()?;
        }
        found.uuid = live.uuid;
        live.id = Some(id);
        let mut files = Files::new(&self.directories, id, &live.name);
        if !files.monitor.exists() {
            let native = native::convert(&found.invocation, &found.surroundings)?;
            if let Ok(found) = attach::socket_of(process.pid(), &native.monitors) {
                (files.monitor, files.language) = found;
            }
        }
        files.directory = directory;
        attach::prepare_found(&mut live, &files, &process, &self.rules.security)?;
        let launched = Launched {
            capabilities: CapSet::default(),
            last_node: attach::last_node(&found.invocation.args),
            defined_cpu: None,
            owners: self.rules.security.owners(),
            devices: Arc::default(),
        };
        let mut state = State::new(&*live.name, live.uuid);
        state.id = live.id;
        state.run = RunState::Running(Running::Unknown);
        state.live = Some(Arc::new(live));
        state.launched = Some(Arc::new(launched));
        let status = status(&state, &process, &files);
        let Some(mut inherited) = status.and_then(|status| self.inherit_status(&status)) else {
            return Ok(None);
        };
        tracing::warn!(domain = %state.name, pid = process.pid(), "found a guest that no status file tells of");
        inherited.found = Some(found);
        Ok(Some(inherited))
    }

    /// What its QEMU and its definition tell of a guest that was found by its command line.
    pub(super) async fn complete_stray(
        &self,
        job: &AsyncJob<Start>,
        monitor: &Monitor,
        found: &Found,
    ) -> Result<()> {
        let state = job.state();
        let answers = attach::ask(monitor, &state.name, None).await?;
        let id = state.id.unwrap_or(-1);
        let (mut live, capabilities) = self.complete_live(found, &answers, id).await?;
        if let (Some(files), Some(process)) = (state.files(), state.process()) {
            attach::prepare_found(&mut live, files, process, &self.rules.security)?;
        }
        if let Some(defined) = &state.inactive {
            take_untold(&mut live, defined);
        }
        job.update(|state| {
            let last_node = state.launched.as_ref().map_or(0, |launched| launched.last_node);
            let defined_cpu = live.cpu.clone();
            let owners = self.rules.security.owners();
            state.launched = Some(Arc::new(Launched {
                capabilities,
                last_node,
                defined_cpu,
                owners,
                devices: Arc::default(),
            }));
            state.live = Some(Arc::new(live));
            state.vcpu_threads = answers.threads;
        });
        Ok(())
    }

    /// Refuses to start a guest beside itself: two of them on the same disks destroy what is on these.
    pub(super) fn refuse_twin(&self, definition: &Domain) -> Result<()> {
        let Domain { name, uuid, .. } = definition;
        let twin = process::twin(&self.directories, name, *uuid).map_err(|error| {
            Error::io(format_args!("cannot tell whether domain '{name}' runs already"), error)
        })?;
        match twin {
            Some(pid) => Err(Error::operation_failed(format!(
                "domain '{name}' runs already as process {pid}, of which the daemon lost track; \
                 it takes hold of it when it is restarted"
            ))),
            None => Ok(()),
        }
    }
}

/// What is in no command line.
fn take_untold(live: &mut Domain, defined: &Domain) {
    live.title.clone_from(&defined.title);
    live.description.clone_from(&defined.description);
    live.metadata.clone_from(&defined.metadata);
    live.on_poweroff = defined.on_poweroff;
    live.on_reboot = defined.on_reboot;
    live.on_crash = defined.on_crash;
}

/// The guest that a process runs.
fn describe(process: &Process) -> Result<(Found, Domain)> {
    let pid = process.pid();
    let origin =
        process.origin().map_err(|error| Error::io(format_args!("cannot look at process {pid}"), error))?;
    let invocation = attach::invocation_of(pid, &origin)?;
    let surroundings = attach::surroundings_of(pid, &origin, &invocation);
    let native = native::convert(&invocation, &surroundings)?;
    let live = Domain::parse(&native.xml, Form::LIVE)?;
    Ok((Found { invocation, surroundings, uuid: Uuid([0; 16]) }, live))
}

fn noted_process(pidfile: &Path) -> Option<Process> {
    let text = file::read_at_most(pidfile, MAX_PIDFILE).ok()?;
    Process::find(String::from_utf8(text).ok()?.trim().parse().ok()?).ok()
}

fn guests_directories(state: &Path) -> io::Result<Vec<PathBuf>> {
    entries(state, |path| id_of(path).is_some())
}

/// From `domain-ID-NAME`.
fn id_of(directory: &Path) -> Option<i32> {
    directory.file_name()?.to_str()?.strip_prefix("domain-")?.split_once('-')?.0.parse().ok()
}

/// The paths in a directory that are of interest; none in one that is not there.
fn entries(directory: &Path, of_interest: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| of_interest(path));
    Ok(paths)
}
