//! The client against a scripted peer; `tests/monitor.rs` has it talk to real QEMU.

use std::collections::VecDeque;

use bytes::BytesMut;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::connection::MAX_EVENTS;
use super::*;
use crate::util::fds;

const LIMIT: Duration = Duration::from_secs(20);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

/// The other end of a conversation, which a test plays by hand.
struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    async fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Receives a command, checks it, answers it.
    async fn expect(&mut self, execute: &str, reply: &str) {
        let command = self.receive().await;
        assert_eq!(command["execute"], execute);
        self.send(&format!(r#"{{{reply}, "id": {}}}"#, command["id"])).await;
    }
}

async fn open() -> (Connected, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer { stream: BufReader::new(theirs) };
    let talk = async {
        peer.send(GREETING).await;
        peer.expect("qmp_capabilities", r#""return": {}"#).await;
    };
    let (connected, ()) = tokio::join!(Monitor::connect(ours, "guest", LIMIT), talk);
    (connected.unwrap(), peer)
}

/// Opens a conversation whose peer then says `text` and closes.
async fn ended_by(text: &str) -> (MonitorError, String) {
    let (mut connected, mut peer) = open().await;
    let pending = connected.monitor.submit(QueryStatus {});
    peer.receive().await;
    peer.send(text).await;
    drop(peer);
    let Some(MonitorEvent::End(reason)) = connected.events.recv().await else { panic!() };
    assert!(connected.events.recv().await.is_none());
    let refused = connected.monitor.execute(Cont {}).await.unwrap_err();
    assert_eq!(refused.to_string(), reason.to_string());
    (reason, pending.reply().await.unwrap_err().to_string())
}

#[tokio::test]
async fn opening_needs_one_round_and_tells_the_version() {
    let (connected, _peer) = open().await;
    let version = connected.greeting.version;
    assert_eq!((version.qemu.major, version.package.as_str()), (10, "Debian"));
}

#[tokio::test]
async fn typed_commands_carry_only_the_arguments_that_are_given() {
    let (connected, mut peer) = open().await;
    let screendump = Screendump { filename: "/x".to_owned(), ..Screendump::default() };
    let pending = connected.monitor.submit(screendump);
    let sent = peer.receive().await;
    assert_eq!(sent, json!({"execute": "screendump", "arguments": {"filename": "/x"}, "id": "libvirt-2"}));
    peer.send(r#"{"return": {}, "id": "libvirt-2"}"#).await;
    assert_eq!(pending.reply().await.unwrap(), Done);
    let status = connected.monitor.submit(QueryStatus {});
    assert_eq!(peer.receive().await, json!({"execute": "query-status", "id": "libvirt-3"}));
    peer.send(r#"{"return": {"running": true, "status": "running", "new": 1}, "id": "libvirt-3"}"#).await;
    assert!(status.reply().await.unwrap().running);
}

#[tokio::test]
async fn refusals_and_misshapen_replies_read_as_libvirts() {
    let (connected, mut peer) = open().await;
    for (reply, sentence) in [
        (
            r#""error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}"#,
            "unable to execute QEMU command 'query-status': Device 'x' not found",
        ),
        (
            r#""error": {"class": "GenericError"}"#,
            "unable to execute QEMU command 'query-status': unknown QEMU command error",
        ),
        (r#""return": [1]"#, "unexpected type returned by QEMU command 'query-status'"),
    ] {
        let (error, ()) =
            tokio::join!(connected.monitor.execute(QueryStatus {}), peer.expect("query-status", reply));
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.is_class("DeviceNotFound"), reply.contains("DeviceNotFound"));
    }
}

#[tokio::test]
async fn commands_under_way_find_their_own_reply_also_beside_events() {
    let (mut connected, mut peer) = open().await;
    let (one, two) = (connected.monitor.submit(QueryStatus {}), connected.monitor.submit(QueryName {}));
    peer.receive().await;
    peer.receive().await;
    drop(one);
    peer.send(r#"{"return": {"running": true, "status": "running"}, "id": "libvirt-2"}"#).await;
    peer.send(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#).await;
    peer.send(r#"{"return": {"name": "guest"}, "id": "libvirt-3"}"#).await;
    assert_eq!(two.reply().await.unwrap().name.as_deref(), Some("guest"));
    let Some(MonitorEvent::Guest(event)) = connected.events.recv().await else { panic!() };
    assert_eq!(event.kind(), EventKind::Stop);
}

/// Whether a future is still waiting after everybody else had a turn.
async fn waits(future: &mut std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn events_before_a_reply_can_be_waited_for() {
    let (mut connected, mut peer) = open().await;
    let (monitor, stop) = (connected.monitor.clone(), connected.monitor.submit(Stop {}));
    peer.receive().await;
    peer.send(r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}"#).await;
    peer.send(r#"{"return": {}, "id": "libvirt-2"}"#).await;
    stop.reply().await.unwrap();
    let mut handled = std::pin::pin!(monitor.events_handled());
    assert!(waits(&mut handled).await, "the event is not even taken");
    let Some(MonitorEvent::Guest(_)) = connected.events.recv().await else { panic!() };
    assert!(waits(&mut handled).await, "the event is being handled");
    let Some(MonitorEvent::Fence(passed)) = connected.events.recv().await else { panic!() };
    drop(passed);
    handled.await;
    // Nobody handles events any more: nothing to wait for.
    drop(connected.events);
    monitor.events_handled().await;
}

#[tokio::test]
async fn a_user_s_own_command_gets_the_whole_reply() {
    let (connected, mut peer) = open().await;
    let talk = async {
        assert_eq!(peer.receive().await, json!({"execute": "x", "arguments": {"b": 1}, "id": "libvirt-2"}));
        peer.send(r#"{"error": {"class": "CommandNotFound", "desc": "no x"}, "id": "libvirt-2"}"#).await;
        // What is no object has no id either; QEMU answers in order.
        assert_eq!(peer.receive().await, json!([1]));
        peer.send(r#"{"error": {"class": "GenericError", "desc": "no"}}"#).await;
    };
    let ask = async {
        let monitor = &connected.monitor;
        let answer = monitor.execute_raw(r#"{"execute": "x", "arguments": {"b": 1}, "id": 7}"#, None).await;
        assert_eq!(
            answer.unwrap(),
            r#"{"error":{"class":"CommandNotFound","desc":"no x"},"id":"libvirt-2"}"#
        );
        let answer = monitor.execute_raw("[1]", None).await.unwrap();
        assert_eq!(answer, r#"{"error":{"class":"GenericError","desc":"no"}}"#);
        let error = monitor.execute_raw("{'execute'", None).await.unwrap_err();
        assert!(matches!(error, MonitorError::Json { .. }));
    };
    tokio::join!(talk, ask);
}

#[tokio::test]
async fn a_command_without_a_type_takes_computed_arguments() {
    let (connected, mut peer) = open().await;
    let talk = async {
        let sent = json!({"execute": "device_add", "arguments": {"driver": "e1000"}, "id": "libvirt-2"});
        assert_eq!(peer.receive().await, sent);
        peer.send(r#"{"return": {"x": null}, "id": "libvirt-2"}"#).await;
        peer.expect("query-x", r#""return": null"#).await;
    };
    let ask = async {
        let arguments = Some(json!({"driver": "e1000"}));
        let reply = connected.monitor.execute_value("device_add", arguments).await.unwrap();
        assert_eq!(reply, json!({"x": null}));
        assert_eq!(connected.monitor.execute_value("query-x", None).await.unwrap(), Value::Null);
    };
    tokio::join!(talk, ask);
}

#[tokio::test]
async fn a_missing_human_monitor_is_told_apart() {
    let (connected, mut peer) = open().await;
    let (error, ()) = tokio::join!(
        connected.monitor.execute_human("info"),
        peer.expect("human-monitor-command", r#""error": {"class": "CommandNotFound", "desc": "x"}"#)
    );
    assert_eq!(error.unwrap_err().to_string(), "Human monitor command is not available to run info");
}

#[tokio::test]
async fn a_descriptor_travels_beside_its_command() {
    let (connected, mut peer) = open().await;
    let (_end, descriptor) = rustix::pipe::pipe().unwrap();
    let before = connected.monitor.submit(QueryStatus {});
    let getfd = connected.monitor.execute_with_fd(Getfd { fdname: "a".to_owned() }, descriptor);
    let receive = async {
        let (mut buffer, mut descriptors) = (BytesMut::new(), VecDeque::new());
        while buffer.iter().filter(|byte| **byte == b'\n').count() < 2 {
            fds::recv(peer.stream.get_ref(), &mut buffer, &mut descriptors, 4).await.unwrap();
        }
        assert_eq!(descriptors.len(), 1);
        peer.send(r#"{"return": {"running": true, "status": "running"}, "id": "libvirt-2"}"#).await;
        peer.send(r#"{"return": {}, "id": "libvirt-3"}"#).await;
    };
    let (done, ()) = tokio::join!(getfd, receive);
    assert_eq!(done.unwrap(), Done);
    before.reply().await.unwrap();
}

#[tokio::test]
async fn every_end_of_the_connection_reaches_everyone() {
    let (reason, told) = ended_by("").await;
    assert!(matches!(reason, MonitorError::Eof { .. }));
    assert_eq!(told, "End of file from qemu monitor (vm='guest')");
    for text in ["not json", "{}", r#"{"event": "STOP"}"#, "[1]", r#"{"event": 3"#] {
        let (reason, told) = ended_by(text).await;
        assert!(matches!(reason, MonitorError::Garbage { .. }), "{reason}");
        assert_eq!(told, format!("Unknown JSON reply '{text}'"));
    }
}

#[tokio::test]
async fn a_reply_without_end_is_cut_off() {
    let (mut connected, mut peer) = open().await;
    let endless = async move {
        let chunk = vec![b'a'; 1 << 20];
        while peer.stream.get_mut().write_all(&chunk).await.is_ok() {}
    };
    let ended = async {
        let Some(MonitorEvent::End(reason)) = connected.events.recv().await else { panic!() };
        drop(connected);
        reason
    };
    let (reason, ()) = tokio::join!(ended, endless);
    assert_eq!(reason.to_string(), "QEMU monitor reply exceeds buffer size (10485760 bytes)");
}

#[tokio::test]
async fn lines_are_the_same_however_they_are_cut() {
    const EVENT: &str = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}";
    let text = format!("{EVENT}\r\n\r\n{{\"return\": {{}}, \"id\": \"libvirt-2\"}}\n{EVENT}\n");
    for size in [1, 2, 3, 7, 64, text.len()] {
        let (mut connected, mut peer) = open().await;
        let done = connected.monitor.submit(Cont {});
        peer.receive().await;
        for piece in text.as_bytes().chunks(size) {
            peer.stream.get_mut().write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(done.reply().await.unwrap(), Done);
        for _ in 0..2 {
            let Some(MonitorEvent::Guest(event)) = connected.events.recv().await else { panic!() };
            assert_eq!(event.kind(), EventKind::Stop);
        }
    }
}

#[tokio::test]
async fn a_large_reply_is_no_problem() {
    let (connected, mut peer) = open().await;
    let large = "x".repeat(9 << 20);
    let reply = format!(r#""return": {{"name": "{large}"}}"#);
    let (name, ()) = tokio::join!(connected.monitor.execute(QueryName {}), peer.expect("query-name", &reply));
    assert_eq!(name.unwrap().name.unwrap().len(), large.len());
}

#[tokio::test]
async fn fail_all_ends_every_wait_at_once_and_admit_takes_it_back() {
    let (mut connected, mut peer) = open().await;
    let monitor = &connected.monitor;
    let stuck = monitor.submit(QueryStatus {});
    peer.receive().await;
    monitor.fail_all(&MonitorError::Closed);
    assert_eq!(stuck.reply().await.unwrap_err().to_string(), "QEMU monitor was closed");
    assert_eq!(monitor.execute(Cont {}).await.unwrap_err().to_string(), "QEMU monitor was closed");
    monitor.admit();
    // The late reply to the first command is nobody's.
    peer.send(r#"{"return": {"running": true, "status": "running"}, "id": "libvirt-2"}"#).await;
    let (name, ()) = tokio::join!(
        monitor.execute(QueryName {}),
        peer.expect("query-name", r#""return": {"name": "guest"}"#)
    );
    assert_eq!(name.unwrap().name.as_deref(), Some("guest"));
    peer.send(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#).await;
    assert!(matches!(connected.events.recv().await, Some(MonitorEvent::Guest(_))));
}

#[tokio::test]
async fn what_qemu_does_not_take_or_answer_is_bounded() {
    let (connected, _peer) = open().await;
    let pending: Vec<_> = (0..MAX_COMMANDS).map(|_| connected.monitor.submit(QueryStatus {})).collect();
    let error = connected.monitor.execute(QueryStatus {}).await.unwrap_err();
    assert!(matches!(error, MonitorError::Busy { .. }));
    drop(pending);

    let (stream, _silent) = UnixStream::pair().unwrap();
    let error = Monitor::connect(stream, "guest", Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(error, MonitorError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_flood_of_events_is_slowed_down_and_replies_come_through() {
    const FLOOD: usize = 100_000;
    let (connected, mut peer) = open().await;
    let Connected { monitor, mut events, .. } = connected;
    let flood = async {
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        let many = format!("{event}\r\n").repeat(FLOOD);
        peer.stream.get_mut().write_all(many.as_bytes()).await.unwrap();
        peer.expect("query-name", r#""return": {"name": "guest"}"#).await;
        drop(peer);
    };
    let ask = async {
        // The queue is full, and so is the socket behind it: whoever waits for the events is told when they are over.
        while events.len() < MAX_EVENTS {
            tokio::task::yield_now().await;
        }
        let asking = async {
            let name = monitor.execute(QueryName {}).await.unwrap().name;
            monitor.events_handled().await;
            name
        };
        let count = async {
            let mut count = 0;
            while let Some(event) = events.recv().await {
                count += usize::from(matches!(event, MonitorEvent::Guest(_)));
            }
            count
        };
        tokio::join!(asking, count)
    };
    let ((name, count), ()) = tokio::join!(ask, flood);
    assert_eq!((name.as_deref(), count), (Some("guest"), FLOOD));
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let (connected, mut peer) = open().await;
    let second = connected.monitor.clone();
    drop(connected);
    let (name, ()) = tokio::join!(second.execute(QueryName {}), peer.expect("query-name", r#""return": {}"#));
    assert_eq!(name.unwrap().name, None);
    drop(second);
    let mut line = String::new();
    assert_eq!(peer.stream.read_line(&mut line).await.unwrap(), 0);
}
