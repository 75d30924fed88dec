//! Streams of bytes, and the ports and channels that they are behind.

use super::draft::{Draft, Piece};
use super::node::Node;
use super::options::Options;
use super::place::common;

/// The host's end: `type` of the device's element, and what stands in it.
#[derive(Debug)]
pub(super) struct Stream {
    kind: &'static str,
    nodes: Vec<Node>,
    uses: Vec<usize>,
}

impl Stream {
    fn new(kind: &'static str, nodes: impl IntoIterator<Item = Node>) -> Self {
        Self { kind, nodes: nodes.into_iter().collect(), uses: Vec::new() }
    }

    pub(super) fn element(self, name: &str) -> (Node, Vec<usize>) {
        (Node::new(name).set("type", self.kind).with_any(self.nodes), self.uses)
    }

    /// The stream as the backend of a device.
    pub(super) fn backend(self, model: &str) -> (Node, Vec<usize>) {
        let node = Node::new("backend").set("model", model).set("type", self.kind);
        (node.with_any(self.nodes), self.uses)
    }
}

fn path(path: String) -> Node {
    Node::new("source").set("path", path)
}

impl Draft<'_> {
    /// The `-chardev` of that name.
    pub(super) fn chardev(&self, id: &str) -> Option<Stream> {
        let (at, mut options) = self.backend("chardev", "id", id)?;
        options.take("id");
        let log = options.take("logfile");
        let mut stream = self.stream(&mut options, id)?;
        if let Some(file) = log {
            let append = options.take_switch("logappend");
            stream.nodes.push(Node::new("log").set("file", self.named_file(&file)?).maybe("append", append));
        }
        options.done()?;
        stream.uses.push(at);
        Some(stream)
    }

    /// A file by its name; one that came as an open descriptor has none.
    fn named_file(&self, text: &str) -> Option<String> {
        if text.starts_with("/dev/fdset/") { None } else { self.path(text) }
    }

    fn stream(&self, options: &mut Options, label: &str) -> Option<Stream> {
        Some(match options.take("backend")?.as_str() {
            "null" => Stream::new("null", []),
            "vc" => Stream::new("vc", []),
            "stdio" => Stream::new("stdio", []),
            "pty" => Stream::new("pty", self.surroundings.pty(label).map(|pty| path(pty.to_owned()))),
            "serial" | "tty" | "parallel" | "parport" => Stream::new("dev", [path(options.take("path")?)]),
            "pipe" => Stream::new("pipe", [path(self.named_file(&options.take("path")?)?)]),
            "file" => {
                let append = options.take_switch("append");
                let source = path(self.named_file(&options.take("path")?)?);
                Stream::new("file", [source.maybe("append", append.filter(|state| *state == "on"))])
            }
            "socket" => self.socket(options)?,
            "udp" => udp(options),
            "spicevmc" => {
                options.take("name");
                Stream::new("spicevmc", [])
            }
            _ => return None,
        })
    }

    fn socket(&self, options: &mut Options) -> Option<Stream> {
        let is_server = options.take_switch("server") == Some("on");
        if is_server && options.take_switch("wait") != Some("off") {
            // QEMU would wait for somebody to connect, which definitions cannot ask for.
            return None;
        }
        let mode = if is_server { "bind" } else { "connect" };
        let seconds = match (options.take("reconnect"), options.take("reconnect-ms")) {
            (Some(seconds), _) => Some(seconds.parse::<u64>().ok()?),
            (None, Some(ms)) => Some(ms.parse::<u64>().ok()? / 1000),
            (None, None) => None,
        };
        let reconnect = seconds.map(|seconds| match seconds {
            0 => Node::new("reconnect").set("enabled", "no"),
            seconds => Node::new("reconnect").set("enabled", "yes").set("timeout", seconds),
        });
        if let Some(socket) = options.take("path") {
            let source = Node::new("source").set("mode", mode).set("path", self.path(&socket)?);
            return Some(Stream::new("unix", [source.with_any(reconnect)]));
        }
        let (host, port) = (options.take("host").unwrap_or_default(), options.take("port")?);
        let protocol = if options.take_switch("telnet") == Some("on") { "telnet" } else { "raw" };
        let source = Node::new("source").set("mode", mode).set("host", host).set("service", port);
        Some(Stream::new("tcp", [source.with_any(reconnect), Node::new("protocol").set("type", protocol)]))
    }

    /// The notation of `-serial` and its like; `label` is the name that QEMU gives to the stream.
    pub(super) fn device_spec(&self, text: &str, label: &str) -> Option<Stream> {
        if let Some(id) = text.strip_prefix("chardev:") {
            return self.chardev(id);
        }
        if text.starts_with('/') {
            return Some(Stream::new("dev", [path(text.to_owned())]));
        }
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut options = match kind {
            "vc" | "null" | "pty" | "stdio" => Options::parse(&format!("backend={kind}"), None),
            "file" | "pipe" => Options::parse(&format!("backend={kind},path={rest}"), None),
            "unix" => Options::parse(&format!("backend=socket,path={rest}"), None),
            "tcp" | "telnet" => {
                let (place, more) = rest.split_once(',').unwrap_or((rest, ""));
                let (host, port) = place.rsplit_once(':')?;
                let telnet = if kind == "telnet" { "telnet=on," } else { "" };
                Options::parse(&format!("backend=socket,host={host},port={port},{telnet}{more}"), None)
            }
            "udp" => {
                let (to, from) = rest.split_once('@').unwrap_or((rest, ""));
                let (host, port) = to.rsplit_once(':')?;
                let (local, local_port) = from.rsplit_once(':').unwrap_or_default();
                let text =
                    format!("backend=udp,host={host},port={port},localaddr={local},localport={local_port}");
                Options::parse(&text, None)
            }
            _ => return None,
        };
        let stream = self.stream(&mut options, label)?;
        options.done().map(|()| stream)
    }
}

fn udp(options: &mut Options) -> Stream {
    let place = |mode: &str, host: Option<String>, service: Option<String>| {
        let node = Node::new("source").set("mode", mode);
        node.maybe("host", host).maybe("service", service.filter(|service| !service.is_empty()))
    };
    let bind = place("bind", options.take("localaddr"), options.take("localport"));
    let connect = place("connect", options.take("host"), options.take("port"));
    Stream::new("udp", [bind, connect])
}

/// Ports that are named by `-serial` and `-parallel`, in order.
pub(super) fn ports(draft: &mut Draft<'_>) {
    for (name, none) in [("serial", "serial"), ("parallel", "parallel")] {
        let mut number = 0;
        draft.each_piece(name, |draft, value| {
            let label = format!("{none}{number}");
            if matches!(value, "none") {
                return Some(Piece::default());
            }
            // What is mixed with the monitor is the port's alone from now on.
            let stream = draft.device_spec(value.strip_prefix("mon:").unwrap_or(value), &label)?;
            let (node, uses) = stream.element(name);
            let target = Node::new("target").set("port", number);
            number += 1;
            Some(Piece::of(common(node.with(target), Some(label), None)).using(uses))
        });
    }
}

/// A QEMU that was told nothing has a serial port: on its own window, or on its terminal where it has none.
pub(super) fn default_port(draft: &mut Draft<'_>) {
    let said = draft.has("serial") || draft.devices.iter().any(|node| node.is("serial"));
    if !said && (draft.is_q35() || draft.has_ide()) {
        let kind = if draft.has("nographic") { "stdio" } else { "vc" };
        let node = Node::new("serial").set("type", kind).with(Node::new("target").set("port", 0));
        draft.devices.push(common(node, Some("serial0".to_owned()), None));
    }
}

pub(super) fn device(draft: &Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let (element, target, place) = match driver {
        "isa-serial" => {
            let target = Node::new("target").set("type", "isa-serial").maybe("port", options.take("index"));
            ("serial", target.with(Node::new("model").set("name", driver)), draft.isa(options, "iobase")?)
        }
        "pci-serial" | "usb-serial" => {
            let target = Node::new("target").set("type", driver).with(Node::new("model").set("name", driver));
            ("serial", target, if driver == "pci-serial" { draft.pci(options)? } else { draft.usb(options)? })
        }
        "isa-parallel" => (
            "parallel",
            Node::new("target").maybe("port", options.take("index")),
            draft.isa(options, "iobase")?,
        ),
        "virtconsole" => {
            ("console", Node::new("target").set("type", "virtio"), draft.virtio_serial(options)?)
        }
        "virtserialport" => {
            let target = Node::new("target").set("type", "virtio").maybe("name", options.take("name"));
            ("channel", target, draft.virtio_serial(options)?)
        }
        _ => return None,
    };
    let id = options.take("id");
    let chardev = options.take("chardev")?;
    options.done()?;
    let stream = match (draft.chardev(&chardev), element) {
        (Some(stream), _) => stream,
        (None, "channel") => own_socket(draft, &chardev)?,
        (None, _) => return None,
    };
    let (node, uses) = stream.element(element);
    Some(Piece::of(common(node.with(target), id, place)).using(uses))
}

/// A channel on a socket that QEMU inherited: the daemon makes one for every channel without a path.
fn own_socket(draft: &Draft<'_>, id: &str) -> Option<Stream> {
    let (at, mut options) = draft.backend("chardev", "id", id)?;
    let is_server = options.take_switch("server") == Some("on") && options.take_switch("wait") == Some("off");
    let is_inherited = options.take("backend")? == "socket" && options.take("fd").is_some();
    options.take("id");
    options.done()?;
    let mut stream = Stream::new("unix", [Node::new("source").set("mode", "bind")]);
    stream.uses.push(at);
    (is_server && is_inherited).then_some(stream)
}
