//! A terminal device as a byte stream: the guest's side of a serial line.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

/// An open terminal. Reads end, or fail with EIO, when nobody holds the other side any more.
#[derive(Debug)]
pub struct Tty {
    // tokio has no type for terminals; its pipe ends ask nothing more of a descriptor than read and write.
    input: Receiver,
    output: Sender,
}

impl Tty {
    /// Opens a terminal without becoming its session's leader.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        let again = device.try_clone()?;
        Ok(Self {
            input: Receiver::from_owned_fd_unchecked(device)?,
            output: Sender::from_owned_fd_unchecked(again)?,
        })
    }
}

impl AsyncRead for Tty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::pty::OpenptFlags;
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_until_the_other_side_is_gone() {
        let main = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&main).unwrap();
        rustix::pty::unlockpt(&main).unwrap();
        let name = rustix::pty::ptsname(&main, Vec::new()).unwrap();
        let mut tty = Tty::open(Path::new(name.to_str().unwrap())).unwrap();
        let mut attributes = tcgetattr(&main).unwrap();
        attributes.make_raw();
        tcsetattr(&main, OptionalActions::Now, &attributes).unwrap();

        let mut main = File::from(main);
        std::io::Write::write_all(&mut main, b"to").unwrap();
        let mut got = [0; 2];
        tty.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"to");
        tty.write_all(b"fro").await.unwrap();
        let mut got = [0; 3];
        std::io::Read::read_exact(&mut main, &mut got).unwrap();
        assert_eq!(&got, b"fro");
        drop(main);
        // Gone is gone, however the kernel says so.
        let end = tty.read(&mut got).await;
        assert!(
            matches!(&end, Ok(0)) || end.is_err_and(|error| error.raw_os_error() == Some(5)),
            "bytes from a terminal that is gone"
        );
    }
}
