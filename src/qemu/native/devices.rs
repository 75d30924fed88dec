//! `-device`: each driver to those who know it.

use super::draft::{Draft, Piece};
use super::node::Node;
use super::options::Options;
use super::place::{common, virtio_driver, virtio_model, virtio_name};
use super::{controllers, disks, networks, screens, streams};

type Translate = fn(&mut Draft<'_>, &str, &mut Options) -> Option<Piece>;

/// Who may know a driver.
const KINDS: &[Translate] = &[
    controllers::device,
    disks::device,
    networks::device,
    |draft, driver, options| streams::device(draft, driver, options),
    screens::card,
    screens::sound,
    input,
    small,
];

pub(super) fn all(draft: &mut Draft<'_>) {
    draft.each_piece("device", |draft, value| {
        let options = Options::parse(value, Some("driver"));
        KINDS.iter().find_map(|translate| {
            let mut options = options.clone();
            let driver = options.take("driver")?;
            translate(draft, &driver, &mut options)
        })
    });
}

fn input(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let id = options.take("id");
    let usb = match driver {
        "usb-mouse" => Some("mouse"),
        "usb-tablet" => Some("tablet"),
        "usb-kbd" => Some("keyboard"),
        _ => None,
    };
    let node = Node::new("input");
    if let Some(kind) = usb {
        let place = draft.usb(options)?;
        options.done()?;
        return Some(Piece::of(common(node.set("type", kind).set("bus", "usb"), id, place)));
    }
    let (kind, generation) = match virtio_name(driver)? {
        (kind @ ("mouse" | "tablet" | "keyboard"), generation) => (kind, generation),
        ("input-host", generation) => ("passthrough", generation),
        _ => return None,
    };
    let model = Some(virtio_model(generation, options)).filter(|model| model != "virtio");
    let place = draft.pci(options)?;
    let extra = virtio_driver(Node::new("driver"), options).unless_empty();
    let source = options.take("evdev").map(|evdev| Node::new("source").set("evdev", evdev));
    options.done()?;
    let node = node.set("type", kind).set("bus", "virtio").maybe("model", model);
    Some(Piece::of(common(node.with_any(extra).with_any(source), id, place)))
}

/// Devices with little to say.
fn small(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let piece = match driver {
        "usb-hub" => {
            let (id, place) = (options.take("id"), draft.usb(options)?);
            Piece::of(common(Node::new("hub").set("type", "usb"), id, place))
        }
        "i6300esb" | "ib700" | "diag288" => {
            let id = options.take("id");
            let place = if driver == "i6300esb" { draft.pci(options)? } else { None };
            Piece::of(common(Node::new("watchdog").set("model", driver), id, place))
        }
        "pvpanic" => {
            let place = draft.isa(options, "ioport")?;
            Piece::of(common(Node::new("panic").set("model", "isa"), options.take("id"), place))
        }
        "pvpanic-pci" => {
            let (id, place) = (options.take("id"), draft.pci(options)?);
            Piece::of(common(Node::new("panic").set("model", "pvpanic"), id, place))
        }
        "vmgenid" => {
            options.take("id");
            let guid = options.take("guid").filter(|guid| guid != "auto")?;
            options.done()?;
            draft.domain.push(Node::with_text("genid", guid));
            Piece::default()
        }
        "vmcoreinfo" => {
            options.done()?;
            draft.feature("vmcoreinfo").put("state", "on");
            Piece::default()
        }
        // The daemon adds it where there are drives.
        "isa-fdc" if draft.is_q35() => {
            for (name, option) in [("fda", "bootindexA"), ("fdb", "bootindexB")] {
                options.take(option).into_iter().for_each(|order| draft.floppy_boot.push((name, order)));
            }
            Piece::default()
        }
        _ => match virtio_name(driver)? {
            ("balloon", generation) => balloon(draft, generation, options)?,
            ("rng", generation) => rng(draft, generation, options)?,
            _ => return None,
        },
    };
    options.done()?;
    Some(piece)
}

fn balloon(draft: &Draft<'_>, generation: &str, options: &mut Options) -> Option<Piece> {
    let node = Node::new("memballoon")
        .set("model", virtio_model(generation, options))
        .maybe("autodeflate", options.take_switch("deflate-on-oom"))
        .maybe("freePageReporting", options.take_switch("free-page-reporting"));
    let driver = virtio_driver(Node::new("driver"), options).unless_empty();
    let (id, place) = (options.take("id"), draft.pci(options)?);
    Some(Piece::of(common(node.with_any(driver), id, place)))
}

fn rng(draft: &Draft<'_>, generation: &str, options: &mut Options) -> Option<Piece> {
    let node = Node::new("rng").set("model", virtio_model(generation, options));
    let rate = match (options.take("max-bytes"), options.take("period")) {
        (None, None) => None,
        (bytes, period) => Some(Node::new("rate").set("bytes", bytes?).maybe("period", period)),
    };
    let driver = virtio_driver(Node::new("driver"), options).unless_empty();
    let (id, place) = (options.take("id"), draft.pci(options)?);
    let (backend, uses) = match options.take("rng") {
        None => (Node::with_text("backend", "/dev/urandom").set("model", "random"), Vec::new()),
        Some(name) => source(draft, &name)?,
    };
    let node = node.with_any(rate).with(backend).with_any(driver);
    Some(Piece::of(common(node, id, place)).using(uses))
}

/// Where random numbers come from.
fn source(draft: &Draft<'_>, name: &str) -> Option<(Node, Vec<usize>)> {
    let (at, mut object) = draft.backend("object", "id", name)?;
    object.take("id");
    let (node, mut uses) = match object.take("qom-type")?.as_str() {
        "rng-random" => {
            let file = object.take("filename").unwrap_or_else(|| "/dev/urandom".to_owned());
            (Node::with_text("backend", file).set("model", "random"), Vec::new())
        }
        "rng-builtin" => (Node::new("backend").set("model", "builtin"), Vec::new()),
        "rng-egd" => draft.chardev(&object.take("chardev")?)?.backend("egd"),
        _ => return None,
    };
    object.done()?;
    uses.push(at);
    Some((node, uses))
}
