//! The socket's two tasks: one cuts lines and hands them to whom they belong, one writes what waits.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{Level, debug, enabled};

use super::command::{Line, excerpt};
use super::error::MonitorError;
use super::event::{Event, EventKind};
use super::migration::{DumpInfo, MigrationStatus};
use super::{Greeting, MonitorEvent, redact};
use crate::util::fds;

/// The longest line QEMU may send.
pub const MAX_REPLY_BYTES: usize = 10 * 1024 * 1024;
/// How many commands may be under way.
pub const MAX_COMMANDS: usize = 256;
/// How many events may wait for the domain. While there are as many, nothing more is read from QEMU.
pub(super) const MAX_EVENTS: usize = 4096;
/// A read buffer larger than this is given back once it is empty.
const KEPT_BUFFER: usize = 64 * 1024;

/// The line that answers one command, or why there will be none.
pub(super) type Waiting = oneshot::Receiver<Result<Bytes, MonitorError>>;

#[derive(Debug)]
pub(super) struct Shared {
    vm: String,
    stream: UnixStream,
    state: Mutex<State>,
    outgoing: Notify,
    progress: watch::Sender<Progress>,
    changes: AtomicU64,
    /// The reader's own end is the one that keeps the queue open.
    events: mpsc::WeakSender<MonitorEvent>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    /// In the order QEMU answers.
    waiting: VecDeque<(String, oneshot::Sender<Result<Bytes, MonitorError>>)>,
    outbox: VecDeque<Outgoing>,
    /// Why callers are refused while the connection is up.
    sealed: Option<MonitorError>,
    /// Why the connection is over.
    ended: Option<MonitorError>,
    greeting: Option<oneshot::Sender<Greeting>>,
}

#[derive(Debug)]
struct Outgoing {
    line: String,
    descriptor: Option<OwnedFd>,
}

/// What QEMU has last reported of its long operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    pub migration: Option<MigrationStatus>,
    /// Viewers of the screen have gone where the guest goes.
    pub screens_moved: bool,
    /// How a dump of memory ended, and why if it failed.
    pub dumped: Option<(DumpInfo, Option<String>)>,
    /// How often a job has changed its status.
    pub jobs: u64,
    /// Nothing more will be reported, or nobody is to wait for it.
    pub lost: bool,
}

/// Where events go, with a place kept for the last one.
#[derive(Debug)]
pub(super) struct EventSender {
    events: mpsc::Sender<MonitorEvent>,
    last: mpsc::OwnedPermit<MonitorEvent>,
}

/// What decides where a line goes.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: bool,
    #[serde(default, deserialize_with = "present")]
    error: bool,
    #[serde(default, deserialize_with = "present")]
    event: bool,
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
}

fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(input).map(|_| true)
}

/// A connection before its tasks run.
pub(super) struct Opened {
    pub(super) shared: Arc<Shared>,
    pub(super) greeted: oneshot::Receiver<Greeting>,
    pub(super) events: mpsc::Receiver<MonitorEvent>,
    pub(super) sender: EventSender,
}

impl Shared {
    pub(super) fn open(stream: UnixStream, vm: &str) -> Opened {
        let (greeting, greeted) = oneshot::channel();
        let (sender, events) = mpsc::channel(MAX_EVENTS + 1);
        #[expect(clippy::expect_used, reason = "the channel was made in the line above")]
        let last = sender.clone().try_reserve_owned().expect("a fresh channel has room");
        let shared = Self {
            vm: vm.to_owned(),
            stream,
            state: Mutex::new(State { greeting: Some(greeting), ..State::default() }),
            outgoing: Notify::new(),
            progress: watch::Sender::default(),
            changes: AtomicU64::new(0),
            events: sender.downgrade(),
        };
        Opened { shared: Arc::new(shared), greeted, events, sender: EventSender { events: sender, last } }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`super::Monitor::changes`].
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Queues a command under a fresh id.
    pub(super) fn submit(
        &self,
        line: impl FnOnce(&str) -> Line,
        descriptor: Option<OwnedFd>,
    ) -> Result<Waiting, MonitorError> {
        let mut state = self.state();
        // That somebody ended the conversation says more than how it then ended.
        if let Some(reason) = state.sealed.as_ref().or(state.ended.as_ref()) {
            return Err(reason.clone());
        }
        if state.waiting.len() >= MAX_COMMANDS {
            return Err(MonitorError::Busy { limit: MAX_COMMANDS });
        }
        state.last_id += 1;
        let id = format!("libvirt-{}", state.last_id);
        let line = line(&id);
        if enabled!(Level::DEBUG) {
            debug!(vm = self.vm, "QMP send {}", line.shown());
        }
        let (sender, waiting) = oneshot::channel();
        state.waiting.push_back((id, sender));
        state.outbox.push_back(Outgoing { line: line.text, descriptor });
        drop(state);
        self.outgoing.notify_one();
        Ok(waiting)
    }

    /// Fails who waits and refuses who comes. The replies of what QEMU already got find nobody waiting.
    pub(super) fn seal(&self, reason: &MonitorError) {
        let mut state = self.state();
        state.sealed = Some(reason.clone());
        state.fail_waiting(reason);
        drop(state);
        self.progress.send_modify(|progress| progress.lost = true);
    }

    pub(super) fn unseal(&self) {
        self.state().sealed = None;
        self.progress.send_modify(|progress| progress.lost = false);
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn forget_progress(&self) {
        self.progress.send_modify(|progress| {
            progress.migration = None;
            progress.screens_moved = false;
            progress.dumped = None;
        });
    }

    fn note_progress(&self, event: &Event) {
        if !matches!(
            event.name.as_str(),
            "MIGRATION" | "SPICE_MIGRATE_COMPLETED" | "DUMP_COMPLETED" | "JOB_STATUS_CHANGE"
        ) {
            return;
        }
        match event.kind() {
            EventKind::Migration { status } => {
                self.progress.send_modify(|progress| progress.migration = Some(status));
            }
            EventKind::SpiceMigrateCompleted => {
                self.progress.send_modify(|progress| progress.screens_moved = true)
            }
            EventKind::JobStatusChange { .. } => self.progress.send_modify(|progress| progress.jobs += 1),
            EventKind::DumpCompleted { result, error } => {
                self.progress.send_modify(|progress| progress.dumped = Some((result, error)));
            }
            _ => {}
        }
    }

    /// The connection is over; the first reason stays, and is answered.
    pub(super) fn end(&self, reason: &MonitorError) -> MonitorError {
        let mut state = self.state();
        let reason = state.ended.get_or_insert_with(|| reason.clone()).clone();
        state.fail_waiting(&reason);
        state.greeting = None;
        drop(state);
        self.progress.send_modify(|progress| progress.lost = true);
        reason
    }

    /// Writes what is queued, as much as there is in one go.
    pub(super) async fn write(self: Arc<Self>) {
        loop {
            self.outgoing.notified().await;
            let queued = std::mem::take(&mut self.state().outbox);
            if let Err(error) = self.write_queued(queued).await {
                self.end(&match error.kind() {
                    std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => self.eof(),
                    _ => MonitorError::Write { source: Arc::new(error) },
                });
                return;
            }
        }
    }

    async fn write_queued(&self, queued: VecDeque<Outgoing>) -> std::io::Result<()> {
        let mut together = String::new();
        for Outgoing { line, descriptor } in queued {
            let Some(descriptor) = descriptor else {
                together.push_str(&line);
                continue;
            };
            fds::send_with(&self.stream, together.as_bytes(), &[]).await?;
            together.clear();
            fds::send_with(&self.stream, line.as_bytes(), &[descriptor.as_fd()]).await?;
        }
        fds::send_with(&self.stream, together.as_bytes(), &[]).await
    }

    /// Reads until the connection ends, and says so to everyone.
    pub(super) async fn read(self: Arc<Self>, events: EventSender) {
        let reason = self.read_lines(&events.events).await;
        debug!(vm = self.vm, "QMP ended: {reason}");
        let reason = self.end(&reason);
        events.last.send(MonitorEvent::End(reason));
    }

    /// Puts a fence behind the events that wait; it is gone once they have been handled.
    pub(super) async fn fence(&self) -> oneshot::Receiver<Infallible> {
        let (fence, passed) = oneshot::channel();
        // Where the queue is over, dropping the fence lets the caller pass.
        if let Some(events) = self.events.upgrade() {
            let _ = events.send(MonitorEvent::Fence(fence)).await;
        }
        passed
    }

    async fn read_lines(&self, events: &mpsc::Sender<MonitorEvent>) -> MonitorError {
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        loop {
            while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(searched + at + 1).freeze();
                searched = 0;
                if let Err(error) = self.take(line, events).await {
                    return error;
                }
            }
            searched = buffer.len();
            if searched > MAX_REPLY_BYTES {
                return MonitorError::TooLarge { limit: MAX_REPLY_BYTES };
            }
            if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER {
                buffer = BytesMut::new();
            }
            match self.fill(&mut buffer).await {
                Ok(0) => return self.eof(),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return self.eof(),
                Err(error) => return MonitorError::Read { source: Arc::new(error) },
            }
        }
    }

    async fn fill(&self, buffer: &mut BytesMut) -> std::io::Result<usize> {
        loop {
            self.stream.readable().await?;
            buffer.reserve(4096);
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    fn eof(&self) -> MonitorError {
        MonitorError::Eof { vm: self.vm.clone() }
    }

    /// Hands a line to whom it belongs.
    async fn take(&self, line: Bytes, events: &mpsc::Sender<MonitorEvent>) -> Result<(), MonitorError> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if enabled!(Level::DEBUG) {
            debug!(vm = self.vm, "QMP received {}", redact::line(&String::from_utf8_lossy(&line)));
        }
        let garbage = || MonitorError::Garbage { line: excerpt(&line) };
        let head: Head<'_> = serde_json::from_slice(&line).map_err(|_| garbage())?;
        if head.value || head.error {
            let waiting = self.state().answered(head.id.as_deref());
            match waiting {
                // Who gave up waiting left its place behind.
                Some(waiting) => drop(waiting.send(Ok(line))),
                None => debug!(vm = self.vm, "nobody waits for the reply {}", excerpt(&line)),
            }
            Ok(())
        } else if head.event {
            let event = Event::parse(&line).ok_or_else(garbage)?;
            self.note_progress(&event);
            self.note_change();
            // A domain that is not interested has dropped its end. Whoever handles events waits for no reply, so
            // that the replies behind them come through.
            let _ = events.send(MonitorEvent::Guest(event)).await;
            Ok(())
        } else if let Some(greeting) = head.greeting {
            if let Some(greeted) = self.state().greeting.take() {
                let _ = greeted.send(greeting);
            }
            Ok(())
        } else {
            Err(garbage())
        }
    }
}

impl State {
    fn fail_waiting(&mut self, reason: &MonitorError) {
        self.outbox.clear();
        for (_, waiting) in self.waiting.drain(..) {
            let _ = waiting.send(Err(reason.clone()));
        }
    }

    /// The one that waits for a reply with this id; QEMU leaves the id out where it could not read it, and
    /// answers in order.
    fn answered(&mut self, id: Option<&str>) -> Option<oneshot::Sender<Result<Bytes, MonitorError>>> {
        let at = match id {
            Some(id) => self.waiting.iter().position(|(waiting, _)| waiting == id)?,
            None => 0,
        };
        self.waiting.remove(at).map(|(_, waiting)| waiting)
    }
}
