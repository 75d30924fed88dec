//! Clients that misbehave: they are cut off or throttled, everybody else goes on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use bytes::BytesMut;
use ferrovirt::drivers::domain::event::{DomainEvent, DomainRef};
use ferrovirt::drivers::event_bus::Event;
use ferrovirt::rpc::router::Call;
use ferrovirt::rpc::session::Rights;
use ferrovirt::util::fds;
use ferrovirt::util::uuid::Uuid;
use ferrovirt_protocol::frame::{self, FrameType, Header, Status};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use ferrovirt_protocol::xdr::Encode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::world::{World, domain, soon};

fn header<P: Procedure>(kind: FrameType, serial: u32) -> Header {
    let program = P::PROGRAM;
    Header {
        program: program.number,
        version: program.version,
        procedure: P::NUMBER,
        kind,
        serial,
        status: Status::OK,
    }
}

fn call<P: Procedure>(serial: u32, args: &P::Args) -> BytesMut {
    framed(&header::<P>(FrameType::CALL, serial), args)
}

fn framed(header: &Header, payload: &impl Encode) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::put(&mut bytes, header, payload).unwrap();
    bytes
}

/// Reads until the daemon closes; answers what it said.
async fn until_closed(socket: &mut UnixStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset says the same as an end: bytes of ours were left unread.
    let _ = soon(socket.read_to_end(&mut said)).await;
    said
}

async fn next_frame(socket: &mut UnixStream, input: &mut BytesMut) -> frame::Frame {
    loop {
        if let Some(frame) = frame::cut(input, frame::MAX_FRAME).unwrap() {
            return frame;
        }
        assert_ne!(soon(socket.read_buf(input)).await.unwrap(), 0, "closed");
    }
}

#[tokio::test]
async fn malformed_frames_end_the_connection_and_no_other() {
    let world = World::new(|_| {});
    let (bystander, _events) = world.client().await;
    let reply = framed(&header::<AuthList>(FrameType::REPLY, 0), &());
    let event = framed(&header::<AuthList>(FrameType::MESSAGE, 0), &());
    let nonsense = framed(&header::<AuthList>(FrameType(77), 0), &());
    let too_many_fds = framed(&header::<DomainFdAssociate>(FrameType::CALL_WITH_FDS, 0), &33u32);
    let no_fd_count = framed(&header::<DomainFdAssociate>(FrameType::CALL_WITH_FDS, 0), &());
    for (what, bytes) in [
        ("a length of 4 GiB", &[0xff; 64][..]),
        ("a length under the header's", &[0, 0, 0, 3, 0, 0, 0, 0]),
        ("a length over the limit", &[2, 0, 0, 5, 0, 0, 0, 0]),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a reply", &reply),
        ("an event", &event),
        ("an unknown frame type", &nonsense),
        ("33 descriptors", &too_many_fds),
        ("no descriptor count", &no_fd_count),
    ] {
        let mut socket = world.socket(Rights::ReadWrite).await;
        soon(socket.write_all(bytes)).await.unwrap();
        assert_eq!(until_closed(&mut socket).await, b"", "{what}");
    }
    soon(bystander.call::<ConnectGetType>(&())).await.unwrap();
    soon(world.server.client_count().wait_for(|&clients| clients == 1)).await.unwrap();
}

#[tokio::test]
async fn half_a_frame_waits_for_the_other_half() {
    let world = World::new(|_| {});
    let mut socket = world.socket(Rights::ReadWrite).await;
    let bytes = call::<AuthList>(9, &());
    for byte in &bytes[..] {
        soon(socket.write_all(&[*byte])).await.unwrap();
    }
    let reply = next_frame(&mut socket, &mut BytesMut::new()).await;
    assert_eq!((reply.header.serial, reply.header.status), (9, Status::OK));
    // And a client that leaves in the middle of one is gone.
    soon(socket.write_all(&bytes[..10])).await.unwrap();
    drop(socket);
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
}

#[tokio::test]
async fn a_call_with_a_status_is_refused() {
    let world = World::new(|_| {});
    let mut socket = world.socket(Rights::ReadWrite).await;
    let header = Header { status: Status::ERROR, ..header::<AuthList>(FrameType::CALL, 3) };
    soon(socket.write_all(&framed(&header, &()))).await.unwrap();
    let reply = next_frame(&mut socket, &mut BytesMut::new()).await;
    let error: ferrovirt_protocol::net::Error = ferrovirt_protocol::xdr::decode(&reply.payload).unwrap();
    assert_eq!((reply.header.serial, error.code, error.text()), (3, 39, "Unexpected message status 1"));
}

#[tokio::test]
async fn ten_thousand_calls_without_reading_are_throttled_and_all_answered() {
    const CALLS: u32 = 10_000;
    const REPLY: usize = 8192;
    let world = World::new(|r| {
        r.on::<DomainGetOsType>(|_: Call, _| async { Ok(DomainGetOsTypeRet { r#type: "x".repeat(REPLY) }) });
    });
    let (bystander, _events) = world.client().await;
    let mut greedy = world.socket(Rights::ReadWrite).await;
    let mut input = BytesMut::new();
    soon(greedy.write_all(&call::<ConnectOpen>(0, &ConnectOpenArgs::default()))).await.unwrap();
    next_frame(&mut greedy, &mut input).await;

    let (mut reader, mut writer) = greedy.into_split();
    let writing = tokio::spawn(async move {
        let args = DomainGetOsTypeArgs { dom: domain("x") };
        for serial in 0..CALLS {
            writer.write_all(&call::<DomainGetOsType>(serial, &args)).await.unwrap();
        }
        writer
    });
    // Its outbox fills up, and then no further.
    let client = world.server.clients().pop().unwrap();
    let full = async {
        while client.outbox.unsent() < 200 * 1024 {
            soon(bystander.call::<ConnectGetType>(&())).await.unwrap();
        }
    };
    soon(full).await;
    for _ in 0..200 {
        soon(bystander.call::<ConnectGetType>(&())).await.unwrap();
        assert!(client.outbox.unsent() < 400 * 1024, "{} bytes", client.outbox.unsent());
    }
    for serial in 0..CALLS {
        let reply = loop {
            match frame::cut(&mut input, frame::MAX_FRAME).unwrap() {
                Some(frame) => break frame,
                None => assert_ne!(soon(reader.read_buf(&mut input)).await.unwrap(), 0),
            }
        };
        assert_eq!((reply.header.serial, reply.header.status), (serial, Status::OK));
    }
    soon(writing).await.unwrap();
}

#[tokio::test]
async fn descriptors_nobody_asked_for_do_not_pile_up() {
    let world = World::new(|_| {});
    let socket = world.socket(Rights::ReadWrite).await;
    let byte = call::<AuthList>(0, &());
    let descriptors: Vec<BorrowedFd<'_>> = vec![socket.as_fd(); 30];
    let flood = async { while fds::send_with(&socket, &byte, &descriptors).await.is_ok() {} };
    soon(flood).await;
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_its_events_is_cut_off() {
    let world = World::new(|_| {});
    let mut deaf = world.socket(Rights::ReadWrite).await;
    let mut input = BytesMut::new();
    soon(deaf.write_all(&call::<ConnectOpen>(0, &ConnectOpenArgs::default()))).await.unwrap();
    next_frame(&mut deaf, &mut input).await;
    soon(deaf.write_all(&call::<ConnectDomainEventRegister>(1, &()))).await.unwrap();
    next_frame(&mut deaf, &mut input).await;

    let subject = DomainRef { uuid: Uuid([1; 16]), name: "x".repeat(1000).into(), id: 1 };
    let lifecycle = ferrovirt::drivers::domain::event::Lifecycle::Crashed(
        ferrovirt::drivers::domain::event::Crashed::Panicked,
    );
    let mut count = world.server.client_count();
    let flood = async {
        while *count.borrow_and_update() > 0 {
            let event = DomainEvent::Lifecycle(lifecycle);
            world.drivers.events.publish(Event::Domain { domain: subject.clone(), event });
            tokio::task::yield_now().await;
        }
    };
    soon(flood).await;
    drop(deaf);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asked_for_keepalive_and_falls_silent_is_dropped() {
    let world = World::new(|_| {});
    let mut socket = world.socket(Rights::ReadWrite).await;
    let mut input = BytesMut::new();
    let ask = ConnectSupportsFeatureArgs { feature: 10 };
    socket.write_all(&call::<ConnectSupportsFeature>(0, &ask)).await.unwrap();
    let mut said = Vec::new();
    let start = tokio::time::Instant::now();
    while let Ok(1..) = socket.read_buf(&mut input).await {
        while let Some(frame) = frame::cut(&mut input, 65536).unwrap() {
            said.push((frame.header.program, frame.header.procedure));
        }
    }
    let ping = (ferrovirt_protocol::keepalive::PROGRAM.number, 1);
    assert_eq!(said, [(PROGRAM.number, ConnectSupportsFeature::NUMBER), ping, ping]);
    assert_eq!(start.elapsed(), Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_did_not_ask_is_left_alone_and_its_pings_are_answered() {
    let world = World::new(|_| {});
    let (client, _events) = world.client().await;
    tokio::time::advance(Duration::from_secs(3600)).await;
    client.ping().await.unwrap();
    client.call::<ConnectGetType>(&()).await.unwrap();
}
