//! Memory: what stands behind it on the host, and what is plugged in.

use super::{by_qemu, unsupported};
use crate::conf::devices::{Address, MemoryDevice, MemoryModel};
use crate::conf::domain::defaults::{Facts, Has};
use crate::conf::domain::{
    Domain, MemoryAccess, MemoryAllocation, MemorySource, NumaMode, Numatune, NumatuneNode,
};
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, ErrorKind, Result};

/// Transparent huge pages, which blocks of virtio memory must not be smaller than.
const THP_KIB: u64 = 2048;

/// Pages as the host has them by itself.
const PAGE_BYTES: u64 = 4096;

fn detail<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfError::new(ErrorKind::XmlDetail, message.into()))
}

/// Nodes of the host for cells of the guest.
pub(super) fn check_tuning(domain: &Domain, tune: &Numatune) -> Result<()> {
    let cells = domain.cells().len();
    if tune.nodes.iter().any(|node| node.cellid as usize >= cells) {
        if cells == 0 {
            return Err(ConfError::xml("Element 'memnode' is invalid without any guest NUMA cells"));
        }
        return Err(ConfError::xml(
            "Argument 'cellid' in memnode element must correspond to existing guest's NUMA cell",
        ));
    }
    let Some(memory) = &tune.memory else { return Ok(()) };
    let restrictive = |node: &NumatuneNode| node.mode == NumaMode::Restrictive;
    let (here, there) = match memory.mode {
        NumaMode::Restrictive if !tune.nodes.iter().all(restrictive) => ("memnode", "memory"),
        NumaMode::Restrictive => return Ok(()),
        _ if tune.nodes.iter().any(restrictive) => ("memory", "memnode"),
        _ => return Ok(()),
    };
    Err(ConfError::xml(format!(
        "'restrictive' mode is required in {here} element when mode is 'restrictive' in {there} element"
    )))
}

/// What huge pages go together with.
pub(super) fn check_backing(domain: &Domain, facts: &Facts<'_>) -> Result<()> {
    let Some(backing) = domain.memory_backing.as_deref().filter(|backing| backing.hugepages.is_some()) else {
        return Ok(());
    };
    if backing.allocation.mode == Some(MemoryAllocation::Ondemand) {
        return by_qemu("hugepages are not allowed with memory allocation ondemand");
    }
    match backing.source {
        Some(MemorySource::Anonymous) => by_qemu("hugepages are not allowed with anonymous memory source"),
        Some(MemorySource::Memfd) if !facts.has.contains(Has::MEMFD_HUGETLB) => {
            by_qemu("hugepages is not supported with memfd memory source")
        }
        _ => Ok(()),
    }
}

/// Memory that is plugged in must have room.
pub(super) fn check_hotplug(domain: &Domain) -> Result<()> {
    let devices = &domain.devices.memories;
    let max = domain.memory.max;
    let slots = max.and_then(|max| max.slots).unwrap_or(0);
    if !domain.has_memory_hotplug() {
        if !devices.is_empty() {
            return by_qemu("cannot use/hotplug a memory device when domain 'maxMemory' is not defined");
        }
        return Ok(());
    }
    if domain.cells().is_empty() {
        return by_qemu("At least one numa node has to be configured when enabling memory hotplug");
    }
    let (mut needed, mut total) = (0u64, 0u64);
    for device in devices {
        total = total.saturating_add(device.target.size_kib);
        needed += u64::from(device.model.has_slot());
        if device.model != MemoryModel::SgxEpc {
            check_place(domain, device, slots)?;
        }
    }
    if needed > u64::from(slots) {
        return by_qemu(format!(
            "count of memory devices requiring memory slots '{needed}' exceeds slots count '{slots}'"
        ));
    }
    let room = max.map_or(0, |max| max.kib).saturating_sub(domain.initial_memory_kib());
    if total > room {
        return by_qemu("memory device total size exceeds hotplug space");
    }
    Ok(())
}

fn check_place(domain: &Domain, device: &MemoryDevice, slots: u32) -> Result<()> {
    let address = device.info.address.as_ref();
    let model = device.model;
    match (model, address) {
        (_, None) => {}
        (MemoryModel::Dimm | MemoryModel::Nvdimm, Some(Address::Dimm(dimm))) if dimm.slot >= slots => {
            let slot = dimm.slot;
            return by_qemu(format!("memory device slot '{slot}' exceeds slots count '{slots}'"));
        }
        (MemoryModel::Dimm | MemoryModel::Nvdimm, Some(Address::Dimm(_))) => {}
        (MemoryModel::Dimm | MemoryModel::Nvdimm, Some(_)) => {
            return by_qemu("only 'dimm' addresses are supported for the pc-dimm device");
        }
        (MemoryModel::VirtioPmem, Some(address)) if !matches!(address, Address::Pci(_)) => {
            return by_qemu("only 'pci' addresses are supported for the virtio-pmem device");
        }
        (MemoryModel::VirtioMem, Some(address)) if !matches!(address, Address::Pci(_) | Address::Ccw(_)) => {
            return by_qemu(format!("only 'pci' and 'ccw' addresses are supported for the {model} device"));
        }
        _ => {}
    }
    let needs_node = model != MemoryModel::VirtioPmem && !domain.cells().is_empty();
    if needs_node && device.target.node.is_none() {
        return by_qemu("target NUMA node needs to be specified for memory device");
    }
    Ok(())
}

pub(super) fn check_device(domain: &Domain, device: &MemoryDevice, facts: &Facts<'_>) -> Result<()> {
    if let Some(node) = device.target.node {
        let cells = domain.cells().len();
        if cells == 0 {
            return detail("can't add memory backend as guest has no NUMA nodes configured");
        }
        if node as usize >= cells {
            return detail(format!(
                "can't add memory backend for guest node '{node}' as the guest has only '{cells}' NUMA nodes \
                 configured"
            ));
        }
    }
    match device.model {
        MemoryModel::Dimm => {}
        MemoryModel::Nvdimm => check_nvdimm(device)?,
        MemoryModel::VirtioPmem => check_pmem(device)?,
        MemoryModel::VirtioMem => check_virtio_mem(device)?,
        MemoryModel::SgxEpc => {
            if device.info.address.is_some() {
                return unsupported("memory device address is not supported for model 'sgx-epc'");
            }
        }
    }
    check_overlap(domain, device)?;
    check_for_qemu(device, facts)
}

fn check_nvdimm(device: &MemoryDevice) -> Result<()> {
    if device.source.path.is_none() {
        return detail("path is required for model 'nvdimm'");
    }
    if device.discard == Some(YesNo::Yes) {
        return unsupported("discard is not supported for nvdimms");
    }
    if device.uuid.is_some() {
        return unsupported("UUID is not supported for NVDIMM device");
    }
    Ok(())
}

fn check_pmem(device: &MemoryDevice) -> Result<()> {
    let model = device.model;
    if device.source.path.is_none() {
        return detail(format!("path is required for model '{model}'"));
    }
    if device.discard == Some(YesNo::Yes) {
        return unsupported(format!("discard is not supported for model '{model}'"));
    }
    if device.access != Some(MemoryAccess::Shared) {
        return unsupported("shared access mode required for virtio-pmem device");
    }
    if device.target.node.is_some() {
        return unsupported("virtio-pmem does not support NUMA nodes");
    }
    if !device.target.base.is_multiple_of(PAGE_BYTES) {
        return unsupported(format!("memory address must be aligned to {PAGE_BYTES} bytes"));
    }
    Ok(())
}

fn check_virtio_mem(device: &MemoryDevice) -> Result<()> {
    let target = &device.target;
    let (size, block, requested) = (target.size_kib, target.block_kib, target.requested_kib);
    if requested > size {
        return detail(format!("requested size must be smaller than or equal to @size ({size}KiB)"));
    }
    if block != 0 && !block.is_power_of_two() {
        return detail("block size must be a power of two");
    }
    if block < THP_KIB {
        return detail(format!("block size too small, must be at least {THP_KIB}KiB"));
    }
    if !requested.is_multiple_of(block) {
        return detail("requested size must be an integer multiple of block size");
    }
    if !target.base.is_multiple_of(block.saturating_mul(1024)) {
        return detail("memory device address must be aligned to blocksize");
    }
    Ok(())
}

/// No two devices are in the same slot or at the same place.
fn check_overlap(domain: &Domain, device: &MemoryDevice) -> Result<()> {
    let others = domain.devices.memories.iter().filter(|other| !std::ptr::eq(*other, device));
    for other in others {
        if let Some(slot) = device.slot().filter(|slot| other.slot() == Some(*slot)) {
            return unsupported(format!(
                "memory device slot '{slot}' is already being used by another memory device"
            ));
        }
        let here = device.base().zip(device.end());
        let (Some((start, end)), Some((other_start, other_end))) = (here, other.base().zip(other.end()))
        else {
            continue;
        };
        if start < other_end && other_start < end {
            return unsupported(format!(
                "memory device address [0x{start:x}:0x{end:x}] overlaps with other memory device (0x{other_start:x})"
            ));
        }
    }
    Ok(())
}

fn check_for_qemu(device: &MemoryDevice, facts: &Facts<'_>) -> Result<()> {
    let (needed, refusal) = match device.model {
        MemoryModel::Dimm => (Has::PC_DIMM, "memory hotplug isn't supported by this QEMU binary"),
        MemoryModel::Nvdimm => (Has::NVDIMM, "nvdimm isn't supported by this QEMU binary"),
        MemoryModel::VirtioPmem => (Has::VIRTIO_PMEM, "virtio-pmem isn't supported by this QEMU binary"),
        MemoryModel::VirtioMem => (Has::VIRTIO_MEM, "virtio-mem isn't supported by this QEMU binary"),
        MemoryModel::SgxEpc => (Has::SGX_EPC, "sgx epc isn't supported by this QEMU binary"),
    };
    if !facts.has.contains(needed) {
        return by_qemu(refusal);
    }
    if device.target.dynamic_slots == Some(YesNo::Yes) && !facts.has.contains(Has::VIRTIO_MEM_SLOTS) {
        return by_qemu("virtio-mem does not support dynamicMemslots");
    }
    Ok(())
}
