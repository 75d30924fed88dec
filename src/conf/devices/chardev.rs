//! The host's side of serial ports, consoles, channels and other streams of bytes.

use super::raw::Raw;
use crate::conf::xml::{Element, Form, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    /// Where the bytes go (`type`).
    pub enum CharKind {
        Null = "null",
        Vc = "vc",
        Pty = "pty",
        Dev = "dev",
        File = "file",
        Pipe = "pipe",
        Stdio = "stdio",
        Udp = "udp",
        Tcp = "tcp",
        Unix = "unix",
        Spicevmc = "spicevmc",
        Spiceport = "spiceport",
        Nmdm = "nmdm",
        QemuVdagent = "qemu-vdagent",
        Dbus = "dbus",
    }
}

/// `type`, `<source>`, `<protocol>` and `<log>` of the device's element.
#[derive(Debug, Clone, PartialEq)]
pub struct CharSource {
    pub backend: CharBackend,
    pub log: Option<Box<CharLog>>,
}

/// What each type needs. Paths and hosts may be missing until the definition was validated.
#[derive(Debug, Clone, PartialEq)]
pub enum CharBackend {
    Null,
    Vc,
    /// The slave's path, known while the guest runs.
    Pty(Option<Box<str>>),
    Dev(Option<Box<str>>),
    File(Box<FileSource>),
    Pipe(Option<Box<str>>),
    Stdio,
    Udp(Box<UdpSource>),
    Tcp(Box<TcpSource>, TcpProtocol),
    Unix(Box<UnixSource>),
    /// Kinds that are kept but not understood.
    Other(CharKind, Option<Box<Raw>>),
}

xml! {
    #[derive(Default)]
    pub struct FileSource {
        attr path: Option<Box<str>> = "path";
        attr append: Option<OnOff> = "append";
        child seclabels: Vec<Raw> = "seclabel";
    }
}

/// A datagram socket: where it sends to, and optionally where it listens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UdpSource {
    pub bind: SocketPlace,
    pub connect: SocketPlace,
}

xml! {
    #[derive(Default)]
    pub struct SocketPlace {
        attr host: Option<Box<str>> = "host";
        attr service: Option<Box<str>> = "service";
    }
}

xml! {
    #[derive(Default)]
    pub struct TcpSource {
        attr mode: SourceMode = "mode", or SourceMode::Connect;
        flat place: SocketPlace;
        attr tls: Option<YesNo> = "tls";
        child reconnect: Option<Reconnect> = "reconnect";
    }
}

xml! {
    #[derive(Default)]
    pub struct UnixSource {
        attr mode: SourceMode = "mode", or SourceMode::Connect;
        attr path: Option<Box<str>> = "path";
        child seclabels: Vec<Raw> = "seclabel";
        child reconnect: Option<Reconnect> = "reconnect";
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum SourceMode {
        #[default]
        Connect = "connect",
        Bind = "bind",
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum TcpProtocol {
        #[default]
        Raw = "raw",
        Telnet = "telnet",
        Telnets = "telnets",
        Tls = "tls",
    }
}

/// Whether, and after how many seconds, a client connects again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reconnect {
    pub enabled: Option<YesNo>,
    pub timeout_s: u32,
}

impl Part for Reconnect {
    fn read(element: Element<'_>) -> Result<Self> {
        let enabled = element.value("enabled")?;
        let timeout_s = if enabled == Some(YesNo::Yes) { element.required("timeout")? } else { 0 };
        Ok(Self { enabled, timeout_s })
    }

    fn write(&self, out: &mut Writer, name: &str) {
        let Some(enabled) = self.enabled else { return };
        out.element(name, |out| {
            out.attribute("enabled", &enabled);
            if enabled == YesNo::Yes {
                out.attribute("timeout", &self.timeout_s);
            }
        });
    }
}

xml! {
    /// A file that gets a copy of what the guest writes.
    #[derive(Default)]
    pub struct CharLog {
        attr file: Option<Box<str>> = "file";
        attr append: Option<OnOff> = "append";
    }
}

impl Default for CharSource {
    fn default() -> Self {
        Self::new(CharBackend::Pty(None))
    }
}

impl CharSource {
    pub fn new(backend: CharBackend) -> Self {
        Self { backend, log: None }
    }

    pub fn kind(&self) -> CharKind {
        match &self.backend {
            CharBackend::Null => CharKind::Null,
            CharBackend::Vc => CharKind::Vc,
            CharBackend::Pty(_) => CharKind::Pty,
            CharBackend::Dev(_) => CharKind::Dev,
            CharBackend::File(_) => CharKind::File,
            CharBackend::Pipe(_) => CharKind::Pipe,
            CharBackend::Stdio => CharKind::Stdio,
            CharBackend::Udp(_) => CharKind::Udp,
            CharBackend::Tcp(..) => CharKind::Tcp,
            CharBackend::Unix(_) => CharKind::Unix,
            CharBackend::Other(kind, _) => *kind,
        }
    }

    /// The slave of a running guest's pty.
    pub fn pty_path(&self) -> Option<&str> {
        match &self.backend {
            CharBackend::Pty(path) => path.as_deref(),
            _ => None,
        }
    }

    /// The source of `element`, which says `type` itself or takes `kind`.
    pub(super) fn read_as(element: Element<'_>, kind: CharKind) -> Result<Self> {
        let sources: Vec<Element<'_>> = element.children_named("source").collect();
        let most = if kind == CharKind::Udp { 2 } else { 1 };
        if sources.len() > most {
            let count = if most == 1 { "one source element is" } else { "two source elements are" };
            return Err(ConfError::xml(format!("only {count} allowed for character device")));
        }
        let backend = read_backend(element, kind, &sources)?;
        let mut logs = element.children_named("log");
        let log = logs.next().map(|log| CharLog::read(log).map(Box::new)).transpose()?;
        if logs.next().is_some() {
            return Err(ConfError::xml("only one log element is allowed for character device"));
        }
        Ok(Self { backend, log: log.filter(|log| log.file.is_some()) })
    }
}

fn read_backend(element: Element<'_>, kind: CharKind, sources: &[Element<'_>]) -> Result<CharBackend> {
    let source = sources.first().copied();
    let path = || source.and_then(|source| source.attribute("path")).map(Box::<str>::from);
    Ok(match kind {
        CharKind::Null => CharBackend::Null,
        CharKind::Vc => CharBackend::Vc,
        CharKind::Stdio => CharBackend::Stdio,
        CharKind::Pty => CharBackend::Pty(if element.form().contains(Form::LIVE) { path() } else { None }),
        CharKind::Dev => CharBackend::Dev(path()),
        CharKind::Pipe => CharBackend::Pipe(path()),
        CharKind::File => CharBackend::File(part(source)?),
        CharKind::Unix => CharBackend::Unix(part(source)?),
        CharKind::Tcp => {
            let mut protocols = element.children_named("protocol");
            let protocol = match protocols.next() {
                Some(protocol) => protocol.value("type")?.unwrap_or_default(),
                None => TcpProtocol::Raw,
            };
            if protocols.next().is_some() {
                return Err(ConfError::xml("only one protocol element is allowed for character device"));
            }
            CharBackend::Tcp(part(source)?, protocol)
        }
        CharKind::Udp => CharBackend::Udp(Box::new(read_udp(sources)?)),
        CharKind::Spicevmc
        | CharKind::Spiceport
        | CharKind::Nmdm
        | CharKind::QemuVdagent
        | CharKind::Dbus => {
            let source = source.map(Raw::read).transpose()?;
            CharBackend::Other(kind, source.map(Box::new))
        }
    })
}

fn part<T: Part + Default>(source: Option<Element<'_>>) -> Result<Box<T>> {
    source.map(T::read).transpose().map(Option::unwrap_or_default).map(Box::new)
}

/// The first source of each mode counts.
fn read_udp(sources: &[Element<'_>]) -> Result<UdpSource> {
    let mut udp = UdpSource::default();
    for source in sources {
        let place = match source.value("mode")?.unwrap_or_default() {
            SourceMode::Bind => &mut udp.bind,
            SourceMode::Connect => &mut udp.connect,
        };
        if *place == SocketPlace::default() {
            *place = SocketPlace::read(*source)?;
        }
    }
    Ok(udp)
}

impl Part for CharSource {
    fn read(element: Element<'_>) -> Result<Self> {
        let kind = match element.attribute("type") {
            None => CharKind::Pty,
            Some(word) => CharKind::from_word(word).ok_or_else(|| {
                ConfError::unsupported(format!("unknown type presented to host for character device: {word}"))
            })?,
        };
        Self::read_as(element, kind)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.kind());
    }

    fn write_children(&self, out: &mut Writer) {
        match &self.backend {
            CharBackend::Null | CharBackend::Vc | CharBackend::Stdio => {}
            CharBackend::Pty(path) => {
                if let (Some(path), true) = (path, out.form().contains(Form::LIVE)) {
                    out.element("source", |out| out.attribute("path", path));
                }
            }
            CharBackend::Dev(path) | CharBackend::Pipe(path) => {
                if let Some(path) = path {
                    out.element("source", |out| out.attribute("path", path));
                }
            }
            CharBackend::File(source) => source.write_group(out, "source"),
            CharBackend::Udp(udp) => {
                for (mode, place) in [(SourceMode::Bind, &udp.bind), (SourceMode::Connect, &udp.connect)] {
                    if *place != SocketPlace::default() {
                        out.element("source", |out| {
                            out.attribute("mode", &mode);
                            place.write_attributes(out);
                        });
                    }
                }
            }
            CharBackend::Tcp(source, protocol) => {
                Part::write(source, out, "source");
                out.element("protocol", |out| out.attribute("type", protocol));
            }
            CharBackend::Unix(source) => {
                if source.path.is_some() {
                    Part::write(source, out, "source");
                }
            }
            CharBackend::Other(_, source) => {
                if let Some(source) = source {
                    Part::write(source, out, "source");
                }
            }
        }
        if let Some(log) = &self.log {
            Part::write(log, out, "log");
        }
    }
}

impl CharSource {
    /// Refuses a source that lacks what its type needs.
    pub fn validate(&self) -> Result<()> {
        let missing = |what: &str| Err(ConfError::internal(format!("Missing source {what} for char device")));
        match &self.backend {
            CharBackend::Dev(None) | CharBackend::Pipe(None) => missing("path attribute"),
            CharBackend::File(source) if source.path.is_none() => missing("path attribute"),
            CharBackend::Tcp(source, _) => {
                if source.place.host.is_none() {
                    return missing("host attribute");
                }
                if source.place.service.is_none() {
                    return missing("service attribute");
                }
                reconnects_in_connect_mode(source.mode, source.reconnect)
            }
            CharBackend::Udp(udp) if udp.connect.service.is_none() => missing("service attribute"),
            CharBackend::Unix(source) => reconnects_in_connect_mode(source.mode, source.reconnect),
            _ => Ok(()),
        }
    }
}

fn reconnects_in_connect_mode(mode: SourceMode, reconnect: Option<Reconnect>) -> Result<()> {
    if mode == SourceMode::Bind && reconnect.is_some_and(|reconnect| reconnect.enabled.is_some()) {
        return Err(ConfError::internal("chardev reconnect is possible only for connect mode"));
    }
    Ok(())
}
