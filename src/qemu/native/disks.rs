//! Disks as the guest sees them.

use super::draft::{Draft, Piece};
use super::images::{Cache, Image};
use super::node::Node;
use super::options::Options;
use super::place::{common, virtio_model, virtio_name};

/// Disks whose names are not chosen yet.
#[derive(Debug, Default)]
pub(super) struct Disks(Vec<Unnamed>);

#[derive(Debug)]
struct Unnamed {
    disk: Node,
    target: Node,
    prefix: &'static str,
    /// The number in the name, where the command line shows it.
    number: Option<u32>,
}

impl Disks {
    /// Gives every disk a name that no other has.
    pub(super) fn name(self, boot: &[(&'static str, String)]) -> Vec<Node> {
        let mut used: Vec<(&str, u32)> =
            self.0.iter().filter_map(|disk| Some((disk.prefix, disk.number?))).collect();
        let mut named = Vec::new();
        for Unnamed { disk, target, prefix, number } in self.0 {
            let number = number.unwrap_or_else(|| {
                let free = (0..).find(|number| !used.contains(&(prefix, *number))).unwrap_or_default();
                used.push((prefix, free));
                free
            });
            let name = format!("{prefix}{}", letters(number));
            let place = boot.iter().find(|(floppy, _)| *floppy == name);
            let disk = disk.with_any(place.map(|(_, order)| Node::new("boot").set("order", order)));
            named.push(disk.with(target.set("dev", name)));
        }
        named
    }
}

/// `a` to `z`, `aa`, …
fn letters(number: u32) -> String {
    let last = char::from(b'a' + u8::try_from(number % 26).unwrap_or_default());
    match number / 26 {
        0 => last.to_string(),
        rest => letters(rest - 1) + &last.to_string(),
    }
}

/// The number of a disk, from libvirt's alias or from its place.
fn number_of(bus: &str, alias: Option<&str>, place: Option<&Node>) -> Option<u32> {
    if let Some((_, number)) = alias.and_then(|alias| alias.split_once("-disk")) {
        return number.parse().ok();
    }
    let part = |name: &str| place?.attribute(name)?.parse::<u32>().ok();
    match bus {
        "ide" => part("bus")?.checked_mul(2)?.checked_add(part("unit")?),
        "sata" => part("controller")?.checked_mul(6)?.checked_add(part("unit")?),
        "fdc" => part("unit"),
        _ => None,
    }
}

/// What a disk is besides its image.
struct Shape {
    device: &'static str,
    bus: &'static str,
    model: Option<String>,
    place: Option<Node>,
}

fn prefix(bus: &str) -> &'static str {
    match bus {
        "ide" => "hd",
        "virtio" => "vd",
        "fdc" => "fd",
        _ => "sd",
    }
}

impl Draft<'_> {
    fn keep_disk(&mut self, shape: Shape, image: Image, parts: Parts, id: Option<String>) -> Option<()> {
        let Shape { device, bus, model, place } = shape;
        let kind = if image.source.is_some() { image.kind } else { "file" };
        let mut driver = Node::new("driver").set("name", "qemu").maybe("type", image.format.as_deref());
        for (name, value) in &image.driver {
            driver = driver.set(name, value);
        }
        let mode = Cache { writeback: parts.write_cache.or(image.cache.writeback), ..image.cache }.mode()?;
        driver = driver.maybe("cache", mode).with_any(image.metadata_cache);
        driver = parts.driver.into_iter().fold(driver, |driver, (name, value)| driver.set(name, value));
        let disk = Node::new("disk").set("type", kind).set("device", device).maybe("model", model);
        let disk = disk.with(driver).with_any(image.source).with_any(image.backing);
        let readonly = image.readonly && device != "cdrom";
        let disk = disk.with_any(readonly.then(|| Node::new("readonly")));
        let disk = disk.with_any(image.transient.then(|| Node::new("transient")));
        let number = number_of(bus, id.as_deref(), place.as_ref());
        let disk = common(disk.with_any(parts.nodes), id, place);
        let target = parts.target.set("bus", bus);
        self.disks.0.push(Unnamed { disk, target, prefix: prefix(bus), number });
        image.uses.into_iter().for_each(|at| self.take(at));
        Some(())
    }

    /// `-hda` to `-hdd`, `-cdrom`, `-fda`, `-fdb` and `-drive` with an interface are all one.
    pub(super) fn legacy_drive(&mut self, text: &str) -> Option<()> {
        let mut options = Options::parse(text, None);
        let interface = options.take("if").unwrap_or_else(|| "ide".to_owned());
        if interface == "pflash" {
            return self.pflash(&mut options);
        }
        let id = options.take("id");
        let serial = options.take("serial").map(|serial| Node::with_text("serial", serial));
        let number = |options: &mut Options, name: &str| match options.take(name) {
            Some(text) => text.parse::<u32>().ok().map(Some),
            None => Some(None),
        };
        let (index, bus, unit) =
            (number(&mut options, "index")?, number(&mut options, "bus")?, number(&mut options, "unit")?);
        let image = self.drive(&mut options)?;
        options.done()?;
        let device = if image.is_cdrom { "cdrom" } else { "disk" };
        let (device, bus, place) = match interface.as_str() {
            "ide" => {
                let index = match (index, bus, unit) {
                    (Some(index), None, None) => index,
                    (None, None, None) => self.free_ide(),
                    (None, bus, unit) if self.has_ide() => {
                        bus.unwrap_or(0).checked_mul(2)?.checked_add(unit.unwrap_or(0))?
                    }
                    (None, bus, None | Some(0)) => bus.unwrap_or(0),
                    _ => return None,
                };
                let (bus, number, unit) =
                    if self.has_ide() { ("ide", index / 2, index % 2) } else { ("sata", 0, index) };
                (device, bus, Some(drive_address(number, unit)))
            }
            "floppy" => {
                let taken = self.disks.0.iter().filter(|disk| disk.prefix == "fd").count();
                let unit = index.or(unit).unwrap_or(u32::try_from(taken).unwrap_or(u32::MAX));
                ("floppy", "fdc", Some(drive_address(0, unit)))
            }
            "virtio" if bus.is_none() && unit.is_none() => (device, "virtio", None),
            "scsi" if bus.is_none() && unit.is_none() => (device, "scsi", None),
            _ => return None,
        };
        let parts = Parts { nodes: serial.into_iter().collect(), ..Parts::default() };
        self.keep_disk(Shape { device, bus, model: None, place }, image, parts, id)
    }

    fn free_ide(&self) -> u32 {
        let taken = |index: u32| {
            let (bus, unit) = if self.has_ide() { (index / 2, index % 2) } else { (0, index) };
            let place = drive_address(bus, unit);
            self.disks
                .0
                .iter()
                .any(|disk| matches!(disk.prefix, "hd" | "sd") && disk.disk.child("address") == Some(&place))
        };
        (0..).find(|index| !taken(*index)).unwrap_or(0)
    }

    /// Firmware on flash chips: the first is the code, the second the variables.
    fn pflash(&mut self, options: &mut Options) -> Option<()> {
        let unit = options.take("unit").or(options.take("index"));
        let mut image = self.drive(options)?;
        options.done()?;
        let file = image.source.take()?.attribute("file")?.to_owned();
        let os = self.domain.child_mut("os");
        let is_first = unit.map_or(os.child("loader").is_none(), |unit| unit == "0");
        let readonly = if image.readonly { "yes" } else { "no" };
        let format = image.format.filter(|format| format != "raw");
        os.push(match is_first {
            true => Node::with_text("loader", file)
                .set("readonly", readonly)
                .set("type", "pflash")
                .maybe("format", format),
            false => Node::with_text("nvram", file).maybe("format", format),
        });
        Some(())
    }
}

fn drive_address(bus: u32, unit: u32) -> Node {
    let node = Node::new("address").set("type", "drive").set("controller", 0);
    node.set("bus", bus).set("target", 0).set("unit", unit)
}

/// What the device says of its disk.
struct Parts {
    nodes: Vec<Node>,
    driver: Vec<(&'static str, String)>,
    target: Node,
    write_cache: Option<bool>,
}

impl Default for Parts {
    fn default() -> Self {
        Self { nodes: Vec::new(), driver: Vec::new(), target: Node::new("target"), write_cache: None }
    }
}

impl Parts {
    fn take(options: &mut Options, bus: &str, id: Option<&str>) -> Option<Self> {
        let mut parts = Self::default();
        let text = |name: &str, value: Option<String>| value.map(|value| Node::with_text(name, value));
        let serial = options.take("serial").map(|serial| serial.replace("\\ ", " ").replace("\\\\", "\\"));
        if let Some(name) = options.take("device_id") {
            let usual = id.and_then(|id| Some(id == name.strip_prefix("drive-")?));
            if usual != Some(true) && serial.as_ref() != Some(&name) {
                return None;
            }
        }
        parts.nodes.extend(text("serial", serial));
        let wwn = match options.take("wwn") {
            Some(wwn) => Some(super::options::number(&wwn)?),
            None => None,
        };
        parts.nodes.extend(text("wwn", wwn.map(|wwn| format!("{wwn:016x}"))));
        parts.nodes.extend(text("vendor", options.take("vendor")));
        let product = if bus == "scsi" { "product" } else { "model" };
        parts.nodes.extend(text("product", options.take(product)));
        let shared = options.take_switch("share-rw") == Some("on");
        parts.nodes.extend(shared.then(|| Node::new("shareable")));
        parts.nodes.extend(options.take("bootindex").map(|order| Node::new("boot").set("order", order)));
        let block = Node::new("blockio")
            .maybe("logical_block_size", options.take("logical_block_size"))
            .maybe("physical_block_size", options.take("physical_block_size"))
            .maybe("discard_granularity", options.take("discard_granularity"));
        parts.nodes.extend(block.unless_empty());
        let geometry = Node::new("geometry")
            .maybe("cyls", options.take("cyls"))
            .maybe("heads", options.take("heads"))
            .maybe("secs", options.take("secs"))
            .maybe("trans", options.take("bios-chs-trans"));
        parts.nodes.extend(geometry.unless_empty());
        parts.target = parts.target.maybe("rotation_rate", options.take("rotation_rate"));
        let removable = options.take_switch("removable");
        parts.target = parts.target.maybe("removable", removable);
        parts.write_cache = options.take_switch("write-cache").map(|state| state == "on");
        let (write, read) = (options.take("werror"), options.take("rerror"));
        let write = write.map(|policy| if policy == "enospc" { "enospace".to_owned() } else { policy });
        let read = read.filter(|read| Some(read) != write.as_ref());
        parts.driver.extend(write.map(|policy| ("error_policy", policy)));
        parts.driver.extend(read.map(|policy| ("rerror_policy", policy)));
        Some(parts)
    }
}

/// A disk that was given as `-device`.
pub(super) fn device(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let mut own = Vec::new();
    let (device, bus, place, model) = match driver {
        "ide-hd" | "ide-cd" => {
            let (bus, place) = draft.ide(options)?;
            (if driver == "ide-cd" { "cdrom" } else { "disk" }, bus, place, None)
        }
        "scsi-hd" | "scsi-cd" | "scsi-block" => {
            let device = match driver {
                "scsi-hd" => "disk",
                "scsi-cd" => "cdrom",
                _ => "lun",
            };
            (device, "scsi", draft.scsi(options)?, None)
        }
        "usb-storage" => ("disk", "usb", draft.usb(options)?, None),
        "floppy" => {
            let unit = options.take("unit").map_or(Some(0), |unit| unit.parse().ok())?;
            ("floppy", "fdc", Some(drive_address(0, unit)), None)
        }
        _ => {
            let ("blk", generation) = virtio_name(driver)? else { return None };
            let model = Some(virtio_model(generation, options)).filter(|model| model != "virtio");
            let mut note =
                |name: &'static str, value: Option<String>| own.extend(value.map(|value| (name, value)));
            if let Some(id) = options.take("iothread") {
                note("iothread", Some(draft.iothread(&id)?.to_string()));
            }
            note("ioeventfd", options.take_switch("ioeventfd").map(str::to_owned));
            note("event_idx", options.take_switch("event_idx").map(str::to_owned));
            note("queues", options.take("num-queues"));
            note("queue_size", options.take("queue-size"));
            for (name, key) in [
                ("iommu", "iommu_platform"),
                ("ats", "ats"),
                ("packed", "packed"),
                ("page_per_vq", "page-per-vq"),
            ] {
                note(name, options.take_switch(key).map(str::to_owned));
            }
            ("disk", "virtio", draft.pci(options)?, model)
        }
    };
    let id = options.take("id");
    let mut parts = Parts::take(options, bus, id.as_deref())?;
    parts.driver.extend(own);
    let drive = options.take("drive");
    options.done()?;
    let image = match drive {
        Some(drive) => draft.image(&drive)?,
        None => Image { kind: "file", ..Image::default() },
    };
    let device = if image.is_cdrom { "cdrom" } else { device };
    draft.keep_disk(Shape { device, bus, model, place }, image, parts, id)?;
    Some(Piece::default())
}
