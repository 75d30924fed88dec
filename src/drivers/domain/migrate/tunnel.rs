//! A guest's state through the connection between two daemons.
//!
//! ```text
//!  QEMU ═► socket ─► task ─► stream ····► other daemon ─► socket ═► QEMU
//! ```
//!
//! Nothing is kept on the way: who cannot send on does not read on, and QEMU waits. When it fails, the socket is
//! closed before QEMU is told, so that QEMU never waits for somebody who has gone.

use std::io;
use std::os::fd::OwnedFd;

use ferrovirt_protocol::client::{STREAM_CHUNK, Stream};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Outcome;
use crate::error::{Error, Result};
use crate::qemu::migrate;

/// One under way.
#[derive(Debug)]
pub(super) struct Tunnel {
    sending: JoinHandle<Result<()>>,
    /// Tells the task how it ends: dropped, it gives up.
    end: oneshot::Sender<()>,
}

/// Begins to send on what QEMU will write to the end that is returned.
pub(super) fn open(stream: Stream) -> Result<(migrate::Target, Tunnel)> {
    let (ours, qemus) = pair().map_err(|error| Error::io("cannot create a socket pair", error))?;
    let (end, ended) = oneshot::channel();
    let sending = tokio::spawn(send_on(ours, stream, ended));
    Ok((migrate::Target::Descriptor(qemus), Tunnel { sending, end }))
}

/// Two ends of one connection: the daemon's, and QEMU's, which blocks.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, qemus) = UnixStream::pair()?;
    let qemus = qemus.into_std()?;
    qemus.set_nonblocking(false)?;
    Ok((ours, qemus.into()))
}

impl Tunnel {
    /// Returns when everything has arrived, or the other side knows that it will not.
    pub(super) async fn finish(self, outcome: Outcome) -> Result<()> {
        let Self { sending, end } = self;
        match outcome {
            Outcome::Good => drop(end.send(())),
            Outcome::Canceled => drop(end),
        }
        let stopped = |_| Err(Error::internal_error("a task ended early"));
        sending.await.unwrap_or_else(stopped)
    }
}

async fn send_on(mut from: UnixStream, stream: Stream, mut ended: oneshot::Receiver<()>) -> Result<()> {
    let failed = |error: ferrovirt_protocol::client::CallError| {
        Error::operation_failed(format!("tunnel failed: {error}"))
    };
    let mut buffer = vec![0; STREAM_CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            given_up = &mut ended => match given_up {
                // Complete: what QEMU has written is read to its end.
                Ok(()) => {
                    rest(&mut from, &stream, &mut buffer).await?;
                    break;
                }
                Err(_) => {
                    drop(from);
                    let _ = stream.abort().await;
                    return Ok(());
                }
            },
        };
        match read.map_err(|error| Error::io("cannot read what QEMU sends", error))? {
            0 => break,
            length => stream.send(buffer.get(..length).unwrap_or_default()).await.map_err(failed)?,
        }
    }
    stream.finish().await.map_err(failed)
}

async fn rest(from: &mut UnixStream, stream: &Stream, buffer: &mut [u8]) -> Result<()> {
    loop {
        match from.try_read(buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                let sent = stream.send(buffer.get(..length).unwrap_or_default()).await;
                sent.map_err(|error| Error::operation_failed(format!("tunnel failed: {error}")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(Error::io("cannot read what QEMU sends", error)),
        }
    }
}
