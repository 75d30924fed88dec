//! The conversation with one QEMU over QMP.
//!
//! ```text
//!            connect                    greeting and the reply to qmp_capabilities
//!  socket ────────────▶ negotiating ──────────────────────────────────────────────▶ open
//!                            │                                                  │    │  ▲
//!                            │ end of file, garbage,                            │    │  │ admit
//!                            │ a reply that is too large                        │    ▼  │ fail_all
//!                            └────────────────────▶ ended ◀─────────────────────┴── closed to callers
//! ```
//!
//! * Any number of commands may be under way; QEMU runs them in order. What is submitted before the
//!   writer gets its turn leaves in one write: submit the commands of one step first, then await them.
//! * Every wait ends: with the reply, with the command's limit, with the end of the connection, or at
//!   once when somebody calls [`Monitor::fail_all`], whatever QEMU does meanwhile.
//! * Events keep their order and end with [`MonitorEvent::End`]. They wait in a queue while replies do not;
//!   [`Monitor::events_handled`] puts the two back in order. A full queue stops the reader, and so QEMU.
//! * The last clone of a [`Monitor`] closes the connection.

mod command;
mod commands;
mod connection;
mod error;
mod event;
pub mod fuzz;
mod graph;
mod human;
mod migration;
mod redact;
mod stats;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

pub use command::{Command, Done};
pub use commands::*;
pub use connection::{MAX_COMMANDS, MAX_REPLY_BYTES, Progress};
pub use error::MonitorError;
pub use event::{Event, EventKind, MemoryFailureFlags, Timestamp, VncClient};
pub use graph::{BlockGraph, node_number};
pub use migration::*;
pub use stats::*;

use crate::util::unix;
use connection::{Opened, Shared, Waiting};

/// The right to talk to one QEMU. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Monitor {
    link: Arc<Link>,
}

/// The connection as long as anyone holds a [`Monitor`].
#[derive(Debug)]
struct Link {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.end(&MonitorError::Closed);
    }
}

/// What QEMU sends on its own, in order.
#[derive(Debug)]
pub enum MonitorEvent {
    Guest(Event),
    /// Somebody waits until the events before this one have been handled; dropping it tells them.
    Fence(oneshot::Sender<Infallible>),
    /// The connection is over; nothing comes after this. [`MonitorError::Eof`] is QEMU's regular end.
    End(MonitorError),
}

/// What [`Monitor::connect`] hands out.
#[derive(Debug)]
pub struct Connected {
    pub monitor: Monitor,
    pub greeting: Greeting,
    pub events: mpsc::Receiver<MonitorEvent>,
}

/// What [`Monitor::reopen`] hands out.
#[derive(Debug)]
pub struct Reopened {
    pub monitor: Monitor,
    /// Done when QEMU takes commands.
    pub negotiated: Pending<Capabilities>,
    pub events: mpsc::Receiver<MonitorEvent>,
}

impl Monitor {
    /// Opens the conversation on a connected socket: ready once QEMU takes commands. `vm` names the guest
    /// in errors. QEMU may not even listen yet; fails when it is not ready within `limit`.
    pub async fn connect(stream: UnixStream, vm: &str, limit: Duration) -> Result<Connected, MonitorError> {
        let (monitor, greeted, events) = Self::over(stream, vm);
        let negotiated = async {
            monitor.execute(Capabilities {}).await?;
            greeted.await.map_err(|_| MonitorError::NoGreeting)
        };
        match tokio::time::timeout(limit, negotiated).await {
            Ok(greeting) => Ok(Connected { greeting: greeting?, monitor, events }),
            Err(_) => Err(MonitorError::Timeout { command: Capabilities::NAME.to_owned(), limit }),
        }
    }

    /// Opens the conversation with a QEMU that may not answer for long, because it is stopped or its host
    /// overloaded. Commands may be submitted; QEMU gets to them when it gets to anything.
    pub fn reopen(path: &Path, vm: &str) -> Result<Reopened, MonitorError> {
        let (monitor, _greeted, events) = Self::over(connected(path)?, vm);
        let negotiated = monitor.submit(Capabilities {});
        Ok(Reopened { monitor, negotiated, events })
    }

    /// The monitor of a guest that cannot be reached: over from the beginning, for this reason.
    pub fn unreachable(
        vm: &str,
        reason: &MonitorError,
    ) -> std::io::Result<(Self, mpsc::Receiver<MonitorEvent>)> {
        let (stream, _nobody) = UnixStream::pair()?;
        let (monitor, _greeted, events) = Self::over(stream, vm);
        monitor.link.shared.end(reason);
        Ok((monitor, events))
    }

    fn over(
        stream: UnixStream,
        vm: &str,
    ) -> (Self, oneshot::Receiver<Greeting>, mpsc::Receiver<MonitorEvent>) {
        let Opened { shared, greeted, events, sender } = Shared::open(stream, vm);
        let tasks = [
            tokio::spawn(Arc::clone(&shared).read(sender)).abort_handle(),
            tokio::spawn(Arc::clone(&shared).write()).abort_handle(),
        ];
        (Self { link: Arc::new(Link { shared, tasks }) }, greeted, events)
    }

    /// Opens the conversation with the QEMU that listens on `path`.
    pub async fn open(path: &Path, vm: &str, limit: Duration) -> Result<Connected, MonitorError> {
        Self::connect(connected(path)?, vm, limit).await
    }

    /// The same over a monitor for humans, which knows few commands and reports no events.
    pub async fn open_human(path: &Path, vm: &str, limit: Duration) -> Result<Connected, MonitorError> {
        let stream = connected(path)?;
        match tokio::time::timeout(limit, human::Human::greeted(stream)).await {
            Ok(Ok(human)) => Self::connect(translated(async { Ok(human) })?, vm, limit).await,
            Ok(Err(error)) => Err(MonitorError::Connect { source: Arc::new(error) }),
            Err(_) => Err(MonitorError::Timeout { command: Capabilities::NAME.to_owned(), limit }),
        }
    }

    /// [`Monitor::reopen`] for a monitor for humans.
    pub fn reopen_human(path: &Path, vm: &str) -> Result<Reopened, MonitorError> {
        let stream = translated(human::Human::greeted(connected(path)?))?;
        let (monitor, _greeted, events) = Self::over(stream, vm);
        let negotiated = monitor.submit(Capabilities {});
        Ok(Reopened { monitor, negotiated, events })
    }

    /// Runs a command.
    pub async fn execute<C: Command>(&self, command: C) -> Result<C::Reply, MonitorError> {
        self.submit(command).reply().await
    }

    /// Queues a command now; its reply is awaited later. See the module's text about one write.
    pub fn submit<C: Command>(&self, command: C) -> Pending<C> {
        Pending {
            reply: self.queue(C::NAME, command::arguments(&command), C::SECRET, None),
            _command: command,
        }
    }

    /// Runs a command with a descriptor beside it (`getfd`, `add-fd`).
    pub async fn execute_with_fd<C: Command>(
        &self,
        command: C,
        descriptor: OwnedFd,
    ) -> Result<C::Reply, MonitorError> {
        let reply = self.queue(C::NAME, command::arguments(&command), C::SECRET, Some(descriptor));
        Pending { reply, _command: command }.reply().await
    }

    /// Runs a command that has no type here, or whose arguments are computed.
    pub async fn execute_value(&self, name: &str, arguments: Option<Value>) -> Result<Value, MonitorError> {
        let arguments = arguments.map(|arguments| arguments.to_string()).unwrap_or_default();
        let line = self.queue(name, Ok(arguments), redact::Secret::Named, None)?;
        command::parse_reply(name, &within(name, command::LIMIT, line).await?)
    }

    /// Sends a user's own QMP command and answers QEMU's whole reply, an error reply too.
    pub async fn execute_raw(&self, json: &str, descriptor: Option<OwnedFd>) -> Result<String, MonitorError> {
        let (name, line) = command::raw(json)?;
        let reply = self.link.shared.submit(|id| line.with_id(id), descriptor)?;
        self.link.shared.note_change();
        command::compact(&within(&name, command::LIMIT, reply).await?)
    }

    /// Runs a command of QEMU's human monitor and answers what it prints.
    pub async fn execute_human(&self, command_line: &str) -> Result<String, MonitorError> {
        let human = HumanMonitorCommand { command_line: command_line.to_owned() };
        self.execute(human).await.map_err(|error| match error {
            MonitorError::Command { class, .. } if class == "CommandNotFound" => {
                MonitorError::NoHumanMonitor { command_line: command_line.to_owned() }
            }
            error => error,
        })
    }

    /// Returns when the events that came before the last reply have been handled, or nobody handles any.
    /// A command whose effect QEMU also reports is done then, and not before: a report that is handled
    /// late would undo what was done in the meantime.
    pub async fn events_handled(&self) {
        let Err(oneshot::error::RecvError { .. }) = self.link.shared.fence().await.await;
    }

    /// What QEMU has last reported of the long operations that clients drive one at a time. Whoever drives one
    /// waits here, and need not be the one who handles events.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.link.shared.progress()
    }

    /// Forgets what was reported of an earlier operation; called before the next one begins.
    pub fn forget_progress(&self) {
        self.link.shared.forget_progress();
    }

    /// Ends every wait with `reason`, and refuses new commands with it. Events still arrive.
    pub fn fail_all(&self, reason: &MonitorError) {
        self.link.shared.seal(reason);
    }

    /// Takes [`Monitor::fail_all`] back, for a guest that was not stopped after all.
    pub fn admit(&self) {
        self.link.shared.unseal();
    }

    /// Grows with every command that is more than a question and with everything that QEMU reports: what QEMU
    /// answered about its own making stays true as long as this stays the same.
    pub fn changes(&self) -> u64 {
        self.link.shared.changes()
    }

    fn queue(
        &self,
        name: &str,
        arguments: Result<String, MonitorError>,
        secret: redact::Secret,
        descriptor: Option<OwnedFd>,
    ) -> Result<Waiting, MonitorError> {
        let arguments = arguments?;
        let shared = &self.link.shared;
        let waiting = shared.submit(|id| command::Line::new(name, &arguments, id, secret), descriptor);
        // Behind the command: what is asked from here on is answered when that is done.
        if !command::is_question(name) {
            shared.note_change();
        }
        waiting
    }
}

fn connected(path: &Path) -> Result<UnixStream, MonitorError> {
    unix::connect(path).map_err(|error| MonitorError::Connect { source: Arc::new(error) })
}

/// The QMP side of a translator that runs until either side is gone.
fn translated(
    human: impl Future<Output = std::io::Result<human::Human>> + Send + 'static,
) -> Result<UnixStream, MonitorError> {
    let pair = UnixStream::pair();
    let (ours, theirs) = pair.map_err(|error| MonitorError::Connect { source: Arc::new(error) })?;
    tokio::spawn(async move {
        let served = async { human.await?.serve(theirs).await };
        if let Err(error) = served.await {
            tracing::debug!(%error, "a monitor for humans is over");
        }
    });
    Ok(ours)
}

/// A command under way. Dropping this does not take it back.
#[derive(Debug)]
pub struct Pending<C> {
    reply: Result<Waiting, MonitorError>,
    _command: C,
}

impl<C: Command> Pending<C> {
    pub async fn reply(self) -> Result<C::Reply, MonitorError> {
        command::parse_reply(C::NAME, &within(C::NAME, C::LIMIT, self.reply?).await?)
    }

    /// The reply, whenever it comes: before the end of the connection or never.
    pub async fn late_reply(self) -> Result<C::Reply, MonitorError> {
        match self.reply?.await {
            Ok(line) => command::parse_reply(C::NAME, &line?),
            Err(oneshot::error::RecvError { .. }) => Err(MonitorError::Closed),
        }
    }
}

/// Waits for the line that answers a command.
async fn within(name: &str, limit: Duration, reply: Waiting) -> Result<bytes::Bytes, MonitorError> {
    match tokio::time::timeout(limit, reply).await {
        Ok(Ok(line)) => line,
        Ok(Err(oneshot::error::RecvError { .. })) => Err(MonitorError::Closed),
        Err(_) => Err(MonitorError::Timeout { command: name.to_owned(), limit }),
    }
}
