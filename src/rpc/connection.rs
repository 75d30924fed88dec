//! The life of one connection, in one task.
//!
//! Each turn sends what the outbox holds, serves the frames that are buffered, reads more, and minds the
//! clock; it sleeps when none of the four got anywhere. Frames wait in the buffer, and then in the
//! socket, while the client has replies unread or stream data unwritten: the socket is the backpressure.
//! While it has too many calls running, a few more are held back here, so that its pings are still heard.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use ferrovirt_protocol::frame::{self, Frame, FrameError, FrameType, Header, Status};
use tokio::task::coop;
use zeroize::Zeroize;

use super::convert;
use super::keepalive::{Keepalive, Verdict};
use super::outbox::{Descriptor, Ending};
use super::router::{Reply, Running};
use super::server::Server;
use super::session::Client;
use super::stream::Delivery;
use super::transport::Transport;
use crate::error::{Error, Origin};
use crate::util::context::{self, Context as OnBehalf};
use crate::util::fds;

/// Most frames, and most bytes of them, held back while a client has all its calls running.
const MAX_HELD: usize = 64;
const MAX_HELD_BYTES: usize = 1024 * 1024;
/// An emptied read buffer larger than this is given back.
const KEPT_BUFFER: usize = 16 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    #[error("closed by the client")]
    Client,
    #[error("closed by the daemon")]
    Daemon,
    #[error("the client does not read its events or answers")]
    Unread,
    #[error("no answer to keepalive")]
    Dead,
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("frame of type {kind} from a client")]
    Kind { kind: i32 },
    #[error("{announced} descriptors announced, at most {max} are accepted")]
    Descriptors { announced: u32, max: usize },
    #[error("did not show in time who it is")]
    Unknown,
    #[error("something was sent before the protection that it was agreed on was in place")]
    Unprotected,
    #[error("{0}")]
    Socket(#[from] io::Error),
}

/// Serves one client until its connection ends.
pub async fn serve(server: Arc<Server>, client: Arc<Client>, transport: impl Transport) -> End {
    let keepalive = Keepalive::new(server.keepalive());
    let mut connection = Connection {
        server,
        client,
        transport,
        input: BytesMut::new(),
        received: VecDeque::new(),
        incomplete: None,
        held: VecDeque::new(),
        held_bytes: 0,
        output: BytesMut::new(),
        descriptors: VecDeque::new(),
        sent: 0,
        flushed: true,
        stalled: false,
        keepalive,
    };
    poll_fn(|context| connection.poll(context)).await
}

/// A frame and its descriptors.
type Received = (Frame, Vec<OwnedFd>);

/// Whether a turn got anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Progress,
    Nothing,
    /// The task has had its share; it is polled again after the others.
    Share,
}

/// How much the client may have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    ForCalls,
    /// Its calls have to wait for each other; pings are answered.
    ForPings,
    None,
}

/// A frame whose descriptors are still on their way.
#[derive(Debug)]
struct Incomplete {
    frame: Frame,
    count: usize,
}

struct Connection<T> {
    server: Arc<Server>,
    client: Arc<Client>,
    transport: T,
    input: BytesMut,
    received: VecDeque<OwnedFd>,
    incomplete: Option<Incomplete>,
    /// Complete frames that wait until one of the client's calls is done.
    held: VecDeque<Received>,
    held_bytes: usize,
    output: BytesMut,
    descriptors: VecDeque<Descriptor>,
    /// Offset in the byte stream of the front of `output`.
    sent: u64,
    /// The transport holds nothing back of what was sent.
    flushed: bool,
    /// A stream has enough: wait until its sink has taken some.
    stalled: bool,
    keepalive: Keepalive,
}

impl<T: Transport> Connection<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        self.client.outbox.attend(context);
        loop {
            match self.turn(context) {
                Err(end) => return Poll::Ready(end),
                Ok(Turn::Progress) => {}
                Ok(Turn::Share) => return Poll::Pending,
                Ok(Turn::Nothing) if self.client.outbox.rest() => return Poll::Pending,
                Ok(Turn::Nothing) => {}
            }
        }
    }

    /// Does what can be done now.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<Turn, End> {
        let mut progress = self.send(context)?;
        let status = self.client.outbox.status();
        let ended = match status.ending {
            Some(Ending::Unread) => return Err(End::Unread),
            Some(Ending::Now) => true,
            Some(Ending::Flush) => status.unsent == 0 && self.flushed,
            Some(Ending::Drain) => status.unsent == 0 && self.flushed && status.running == 0,
            None => false,
        };
        if ended {
            return Err(End::Daemon);
        }
        match self.serve_buffered(context)? {
            Turn::Share => return Ok(Turn::Share),
            turn => progress |= turn == Turn::Progress,
        }
        if self.room() != Room::None {
            progress |= self.receive(context)?;
        }
        progress |= self.mind_the_clock(context)?;
        Ok(if progress { Turn::Progress } else { Turn::Nothing })
    }

    /// Writes all that the socket takes.
    fn send(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let start = self.sent;
        loop {
            self.client.outbox.take(&mut self.output, &mut self.descriptors, self.sent);
            if self.output.is_empty() {
                break;
            }
            let sent = self.transport.poll_send(context, &mut self.output, &mut self.descriptors, self.sent);
            match sent {
                Poll::Ready(written) => self.sent += written? as u64,
                Poll::Pending => break,
            }
        }
        self.flushed = self.output.is_empty()
            && match self.transport.poll_flush(context) {
                Poll::Ready(done) => done.map(|()| true)?,
                Poll::Pending => false,
            };
        if self.output.is_empty() && self.output.capacity() > KEPT_BUFFER {
            self.output = BytesMut::new();
        }
        Ok(self.protect()? || self.sent > start)
    }

    /// Puts a layer in place once all that comes before it is sent. What is here already came unprotected, and
    /// somebody on the way may have put it there.
    fn protect(&mut self) -> Result<bool, End> {
        let layer = if self.flushed { self.client.outbox.take_layer(self.sent) } else { None };
        let Some(layer) = layer else { return Ok(false) };
        if !self.input.is_empty() || !self.held.is_empty() || self.incomplete.is_some() {
            return Err(End::Unprotected);
        }
        self.transport.protect(layer)?;
        Ok(true)
    }

    fn room(&mut self) -> Room {
        if self.stalled {
            self.stalled = self.client.streams.is_full();
        }
        let status = self.client.outbox.status();
        if self.stalled || status.full || status.awaits_layer || status.ending.is_some() {
            Room::None
        } else if status.running < self.server.requests_per_client() {
            Room::ForCalls
        } else if self.held.len() < MAX_HELD && self.held_bytes < MAX_HELD_BYTES {
            Room::ForPings
        } else {
            Room::None
        }
    }

    /// Serves the complete frames that are here, as far as the client's limits go.
    fn serve_buffered(&mut self, context: &mut Context<'_>) -> Result<Turn, End> {
        let mut turn = Turn::Nothing;
        loop {
            let room = self.room();
            let next = match room {
                Room::None => break,
                Room::ForCalls => self.release().map_or_else(|| self.next_frame(), |held| Ok(Some(held)))?,
                Room::ForPings => self.next_frame()?,
            };
            let Some(received) = next else { break };
            let is_ping = Keepalive::answer(&received.0.header).is_some();
            match room {
                Room::ForPings if !is_ping => self.hold(received),
                _ => self.serve(received)?,
            }
            turn = Turn::Progress;
            match coop::poll_proceed(context) {
                Poll::Ready(share) => share.made_progress(),
                Poll::Pending => return Ok(Turn::Share),
            }
        }
        if self.input.is_empty() && self.input.capacity() > KEPT_BUFFER {
            self.input = BytesMut::new();
        }
        Ok(turn)
    }

    fn hold(&mut self, received: Received) {
        self.held_bytes += received.0.payload.len();
        self.held.push_back(received);
    }

    fn release(&mut self) -> Option<Received> {
        let received = self.held.pop_front()?;
        self.held_bytes -= received.0.payload.len();
        Some(received)
    }

    /// The next frame with all its descriptors.
    fn next_frame(&mut self) -> Result<Option<Received>, End> {
        if self.incomplete.is_none() {
            let max = match self.client.is_authenticated() {
                true => frame::MAX_FRAME,
                false => frame::MAX_FRAME_UNAUTHENTICATED,
            };
            let server = &self.server;
            let Some(mut frame) = frame::cut_with(&mut self.input, max, |header| is_secret(server, header))?
            else {
                return Ok(None);
            };
            let count = match frame.header.kind {
                FrameType::CALL_WITH_FDS => self.descriptor_count(&mut frame)?,
                _ => 0,
            };
            if count == 0 {
                return Ok(Some((frame, Vec::new())));
            }
            self.incomplete = Some(Incomplete { frame, count });
        }
        // One byte for each descriptor stands behind the frame.
        match self.incomplete.take() {
            Some(Incomplete { frame, count })
                if self.input.len() >= count && self.received.len() >= count =>
            {
                self.input.advance(count);
                Ok(Some((frame, self.received.drain(..count).collect())))
            }
            incomplete => {
                self.incomplete = incomplete;
                Ok(None)
            }
        }
    }

    /// The number of descriptors that stands before the payload of a call with descriptors.
    fn descriptor_count(&self, frame: &mut Frame) -> Result<usize, End> {
        let announced = frame
            .payload
            .try_get_u32()
            .map_err(|_| FrameError::TooShort { len: frame.payload.len(), min: size_of::<u32>() })?;
        let max = if self.client.peer.takes_descriptors() { frame::MAX_FDS } else { 0 };
        match usize::try_from(announced) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(End::Descriptors { announced, max }),
        }
    }

    /// Moves the beginning of a secret to a larger buffer before it needs one, and leaves none of it behind.
    fn move_secret(&mut self) {
        let room = self.input.capacity() - self.input.len();
        let is_begun = || frame::begun(&self.input).is_some_and(|header| is_secret(&self.server, &header));
        if room < fds::MIN_READ && self.incomplete.is_none() && is_begun() {
            let mut larger = BytesMut::with_capacity(2 * self.input.len() + fds::MIN_READ);
            larger.extend_from_slice(&self.input);
            self.input.zeroize();
            self.input = larger;
        }
    }

    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        self.move_secret();
        match self.transport.poll_receive(context, &mut self.input, &mut self.received) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(End::Client),
            Poll::Ready(Ok(_)) => {
                self.keepalive.heard();
                Ok(true)
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Client),
            Poll::Ready(Err(error)) => Err(error.into()),
        }
    }

    fn mind_the_clock(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if !self.client.wants_keepalive() {
            return Ok(false);
        }
        // Nobody is silent while nobody listens.
        if self.room() == Room::None {
            self.keepalive.heard();
        }
        match self.keepalive.poll(context) {
            Poll::Pending => Ok(false),
            Poll::Ready(Verdict::Dead) => Err(End::Dead),
            Poll::Ready(Verdict::Ping) => {
                // Nothing but the header: always has a form on the wire.
                let _ = self.client.outbox.put(&Keepalive::ping(), &());
                Ok(true)
            }
        }
    }

    fn serve(&mut self, (frame, fds): Received) -> Result<(), End> {
        if let Some(answer) = Keepalive::answer(&frame.header) {
            if let Some(pong) = answer {
                let _ = self.client.outbox.put(&pong, &());
            }
            return Ok(());
        }
        match frame.header.kind {
            FrameType::CALL | FrameType::CALL_WITH_FDS => self.call(frame, fds),
            FrameType::STREAM | FrameType::STREAM_HOLE => self.stream(frame),
            FrameType(kind) => return Err(End::Kind { kind }),
        }
        Ok(())
    }

    fn stream(&mut self, frame: Frame) {
        let header = Header { kind: FrameType::STREAM, status: Status::ERROR, ..frame.header };
        match self.client.streams.deliver(frame) {
            Delivery::Taken | Delivery::Late => {}
            Delivery::Full => self.stalled = true,
            // Stock clients do not look at the end of a stream that they do not have.
            Delivery::NoStream => {
                let error = Error::rpc(format!("no stream with serial {}", header.serial));
                let _ = self.client.outbox.put(&header, &convert::error(&error.from_origin(Origin::RPC)));
            }
        }
    }

    /// Starts a call. Most are done at the first poll; one that waits goes on as a task of its own, which
    /// nothing cancels.
    fn call(&mut self, frame: Frame, fds: Vec<OwnedFd>) {
        let called = self.server.router().entry(&frame.header).map_or("unknown", |entry| entry.api);
        let on_behalf = OnBehalf::new(Arc::clone(&self.client) as _, frame.header.serial, called);
        on_behalf.scope(|| self.begin(frame, fds));
    }

    fn begin(&self, frame: Frame, fds: Vec<OwnedFd>) {
        let reply = Reply::new(Arc::clone(&self.client), &frame.header);
        let started = guarded(&reply, || self.server.start(&self.client, frame, fds)).flatten();
        let Some(mut running) = started else { return };
        let polled = guarded(&reply, || running.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        if let Some(Poll::Pending) = polled {
            self.client.outbox.call_began();
            let client = Arc::clone(&self.client);
            let counted = self.server.call_began();
            tokio::spawn(context::carried(async move {
                finish(running, &reply).await;
                client.outbox.call_ended();
                drop(counted);
            }));
        }
    }
}

impl<T> Drop for Connection<T> {
    /// A secret may have come in part.
    fn drop(&mut self) {
        self.input.zeroize();
    }
}

/// Whether what comes with a call is nobody's to find afterwards.
fn is_secret(server: &Server, header: &Header) -> bool {
    server.router().entry(header).is_some_and(|entry| entry.is_secret)
}

/// Runs a waiting call to its end.
async fn finish(mut running: Running, reply: &Reply) {
    poll_fn(|context| match guarded(reply, || running.as_mut().poll(context)) {
        Some(Poll::Pending) => Poll::Pending,
        Some(Poll::Ready(())) | None => Poll::Ready(()),
    })
    .await;
}

/// A panic in a handler answers its call; everybody else goes on.
fn guarded<R>(reply: &Reply, run: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::error!(panic = text, "a call failed by a mistake in the daemon");
            reply.fail(&Error::internal_error("the call failed by a mistake in the daemon"));
            None
        }
    }
}
