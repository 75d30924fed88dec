//! Starts a QEMU without a guest, sends it all questions at once and collects the answers.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::probe::{Answers, Question};
use crate::qemu::monitor::{Monitor, MonitorError};
use crate::util::process::{Command, ProcessError};
use crate::util::reason::Reason;

/// A cold start from a slow disk takes seconds; a binary that takes longer than this is stuck.
const LIMIT: Duration = Duration::from_secs(60);

/// How much of what a failing QEMU prints is kept.
const MAX_WORDS: u64 = 4096;

/// Why a binary did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ConverseError {
    #[error(transparent)]
    Start(#[from] ProcessError),
    #[error("{0}")]
    Words(String),
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
    #[error("cannot prepare for QEMU: {}", Reason(.0))]
    Io(#[from] io::Error),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// Asks `binary` with the accelerators that `accel` lists (`kvm:tcg`).
pub(super) async fn converse(
    binary: &Path,
    search_path: &OsStr,
    accel: &str,
    questions: Vec<Question>,
) -> Result<Answers, ConverseError> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs.into_std()?);
    rustix::io::ioctl_fionbio(&theirs, false).map_err(io::Error::from)?;
    let (words, words_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let machine = format!("none,accel={accel}");
    let chardev = format!("socket,id=probe,fd={}", theirs.as_raw_fd());
    let command = Command::new(binary)
        .args(["-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", &machine])
        .args(["-chardev", &chardev, "-mon", "chardev=probe,mode=control"])
        .env("LC_ALL", "C")
        .env("PATH", search_path)
        .stderr(words_end)
        .pass(theirs);

    // Dropping the child ends QEMU, whatever it is doing.
    let _child = command.start().await?;
    let name = binary.to_string_lossy();
    match tokio::time::timeout(LIMIT, exchange(ours, &name, questions)).await {
        Err(_) => Err(ConverseError::Timeout),
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(error)) => Err(last_words(words).await.map_or(error.into(), ConverseError::Words)),
    }
}

/// What QEMU printed before it gave up.
async fn last_words(pipe: OwnedFd) -> Option<String> {
    let mut words = Vec::new();
    let mut pipe = pipe::Receiver::from_owned_fd(pipe).ok()?.take(MAX_WORDS);
    let read = pipe.read_to_end(&mut words);
    tokio::time::timeout(Duration::from_secs(1), read).await.ok()?.ok()?;
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    (!words.is_empty()).then_some(words)
}

/// All questions are under way before the first answer is awaited.
async fn exchange(stream: UnixStream, name: &str, questions: Vec<Question>) -> Result<Answers, MonitorError> {
    let connected = Monitor::connect(stream, name, LIMIT).await?;
    let mut asked = JoinSet::new();
    for Question { key, command, arguments } in questions {
        let monitor = connected.monitor.clone();
        asked.spawn(async move { (key, monitor.execute_value(command, arguments).await) });
    }
    let mut answers = Answers::default();
    while let Some(answered) = asked.join_next().await {
        let Ok((key, answer)) = answered else { return Err(MonitorError::Closed) };
        match answer {
            Ok(answer) => {
                answers.0.insert(key, answer);
            }
            // This binary does not understand the question, which is an answer as well.
            Err(MonitorError::Command { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}
