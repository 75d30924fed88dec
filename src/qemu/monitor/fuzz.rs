//! A QEMU that says what it likes, for fuzzers and for the tests that run what they run.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::event::Event;
use super::{Monitor, command, commands, human, redact};
use super::{MonitorError, QueryBlockJobs, QueryCpusFast, QueryMigrate, QueryStatus};

/// Nothing here waits for anything but the other end of a pair of sockets.
const LIMIT: Duration = Duration::from_secs(5);

/// Takes each line as the reply to every command there is, as an event, as a user's command, and as something to log.
pub fn lines(bytes: &[u8]) {
    for line in bytes.split_inclusive(|byte| *byte == b'\n').take(64) {
        commands::understood(line);
        if let Some(event) = Event::parse(&Bytes::copy_from_slice(line)) {
            event.kind();
            event.data();
        }
        // What cannot be read is refused.
        let _ = command::compact(line);
        let text = String::from_utf8_lossy(line);
        let _ = command::raw(&text);
        redact::line(&text);
        human::understood(&text);
    }
}

/// Has a QEMU answer each command with the next lines.
pub fn conversation(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let Ok((ours, theirs)) = UnixStream::pair() else { return };
        let (_said, heard) = tokio::join!(speak(theirs, bytes), listen(ours));
        assert!(!matches!(heard, Err(MonitorError::Timeout { .. })), "waits for a QEMU that is gone");
    });
}

/// The first line, then for each command all lines up to the one that looks like a reply.
async fn speak(stream: UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut commands = BufReader::new(read).lines();
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    write.write_all(lines.next().unwrap_or_default()).await?;
    loop {
        // Who is not understood is asked nothing more.
        tokio::select! {
            command = commands.next_line() => if command?.is_none() { return Ok(()) },
            () = idle() => {}
        }
        loop {
            let Some(line) = lines.next() else { return Ok(()) };
            write.write_all(line).await?;
            if line.windows(7).any(|word| word == b"return\"" || word == b"\"error\"") {
                break;
            }
        }
    }
}

/// Until everybody else has had turns enough to do what there is to do.
async fn idle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

async fn listen(stream: UnixStream) -> Result<(), MonitorError> {
    let mut connected = Monitor::connect(stream, "guest", LIMIT).await?;
    let monitor = connected.monitor;
    let handled = tokio::spawn(async move { while connected.events.recv().await.is_some() {} });
    let asked = async {
        // What is not understood is an error of that command alone.
        let _ = monitor.execute(QueryStatus {}).await;
        let _ = monitor.execute(QueryCpusFast {}).await;
        let _ = monitor.execute(QueryMigrate {}).await;
        let _ = monitor.execute(QueryBlockJobs {}).await;
        monitor.events_handled().await;
        monitor.execute_raw(r#"{"execute": "query-name"}"#, None).await.map(drop)
    };
    let answer = asked.await;
    drop(monitor);
    // Who handles events is told of the end.
    let _ = handled.await;
    answer
}
