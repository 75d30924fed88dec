//! Taking hold of a guest that an earlier daemon started.
//!
//! A process number in a file proves nothing: the guest is ours if the process started when the file says
//! it did, or for want of that carries the guest's uuid on its command line, and the QEMU behind the monitor
//! socket says that it runs this guest.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;

use super::{Files, Language, Running};
use crate::qemu::monitor::{
    Capabilities, Monitor, MonitorError, MonitorEvent, Pending, QueryName, QueryUuid, Reopened,
};
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
    /// To be heard before anything else is asked of it.
    pub introduction: Introduction,
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
    /// The process is there and the guest's own, but there is no way to its monitor. It has to be left alone, or
    /// stopped through the process that comes with this.
    #[error("QEMU of domain '{name}' cannot be talked to: {source}")]
    Deaf { name: String, process: Process, source: MonitorError },
    /// The connection ended before QEMU had said who it is.
    #[error("QEMU of domain '{name}' did not answer: {source}")]
    Ended { name: String, source: MonitorError },
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

/// Takes hold of a guest. Its QEMU may take as long as it likes to answer.
pub async fn adopt(claim: Claim) -> Result<Adopted, AdoptError> {
    let process = claim.process()?;
    let Claim { name, uuid, pid, start_time, files } = claim;
    let reopened = match files.language {
        Language::Qmp => Monitor::reopen(&files.monitor, &name),
        Language::Human => Monitor::reopen_human(&files.monitor, &name),
    };
    match reopened {
        Ok(Reopened { monitor, negotiated, events }) => {
            let asked = (monitor.submit(QueryName {}), monitor.submit(QueryUuid {}));
            let introduction =
                Introduction { name, uuid, start_known: start_time.is_some(), negotiated, asked };
            Ok(Adopted { running: Running { process, monitor, files }, events, introduction })
        }
        // A QEMU on its way out closes its monitor first.
        Err(_) if matches!(process.exited_within(GOING).await, Ok(Some(_))) => {
            Err(AdoptError::Gone { name, pid })
        }
        Err(source) => Err(AdoptError::Deaf { name, process, source }),
    }
}

/// QEMU's own word for who it is, still to come.
#[derive(Debug)]
pub struct Introduction {
    name: String,
    uuid: Uuid,
    start_known: bool,
    negotiated: Pending<Capabilities>,
    asked: (Pending<QueryName>, Pending<QueryUuid>),
}

impl Introduction {
    /// Returns when QEMU has said that it runs this guest; fails at the end of the connection.
    pub async fn heard(self) -> Result<(), AdoptError> {
        let Self { name: expected, uuid, start_known, negotiated, asked: (asked_name, asked_uuid) } = self;
        let answers = async {
            negotiated.late_reply().await?;
            Ok((asked_name.late_reply().await?.name, asked_uuid.late_reply().await?.uuid))
        };
        // A guest that somebody else started without a uuid has none of its own; its process is the proof then.
        let is_its = |found| found == Some(uuid) || (start_known && found == Some(Uuid([0; 16])));
        match answers.await {
            Ok((name, found))
                if is_its(found.parse().ok()) && name.as_ref().is_none_or(|it| *it == expected) =>
            {
                Ok(())
            }
            Ok((name, _)) => {
                let found = name.unwrap_or_else(|| "a guest without a name".to_owned());
                Err(AdoptError::Other { name: expected, found })
            }
            Err(source) => Err(AdoptError::Ended { name: expected, source }),
        }
    }
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
