//! A catalogue of what clients get wrong, each tried on every call there is. Each answer is an error, and the
//! connection goes on or ends; nobody waits, and nothing is ignored.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use ferrovirt::daemon::Daemon;
use ferrovirt::rpc::access;
use ferrovirt::rpc::auth::{Authentication, SaslRules};
use ferrovirt::rpc::router::{Call, Streamed};
use ferrovirt::rpc::session::{Peer, Rights};
use ferrovirt::rpc::stream::Pipe;
use ferrovirt_protocol::frame::{self, Frame, FrameType, Header, Status};
use ferrovirt_protocol::procedure::{Entry, Procedure, Program, Traffic};
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use ferrovirt_protocol::{net, qemu, xdr};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::daemon::{connect, serve, setup};
use crate::world::{World, call, domain, open, said, soon};

/// A frame in bytes, whatever is in it.
fn raw(header: &Header, payload: &[u8]) -> Vec<u8> {
    let words = [
        u32::try_from(28 + payload.len()).unwrap(),
        header.program,
        header.version,
        header.procedure.cast_unsigned(),
        header.kind.0.cast_unsigned(),
        header.serial,
        header.status.0.cast_unsigned(),
    ];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
    bytes.extend(payload);
    bytes
}

fn header(program: Program, number: i32, kind: FrameType, serial: u32) -> Header {
    Header {
        program: program.number,
        version: program.version,
        procedure: number,
        kind,
        serial,
        status: Status::OK,
    }
}

/// A socket, and what came through it and was not looked at yet.
struct Line {
    socket: UnixStream,
    input: BytesMut,
}

impl Line {
    fn new(socket: UnixStream) -> Self {
        Self { socket, input: BytesMut::new() }
    }

    async fn to(root: &Path) -> Self {
        Self::through(UnixStream::connect(root.join("run/libvirt/libvirt-sock")).await.unwrap()).await
    }

    /// One with an open connection.
    async fn through(socket: UnixStream) -> Self {
        let mut line = Self::new(socket);
        let open = header(PROGRAM, <ConnectOpen as Procedure>::NUMBER, FrameType::CALL, 0);
        line.send(&raw(&open, &[0; 8])).await;
        assert_eq!(line.next().await.unwrap().header.status, Status::OK);
        line
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A daemon that has closed takes nothing more; what it said before counts.
        let _ = soon(self.socket.write_all(bytes)).await;
    }

    /// `None`: the daemon has closed.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::cut(&mut self.input, frame::MAX_FRAME).unwrap() {
                return Some(frame);
            }
            match soon(self.socket.read_buf(&mut self.input)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }
}

/// Every call of both programs, and whether a read-only client may make it.
fn calls() -> impl Iterator<Item = (Program, &'static Entry)> {
    let remote = ENTRIES.iter().map(|entry| (PROGRAM, entry));
    let all = remote.chain(qemu::ENTRIES.iter().map(|entry| (qemu::PROGRAM, entry)));
    // What a daemon does to the host itself is not tried with chance arguments.
    all.filter(|(_, entry)| !entry.is_event && !entry.name.starts_with("auth_"))
        .filter(|(_, entry)| !entry.name.starts_with("node_") || access::is_reading(entry))
        .filter(|(_, entry)| !matches!(entry.name, "connect_open" | "connect_close"))
}

#[tokio::test]
async fn arguments_that_cannot_be_are_refused_by_every_call() {
    let root = TempDir::new().unwrap();
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), "")).await.unwrap());
    let mut line = Line::to(root.path()).await;
    let mut serial = 1;
    let lengths = [u32::MAX, 1 << 31, i32::MAX.cast_unsigned(), 0x0400_0001];
    for (program, entry) in calls().filter(|(_, entry)| entry.traffic != Traffic::WithFds) {
        // Lengths that are negative or over any limit, where the first argument has one; too many bytes, where not.
        for length in lengths {
            let mut payload = length.to_be_bytes().to_vec();
            payload.resize(4096 + 3, 0xff);
            serial += 1;
            line.send(&raw(&header(program, entry.number, FrameType::CALL, serial), &payload)).await;
            let reply = line.next().await.unwrap_or_else(|| panic!("{}: closed", entry.name));
            assert_eq!((reply.header.serial, reply.header.status), (serial, Status::ERROR), "{}", entry.name);
            let error: net::Error = xdr::decode(&reply.payload).unwrap();
            assert!(!error.text().contains("mistake in the daemon"), "{}: {}", entry.name, error.text());
        }
    }
    // And texts that are none.
    for name in [&b"a\0b\0"[..], b"\xff\xfe\xfd\xfc", b"\xc3(ab", b"\xed\xa0\x80a"] {
        let mut payload = 4u32.to_be_bytes().to_vec();
        payload.extend(name);
        serial += 1;
        let number = <DomainLookupByName as Procedure>::NUMBER;
        line.send(&raw(&header(PROGRAM, number, FrameType::CALL, serial), &payload)).await;
        assert_eq!(line.next().await.unwrap().header.status, Status::ERROR, "{name:?}");
    }
    soon(open(&connect(root.path(), "libvirt-sock").await, 0)).await.unwrap();
}

#[tokio::test]
async fn a_header_with_anything_wrong_is_answered_or_ends_the_connection() {
    let root = TempDir::new().unwrap();
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), "")).await.unwrap());
    let right = header(PROGRAM, 157, FrameType::CALL, 7);
    let kinds =
        [FrameType::REPLY, FrameType::MESSAGE, FrameType::REPLY_WITH_FDS, FrameType(-1), FrameType(99)];
    let mut wrong: Vec<Header> = kinds.into_iter().map(|kind| Header { kind, ..right }).collect();
    for program in [0, u32::MAX, PROGRAM.number + 1] {
        wrong.push(Header { program, ..right });
    }
    wrong.extend([0, 2, u32::MAX].map(|version| Header { version, ..right }));
    wrong.extend([0, -1, i32::MIN, i32::MAX, 100_000].map(|procedure| Header { procedure, ..right }));
    wrong.extend(
        [Status::ERROR, Status::CONTINUE, Status(-1), Status(77)].map(|status| Header { status, ..right }),
    );
    // An event's number is no call's.
    let event = ENTRIES.iter().find(|entry| entry.is_event).unwrap();
    wrong.push(Header { procedure: event.number, ..right });
    for header in wrong {
        let mut line = Line::to(root.path()).await;
        line.send(&raw(&header, &[])).await;
        match line.next().await {
            None => {}
            Some(reply) => {
                assert_eq!((reply.header.serial, reply.header.status), (7, Status::ERROR), "{header:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_connection_is_opened_once_and_closed_once() {
    let world = World::new(|_| {});
    let (client, _events) = world.stranger().await;
    assert_eq!(
        said(call::<ConnectGetType>(&client, ()).await).2,
        "internal error: hypervisor connection not open"
    );
    open(&client, 0).await.unwrap();
    assert_eq!(said(open(&client, 0).await).2, "internal error: connection already open");
    call::<ConnectGetType>(&client, ()).await.unwrap();
    call::<ConnectClose>(&client, ()).await.unwrap();
    // Whatever comes after it: an error or the end, and no second close of anything.
    let _ = soon(client.call::<ConnectClose>(&())).await;
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
}

#[tokio::test]
async fn registrations_are_bounded_and_end_with_their_client() {
    let world = World::new(|_| {});
    let client = world.client_with(Rights::ReadWrite, 0).await;
    let mut accepted = 0u32;
    let refused = loop {
        let mut uuid = [0; 16];
        uuid[..4].copy_from_slice(&accepted.to_be_bytes());
        let dom = Some(Domain { name: String::new(), uuid, id: -1 });
        let args = ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom };
        match call::<ConnectDomainEventCallbackRegisterAny>(&client, args).await {
            Ok(_) => accepted += 1,
            Err(error) => break said::<()>(Err(error)),
        }
        assert!(accepted < 10_000, "no bound");
    };
    assert_eq!(refused.2, "internal error: too many event callbacks");
    client.close();
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
    // The next one finds the bus as it was.
    let client = world.client_with(Rights::ReadWrite, 0).await;
    call::<ConnectDomainEventRegister>(&client, ()).await.unwrap();
}

#[tokio::test]
async fn descriptors_that_are_announced_and_never_come_hold_up_nobody() {
    let world = World::new(|_| {});
    let (witness, _events) = world.client().await;
    for (announced, closes) in [(1u32, false), (32, false), (u32::MAX, true), (100, true)] {
        let mut line = Line::new(world.socket(Rights::ReadWrite).await);
        let header = header(PROGRAM, 66, FrameType::CALL_WITH_FDS, 1);
        line.send(&raw(&header, &announced.to_be_bytes())).await;
        if closes {
            assert!(line.next().await.is_none(), "{announced}");
        }
        call::<ConnectGetType>(&witness, ()).await.unwrap();
    }
    witness.close();
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
}

#[tokio::test]
async fn a_frame_of_no_stream_is_answered_and_a_late_one_is_not() {
    let world = World::new(|r| {
        r.on_stream::<StorageVolUpload>(|_: Call, _| async {
            Ok(Streamed { ret: (), pipe: Pipe::up(tokio::io::sink()) })
        });
    });
    let mut line = Line::through(world.socket(Rights::ReadWrite).await).await;
    let number = <StorageVolUpload as Procedure>::NUMBER;
    let frame = |kind, status, serial| Header { status, ..header(PROGRAM, number, kind, serial) };
    for kind in [FrameType::STREAM, FrameType::STREAM_HOLE] {
        for status in [Status::CONTINUE, Status::OK, Status::ERROR, Status(77)] {
            line.send(&raw(&frame(kind, status, 99), b"data")).await;
            let answer = line.next().await.unwrap();
            assert_eq!(answer.header, frame(FrameType::STREAM, Status::ERROR, 99));
            let error: net::Error = xdr::decode(&answer.payload).unwrap();
            assert_eq!((error.code, error.text()), (39, "no stream with serial 99"));
        }
    }
    // What was on its way when its stream ended says nothing to anybody.
    let mut call = BytesMut::new();
    frame::put(&mut call, &frame(FrameType::CALL, Status::OK, 5), &StorageVolUploadArgs::default()).unwrap();
    line.send(&call).await;
    assert_eq!(line.next().await.unwrap().header, frame(FrameType::REPLY, Status::OK, 5));
    line.send(&raw(&frame(FrameType::STREAM, Status::ERROR, 5), &[])).await;
    assert_eq!(line.next().await.unwrap().header, frame(FrameType::STREAM, Status::OK, 5));
    for status in [Status::CONTINUE, Status::CONTINUE, Status::OK, Status::ERROR] {
        line.send(&raw(&frame(FrameType::STREAM, status, 5), &[])).await;
    }
    line.send(&raw(&header(PROGRAM, 66, FrameType::CALL, 6), &[])).await;
    assert_eq!(line.next().await.unwrap().header.serial, 6);
}

#[tokio::test]
async fn a_list_over_the_protocols_maximum_is_an_error_and_not_cut_short() {
    const MOST: u32 = 16_384;
    let world = World::new(|r| {
        r.on::<ConnectListAllDomains>(|_: Call, args: ConnectListAllDomainsArgs| async move {
            let domains = vec![domain("x"); usize::try_from(args.flags).unwrap()];
            Ok(ConnectListAllDomainsRet { domains, ret: args.flags })
        });
    });
    let (client, _events) = world.client().await;
    let list =
        |flags| call::<ConnectListAllDomains>(&client, ConnectListAllDomainsArgs { need_results: 1, flags });
    assert_eq!(list(MOST).await.unwrap().domains.len(), MOST as usize);
    let (code, origin, sentence) = said(list(MOST + 1).await);
    assert_eq!((code, origin), (39, 7));
    assert!(sentence.starts_with("Unable to encode message payload"), "{sentence}");
    call::<ConnectGetType>(&client, ()).await.unwrap();
}

#[tokio::test]
async fn who_may_not_call_is_refused_before_anything_is_looked_at() {
    let root = TempDir::new().unwrap();
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), "")).await.unwrap());
    let socket = UnixStream::connect(root.path().join("run/libvirt/libvirt-sock-ro")).await.unwrap();
    let mut reader = Line::through(socket).await;
    let world = World::new(|_| {});
    let asked = Authentication::Sasl(Arc::new(SaslRules::new(None, 56)));
    let mut stranger = Line::new(world.socket_of(Peer::Unix(None), Rights::ReadWrite, asked).await);
    for (program, entry) in calls().filter(|(_, entry)| entry.traffic != Traffic::WithFds) {
        let nonsense = raw(&header(program, entry.number, FrameType::CALL, 7), &[0xff; 64]);
        let may_read = access::is_reading(entry);
        for (line, code, may) in [(&mut reader, 29, may_read), (&mut stranger, 39, false)] {
            if may {
                continue;
            }
            line.send(&nonsense).await;
            let answer = line.next().await.unwrap_or_else(|| panic!("{}: closed", entry.name));
            let error: net::Error = xdr::decode(&answer.payload).unwrap();
            assert_eq!((answer.header.serial, error.code), (7, code), "{}: {}", entry.name, error.text());
            assert!(!error.text().contains("decode"), "{}: {}", entry.name, error.text());
        }
    }
}
