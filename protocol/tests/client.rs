//! The client against a peer that is played by the test, frame by frame.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy does not take for tests

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::BytesMut;
use ferrovirt_protocol::client::{CallError, Chunk, Client, CloseReason};
use ferrovirt_protocol::frame::{self, Frame, FrameType, Header, MAX_FRAME, Status};
use ferrovirt_protocol::procedure::{Event, Procedure};
use ferrovirt_protocol::remote::{self, event, procedure};
use ferrovirt_protocol::xdr::{Encode, decode};
use ferrovirt_protocol::{keepalive, net};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;

const LIMIT: Duration = Duration::from_secs(20);

/// The daemon's end of a connection.
struct Peer<T> {
    io: T,
    buffer: BytesMut,
}

impl<T: AsyncReadExt + AsyncWriteExt + Unpin> Peer<T> {
    fn new(io: T) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = frame::cut(&mut self.buffer, MAX_FRAME).unwrap() {
                return frame;
            }
            assert_ne!(self.io.read_buf(&mut self.buffer).await.unwrap(), 0, "client hung up");
        }
    }

    async fn send(&mut self, header: Header, payload: &impl Encode) {
        let mut out = BytesMut::new();
        frame::put(&mut out, &header, payload).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    async fn reply(&mut self, call: &Frame, payload: &impl Encode) {
        self.send(Header { kind: FrameType::REPLY, ..call.header }, payload).await;
    }

    async fn send_stream(&mut self, call: &Frame, status: Status, payload: &[u8]) {
        let mut out = BytesMut::new();
        let header = Header { kind: FrameType::STREAM, status, ..call.header };
        frame::put_bytes(&mut out, &header, payload).unwrap();
        self.io.write_all(&out).await.unwrap();
    }
}

fn pair() -> (Client, ferrovirt_protocol::client::Events, Peer<DuplexStream>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (client, events) = Client::new(ours);
    (client.with_timeout(LIMIT), events, Peer::new(theirs))
}

fn lookup(name: &str) -> remote::DomainLookupByNameArgs {
    remote::DomainLookupByNameArgs { name: name.into() }
}

fn message(procedure: i32, program: u32) -> Header {
    Header { program, version: 1, procedure, kind: FrameType::MESSAGE, serial: 0, status: Status::OK }
}

#[tokio::test]
async fn replies_find_their_calls_in_any_order() {
    let (client, _events, mut peer) = pair();
    let calls: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<procedure::DomainLookupByName>(&lookup(name)).await })
        })
        .collect();
    let mut frames = vec![peer.next().await, peer.next().await, peer.next().await];
    frames.reverse();
    for call in &frames {
        assert_eq!(call.header.procedure, procedure::DomainLookupByName::NUMBER);
        let args: remote::DomainLookupByNameArgs = decode(&call.payload).unwrap();
        let dom = remote::Domain { name: args.name, ..remote::Domain::default() };
        peer.reply(call, &remote::DomainLookupByNameRet { dom }).await;
    }
    let mut names = Vec::new();
    for call in calls {
        names.push(call.await.unwrap().unwrap().dom.name);
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn an_error_reply_is_the_daemons_error() {
    let (client, _events, mut peer) = pair();
    let (result, ()) = tokio::join!(client.call::<procedure::ConnectGetLibVersion>(&()), async {
        let call = peer.next().await;
        let header = Header { kind: FrameType::REPLY, status: Status::ERROR, ..call.header };
        peer.send(header, &net::Error::new(42, 10, "Domain not found: x")).await;
    });
    assert_eq!(result.unwrap_err().remote().unwrap().code, 42);
}

#[tokio::test]
async fn a_late_reply_is_thrown_away() {
    let (client, _events, mut peer) = pair();
    let hasty = client.with_timeout(Duration::from_millis(10));
    let late = hasty.call::<procedure::ConnectGetLibVersion>(&()).await;
    assert!(matches!(late, Err(CallError::Timeout(_))), "{late:?}");
    let first = peer.next().await;
    peer.reply(&first, &remote::ConnectGetLibVersionRet { lib_ver: 1 }).await;
    let (result, ()) = tokio::join!(client.call::<procedure::ConnectGetLibVersion>(&()), async {
        let call = peer.next().await;
        peer.reply(&call, &remote::ConnectGetLibVersionRet { lib_ver: 2 }).await;
    });
    assert_eq!(result.unwrap().lib_ver, 2);
}

#[tokio::test]
async fn replies_that_are_wrong_say_how() {
    let (client, _events, mut peer) = pair();
    let (result, ()) = tokio::join!(client.call::<procedure::ConnectGetLibVersion>(&()), async {
        let call = peer.next().await;
        peer.reply(&call, &1u32).await;
    });
    assert!(matches!(result, Err(CallError::Decode(_))), "{result:?}");
    let (result, ()) = tokio::join!(client.call::<procedure::ConnectGetLibVersion>(&()), async {
        let mut call = peer.next().await;
        call.header.procedure += 1;
        peer.reply(&call, &1u64).await;
    });
    assert!(matches!(result, Err(CallError::Procedure { .. })), "{result:?}");
}

#[tokio::test]
async fn events_arrive_in_order_and_typed() {
    let (_client, mut events, mut peer) = pair();
    for detail in 0..3 {
        let header = message(event::DomainEventLifecycle::NUMBER, remote::PROGRAM.number);
        let sent = remote::DomainEventLifecycleMsg {
            event: 2,
            detail,
            ..remote::DomainEventLifecycleMsg::default()
        };
        peer.send(header, &sent).await;
    }
    for detail in 0..3 {
        let got = events.next().await.unwrap();
        assert!(got.decode::<event::DomainEventReboot>().is_none());
        assert_eq!(got.decode::<event::DomainEventLifecycle>().unwrap().unwrap().detail, detail);
    }
}

#[tokio::test]
async fn events_that_nobody_reads_end_the_connection() {
    let (client, _events, mut peer) = pair();
    let flood = tokio::spawn(async move {
        let mut out = BytesMut::new();
        let header = message(event::ConnectEventConnectionClosed::NUMBER, remote::PROGRAM.number);
        frame::put(&mut out, &header, &1u32).unwrap();
        while peer.io.write_all(&out).await.is_ok() {}
    });
    let reason = tokio::time::timeout(LIMIT, client.closed()).await.unwrap();
    assert!(matches!(reason, CloseReason::EventsNotRead(_)), "{reason:?}");
    flood.await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_both_ways() {
    let (client, _events, mut peer) = pair();
    let header = message(keepalive::event::Ping::NUMBER, keepalive::PROGRAM.number);
    peer.send(header, &()).await;
    let pong = peer.next().await;
    assert_eq!(pong.header, Header { procedure: keepalive::event::Pong::NUMBER, ..header });
    let (result, ()) = tokio::join!(client.ping(), async {
        let ping = peer.next().await;
        assert_eq!(ping.header, header);
        peer.send(Header { procedure: keepalive::event::Pong::NUMBER, ..header }, &()).await;
    });
    result.unwrap();
}

#[tokio::test]
async fn a_stream_carries_data_and_holes_and_is_confirmed() {
    let (client, _events, mut peer) = pair();
    let args = remote::DomainOpenConsoleArgs::default();
    let (opened, call) = tokio::join!(client.open_stream::<procedure::DomainOpenConsole>(&args), async {
        let call = peer.next().await;
        peer.reply(&call, &()).await;
        call
    });
    let ((), mut stream) = opened.unwrap();

    stream.send(b"ls\n").await.unwrap();
    stream.send_hole(7).await.unwrap();
    let data = peer.next().await;
    assert_eq!((data.header.serial, &data.payload[..]), (call.header.serial, &b"ls\n"[..]));
    let hole = peer.next().await;
    assert_eq!(hole.header.kind, FrameType::STREAM_HOLE);
    assert_eq!(decode::<net::StreamHole>(&hole.payload).unwrap(), net::StreamHole { length: 7, flags: 0 });

    peer.send_stream(&call, Status::CONTINUE, b"file").await;
    let header = Header { kind: FrameType::STREAM_HOLE, status: Status::CONTINUE, ..call.header };
    peer.send(header, &net::StreamHole { length: 9, flags: 0 }).await;
    peer.send_stream(&call, Status::CONTINUE, b"").await;
    assert_eq!(stream.recv().await.unwrap(), Some(Chunk::Data("file".into())));
    assert_eq!(stream.recv().await.unwrap(), Some(Chunk::Hole(9)));
    assert_eq!(stream.recv().await.unwrap(), None);

    let (result, ()) = tokio::join!(stream.finish(), async {
        assert_eq!(peer.next().await.header.status, Status::OK);
        peer.send_stream(&call, Status::CONTINUE, b"was underway").await;
        peer.send_stream(&call, Status::OK, b"").await;
    });
    result.unwrap();
}

#[tokio::test]
async fn a_stream_ends_with_the_daemons_error() {
    let (client, _events, mut peer) = pair();
    let args = remote::StorageVolUploadArgs::default();
    let (opened, call) = tokio::join!(client.open_stream::<procedure::StorageVolUpload>(&args), async {
        let call = peer.next().await;
        peer.reply(&call, &()).await;
        call
    });
    let ((), stream) = opened.unwrap();
    let (result, ()) = tokio::join!(stream.finish(), async {
        peer.next().await;
        let header = Header { kind: FrameType::STREAM, status: Status::ERROR, ..call.header };
        peer.send(header, &net::Error::new(38, 38, "No space left on device")).await;
    });
    assert_eq!(result.unwrap_err().remote().unwrap().text(), "No space left on device");
}

#[tokio::test]
async fn a_stream_that_was_refused_is_not_aborted() {
    let (client, _events, mut peer) = pair();
    let args = remote::DomainOpenConsoleArgs::default();
    let (opened, ()) = tokio::join!(client.open_stream::<procedure::DomainOpenConsole>(&args), async {
        let call = peer.next().await;
        let header = Header { kind: FrameType::REPLY, status: Status::ERROR, ..call.header };
        peer.send(header, &net::Error::new(55, 10, "not running")).await;
    });
    assert_eq!(opened.unwrap_err().remote().unwrap().code, 55);
    client.send_raw(b"next").await.unwrap();
    let mut next = [0; 4];
    peer.io.read_exact(&mut next).await.unwrap();
    assert_eq!(&next, b"next");
}

#[tokio::test]
async fn any_payload_can_be_sent_and_the_whole_reply_seen() {
    let (client, _events, mut peer) = pair();
    let (reply, ()) = tokio::join!(client.call_raw(remote::PROGRAM, 9999, b"rubbish"), async {
        let call = peer.next().await;
        assert_eq!((call.header.procedure, &call.payload[..]), (9999, &b"rubbish"[..]));
        let header = Header { kind: FrameType::REPLY, status: Status::ERROR, ..call.header };
        peer.send(header, &net::Error::new(39, 7, "unknown procedure: 9999")).await;
    });
    let reply = reply.unwrap();
    assert_eq!(reply.header.status, Status::ERROR);
    assert_eq!(decode::<net::Error>(&reply.payload).unwrap().code, 39);
}

#[tokio::test]
async fn a_dropped_stream_is_aborted() {
    let (client, _events, mut peer) = pair();
    let args = remote::StorageVolDownloadArgs::default();
    let (opened, ()) = tokio::join!(client.open_stream::<procedure::StorageVolDownload>(&args), async {
        let call = peer.next().await;
        peer.reply(&call, &()).await;
    });
    drop(opened.unwrap());
    let abort = peer.next().await;
    assert_eq!((abort.header.kind, abort.header.status), (FrameType::STREAM, Status::ERROR));
}

#[tokio::test]
async fn calls_in_flight_fail_when_the_peer_leaves() {
    let (client, mut events, mut peer) = pair();
    let (result, ()) = tokio::join!(client.call::<procedure::ConnectGetLibVersion>(&()), async {
        peer.next().await;
        drop(peer);
    });
    assert!(matches!(result, Err(CallError::Closed(_))), "{result:?}");
    assert!(events.next().await.is_none());
    let after = client.call::<procedure::ConnectGetLibVersion>(&()).await;
    assert!(matches!(after, Err(CallError::Closed(_))), "{after:?}");
}

#[tokio::test]
async fn the_last_client_closes_the_connection() {
    let (client, events, mut peer) = pair();
    let other = client.clone();
    drop((client, events));
    other.send_raw(b"x").await.unwrap();
    assert_eq!(peer.io.read_u8().await.unwrap(), b'x');
    drop(other);
    assert_eq!(peer.io.read_buf(&mut peer.buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn callers_wait_while_the_peer_does_not_read() {
    let (client, _events, mut peer) = pair();
    let big = vec![0; 1 << 20];
    let hasty = client.with_timeout(Duration::from_millis(20));
    let mut queued = 0;
    while hasty.send_raw(&big).await.is_ok() {
        queued += 1;
        assert!(queued < 32, "the queue grows without bound");
    }
    let mut left = queued << 20;
    let drain = async {
        let mut sink = vec![0; 1 << 16];
        while left > 0 {
            left -= peer.io.read(&mut sink).await.unwrap();
        }
    };
    drain.await;
    client.send_raw(b"x").await.unwrap();
}

/// A daemon of one call: takes its descriptor, answers with it.
fn return_the_descriptor(socket: std::os::unix::net::UnixStream) {
    let mut socket = socket;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    // Not a byte more than the frame: the next one carries the descriptor.
    let mut word = [0; frame::LENGTH_SIZE];
    socket.read_exact(&mut word).unwrap();
    let mut buffer = BytesMut::from(&word[..]);
    buffer.resize(u32::from_be_bytes(word) as usize, 0);
    socket.read_exact(&mut buffer[frame::LENGTH_SIZE..]).unwrap();
    let call = frame::cut(&mut buffer, MAX_FRAME).unwrap().unwrap();
    assert_eq!(call.header.kind, FrameType::CALL_WITH_FDS);
    assert_eq!(call.payload[..4], 1u32.to_be_bytes());
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [9];
    let bytes = &mut [IoSliceMut::new(&mut byte)];
    let received = recvmsg(&socket, bytes, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, 1);
    let fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    let mut reply = BytesMut::new();
    frame::put(&mut reply, &Header { kind: FrameType::REPLY_WITH_FDS, ..call.header }, &1u32).unwrap();
    socket.write_all(&reply).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(&socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
}

#[tokio::test]
async fn descriptors_travel_beside_calls_and_replies() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let daemon = tokio::task::spawn_blocking(move || return_the_descriptor(theirs));
    ours.set_nonblocking(true).unwrap();
    let (client, _events) = Client::unix(UnixStream::from_std(ours).unwrap());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let args = remote::DomainOpenGraphicsFdArgs::default();
    let call = client
        .with_timeout(LIMIT)
        .call_with_fds::<procedure::DomainOpenGraphicsFd>(&args, vec![OwnedFd::from(writer)])
        .await;
    daemon.await.unwrap();
    let ((), mut fds) = call.unwrap();
    assert_eq!(fds.len(), 1);
    std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[tokio::test]
async fn a_plain_connection_refuses_descriptors() {
    let (client, _events, _peer) = pair();
    let (_reader, writer) = std::io::pipe().unwrap();
    let args = remote::DomainOpenGraphicsArgs::default();
    let call =
        client.call_with_fds::<procedure::DomainOpenGraphics>(&args, vec![OwnedFd::from(writer)]).await;
    assert!(matches!(call, Err(CallError::Descriptors(1))), "{call:?}");
}
