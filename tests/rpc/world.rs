//! A server with handlers that a test controls, and clients on socket pairs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ferrovirt::config::qemu::QemuConfig;
use ferrovirt::drivers::Drivers;
use ferrovirt::rpc::auth::Authentication;
use ferrovirt::rpc::handlers;
use ferrovirt::rpc::keepalive::Patience;
use ferrovirt::rpc::places::Newcomer;
use ferrovirt::rpc::router::{Router, Routes};
use ferrovirt::rpc::server::{Limits, Server, Workers};
use ferrovirt::rpc::session::{Peer, Rights};
use ferrovirt::rpc::transport::UnixTransport;
use ferrovirt::util::paths::Paths;
use ferrovirt_protocol::client::{CallError, Client, Events};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::procedure::ConnectOpen;
use ferrovirt_protocol::remote::{self, ConnectOpenArgs};
use ferrovirt_protocol::{net, qemu};
use tempfile::TempDir;
use tokio::net::UnixStream;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) const LIMITS: Limits = Limits {
    clients: 100,
    anonymous_clients: None,
    queued_clients: 100,
    requests_per_client: 5,
    keepalive: Patience { interval: Some(Duration::from_secs(5)), count: 2 },
    workers: Workers { min: 5, max: 20, priority: 5 },
};

pub(crate) struct World {
    pub(crate) server: Arc<Server>,
    pub(crate) drivers: Arc<Drivers>,
    _root: TempDir,
}

impl World {
    /// A server with the calls of connections and events, and what `routes` adds.
    pub(crate) fn new(routes: impl FnOnce(&mut Routes)) -> Self {
        let root = TempDir::new().unwrap();
        let paths = Paths::system(root.path());
        let qemu = QemuConfig::default();
        let drivers = Drivers::new(paths, "/nowhere".into(), &qemu, &Default::default(), None).unwrap();
        let drivers = Arc::new(drivers);
        let router = Router::builder()
            .program(remote::PROGRAM, remote::ENTRIES)
            .program(qemu::PROGRAM, qemu::ENTRIES)
            .routes(handlers::auth::routes)
            .routes(handlers::connect::routes)
            .routes(handlers::events::routes)
            .routes(routes)
            .build()
            .unwrap();
        let server = Server::new("test", router, Arc::clone(&drivers), LIMITS);
        Self { server, drivers, _root: root }
    }

    /// The client's end of a connection on which nothing has been said.
    pub(crate) async fn socket(&self, rights: Rights) -> UnixStream {
        self.socket_of(Peer::Unix(None), rights, Authentication::None).await
    }

    /// The same for a certain client that has to show who it is.
    pub(crate) async fn socket_of(&self, peer: Peer, rights: Rights, asked: Authentication) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let turn = self.server.line_up(Newcomer::Root, &asked).unwrap();
        let place = turn.place().await.unwrap();
        self.server.serve(UnixTransport::new(ours), peer, rights, asked, place);
        theirs
    }

    /// A client that has not opened its connection.
    pub(crate) async fn stranger(&self) -> (Client, Events) {
        Client::unix(self.socket(Rights::ReadWrite).await)
    }

    /// A client with an open connection.
    pub(crate) async fn client(&self) -> (Client, Events) {
        let (client, events) = self.stranger().await;
        open(&client, 0).await.unwrap();
        (client, events)
    }

    /// A client with an open connection of certain rights.
    pub(crate) async fn client_with(&self, rights: Rights, flags: u32) -> Client {
        let (client, _events) = Client::unix(self.socket(rights).await);
        open(&client, flags).await.unwrap();
        client
    }
}

pub(crate) async fn open(client: &Client, flags: u32) -> Result<(), CallError> {
    client.call::<ConnectOpen>(&ConnectOpenArgs { name: None, flags }).await
}

/// What `future` answers, which must not take long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

/// One call, which must not take long.
pub(crate) async fn call<P: Procedure>(client: &Client, args: P::Args) -> Result<P::Ret, CallError> {
    soon(client.call::<P>(&args)).await
}

/// The error a call was answered with.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> net::Error {
    result.unwrap_err().remote().expect("an answer").clone()
}

/// Code, domain and sentence of the error a call was answered with.
#[track_caller]
pub(crate) fn said<T: std::fmt::Debug>(result: Result<T, CallError>) -> (i32, i32, String) {
    let error = refusal(result);
    (error.code, error.domain, error.text().to_owned())
}

pub(crate) fn domain(name: &str) -> remote::Domain {
    remote::Domain { name: name.to_owned(), uuid: [7; 16], id: -1 }
}
