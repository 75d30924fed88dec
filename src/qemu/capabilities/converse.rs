//! Starts a QEMU without a guest, sends it all questions at once and collects the answers.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::probe::{Answers, Question};
use crate::util::process::{Command, ProcessError};
use crate::util::reason::Reason;

/// A cold start from a slow disk takes seconds; a binary that takes longer than this is stuck.
const LIMIT: Duration = Duration::from_secs(60);

/// The longest line is the schema, about 250 KiB.
const MAX_LINE: u64 = 16 << 20;

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
    #[error("cannot talk to the QEMU monitor: {}", Reason(.0))]
    Io(#[from] io::Error),
    #[error("malformed line from the QEMU monitor: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Asks `binary` with the accelerators that `accel` lists (`kvm:tcg`).
pub(super) async fn converse(
    binary: &Path,
    search_path: &OsStr,
    accel: &str,
    questions: &[Question],
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
    match tokio::time::timeout(LIMIT, exchange(ours, questions)).await {
        Err(_) => Err(ConverseError::Timeout),
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(error)) => Err(last_words(words).await.map_or(error, ConverseError::Words)),
    }
}

/// What QEMU printed before it gave up.
async fn last_words(pipe: OwnedFd) -> Option<String> {
    let mut words = Vec::new();
    let pipe = pipe::Receiver::from_owned_fd(pipe).ok()?;
    let mut pipe = pipe.take(MAX_WORDS);
    let read = pipe.read_to_end(&mut words);
    tokio::time::timeout(Duration::from_secs(1), read).await.ok()?.ok()?;
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    (!words.is_empty()).then_some(words)
}

#[derive(Deserialize)]
struct Line {
    id: Option<usize>,
    #[serde(rename = "return")]
    answer: Option<Value>,
}

async fn exchange(stream: UnixStream, questions: &[Question]) -> Result<Answers, ConverseError> {
    let mut commands = format!("{}\n", json!({ "execute": "qmp_capabilities" }));
    for (id, question) in questions.iter().enumerate() {
        let mut command = json!({ "execute": question.command, "id": id });
        if let Some(arguments) = &question.arguments {
            command["arguments"] = arguments.clone();
        }
        commands.push_str(&command.to_string());
        commands.push('\n');
    }
    let (read, mut write) = stream.into_split();
    let (written, answers) = tokio::join!(write.write_all(commands.as_bytes()), collect(read, questions));
    written?;
    answers
}

async fn collect(
    stream: impl tokio::io::AsyncRead + Unpin,
    questions: &[Question],
) -> Result<Answers, ConverseError> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    let mut answers = Answers::default();
    let mut missing = questions.len();
    while missing > 0 {
        line.clear();
        (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let Line { id, answer } = serde_json::from_slice(&line)?;
        // Without a number it is the greeting, an event or the answer to qmp_capabilities.
        let Some(question) = id.and_then(|id| questions.get(id)) else { continue };
        missing -= 1;
        if let Some(answer) = answer {
            answers.0.insert(question.key.clone(), answer);
        }
    }
    Ok(answers)
}
