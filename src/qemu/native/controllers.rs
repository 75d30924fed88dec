//! Buses.

use super::draft::{Draft, Piece};
use super::node::Node;
use super::options::{Options, number};
use super::place::{common, virtio_driver, virtio_model, virtio_name};

const USB: &[(&str, &str)] = &[
    ("piix3-usb-uhci", "piix3-uhci"),
    ("piix4-usb-uhci", "piix4-uhci"),
    ("usb-ehci", "ehci"),
    ("ich9-usb-ehci1", "ich9-ehci1"),
    ("ich9-usb-uhci1", "ich9-uhci1"),
    ("ich9-usb-uhci2", "ich9-uhci2"),
    ("ich9-usb-uhci3", "ich9-uhci3"),
    ("vt82c686b-usb-uhci", "vt82c686b-uhci"),
    ("pci-ohci", "pci-ohci"),
    ("nec-usb-xhci", "nec-xhci"),
    ("qemu-xhci", "qemu-xhci"),
];

const SCSI: &[(&str, &str)] = &[
    ("lsi", "lsilogic"),
    ("lsi53c895a", "lsilogic"),
    ("mptsas1068", "lsisas1068"),
    ("megasas", "lsisas1078"),
    ("pvscsi", "vmpvscsi"),
    ("am53c974", "am53c974"),
];

/// Drivers of bridges and ports, with libvirt's model.
const PCI: &[(&str, &str)] = &[
    ("pci-bridge", "pci-bridge"),
    ("pxb", "pci-expander-bus"),
    ("pxb-pcie", "pcie-expander-bus"),
    ("i82801b11-bridge", "dmi-to-pci-bridge"),
    ("x3130-upstream", "pcie-switch-upstream-port"),
    ("xio3130-downstream", "pcie-switch-downstream-port"),
    ("pcie-pci-bridge", "pcie-to-pci-bridge"),
    ("pcie-root-port", "pcie-root-port"),
    ("ioh3420", "pcie-root-port"),
];

pub(super) fn device(draft: &mut Draft<'_>, driver: &str, options: &mut Options) -> Option<Piece> {
    let named = |table: &'static [(&str, &'static str)]| {
        table.iter().find(|(name, _)| *name == driver).map(|it| it.1)
    };
    if let Some(model) = named(PCI) {
        return pci(draft, driver, model, options);
    }
    if let Some(model) = named(USB) {
        return usb(draft, model, options);
    }
    if let Some(model) = named(SCSI) {
        return plain(draft, "scsi", model, Node::new("driver"), options);
    }
    if driver == "ahci" || driver == "ich9-ahci" {
        return plain(draft, "sata", "", Node::new("driver"), options);
    }
    match virtio_name(driver)? {
        ("scsi", generation) => virtio_scsi(draft, generation, options),
        ("serial", generation) => {
            let model = virtio_model(generation, options);
            let model = if model == "virtio" { "" } else { &model };
            let extra = virtio_driver(Node::new("driver"), options);
            plain(draft, "virtio-serial", model, extra, options)
        }
        _ => None,
    }
}

fn controller(draft: &Draft<'_>, kind: &str, id: &str) -> (Node, u32) {
    let index = draft.free_index(kind, id);
    (Node::new("controller").set("type", kind).set("index", index), index)
}

fn pci(draft: &mut Draft<'_>, driver: &str, model: &str, options: &mut Options) -> Option<Piece> {
    let id = options.take("id").unwrap_or_default();
    let place = draft.pci(options)?;
    let target = Node::new("target")
        .maybe("chassisNr", options.take("chassis_nr"))
        .maybe("chassis", options.take("chassis"))
        .maybe("port", options.take("port").and_then(|port| number(&port)).map(|port| format!("0x{port:x}")))
        .maybe("busNr", options.take("bus_nr"))
        .maybe("hotplug", options.take_switch("hotplug"));
    options.done()?;
    let (node, _) = controller(draft, "pci", &id);
    let node = node.set("model", model).with(Node::new("model").set("name", driver));
    draft.add_controller("pci", &id, model);
    Some(Piece::of(common(node.with_any(target.unless_empty()), Some(id), place)))
}

fn usb(draft: &mut Draft<'_>, model: &str, options: &mut Options) -> Option<Piece> {
    let id = options.take("id").unwrap_or_else(|| "usb".to_owned());
    let place = draft.pci(options)?;
    let ports = options.take("p2");
    if ports.is_some() && options.take("p3") != ports {
        return None;
    }
    if let Some(master) = options.take("masterbus") {
        let start = options.take("firstport")?;
        options.done()?;
        let index = draft.controller("usb", &master)?.index;
        let node = Node::new("controller").set("type", "usb").set("index", index).set("model", model);
        return Some(Piece::of(common(node.with(Node::new("master").set("startport", start)), None, place)));
    }
    options.done()?;
    let (node, _) = controller(draft, "usb", &id);
    draft.add_controller("usb", &id, model);
    Some(Piece::of(common(node.set("model", model).maybe("ports", ports), Some(id), place)))
}

fn virtio_scsi(draft: &mut Draft<'_>, generation: &str, options: &mut Options) -> Option<Piece> {
    let model = virtio_model(generation, options).replacen("virtio", "virtio-scsi", 1);
    let model = if generation.is_empty() { model } else { model.replacen("virtio-scsi", "virtio", 1) };
    let iothread = match options.take("iothread") {
        Some(id) => Some(draft.iothread(&id)?),
        None => None,
    };
    let driver = Node::new("driver")
        .maybe("queues", options.take("num_queues"))
        .maybe("cmd_per_lun", options.take("cmd_per_lun"))
        .maybe("max_sectors", options.take("max_sectors"))
        .maybe("ioeventfd", options.take_switch("ioeventfd"))
        .maybe("iothread", iothread);
    let driver = virtio_driver(driver, options);
    plain(draft, "scsi", &model, driver, options)
}

fn plain(
    draft: &mut Draft<'_>,
    kind: &'static str,
    model: &str,
    driver: Node,
    options: &mut Options,
) -> Option<Piece> {
    let id = options.take("id").unwrap_or_else(|| kind.to_owned());
    let place = draft.pci(options)?;
    let (ports, vectors) = match kind {
        "virtio-serial" => (options.take("max_ports"), options.take("vectors")),
        _ => (None, None),
    };
    options.done()?;
    let (node, _) = controller(draft, kind, &id);
    draft.add_controller(kind, &id, model);
    let node = node.maybe("model", Some(model).filter(|model| !model.is_empty()));
    let node = node.maybe("ports", ports).maybe("vectors", vectors);
    Some(Piece::of(common(node.with_any(driver.unless_empty()), Some(id), place)))
}

impl Draft<'_> {
    /// The number of an I/O thread that was named as libvirt names it.
    pub(super) fn iothread(&self, id: &str) -> Option<u32> {
        id.strip_prefix("iothread")?.parse().ok()
    }
}
