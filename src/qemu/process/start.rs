//! From a prepared guest to a QEMU that waits in `-S` and answers its monitor.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::files::{Guard, Prepared};
use super::{Files, Running};
use crate::qemu::log::{self, Log};
use crate::qemu::monitor::{Connected, Greeting, Monitor, MonitorError, MonitorEvent};
use crate::util::accounts::Ids;
use crate::util::file::{self, Durability};
use crate::util::process::{Child, Command, LockLimit, Process, ProcessError, Way};
use crate::util::reason::Reason;

/// How long a QEMU that closed its monitor may take to end; its last words are complete then.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(10);

/// How long a QEMU that begins lets others go first: on a host whose processors are never idle this is what it loses.
const POLITE: Duration = Duration::from_millis(500);

/// What is executed.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// What the log says behind "starting up": versions of those involved.
    pub versions: String,
    /// Lines for the log about what makes this guest special.
    pub taints: Vec<String>,
    /// How long QEMU may take until it answers.
    pub limit: Duration,
    /// Whom QEMU runs as, if not as this daemon's user.
    pub run_as: Option<Ids>,
    /// How much memory QEMU may lock, if not as much as this daemon.
    pub may_lock: Option<LockLimit>,
}

/// Why a guest did not start. The texts are libvirt's; its code is `VIR_ERR_INTERNAL_ERROR` unless a variant
/// says otherwise.
#[derive(Debug, Error)]
pub enum StartError {
    /// libvirt's code: `VIR_ERR_SYSTEM_ERROR`.
    #[error("cannot create '{}': {}", path.display(), Reason(source))]
    File { path: PathBuf, source: io::Error },
    /// libvirt's code: `VIR_ERR_SYSTEM_ERROR`.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// QEMU ended before the guest was up; these are its last words.
    #[error("QEMU unexpectedly closed the monitor (vm='{vm}'){}", words(last_words))]
    Died { vm: String, last_words: String },
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

fn words(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!(": {last_words}") }
}

impl StartError {
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }
}

/// A QEMU that may not answer yet: killed, and cleaned up after when this is dropped.
#[derive(Debug)]
pub struct Spawned {
    name: String,
    log: Log,
    child: Child,
    files: Guard,
    limit: Duration,
}

/// A QEMU that is up but not yet let go: killed, waited for and cleaned up after when this is dropped.
#[derive(Debug)]
pub struct Started {
    pub monitor: Monitor,
    pub greeting: Greeting,
    /// Taken by whoever will handle them.
    pub events: Option<mpsc::Receiver<MonitorEvent>>,
    name: String,
    log: Log,
    child: Child,
    files: Guard,
}

impl Prepared {
    /// Starts QEMU; ready when its monitor takes commands. Nothing stays behind when this fails or is
    /// dropped.
    pub async fn start(self, launch: Launch) -> Result<Started, StartError> {
        self.spawn(launch).await?.answer().await
    }

    /// Executes QEMU.
    pub async fn spawn(self, launch: Launch) -> Result<Spawned, StartError> {
        let Self { name, files, passed, .. } = self;
        let mut log = open_log(files.files(), &name, &launch)?;
        let output = || log.output().map_err(|error| StartError::file(log.path(), error));
        let mut command =
            Command::new(&launch.program).args(&launch.args).umask(0o002).stdout(output()?).stderr(output()?);
        if let Some(ids) = launch.run_as {
            command = command.run_as(ids);
        }
        if let Some(limit) = launch.may_lock {
            command = command.may_lock(limit);
        }
        command = launch.env.iter().fold(command, |command, (name, value)| command.env(name, value));
        command = passed.into_iter().fold(command, Command::pass);
        let spawned = async {
            let child = command.start().await?;
            // It computes until it answers; clients that wait for something short go first.
            child.process().give_way(Way::Given);
            note_lock_limit(&name, child.process(), launch.may_lock);
            write_pidfile(files.files(), child.process().pid())?;
            Ok(child)
        };
        match spawned.await {
            Ok(child) => Ok(Spawned { name, log, child, files, limit: launch.limit }),
            Err(error) => {
                note_failure(&mut log, &name);
                Err(error)
            }
        }
    }
}

/// A host that does not let this daemon allow more may still be one where QEMU needs less: it ends if that is not so.
fn note_lock_limit(name: &str, process: &Process, wanted: Option<LockLimit>) {
    let Some(wanted) = wanted else { return };
    if process.lock_limit().ok() != Some(wanted) {
        warn!(vm = name, ?wanted, "QEMU may not lock as much memory as the guest may need");
    }
}

impl Spawned {
    pub fn files(&self) -> &Files {
        self.files.files()
    }

    pub fn process(&self) -> &Process {
        self.child.process()
    }

    /// Ready when QEMU's monitor takes commands.
    pub async fn answer(self) -> Result<Started, StartError> {
        let Self { name, mut log, child, files, limit } = self;
        match converse(&name, files.files(), &child, limit).await {
            Ok(Connected { monitor, greeting, events }) => {
                child.process().give_way(Way::Equal);
                info!(vm = name, pid = child.process().pid(), "QEMU is up");
                Ok(Started { monitor, greeting, events: Some(events), name, log, child, files })
            }
            Err(error) => {
                let error = explain(&name, &log, &child, error).await;
                note_failure(&mut log, &name);
                Err(error)
            }
        }
    }
}

impl Started {
    pub fn files(&self) -> &Files {
        self.files.files()
    }

    pub fn pid(&self) -> u32 {
        self.child.process().pid()
    }

    /// The guest as whoever keeps it will know it.
    pub fn running(&self) -> Running {
        Running {
            process: self.child.process().clone(),
            monitor: self.monitor.clone(),
            files: self.files.files().clone(),
        }
    }

    /// Why a step after the start failed: a QEMU that ended meanwhile says so itself.
    pub async fn explain(&self, error: MonitorError) -> StartError {
        explain(&self.name, &self.log, &self.child, error).await
    }

    /// Lets the guest live on its own.
    pub fn keep(self) -> Running {
        let Self { monitor, child, files, .. } = self;
        Running { process: child.release(), monitor, files: files.take() }
    }

    /// Ends a start that failed in a later step; ready when QEMU is gone and the files are removed.
    pub async fn abandon(mut self) {
        note_failure(&mut self.log, &self.name);
        let process = self.child.process().clone();
        drop(self);
        super::gone(&process).await;
    }
}

fn note_failure(log: &mut Log, name: &str) {
    note(log, name, "shutting down, reason=failed");
}

/// A guest is worth more than what its log says of it: the host may have no room left.
fn note(log: &mut Log, name: &str, text: &str) {
    if let Err(error) = log.note(text) {
        warn!(vm = name, "cannot write the guest's log: {error}");
    }
}

/// The log with its header: what is about to run, complete enough to run it by hand.
fn open_log(files: &Files, name: &str, launch: &Launch) -> Result<Log, StartError> {
    let failed = |error| StartError::file(&files.logs.join(format!("{name}.log")), error);
    let mut log = Log::open(&files.logs, name).map_err(failed)?;
    let env = launch.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let shown = log::command_line(env, &launch.program.to_string_lossy(), &launch.args);
    note(&mut log, name, &format!("starting up {}\n{shown}", launch.versions));
    launch.taints.iter().for_each(|taint| note(&mut log, name, taint));
    Ok(log)
}

fn write_pidfile(files: &Files, pid: u32) -> Result<(), StartError> {
    file::replace(&files.pidfile, pid.to_string().as_bytes(), 0o644, Durability::Crash)
        .map_err(|error| StartError::file(&files.pidfile, error))
}

/// Connects to the socket that QEMU inherited. It listens already, so there is nothing to wait for but the
/// greeting, or QEMU's end.
async fn converse(
    name: &str,
    files: &Files,
    child: &Child,
    limit: Duration,
) -> Result<Connected, MonitorError> {
    let path = files.monitor();
    let answer = async {
        tokio::select! {
            connected = Monitor::open(&path, name, limit) => connected,
            _ = child.process().exited() => Err(MonitorError::Eof { vm: name.to_owned() }),
        }
    };
    let mut answer = pin!(answer);
    match timeout(POLITE, &mut answer).await {
        Ok(answered) => answered,
        Err(_) => {
            // It may be behind others that never stop computing.
            child.process().give_way(Way::Equal);
            answer.await
        }
    }
}

/// When QEMU is going down, its last words are the reason, not the closed socket.
async fn explain(name: &str, log: &Log, child: &Child, error: MonitorError) -> StartError {
    let gone = match error {
        MonitorError::Eof { .. } => child.process().exited_within(LAST_WORDS_WAIT).await.map(|_| true),
        _ => child.process().is_gone(),
    };
    if !gone.unwrap_or(false) {
        return StartError::Monitor(error);
    }
    let last_words = log.last_words().unwrap_or_default();
    StartError::Died { vm: name.to_owned(), last_words }
}
