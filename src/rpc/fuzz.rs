//! A daemon without sockets that fuzzers talk to, so that ordinary tests do it too; and the access policy's reader.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ferrovirt_protocol::frame::{self, Frame, FrameType, Header, MAX_FRAME, Status};
use ferrovirt_protocol::net::Error;
use ferrovirt_protocol::procedure::{Entry, Procedure, Program, Traffic};
use ferrovirt_protocol::remote::procedure::ConnectOpen;
use ferrovirt_protocol::remote::{ConnectOpenArgs, Domain, DomainSnapshot, Secret, StoragePool, StorageVol};
use ferrovirt_protocol::xdr::{self, Encode, Encoder};
use ferrovirt_protocol::{qemu, remote};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::access;
use super::access::policy::{Policy, PolicyError};
use super::auth::Authentication;
use super::keepalive::Patience;
use super::places::Newcomer;
use super::routes;
use super::server::{Limits, Server, Workers};
use super::session::{Peer, Rights};
use super::transport::UnixTransport;
use crate::config::qemu::QemuConfig;
use crate::drivers::Drivers;
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

/// Nobody is asked anything here that takes long.
const LIMIT: Duration = Duration::from_secs(8);
const GUEST: [u8; 16] = [0x6b; 16];
const POOL: [u8; 16] = [0x70; 16];
const SECRET: [u8; 16] = [0x73; 16];

/// Reads the rules of the access policy.
pub fn policy(text: &str) -> Result<(), PolicyError> {
    Policy::read(Path::new("policy.toml"), text).map(drop)
}

/// A daemon in this process, with one of each kind of object.
#[derive(Debug)]
pub struct World {
    runtime: Runtime,
    server: Arc<Server>,
    drivers: Arc<Drivers>,
    pool: String,
}

impl World {
    /// `root` is an empty directory for its files.
    pub fn new(root: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let paths = Paths::system(root);
        let qemu = QemuConfig::default();
        let drivers = Arc::new(Drivers::new(paths, "/nowhere".into(), &qemu, &Default::default(), None)?);
        let limits = Limits {
            clients: 100,
            anonymous_clients: None,
            queued_clients: 100,
            requests_per_client: 5,
            keepalive: Patience { interval: None, count: 0 },
            workers: Workers { min: 5, max: 20, priority: 5 },
        };
        let server = Server::new("fuzz", routes::hypervisor()?, Arc::clone(&drivers), limits);
        let pool = root.join("pool");
        std::fs::create_dir_all(&pool)?;
        let pool = format!(
            "<pool type='dir'><name>pool</name><uuid>{}</uuid><target><path>{}</path></target></pool>",
            Uuid(POOL),
            pool.display()
        );
        drop(inside);
        let world = Self { runtime, server, drivers, pool };
        world.runtime.block_on(world.furnish());
        Ok(world)
    }

    /// Has one of each kind there, whatever was called before.
    async fn furnish(&self) {
        let guest = format!(
            "<domain type='qemu'><name>guest</name><uuid>{}</uuid><memory>1024</memory><os><type>hvm</type></os>\
             <devices><emulator>/nowhere/qemu</emulator></devices></domain>",
            Uuid(GUEST)
        );
        let secret = format!(
            "<secret><uuid>{}</uuid><usage type='volume'><volume>/v</volume></usage></secret>",
            Uuid(SECRET)
        );
        // Where a call has made another one under the same name, that one serves as well.
        let _ = self.drivers.domains.define(&guest, 0).await;
        let _ = self.drivers.storage.define(&self.pool, 0).await;
        let _ = self.drivers.secrets.define(&secret, 0).await;
    }

    /// What a client sends that speaks in bytes.
    pub fn bytes(&self, input: &[u8]) {
        self.runtime.block_on(async {
            let Some(mut stream) = self.connect().await else { return };
            let exchange = async {
                // A daemon that has heard enough closes.
                let _ = stream.write_all(input).await;
                let _ = stream.shutdown().await;
                while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {}
            };
            let done = tokio::time::timeout(LIMIT, exchange).await;
            assert!(done.is_ok(), "the connection is neither answered nor closed");
        });
    }

    /// Makes the call that the first two bytes pick, about the object that they pick, with the rest as arguments.
    pub fn call(&self, input: &[u8]) {
        let Some((pick, rest)) = input.split_first_chunk::<2>() else { return };
        let pick = u16::from_be_bytes(*pick);
        let calls: Vec<_> = calls().collect();
        let Some((program, entry)) = calls.get(usize::from(pick & 0x0fff) % calls.len().max(1)) else {
            return;
        };
        let mut payload = object(pick >> 12);
        payload.extend_from_slice(rest);
        self.runtime.block_on(async {
            let Some(mut stream) = self.connect().await else { return };
            let open = ConnectOpenArgs::default();
            let mut wire = BytesMut::new();
            let put = frame::put(&mut wire, &header(remote::PROGRAM, ConnectOpen::NUMBER, 1), &open)
                .and_then(|()| frame::put_bytes(&mut wire, &header(*program, entry.number, 2), &payload));
            if put.is_err() {
                return;
            }
            let exchange = async {
                let _ = stream.write_all(&wire).await;
                answer(&mut stream, 2).await
            };
            match tokio::time::timeout(LIMIT, exchange).await {
                Ok(Some(reply)) => {
                    if reply.header.status == Status::ERROR {
                        let error: Option<Error> = xdr::decode(&reply.payload).ok();
                        let says = error.as_ref().map_or("nothing that can be read", Error::text);
                        assert!(
                            error.is_some() && !says.contains("mistake in the daemon"),
                            "{}: {says}",
                            entry.name
                        );
                    } else if !access::is_reading(entry) {
                        self.furnish().await;
                    }
                }
                Ok(None) => {}
                Err(_) => unreachable!("{} is not answered", entry.name),
            }
        });
    }

    /// A client's end of a new connection.
    async fn connect(&self) -> Option<UnixStream> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        let asked = Authentication::None;
        let place = self.server.line_up(Newcomer::Root, &asked).ok()?.place().await?;
        self.server.serve(UnixTransport::new(ours), Peer::Unix(None), Rights::ReadWrite, asked, place);
        Some(theirs)
    }
}

/// The reply with this serial; none if the daemon closes.
async fn answer(stream: &mut UnixStream, serial: u32) -> Option<Frame> {
    let mut input = BytesMut::new();
    loop {
        while let Some(frame) = frame::cut(&mut input, MAX_FRAME).ok()? {
            if frame.header.serial == serial && frame.header.kind == FrameType::REPLY {
                return Some(frame);
            }
        }
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
}

fn header(program: Program, procedure: i32, serial: u32) -> Header {
    let Program { number, version, .. } = program;
    Header { program: number, version, procedure, kind: FrameType::CALL, serial, status: Status::OK }
}

/// An argument that names something which is there; nothing for a number without meaning.
fn object(number: u16) -> BytesMut {
    let domain = || Domain { name: "guest".to_owned(), uuid: GUEST, id: -1 };
    let mut wire = BytesMut::new();
    let mut put = |value: &dyn Encode| value.encode(&mut Encoder::new(&mut wire, MAX_FRAME));
    // Names this short are within every limit.
    let _ = match number {
        1 => put(&domain()),
        2 => put(&StoragePool { name: "pool".to_owned(), uuid: POOL }),
        3 => put(&StorageVol { pool: "pool".to_owned(), name: "v".to_owned(), key: "/v".to_owned() }),
        4 => put(&Secret { uuid: SECRET, usage_type: 1, usage_id: "/v".to_owned() }),
        5 => put(&DomainSnapshot { name: "s".to_owned(), dom: domain() }),
        _ => Ok(()),
    };
    wire
}

/// The calls that change nothing but the daemon's own files, whatever they are about.
fn calls() -> impl Iterator<Item = (Program, &'static Entry)> {
    /// They start programs, make files of any size, or say goodbye.
    const LEFT_OUT: [&str; 9] = [
        "auth_",
        "connect_close",
        "connect_open",
        "connect_find_storage_pool_sources",
        "domain_attach",
        "domain_create",
        "domain_migrate",
        "domain_restore",
        "node_",
    ];
    let remote = remote::ENTRIES.iter().map(|entry| (remote::PROGRAM, entry));
    let all = remote.chain(qemu::ENTRIES.iter().map(|entry| (qemu::PROGRAM, entry)));
    all.filter(|(_, entry)| !entry.is_event && entry.traffic != Traffic::WithFds).filter(|(_, entry)| {
        let left_out = LEFT_OUT.iter().any(|start| entry.name.starts_with(start));
        let makes = entry.name.starts_with("storage_") && entry.name != "storage_pool_define_xml";
        access::is_reading(entry) && !entry.name.starts_with("auth_") || !(left_out || makes)
    })
}
