//! `<controller>`: buses that other devices are plugged into.

use super::info::{DeviceInfo, VirtioOptions};
use super::iothread_mapping::IoThreadMapping;
use crate::conf::xml::{Element, OnOff, Part, Value, Writer, parse_any_base, xml, xml_enum};
use crate::conf::{ConfError, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct Controller {
    pub kind: ControllerKind,
    /// Its number among those of its type, once the definition was completed.
    pub index: Option<u32>,
    pub driver: ControllerDriver,
    pub info: DeviceInfo,
}

/// The bus, with what only that bus has.
#[derive(Debug, Clone, PartialEq)]
pub enum ControllerKind {
    Ide(Option<IdeModel>),
    Fdc,
    Scsi(Option<ScsiModel>),
    Sata,
    VirtioSerial(VirtioSerialOptions),
    Ccid,
    Usb(UsbOptions),
    Pci(PciOptions),
    Xenbus,
    Isa,
}

xml_enum! {
    /// The bus alone.
    pub enum ControllerType {
        Ide = "ide",
        Fdc = "fdc",
        Scsi = "scsi",
        Sata = "sata",
        VirtioSerial = "virtio-serial",
        Ccid = "ccid",
        Usb = "usb",
        Pci = "pci",
        Xenbus = "xenbus",
        Isa = "isa",
    }
}

xml_enum! {
    pub enum IdeModel {
        Piix3 = "piix3",
        Piix4 = "piix4",
        Ich6 = "ich6",
    }
}

xml_enum! {
    pub enum ScsiModel {
        Auto = "auto",
        Buslogic = "buslogic",
        Lsilogic = "lsilogic",
        Lsisas1068 = "lsisas1068",
        Vmpvscsi = "vmpvscsi",
        Ibmvscsi = "ibmvscsi",
        VirtioScsi = "virtio-scsi",
        Lsisas1078 = "lsisas1078",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
        Ncr53c90 = "ncr53c90",
        Dc390 = "dc390",
        Am53c974 = "am53c974",
    }
}

impl ScsiModel {
    pub fn is_virtio(self) -> bool {
        matches!(self, Self::VirtioScsi | Self::VirtioTransitional | Self::VirtioNonTransitional)
    }
}

xml_enum! {
    pub enum VirtioModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioSerialOptions {
    pub model: Option<VirtioModel>,
    pub ports: Option<u32>,
    pub vectors: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsbOptions {
    pub model: Option<UsbModel>,
    pub ports: Option<u32>,
}

xml_enum! {
    pub enum UsbModel {
        Piix3Uhci = "piix3-uhci",
        Piix4Uhci = "piix4-uhci",
        Ehci = "ehci",
        Ich9Ehci1 = "ich9-ehci1",
        Ich9Uhci1 = "ich9-uhci1",
        Ich9Uhci2 = "ich9-uhci2",
        Ich9Uhci3 = "ich9-uhci3",
        Vt82c686bUhci = "vt82c686b-uhci",
        PciOhci = "pci-ohci",
        NecXhci = "nec-xhci",
        Qusb1 = "qusb1",
        Qusb2 = "qusb2",
        QemuXhci = "qemu-xhci",
        None = "none",
    }
}

xml_enum! {
    pub enum PciModel {
        PciRoot = "pci-root",
        PcieRoot = "pcie-root",
        PciBridge = "pci-bridge",
        DmiToPciBridge = "dmi-to-pci-bridge",
        PcieToPciBridge = "pcie-to-pci-bridge",
        PcieRootPort = "pcie-root-port",
        PcieSwitchUpstreamPort = "pcie-switch-upstream-port",
        PcieSwitchDownstreamPort = "pcie-switch-downstream-port",
        PciExpanderBus = "pci-expander-bus",
        PcieExpanderBus = "pcie-expander-bus",
    }
}

xml_enum! {
    /// QEMU's device behind a PCI controller.
    pub enum PciModelName {
        PciBridge = "pci-bridge",
        I82801b11Bridge = "i82801b11-bridge",
        Ioh3420 = "ioh3420",
        X3130Upstream = "x3130-upstream",
        Xio3130Downstream = "xio3130-downstream",
        Pxb = "pxb",
        PxbPcie = "pxb-pcie",
        PcieRootPort = "pcie-root-port",
        SpaprPciHostBridge = "spapr-pci-host-bridge",
        PciePciBridge = "pcie-pci-bridge",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PciOptions {
    pub model: Option<PciModel>,
    pub model_name: Option<PciModelName>,
    pub target: PciTarget,
    pub pcihole64_kib: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PciTarget {
    pub chassis_nr: Option<u32>,
    pub chassis: Option<u32>,
    pub port: Option<u32>,
    pub bus_nr: Option<u32>,
    pub index: Option<u32>,
    pub hotplug: Option<OnOff>,
    pub mem_reserve_kib: Option<u64>,
    pub node: Option<u32>,
}

xml! {
    #[derive(Default)]
    pub struct ControllerDriver {
        attr(omit) queues: u32 = "queues", or 0;
        attr(omit) cmd_per_lun: u32 = "cmd_per_lun", or 0;
        attr(omit) max_sectors: u32 = "max_sectors", or 0;
        attr ioeventfd: Option<OnOff> = "ioeventfd";
        attr(omit) iothread: u32 = "iothread", or 0;
        flat virtio: VirtioOptions;
        child iothreads: Option<Box<IoThreadMapping>> = "iothreads";
    }
}

impl Controller {
    pub fn new(kind: ControllerKind, index: u32) -> Self {
        Self { kind, index: Some(index), driver: ControllerDriver::default(), info: DeviceInfo::default() }
    }

    pub fn pci(model: PciModel, index: u32) -> Self {
        let options = PciOptions { model: Some(model), ..PciOptions::default() };
        Self::new(ControllerKind::Pci(options), index)
    }

    pub fn usb(model: UsbModel, index: u32) -> Self {
        Self::new(ControllerKind::Usb(UsbOptions { model: Some(model), ports: None }), index)
    }

    /// The number; 0 before the definition was completed.
    pub fn index(&self) -> u32 {
        self.index.unwrap_or_default()
    }

    pub fn pci_options(&self) -> Option<&PciOptions> {
        match &self.kind {
            ControllerKind::Pci(options) => Some(options),
            _ => None,
        }
    }

    pub fn usb_model(&self) -> Option<UsbModel> {
        match &self.kind {
            ControllerKind::Usb(options) => options.model,
            _ => None,
        }
    }
}

impl ControllerKind {
    pub fn bus(&self) -> ControllerType {
        match self {
            Self::Ide(_) => ControllerType::Ide,
            Self::Fdc => ControllerType::Fdc,
            Self::Scsi(_) => ControllerType::Scsi,
            Self::Sata => ControllerType::Sata,
            Self::VirtioSerial(_) => ControllerType::VirtioSerial,
            Self::Ccid => ControllerType::Ccid,
            Self::Usb(_) => ControllerType::Usb,
            Self::Pci(_) => ControllerType::Pci,
            Self::Xenbus => ControllerType::Xenbus,
            Self::Isa => ControllerType::Isa,
        }
    }

    fn read(element: Element<'_>) -> Result<Self> {
        let bus = element.value("type")?.unwrap_or(ControllerType::Ide);
        Ok(match bus {
            ControllerType::Ide => Self::Ide(model(element)?),
            ControllerType::Scsi => Self::Scsi(model(element)?),
            ControllerType::VirtioSerial => Self::VirtioSerial(VirtioSerialOptions {
                model: model(element)?,
                ports: element.value("ports")?,
                vectors: element.value("vectors")?,
            }),
            ControllerType::Usb => {
                Self::Usb(UsbOptions { model: model(element)?, ports: element.value("ports")? })
            }
            ControllerType::Pci => Self::Pci(read_pci(element)?),
            ControllerType::Fdc
            | ControllerType::Sata
            | ControllerType::Ccid
            | ControllerType::Xenbus
            | ControllerType::Isa => {
                model::<Unmodelled>(element)?;
                match bus {
                    ControllerType::Fdc => Self::Fdc,
                    ControllerType::Sata => Self::Sata,
                    ControllerType::Ccid => Self::Ccid,
                    ControllerType::Xenbus => Self::Xenbus,
                    _ => Self::Isa,
                }
            }
        })
    }
}

/// The models of a bus that has none.
enum Unmodelled {}

impl Value for Unmodelled {
    fn parse(_: &str) -> Option<Self> {
        None
    }

    fn print(&self, _: &mut String) {}
}

fn model<V: Value>(element: Element<'_>) -> Result<Option<V>> {
    let Some(word) = element.attribute("model") else { return Ok(None) };
    V::parse(word).map(Some).ok_or_else(|| ConfError::unsupported(format!("Unknown model type '{word}'")))
}

fn read_pci(element: Element<'_>) -> Result<PciOptions> {
    let once = |name| {
        if element.children_named(name).nth(1).is_some() {
            let message = format!("Multiple <{name}> elements in controller definition not allowed");
            return Err(ConfError::xml(message));
        }
        Ok(element.child(name))
    };
    let model_name = match once("model")? {
        Some(model) if model.attribute("name") != Some("none") => model.value("name")?,
        _ => None,
    };
    Ok(PciOptions {
        model: model(element)?,
        model_name,
        target: once("target")?.map(read_target).transpose()?.unwrap_or_default(),
        pcihole64_kib: read_hole(element)?,
    })
}

fn read_index(element: Element<'_>) -> Result<Option<u32>> {
    let Some(text) = element.attribute("index") else { return Ok(None) };
    let expected = match text.trim_start().parse::<i32>() {
        Ok(index @ 0..) => return Ok(Some(index.unsigned_abs())),
        Ok(_) => " Expected non-negative value",
        Err(_) => " Expected integer value",
    };
    Err(ConfError::invalid_attribute("index", element.name(), text, expected))
}

fn read_target(target: Element<'_>) -> Result<PciTarget> {
    let number = |name: &str| -> Result<Option<u32>> {
        let Some(text) = target.attribute(name) else { return Ok(None) };
        match parse_any_base(text).and_then(|value| i32::try_from(value).ok()) {
            Some(value) => Ok(Some(value.unsigned_abs())),
            None => Err(ConfError::invalid_attribute(name, target.name(), text, " Expected integer value")),
        }
    };
    let node = match target.child("node") {
        Some(node) => match node.text().trim().parse() {
            Ok(node) => Some(node),
            Err(_) => return Err(ConfError::xml("invalid NUMA node in target")),
        },
        None => None,
    };
    Ok(PciTarget {
        chassis_nr: number("chassisNr")?,
        chassis: number("chassis")?,
        port: number("port")?,
        bus_nr: number("busNr")?,
        index: number("index")?,
        hotplug: target.value("hotplug")?,
        mem_reserve_kib: target.value("memReserve")?,
        node,
    })
}

fn read_hole(element: Element<'_>) -> Result<Option<u64>> {
    let Some(hole) = element.child("pcihole64") else { return Ok(None) };
    let text = hole.text();
    let Ok(value) = text.trim().parse() else {
        return Err(ConfError::xml(format!("Invalid value '{text}' for element or attribute './pcihole64'")));
    };
    let bytes = crate::util::units::scale(value, hole.attribute("unit"), 1024, u64::MAX)
        .map_err(|error| ConfError::invalid_arg(error.to_string()))?;
    Ok(Some(bytes.div_ceil(1024)))
}

impl Part for Controller {
    fn read(element: Element<'_>) -> Result<Self> {
        let kind = ControllerKind::read(element)?;
        // A controller that is not there has no address.
        let absent = matches!(&kind, ControllerKind::Usb(UsbOptions { model: Some(UsbModel::None), .. }));
        let mut info = DeviceInfo::read(element)?;
        info.address = info.address.filter(|_| !absent);
        if let ControllerKind::Usb(UsbOptions { model: Some(model), .. }) = &kind {
            let port = match model {
                UsbModel::Ich9Uhci1 => Some(0),
                UsbModel::Ich9Uhci2 => Some(2),
                UsbModel::Ich9Uhci3 => Some(4),
                _ => None,
            };
            info.master_startport = info.master_startport.or(port);
        }
        let driver = element.child("driver").map(ControllerDriver::read).transpose()?.unwrap_or_default();
        Ok(Self { kind, index: read_index(element)?, driver, info })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.kind.bus());
        write_optional(out, "index", &self.index);
        match &self.kind {
            ControllerKind::Ide(model) => write_optional(out, "model", model),
            ControllerKind::Scsi(model) => write_optional(out, "model", model),
            ControllerKind::VirtioSerial(options) => {
                write_optional(out, "model", &options.model);
                write_optional(out, "ports", &options.ports);
                write_optional(out, "vectors", &options.vectors);
            }
            ControllerKind::Usb(options) => {
                write_optional(out, "model", &options.model);
                write_optional(out, "ports", &options.ports);
            }
            ControllerKind::Pci(options) => write_optional(out, "model", &options.model),
            ControllerKind::Fdc
            | ControllerKind::Sata
            | ControllerKind::Ccid
            | ControllerKind::Xenbus
            | ControllerKind::Isa => {}
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if let ControllerKind::Pci(options) = &self.kind {
            if let Some(name) = &options.model_name {
                out.element("model", |out| out.attribute("name", name));
            }
            out.group("target", |out| options.target.write(out));
        }
        self.driver.write_group(out, "driver");
        self.info.write_children(out);
        if let ControllerKind::Pci(PciOptions { pcihole64_kib: Some(kib), .. }) = &self.kind {
            out.element("pcihole64", |out| {
                out.attribute_str("unit", "KiB");
                out.body(kib);
            });
        }
    }
}

impl PciTarget {
    fn write(&self, out: &mut Writer) {
        write_optional(out, "chassisNr", &self.chassis_nr);
        write_optional(out, "chassis", &self.chassis);
        write_optional(out, "port", &self.port.map(crate::conf::xml::Hex::<1>));
        write_optional(out, "busNr", &self.bus_nr);
        write_optional(out, "index", &self.index);
        write_optional(out, "hotplug", &self.hotplug);
        write_optional(out, "memReserve", &self.mem_reserve_kib);
        if let Some(node) = &self.node {
            out.text_element("node", node);
        }
    }
}

fn write_optional<V: Value>(out: &mut Writer, name: &str, value: &Option<V>) {
    if let Some(value) = value {
        out.attribute(name, value);
    }
}
