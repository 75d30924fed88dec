//! Unix sockets under paths of any length.
//!
//! A socket's address has room for 107 bytes of path. A longer path is reached through the descriptor of its
//! directory, so that a deep root directory is no obstacle.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

/// What fits into an address.
const MAX_PATH: usize = 107;

/// Listens on `path`, where nothing may be yet.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    with_short(path, |path| UnixListener::bind(path))
}

/// Connects to whoever listens on `path`. Never waits: a listener that takes no more is an error.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    with_short(path, |path| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?))?;
    UnixStream::from_std(socket.into())
}

/// Calls `with` on the path, or on a short one to the same file that is valid during the call.
fn with_short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.as_os_str().len() > MAX_PATH => {
            let parent = std::fs::File::open(parent)?;
            with(&Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name))
        }
        _ => with(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_paths_are_as_good_as_short_ones() {
        let root = tempfile::tempdir().unwrap();
        for length in [1, 200] {
            let directory = root.path().join("d".repeat(length));
            std::fs::create_dir(&directory).unwrap();
            let path = directory.join("socket");
            assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
            let listener = listen(&path).unwrap();
            assert!(path.exists());
            connect(&path).unwrap();
            listener.accept().unwrap();
            drop(listener);
            assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
