//! A blocking client on the bare wire: one thread, one socket, nothing hidden.
//!
//! It can do what a library would not: send half a frame, send calls without reading replies, count
//! bytes. And it costs next to nothing, so that what a benchmark measures is the daemon.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use ferrovirt_protocol::frame::{self, Frame, FrameError, FrameType, Header, MAX_FRAME, Status};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::xdr::{self, DecodeError, EncodeError};
use ferrovirt_protocol::{net, remote};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum WireError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the daemon closed the connection")]
    Closed,
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Encode(#[from] EncodeError),
    /// The daemon's answer is an error.
    #[error("{0}")]
    Refused(Box<net::Error>),
}

#[derive(Debug)]
pub struct Wire {
    socket: UnixStream,
    input: BytesMut,
    output: BytesMut,
    serial: u32,
    /// Events that came while a reply was waited for.
    pub events: VecDeque<Frame>,
}

impl Wire {
    /// A connected socket on which nothing has been said.
    pub fn connect(socket: &Path) -> Result<Self, WireError> {
        let socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(super::LIMIT))?;
        Ok(Self {
            socket,
            input: BytesMut::with_capacity(1 << 16),
            output: BytesMut::new(),
            serial: 0,
            events: VecDeque::new(),
        })
    }

    /// A connection that is open for guests: what every client library says first.
    pub fn open(socket: &Path) -> Result<Self, WireError> {
        let mut wire = Self::connect(socket)?;
        wire.call::<remote::procedure::AuthList>(&())?;
        let name = Some("qemu:///system".to_owned());
        wire.call::<remote::procedure::ConnectOpen>(&remote::ConnectOpenArgs { name, flags: 0 })?;
        Ok(wire)
    }

    pub fn set_limit(&self, limit: Duration) -> Result<(), WireError> {
        Ok(self.socket.set_read_timeout(Some(limit))?)
    }

    /// Adds a call to what the next [`Self::flush`] sends; answers its serial.
    pub fn queue<P: Procedure>(&mut self, args: &P::Args) -> Result<u32, WireError> {
        self.serial += 1;
        let header = Header {
            program: P::PROGRAM.number,
            version: P::PROGRAM.version,
            procedure: P::NUMBER,
            kind: FrameType::CALL,
            serial: self.serial,
            status: Status::OK,
        };
        frame::put(&mut self.output, &header, args)?;
        Ok(self.serial)
    }

    pub fn flush(&mut self) -> Result<(), WireError> {
        self.socket.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// What [`Self::flush`] would send, for whoever sends it by another hand.
    pub fn take_queued(&mut self) -> Vec<u8> {
        self.output.split().to_vec()
    }

    /// Bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// The next frame, whatever it is.
    pub fn receive(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = frame::cut(&mut self.input, MAX_FRAME)? {
                return Ok(frame);
            }
            let mut chunk = [0; 1 << 16];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(WireError::Closed),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                // A read with a limit is interrupted when the process is stopped and goes on (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next reply. Events and keepalive on the way to it are put aside.
    pub fn reply(&mut self) -> Result<Frame, WireError> {
        loop {
            let frame = self.receive()?;
            if frame.header.kind == FrameType::MESSAGE {
                self.events.push_back(frame);
            } else {
                return Ok(frame);
            }
        }
    }

    /// One call, one answer.
    pub fn call<P: Procedure>(&mut self, args: &P::Args) -> Result<P::Ret, WireError> {
        self.queue::<P>(args)?;
        self.flush()?;
        result::<P>(&self.reply()?)
    }

    /// Reads until the daemon closes the connection: how many bytes that were.
    pub fn drain(mut self) -> Result<u64, WireError> {
        match io::copy(&mut self.socket, &mut io::sink()) {
            // Closed with our bytes unread: a reset is a close.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            other => Ok(other?),
        }
    }

    /// A second hand on the same socket, for a thread that only writes.
    pub fn writer(&self) -> Result<UnixStream, WireError> {
        Ok(self.socket.try_clone()?)
    }
}

/// What a reply says.
pub fn result<P: Procedure>(frame: &Frame) -> Result<P::Ret, WireError> {
    if frame.header.status == Status::OK {
        Ok(xdr::decode(&frame.payload)?)
    } else {
        Err(WireError::Refused(Box::new(xdr::decode(&frame.payload)?)))
    }
}
