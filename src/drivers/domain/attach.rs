//! A QEMU that somebody else started becomes a guest like any other.
//!
//! ```text
//!  pid ─► process: a QEMU, not ours, ours to touch ─► command line ─► definition, monitor sockets
//!      ─► name and uuid are free ─► monitor answers: state, KVM, threads, terminals ─► definition again, complete
//!      ─► attached: followed, written down, listed
//! ```
//!
//! Nothing is asked of the process before its monitor is, and the monitor is asked questions only: an attempt
//! that fails leaves the process as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use super::event::{DomainEvent, Lifecycle, Started, Suspended};
use super::flags::no_flags;
use super::list::Existing;
use super::{Domains, blocking, complete, formats};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::error::{Error, Result};
use crate::qemu::alias::assign_aliases;
use crate::qemu::facts::facts;
use crate::qemu::job::{AsyncJob, DomainHandle, DomainObject, Launched, Machine, Start, State};
use crate::qemu::monitor::{
    BlockDevice, Chardev, Connected, Monitor, MonitorError, MonitorEvent, PciDevice, QueryBlock,
    QueryChardev, QueryCpusFast, QueryKvm, QueryName, QueryPci, QueryStatus, QueryUuid,
};
use crate::qemu::native::{self, Invocation, MonitorMode, MonitorPlace, Native, NativeMonitor, Surroundings};
use crate::qemu::prepare::{self, Place};
use crate::qemu::process::{Files, Language, Running};
use crate::qemu::run_state::{Paused, RunState, Running as Runs};
use crate::qemu::secret::MasterKey;
use crate::qemu::security::{Owners, Security};
use crate::util::file::{self, Durability};
use crate::util::process::{Origin, Process};
use crate::util::uuid::Uuid;

/// How long a QEMU that nobody else talks to may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A file that a command line includes may have so many bytes.
const MAX_CONFIG: u64 = 1024 * 1024;

/// Variables of the process that QEMU or a library of its reads; the others are its starter's own.
const TELLING_VARIABLES: &[&str] = &["QEMU_", "SDL_", "PULSE_", "PIPEWIRE_", "ALSA_", "TZ", "LIBGL_"];

/// What its monitor says of a process.
pub(super) struct Answers {
    runs: bool,
    kvm: bool,
    pub(super) threads: Arc<[u32]>,
    ptys: Vec<(String, String)>,
    pci: Vec<PciDevice>,
    blocks: Vec<BlockDevice>,
    pub(super) streams: Vec<Chardev>,
}

impl Domains {
    /// Takes hold of the QEMU with this process number.
    pub async fn attach_process(self: &Arc<Self>, pid: u32, flags: u32) -> Result<Arc<State>> {
        no_flags(flags, "qemuDomainQemuAttach")?;
        let process = Process::find(pid).map_err(|error| no_process(pid, &error))?;
        self.refuse_managed(pid)?;
        let (process, invocation, surroundings) = blocking(move || {
            let origin = process.origin().map_err(|error| no_process(pid, &error))?;
            let invocation = invocation_of(pid, &origin)?;
            let surroundings = surroundings_of(pid, &origin, &invocation);
            Ok((process, invocation, surroundings))
        })
        .await?;
        let native = native::convert(&invocation, &surroundings)?;
        let seen = Domain::parse(&native.xml, Form::LIVE)?;
        let uuid = if seen.has_uuid() { seen.uuid } else { complete::random_uuid()? };
        let object = self.claim_names(&seen.name, uuid)?;
        let attached = async {
            let mut job = DomainHandle::new(Arc::clone(&object)).begin_async::<Start>().await?;
            let found = Found { invocation, surroundings, uuid };
            self.take_over(&mut job, process, found, native).await?;
            Ok(job.state())
        };
        let attached = attached.await;
        if attached.is_err() {
            self.forget_unused(&object);
        }
        attached
    }

    fn refuse_managed(&self, pid: u32) -> Result<()> {
        let has_it = |object: &Arc<DomainObject>| object.state().process().is_some_and(|it| it.pid() == pid);
        match self.list.all().iter().find(|object| has_it(object)) {
            Some(object) => {
                let name = &object.state().name;
                Err(Error::operation_invalid(format!("process {pid} is already managed as domain '{name}'")))
            }
            None => Ok(()),
        }
    }

    /// A domain that nobody else has, not even one that is shut off.
    fn claim_names(&self, name: &str, uuid: Uuid) -> Result<Arc<DomainObject>> {
        let fresh = || DomainObject::new(State::new(name, uuid), self.limits);
        let added = self.list.add((name, uuid), Existing::Redefine, fresh)?;
        match added.is_new {
            true => Ok(added.object),
            false => Err(Error::operation_failed(format!("domain '{name}' already exists with uuid {uuid}"))),
        }
    }

    async fn take_over(
        self: &Arc<Self>,
        job: &mut AsyncJob<Start>,
        process: Process,
        found: Found,
        native: Native,
    ) -> Result<()> {
        let name = job.state().name.to_string();
        let pid = process.pid();
        let (socket, language) = socket_of(pid, &native.monitors)?;
        let opened = match language {
            Language::Qmp => Monitor::open(&socket, &name, LIMIT).await,
            Language::Human => Monitor::open_human(&socket, &name, LIMIT).await,
        };
        let Connected { monitor, events, .. } = opened.map_err(|error| unreachable(&socket, error))?;
        let named = native.xml.contains("<uuid>").then_some(found.uuid);
        let answers = ask(&monitor, &name, named).await?;
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (mut live, capabilities) = self.complete_live(&found, &answers, id).await?;
        let last_node = last_node(&found.invocation.args);
        let owners = Owners::Forgotten;
        let (defined_cpu, devices) = (live.cpu.clone(), Arc::default());
        let launched = Launched { capabilities, last_node, defined_cpu, owners, devices };
        let mut files = Files::new(&self.directories, id, &name);
        prepare_found(&mut live, &files, &process, &self.rules.security)?;
        for directory in [&files.directory, &files.channels, &self.directories.runtime] {
            file::make_directory(directory, 0o750)
                .map_err(|error| Error::io(format_args!("cannot create '{}'", directory.display()), error))?;
        }
        file::replace(&files.pidfile, pid.to_string().as_bytes(), 0o644, Durability::Crash)
            .map_err(|error| Error::io(format_args!("cannot create '{}'", files.pidfile.display()), error))?;
        (files.monitor, files.language) = (socket, language);
        let running = Running { process, monitor, files };
        self.list.bind_id(id, job.object());
        self.ports.reserve(&live);
        self.announce(job, Attached { id, live, launched, answers, running, events });
        Ok(())
    }

    /// From here on it is a guest like any other.
    fn announce(self: &Arc<Self>, job: &AsyncJob<Start>, attached: Attached) {
        let Attached { id, live, launched, answers, running, events } = attached;
        let process = running.process.clone();
        let (run, suspended) = match answers.runs {
            true => (RunState::Running(Runs::Unpaused), None),
            false => (RunState::Paused(Paused::User), Some(Lifecycle::Suspended(Suspended::Paused))),
        };
        job.update_then(
            |state| {
                state.id = Some(id);
                state.live = Some(Arc::new(live));
                state.launched = Some(Arc::new(launched));
                state.vcpu_threads = answers.threads;
                state.run = run;
                state.attach(Machine::new(running));
            },
            |state, ()| {
                self.save_status(state);
                let started = Lifecycle::Started(Started::Booted);
                for event in [Some(started), suspended].into_iter().flatten() {
                    self.publish(state, DomainEvent::Lifecycle(event));
                }
            },
        );
        tracing::info!(domain = %job.state().name, pid = process.pid(), "attached to a running QEMU");
        self.note_ports(job.object(), &answers.streams);
        self.follow(job.object(), process, events);
    }

    /// The definition with what only the running QEMU knows.
    pub(super) async fn complete_live(
        &self,
        found: &Found,
        answers: &Answers,
        id: i32,
    ) -> Result<(Domain, crate::qemu::capabilities::CapSet)> {
        let surroundings =
            Surroundings { ptys: answers.ptys.clone(), kvm: Some(answers.kvm), ..found.surroundings.clone() };
        let native = native::convert(&found.invocation, &surroundings)?;
        let mut live = Domain::parse(&native.xml, Form::LIVE)?;
        live.uuid = found.uuid;
        native::place(&mut live, answers.pci.clone());
        let directory = surroundings.directory.as_deref().unwrap_or(Path::new("/"));
        formats::as_found(&mut live, &answers.blocks, directory);
        let caps = self.emulators.lookup(Path::new(&found.invocation.program)).await?;
        let facts = facts(&caps, &live);
        complete::fill_in(&mut live, &facts)?;
        assign_aliases(&mut live)?;
        live.id = Some(id);
        Ok((live, caps.flags))
    }
}

/// A QEMU that runs, and what was found out without touching it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) invocation: Invocation,
    pub(super) surroundings: Surroundings,
    pub(super) uuid: Uuid,
}

struct Attached {
    id: i32,
    live: Domain,
    launched: Launched,
    answers: Answers,
    running: Running,
    events: mpsc::Receiver<MonitorEvent>,
}

/// Gives a definition what every running guest's has and no command line tells.
pub(super) fn prepare_found(
    live: &mut Domain,
    files: &Files,
    process: &Process,
    security: &Security,
) -> Result<()> {
    let ids = process.owner().map_err(|error| no_process(process.pid(), &error))?;
    // Only a daemon makes a key for a guest, and only it has given the guest its files.
    match files.directory.join(MasterKey::FILE).exists() {
        true => security.claim(live, ids),
        false => security.leave_alone(live, ids),
    }
    let place = Place {
        id: live.id.unwrap_or(-1),
        state_dir: &files.directory,
        channel_dir: &files.channels,
        vnc_listen: "",
        render_node: None,
    };
    Ok(prepare::prepare_found(live, &place)?)
}

fn no_process(pid: u32, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput => {
            Error::operation_failed(format!("no process with pid {pid}"))
        }
        std::io::ErrorKind::PermissionDenied => {
            Error::operation_denied(format!("process {pid} belongs to another user"))
        }
        _ => Error::operation_failed(format!("cannot look at process {pid}: {error}")),
    }
}

/// What the process executes, if that is a QEMU.
pub(super) fn invocation_of(pid: u32, origin: &Origin) -> Result<Invocation> {
    let program = origin.program.display().to_string();
    let name = origin.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !(name.starts_with("qemu-system-") || matches!(&*name, "qemu-kvm" | "kvm")) {
        return Err(Error::operation_invalid(format!("process {pid} is not QEMU but '{program}'")));
    }
    let telling = |text: &&String| TELLING_VARIABLES.iter().any(|prefix| text.starts_with(prefix));
    let env = origin.env.iter().filter(telling).filter_map(|text| text.split_once('='));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(Invocation { env, program, args: origin.args.iter().skip(1).cloned().collect() })
}

pub(super) fn surroundings_of(pid: u32, origin: &Origin, invocation: &Invocation) -> Surroundings {
    let directory = started_in(origin, &invocation.args);
    let read = |name: &String| {
        let path = directory.join(name);
        // Who put a pipe there would have this wait for him.
        let is_file = std::fs::metadata(&path).is_ok_and(|found| found.is_file());
        let text = is_file.then(|| file::read_at_most(&path, MAX_CONFIG).ok())??;
        Some((name.clone(), String::from_utf8(text).ok()?))
    };
    Surroundings {
        directory: Some(directory.clone()),
        files: invocation.config_files().iter().filter_map(read).collect(),
        name: format!("qemu-{pid}"),
        ..Surroundings::default()
    }
}

/// Where paths on the command line begin. A QEMU that went to the background has left that place.
fn started_in(origin: &Origin, args: &[String]) -> PathBuf {
    let is_gone = origin.directory == Path::new("/")
        && args.iter().any(|arg| matches!(arg.as_str(), "-daemonize" | "--daemonize"));
    let shells = origin.env.iter().find_map(|text| text.strip_prefix("PWD=")).filter(|_| is_gone);
    shells.map_or_else(|| origin.directory.clone(), PathBuf::from)
}

/// The monitor that a daemon can use: one that speaks QMP if there is one.
pub(super) fn socket_of(pid: u32, monitors: &[NativeMonitor]) -> Result<(PathBuf, Language)> {
    let refuse =
        |why: String| Err(Error::operation_unsupported(format!("cannot attach to process {pid}: {why}")));
    let found = monitors.iter().find_map(|monitor| match (&monitor.place, monitor.mode) {
        (MonitorPlace::Unix(path), MonitorMode::Control) => Some((path.clone(), Language::Qmp)),
        (MonitorPlace::Unix(path), MonitorMode::Readline) => Some((path.clone(), Language::Human)),
        (MonitorPlace::Stdio | MonitorPlace::Other(_), _) => None,
    });
    if let Some(found) = found {
        return Ok(found);
    }
    match monitors.first().map(|monitor| &monitor.place) {
        None => refuse("it has no monitor".to_owned()),
        Some(MonitorPlace::Other(place)) => {
            refuse(format!("its monitor '{place}' is not a listening UNIX socket"))
        }
        Some(_) => refuse("its monitor is on its terminal".to_owned()),
    }
}

fn unreachable(socket: &Path, error: MonitorError) -> Error {
    match error {
        MonitorError::Timeout { .. } => {
            let sentence =
                format!("the monitor on '{}' does not answer: somebody else uses it", socket.display());
            Error::operation_failed(sentence)
        }
        error => error.into(),
    }
}

/// Who it is and what it does. A guest without a uuid says that it has the one of zeros.
pub(super) async fn ask(monitor: &Monitor, name: &str, uuid: Option<Uuid>) -> Result<Answers> {
    let (names, uuids) = (monitor.submit(QueryName {}), monitor.submit(QueryUuid {}));
    let (status, kvm) = (monitor.submit(QueryStatus {}), monitor.submit(QueryKvm {}));
    let (cpus, chardevs) = (monitor.submit(QueryCpusFast {}), monitor.submit(QueryChardev {}));
    let (pci, blocks) = (monitor.submit(QueryPci {}), monitor.submit(QueryBlock {}));
    let (found_name, found_uuid) = (names.reply().await?.name, uuids.reply().await?.uuid);
    let is_it = uuid.is_none_or(|uuid| found_uuid.parse() == Ok(uuid));
    if !is_it || found_name.is_some_and(|found| found != name) {
        return Err(Error::operation_failed(format!("the monitor of '{name}' belongs to another guest")));
    }
    let mut cpus = cpus.reply().await.unwrap_or_default();
    cpus.sort_unstable_by_key(|cpu| cpu.cpu_index);
    let streams = chardevs.reply().await?;
    let terminals = streams.iter().filter_map(|it| Some((it.label.clone(), it.pty()?.to_owned())));
    Ok(Answers {
        runs: status.reply().await?.running,
        kvm: kvm.reply().await?.enabled,
        threads: cpus.iter().map(|cpu| cpu.thread_id).collect(),
        // A monitor for humans does not tell; without disks there is nothing that it could get wrong.
        blocks: blocks.reply().await.unwrap_or_default(),
        // Not every machine has such a bus, and not every monitor tells.
        pci: pci.reply().await.unwrap_or_default().into_iter().flat_map(|bus| bus.devices).collect(),
        ptys: terminals.collect(),
        streams,
    })
}

/// The highest number of a block node that is named as the daemon names its own.
pub(super) fn last_node(args: &[String]) -> u32 {
    let numbers = args.iter().flat_map(|arg| arg.split("libvirt-").skip(1)).filter_map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    numbers.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_where_qemu_was_started() {
        let origin = |directory: &str, pwd: &str| Origin {
            program: "/usr/bin/qemu-system-x86_64".into(),
            directory: directory.into(),
            env: vec!["HOME=/root".to_owned(), pwd.to_owned()],
            args: Vec::new(),
        };
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (directory, pwd, line, expected) in [
            ("/home/me", "PWD=/elsewhere", "-hda disk.img", "/home/me"),
            ("/", "PWD=/home/me", "-hda disk.img -daemonize", "/home/me"),
            ("/", "PWD=/home/me", "-hda disk.img", "/"),
            ("/", "SHELL=/bin/sh", "-hda disk.img -daemonize", "/"),
        ] {
            assert_eq!(started_in(&origin(directory, pwd), &args(line)), Path::new(expected), "{line}");
        }
    }
}
