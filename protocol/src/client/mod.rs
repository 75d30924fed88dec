//! An async client: typed calls, many in flight on one connection.
//!
//! ```no_run
//! # async fn example(socket: tokio::net::UnixStream) -> Result<(), ferrovirt_protocol::client::CallError> {
//! use ferrovirt_protocol::client::Client;
//! use ferrovirt_protocol::remote::procedure;
//!
//! let (client, mut events) = Client::unix(socket);
//! client.open(Some("qemu:///system"), 0).await?;
//! let version = client.call::<procedure::ConnectGetLibVersion>(&()).await?.lib_ver;
//! # Ok(()) }
//! ```
//!
//! Two tasks serve the connection until the last [`Client`] is dropped. A caller encodes into one buffer that
//! the writing task empties; the reading task hands each reply to the call with its serial, each event to
//! [`Events`], each stream frame to its [`Stream`], and answers keepalive pings. Nothing grows without bound:
//! callers wait while the buffer is full, a connection whose events are not read is closed, and a stream that
//! is not read stops the connection, since the protocol has no flow control of its own.

mod connection;
mod stream;
#[cfg(unix)]
mod unix;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use self::connection::Shared;
pub use self::stream::{Chunk, Stream};
use crate::frame::{self, Frame, FrameError, FrameType, Header, Status};
use crate::net;
use crate::procedure::{Event, Procedure, Program};
use crate::remote::{ConnectOpenArgs, procedure};
use crate::xdr::{self, DecodeError, DecodeResult, Encode, EncodeError, EncodeResult, Encoder};

/// Events that may wait to be read.
const MAX_EVENTS: usize = 4096;

/// Why a call has no result.
#[derive(Debug, Clone, Error)]
pub enum CallError {
    /// The daemon says no.
    #[error("{0}")]
    Remote(Box<net::Error>),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("connection is closed: {0}")]
    Closed(CloseReason),
    #[error("arguments: {0}")]
    Encode(#[from] EncodeError),
    #[error("reply: {0}")]
    Decode(#[from] DecodeError),
    #[error("reply has status {0:?}")]
    Status(Status),
    #[error("reply is for procedure {found}, not {expected}")]
    Procedure { expected: i32, found: i32 },
    #[error("{0} descriptors: the connection carries none, or not so many")]
    Descriptors(usize),
}

impl CallError {
    /// The error the daemon answered with, if that is what happened.
    pub fn remote(&self) -> Option<&net::Error> {
        match self {
            Self::Remote(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Error)]
pub enum CloseReason {
    #[error("by this side")]
    Ours,
    #[error("by the peer")]
    EndOfStream,
    #[error("{0}")]
    Io(Arc<std::io::Error>),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Payload(#[from] DecodeError),
    #[error("unexpected frame of type {0:?}")]
    FrameType(FrameType),
    #[error("{0} events were not read")]
    EventsNotRead(usize),
    #[error("a frame announced {0} descriptors that did not come")]
    Descriptors(usize),
}

/// One connection. Clones share it; it closes when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    link: Arc<Link>,
    timeout: Option<Duration>,
}

/// What all clones hold; the tasks hold only what is inside, so that they end with the last clone.
#[derive(Debug)]
struct Link(Arc<Shared>);

impl Drop for Link {
    fn drop(&mut self) {
        self.0.close(CloseReason::Ours);
    }
}

impl Client {
    /// Serves `io` on the current tokio runtime.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> (Self, Events) {
        Self::start(io, Shared::default())
    }

    fn start(io: impl AsyncRead + AsyncWrite + Send + 'static, shared: Shared) -> (Self, Events) {
        let shared = Arc::new(shared);
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        connection::spawn(Arc::clone(&shared), io, sender);
        (Self { link: Arc::new(Link(shared)), timeout: None }, Events(receiver))
    }

    /// The same connection, with a limit on every wait of a call.
    #[must_use]
    pub fn with_timeout(&self, limit: Duration) -> Self {
        Self { link: Arc::clone(&self.link), timeout: Some(limit) }
    }

    /// Says what every connection says first, to a daemon that asks for no password: which authentication
    /// there is, and what to open. Flag 1 opens read-only.
    pub async fn open(&self, uri: Option<&str>, flags: u32) -> Result<(), CallError> {
        self.call::<procedure::AuthList>(&()).await?;
        let args = ConnectOpenArgs { name: uri.map(str::to_owned), flags };
        self.call::<procedure::ConnectOpen>(&args).await
    }

    /// Makes a call and waits for its result.
    pub async fn call<P: Procedure>(&self, args: &P::Args) -> Result<P::Ret, CallError> {
        let reply = self.round_trip(P::PROGRAM, P::NUMBER, |out| args.encode(out)).await?;
        Ok(xdr::decode(&result_of(&reply.frame)?)?)
    }

    /// Makes a call that passes descriptors, and answers those that come back.
    pub async fn call_with_fds<P: Procedure>(
        &self,
        args: &P::Args,
        fds: Vec<OwnedFd>,
    ) -> Result<(P::Ret, Vec<OwnedFd>), CallError> {
        let reply = self
            .within(async {
                let pending =
                    self.send_call(P::PROGRAM, P::NUMBER, fds, None, |out| args.encode(out)).await?;
                pending.reply().await
            })
            .await?;
        Ok((xdr::decode(&result_of(&reply.frame)?)?, reply.fds))
    }

    /// Makes a call that opens a stream.
    pub async fn open_stream<P: Procedure>(&self, args: &P::Args) -> Result<(P::Ret, Stream), CallError> {
        self.within(async {
            let (sender, receiver) = mpsc::channel(stream::MAX_FRAMES);
            let encode = |out: &mut Encoder<'_>| args.encode(out);
            let pending = self.send_call(P::PROGRAM, P::NUMBER, Vec::new(), Some(sender), encode).await?;
            let serial = pending.serial;
            // Ends the stream again if the reply is an error or nobody waits for it any more.
            let stream = Stream::new(self.clone(), P::PROGRAM, P::NUMBER, serial, receiver);
            let reply = pending.reply().await?;
            match result_of(&reply.frame) {
                Ok(payload) => Ok((xdr::decode(&payload)?, stream)),
                Err(error) => {
                    stream.forget();
                    Err(error)
                }
            }
        })
        .await
    }

    /// Makes a call with arguments that are already encoded, or that are nothing of the kind. Answers the
    /// whole reply, whatever its status.
    pub async fn call_raw(
        &self,
        program: Program,
        procedure: i32,
        payload: &[u8],
    ) -> Result<Frame, CallError> {
        let reply = self.round_trip(program, procedure, |out| out.raw(payload)).await?;
        Ok(reply.frame)
    }

    /// Sends bytes as they are, a frame or not.
    pub async fn send_raw(&self, bytes: &[u8]) -> Result<(), CallError> {
        self.within(self.link.0.queue(|state| {
            state.put_raw(bytes);
            Ok(())
        }))
        .await
    }

    /// Asks whether the peer still answers.
    pub async fn ping(&self) -> Result<(), CallError> {
        self.within(async {
            let (sender, receiver) = oneshot::channel();
            self.link.0.queue(|state| state.put_ping(sender)).await?;
            receiver.await.map_err(|_| self.link.0.closed())
        })
        .await
    }

    /// Ends the connection for all clones. Calls in flight fail.
    pub fn close(&self) {
        self.link.0.close(CloseReason::Ours);
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) -> CloseReason {
        self.link.0.wait_closed().await
    }

    async fn round_trip(
        &self,
        program: Program,
        procedure: i32,
        encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
    ) -> Result<Reply, CallError> {
        self.within(async {
            let pending = self.send_call(program, procedure, Vec::new(), None, encode).await?;
            pending.reply().await
        })
        .await
    }

    async fn send_call(
        &self,
        program: Program,
        procedure: i32,
        fds: Vec<OwnedFd>,
        stream: Option<mpsc::Sender<Frame>>,
        encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
    ) -> Result<Pending<'_>, CallError> {
        let shared = &*self.link.0;
        let (sender, receiver) = oneshot::channel();
        let kind = if fds.is_empty() { FrameType::CALL } else { FrameType::CALL_WITH_FDS };
        let serial = shared
            .queue(|state| {
                let serial = state.next_serial();
                let Program { number: program, version, .. } = program;
                let header = Header { program, version, procedure, kind, serial, status: Status::OK };
                shared.put_call(state, &header, fds, encode)?;
                state.calls.insert(serial, sender);
                if let Some(stream) = stream {
                    state.streams.insert(serial, stream);
                }
                Ok(serial)
            })
            .await?;
        Ok(Pending { shared, serial, procedure, receiver })
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        match self.timeout {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(CallError::Timeout(limit))),
        }
    }
}

/// A call that was sent. Dropping it forgets the call: its reply will be thrown away.
struct Pending<'a> {
    shared: &'a Shared,
    serial: u32,
    procedure: i32,
    receiver: oneshot::Receiver<Reply>,
}

impl Pending<'_> {
    async fn reply(mut self) -> Result<Reply, CallError> {
        let reply = (&mut self.receiver).await.map_err(|_| self.shared.closed())?;
        match reply.frame.header.procedure {
            found if found != self.procedure => Err(CallError::Procedure { expected: self.procedure, found }),
            _ => Ok(reply),
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.serial);
    }
}

/// A reply and what came beside it.
#[derive(Debug)]
struct Reply {
    frame: Frame,
    fds: Vec<OwnedFd>,
}

/// The payload of a frame that reports success.
fn result_of(frame: &Frame) -> Result<Bytes, CallError> {
    match frame.header.status {
        Status::OK => Ok(frame.payload.clone()),
        Status::ERROR => Err(remote_error(frame)),
        other => Err(CallError::Status(other)),
    }
}

fn remote_error(frame: &Frame) -> CallError {
    match xdr::decode(&frame.payload) {
        Ok(error) => CallError::Remote(Box::new(error)),
        Err(error) => CallError::Decode(error),
    }
}

/// What the daemon says unasked, in order. Dropping it throws events away.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<EventFrame>);

impl Events {
    /// The next event; `None` once the connection has ended and all were read.
    pub async fn next(&mut self) -> Option<EventFrame> {
        self.0.recv().await
    }

    /// The next event that has already arrived.
    pub fn try_next(&mut self) -> Option<EventFrame> {
        self.0.try_recv().ok()
    }
}

/// One event, not yet decoded.
#[derive(Debug, Clone)]
pub struct EventFrame {
    pub header: Header,
    pub payload: Bytes,
}

impl EventFrame {
    /// The message, if this is an event of type `E`.
    pub fn decode<E: Event>(&self) -> Option<DecodeResult<E::Message>> {
        let is_e = self.header.program == E::PROGRAM.number && self.header.procedure == E::NUMBER;
        is_e.then(|| xdr::decode(&self.payload))
    }
}

/// The largest piece of stream data that every libvirt takes.
pub const STREAM_CHUNK: usize = net::MESSAGE_LEGACY_PAYLOAD_MAX;

const _: () = assert!(STREAM_CHUNK < frame::MAX_FRAME);
