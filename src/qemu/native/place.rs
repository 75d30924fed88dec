//! Where a device is plugged in.

use super::draft::Draft;
use super::node::Node;
use super::options::{Options, number};

fn address(kind: &str) -> Node {
    Node::new("address").set("type", kind)
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

impl Draft<'_> {
    /// The place on a PCI bus. The inner `None`: QEMU chooses one.
    pub(super) fn pci(&self, options: &mut Options) -> Option<Option<Node>> {
        let bus = options.take("bus");
        let controller = match &bus {
            Some(bus) => self.controller("pci", bus)?,
            None => self.controllers.first()?,
        };
        let multifunction = options.take_switch("multifunction");
        let place = match options.take("addr") {
            Some(text) => text,
            // A port has one place.
            None if controller.model.ends_with("-port") => "0".to_owned(),
            None if controller.index == 0 && multifunction.is_none() => return Some(None),
            None => return None,
        };
        let (slot, function) = match place.split_once('.') {
            Some((slot, function)) => (hex(slot)?, hex(function)?),
            None => (hex(&place)?, 0),
        };
        let node = address("pci").set("domain", "0x0000").set("bus", format!("0x{:02x}", controller.index));
        let node = node.set("slot", format!("0x{slot:02x}")).set("function", format!("0x{function:x}"));
        Some(Some(node.maybe("multifunction", multifunction)))
    }

    pub(super) fn usb(&self, options: &mut Options) -> Option<Option<Node>> {
        let (bus, port) = (options.take("bus"), options.take("port"));
        let index = match (&bus, &port) {
            (None, None) => return Some(None),
            (Some(bus), _) => self.controller("usb", bus)?.index,
            (None, Some(_)) => 0,
        };
        Some(Some(address("usb").set("bus", index).maybe("port", port)))
    }

    pub(super) fn virtio_serial(&self, options: &mut Options) -> Option<Option<Node>> {
        let (bus, port) = (options.take("bus"), options.take("nr"));
        let Some(bus) = bus else {
            return port.is_none().then_some(None);
        };
        let controller = self.controller("virtio-serial", &bus)?.index;
        let bus = bus.rsplit_once('.').map_or("0", |(_, bus)| bus).to_owned();
        Some(Some(address("virtio-serial").set("controller", controller).set("bus", bus).maybe("port", port)))
    }

    pub(super) fn isa(&self, options: &mut Options, base: &str) -> Option<Option<Node>> {
        let (base, irq) = (options.take(base), options.take("irq"));
        if base.is_none() && irq.is_none() {
            return Some(None);
        }
        let as_hex = |text: Option<String>| match text {
            Some(text) => number(&text).map(|value| Some(format!("0x{value:x}"))),
            None => Some(None),
        };
        Some(Some(address("isa").maybe("iobase", as_hex(base)?).maybe("irq", as_hex(irq)?)))
    }

    /// The place of a disk on an IDE or SATA bus, with the kind of bus.
    pub(super) fn ide(&self, options: &mut Options) -> Option<(&'static str, Option<Node>)> {
        let built_in = if self.has_ide() { "ide" } else { "sata" };
        let (bus, unit) = (options.take("bus"), options.take("unit"));
        let Some(bus) = bus else {
            return unit.is_none().then_some((built_in, None));
        };
        let (id, number) = bus.rsplit_once('.')?;
        let drive = |controller: u32| address("drive").set("controller", controller);
        if id == "ide" && built_in == "ide" {
            return Some((
                "ide",
                Some(
                    drive(0).set("bus", number).set("target", 0).set("unit", unit.as_deref().unwrap_or("0")),
                ),
            ));
        }
        let controller = match id {
            "ide" => 0,
            _ => self.controllers.iter().find(|it| it.kind == "sata" && it.id == id)?.index,
        };
        let has_unit = unit.is_some_and(|unit| unit != "0");
        (!has_unit)
            .then(|| ("sata", Some(drive(controller).set("bus", 0).set("target", 0).set("unit", number))))
    }

    pub(super) fn scsi(&self, options: &mut Options) -> Option<Option<Node>> {
        let (bus, channel) = (options.take("bus"), options.take("channel"));
        let (target, unit) = (options.take("scsi-id"), options.take("lun"));
        let controller = match &bus {
            Some(bus) => self.controller("scsi", bus)?,
            None if target.is_none() && unit.is_none() => return Some(None),
            None => self.controllers.iter().find(|it| it.kind == "scsi")?,
        };
        let Some(target) = target else {
            return unit.is_none().then_some(None);
        };
        // Old controllers have no logical units.
        let is_flat = matches!(controller.model.as_str(), "lsilogic" | "am53c974");
        let (target, unit) =
            if is_flat { ("0".to_owned(), target) } else { (target, unit.unwrap_or("0".to_owned())) };
        let drive = address("drive")
            .set("controller", controller.index)
            .set("bus", channel.as_deref().unwrap_or("0"));
        Some(Some(drive.set("target", target).set("unit", unit)))
    }
}

/// The parts of an element that every device has.
pub(super) fn common(node: Node, id: Option<String>, place: Option<Node>) -> Node {
    node.with_any(id.map(|id| Node::new("alias").set("name", id))).with_any(place)
}

/// A virtio device's kind and its drafts, from a driver's name such as `virtio-blk-pci-transitional`.
pub(super) fn virtio_name(driver: &str) -> Option<(&str, &'static str)> {
    let name = driver.strip_prefix("virtio-")?;
    let (name, generation) = match name {
        _ if name.ends_with("-non-transitional") => {
            (name.strip_suffix("-non-transitional")?, "-non-transitional")
        }
        _ if name.ends_with("-transitional") => (name.strip_suffix("-transitional")?, "-transitional"),
        _ => (name, ""),
    };
    Some((name.strip_suffix("-pci").unwrap_or(name), generation))
}

/// What the drafts of virtio are called in a definition; older lines switch them one by one.
pub(super) fn virtio_model(generation: &str, options: &mut Options) -> String {
    let switched = match (options.get("disable-legacy"), options.get("disable-modern")) {
        (Some("on"), None | Some("off")) => Some("-non-transitional"),
        (Some("off"), Some("off")) => Some("-transitional"),
        _ => None,
    };
    if switched.is_some() {
        options.take("disable-legacy");
        options.take("disable-modern");
    }
    format!("virtio{}", switched.unwrap_or(generation))
}

/// Options of all virtio devices, as attributes of `<driver>`.
pub(super) fn virtio_driver(driver: Node, options: &mut Options) -> Node {
    driver
        .maybe("iommu", options.take_switch("iommu_platform"))
        .maybe("ats", options.take_switch("ats"))
        .maybe("packed", options.take_switch("packed"))
        .maybe("page_per_vq", options.take_switch("page-per-vq"))
}
