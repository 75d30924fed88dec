//! What every device has: alias, address, place in the boot order, option ROM.

use crate::conf::xml::{Dec, Element, Form, Hex, OnOff, Part, Value, Writer, YesNo, xml};
use crate::conf::{ConfError, Result};

/// Shared by all devices; the last part of their elements.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceInfo {
    pub alias: Option<Box<str>>,
    pub address: Option<Address>,
    /// `index` of `<acpi>`.
    pub acpi_index: Option<u32>,
    /// `startport` of `<master>`, for the companions of a USB 2 controller.
    pub master_startport: Option<u32>,
    pub boot: Option<Box<Boot>>,
    pub rom: Option<Box<Rom>>,
}

xml! {
    /// Place in the boot order, from 1.
    pub struct Boot {
        attr order: u32 = "order";
        attr loadparm: Option<Box<str>> = "loadparm";
    }
}

xml! {
    /// The device's option ROM.
    pub struct Rom {
        attr enabled: Option<YesNo> = "enabled";
        attr bar: Option<OnOff> = "bar";
        attr file: Option<Box<str>> = "file";
    }
}

xml! {
    /// What the drivers of virtio devices share.
    #[derive(Default)]
    pub struct VirtioOptions {
        attr iommu: Option<OnOff> = "iommu";
        attr ats: Option<OnOff> = "ats";
        attr packed: Option<OnOff> = "packed";
        attr page_per_vq: Option<OnOff> = "page_per_vq";
    }
}

impl Part for DeviceInfo {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut info = Self::default();
        // Only some kinds of devices boot or have a ROM; elsewhere these elements mean nothing.
        let boots = matches!(element.name(), "disk" | "interface" | "hostdev" | "redirdev" | "filesystem");
        let has_rom = matches!(element.name(), "interface" | "hostdev");
        for child in element.children() {
            match child.qualified_name() {
                "alias" => {
                    info.alias =
                        child.attribute("name").filter(|name| keeps_alias(name, child.form())).map(Into::into)
                }
                "master" => info.master_startport = Some(child.value("startport")?.unwrap_or(0)),
                "boot" if boots => info.boot = Some(Box::new(read_boot(child)?)),
                "rom" if has_rom => info.rom = Some(Box::new(read_rom(child)?)),
                "acpi" => info.acpi_index = child.value("index")?,
                "address" => info.address = Some(Address::read(child)?),
                _ => {}
            }
        }
        Ok(info)
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(boot) = &self.boot {
            Part::write(boot, out, "boot");
        }
        if let Some(alias) = &self.alias {
            out.element("alias", |out| out.attribute("name", alias));
        }
        if let Some(port) = &self.master_startport {
            out.element("master", |out| out.attribute("startport", port));
        }
        if let Some(rom) = &self.rom {
            rom.write_group(out, "rom");
        }
        if let Some(index) = &self.acpi_index {
            out.element("acpi", |out| out.attribute("index", index));
        }
        if let Some(address) = &self.address {
            Part::write(address, out, "address");
        }
    }
}

/// Aliases are the daemon's own, except those a user chose (`ua-…`).
fn keeps_alias(name: &str, form: Form) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    form.contains(Form::LIVE) || (name.starts_with("ua-") && name.bytes().all(legal))
}

fn read_boot(element: Element<'_>) -> Result<Boot> {
    let boot = Boot::read(element)?;
    if boot.order == 0 {
        return Err(ConfError::zero_attribute("order", "boot"));
    }
    Ok(boot)
}

fn read_rom(element: Element<'_>) -> Result<Rom> {
    let rom = Rom::read(element)?;
    if rom.enabled == Some(YesNo::No) && (rom.bar.is_some() || rom.file.is_some()) {
        return Err(ConfError::unsupported("ROM tuning is not supported when ROM is disabled"));
    }
    Ok(rom)
}

xml! {
    /// Where a device is plugged in.
    pub enum Address by "type" {
        "pci" => Pci(PciAddress),
        "drive" => Drive(DriveAddress),
        "virtio-serial" => VirtioSerial(VirtioSerialAddress),
        "ccid" => Ccid(CcidAddress),
        "usb" => Usb(UsbAddress),
        "spapr-vio" => SpaprVio(SpaprVioAddress),
        "ccw" => Ccw(CcwAddress),
        "virtio-mmio" => VirtioMmio,
        "isa" => Isa(IsaAddress),
        "dimm" => Dimm(DimmAddress),
        "unassigned" => Unassigned,
    }
}

/// On a PCI bus; all zero: some free place, still to be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PciAddress {
    pub domain: u16,
    pub bus: u8,
    pub slot: u8,
    pub function: u8,
    pub multifunction: Option<OnOff>,
}

impl PciAddress {
    pub const fn new(bus: u8, slot: u8, function: u8) -> Self {
        Self { domain: 0, bus, slot, function, multifunction: None }
    }

    /// Nothing chosen yet.
    pub fn is_empty(&self) -> bool {
        self.domain == 0 && self.bus == 0 && self.slot == 0 && self.function == 0
    }
}

impl Part for PciAddress {
    fn read(element: Element<'_>) -> Result<Self> {
        let part = |name: &str, max: u32, what: &str| -> Result<u32> {
            let Dec(value) = element.value(name)?.unwrap_or_default();
            if value <= max {
                return Ok(value);
            }
            Err(ConfError::xml(match name {
                "function" => format!("Invalid PCI address function=0x{value:x}, must be <= {max}"),
                _ => format!("Invalid PCI address {name}='0x{value:x}', must be <= 0x{max:X}{what}"),
            }))
        };
        Ok(Self {
            domain: part("domain", 0xFFFF, "")? as u16,
            bus: part("bus", 0xFF, "")? as u8,
            slot: part("slot", 0x1F, "")? as u8,
            function: part("function", 7, "")? as u8,
            multifunction: element.value("multifunction")?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        if !self.is_empty() {
            out.attribute("domain", &Hex::<4>(self.domain.into()));
            out.attribute("bus", &Hex::<2>(self.bus.into()));
            out.attribute("slot", &Hex::<2>(self.slot.into()));
            out.attribute("function", &Hex::<1>(self.function.into()));
        }
        if let Some(multifunction) = &self.multifunction {
            out.attribute("multifunction", multifunction);
        }
    }
}

xml! {
    /// On a disk controller.
    #[derive(Copy, Eq, Default)]
    pub struct DriveAddress {
        attr controller: u32 = "controller", or 0;
        attr bus: u32 = "bus", or 0;
        attr target: u32 = "target", or 0;
        attr unit: u32 = "unit", or 0;
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct VirtioSerialAddress {
        attr controller: u32 = "controller", or 0;
        attr bus: u32 = "bus", or 0;
        /// 0 until one is chosen.
        attr port: u32 = "port", or 0;
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct CcidAddress {
        attr controller: u32 = "controller", or 0;
        attr slot: u32 = "slot", or 0;
    }
}

xml! {
    #[derive(Eq, Default)]
    pub struct UsbAddress {
        attr bus: u32 = "bus", or 0;
        /// The way through the hubs, such as `1.2`.
        attr port: Option<UsbPort> = "port";
    }
}

/// A port and the hubs' ports before it, such as `1.2`; 0 ends the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsbPort(pub [u8; 4]);

impl Value for UsbPort {
    fn parse(text: &str) -> Option<Self> {
        let mut way = [0; 4];
        let mut pieces = text.split('.');
        for (slot, piece) in way.iter_mut().zip(&mut pieces) {
            *slot = piece.parse().ok()?;
        }
        pieces.next().is_none().then_some(Self(way))
    }

    fn print(&self, out: &mut String) {
        let way: Vec<String> = self.0.iter().take_while(|port| **port != 0).map(u8::to_string).collect();
        out.push_str(&way.join("."));
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct SpaprVioAddress {
        attr reg: Option<Hex<8>> = "reg";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct CcwAddress {
        attr cssid: Hex<1> = "cssid", or Hex(0);
        attr ssid: Hex<1> = "ssid", or Hex(0);
        attr devno: Hex<4> = "devno", or Hex(0);
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct IsaAddress {
        attr iobase: Option<Hex<1>> = "iobase";
        attr irq: Option<Hex<1>> = "irq";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct DimmAddress {
        attr slot: u32 = "slot", or 0;
        attr base: Option<HexLong> = "base";
    }
}

/// A 64-bit number printed in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HexLong(pub u64);

impl Value for HexLong {
    const EXPECTED: &'static str = " Expected non-negative integer value";

    fn parse(text: &str) -> Option<Self> {
        crate::conf::xml::parse_any_base(text).map(Self)
    }

    fn print(&self, out: &mut String) {
        use std::fmt::Write as _;
        let _ = write!(out, "0x{:x}", self.0);
    }
}
