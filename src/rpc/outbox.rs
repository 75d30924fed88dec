//! What one connection has still to send: replies, events and stream data, encoded, in order.
//!
//! Anyone appends; only the connection's task takes and writes. A reply always fits, because the
//! connection stops taking calls while [`Outbox::is_full`]; streams wait for room; events nobody
//! reads end the connection instead of piling up.
//!
//! ```text
//!            append                     take             written
//! callers ──────────▶ buffer ─────────────────▶ connection ─────▶ socket
//!                     └ end                                        └ sent     (offsets in the byte stream)
//! ```

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use ferrovirt_protocol::frame::{self, Header};
use ferrovirt_protocol::xdr::{Encode, EncodeResult};

use super::auth::sasl::Layer;

/// Over this many unsent bytes a connection takes no further calls and streams wait.
const FULL_BYTES: usize = 256 * 1024;
/// Over this many unsent bytes of events the client is not reading: it is cut off.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Tasks of one connection that may wait for room or its end at once.
const MAX_ROOM_WAITERS: usize = 1024;

/// How a connection comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The daemon stops: no new calls, running ones finish, then as [`Ending::Flush`].
    Drain,
    /// What is in the outbox is sent, then the socket is closed.
    Flush,
    /// The socket is closed at once.
    Now,
    /// As [`Ending::Now`]: the client does not read.
    Unread,
}

/// The connection is gone, or its client does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection closed")]
pub struct Closed;

/// A descriptor and the offset of the byte that carries it.
#[derive(Debug)]
pub struct Descriptor {
    pub at: u64,
    pub fd: OwnedFd,
}

#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    descriptors: VecDeque<Descriptor>,
    end: u64,
    sent: u64,
    /// Unsent events: where each ends, and its length.
    events: VecDeque<(u64, usize)>,
    event_bytes: usize,
    /// Calls that run as their own tasks.
    running: usize,
    /// The connection's task is being polled and will look again before it sleeps.
    attended: bool,
    /// Something changed since the task last looked.
    changed: bool,
    task: Option<Waker>,
    room: Vec<Waker>,
    ending: Option<Ending>,
    protection: Option<Protection>,
}

/// What the bytes behind a certain reply go through.
#[derive(Debug)]
struct Protection {
    /// The serial number of the call.
    after: u32,
    /// Where the reply ends, once it is there.
    from: Option<u64>,
    layer: Layer,
}

impl State {
    fn is_full(&self) -> bool {
        self.end - self.sent > FULL_BYTES as u64
    }

    fn status(&self) -> Status {
        Status {
            full: self.is_full(),
            running: self.running,
            ending: self.ending,
            unsent: self.end - self.sent,
            awaits_layer: self.protection.is_some(),
        }
    }

    /// Notes a change; the waker to wake once the lock is released, if the task sleeps.
    fn change(&mut self) -> Option<Waker> {
        self.changed = true;
        if self.attended { None } else { self.task.take() }
    }

    /// Has a task woken when there is room or the connection ends; not, if too many of them wait.
    fn wait(&mut self, waker: &Waker) -> bool {
        if self.room.iter().any(|waiter| waiter.will_wake(waker)) {
            return true;
        }
        let is_noted = self.room.len() < MAX_ROOM_WAITERS;
        if is_noted {
            self.room.push(waker.clone());
        }
        is_noted
    }

    fn append(&mut self, write: impl FnOnce(&mut BytesMut) -> EncodeResult) -> EncodeResult {
        let before = self.buffer.len();
        write(&mut self.buffer)?;
        self.end += (self.buffer.len() - before) as u64;
        Ok(())
    }
}

/// What the connection's task has to know before it goes on.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    pub full: bool,
    pub running: usize,
    pub ending: Option<Ending>,
    pub unsent: u64,
    /// A layer is agreed on and not in place yet.
    pub awaits_layer: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let waker = state.change();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Appends one frame. Replies are never refused: the connection bounds the calls that cause them.
    pub fn put<T: Encode + ?Sized>(&self, header: &Header, payload: &T) -> EncodeResult {
        self.update(|state| {
            state.append(|buffer| frame::put(buffer, header, payload))?;
            let end = state.end;
            let protection = state.protection.as_mut().filter(|protection| protection.after == header.serial);
            protection.into_iter().for_each(|protection| protection.from = Some(end));
            Ok(())
        })
    }

    /// What follows the reply to a call goes through `layer`; nothing is received until it is in place.
    pub fn protect_after(&self, serial: u32, layer: Layer) {
        self.update(|state| state.protection = Some(Protection { after: serial, from: None, layer }));
    }

    /// The layer for all that follows, once everything before it has been sent.
    pub(super) fn take_layer(&self, sent: u64) -> Option<Layer> {
        let protection = &mut self.lock().protection;
        protection.take_if(|protection| protection.from == Some(sent)).map(|protection| protection.layer)
    }

    /// Appends one frame with descriptors: their count stands before the payload, a byte for each behind.
    pub fn put_with_fds<T: Encode + ?Sized>(
        &self,
        header: &Header,
        payload: &T,
        fds: Vec<OwnedFd>,
    ) -> EncodeResult {
        let count = fds.len();
        let announced = u32::try_from(count).unwrap_or(u32::MAX);
        self.update(|state| {
            let before = state.buffer.len();
            state.append(|buffer| {
                frame::put_with(buffer, header, |encoder| {
                    announced.encode(encoder)?;
                    payload.encode(encoder)
                })?;
                buffer.resize(buffer.len() + count, 0);
                Ok(())
            })?;
            debug_assert!(state.buffer.len() > before + count);
            let first = state.end - count as u64;
            let carried = fds.into_iter().zip(first..).map(|(fd, at)| Descriptor { at, fd });
            state.descriptors.extend(carried);
            Ok(())
        })
    }

    /// Appends one event. A client that leaves too many unread loses its connection.
    pub fn put_event<T: Encode + ?Sized>(&self, header: &Header, message: &T) -> Result<(), Closed> {
        self.update(|state| {
            if state.ending >= Some(Ending::Flush) {
                return Err(Closed);
            }
            let before = state.end;
            if let Err(error) = state.append(|buffer| frame::put(buffer, header, message)) {
                tracing::warn!(procedure = header.procedure, %error, "event has no form on the wire");
                return Ok(());
            }
            let len = (state.end - before) as usize;
            state.events.push_back((state.end, len));
            state.event_bytes += len;
            if state.event_bytes > MAX_EVENT_BYTES {
                state.ending = Some(Ending::Unread);
                return Err(Closed);
            }
            Ok(())
        })
    }

    /// Waits until a stream may append.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut state = self.lock();
        if state.ending >= Some(Ending::Flush) {
            return Poll::Ready(Err(Closed));
        }
        if !state.is_full() {
            return Poll::Ready(Ok(()));
        }
        if state.wait(context.waker()) { Poll::Pending } else { Poll::Ready(Err(Closed)) }
    }

    /// Waits until the connection ends in whichever way.
    pub fn poll_ending(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.ending.is_none() && state.wait(context.waker()) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// A call became a task of its own.
    pub fn call_began(&self) {
        self.lock().running += 1;
    }

    /// Such a task has answered.
    pub fn call_ended(&self) {
        self.update(|state| state.running -= 1);
    }

    /// Has the connection's task look again: a stream has room for more.
    pub fn wake(&self) {
        self.update(|_| ());
    }

    /// Ends the connection; a more urgent ending replaces a milder one.
    pub fn end(&self, ending: Ending) {
        let waiting = self.update(|state| {
            state.ending = state.ending.max(Some(ending));
            std::mem::take(&mut state.room)
        });
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Bytes that the client has not taken yet.
    pub fn unsent(&self) -> u64 {
        self.status().unsent
    }

    /// For the connection's task, at the start of each turn: changes are seen without waking from here on.
    pub(super) fn attend(&self, context: &Context<'_>) {
        let mut state = self.lock();
        state.attended = true;
        if !state.task.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.task = Some(context.waker().clone());
        }
    }

    /// Moves all unsent bytes and descriptors to the task's own, which must be empty, and says what is known.
    pub(super) fn take(
        &self,
        bytes: &mut BytesMut,
        descriptors: &mut VecDeque<Descriptor>,
        sent: u64,
    ) -> Status {
        let mut state = self.lock();
        state.changed = false;
        let was_full = state.is_full();
        state.sent = sent;
        while let Some(&(end, len)) = state.events.front() {
            if end > sent {
                break;
            }
            state.events.pop_front();
            state.event_bytes -= len;
        }
        if bytes.is_empty() {
            let from = state.protection.as_ref().and_then(|protection| protection.from);
            match from.and_then(|from| usize::try_from(from - sent).ok()) {
                // What is to be protected waits. Descriptors travel on unix sockets alone, which have no layers.
                Some(before) if before < state.buffer.len() => *bytes = state.buffer.split_to(before),
                _ => std::mem::swap(&mut state.buffer, bytes),
            }
            descriptors.append(&mut state.descriptors);
        }
        let status = state.status();
        let waiting = if was_full && !status.full { std::mem::take(&mut state.room) } else { Vec::new() };
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        status
    }

    pub(super) fn status(&self) -> Status {
        self.lock().status()
    }

    /// Whether the task may sleep: nothing changed since it last took.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.lock();
        state.attended = state.changed;
        !state.changed
    }
}
