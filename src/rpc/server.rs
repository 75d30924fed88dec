//! All clients of one server: their limits, their list, their end.
//!
//! A daemon has two: the one for hypervisors and the one for its own administration.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ferrovirt_protocol::frame::Frame;
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::Access;
use super::access::events::Gate;
use super::auth::{Authentication, SILENCE};
use super::connection::{self, End};
use super::keepalive::Patience;
use super::outbox::Ending;
use super::places::{Crowded, Newcomer, Place, Places, Refusals, Sizes, Standing, Turn};
use super::router::{Router, Running};
use super::session::{Client, Peer, Rights};
use super::tls::Tls;
use super::transport::Transport;
use crate::drivers::{ClientId, Drivers};

/// What clients may take. How many there may be is changed while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub clients: usize,
    /// Clients that have not authenticated yet; `None` sets no limit of its own.
    pub anonymous_clients: Option<usize>,
    /// Clients that wait for a place.
    pub queued_clients: usize,
    /// Calls of one client that run at the same time.
    pub requests_per_client: usize,
    pub keepalive: Patience,
    pub workers: Workers,
}

/// The numbers of a pool of threads. Calls need none here; administrators ask for them and set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    pub min: u32,
    pub max: u32,
    pub priority: u32,
}

#[derive(Debug)]
pub struct Server {
    /// `libvirtd` or `admin`, as the administration names it.
    pub name: &'static str,
    router: Router,
    drivers: Arc<Drivers>,
    requests_per_client: AtomicUsize,
    keepalive: Mutex<Patience>,
    places: Arc<Places>,
    refusals: Mutex<Refusals>,
    workers: Mutex<Workers>,
    tls: OnceLock<Arc<Tls>>,
    access: OnceLock<Arc<Access>>,
    last_id: AtomicU64,
    clients: Mutex<BTreeMap<ClientId, Arc<Client>>>,
    count: watch::Sender<usize>,
    /// Calls that run as tasks of their own, those of clients that left included.
    calls: watch::Sender<usize>,
}

/// A call that the daemon waits for before it ends.
#[derive(Debug)]
pub(super) struct RunningCall(Arc<Server>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

/// Ready when a client has had its time to show who it is, and has not; or has not said anything to that end
/// for a while.
async fn stays_unknown(client: &Client) {
    if let Some(patience) = client.authentication.patience() {
        let end = Instant::now() + patience;
        while !client.is_authenticated() {
            let silent_until = client.login.silent_since().unwrap_or_else(Instant::now) + SILENCE;
            if Instant::now() >= end.min(silent_until) {
                return;
            }
            tokio::time::sleep_until(end.min(silent_until)).await;
        }
    }
    std::future::pending().await
}

impl Limits {
    fn sizes(&self) -> Sizes {
        Sizes { clients: self.clients, unknown: self.anonymous_clients, in_line: self.queued_clients }
    }
}

impl Server {
    pub fn new(name: &'static str, router: Router, drivers: Arc<Drivers>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            name,
            router,
            drivers,
            requests_per_client: AtomicUsize::new(limits.requests_per_client),
            keepalive: Mutex::new(limits.keepalive),
            places: Places::new(limits.sizes()),
            refusals: Mutex::default(),
            workers: Mutex::new(limits.workers),
            tls: OnceLock::new(),
            access: OnceLock::new(),
            last_id: AtomicU64::new(0),
            clients: Mutex::default(),
            count: watch::Sender::new(0),
            calls: watch::Sender::new(0),
        })
    }

    /// Calls of one client that run at the same time.
    pub fn requests_per_client(&self) -> usize {
        self.requests_per_client.load(Ordering::Relaxed)
    }

    /// How long new clients may be silent.
    pub fn keepalive(&self) -> Patience {
        *self.keepalive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected stays, even beyond a lower limit, and keeps the patience that it began with.
    pub fn set_limits(&self, limits: &Limits) {
        self.places.set_sizes(limits.sizes());
        self.requests_per_client.store(limits.requests_per_client, Ordering::Relaxed);
        *self.keepalive.lock().unwrap_or_else(PoisonError::into_inner) = limits.keepalive;
        self.set_workers(limits.workers);
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The number of connected clients, now and whenever it changes.
    pub fn client_count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The connected clients, oldest first.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.lock_clients().values().map(Arc::clone).collect()
    }

    /// The client with this number.
    pub fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.lock_clients().get(&ClientId(id)).map(Arc::clone)
    }

    /// How many clients there may be, and how many of them unauthenticated (0: as many as that).
    pub fn client_limits(&self) -> (usize, usize) {
        let Sizes { clients, unknown, .. } = self.places.sizes();
        (clients, unknown.unwrap_or(0))
    }

    /// Who is connected stays, even beyond a lower limit.
    pub fn set_client_limits(&self, clients: usize, anonymous: usize) {
        let unknown = Some(anonymous).filter(|&places| places > 0);
        self.places.set_sizes(Sizes { clients, unknown, ..self.places.sizes() });
    }

    /// The clients that have not authenticated yet.
    pub fn anonymous_count(&self) -> usize {
        self.lock_clients().values().filter(|client| !client.is_authenticated()).count()
    }

    /// Calls that run as tasks of their own.
    pub fn running_calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// What its TLS clients are let in by, if it has a socket for them.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.get()
    }

    /// Said once, before any client comes.
    pub fn set_tls(&self, tls: Arc<Tls>) {
        // A second one would be a mistake of the one caller, and changes nothing.
        let _ = self.tls.set(tls);
    }

    /// Who decides what its clients may do; without one, everything.
    pub fn access(&self) -> Option<&Arc<Access>> {
        self.access.get()
    }

    /// Said once, before any client comes.
    pub fn set_access(&self, access: Arc<Access>) {
        // A second one would be a mistake of the one caller, and changes nothing.
        let _ = self.access.set(access);
    }

    pub fn workers(&self) -> Workers {
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_workers(&self, workers: Workers) {
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) = workers;
    }

    /// A place for somebody, or one in line. The few places for clients that still have to show who they are
    /// are not for the others.
    pub fn line_up(&self, newcomer: Newcomer, asked: &Authentication) -> Result<Turn, Crowded> {
        let standing = if asked.is_pending() { Standing::Unknown } else { Standing::Known };
        self.places.line_up(newcomer, standing).inspect_err(|crowded| self.report(crowded))
    }

    fn report(&self, crowded: &Crowded) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let told = refusals.count(std::time::Instant::now());
        drop(refusals);
        if let Some(others) = told {
            tracing::warn!(server = self.name, %crowded, others, "a client is not let in");
        }
    }

    /// Serves a client in a task of its own.
    pub fn serve(
        self: &Arc<Self>,
        transport: impl Transport,
        peer: Peer,
        rights: Rights,
        authentication: Authentication,
        place: Place,
    ) {
        let id = ClientId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let client = Arc::new(Client::new(id, peer, rights, authentication));
        if let Some(access) = self.access() {
            let gate = Gate::new(Arc::clone(access), Arc::clone(&self.drivers), &client);
            client.subscriptions.guard(gate);
        }
        let Place { client: room, unknown } = place;
        unknown.into_iter().for_each(|place| client.hold_anonymous_place(place));
        let server = Arc::clone(self);
        self.insert(Arc::clone(&client));
        tokio::spawn(async move {
            let serving = connection::serve(Arc::clone(&server), Arc::clone(&client), transport);
            let end = tokio::select! {
                end = serving => end,
                () = stays_unknown(&client) => End::Unknown,
            };
            match end {
                End::Client | End::Daemon => tracing::debug!(client = id.0, %end, "connection closed"),
                _ => tracing::warn!(client = id.0, peer = ?client.peer, %end, "connection cut off"),
            }
            server.remove(&client);
            drop(room);
        });
    }

    /// Stops all clients: no new calls, running ones finish, at most for `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.places.close();
        let end_all = |ending| self.clients().iter().for_each(|client| client.outbox.end(ending));
        let (mut count, mut calls) = (self.client_count(), self.calls.subscribe());
        end_all(Ending::Drain);
        let quiet = async {
            let _ = calls.wait_for(|&calls| calls == 0).await;
            let _ = count.wait_for(|&count| count == 0).await;
        };
        if tokio::time::timeout(patience, quiet).await.is_err() {
            let (clients, calls) = (*self.count.borrow(), *self.calls.borrow());
            tracing::warn!(server = self.name, clients, calls, "not waiting any longer");
            end_all(Ending::Now);
        }
    }

    /// Counts a call that goes on as a task of its own.
    pub(super) fn call_began(self: &Arc<Self>) -> RunningCall {
        self.calls.send_modify(|calls| *calls += 1);
        RunningCall(Arc::clone(self))
    }

    pub(super) fn start(&self, client: &Arc<Client>, frame: Frame, fds: Vec<OwnedFd>) -> Option<Running> {
        self.router.start(&self.drivers, client, self.access(), (frame, fds))
    }

    fn insert(&self, client: Arc<Client>) {
        let mut clients = self.lock_clients();
        clients.insert(client.id, client);
        self.count.send_replace(clients.len());
    }

    /// Takes back everything the client held.
    fn remove(&self, client: &Arc<Client>) {
        client.outbox.end(Ending::Now);
        client.streams.close();
        client.subscriptions.end_all(&self.drivers);
        // Clients of the administration number from 1 as well, and own no guests.
        if client.is_open() {
            self.drivers.domains.client_closed(client.id);
        }
        let mut clients = self.lock_clients();
        clients.remove(&client.id);
        self.count.send_replace(clients.len());
    }

    fn lock_clients(&self) -> MutexGuard<'_, BTreeMap<ClientId, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
