//! `<bandwidth>`: an interface's share of the network, as its guest sees it.

use crate::conf::xml::{Element, Part, Writer};
use crate::conf::{ConfError, ErrorKind, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    pub inbound: Option<Rate>,
    pub outbound: Option<Rate>,
}

/// KiB a second, and KiB at once; 0 stands for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    pub average: u64,
    pub peak: u64,
    pub floor: u64,
    pub burst: u64,
}

impl Bandwidth {
    pub fn is_empty(&self) -> bool {
        self.inbound.is_none() && self.outbound.is_none()
    }
}

impl Part for Bandwidth {
    fn read(element: Element<'_>) -> Result<Self> {
        if element.attribute("classID").is_some() {
            let message = "classID attribute not supported on <bandwidth> in this usage context";
            return Err(ConfError::new(ErrorKind::XmlDetail, message));
        }
        let rate = |name| element.child(name).map(Rate::read).transpose();
        Ok(Self { inbound: rate("inbound")?, outbound: rate("outbound")? })
    }

    fn write_children(&self, out: &mut Writer) {
        for (name, rate) in [("inbound", self.inbound), ("outbound", self.outbound)] {
            if let Some(rate) = rate.filter(|rate| rate.average > 0 || rate.floor > 0) {
                Part::write(&rate, out, name);
            }
        }
    }
}

impl Part for Rate {
    fn read(element: Element<'_>) -> Result<Self> {
        let has = |name| element.attribute(name).is_some();
        let value = |name| Ok::<u64, ConfError>(element.value(name)?.unwrap_or(0));
        let rate = Self {
            average: value("average")?,
            peak: value("peak")?,
            floor: value("floor")?,
            burst: value("burst")?,
        };
        if !has("average") && !has("floor") {
            let message = "Missing mandatory average or floor attributes";
            return Err(ConfError::new(ErrorKind::XmlDetail, message));
        }
        if (has("peak") || has("burst")) && !has("average") {
            return Err(ConfError::unsupported("'peak' and 'burst' require 'average' attribute"));
        }
        if element.name() == "outbound" && has("floor") {
            return Err(ConfError::unsupported("floor attribute is not supported for this config"));
        }
        Ok(rate)
    }

    fn write_attributes(&self, out: &mut Writer) {
        let parts =
            [("average", self.average), ("peak", self.peak), ("floor", self.floor), ("burst", self.burst)];
        for (name, value) in parts.iter().filter(|(_, value)| *value > 0) {
            out.attribute(name, value);
        }
    }
}
