//! Memory that is plugged in.

use super::address::Generation;
use super::line::{Line, Props};
use super::memory::{Backend, Part};
use super::{Guest, Result, internal};
use crate::conf::devices::{MemoryDevice, MemoryModel, VirtioOptions};
use crate::conf::xml::YesNo;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for device in &guest.domain.devices.memories {
        let alias = guest.alias(&device.info)?;
        let id = format!("mem{alias}");
        let (size_kib, node) = (device.target.size_kib, device.target.node);
        let backend = Backend { id: &id, size_kib, node, part: Part::Device(device) };
        guest.memory_backend(line, &backend)?;
        if let Some(props) = guest.memory_device(device, &id)? {
            line.device(props);
        }
    }
    Ok(())
}

/// What memory is part of the machine.
pub(super) fn machine(guest: &Guest<'_>, add: &mut impl FnMut(&str, &str)) -> Result<()> {
    let devices = &guest.domain.devices.memories;
    if devices.iter().any(|device| device.model == MemoryModel::Nvdimm) {
        add("nvdimm", "on");
    }
    let enclaves = devices.iter().filter(|device| device.model == MemoryModel::SgxEpc);
    for (number, device) in enclaves.enumerate() {
        let alias = guest.alias(&device.info)?;
        add(&format!("sgx-epc.{number}.memdev"), &format!("mem{alias}"));
        add(&format!("sgx-epc.{number}.node"), &device.target.node.unwrap_or(0).to_string());
    }
    Ok(())
}

impl Guest<'_> {
    fn memory_device(&self, device: &MemoryDevice, backend: &str) -> Result<Option<Props>> {
        let target = &device.target;
        let virtio = |name: &str| self.virtio(name, Generation::Any, &device.info, &VirtioOptions::default());
        let mut prealloc = false;
        let props = match device.model {
            MemoryModel::Dimm => Props::driver("pc-dimm"),
            MemoryModel::Nvdimm => Props::driver("nvdimm"),
            MemoryModel::VirtioPmem => virtio("virtio-pmem")?,
            MemoryModel::VirtioMem => {
                prealloc = self.preallocates(device)?;
                virtio("virtio-mem")?
            }
            // It is part of the machine.
            MemoryModel::SgxEpc => return Ok(None),
        };
        if device.model.has_slot() && device.slot().is_none() {
            return internal("memory device has no slot");
        }
        let bytes = |kib: u64| kib.saturating_mul(1024);
        let props = props
            .maybe("node", target.node)
            .nonzero("label-size", bytes(target.label_kib))
            .nonzero("block-size", bytes(target.block_kib))
            .nonzero("requested-size", bytes(target.requested_kib))
            .maybe("uuid", device.uuid.map(|uuid| uuid.to_string()))
            .maybe("unarmed", target.readonly.then_some(true))
            .set("memdev", backend)
            .maybe("prealloc", prealloc.then_some(true));
        let base = if device.model.is_virtio() { target.base } else { 0 };
        let props = props
            .nonzero("memaddr", base)
            .maybe("dynamic-memslots", target.dynamic_slots.map(|slots| slots == YesNo::Yes))
            .set("id", self.alias(&device.info)?);
        self.at(props, &device.info).map(Some)
    }
}
