//! Descriptors over unix sockets (`SCM_RIGHTS`), and waiting for one.
//!
//! libvirt's RPC sends one byte per descriptor after the frame, each byte carrying one descriptor; QMP
//! takes descriptors beside the first byte of a command. A plain `read` on such a socket closes what it
//! skips, so every read of a socket that may carry descriptors goes through [`recv`].

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use nix::libc;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The most descriptors one call of [`recv`] or [`send_with`] moves (libvirt's limit for a message).
pub const MAX_PER_MESSAGE: usize = 32;

/// The most bytes one [`recv`] takes in; larger reads only cost latency for everyone else.
pub const MAX_READ: usize = 64 * 1024;
/// The fewest bytes of room [`recv`] makes.
pub const MIN_READ: usize = 4 * 1024;

/// A socket that a service manager has bound, and what it calls it: after its unit, unless that says otherwise.
#[derive(Debug)]
pub struct Activated {
    pub socket: OwnedFd,
    pub name: String,
}

/// The sockets that a service manager opened for this process (`sd_listen_fds(3)`): copies, closed at exec.
#[allow(unsafe_code)]
pub fn activated() -> io::Result<Vec<Activated>> {
    let copy = |(descriptor, name)| {
        // SAFETY: the service manager leaves these descriptors open for this process, and nobody closes them: they
        // are only borrowed for the copy.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(Activated { socket: descriptor.try_clone_to_owned()?, name })
    };
    sd_notify::listen_fds_with_names()?.map(copy).collect()
}

/// Sends `descriptors` as libvirt does: one zero byte for each, carrying it.
pub async fn send_each(stream: &UnixStream, descriptors: &[impl AsFd]) -> io::Result<()> {
    for descriptor in descriptors {
        send_with(stream, &[0], &[descriptor.as_fd()]).await?;
    }
    Ok(())
}

/// Sends all of `bytes`, with `descriptors` beside the first of them.
pub async fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > MAX_PER_MESSAGE || (bytes.is_empty() && !descriptors.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut rest = bytes;
    let mut beside = descriptors;
    while !rest.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || send_now(stream.as_fd(), rest, beside)).await?;
        rest = rest.get(sent..).unwrap_or_default();
        beside = &[];
    }
    Ok(())
}

/// Sends what the socket takes at once; `WouldBlock` if that is nothing.
pub fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Reads what is there, at least one byte, to the end of `buffer`; received descriptors go to the end
/// of `descriptors`, close-on-exec. Answers 0 at the end of the stream.
///
/// Reads into the room that `buffer` has; makes some if it has little. Fails when more than `max`
/// descriptors would wait in the queue: a peer that sends descriptors nobody asked for is cut off.
///
/// Nothing is lost when the future is dropped before it is ready.
pub async fn recv(
    stream: &UnixStream,
    buffer: &mut BytesMut,
    descriptors: &mut VecDeque<OwnedFd>,
    max: usize,
) -> io::Result<usize> {
    stream.async_io(Interest::READABLE, || recv_now(stream.as_fd(), buffer, descriptors, max)).await
}

/// As [`recv`], without waiting: `WouldBlock` if nothing is there.
pub fn recv_now(
    socket: BorrowedFd<'_>,
    buffer: &mut BytesMut,
    descriptors: &mut VecDeque<OwnedFd>,
    max: usize,
) -> io::Result<usize> {
    let start = buffer.len();
    if buffer.capacity() - start < MIN_READ {
        buffer.reserve(MIN_READ);
    }
    let room = (buffer.capacity() - start).min(MAX_READ);
    buffer.resize(start + room, 0);
    let read = recv_into(socket, &mut buffer[start..], descriptors);
    buffer.truncate(start + *read.as_ref().unwrap_or(&0));
    match read {
        Ok(_) if descriptors.len() > max => {
            descriptors.truncate(max);
            Err(io::Error::new(io::ErrorKind::InvalidData, "peer sent too many descriptors"))
        }
        read => read,
    }
}

fn recv_into(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "peer sent too many descriptors at once"));
    }
    Ok(received.bytes)
}

/// The security context of the process that connected a unix socket, where the kernel labels processes.
#[allow(unsafe_code)]
pub fn peer_context(socket: BorrowedFd<'_>) -> Option<String> {
    let mut context = [0u8; 512];
    let mut length: libc::socklen_t = 512;
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which is as long, and their number to `length`.
    let failed = unsafe {
        let place = context.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERSEC, place, &raw mut length)
    };
    let context = context.get(..length as usize).filter(|_| failed == 0)?;
    let context = context.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(context).ok().filter(|context| !context.is_empty()).map(str::to_owned)
}

/// A descriptor to wait for; it has to be one that does not block.
#[allow(unsafe_code)]
pub fn wait_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is waited for.
    unsafe { Ok(AsyncFd::register_with_interest(fd, Interest::READABLE)?) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn pipe() -> (OwnedFd, std::fs::File) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (write, read.into())
    }

    #[tokio::test]
    async fn descriptors_arrive_in_order_behind_the_bytes_before_them() {
        let (ours, theirs) = pair();
        let (first, mut first_end) = pipe();
        let (second, mut second_end) = pipe();
        send_with(&ours, b"frame", &[]).await.unwrap();
        send_each(&ours, &[first, second]).await.unwrap();

        let (mut buffer, mut descriptors) = (BytesMut::new(), VecDeque::new());
        while buffer.len() < 7 {
            assert_ne!(recv(&theirs, &mut buffer, &mut descriptors, 2).await.unwrap(), 0);
        }
        assert_eq!(&buffer[..], b"frame\0\0");
        for (text, end) in [("one", &mut first_end), ("two", &mut second_end)] {
            let received = descriptors.pop_front().unwrap();
            assert!(rustix::io::fcntl_getfd(&received).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            std::fs::File::from(received).write_all(text.as_bytes()).unwrap();
            let mut got = String::new();
            end.read_to_string(&mut got).unwrap();
            assert_eq!(got, text);
        }
    }

    #[tokio::test]
    async fn more_descriptors_than_allowed_are_refused_and_closed() {
        let (ours, theirs) = pair();
        let ends: Vec<_> = (0..3).map(|_| pipe().0).collect();
        send_with(&ours, b"x", &ends.iter().map(AsFd::as_fd).collect::<Vec<_>>()).await.unwrap();
        let mut descriptors = VecDeque::new();
        let error = recv(&theirs, &mut BytesMut::new(), &mut descriptors, 2).await.unwrap_err();
        assert_eq!((error.kind(), descriptors.len()), (io::ErrorKind::InvalidData, 2));
    }

    #[tokio::test]
    async fn descriptors_beside_a_command_travel_with_its_first_byte() {
        let (ours, theirs) = pair();
        let (descriptor, _end) = pipe();
        let command = vec![b'c'; 300_000];
        let writer = async { send_with(&ours, &command, &[descriptor.as_fd()]).await.unwrap() };
        let (mut buffer, mut descriptors) = (BytesMut::new(), VecDeque::new());
        let reader = async {
            while buffer.len() < command.len() {
                recv(&theirs, &mut buffer, &mut descriptors, 1).await.unwrap();
                assert_eq!(descriptors.len(), 1);
            }
        };
        tokio::join!(writer, reader);
        assert_eq!(&buffer[..], &command[..]);
    }

    #[tokio::test]
    async fn end_of_stream_is_zero_bytes() {
        let (ours, theirs) = pair();
        drop(ours);
        assert_eq!(recv(&theirs, &mut BytesMut::new(), &mut VecDeque::new(), 0).await.unwrap(), 0);
    }
}
