//! The sockets that clients find a daemon by.
//!
//! Clients of libvirt try two families of names: `libvirt-sock` of the one large daemon and
//! `virtqemud-sock` of the daemon for QEMU alone. Both lead here. Whoever binds holds the daemon's pid
//! file, so a name that is already there belongs to a daemon that died.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use super::auth::Authentication;
use super::auth::identity::PeerProcess;
use super::places::{Newcomer, Turn};
use super::server::Server;
use super::session::{Peer, Rights};
use super::transport::UnixTransport;
use crate::error::{Error, Result};
use crate::util::file;
use crate::util::paths::Scope;

/// How long to wait for a client to leave when the process has no descriptor left for the next one.
const EXHAUSTED_WAIT: Duration = Duration::from_secs(1);

/// Which server a socket leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    ReadWrite,
    ReadOnly,
    Admin,
}

/// The sockets of a daemon, by name. A user's daemon has none for reading only.
pub fn names(scope: Scope) -> &'static [(&'static str, Service)] {
    const ALL: &[(&str, Service)] = &[
        ("libvirt-sock", Service::ReadWrite),
        ("libvirt-admin-sock", Service::Admin),
        ("virtqemud-sock", Service::ReadWrite),
        ("virtqemud-admin-sock", Service::Admin),
        ("libvirt-sock-ro", Service::ReadOnly),
        ("virtqemud-sock-ro", Service::ReadOnly),
    ];
    match scope {
        Scope::System => ALL,
        Scope::Session => &ALL[..4],
    }
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub mode: u32,
    pub group: Option<u32>,
}

/// A bound socket; its name goes when it is dropped, unless it is a service manager's.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    socket: UnixListener,
    owner: Owner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The file that was bound.
    Us((u64, u64)),
    ServiceManager,
}

impl Listener {
    /// Binds `path`. The name appears when mode and group are right, replacing a stale one.
    pub fn bind(path: &Path, access: Access, backlog: u32) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::io(format_args!("Failed to bind socket to '{}'", path.display()), error)
        };
        let new = file::growing(path);
        let bound = (|| {
            let address = SocketAddrUnix::new(&new)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            file::remove_if_there(&new)?;
            rustix::net::bind(&socket, &address)?;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(access.mode))?;
            if access.group.is_some() {
                chown(&new, None, access.group)?;
            }
            rustix::net::listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
            let bound = identity(&new)?;
            std::fs::rename(&new, path)?;
            let socket = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
            Ok(Self { path: path.to_owned(), socket, owner: Owner::Us(bound) })
        })();
        bound.map_err(failed)
    }

    /// Takes a socket that a service manager has bound; its name says which server it leads to.
    pub fn adopt(socket: OwnedFd) -> Result<(Self, Service)> {
        let socket = std::os::unix::net::UnixListener::from(socket);
        let failed = |error| Error::io("cannot use a socket of the service manager", error);
        let address = socket.local_addr().map_err(failed)?;
        let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
        let known = names(Scope::System).iter().find(|(name, _)| path.file_name() == Some(name.as_ref()));
        let (_, service) = known.ok_or_else(|| {
            let path = path.display();
            Error::config_unsupported(format!("socket '{path}' of the service manager has no name of ours"))
        })?;
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = UnixListener::from_std(socket).map_err(failed)?;
        Ok((Self { path, socket, owner: Owner::ServiceManager }, *service))
    }

    /// Takes in clients for as long as it is polled.
    pub async fn accept_all(&self, server: Arc<Server>, rights: Rights, asked: Authentication) {
        loop {
            match self.socket.accept().await {
                Ok((socket, _)) => Self::let_in(socket, &server, rights, &asked),
                Err(error) => {
                    tracing::error!(socket = %self.path.display(), %error, "cannot accept a client");
                    let mut count = server.client_count();
                    let _ = tokio::time::timeout(EXHAUSTED_WAIT, count.changed()).await;
                }
            }
        }
    }
}

impl Listener {
    /// Nobody is waited for here: the next in the backlog may be somebody else.
    fn let_in(socket: UnixStream, server: &Arc<Server>, rights: Rights, asked: &Authentication) {
        let process = PeerProcess::of(&socket);
        let authentication = asked.of_local(process.as_ref());
        let newcomer = Newcomer::local(process.as_ref().map(|process| process.uid));
        let Ok(turn) = server.line_up(newcomer, &authentication) else { return };
        let server = Arc::clone(server);
        let serve = move |place| {
            server.serve(UnixTransport::new(socket), Peer::Unix(process), rights, authentication, place);
        };
        match turn {
            Turn::Now(place) => serve(place),
            Turn::Later(waiting) => {
                tokio::spawn(async move { waiting.place().await.map(serve) });
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Owner::Us(bound) = self.owner else { return };
        // Somebody may have put something else there, which is his.
        if identity(&self.path).ok() != Some(bound) {
            tracing::warn!(socket = %self.path.display(), "is not the daemon's any more, and stays");
        } else if let Err(error) = file::remove_if_there(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove");
        }
    }
}

/// What a name means, whatever happens to the name: file system and number. Links are not followed.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|about| (about.dev(), about.ino()))
}
