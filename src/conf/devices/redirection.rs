//! `<redirdev>` and `<redirfilter>`: USB devices of whoever looks at the guest's screen.

use super::chardev::CharSource;
use super::info::DeviceInfo;
use crate::conf::xml::{Element, Part, Value, Writer, YesNo, parse_any_base, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml! {
    pub struct Redirdev {
        attr bus: RedirBus = "bus", or RedirBus::Usb;
        flat source: CharSource;
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum RedirBus {
        Usb = "usb",
    }
}

xml! {
    /// Which devices may be redirected: the first rule that fits decides.
    pub struct RedirFilter {
        child rules: Vec<FilterRule> = "usbdev";
    }
}

/// What is absent fits any device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterRule {
    pub class: Option<u32>,
    pub vendor: Option<u32>,
    pub product: Option<u32>,
    pub version: Option<UsbVersion>,
    pub allow: bool,
}

/// Binary-coded decimal, as the device says it: 0x0110 is 1.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsbVersion(pub u16);

impl Value for UsbVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.parse::<u16>().ok().filter(|number| *number < 100);
        let bcd = |number: u16| number / 10 * 16 + number % 10;
        let minor = match minor.len() {
            0 => 0,
            // 1.1 is 1.10.
            1 => digits(minor)? * 10,
            _ => digits(minor)?,
        };
        Some(Self(bcd(digits(major)?) << 8 | bcd(minor)))
    }

    fn print(&self, out: &mut String) {
        use std::fmt::Write as _;
        let _ = write!(out, "{:x}.{:02x}", self.0 >> 8, self.0 & 0xff);
    }
}

impl Part for FilterRule {
    fn read(element: Element<'_>) -> Result<Self> {
        let number = |name: &str, max: u64| match element.attribute(name) {
            None | Some("-1") => Ok(None),
            Some(text) => match parse_any_base(text).filter(|number| *number <= max) {
                Some(number) => Ok(u32::try_from(number).ok()),
                None => Err(ConfError::internal(format!("Cannot parse USB {name} {text}"))),
            },
        };
        let version = match element.attribute("version") {
            None | Some("-1") => None,
            Some(text) => Some(
                UsbVersion::parse(text)
                    .ok_or_else(|| ConfError::internal(format!("Cannot parse USB version {text}")))?,
            ),
        };
        let Some(allow) = element.value::<YesNo>("allow")? else {
            return Err(ConfError::xml("Missing required attribute 'allow' in element 'usbdev'"));
        };
        Ok(Self {
            class: number("class", 0xff)?,
            vendor: number("vendor", 0xffff)?,
            product: number("product", 0xffff)?,
            version,
            allow: allow == YesNo::Yes,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        if let Some(class) = self.class {
            out.attribute_str("class", &format!("0x{class:02X}"));
        }
        if let Some(vendor) = self.vendor {
            out.attribute_str("vendor", &format!("0x{vendor:04X}"));
        }
        if let Some(product) = self.product {
            out.attribute_str("product", &format!("0x{product:04X}"));
        }
        if let Some(version) = &self.version {
            out.attribute("version", version);
        }
        out.attribute_str("allow", if self.allow { "yes" } else { "no" });
    }
}
