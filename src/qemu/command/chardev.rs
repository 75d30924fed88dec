//! Streams of bytes on the host's side.

use super::descriptors::{log_name, source_name};
use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    CharBackend, CharKind, CharSource, Raw, Reconnect, SocketPlace, SourceMode, TcpProtocol, TcpSource,
    UdpSource, UnixSource,
};
use crate::conf::xml::YesNo;
use crate::qemu::capabilities::Cap;

impl Guest<'_> {
    /// Adds `-chardev` for the device `alias`; its id is returned.
    pub(super) fn chardev(&self, line: &mut Line<'_>, source: &CharSource, alias: &str) -> Result<String> {
        let id = format!("char{alias}");
        let mut text = match &source.backend {
            CharBackend::Null => format!("null,id={id}"),
            CharBackend::Vc => format!("vc,id={id}"),
            CharBackend::Pty(_) => format!("pty,id={id}"),
            CharBackend::Stdio => format!("stdio,id={id}"),
            CharBackend::Dev(path) => {
                let kind = if alias.starts_with("parallel") { "parallel" } else { "serial" };
                format!("{kind},id={id},path={}", text_of(path))
            }
            CharBackend::Pipe(path) => format!("pipe,id={id},path={}", text_of(path)),
            CharBackend::File(_) => {
                let set = self.pass_file(line, &source_name(alias))?;
                // Whoever opened it has cut it off, where that was wanted.
                format!("file,id={id},path={set},append=on")
            }
            CharBackend::Udp(udp) => format!("udp,id={id}{}", udp_options(udp)),
            CharBackend::Tcp(tcp, protocol) => {
                let credentials = self.credentials(line, tcp, &id);
                format!("socket,id={id}{}{credentials}", self.tcp_options(tcp, *protocol))
            }
            CharBackend::Unix(unix) => format!("socket,id={id}{}", self.unix_options(unix, alias)?),
            CharBackend::Other(kind, raw) => self.special(*kind, raw.as_deref(), alias, &id)?,
        };
        if source.log.is_some() {
            let set = self.pass_file(line, &log_name(alias))?;
            text.push_str(&format!(",logfile={set},logappend=on"));
        }
        line.option("-chardev", text);
        Ok(id)
    }

    /// Streams that QEMU or the screen's client has its own meaning for.
    fn special(&self, kind: CharKind, source: Option<&Raw>, alias: &str, id: &str) -> Result<String> {
        let child = |element: &str, name: &str| source?.child(element)?.attribute(name);
        let channel = source.and_then(|source| source.attribute("channel")).unwrap_or_default();
        Ok(match kind {
            CharKind::Spicevmc => {
                let name = match alias.trim_end_matches(|c: char| c.is_ascii_digit()) {
                    "smartcard" => "smartcard",
                    "redir" => "usbredir",
                    _ => "vdagent",
                };
                format!("spicevmc,id={id},name={name}")
            }
            CharKind::Spiceport => format!("spiceport,id={id},name={channel}"),
            CharKind::Dbus => format!("dbus,id={id},name={channel}"),
            CharKind::QemuVdagent => {
                let clipboard = child("clipboard", "copypaste") == Some("yes");
                let mouse = child("mouse", "mode") == Some("client");
                let state = |on| if on { "on" } else { "off" };
                let (clipboard, mouse) = (state(clipboard), state(mouse));
                format!("qemu-vdagent,id={id},name=vdagent,clipboard={clipboard},mouse={mouse}")
            }
            kind => return unsupported(format!("unsupported chardev '{kind}'")),
        })
    }

    /// Hands an open file to QEMU; the answer is the path it has there.
    pub(super) fn pass_file(&self, line: &mut Line<'_>, name: &str) -> Result<String> {
        let descriptor = self.context.descriptors.chardev(name)?;
        let set = line.fd_sets;
        line.fd_sets += 1;
        line.option("-add-fd", format!("set={set},fd={descriptor},opaque={name}"));
        Ok(format!("/dev/fdset/{set}"))
    }

    /// What QEMU shows and asks the other side of an encrypted stream.
    fn credentials(&self, line: &mut Line<'_>, tcp: &TcpSource, id: &str) -> String {
        let settings = &self.context.settings;
        if !tcp.tls.map_or(settings.chardev_tls, bool::from) {
            return String::new();
        }
        let object = format!("obj{id}_tls0");
        let endpoint = if tcp.mode == SourceMode::Bind { "server" } else { "client" };
        let props = Props::object("tls-creds-x509", object.as_str())
            .set("dir", settings.chardev_tls_dir.as_deref().unwrap_or("/etc/pki/qemu"))
            .set("endpoint", endpoint)
            .set("verify-peer", true);
        line.object(props);
        format!(",tls-creds={object}")
    }

    fn tcp_options(&self, tcp: &TcpSource, protocol: TcpProtocol) -> String {
        let SocketPlace { host, service } = &tcp.place;
        let mut text = format!(",host={},port={}", text_of(host), text_of(service));
        if protocol == TcpProtocol::Telnet {
            text.push_str(",telnet=on");
        }
        match tcp.mode {
            SourceMode::Bind => text.push_str(",server=on,wait=off"),
            SourceMode::Connect => self.push_reconnect(&mut text, tcp.reconnect),
        }
        text
    }

    fn unix_options(&self, unix: &UnixSource, alias: &str) -> Result<String> {
        if unix.mode == SourceMode::Bind {
            let descriptor = self.context.descriptors.chardev(&source_name(alias))?;
            return Ok(format!(",fd={descriptor},server=on,wait=off"));
        }
        let Some(path) = &unix.path else { return internal("missing path of a unix socket") };
        let mut text = format!(",path={}", escape_comma(path));
        self.push_reconnect(&mut text, unix.reconnect);
        Ok(text)
    }

    pub(super) fn push_reconnect(&self, text: &mut String, reconnect: Option<Reconnect>) {
        let seconds = match reconnect {
            Some(Reconnect { enabled: Some(YesNo::Yes), timeout_s }) => timeout_s,
            Some(Reconnect { enabled: Some(YesNo::No), .. }) => 0,
            _ => return,
        };
        let in_ms = self.supports(Cap::ChardevReconnectMiliseconds);
        text.push_str(&match in_ms {
            true => format!(",reconnect-ms={}", u64::from(seconds) * 1000),
            false => format!(",reconnect={seconds}"),
        });
    }
}

fn udp_options(udp: &UdpSource) -> String {
    let local_port = udp.bind.service.as_deref().unwrap_or("0");
    format!(
        ",host={},port={},localaddr={},localport={}",
        text_of(&udp.connect.host),
        text_of(&udp.connect.service),
        text_of(&udp.bind.host),
        escape_comma(local_port),
    )
}

fn text_of(value: &Option<Box<str>>) -> String {
    escape_comma(value.as_deref().unwrap_or_default())
}
