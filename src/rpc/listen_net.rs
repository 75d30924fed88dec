//! The network sockets: plain TCP, and TLS.
//!
//! Plain TCP shows everybody on the way everything, and lets in whoever reaches it: it is off unless asked
//! for, by the configuration and by `--listen`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use super::auth::Authentication;
use super::places::{Newcomer, Place};
use super::server::Server;
use super::session::{Peer, Rights};
use super::tls::{self, Tls};
use super::transport::StreamTransport;
use crate::error::{Error, Origin, Result};

/// How long to wait for a client to leave when the process has no descriptor left for the next one.
const EXHAUSTED_WAIT: Duration = Duration::from_secs(1);

/// What protects the connections of a socket.
#[derive(Debug, Clone)]
pub enum Protection {
    None,
    Tls(Arc<Tls>),
}

/// A bound TCP socket.
#[derive(Debug)]
pub struct NetListener {
    address: SocketAddr,
    socket: TcpListener,
    protection: Protection,
    authentication: Authentication,
}

/// What a socket is bound with beside its address.
#[derive(Debug, Clone)]
pub struct Conditions {
    pub backlog: u32,
    pub protection: Protection,
    pub authentication: Authentication,
}

impl NetListener {
    /// Binds a port of an address, or of all addresses of the host.
    pub async fn bind(address: Option<&str>, port: u16, conditions: &Conditions) -> Result<Vec<Self>> {
        let addresses: Vec<SocketAddr> = match address {
            None => vec![([0u8; 4], port).into(), ([0u16; 8], port).into()],
            Some(name) => {
                let failed = |error| {
                    Error::io(format_args!("Unable to resolve address '{name}' service '{port}'"), error)
                };
                lookup_host((name, port)).await.map_err(failed)?.collect()
            }
        };
        let mut bound = Vec::new();
        for address in addresses {
            match listen(address, conditions.backlog) {
                Ok(socket) => {
                    let Conditions { protection, authentication, .. } = conditions.clone();
                    bound.push(Self { address, socket, protection, authentication });
                }
                // A host without IPv6 has no such addresses.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                }
                Err(error) => {
                    let what = format!("Unable to bind to port {port} of {}", address.ip());
                    return Err(Error::io(what, error).from_origin(Origin::RPC));
                }
            }
        }
        Ok(bound)
    }

    /// Takes a socket that a service manager has bound.
    pub fn adopt(socket: OwnedFd, conditions: Conditions) -> Result<Self> {
        let adopted = (|| {
            let socket = std::net::TcpListener::from(socket);
            socket.set_nonblocking(true)?;
            let Conditions { protection, authentication, .. } = conditions;
            let address = socket.local_addr()?;
            Ok(Self { address, socket: TcpListener::from_std(socket)?, protection, authentication })
        })();
        adopted.map_err(|error| Error::io("cannot use a socket of the service manager", error))
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes in clients for as long as it is polled.
    pub async fn accept_all(&self, server: Arc<Server>) {
        loop {
            match self.socket.accept().await {
                Ok((socket, from)) => {
                    let protection = self.protection.clone();
                    // Who takes his time over the handshake is nobody known either.
                    let pending = match protection {
                        Protection::None => &self.authentication,
                        Protection::Tls(_) => &Authentication::Certificate,
                    };
                    let Ok(turn) = server.line_up(Newcomer::remote(from.ip()), pending) else { continue };
                    let (server, authentication) = (Arc::clone(&server), self.authentication.clone());
                    // A client that takes its time over the handshake holds up nobody else's.
                    tokio::spawn(async move {
                        if let Some(place) = turn.place().await {
                            take_in(&server, socket, from, (protection, authentication), place).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(address = %self.address, %error, "cannot accept a client");
                    let mut count = server.client_count();
                    let _ = tokio::time::timeout(EXHAUSTED_WAIT, count.changed()).await;
                }
            }
        }
    }
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // IPv4 has a socket of its own.
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

async fn take_in(
    server: &Arc<Server>,
    socket: TcpStream,
    from: SocketAddr,
    (protection, authentication): (Protection, Authentication),
    place: Place,
) {
    // Small answers leave at once; a peer that is gone without a word is noticed in the end.
    let prepared = socket
        .set_nodelay(true)
        .and_then(|()| Ok(rustix::net::sockopt::set_socket_keepalive(&socket, true)?));
    if let Err(error) = prepared {
        tracing::warn!(%from, %error, "cannot set up a connection");
        return;
    }
    match protection {
        Protection::None => {
            let peer = Peer::Tcp { address: from };
            server.serve(StreamTransport::new(socket), peer, Rights::ReadWrite, authentication, place);
        }
        Protection::Tls(tls) => match tls.welcome(socket).await {
            Ok((stream, name)) => {
                tracing::info!(%from, name = name.as_deref().unwrap_or("none"), "TLS client");
                let key_bits = tls::key_bits(&stream);
                let peer = Peer::Tls { address: from, name: name.map(Into::into), key_bits };
                let transport = StreamTransport::new(stream);
                server.serve(transport, peer, Rights::ReadWrite, authentication, place);
            }
            Err(error) => tracing::warn!(%from, %error, "a client was not let in"),
        },
    }
}
