//! Taking hold of a guest that an earlier daemon started.
//!
//! A process number in a file proves nothing: the guest is ours if the process started when the file says
//! it did, or for want of that carries the guest's uuid on its command line, and the QEMU behind the monitor
//! socket says that it runs this guest.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;

use super::{Files, Running};
use crate::qemu::monitor::{Connected, Monitor, MonitorError, MonitorEvent, QueryName, QueryUuid};
use crate::util::process::Process;
use crate::util::uuid::Uuid;

/// How long a QEMU that closed its monitor may take to end.
const GOING: Duration = Duration::from_secs(2);

/// What is known of the guest.
#[derive(Debug, Clone)]
pub struct Claim {
    pub name: String,
    pub uuid: Uuid,
    pub pid: u32,
    /// Unknown for a guest that another implementation started; its command line has to do then.
    pub start_time: Option<u64>,
    pub files: Files,
}

/// A guest that runs on.
#[derive(Debug)]
pub struct Adopted {
    pub running: Running,
    pub events: mpsc::Receiver<MonitorEvent>,
}

/// Why a guest could not be taken hold of.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// It ended while nobody watched.
    #[error("process {pid} of domain '{name}' is gone")]
    Gone { name: String, pid: u32 },
    /// It may run; it must be left alone.
    #[error("process {pid} of domain '{name}' cannot be watched: {source}")]
    Watch { name: String, pid: u32, source: io::Error },
    /// The process is there and the guest's own, but its monitor is of no use. It has to be left alone, or
    /// stopped through the process that comes with this.
    #[error("QEMU of domain '{name}' does not answer: {source}")]
    Silent { name: String, process: Process, source: MonitorError },
    /// Another guest answers.
    #[error("the monitor of domain '{name}' belongs to '{found}'")]
    Other { name: String, found: String },
}

impl Claim {
    /// The guest's process, if it is still there. Says nothing about the guest.
    pub fn process(&self) -> Result<Process, AdoptError> {
        let (name, pid) = (self.name.clone(), self.pid);
        let opened = match self.start_time {
            Some(start_time) => Process::open(pid, start_time),
            None => find_by_uuid(pid, self.uuid),
        };
        opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => AdoptError::Gone { name, pid },
            _ => AdoptError::Watch { name, pid, source },
        })
    }
}

/// Takes hold of a guest, within `limit`.
pub async fn adopt(claim: Claim, limit: Duration) -> Result<Adopted, AdoptError> {
    let process = claim.process()?;
    let Claim { name, uuid, pid, start_time, files } = claim;
    let asked = tokio::select! {
        asked = ask(&name, &files, limit) => asked,
        _ = process.exited() => return Err(AdoptError::Gone { name, pid }),
    };
    let (Connected { monitor, events, .. }, answered) = match asked {
        Ok(asked) => asked,
        Err(source) => {
            // A QEMU on its way out closes its monitor first.
            let going = matches!(source, MonitorError::Eof { .. } | MonitorError::Connect { .. });
            if going && matches!(process.exited_within(GOING).await, Ok(Some(_))) {
                return Err(AdoptError::Gone { name, pid });
            }
            return Err(AdoptError::Silent { name, process, source });
        }
    };
    // A guest that somebody else started without a uuid has none of its own; its process is the proof then.
    let is_nameless = answered.uuid == Some(Uuid([0; 16])) && start_time.is_some();
    if !(is_nameless || answered.uuid == Some(uuid))
        || answered.name.as_deref().is_some_and(|found| found != name)
    {
        let found = answered.name.unwrap_or_else(|| "a guest without a name".to_owned());
        return Err(AdoptError::Other { name, found });
    }
    Ok(Adopted { running: Running { process, monitor, files }, events })
}

/// Another process may have the number by now.
fn find_by_uuid(pid: u32, uuid: Uuid) -> io::Result<Process> {
    let process = Process::find(pid)?;
    let uuid = uuid.to_string();
    let arguments = process.arguments()?;
    match arguments.windows(2).any(|pair| pair[0] == b"-uuid" && pair[1] == uuid.as_bytes()) {
        true => Ok(process),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

struct Identity {
    name: Option<String>,
    uuid: Option<Uuid>,
}

async fn ask(name: &str, files: &Files, limit: Duration) -> Result<(Connected, Identity), MonitorError> {
    let connected = Monitor::open(&files.monitor(), name, limit).await?;
    let (asked_name, asked_uuid) =
        (connected.monitor.submit(QueryName {}), connected.monitor.submit(QueryUuid {}));
    let answers = async { Ok((asked_name.reply().await?.name, asked_uuid.reply().await?.uuid)) };
    match tokio::time::timeout(limit, answers).await {
        Ok(Ok((name, uuid))) => Ok((connected, Identity { name, uuid: uuid.parse().ok() })),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(MonitorError::Timeout { command: "query-name".to_owned(), limit }),
    }
}
