//! Data beside a call: console, screenshot, volume content, migration.
//!
//! ```text
//!          data, holes                 finish / abort            the daemon confirms
//! [open] ───────────────→ [open] ─────────────────────→ [ending] ───────────────────→ [ended]
//!    └── the daemon reports an error ─────────────────────────────────────────────────────↑
//! ```

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{CallError, Client, STREAM_CHUNK, remote_error};
use crate::frame::{Frame, FrameType, Header, Status};
use crate::net::StreamHole;
use crate::procedure::Program;
use crate::xdr::{self, Encode, EncodeResult, Encoder};

/// Frames of one stream that may wait to be read.
pub(super) const MAX_FRAMES: usize = 256;

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Data(Bytes),
    /// So many zero bytes.
    Hole(i64),
}

/// One open stream. Dropping it aborts it without waiting for the daemon's word.
#[derive(Debug)]
pub struct Stream {
    client: Client,
    header: Header,
    frames: mpsc::Receiver<Frame>,
    open: bool,
}

impl Stream {
    pub(super) fn new(
        client: Client,
        program: Program,
        procedure: i32,
        serial: u32,
        frames: mpsc::Receiver<Frame>,
    ) -> Self {
        let header = Header {
            program: program.number,
            version: program.version,
            procedure,
            kind: FrameType::STREAM,
            serial,
            status: Status::CONTINUE,
        };
        Self { client, header, frames, open: true }
    }

    /// Sends data, in as many frames as it takes.
    pub async fn send(&self, data: &[u8]) -> Result<(), CallError> {
        for chunk in data.chunks(STREAM_CHUNK) {
            self.put(FrameType::STREAM, Status::CONTINUE, |out| out.raw(chunk)).await?;
        }
        Ok(())
    }

    /// Says that no more data comes, without ending the stream.
    pub async fn send_eof(&self) -> Result<(), CallError> {
        self.put(FrameType::STREAM, Status::CONTINUE, |_| Ok(())).await
    }

    /// Skips `length` bytes of zeros.
    pub async fn send_hole(&self, length: i64) -> Result<(), CallError> {
        let hole = StreamHole { length, flags: 0 };
        self.put(FrameType::STREAM_HOLE, Status::CONTINUE, |out| hole.encode(out)).await
    }

    /// The next piece; `None` when the daemon has no more.
    pub async fn recv(&mut self) -> Result<Option<Chunk>, CallError> {
        let frame = self.next().await?;
        match (frame.header.kind, frame.header.status) {
            (FrameType::STREAM_HOLE, _) => {
                let hole: StreamHole = xdr::decode(&frame.payload)?;
                Ok(Some(Chunk::Hole(hole.length)))
            }
            (_, Status::CONTINUE) if !frame.payload.is_empty() => Ok(Some(Chunk::Data(frame.payload))),
            _ => Ok(None),
        }
    }

    /// Ends the stream; an error means that the daemon could not use all of it.
    pub async fn finish(self) -> Result<(), CallError> {
        self.end(Status::OK).await
    }

    /// Gives the stream up.
    pub async fn abort(self) -> Result<(), CallError> {
        self.end(Status::ERROR).await
    }

    /// Asks for the end and waits for it, past data that was already on its way.
    async fn end(mut self, status: Status) -> Result<(), CallError> {
        self.put(FrameType::STREAM, status, |_| Ok(())).await?;
        while self.next().await?.header.status == Status::CONTINUE {}
        Ok(())
    }

    /// The next frame; its status is not an error. The daemon sends none after the last.
    async fn next(&mut self) -> Result<Frame, CallError> {
        let (client, frames) = (self.client.clone(), &mut self.frames);
        let frame =
            client.within(async { frames.recv().await.ok_or_else(|| client.link.0.closed()) }).await?;
        if frame.header.status != Status::CONTINUE {
            self.open = false;
        }
        match frame.header.status {
            Status::ERROR => Err(remote_error(&frame)),
            _ => Ok(frame),
        }
    }

    async fn put(
        &self,
        kind: FrameType,
        status: Status,
        encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
    ) -> Result<(), CallError> {
        let header = Header { kind, status, ..self.header };
        let shared = &self.client.link.0;
        self.client.within(shared.queue(|state| Ok(state.put(&header, encode)?))).await
    }

    /// The stream never came to be: nothing to abort.
    pub(super) fn forget(mut self) {
        self.open = false;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = &self.client.link.0;
        shared.with(|state| state.streams.remove(&self.header.serial));
        if self.open {
            // An empty frame always fits.
            let _ = shared.queue_now(&Header { status: Status::ERROR, ..self.header });
        }
    }
}
