//! `<serial>`, `<parallel>`, `<console>` and `<channel>`: streams of bytes as the guest sees them.

use super::chardev::CharSource;
use super::info::DeviceInfo;
use crate::conf::xml::{Element, Form, Part, Value, Writer, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml! {
    /// A serial port.
    #[derive(Default)]
    pub struct Serial {
        flat source: CharSource;
        group target: SerialTarget = "target";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum SerialType {
        Isa = "isa-serial",
        Usb = "usb-serial",
        Pci = "pci-serial",
        SpaprVio = "spapr-vio-serial",
        System = "system-serial",
        Sclp = "sclp-serial",
        IsaDebug = "isa-debug",
    }
}

xml_enum! {
    pub enum SerialModel {
        IsaSerial = "isa-serial",
        UsbSerial = "usb-serial",
        PciSerial = "pci-serial",
        SpaprVty = "spapr-vty",
        Pl011 = "pl011",
        Sclpconsole = "sclpconsole",
        Sclplmconsole = "sclplmconsole",
        Uart16550a = "16550a",
        IsaDebugcon = "isa-debugcon",
    }
}

/// Absent parts are chosen when the definition is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SerialTarget {
    pub kind: Option<SerialType>,
    pub port: Option<u32>,
    pub model: Option<SerialModel>,
}

impl Part for SerialTarget {
    fn read(element: Element<'_>) -> Result<Self> {
        let model = element.child("model").and_then(|model| model.attribute("name"));
        Ok(Self {
            kind: read_type(element, SerialType::from_word)?,
            port: read_port(element)?,
            model: match model {
                None | Some("" | "none") => None,
                Some(word) => Some(SerialModel::from_word(word).ok_or_else(|| {
                    ConfError::unsupported(format!(
                        "unknown target model '{word}' specified for character device"
                    ))
                })?),
            },
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        write_optional(out, "type", &self.kind);
        write_optional(out, "port", &self.port);
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(model) = &self.model {
            out.element("model", |out| out.attribute("name", model));
        }
    }
}

xml! {
    /// A parallel port.
    #[derive(Default)]
    pub struct Parallel {
        flat source: CharSource;
        group target: PortTarget = "target";
        flat info: DeviceInfo;
    }
}

/// The number of a parallel port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortTarget {
    pub port: Option<u32>,
}

impl Part for PortTarget {
    fn read(element: Element<'_>) -> Result<Self> {
        Ok(Self { port: read_port(element)? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        write_optional(out, "port", &self.port);
    }
}

/// What a guest's user logs in on. The first one of a guest with serial ports is another view of the first
/// serial port.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Console {
    pub source: CharSource,
    pub target: ConsoleTarget,
    pub info: DeviceInfo,
}

xml_enum! {
    pub enum ConsoleType {
        Serial = "serial",
        Xen = "xen",
        Uml = "uml",
        Virtio = "virtio",
        Lxc = "lxc",
        Openvz = "openvz",
        Sclp = "sclp",
        Sclplm = "sclplm",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsoleTarget {
    pub kind: Option<ConsoleType>,
    pub port: Option<u32>,
}

impl Part for ConsoleTarget {
    fn read(element: Element<'_>) -> Result<Self> {
        Ok(Self { kind: read_type(element, ConsoleType::from_word)?, port: read_port(element)? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        write_optional(out, "type", &self.kind);
        write_optional(out, "port", &self.port);
    }
}

impl Part for Console {
    fn read(element: Element<'_>) -> Result<Self> {
        Ok(Self {
            source: CharSource::read(element)?,
            target: element.child("target").map(ConsoleTarget::read).transpose()?.unwrap_or_default(),
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.source.write_attributes(out);
        // Clients older than <source> look for the pty here.
        if let (Some(path), Some(0), true) =
            (self.source.pty_path(), self.target.port, out.form().contains(Form::LIVE))
        {
            out.attribute_str("tty", path);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        self.source.write_children(out);
        self.target.write_group(out, "target");
        self.info.write_children(out);
    }
}

/// A named stream between host and guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Channel {
    pub source: CharSource,
    pub target: ChannelTarget,
    pub info: DeviceInfo,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ChannelTarget {
    /// Connections of the guest to this address.
    Guestfwd {
        address: Box<str>,
        port: u16,
    },
    /// A port of a virtio-serial controller.
    Virtio {
        name: Option<Box<str>>,
        /// Whether a program in the guest holds the port open; known while the guest runs.
        state: Option<ChannelState>,
    },
    Xen {
        name: Option<Box<str>>,
    },
}

xml_enum! {
    pub enum ChannelState {
        Connected = "connected",
        Disconnected = "disconnected",
    }
}

impl Part for ChannelTarget {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = || element.attribute("name").map(Into::into);
        match element.attribute("type") {
            Some("guestfwd") => {
                let Some(address) = element.attribute("address") else {
                    return Err(ConfError::xml("guestfwd channel does not define a target address"));
                };
                if address.parse::<std::net::Ipv4Addr>().is_err() {
                    return Err(ConfError::unsupported("guestfwd channel only supports IPv4 addresses"));
                }
                Ok(Self::Guestfwd { address: address.into(), port: element.required("port")? })
            }
            Some("virtio") => {
                let live = element.form().contains(Form::LIVE);
                Ok(Self::Virtio { name: name(), state: if live { element.value("state")? } else { None } })
            }
            Some("xen") => Ok(Self::Xen { name: name() }),
            Some(word) => Err(unknown_type(word)),
            None => Err(ConfError::xml("target type must be specified for channel device")),
        }
    }

    fn write_attributes(&self, out: &mut Writer) {
        match self {
            Self::Guestfwd { address, port } => {
                out.attribute_str("type", "guestfwd");
                out.attribute("address", address);
                out.attribute("port", port);
            }
            Self::Virtio { name, state } => {
                out.attribute_str("type", "virtio");
                write_optional(out, "name", name);
                if out.form().contains(Form::LIVE) {
                    write_optional(out, "state", state);
                }
            }
            Self::Xen { name } => {
                out.attribute_str("type", "xen");
                write_optional(out, "name", name);
            }
        }
    }
}

impl Part for Channel {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(target) = element.child("target") else {
            return Err(ConfError::xml("target type must be specified for channel device"));
        };
        Ok(Self {
            target: ChannelTarget::read(target)?,
            source: CharSource::read(element)?,
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.source.write_attributes(out);
    }

    fn write_children(&self, out: &mut Writer) {
        self.source.write_children(out);
        Part::write(&self.target, out, "target");
        self.info.write_children(out);
    }
}

fn read_type<T>(element: Element<'_>, known: fn(&str) -> Option<T>) -> Result<Option<T>> {
    match element.attribute("type") {
        None | Some("none") => Ok(None),
        Some(word) => known(word).map(Some).ok_or_else(|| unknown_type(word)),
    }
}

fn unknown_type(word: &str) -> ConfError {
    ConfError::unsupported(format!("unknown target type '{word}' specified for character device"))
}

fn read_port(element: Element<'_>) -> Result<Option<u32>> {
    let Some(text) = element.attribute("port") else { return Ok(None) };
    match u32::parse(text) {
        Some(port) => Ok(Some(port)),
        None => Err(ConfError::xml(format!("Invalid port number: {text}"))),
    }
}

fn write_optional<V: Value>(out: &mut Writer, name: &str, value: &Option<V>) {
    if let Some(value) = value {
        out.attribute(name, value);
    }
}
