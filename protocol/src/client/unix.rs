//! A unix socket as a byte stream that keeps the descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::connection::{Lane, Shared, lock};
use super::{Client, Events};
use crate::frame::MAX_FDS;

impl Client {
    /// Serves a unix socket, which can carry descriptors. [`Client::new`] would lose them.
    pub fn unix(socket: UnixStream) -> (Self, Events) {
        let lane = Arc::new(Lane::default());
        let io = UnixIo { socket, lane: Arc::clone(&lane), sent: 0 };
        Self::start(io, Shared::with_descriptors(lane))
    }
}

struct UnixIo {
    socket: UnixStream,
    lane: Arc<Lane>,
    /// Bytes ever written.
    sent: u64,
}

impl AsyncRead for UnixIo {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            let received = self.socket.try_io(Interest::READABLE, || self.receive(buffer));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }
}

impl UnixIo {
    fn receive(&self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let bytes = &mut [IoSliceMut::new(buffer.initialize_unfilled())];
        let received = recvmsg(&self.socket, bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut waiting = lock(&self.lane.received);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                waiting.extend(fds);
            }
        }
        // The frames before have taken theirs: what waits belongs to one frame.
        if waiting.len() > 2 * MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
        }
        buffer.advance(received.bytes);
        Ok(())
    }

    /// Writes up to the byte that carries the next descriptor, or that byte alone.
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut to_send = lock(&self.lane.to_send);
        let distance = to_send.front().map(|(at, _)| usize::try_from(at - self.sent).unwrap_or(usize::MAX));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let (len, fd) = match (distance, to_send.front()) {
            (Some(0), Some((_, fd))) => (1, Some(fd.as_fd())),
            (Some(distance), _) => (bytes.len().min(distance), None),
            (None, _) => (bytes.len(), None),
        };
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = bytes.get(..len).unwrap_or_default();
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        if distance == Some(0) && sent > 0 {
            to_send.pop_front();
        }
        Ok(sent)
    }
}

impl AsyncWrite for UnixIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            let sent = self.socket.try_io(Interest::WRITABLE, || self.transmit(bytes));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.sent += count as u64;
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)?))
    }
}
