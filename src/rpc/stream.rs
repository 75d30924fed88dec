//! Data that flows after a reply: consoles, volumes, migration.
//!
//! A handler returns a [`Pipe`]: what stands at the daemon's end. After the reply its two halves run side
//! by side in one task until the client finishes or aborts, an end fails, or the connection goes.
//!
//! ```text
//!            ┌ CONTINUE data, HOLE ─▶ Inbox ─▶ Sink            client ▶ daemon
//! open ──────┤
//!            └ Source ─▶ outbox, when it has room ─▶ CONTINUE data … CONTINUE empty = its end
//!
//! client says OK = finish  ─▶ Sink::finish ─▶ OK       ┐
//! client says ERROR = abort ─▶ ends dropped ─▶ OK      ├▶ closed; what still arrives is ignored
//! an end fails               ─▶ ERROR with the reason  ┘
//! ```
//!
//! What arrives for a stream that there never was is answered with an error.
//!
//! Neither direction queues without bound: a full inbox stops the connection from reading its socket,
//! a full outbox stops the source.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use ferrovirt_protocol::frame::{Frame, FrameType, Header, Status};
use ferrovirt_protocol::xdr::{self, Decode, DecodeResult, Decoder, Encode, EncodeResult, Encoder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::convert;
use super::outbox::{Closed, Outbox};
use crate::error::{Error, Origin, Result};

/// Most bytes of one data frame that goes to a client (what every libvirt client accepts).
pub const MAX_DATA: usize = 262_120;
/// Bytes one read of a source asks for at first: consoles are small.
const READ_SIZE: usize = 16 * 1024;
/// Bytes of frames that may wait for a sink before the connection stops reading.
const MAX_INBOX_BYTES: usize = 2 * 1024 * 1024;
/// Frames that may wait for a sink before the connection stops reading.
const MAX_INBOX_FRAMES: usize = 64;
/// Streams one client may have open, and closed ones of which frames may still be on their way.
const MAX_STREAMS: usize = 256;

/// Part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    /// So many zero bytes that need not travel.
    Hole(u64),
}

/// Where data for the client comes from.
pub trait Source: Send + 'static {
    /// The next piece, of at most [`MAX_DATA`] bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Piece>>> + Send;
}

/// Where data of the client goes.
pub trait Sink: Send + 'static {
    fn take(&mut self, piece: Piece) -> impl Future<Output = Result<()>> + Send;

    /// The client has sent everything; after this its call counts as done.
    fn finish(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Nothing comes from here: for streams in one direction.
#[derive(Debug)]
pub struct Silent;

impl Source for Silent {
    async fn next(&mut self) -> Result<Option<Piece>> {
        std::future::pending().await
    }
}

/// Nothing goes here: for streams in one direction.
#[derive(Debug)]
pub struct Closing;

impl Sink for Closing {
    async fn take(&mut self, _: Piece) -> Result<()> {
        Err(Error::rpc("stream had I/O failure").from_origin(Origin::RPC))
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Any reader as a source.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    buffer: BytesMut,
}

impl<R> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new() }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Source for Reader<R> {
    async fn next(&mut self) -> Result<Option<Piece>> {
        self.buffer.reserve(READ_SIZE);
        match self.from.read_buf(&mut self.buffer).await {
            Ok(0) => Ok(None),
            Ok(_) => {
                let len = self.buffer.len().min(MAX_DATA);
                Ok(Some(Piece::Data(self.buffer.split_to(len).freeze())))
            }
            // A pty whose other side has closed.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(None),
            Err(error) => Err(Error::io("cannot read from stream", error)),
        }
    }
}

/// Any writer as a sink. Holes are an error: it cannot skip.
#[derive(Debug)]
pub struct Writer<W>(pub W);

impl<W: AsyncWrite + Send + Unpin + 'static> Sink for Writer<W> {
    async fn take(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Data(data) => {
                self.0.write_all(&data).await.map_err(|error| Error::io("cannot write to stream", error))
            }
            Piece::Hole(_) => Err(Error::rpc("Unexpected stream hole").from_origin(Origin::RPC)),
        }
    }

    async fn finish(&mut self) -> Result<()> {
        self.0.flush().await.map_err(|error| Error::io("cannot write to stream", error))
    }
}

type Run = Box<dyn FnOnce(Stream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What stands at the daemon's end of a stream.
pub struct Pipe {
    run: Run,
}

impl Pipe {
    pub fn new(source: impl Source, sink: impl Sink) -> Self {
        Self { run: Box::new(|stream| Box::pin(stream.run(source, sink))) }
    }

    /// Both ways through one object: a console.
    pub fn duplex(end: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(end);
        Self::new(Reader::new(read), Writer(write))
    }

    /// From the daemon to the client: a screenshot, a download.
    pub fn down(from: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self::new(Reader::new(from), Closing)
    }

    /// From the client to the daemon: an upload.
    pub fn up(to: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::new(Silent, Writer(to))
    }

    pub(super) fn run(self, stream: Stream) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (self.run)(stream)
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

/// Names a stream on its connection: the call that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    program: u32,
    procedure: i32,
    serial: u32,
}

impl Key {
    fn of(header: &Header) -> Self {
        Self { program: header.program, procedure: header.procedure, serial: header.serial }
    }
}

/// Frames of the client that wait for the sink.
#[derive(Debug, Default)]
struct Inbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    closed: bool,
    reader: Option<Waker>,
}

impl Inbox {
    fn is_full(&self) -> bool {
        self.bytes > MAX_INBOX_BYTES || self.frames.len() >= MAX_INBOX_FRAMES
    }
}

/// The streams of one client.
#[derive(Debug)]
pub struct Streams {
    outbox: Arc<Outbox>,
    all: Arc<Mutex<All>>,
}

#[derive(Debug, Default)]
struct All {
    open: HashMap<Key, Inbox>,
    /// Closed ones, the last behind.
    closed: VecDeque<Key>,
}

impl All {
    fn close(&mut self, key: Key) {
        if self.open.remove(&key).is_some() {
            if self.closed.len() >= MAX_STREAMS {
                self.closed.pop_front();
            }
            self.closed.push_back(key);
        }
    }
}

fn lock(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Taken,
    /// It was taken, and there is enough until the stream's end has caught up.
    Full,
    /// It crossed the end of its stream.
    Late,
    NoStream,
}

impl Streams {
    pub fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, all: Arc::default() }
    }

    /// Opens the stream of the call that `header` answers.
    pub(super) fn open(&self, header: &Header) -> Stream {
        let key = Key::of(header);
        let mut all = lock(&self.all);
        // A client that opens this many never finishes them; the newest ends as if aborted.
        let closed = all.open.len() >= MAX_STREAMS;
        if let Some(replaced) = all.open.insert(key, Inbox { closed, ..Inbox::default() }) {
            replaced.reader.into_iter().for_each(Waker::wake);
        }
        drop(all);
        Stream {
            key,
            header: Header { kind: FrameType::STREAM, status: Status::CONTINUE, ..*header },
            outbox: Arc::clone(&self.outbox),
            all: Arc::clone(&self.all),
        }
    }

    /// Hands a frame to its stream.
    pub(super) fn deliver(&self, frame: Frame) -> Delivery {
        let mut all = lock(&self.all);
        let key = Key::of(&frame.header);
        let Some(inbox) = all.open.get_mut(&key) else {
            return if all.closed.contains(&key) { Delivery::Late } else { Delivery::NoStream };
        };
        inbox.bytes += frame.payload.len();
        inbox.frames.push_back(frame);
        let (full, reader) = (inbox.is_full(), inbox.reader.take());
        drop(all);
        reader.into_iter().for_each(Waker::wake);
        if full { Delivery::Full } else { Delivery::Taken }
    }

    /// Whether a stream has more waiting than it should.
    pub(super) fn is_full(&self) -> bool {
        lock(&self.all).open.values().any(Inbox::is_full)
    }

    /// The connection is gone.
    pub(super) fn close(&self) {
        let mut all = lock(&self.all);
        let readers: Vec<_> = all
            .open
            .values_mut()
            .filter_map(|inbox| {
                inbox.closed = true;
                inbox.reader.take()
            })
            .collect();
        drop(all);
        readers.into_iter().for_each(Waker::wake);
    }
}

/// The daemon's side of one open stream. Dropped, it is closed.
pub(super) struct Stream {
    key: Key,
    header: Header,
    outbox: Arc<Outbox>,
    all: Arc<Mutex<All>>,
}

/// How a stream ended.
enum End {
    /// The client said so and waits to hear that it is done.
    Confirm,
    Failed(Error),
    /// Nobody is there to tell.
    Gone,
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Stream {
    async fn run(self, mut source: impl Source, mut sink: impl Sink) {
        let end = tokio::select! {
            end = self.pump_up(&mut sink) => end,
            end = self.pump_down(&mut source) => end,
        };
        let done = Header { status: Status::OK, ..self.header };
        let failed = Header { status: Status::ERROR, ..self.header };
        // Once the client hears of the end, it finds nothing in use any more, and its next frames are ignored.
        drop((source, sink));
        lock(&self.all).close(self.key);
        let sent = match end {
            End::Confirm => self.outbox.put(&done, &()),
            End::Failed(error) => self.outbox.put(&failed, &convert::error(&error)),
            End::Gone => Ok(()),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "the end of a stream has no form on the wire");
        }
    }

    /// From the client to the sink, until the client ends the stream.
    async fn pump_up(&self, sink: &mut impl Sink) -> End {
        loop {
            let Some(frame) = self.next_frame().await else { return End::Gone };
            let step = match (frame.header.kind, frame.header.status) {
                (FrameType::STREAM_HOLE, _) => match xdr::decode::<WireHole>(&frame.payload) {
                    Ok(hole) => sink.take(Piece::Hole(hole.length)).await,
                    Err(_) => Err(rpc_error("Unable to decode message payload")),
                },
                (_, Status::CONTINUE) => sink.take(Piece::Data(frame.payload)).await,
                (_, Status::OK) => match sink.finish().await {
                    Ok(()) => return End::Confirm,
                    Err(error) => Err(error),
                },
                (_, Status::ERROR) => return End::Confirm,
                (_, Status(other)) => {
                    Err(rpc_error(format!("stream aborted with unexpected status {other}")))
                }
            };
            if let Err(error) = step {
                return End::Failed(error);
            }
        }
    }

    /// From the source to the client, until the source ends; then there is nothing more to do here.
    async fn pump_down(&self, source: &mut impl Source) -> End {
        match self.send_all(source).await {
            Ok(()) => std::future::pending().await,
            Err(end) => end,
        }
    }

    async fn send_all(&self, source: &mut impl Source) -> Result<(), End> {
        loop {
            poll_fn(|context| self.outbox.poll_room(context)).await?;
            let unsendable = |error: xdr::EncodeError| rpc_error(error.to_string());
            match source.next().await? {
                Some(Piece::Data(data)) => {
                    self.outbox.put(&self.header, &Raw(&data)).map_err(unsendable)?;
                }
                Some(Piece::Hole(length)) => {
                    let header = Header { kind: FrameType::STREAM_HOLE, ..self.header };
                    self.outbox.put(&header, &WireHole { length }).map_err(unsendable)?;
                }
                None => {
                    self.outbox.put(&self.header, &()).map_err(unsendable)?;
                    return Ok(());
                }
            }
        }
    }

    async fn next_frame(&self) -> Option<Frame> {
        let frame = poll_fn(|context| {
            let mut all = lock(&self.all);
            let Some(inbox) = all.open.get_mut(&self.key) else { return Poll::Ready(None) };
            if inbox.closed {
                return Poll::Ready(None);
            }
            let was_full = inbox.is_full();
            match inbox.frames.pop_front() {
                Some(frame) => {
                    inbox.bytes -= frame.payload.len();
                    Poll::Ready(Some((frame, was_full)))
                }
                None => {
                    inbox.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        let (frame, was_full) = frame.await?;
        if was_full {
            self.outbox.wake();
        }
        Some(frame)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.all).close(self.key);
    }
}

fn rpc_error(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::rpc(detail).from_origin(Origin::RPC)
}

/// Stream data: bytes without a length.
struct Raw<'a>(&'a [u8]);

impl Encode for Raw<'_> {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        out.raw(self.0)
    }
}

/// A hole as it travels; negative lengths do not exist.
struct WireHole {
    length: u64,
}

impl Encode for WireHole {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        i64::try_from(self.length).unwrap_or(i64::MAX).encode(out)?;
        0u32.encode(out)
    }
}

impl Decode for WireHole {
    const MIN_SIZE: usize = 12;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
        let length = i64::decode(input)?;
        let _flags = u32::decode(input)?;
        let length = u64::try_from(length).map_err(|_| xdr::DecodeError::Range { value: -1 })?;
        Ok(Self { length })
    }
}
