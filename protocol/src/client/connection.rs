//! What the two tasks and the callers share, and the tasks themselves.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{CallError, CloseReason, EventFrame, Reply};
use crate::frame::{self, Frame, FrameType, Header, MAX_FDS, MAX_FRAME, Status};
use crate::keepalive::{self, event};
use crate::procedure::{Event, Program};
use crate::xdr::{Decode, Decoder, Encode, EncodeResult, Encoder};

/// Callers wait while more than this is queued.
const MAX_QUEUED: usize = 4 << 20;
/// Callers wait while more than this are in flight.
const MAX_CALLS: usize = 16384;
/// Room made for each read.
const READ_SIZE: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    queued: Notify,
    /// There may be room to queue.
    room: Notify,
    closed: watch::Sender<Option<CloseReason>>,
    /// On a unix socket: descriptors on their way.
    descriptors: Option<Arc<Lane>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    out: BytesMut,
    /// Bytes ever queued: where in the stream the next one will stand.
    position: u64,
    serial: u32,
    pub(super) calls: HashMap<u32, oneshot::Sender<Reply>>,
    pub(super) streams: HashMap<u32, mpsc::Sender<Frame>>,
    pongs: VecDeque<oneshot::Sender<()>>,
}

/// Descriptors beside the bytes. They are matched to bytes by position when they leave, by order when they
/// arrive.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) received: Mutex<VecDeque<OwnedFd>>,
    pub(super) to_send: Mutex<VecDeque<(u64, OwnedFd)>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Zero is for frames that nobody answers.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        self.serial
    }

    fn has_room(&self) -> bool {
        self.out.len() <= MAX_QUEUED && self.calls.len() + self.pongs.len() < MAX_CALLS
    }

    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
    }

    pub(super) fn put(
        &mut self,
        header: &Header,
        encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
    ) -> EncodeResult {
        let before = self.out.len();
        frame::put_with(&mut self.out, header, encode)?;
        self.position += (self.out.len() - before) as u64;
        Ok(())
    }

    pub(super) fn put_ping(&mut self, pong: oneshot::Sender<()>) -> Result<(), CallError> {
        self.pongs.push_back(pong);
        Ok(self.put(&keepalive_header(event::Ping::NUMBER), |_| Ok(()))?)
    }
}

fn keepalive_header(procedure: i32) -> Header {
    let Program { number: program, version, .. } = keepalive::PROGRAM;
    Header { program, version, procedure, kind: FrameType::MESSAGE, serial: 0, status: Status::OK }
}

impl Shared {
    pub(super) fn with_descriptors(lane: Arc<Lane>) -> Self {
        Self { descriptors: Some(lane), ..Self::default() }
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut lock(&self.state))
    }

    /// Runs `put` as soon as there is room, and wakes the writing task.
    pub(super) async fn queue<T>(
        &self,
        put: impl FnOnce(&mut State) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut state = lock(&self.state);
                if self.closed.borrow().is_some() {
                    return Err(self.closed());
                }
                if state.has_room() {
                    let result = put(&mut state);
                    self.queued.notify_one();
                    return result;
                }
            }
            room.await;
        }
    }

    /// Queues without waiting for room, for what must go out while a caller cannot wait.
    pub(super) fn queue_now(&self, header: &Header) -> EncodeResult {
        self.with(|state| state.put(header, |_| Ok(())))?;
        self.queued.notify_one();
        Ok(())
    }

    pub(super) fn put_call(
        &self,
        state: &mut State,
        header: &Header,
        fds: Vec<OwnedFd>,
        encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
    ) -> Result<(), CallError> {
        if fds.is_empty() {
            return Ok(state.put(header, encode)?);
        }
        let (Some(lane), true) = (&self.descriptors, fds.len() <= MAX_FDS) else {
            return Err(CallError::Descriptors(fds.len()));
        };
        state.put(header, |out| {
            (fds.len() as u32).encode(out)?;
            encode(out)
        })?;
        for fd in fds {
            lock(&lane.to_send).push_back((state.position, fd));
            state.put_raw(&[0]);
        }
        Ok(())
    }

    /// Nobody waits for this call's reply any more.
    pub(super) fn forget(&self, serial: u32) {
        if self.with(|state| state.calls.remove(&serial)).is_some() {
            self.room.notify_waiters();
        }
    }

    /// The first reason stays.
    pub(super) fn close(&self, reason: CloseReason) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        });
        let mut state = lock(&self.state);
        state.calls.clear();
        state.streams.clear();
        state.pongs.clear();
        self.room.notify_waiters();
    }

    pub(super) fn closed(&self) -> CallError {
        CallError::Closed(self.closed.borrow().clone().unwrap_or(CloseReason::Ours))
    }

    pub(super) async fn wait_closed(&self) -> CloseReason {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Ours),
            Err(_) => CloseReason::Ours,
        }
    }
}

/// Serves the connection until either side ends it.
pub(super) fn spawn(
    shared: Arc<Shared>,
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    events: mpsc::Sender<EventFrame>,
) {
    let (reader, writer) = tokio::io::split(io);
    let reading = Arc::clone(&shared);
    tokio::spawn(async move {
        let mut incoming = Incoming { shared: &reading, io: reader, buffer: BytesMut::new(), events };
        tokio::select! {
            reason = incoming.read() => reading.close(reason),
            _ = reading.wait_closed() => {}
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            error = write(&shared, writer) => shared.close(CloseReason::Io(Arc::new(error))),
            _ = shared.wait_closed() => {}
        }
    });
}

async fn write<T: AsyncRead + AsyncWrite>(shared: &Shared, mut io: WriteHalf<T>) -> std::io::Error {
    let mut sending = BytesMut::new();
    loop {
        shared.queued.notified().await;
        shared.with(|state| std::mem::swap(&mut state.out, &mut sending));
        shared.room.notify_waiters();
        if let Err(error) = io.write_all(&sending).await {
            return error;
        }
        if let Err(error) = io.flush().await {
            return error;
        }
        sending.clear();
    }
}

struct Incoming<'a, T> {
    shared: &'a Shared,
    io: ReadHalf<T>,
    buffer: BytesMut,
    events: mpsc::Sender<EventFrame>,
}

impl<T: AsyncRead + AsyncWrite> Incoming<'_, T> {
    async fn read(&mut self) -> CloseReason {
        loop {
            let routed = match frame::cut(&mut self.buffer, MAX_FRAME) {
                Ok(Some(frame)) => self.route(frame).await,
                Ok(None) => self.fill().await,
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = routed {
                return reason;
            }
        }
    }

    async fn fill(&mut self) -> Result<(), CloseReason> {
        self.buffer.reserve(READ_SIZE);
        match self.io.read_buf(&mut self.buffer).await {
            Ok(0) => Err(CloseReason::EndOfStream),
            Ok(_) => Ok(()),
            Err(error) => Err(CloseReason::Io(Arc::new(error))),
        }
    }

    async fn route(&mut self, mut frame: Frame) -> Result<(), CloseReason> {
        let Header { kind, serial, .. } = frame.header;
        match kind {
            FrameType::REPLY | FrameType::REPLY_WITH_FDS => {
                let fds = match kind.carries_fds() {
                    true => self.descriptors(&mut frame).await?,
                    false => Vec::new(),
                };
                // No one waits for it when the caller gave up.
                if let Some(call) = self.shared.with(|state| state.calls.remove(&serial)) {
                    let _ = call.send(Reply { frame, fds });
                    self.shared.room.notify_waiters();
                }
                Ok(())
            }
            FrameType::MESSAGE if frame.header.program == keepalive::PROGRAM.number => self.keepalive(&frame),
            FrameType::MESSAGE => self.event(frame),
            FrameType::STREAM | FrameType::STREAM_HOLE => {
                let last = kind == FrameType::STREAM && frame.header.status != Status::CONTINUE;
                let stream = self.shared.with(|state| match last {
                    true => state.streams.remove(&serial),
                    false => state.streams.get(&serial).cloned(),
                });
                if let Some(stream) = stream {
                    let _ = stream.send(frame).await; // fails when the stream was dropped
                }
                Ok(())
            }
            other => Err(CloseReason::FrameType(other)),
        }
    }

    /// Takes the count off the payload, and the descriptors that come in bytes of their own behind the frame.
    async fn descriptors(&mut self, frame: &mut Frame) -> Result<Vec<OwnedFd>, CloseReason> {
        let count = u32::decode(&mut Decoder::new(&frame.payload))? as usize;
        frame.payload.advance(u32::MIN_SIZE);
        let Some(lane) = self.shared.descriptors.as_ref().filter(|_| count <= MAX_FDS) else {
            return Err(CloseReason::Descriptors(count));
        };
        while self.buffer.len() < count {
            self.fill().await?;
        }
        self.buffer.advance(count);
        let mut received = lock(&lane.received);
        if received.len() < count {
            return Err(CloseReason::Descriptors(count));
        }
        Ok(received.drain(..count).collect())
    }

    fn keepalive(&self, frame: &Frame) -> Result<(), CloseReason> {
        match frame.header.procedure {
            event::Ping::NUMBER => {
                // A peer that pings without reading the answers gets none.
                if self.shared.with(|state| state.has_room()) {
                    let _ = self.shared.queue_now(&keepalive_header(event::Pong::NUMBER));
                }
            }
            _ => {
                if let Some(waiter) = self.shared.with(|state| state.pongs.pop_front()) {
                    let _ = waiter.send(());
                }
            }
        }
        Ok(())
    }

    fn event(&self, frame: Frame) -> Result<(), CloseReason> {
        match self.events.try_send(EventFrame { header: frame.header, payload: frame.payload }) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(CloseReason::EventsNotRead(self.events.max_capacity()))
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}
