//! Displays, graphics cards, and sound.

use super::draft::{Draft, Piece};
use super::node::Node;
use super::options::Options;
use super::place::{common, virtio_driver, virtio_name};

/// The first port of a VNC display.
const VNC: u32 = 5900;

/// Numbers for the host's audio backends: those that libvirt's names carry, or the next ones.
pub(super) fn number_audios(draft: &Draft<'_>) -> Vec<(String, u32)> {
    let mut numbered: Vec<(String, u32)> = Vec::new();
    for arg in draft.args.iter().filter(|arg| arg.name == "audiodev") {
        let Some(id) = Options::parse(arg.value(), Some("driver")).take("id") else { continue };
        let named = id.strip_prefix("audio").and_then(|number| number.parse().ok());
        let free = |number: &u32| numbered.iter().all(|(_, used)| used != number);
        let number = named.filter(free).or_else(|| (1..).find(free)).unwrap_or(1);
        numbered.push((id, number));
    }
    numbered
}

impl Draft<'_> {
    /// `<audio id=…/>` inside a device, for the backend of that name.
    fn audio(&self, options: &mut Options) -> Option<Option<Node>> {
        let Some(id) = options.take("audiodev") else { return Some(None) };
        let (_, number) = self.audios.iter().find(|(name, _)| *name == id)?;
        Some(Some(Node::new("audio").set("id", number)))
    }
}

/// The host's audio backends.
pub(super) fn audios(draft: &mut Draft<'_>) {
    draft.each_piece("audiodev", |draft, value| {
        let mut options = Options::parse(value, Some("driver"));
        let id = options.take("id")?;
        let (_, number) = draft.audios.iter().find(|(name, _)| *name == id)?;
        let kind = match options.take("driver")?.as_str() {
            "none" => "none",
            "wav" => "file",
            "alsa" => "alsa",
            "oss" => "oss",
            "pa" => "pulseaudio",
            "sdl" => "sdl",
            "jack" => "jack",
            "pipewire" => "pipewire",
            "spice" => "spice",
            "dbus" => "dbus",
            _ => return None,
        };
        let node = Node::new("audio").set("id", number).set("type", kind);
        let node = node
            .maybe("timerPeriod", options.take("timer-period"))
            .maybe("tryMMap", options.take_yes_no("try-mmap"))
            .maybe("exclusive", options.take_yes_no("exclusive"))
            .maybe("dspPolicy", options.take("dsp-policy"))
            .maybe("path", options.take("path"))
            .maybe("serverName", options.take("server"));
        let input = stream("input", options.take_inner("in"))?;
        let output = stream("output", options.take_inner("out"))?;
        options.done()?;
        Some(Piece::of(node.with_any(input).with_any(output)))
    });
}

/// One direction of a backend.
fn stream(name: &str, mut options: Options) -> Option<Option<Node>> {
    let mut node = Node::new(name)
        .maybe("mixingEngine", options.take_yes_no("mixing-engine"))
        .maybe("fixedSettings", options.take_yes_no("fixed-settings"));
    for (attribute, option) in [
        ("voices", "voices"),
        ("bufferLength", "buffer-length"),
        ("dev", "dev"),
        ("bufferCount", "buffer-count"),
        ("serverName", "server-name"),
        ("clientName", "client-name"),
        ("connectPorts", "connect-ports"),
        ("name", "name"),
        ("streamName", "stream-name"),
        ("latency", "latency"),
    ] {
        node = node.maybe(attribute, options.take(option));
    }
    node = node
        .maybe("tryPoll", options.take_yes_no("try-poll"))
        .maybe("exactName", options.take_yes_no("exact-name"));
    let settings = Node::new("settings")
        .maybe("frequency", options.take("frequency"))
        .maybe("channels", options.take("channels"))
        .maybe("format", options.take("format"));
    options.done()?;
    Some(node.with_any(settings.unless_empty()).unless_empty())
}

/// A sound card.
pub(super) fn sound(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let model = match driver {
        "ES1370" => "es1370",
        "AC97" => "ac97",
        "intel-hda" => "ich6",
        "ich9-intel-hda" => "ich9",
        "usb-audio" => "usb",
        "sb16" => "sb",
        "virtio-sound" | "virtio-sound-pci" => "virtio",
        "hda-duplex" | "hda-micro" | "hda-output" => return codec(draft, driver, options),
        _ => return None,
    };
    let node = Node::new("sound").set("model", if model == "sb" { "sb16" } else { model });
    let node =
        node.maybe("multichannel", options.take_yes_no("multi")).maybe("streams", options.take("streams"));
    let extra =
        (model == "virtio").then(|| virtio_driver(Node::new("driver"), options).unless_empty()).flatten();
    let id = options.take("id");
    let place = match model {
        "usb" => draft.usb(options)?,
        "sb" => draft.isa(options, "iobase")?,
        _ => draft.pci(options)?,
    };
    let audio = draft.audio(options)?;
    options.done()?;
    Some(Piece::of(common(node.with_any(extra).with_any(audio), id, place)))
}

/// A codec is a part of the card that its bus belongs to.
fn codec(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let bus = options.take("bus");
    let card = bus.as_deref().map(|bus| bus.rsplit_once('.').map_or(bus, |(card, _)| card));
    options.take("id");
    options.take("cad");
    let audio = draft.audio(options)?;
    options.done()?;
    let is_it = |node: &&mut Node| {
        let id = node.child("alias").and_then(|alias| alias.attribute("name"));
        let is_hda = matches!(node.attribute("model"), Some("ich6" | "ich9"));
        node.is("sound") && is_hda && card.is_none_or(|card| id == Some(card))
    };
    let sound = draft.devices.iter_mut().rev().find(is_it)?;
    sound.push(Node::new("codec").set("type", driver.strip_prefix("hda-")?));
    if sound.child("audio").is_none() {
        audio.into_iter().for_each(|audio| sound.push(audio));
    }
    Some(Piece::default())
}

/// A graphics card that was given as `-device`.
pub(super) fn card(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let (kind, is_primary) = match driver {
        "VGA" => ("vga", true),
        "cirrus-vga" => ("cirrus", true),
        "vmware-svga" => ("vmvga", true),
        "qxl-vga" => ("qxl", true),
        "qxl" => ("qxl", false),
        "bochs-display" => ("bochs", true),
        "ramfb" => ("ramfb", true),
        "virtio-vga" | "virtio-vga-gl" => ("virtio", true),
        _ => match virtio_name(driver)? {
            ("gpu" | "gpu-gl", "") => ("virtio", false),
            _ => return None,
        },
    };
    let id = options.take("id");
    let place = if driver == "ramfb" { None } else { draft.pci(options)? };
    let mut model = Node::new("model").set("type", kind);
    let mebibytes = |text: String| text.parse::<u64>().ok()?.checked_mul(1024);
    let kibibytes = |text: String| Some(text.parse::<u64>().ok()? / 1024);
    model = match kind {
        "qxl" => model
            .maybe("ram", options.take("ram_size").and_then(kibibytes))
            .maybe("vram", options.take("vram_size").and_then(kibibytes))
            .maybe("vram64", options.take("vram64_size_mb").and_then(mebibytes))
            .maybe("vgamem", options.take("vgamem_mb").and_then(mebibytes)),
        "bochs" => model.maybe("vram", options.take("vgamem").and_then(kibibytes)),
        _ => model.maybe("vram", options.take("vgamem_mb").and_then(mebibytes)),
    };
    let heads = options.take("max_outputs");
    let primary = if is_primary { "yes" } else { "no" };
    model = model.maybe("heads", heads).set("primary", primary).maybe("blob", options.take_switch("blob"));
    let accelerated = driver.contains("-gl").then_some("yes").or(options.take_yes_no("virgl"));
    let acceleration = Node::new("acceleration").maybe("accel3d", accelerated);
    let resolution =
        Node::new("resolution").maybe("x", options.take("xres")).maybe("y", options.take("yres"));
    let model = model.with_any(acceleration.unless_empty()).with_any(resolution.unless_empty());
    let extra =
        (kind == "virtio").then(|| virtio_driver(Node::new("driver"), options).unless_empty()).flatten();
    options.done()?;
    Some(Piece::of(common(Node::new("video").with_any(extra).with(model), id, place)))
}

/// `-vga`, or the card that QEMU chooses by itself.
pub(super) fn vga(draft: &mut Draft<'_>) {
    let card = |kind: &str| {
        Piece::of(Node::new("video").with(Node::new("model").set("type", kind).set("primary", "yes")))
    };
    draft.each_piece("vga", |_, value| {
        Some(match value {
            "std" => card("vga"),
            "cirrus" | "qxl" | "virtio" => card(value),
            "vmware" => card("vmvga"),
            "none" => Piece::default(),
            _ => return None,
        })
    });
    let said =
        draft.has("vga") || draft.has("nodefaults") || draft.devices.iter().any(|node| node.is("video"));
    // A QEMU for another machine than a PC has none.
    if !said && (draft.is_q35() || draft.has_ide()) {
        draft.keep(card("vga"));
    }
}

/// How users see the screen.
pub(super) fn displays(draft: &mut Draft<'_>) {
    let keymap = draft.args.iter().position(|arg| arg.name == "k");
    let layout = keymap.and_then(|at| draft.args.get(at)).map(|arg| arg.value().to_owned());
    let mut has_keymap = false;
    draft.each_piece("vnc", |draft, value| {
        let piece = vnc(draft, value, layout.as_deref())?;
        has_keymap = true;
        Some(piece)
    });
    draft.each_piece("display", |draft, value| match value {
        "none" => Some(Piece::default()),
        _ => match value.strip_prefix("vnc=") {
            Some(display) => vnc(draft, display, layout.as_deref()),
            None if value == "sdl" => Some(Piece::of(Node::new("graphics").set("type", "sdl"))),
            None => egl(value),
        },
    });
    draft.each_piece("spice", |draft, value| spice(draft, value));
    if let (Some(at), true) = (keymap, has_keymap) {
        draft.take(at);
    }
}

fn egl(value: &str) -> Option<Piece> {
    let mut options = Options::parse(value, Some("type"));
    (options.take("type")? == "egl-headless").then_some(())?;
    let gl = options.take("rendernode").map(|node| Node::new("gl").set("rendernode", node));
    options.done()?;
    Some(Piece::of(Node::new("graphics").set("type", "egl-headless").with_any(gl)))
}

fn vnc(draft: &Draft<'_>, value: &str, keymap: Option<&str>) -> Option<Piece> {
    let mut options = Options::parse(value, Some("vnc"));
    let display = options.take("vnc")?;
    let mut node = Node::new("graphics").set("type", "vnc");
    let listen = Node::new("listen");
    if display == "none" {
        node = node.with(listen.set("type", "none"));
    } else if let Some(path) = display.strip_prefix("unix:") {
        node = node.with(listen.set("type", "socket").set("socket", draft.path(path)?));
    } else {
        let (host, number) = display.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        node = node.set("port", number.parse::<u32>().ok()? + VNC).set("autoport", "no");
        node = node.maybe("websocket", options.take("websocket"));
        node = node.with(listen.set("type", "address").set("address", host));
    }
    node = node
        .maybe("sharePolicy", options.take("share"))
        .maybe("powerControl", options.take_yes_no("power-control"));
    if options.take_switch("password") == Some("on") {
        // Nobody gets in until a password is set.
        node = node.set("passwd", "");
    }
    let audio = draft.audio(&mut options)?;
    options.done()?;
    Some(Piece::of(node.maybe("keymap", keymap).with_any(audio)))
}

fn spice(draft: &Draft<'_>, value: &str) -> Option<Piece> {
    let mut options = Options::parse(value, None);
    let mut node = Node::new("graphics").set("type", "spice");
    if options.take_switch("unix") == Some("on") {
        let path = draft.path(&options.take("addr")?)?;
        node = node.with(Node::new("listen").set("type", "socket").set("socket", path));
    } else {
        node = node.maybe("port", options.take("port")).maybe("tlsPort", options.take("tls-port"));
        let address = options.take("addr").unwrap_or_else(|| "0.0.0.0".to_owned());
        node = node
            .set("autoport", "no")
            .with(Node::new("listen").set("type", "address").set("address", address));
    }
    options.skip("disable-ticketing", "on");
    options.skip("seamless-migration", "on");
    options.done()?;
    Some(Piece::of(node))
}

/// `-soundhw`
pub(super) fn legacy_sound(draft: &mut Draft<'_>) {
    draft.each_piece("soundhw", |_, value| {
        let model = |name: &str| match name {
            "ac97" | "es1370" | "sb16" | "pcspk" => Some(name.to_owned()),
            "hda" => Some("ich6".to_owned()),
            _ => None,
        };
        let models: Vec<String> = value.split(',').map(model).collect::<Option<_>>()?;
        let nodes = models.into_iter().map(|model| Node::new("sound").set("model", model)).collect();
        Some(Piece { nodes, uses: Vec::new() })
    });
}
