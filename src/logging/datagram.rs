//! Log lines as datagrams: to syslog's socket and, with their fields, to journald's.
//!
//! A log service that is stuck or gone costs lines and never time: nothing here waits.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;

use tracing::Level;

use super::lines::Head;

/// Where syslog listens, whichever program that is.
pub(super) const SYSLOG: &str = "/dev/log";
/// Where journald takes its own form.
pub(super) const JOURNALD: &str = "/run/systemd/journal/socket";

/// The longest line that is sent whole; the kernel refuses datagrams over some 200 KiB.
const MAX_LINE: usize = 32 * 1024;
/// `LOG_USER`, as libvirt's lines have it in syslog, already shifted.
const SYSLOG_FACILITY: u8 = 1 << 3;
/// `LOG_DAEMON`, as libvirt's lines have it in the journal.
const JOURNAL_FACILITY: u8 = 3;

/// What a service takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// `<priority>identity[pid]: line`
    Syslog { identity: String },
    /// Fields, each a name, a length and a value.
    Journald,
}

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    socket: UnixDatagram,
    address: PathBuf,
    form: Form,
}

impl Service {
    pub(super) fn new(address: &Path, form: Form) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address: address.to_owned(), form })
    }

    /// What stands before the line itself.
    fn before(&self, level: Level, head: &Head) -> Vec<u8> {
        let priority = priority(level);
        match &self.form {
            Form::Syslog { identity } => {
                let header = SYSLOG_FACILITY | priority;
                format!("<{header}>{identity}[{}]: ", process::id()).into_bytes()
            }
            Form::Journald => {
                let mut fields = Vec::with_capacity(256);
                field(&mut fields, "PRIORITY", &priority.to_string());
                field(&mut fields, "SYSLOG_FACILITY", &JOURNAL_FACILITY.to_string());
                field(&mut fields, "SYSLOG_IDENTIFIER", "ferrovirtd");
                field(&mut fields, "LIBVIRT_SOURCE", &head.target);
                if let Some((file, number)) = &head.place {
                    field(&mut fields, "CODE_FILE", file);
                    field(&mut fields, "CODE_LINE", &number.to_string());
                }
                fields
            }
        }
    }

    /// Sends one line, as much of it as is usual. A guest's or a client's words in it stay one line.
    pub(super) fn send(&self, level: Level, head: &Head, line: &[u8]) {
        let line = line.get(..MAX_LINE).unwrap_or(line);
        let text = String::from_utf8_lossy(line);
        let line = text.trim_end();
        if line.is_empty() {
            return;
        }
        let mut datagram = self.before(level, head);
        match self.form {
            Form::Syslog { .. } => {
                datagram.extend_from_slice(line.replace(char::is_control, " ").as_bytes());
            }
            Form::Journald => field(&mut datagram, "MESSAGE", line),
        }
        // There is nobody to tell: this is where one would be told.
        let _ = self.socket.send_to(&datagram, &self.address);
    }
}

/// A value may have line ends, so its length stands before it.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// syslog's numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;

    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use tracing_subscriber::{Layer, Registry};

    use super::super::lines::{self, Current, Output, Style};
    use super::*;

    fn layer_of(service: Service) -> Box<dyn Layer<Registry> + Send + Sync> {
        let outputs = vec![Arc::new(Output::of_service(LevelFilter::INFO, service))];
        let current = Current { level: LevelFilter::INFO, filters: Vec::new(), outputs };
        lines::layer(&Arc::new(ArcSwap::from_pointee(current)), Style::Theirs)
    }

    /// What arrives of three lines, the first of them below the level.
    fn arrives(form: Form) -> Vec<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("log");
        let service = UnixDatagram::bind(&address).unwrap();
        service.set_nonblocking(true).unwrap();
        let layer = layer_of(Service::new(&address, form).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::debug!("too detailed");
            tracing::error!(domain = "x", "cannot\nstart");
            tracing::info!("{}", "y".repeat(1 << 20));
        });
        let mut buffer = vec![0; 1 << 20];
        std::iter::from_fn(|| service.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
    }

    #[test]
    fn syslog_gets_priority_identity_and_line() {
        let lines = arrives(Form::Syslog { identity: "virt".to_owned() });
        let first = String::from_utf8(lines[0].clone()).unwrap();
        let header = format!("<11>virt[{}]: ", process::id());
        assert!(first.starts_with(&header) && first.contains("cannot start"), "{first}");
        assert!(first.ends_with("domain=\"x\""), "{first}");
        assert!(lines[1].starts_with(b"<14>virt[") && lines[1].len() < MAX_LINE + 100);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn journald_gets_fields() {
        let lines = arrives(Form::Journald);
        assert_eq!(lines.len(), 2);
        let mut fields = Vec::new();
        let mut rest = &lines[0][..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let name = std::str::from_utf8(&rest[..end]).unwrap();
            let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().unwrap()) as usize;
            let value = std::str::from_utf8(&rest[end + 9..end + 9 + length]).unwrap();
            fields.push((name, value));
            rest = &rest[end + 9 + length + 1..];
        }
        let value = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        assert!(value("MESSAGE").unwrap().starts_with("cannot"));
        assert_eq!((value("PRIORITY"), value("SYSLOG_FACILITY")), (Some("3"), Some("3")));
        assert!(value("LIBVIRT_SOURCE").unwrap().contains("logging::datagram"));
        assert!(value("CODE_FILE").unwrap().ends_with("datagram.rs") && value("CODE_LINE").is_some());
    }

    #[test]
    fn a_service_that_is_gone_or_stuck_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("log");
        let layer = || layer_of(Service::new(&address, Form::Journald).unwrap());
        for service in [None, Some(UnixDatagram::bind(&address).unwrap())] {
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer()), || {
                for _ in 0..10_000 {
                    tracing::info!("nobody reads this");
                }
            });
            drop(service);
        }
    }
}
