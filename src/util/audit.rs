//! The audit trail: to the kernel's audit where there is one, to the log where that is wanted.
//!
//! Records are written by a thread of their own, in their order: who changes a guest's state waits for no log.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

/// What a record is about, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A guest starts or stops.
    Control = 2500,
    /// It gets something of the host, or gives it back.
    Resource = 2501,
    /// It is confined.
    Identity = 2502,
}

impl Outcome {
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Success } else { Self::Failure }
    }
}

/// Records that may wait to be written; who has another one then waits as well.
const MAX_WAITING: usize = 4096;

/// How what a record tells of ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

type Entry = (Record, Outcome, String);

/// Where records go.
#[derive(Debug)]
pub struct Audit {
    /// Closed for the writer to end.
    entries: Option<SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
}

impl Audit {
    /// Opens the kernel's audit if `kernel` asks for it; `None` where nothing is to be recorded.
    pub fn open(kernel: bool, log: bool) -> (Option<Self>, io::Result<()>) {
        let (kernel, result) = match kernel.then(connect) {
            Some(Ok(kernel)) => (Some(kernel), Ok(())),
            Some(Err(error)) => (None, Err(error)),
            None => (None, Ok(())),
        };
        if !log && kernel.is_none() {
            return (None, result);
        }
        let program = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
        let (entries, waiting) = sync_channel(MAX_WAITING);
        let write = move || write(&waiting, log, kernel.as_ref(), &field("exe", &program));
        match thread::Builder::new().name("audit".to_owned()).spawn(write) {
            Ok(writer) => (Some(Self { entries: Some(entries), writer: Some(writer) }), result),
            Err(error) => (None, Err(error)),
        }
    }

    pub fn record(&self, record: Record, outcome: Outcome, text: String) {
        if let Some(entries) = &self.entries {
            // Its writer goes last.
            let _ = entries.send((record, outcome, text));
        }
    }
}

impl Drop for Audit {
    /// Everything is on record then.
    fn drop(&mut self) {
        drop(self.entries.take());
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

fn write(entries: &Receiver<Entry>, log: bool, kernel: Option<&OwnedFd>, program: &str) {
    for (record, outcome, text) in entries {
        if log {
            match outcome {
                Outcome::Success => tracing::info!("success=yes {text}"),
                Outcome::Failure => tracing::warn!("success=no {text}"),
            }
        }
        if let Some(kernel) = kernel {
            let result = if outcome == Outcome::Success { "success" } else { "failed" };
            let text = format!("{text} {program} hostname=? addr=? terminal=? res={result}");
            if let Err(error) = send(kernel, record, &text) {
                tracing::warn!(text, %error, "cannot record an audit message");
            }
        }
    }
}

/// `key="value"`, or in hexadecimal where the value could be taken for something else.
pub fn field(key: &str, value: &str) -> String {
    match is_plain(value) {
        true => format!("{key}=\"{value}\""),
        false => hexadecimal(key, value),
    }
}

/// The same for the fields that libvirt puts no quotes around.
pub fn bare_field(key: &str, value: &str) -> String {
    match is_plain(value) {
        true => format!("{key}={value}"),
        false => hexadecimal(key, value),
    }
}

fn is_plain(value: &str) -> bool {
    value.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'"')
}

fn hexadecimal(key: &str, value: &str) -> String {
    value.bytes().fold(format!("{key}="), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

fn connect() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::AUDIT))?)
}

/// One netlink message: its header, the text, zeros up to the next word.
fn send(kernel: &OwnedFd, record: Record, text: &str) -> io::Result<()> {
    const HEADER: usize = 16;
    /// `NLM_F_REQUEST`: no answer is asked for, so none piles up.
    const REQUEST: u16 = 1;
    let len = HEADER + text.len() + 1;
    let mut message = Vec::with_capacity(len.next_multiple_of(4));
    message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend((record as u16).to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(text.as_bytes());
    message.resize(len.next_multiple_of(4), 0);
    sendto(kernel, &message, SendFlags::DONTWAIT, &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_could_be_mistaken_are_in_hexadecimal() {
        for (value, text) in [
            ("web-1", "vm=\"web-1\""),
            ("?", "vm=\"?\""),
            ("aud 1", "vm=6175642031"),
            ("a\" res=success", "vm=6122207265733D73756363657373"),
            ("ü", "vm=C3BC"),
        ] {
            assert_eq!(field("vm", value), text);
            assert_eq!(bare_field("vm", value), text.replace('"', ""));
        }
    }
}
