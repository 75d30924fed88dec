//! Network cards and what they are connected to.

use super::draft::{Draft, Piece};
use super::node::Node;
use super::options::Options;
use super::place::{common, virtio_driver, virtio_model, virtio_name};

/// Cards that are not virtio's.
const MODELS: &[&str] = &[
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "igb",
    "i82550",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_pci",
    "ne2k_isa",
    "pcnet",
    "rtl8139",
    "tulip",
    "usb-net",
    "vmxnet3",
];

/// The host's end.
struct Net {
    kind: &'static str,
    nodes: Vec<Node>,
    uses: Vec<usize>,
}

impl Draft<'_> {
    fn netdev(&self, id: &str) -> Option<Net> {
        let (at, mut options) = self.backend("netdev", "id", id)?;
        options.take("id");
        let mut net = net(&mut options)?;
        options.done()?;
        net.uses.push(at);
        Some(net)
    }

    /// The address that QEMU gives to a card that has none.
    fn default_mac(&mut self) -> String {
        let mac = format!("52:54:00:12:34:{:02x}", 0x56 + self.nameless_cards);
        self.nameless_cards = self.nameless_cards.saturating_add(1) % 0x80;
        mac
    }

    /// QEMU's own choice of card.
    fn default_card(&self) -> &'static str {
        if self.is_q35() { "e1000e" } else { "e1000" }
    }
}

fn net(options: &mut Options) -> Option<Net> {
    let new = |kind, nodes: Vec<Node>| Some(Net { kind, nodes, uses: Vec::new() });
    match options.take("type")?.as_str() {
        "user" => {
            let ip = |family: &str, address: String, prefix: Option<String>| {
                Node::new("ip").set("family", family).set("address", address).maybe("prefix", prefix)
            };
            let mut ips = Vec::new();
            if let Some(net) = options.take("net") {
                let (address, prefix) =
                    net.split_once('/').map_or((net.as_str(), None), |(a, p)| (a, Some(p)));
                ips.push(ip("ipv4", address.to_owned(), prefix.map(str::to_owned)));
            }
            if let Some(address) = options.take("ipv6-prefix") {
                ips.push(ip("ipv6", address, options.take("ipv6-prefixlen")));
            }
            new("user", ips)
        }
        "bridge" => {
            let bridge = options.take("br").unwrap_or_else(|| "br0".to_owned());
            options.take("helper");
            new("bridge", vec![Node::new("source").set("bridge", bridge)])
        }
        "tap" => {
            let tune =
                options.take("sndbuf").map(|size| Node::new("tune").with(Node::with_text("sndbuf", size)));
            let vhost =
                options.take_switch("vhost").map(|state| if state == "on" { "vhost" } else { "qemu" });
            let inherited = options.take("fd").or(options.take("fds"));
            options.take("vhostfd").or(options.take("vhostfds"));
            let mut nodes: Vec<Node> = tune.into_iter().collect();
            if inherited.is_none() {
                nodes.extend(vhost.map(|name| Node::new("driver").set("name", name)));
                let queues = options.take("queues");
                if queues.is_some() {
                    return None;
                }
                match (options.take("script").as_deref(), options.take("downscript").as_deref()) {
                    (Some("no"), Some("no")) => {}
                    (script, None | Some("no")) => {
                        let script = script.filter(|script| *script != "no");
                        nodes.push(Node::new("script").set("path", script.unwrap_or("/etc/qemu-ifup")));
                    }
                    _ => return None,
                }
                let name = options.take("ifname");
                nodes.extend(name.map(|name| Node::new("target").set("dev", name).set("managed", "no")));
            }
            new("ethernet", nodes)
        }
        _ => None,
    }
}

fn interface(net: Net, mac: &str, model: &str) -> (Node, Vec<usize>) {
    let node = Node::new("interface").set("type", net.kind).with(Node::new("mac").set("address", mac));
    (node.with_any(net.nodes).with(Node::new("model").set("type", model)), net.uses)
}

/// A card that was given as `-device`.
pub(super) fn device(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let model = match virtio_name(driver) {
        Some(("net", generation)) => virtio_model(generation, options),
        _ if MODELS.contains(&driver) => driver.to_owned(),
        _ => return None,
    };
    let place = if driver == "usb-net" { draft.usb(options)? } else { draft.pci(options)? };
    let id = options.take("id");
    let net = draft.netdev(&options.take("netdev")?)?;
    let mut more: Vec<Node> = Vec::new();
    if model.starts_with("virtio") {
        more.extend(virtio_card(options)?.unless_empty());
        more.extend(options.take("host_mtu").map(|size| Node::new("mtu").set("size", size)));
    }
    more.extend(options.take("bootindex").map(|order| Node::new("boot").set("order", order)));
    let rom = match (options.take("romfile"), options.take("rombar")) {
        (Some(file), None) if file.is_empty() => Node::new("rom").set("enabled", "no"),
        (file, bar) => {
            let bar = bar.map(|bar| if bar == "0" { "off" } else { "on" });
            Node::new("rom").maybe("bar", bar).maybe("file", file)
        }
    };
    more.extend(rom.unless_empty());
    let mac = options.take("mac");
    options.done()?;
    let mac = mac.unwrap_or_else(|| draft.default_mac());
    let (node, uses) = interface(net, &mac, &model);
    Some(Piece::of(common(node.with_any(more), id, place)).using(uses))
}

fn virtio_card(options: &mut Options) -> Option<Node> {
    let mut switch = |name: &str| options.take_switch(name);
    let host = Node::new("host")
        .maybe("csum", switch("csum"))
        .maybe("gso", switch("gso"))
        .maybe("tso4", switch("host_tso4"))
        .maybe("tso6", switch("host_tso6"))
        .maybe("ecn", switch("host_ecn"))
        .maybe("ufo", switch("host_ufo"))
        .maybe("mrg_rxbuf", switch("mrg_rxbuf"));
    let guest = Node::new("guest")
        .maybe("csum", switch("guest_csum"))
        .maybe("tso4", switch("guest_tso4"))
        .maybe("tso6", switch("guest_tso6"))
        .maybe("ecn", switch("guest_ecn"))
        .maybe("ufo", switch("guest_ufo"));
    let driver = Node::new("driver")
        .maybe("ioeventfd", switch("ioeventfd"))
        .maybe("event_idx", switch("event_idx"))
        .maybe("rss", switch("rss"))
        .maybe("rss_hash_report", switch("hash"));
    let txmode = match options.take("tx").as_deref() {
        None => None,
        Some("bh") => Some("iothread"),
        Some("timer") => Some("timer"),
        Some(_) => return None,
    };
    let queues = match (options.take_switch("mq"), options.take("vectors")) {
        (Some("on"), Some(vectors)) => Some((vectors.parse::<u32>().ok()?.checked_sub(2)?) / 2),
        (None, None) => None,
        _ => return None,
    };
    let driver = driver.maybe("txmode", txmode).maybe("queues", queues);
    let driver = driver.maybe("rx_queue_size", options.take("rx_queue_size"));
    let driver = virtio_driver(driver.maybe("tx_queue_size", options.take("tx_queue_size")), options);
    Some(driver.with_any(host.unless_empty()).with_any(guest.unless_empty()))
}

/// A rule that leads connections of the guest to a channel.
pub(super) fn guestfwd(draft: &mut Draft<'_>) {
    draft.each_piece("netdev", |draft, value| {
        let mut options = Options::parse(value, Some("type"));
        options.skip("type", "user");
        let rule = options.take("guestfwd.0.str")?;
        let id = options.take("id");
        options.done()?;
        let (place, chardev) = rule.strip_prefix("tcp:")?.split_once("-chardev:")?;
        let (address, port) = place.rsplit_once(':')?;
        let target = Node::new("target").set("type", "guestfwd").set("address", address).set("port", port);
        let (node, uses) = draft.chardev(chardev)?.element("channel");
        Some(Piece::of(common(node.with(target), id, None)).using(uses))
    });
}

/// `-nic`: both ends in one.
pub(super) fn nic(draft: &mut Draft<'_>, value: &str) -> Option<Piece> {
    if value == "none" {
        return Some(Piece::default());
    }
    let mut options = Options::parse(value, Some("type"));
    let model = options.take("model").unwrap_or_else(|| draft.default_card().to_owned());
    let (mac, id) = (options.take("mac").or(options.take("macaddr")), options.take("id"));
    let net = net(&mut options)?;
    options.done()?;
    let model = model.strip_suffix("-pci").unwrap_or(&model).replace("virtio-net", "virtio");
    let mac = mac.unwrap_or_else(|| draft.default_mac());
    let (node, uses) = interface(net, &mac, &model);
    Some(Piece::of(common(node, id, None)).using(uses))
}

/// `-net nic` with `-net user` and the like, which share one hub: one pair is a card, more have no form here.
pub(super) fn hub(draft: &mut Draft<'_>) {
    let parts = draft.args.iter().enumerate().filter(|(_, arg)| arg.name == "net" && !arg.taken);
    let parts: Vec<(usize, String)> = parts.map(|(at, arg)| (at, arg.value().to_owned())).collect();
    let is_card = |text: &str| text == "nic" || text.starts_with("nic,");
    let piece = match &parts[..] {
        [(at, only)] if only == "none" => Some(Piece::default().using([*at])),
        [(one, card), (two, peer)] | [(two, peer), (one, card)] if is_card(card) && !is_card(peer) => {
            let card = card.strip_prefix("nic").unwrap_or_default();
            let pair = nic(draft, &format!("{peer}{}", card.replace("netdev=", "hub=")));
            pair.map(|piece| piece.using([*one, *two]))
        }
        _ => None,
    };
    if let Some(piece) = piece {
        draft.keep(piece);
    }
}

/// A QEMU that was told nothing has a card on its own network.
pub(super) fn default_card(draft: &mut Draft<'_>) {
    let said = ["net", "nic", "netdev"].iter().any(|name| draft.has(name));
    let model = draft.default_card().to_owned();
    if !said && let Some(piece) = nic(draft, &format!("user,model={model}")) {
        draft.keep(piece);
    }
}
