//! One client from accept to close: who it is, what it may do, what it holds open.
//!
//! ```text
//! accepted ──authenticated──▶ known ──OPEN──▶ open ──CLOSE, end of stream, daemon's end──▶ gone
//! ```
//!
//! Where no authentication is asked for, a client is known as soon as it is accepted.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::access::driver::Who;
use super::auth::identity::{Identity, PeerProcess};
use super::auth::{Authentication, Login};
use super::events::Subscriptions;
use super::outbox::{Ending, Outbox};
use super::places::Taken;
use super::stream::Streams;
use crate::drivers::ClientId;
use crate::error::{Error, Origin, Result};

/// Where a client comes from, and what is known of it through that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// `None`: the kernel does not say.
    Unix(Option<PeerProcess>),
    Tcp {
        address: SocketAddr,
    },
    Tls {
        address: SocketAddr,
        /// The distinguished name of its certificate, if it has one.
        name: Option<Box<str>>,
        /// How long the keys of the encryption are.
        key_bits: u32,
    },
}

impl Peer {
    /// Whether nobody on the way can listen.
    pub fn is_secure(&self) -> bool {
        !matches!(self, Self::Tcp { .. })
    }

    /// Whether descriptors can travel.
    pub fn takes_descriptors(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(_) => f.write_str("unix"),
            Self::Tcp { address } => write!(f, "TCP from {address}"),
            Self::Tls { address, .. } => write!(f, "TLS from {address}"),
        }
    }
}

/// Which rights the socket gives that a client came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    ReadWrite,
    ReadOnly,
}

/// A connected client.
pub struct Client {
    pub id: ClientId,
    pub peer: Peer,
    pub since: SystemTime,
    pub authentication: Authentication,
    pub login: Login,
    pub outbox: Arc<Outbox>,
    pub streams: Streams,
    pub subscriptions: Subscriptions,
    identity: ArcSwap<Identity>,
    authenticated: AtomicBool,
    read_only: AtomicBool,
    keepalive: AtomicBool,
    opened: Mutex<Option<String>>,
    is_open: AtomicBool,
    close_callback: AtomicBool,
    /// Whom access drivers judge, by the identity of the moment.
    who: ArcSwapOption<Who>,
    /// Held while the client is not authenticated yet: there are few such places.
    anonymous: Mutex<Option<Taken>>,
}

impl Client {
    pub fn new(id: ClientId, peer: Peer, rights: Rights, authentication: Authentication) -> Self {
        let outbox = Arc::new(Outbox::default());
        Self {
            id,
            identity: ArcSwap::from_pointee(Identity::of(&peer)),
            peer,
            since: SystemTime::now(),
            login: Login::default(),
            streams: Streams::new(Arc::clone(&outbox)),
            subscriptions: Subscriptions::new(Arc::clone(&outbox)),
            outbox,
            authenticated: AtomicBool::new(!authentication.is_pending()),
            authentication,
            read_only: AtomicBool::new(rights == Rights::ReadOnly),
            keepalive: AtomicBool::new(false),
            opened: Mutex::default(),
            is_open: AtomicBool::new(false),
            close_callback: AtomicBool::new(false),
            who: ArcSwapOption::empty(),
            anonymous: Mutex::default(),
        }
    }

    /// Who the client is, as far as it is known by now.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.load_full()
    }

    /// The same for access drivers.
    pub fn who(&self) -> Arc<Who> {
        let identity = self.identity();
        if let Some(who) = self.who.load_full().filter(|who| Arc::ptr_eq(&who.identity, &identity)) {
            return who;
        }
        let who = Arc::new(Who::new(identity));
        self.who.store(Some(Arc::clone(&who)));
        who
    }

    /// The client has shown more of itself, or speaks for another.
    pub fn set_identity(&self, identity: Identity) {
        self.identity.store(Arc::new(identity));
    }

    pub fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Keeps the place of an unauthenticated client taken until [`Client::authenticate`].
    pub fn hold_anonymous_place(&self, place: Taken) {
        if !self.is_authenticated() {
            *self.anonymous.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        }
    }

    /// The client has shown who it is.
    pub fn authenticate(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
        self.anonymous.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Opens the connection to the hypervisor; once only.
    pub fn open(&self, uri: String, rights: Rights) -> Result<()> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.is_some() {
            return Err(Error::internal_error("connection already open").from_origin(Origin::RPC));
        }
        *opened = Some(uri);
        if rights == Rights::ReadOnly {
            self.read_only.store(true, Ordering::Relaxed);
        }
        self.is_open.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The URI the connection was opened with.
    pub fn uri(&self) -> Option<String> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client asked whether keepalive is spoken: from now on its silence is noticed.
    pub fn start_keepalive(&self) {
        self.keepalive.store(true, Ordering::Relaxed);
        self.outbox.wake();
    }

    pub fn wants_keepalive(&self) -> bool {
        self.keepalive.load(Ordering::Relaxed)
    }

    /// Registers or unregisters the close callback; answers what was registered before.
    pub fn set_close_callback(&self, registered: bool) -> bool {
        self.close_callback.swap(registered, Ordering::Relaxed)
    }

    /// Ready once the connection is over, or about to be.
    pub async fn leaves(&self) {
        std::future::poll_fn(|context| self.outbox.poll_ending(context)).await;
    }

    /// Whether the connection is over. The client's end is announced to the drivers after this is true.
    pub fn is_gone(&self) -> bool {
        self.outbox.status().ending >= Some(Ending::Now)
    }

    /// Closes the connection at once, whatever is under way.
    pub fn disconnect(&self) {
        self.outbox.end(Ending::Now);
    }

    /// Closes the connection once its calls have been answered.
    pub fn close_after_calls(&self) {
        self.outbox.end(Ending::Drain);
    }

    /// Closes the connection once what was said has been sent.
    pub fn close_after_reply(&self) {
        self.outbox.end(Ending::Flush);
    }
}

/// For log lines: who it is, and where it came in.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right = if self.is_read_only() { " to read" } else { "" };
        write!(f, "client={} who=\"{}\" socket=\"{}{right}\"", self.id.0, self.identity(), self.peer)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}
