//! The audit trail: to the kernel's audit where there is one, to the log where that is wanted.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

/// What a record is about, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A guest starts or stops.
    Control = 2500,
    /// It gets something of the host, or gives it back.
    Resource = 2501,
}

/// How what a record tells of ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

/// Where records go.
#[derive(Debug)]
pub struct Audit {
    log: bool,
    kernel: Option<OwnedFd>,
    /// This program, for the kernel's records.
    program: String,
}

impl Audit {
    /// Opens the kernel's audit if `kernel` asks for it; `None` where nothing is to be recorded.
    pub fn open(kernel: bool, log: bool) -> (Option<Self>, io::Result<()>) {
        let opened = match kernel {
            true => connect().map(Some),
            false => Ok(None),
        };
        let (kernel, result) = match opened {
            Ok(kernel) => (kernel, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let program = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
        let wanted = log || kernel.is_some();
        (wanted.then_some(Self { log, kernel, program }), result)
    }

    pub fn record(&self, record: Record, outcome: Outcome, text: &str) {
        if self.log {
            match outcome {
                Outcome::Success => tracing::info!("success=yes {text}"),
                Outcome::Failure => tracing::warn!("success=no {text}"),
            }
        }
        if let Some(kernel) = &self.kernel {
            let result = if outcome == Outcome::Success { "success" } else { "failed" };
            let program = field("exe", &self.program);
            let text = format!("{text} {program} hostname=? addr=? terminal=? res={result}");
            if let Err(error) = send(kernel, record, &text) {
                tracing::warn!(text, %error, "cannot record an audit message");
            }
        }
    }
}

/// `key="value"`, or in hexadecimal where the value could be taken for something else.
pub fn field(key: &str, value: &str) -> String {
    let plain = value.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'"');
    if plain {
        return format!("{key}=\"{value}\"");
    }
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
        }
    }
}
