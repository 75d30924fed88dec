//! How much memory, in which pages, under which limits. Everything is kept in KiB.

use crate::conf::xml::{Element, OnOff, Part, Value, Writer, read_body, xml, xml_enum};
use crate::conf::{ConfError, ErrorKind, Result};
use crate::util::units::{self, UnitError};

impl From<UnitError> for ConfError {
    fn from(error: UnitError) -> Self {
        let kind = match error {
            UnitError::UnknownSuffix { .. } => ErrorKind::InvalidArg,
            UnitError::TooLarge { .. } | UnitError::MemoryTooLarge => ErrorKind::Overflow,
        };
        Self::new(kind, error.to_string()).by_nobody()
    }
}

/// An element that holds an amount of memory in any of libvirt's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Kib(pub u64);

impl Part for Kib {
    fn read(element: Element<'_>) -> Result<Self> {
        let text = element.text();
        let Ok(value) = text.trim_start().parse() else {
            let (text, name) = (crate::conf::error::excerpt(&text), element.name());
            let message = format!("Invalid value '{text}' for element or attribute './{name}[1]'");
            return Err(ConfError::xml(message).by_xml_parser());
        };
        let unit = element.attribute("unit").filter(|unit| !unit.is_empty());
        Ok(Self(units::memory_kib(value, unit)?))
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("unit", "KiB");
    }

    fn write_children(&self, out: &mut Writer) {
        out.body(&self.0);
    }
}

/// A limit; what cannot be reached counts as none and is not printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitKib(pub Option<u64>);

impl LimitKib {
    /// `VIR_DOMAIN_MEMORY_PARAM_UNLIMITED`
    pub const UNLIMITED: u64 = 9_007_199_254_740_991;
}

impl Part for LimitKib {
    fn read(element: Element<'_>) -> Result<Self> {
        let value: u64 = read_body(element)?.unwrap_or(0);
        let unit = element.attribute("unit").filter(|unit| !unit.is_empty());
        let kib = units::scale(value, unit, 1024, Self::UNLIMITED << 10)?.div_ceil(1024);
        Ok(Self((kib < Self::UNLIMITED).then_some(kib)))
    }

    fn write(&self, out: &mut Writer, name: &str) {
        if let Some(kib) = self.0 {
            Part::write(&Kib(kib), out, name);
        }
    }
}

/// `<maxMemory>`, `<memory>` and `<currentMemory>`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// Upper end of memory hotplug, with the number of slots.
    pub max: Option<MaxMemory>,
    pub dump_core: Option<OnOff>,
    /// At start; the sum of the NUMA cells where there are any.
    pub total_kib: u64,
    /// What the balloon leaves to the guest; 0 until [`super::Domain::defaults`] sets it.
    pub current_kib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxMemory {
    pub slots: Option<u32>,
    pub kib: u64,
}

impl Part for Memory {
    fn read(element: Element<'_>) -> Result<Self> {
        let kib = |name: &str| element.child(name).map(Kib::read).transpose();
        let mut memory = Self {
            total_kib: kib("memory")?.unwrap_or_default().0,
            current_kib: kib("currentMemory")?.unwrap_or_default().0,
            ..Self::default()
        };
        if let Some(node) = element.child("memory") {
            memory.dump_core = node.value("dumpCore")?;
        }
        if let Some(node) = element.child("maxMemory") {
            memory.max = Some(MaxMemory { slots: node.value("slots")?, kib: Kib::read(node)?.0 });
        }
        Ok(memory)
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(max) = &self.max {
            out.element("maxMemory", |out| {
                if let Some(slots) = &max.slots {
                    out.attribute("slots", slots);
                }
                Kib(max.kib).write_attributes(out);
                out.body(&max.kib);
            });
        }
        out.element("memory", |out| {
            if let Some(dump_core) = &self.dump_core {
                out.attribute("dumpCore", dump_core);
            }
            Kib(self.total_kib).write_attributes(out);
            out.body(&self.total_kib);
        });
        Part::write(&Kib(self.current_kib), out, "currentMemory");
    }
}

xml! {
    /// Limits the host enforces.
    #[derive(Default)]
    pub struct Memtune {
        child hard_limit: Option<LimitKib> = "hard_limit";
        child soft_limit: Option<LimitKib> = "soft_limit";
        child min_guarantee: Option<Kib> = "min_guarantee";
        child swap_hard_limit: Option<LimitKib> = "swap_hard_limit";
    }
}

xml_enum! {
    pub enum MemorySource {
        File = "file",
        Anonymous = "anonymous",
        Memfd = "memfd",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown memoryBacking/source/type '{text}'"))
}

xml_enum! {
    pub enum MemoryAccess {
        Shared = "shared",
        Private = "private",
    }
    refuse |place, text| match place.attribute {
        Some(name) if name != "mode" => ConfError::invalid_attribute(name, place.element, text, ""),
        _ => ConfError::unsupported(format!("unknown memoryBacking/access/mode '{text}'")),
    }
}

xml_enum! {
    pub enum MemoryAllocation {
        Immediate = "immediate",
        Ondemand = "ondemand",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown memoryBacking/allocation/mode '{text}'"))
}

xml! {
    /// What stands behind the guest's memory on the host.
    #[derive(Default)]
    pub struct MemoryBacking {
        child hugepages: Option<Hugepages> = "hugepages";
        flag nosharepages: bool = "nosharepages";
        flag locked: bool = "locked";
        child_attr source: Option<MemorySource> = "source" / "type";
        child_attr access: Option<MemoryAccess> = "access" / "mode";
        group allocation: Allocation = "allocation";
        flag discard: bool = "discard";
    }
}

xml! {
    #[derive(Default)]
    pub struct Hugepages {
        child pages: Vec<Hugepage> = "page";
    }
}

/// `<page>`: a page size for some NUMA nodes of the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Hugepage {
    pub size_kib: u64,
    pub nodeset: Option<crate::util::bitmap::Bitmap>,
}

impl Part for Hugepage {
    fn read(element: Element<'_>) -> Result<Self> {
        let size: u64 = element.required("size")?;
        Ok(Self {
            size_kib: units::memory_kib(size, element.attribute("unit"))?,
            nodeset: element.value("nodeset")?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("size", &self.size_kib);
        out.attribute_str("unit", "KiB");
        if let Some(nodeset) = &self.nodeset {
            out.attribute("nodeset", nodeset);
        }
    }
}

xml! {
    #[derive(Default)]
    pub struct Allocation {
        attr mode: Option<MemoryAllocation> = "mode";
        attr threads: Option<u32> = "threads";
    }
}

/// Reads a scaled attribute pair such as `memory='1' unit='GiB'` as KiB.
pub(super) fn scaled_attribute(element: Element<'_>, name: &str) -> Result<Option<u64>> {
    let Some(value) = element.value::<u64>(name)? else { return Ok(None) };
    Ok(Some(units::memory_kib(value, element.attribute("unit"))?))
}

/// A size printed in the largest unit that divides it, as libvirt prints cache sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrettySize(pub u64);

impl PrettySize {
    /// The number and its unit.
    pub fn parts(self) -> (u64, &'static str) {
        let mut value = self.0;
        let mut unit = "B";
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            if value == 0 || !value.is_multiple_of(1024) {
                break;
            }
            value /= 1024;
            unit = larger;
        }
        (value, unit)
    }

    /// From an element's text and `unit`.
    pub(super) fn read_text(element: Element<'_>, default_factor: u64) -> Result<Self> {
        let value: u64 = read_body(element)?.unwrap_or(0);
        Ok(Self(units::scale(value, element.attribute("unit"), default_factor, u64::MAX)?))
    }
}

impl Value for Kib {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    fn print(&self, out: &mut String) {
        Value::print(&self.0, out);
    }
}
