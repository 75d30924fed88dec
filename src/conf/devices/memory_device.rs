//! `<memory>`: memory that is plugged in beside what the guest starts with.

use super::info::DeviceInfo;
use super::{Address, HexLong};
use crate::conf::domain::{Kib, MemoryAccess};
use crate::conf::xml::{Element, Form, Part, Writer, YesNo, read_body, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::bitmap::Bitmap;
use crate::util::uuid::Uuid;

xml_enum! {
    pub enum MemoryModel {
        Dimm = "dimm",
        Nvdimm = "nvdimm",
        VirtioPmem = "virtio-pmem",
        VirtioMem = "virtio-mem",
        SgxEpc = "sgx-epc",
    }
}

impl MemoryModel {
    /// Whether it is plugged into the board's slots.
    pub fn has_slot(self) -> bool {
        matches!(self, Self::Dimm | Self::Nvdimm)
    }

    /// Whether it is a PCI device.
    pub fn is_virtio(self) -> bool {
        matches!(self, Self::VirtioPmem | Self::VirtioMem)
    }
}

/// Sizes are kept in KiB; 0 stands for none.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryDevice {
    pub model: MemoryModel,
    pub access: Option<MemoryAccess>,
    pub discard: Option<YesNo>,
    pub uuid: Option<Uuid>,
    pub source: MemorySourcePart,
    pub target: MemoryTarget,
    pub info: DeviceInfo,
}

/// What stands behind it on the host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemorySourcePart {
    pub nodes: Option<Bitmap>,
    pub page_kib: u64,
    pub path: Option<Box<str>>,
    pub align_kib: u64,
    pub pmem: bool,
}

/// What the guest sees of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemoryTarget {
    pub size_kib: u64,
    pub node: Option<u32>,
    pub label_kib: u64,
    pub readonly: bool,
    pub block_kib: u64,
    pub requested_kib: u64,
    /// How much of it the guest has taken, while it runs.
    pub current_kib: u64,
    /// Where it begins in the guest's memory; 0 is anywhere.
    pub base: u64,
    pub dynamic_slots: Option<YesNo>,
}

fn kib(element: Element<'_>, name: &str) -> Result<u64> {
    Ok(element.child(name).map(Kib::read).transpose()?.unwrap_or_default().0)
}

fn write_kib(out: &mut Writer, name: &str, kib: u64) {
    if kib != 0 {
        Part::write(&Kib(kib), out, name);
    }
}

impl MemorySourcePart {
    fn read(element: Element<'_>, model: MemoryModel) -> Result<Self> {
        let mut source = Self::default();
        if matches!(model, MemoryModel::Dimm | MemoryModel::VirtioMem) {
            source.page_kib = kib(element, "pagesize")?;
        }
        if matches!(model, MemoryModel::Dimm | MemoryModel::VirtioMem | MemoryModel::SgxEpc)
            && let Some(mask) = element.child("nodemask")
        {
            source.nodes = read_body::<Bitmap>(mask)?;
            if source.nodes.as_ref().is_some_and(Bitmap::is_empty) {
                let text = mask.text();
                return Err(ConfError::unsupported(format!("Invalid value of 'nodemask': {text}")));
            }
        }
        if matches!(model, MemoryModel::Nvdimm | MemoryModel::VirtioPmem) {
            source.path = element.child("path").map(read_body).transpose()?.flatten();
        }
        if model == MemoryModel::Nvdimm {
            source.align_kib = kib(element, "alignsize")?;
            source.pmem = element.child("pmem").is_some();
        }
        Ok(source)
    }

    fn write(&self, out: &mut Writer) {
        out.group("source", |out| {
            if let Some(nodes) = &self.nodes {
                out.text_element("nodemask", nodes);
            }
            write_kib(out, "pagesize", self.page_kib);
            if let Some(path) = &self.path {
                out.text_element("path", path);
            }
            write_kib(out, "alignsize", self.align_kib);
            if self.pmem {
                out.empty("pmem");
            }
        });
    }
}

impl MemoryTarget {
    fn read(element: Element<'_>, model: MemoryModel) -> Result<Self> {
        let node = match element.child("node") {
            None => None,
            Some(node) => {
                let text = node.text();
                let invalid = |_| ConfError::xml("invalid value of memory device node");
                match text.trim() {
                    "" => None,
                    text => Some(text.parse::<u32>().map_err(invalid)?),
                }
            }
        };
        let Some(size) = element.child("size") else {
            return Err(ConfError::xml("missing element or attribute './size'").by_xml_parser());
        };
        let mut target = Self { size_kib: Kib::read(size)?.0, node, ..Self::default() };
        match model {
            MemoryModel::Nvdimm => {
                let label = element.child("label").map(|label| kib(label, "size")).transpose()?;
                target.label_kib = label.unwrap_or(0);
                if (1..128).contains(&target.label_kib) {
                    return Err(ConfError::xml("nvdimm label must be at least 128KiB"));
                }
                if target.label_kib >= target.size_kib {
                    return Err(ConfError::xml("label size must be smaller than NVDIMM size"));
                }
                target.readonly = element.child("readonly").is_some();
            }
            MemoryModel::VirtioMem => {
                target.block_kib = kib(element, "block")?;
                target.requested_kib = kib(element, "requested")?;
                if element.form().contains(Form::LIVE) {
                    target.current_kib = kib(element, "current")?;
                }
                target.dynamic_slots = element.value("dynamicMemslots")?;
            }
            MemoryModel::Dimm | MemoryModel::VirtioPmem | MemoryModel::SgxEpc => {}
        }
        if let (true, Some(address)) = (model.is_virtio(), element.child("address")) {
            let base = address.value::<HexLong>("base")?;
            target.base = base.unwrap_or_default().0;
        }
        Ok(target)
    }

    fn write(&self, out: &mut Writer) {
        out.element("target", |out| {
            if let Some(slots) = &self.dynamic_slots {
                out.attribute("dynamicMemslots", slots);
            }
            Part::write(&Kib(self.size_kib), out, "size");
            if let Some(node) = &self.node {
                out.text_element("node", node);
            }
            if self.label_kib != 0 {
                out.element("label", |out| Part::write(&Kib(self.label_kib), out, "size"));
            }
            if self.readonly {
                out.empty("readonly");
            }
            if self.block_kib != 0 {
                Part::write(&Kib(self.block_kib), out, "block");
                Part::write(&Kib(self.requested_kib), out, "requested");
                if out.form().contains(Form::LIVE) {
                    Part::write(&Kib(self.current_kib), out, "current");
                }
            }
            if self.base != 0 {
                out.element("address", |out| out.attribute("base", &HexLong(self.base)));
            }
        });
    }
}

impl Part for MemoryDevice {
    fn read(element: Element<'_>) -> Result<Self> {
        let model = element.required("model")?;
        let uuid = match element.child("uuid") {
            Some(uuid) if model == MemoryModel::Nvdimm => read_body(uuid)?,
            _ => None,
        };
        let Some(target) = element.child("target") else {
            return Err(ConfError::xml("missing <target> element for <memory> device"));
        };
        let source = element.child("source").map(|source| MemorySourcePart::read(source, model));
        Ok(Self {
            model,
            access: element.value("access")?,
            discard: element.value("discard")?,
            uuid,
            source: source.transpose()?.unwrap_or_default(),
            target: MemoryTarget::read(target, model)?,
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("model", &self.model);
        if let Some(access) = &self.access {
            out.attribute("access", access);
        }
        if let Some(discard) = &self.discard {
            out.attribute("discard", discard);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(uuid) = &self.uuid {
            out.text_element("uuid", uuid);
        }
        self.source.write(out);
        self.target.write(out);
        self.info.write_children(out);
    }
}

impl MemoryDevice {
    /// The board's slot, where it has one.
    pub fn slot(&self) -> Option<u32> {
        match &self.info.address {
            Some(Address::Dimm(address)) if self.model.has_slot() => Some(address.slot),
            _ => None,
        }
    }

    /// Where it begins in the guest's memory, where that is fixed.
    pub fn base(&self) -> Option<u64> {
        let base = match &self.info.address {
            Some(Address::Dimm(address)) if self.model.has_slot() => address.base.map_or(0, |base| base.0),
            _ => self.target.base,
        };
        Some(base).filter(|base| *base != 0)
    }

    /// The first byte behind it.
    pub fn end(&self) -> Option<u64> {
        // The labels of a NVDIMM are not mapped into the guest's memory, and what shares a page with them neither.
        let align = if self.source.align_kib == 0 { 4 } else { self.source.align_kib };
        let label = self.target.label_kib.checked_next_multiple_of(align).unwrap_or(u64::MAX);
        let mapped = self.target.size_kib.saturating_sub(label);
        Some(self.base()?.saturating_add(mapped.saturating_mul(1024)))
    }

    /// Whether it says of `other` what tells memory apart.
    pub fn describes(&self, other: &Self) -> bool {
        let target = |it: &Self| {
            let target = &it.target;
            (it.model, target.node, target.size_kib, target.block_kib, target.requested_kib)
        };
        let source = |it: &Self| (it.source.page_kib, it.source.nodes.clone(), it.source.path.clone());
        target(self) == target(other)
            && source(self) == source(other)
            && (!self.model.is_virtio() || self.target.base == other.target.base)
    }
}
