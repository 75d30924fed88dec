//! The byte stream below the frames, and the descriptors beside it.
//!
//! Polled by the connection's one task. A short read or write drops the readiness at once, which saves
//! the system call that would only say "try again".

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest};
use tokio::net::UnixStream;

use super::auth::sasl::Layer;
use super::outbox::Descriptor;
use crate::util::fds;

/// Most descriptors that may wait for the frame they belong to.
const MAX_WAITING_FDS: usize = 2 * ferrovirt_protocol::frame::MAX_FDS;

/// What a connection needs of its socket.
pub trait Transport: Send + 'static {
    /// Reads what is there to the end of `bytes`; `Ok(0)` is the end of the stream.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> Poll<io::Result<usize>>;

    /// Writes from the front of `bytes` and removes what was written. `sent` is the offset of that front.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        descriptors: &mut VecDeque<Descriptor>,
        sent: u64,
    ) -> Poll<io::Result<usize>>;

    /// From here on everything goes through `layer`.
    fn protect(&mut self, layer: Layer) -> io::Result<()>;

    /// Sends what the transport has kept of what was written to it.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = context;
        Poll::Ready(Ok(()))
    }
}

/// A unix socket: plain bytes, descriptors by `SCM_RIGHTS`.
#[derive(Debug)]
pub struct UnixTransport {
    socket: UnixStream,
}

impl UnixTransport {
    pub fn new(socket: UnixStream) -> Self {
        Self { socket }
    }
}

/// What a system call did, and whether the socket may have more to do.
enum Done {
    More(usize),
    /// All that was possible: readiness is gone, as if the next call had been refused.
    All(usize),
}

/// Makes one call on a ready socket; `None` if it was not ready after all.
fn attempt(
    socket: &UnixStream,
    interest: Interest,
    call: impl FnOnce() -> io::Result<Done>,
) -> io::Result<Option<usize>> {
    let mut done = None;
    let more = socket.try_io(interest, || match call()? {
        Done::More(count) => Ok(count),
        Done::All(count) => {
            done = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    match more {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(done)
        }
        Err(error) => Err(error),
    }
}

impl Transport for UnixTransport {
    fn protect(&mut self, _: Layer) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            let read = attempt(&self.socket, Interest::READABLE, || {
                let had = descriptors.len();
                bytes.reserve(fds::MIN_READ);
                let room = (bytes.capacity() - bytes.len()).min(fds::MAX_READ);
                let read = fds::recv_now(self.socket.as_fd(), bytes, descriptors, MAX_WAITING_FDS)?;
                // A read that brought descriptors stops behind them, whatever follows.
                let short = (1..room).contains(&read) && had == descriptors.len();
                Ok(if short { Done::All(read) } else { Done::More(read) })
            });
            if let Some(read) = read? {
                return Poll::Ready(Ok(read));
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        descriptors: &mut VecDeque<Descriptor>,
        sent: u64,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            let written = attempt(&self.socket, Interest::WRITABLE, || {
                // Up to the byte that carries the next descriptor, or that byte alone.
                let (until, carried) = match descriptors.front() {
                    Some(next) if next.at == sent => (1, Some(next.fd.as_fd())),
                    Some(next) => (usize::try_from(next.at - sent).unwrap_or(usize::MAX), None),
                    None => (bytes.len(), None),
                };
                let until = until.min(bytes.len());
                let written = fds::send_now(self.socket.as_fd(), &bytes[..until], carried.as_slice())?;
                Ok(if written < until { Done::All(written) } else { Done::More(written) })
            });
            if let Some(written) = written? {
                if descriptors.front().is_some_and(|next| next.at == sent) {
                    descriptors.pop_front();
                }
                bytes.advance(written);
                return Poll::Ready(Ok(written));
            }
        }
    }
}

/// Bytes without descriptors: TCP, and TLS above it.
#[derive(Debug)]
pub struct StreamTransport<S> {
    stream: S,
    /// Something was written since the last complete flush.
    unflushed: bool,
    protected: Option<Box<Protected>>,
}

/// What lies between the bytes and the stream.
#[derive(Debug)]
struct Protected {
    layer: Layer,
    /// As it came; empty between reads.
    received: BytesMut,
    /// Encrypted and not written yet.
    unwritten: Bytes,
}

impl<S> StreamTransport<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, unflushed: false, protected: None }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> StreamTransport<S> {
    /// Writes what has been encrypted.
    fn poll_unwritten(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(protected) = &mut self.protected else { return Poll::Ready(Ok(())) };
        while !protected.unwritten.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &protected.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => protected.unwritten.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads what is there to the end of `bytes`.
fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    context: &mut Context<'_>,
    bytes: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    bytes.reserve(fds::MIN_READ);
    let mut room = bytes.limit(fds::MAX_READ);
    pin!(stream.read_buf(&mut room)).poll(context)
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for StreamTransport<S> {
    fn protect(&mut self, layer: Layer) -> io::Result<()> {
        let protected = Protected { layer, received: BytesMut::new(), unwritten: Bytes::new() };
        self.protected = Some(Box::new(protected));
        Ok(())
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        _: &mut VecDeque<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        let Some(protected) = &mut self.protected else {
            return poll_read(&mut self.stream, context, bytes);
        };
        loop {
            let read = ready!(poll_read(&mut self.stream, context, &mut protected.received))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            let received = std::mem::take(&mut protected.received);
            let clear = protected.layer.decode(&received).map_err(io::Error::other)?;
            // A packet that is not complete waits for its rest.
            if !clear.is_empty() {
                bytes.extend_from_slice(&clear);
                return Poll::Ready(Ok(clear.len()));
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut BytesMut,
        _: &mut VecDeque<Descriptor>,
        _: u64,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unwritten(context))?;
        self.unflushed = true;
        if let Some(protected) = &mut self.protected {
            let before = bytes.len();
            protected.unwritten = protected.layer.encode(bytes).map_err(io::Error::other)?;
            return Poll::Ready(Ok(before - bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        bytes.advance(written);
        match written {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(self.poll_unwritten(context))?;
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
