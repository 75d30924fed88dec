//! The sockets that clients find a daemon by.
//!
//! Clients of libvirt try two families of names: `libvirt-sock` of the one large daemon and
//! `virtqemud-sock` of the daemon for QEMU alone. Both lead here. Whoever binds holds the daemon's pid
//! file, so a name that is already there belongs to a daemon that died.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::auth::Authentication;
use super::auth::identity::PeerProcess;
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
    Us,
    ServiceManager,
}

impl Listener {
    /// Binds `path`. The name appears when mode and group are right, replacing a stale one.
    pub fn bind(path: &Path, access: Access, backlog: u32) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::io(format_args!("Failed to bind socket to '{}'", path.display()), error)
        };
        let new = file::growing(path);
        let socket = (|| {
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
            std::fs::rename(&new, path)?;
            UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
        })();
        Ok(Self { path: path.to_owned(), socket: socket.map_err(failed)?, owner: Owner::Us })
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
                Ok((socket, _)) => {
                    let process = PeerProcess::of(&socket);
                    let share = match server.share(process.as_ref().map(|process| process.uid)) {
                        Ok(share) => share,
                        Err(crowded) => {
                            tracing::warn!(socket = %self.path.display(), %crowded, "a client is not let in");
                            continue;
                        }
                    };
                    let authentication = asked.of_local(process.as_ref());
                    let Some(place) = server.place(&authentication).await else { return };
                    let (peer, place) = (Peer::Unix(process), place.of_share(share));
                    let transport = UnixTransport::new(socket);
                    server.serve(transport, peer, rights, authentication, place);
                }
                Err(error) => {
                    tracing::error!(socket = %self.path.display(), %error, "cannot accept a client");
                    let mut count = server.client_count();
                    let _ = tokio::time::timeout(EXHAUSTED_WAIT, count.changed()).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.owner == Owner::Us
            && let Err(error) = file::remove_if_there(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove");
        }
    }
}
