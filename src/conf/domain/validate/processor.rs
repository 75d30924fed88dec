//! The guest's processor, and the host's memory behind its cells.

use super::{by_qemu, unsupported};
use crate::conf::domain::{
    Cpu, CpuCacheMode, CpuMode, Domain, NumaMode, Numatune, NumatuneNode, PhysAddrMode, Placement,
};
use crate::conf::{ConfError, Result};

pub(super) fn check(cpu: &Cpu) -> Result<()> {
    let rest = &cpu.rest;
    if let Some(address) = &rest.maxphysaddr
        && address.mode == PhysAddrMode::Passthrough
        && address.bits.is_some()
    {
        let mode = address.mode;
        return by_qemu(format!(
            "CPU maximum physical address bits number specification cannot be used with mode='{mode}'"
        ));
    }
    let Some(cache) = &rest.cache else { return Ok(()) };
    let mode = cache.mode;
    let is_hosts = matches!(cpu.mode, CpuMode::HostPassthrough | CpuMode::Maximum);
    match mode {
        CpuCacheMode::Emulate if cache.level != Some(3) => {
            by_qemu(format!("CPU cache mode '{mode}' can only be used with level='3'"))
        }
        CpuCacheMode::Passthrough if !is_hosts => by_qemu(format!(
            "CPU cache mode '{mode}' can only be used with 'host-passthrough' / 'maximum' CPUs"
        )),
        CpuCacheMode::Passthrough | CpuCacheMode::Disable if cache.level.is_some() => {
            by_qemu(format!("unsupported CPU cache level for mode '{mode}'"))
        }
        _ => Ok(()),
    }
}

/// Where memory comes from, for the guest and for each of its cells.
pub(super) fn check_memory(domain: &Domain, tune: &Numatune) -> Result<()> {
    let cells = domain.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_ref()).map_or(0, |numa| numa.cells.len());
    if cells == 0 && !tune.nodes.is_empty() {
        return Err(ConfError::xml("Element 'memnode' is invalid without any guest NUMA cells"));
    }
    let Some(memory) = &tune.memory else { return Ok(()) };
    if memory.placement == Some(Placement::Static) && memory.nodeset.is_none() {
        return unsupported("nodeset for NUMA memory tuning must be set if 'placement' is 'static'");
    }
    let restrictive = |node: &&NumatuneNode| node.mode == NumaMode::Restrictive;
    let (here, there) = match memory.mode {
        NumaMode::Restrictive if !tune.nodes.iter().all(|node| restrictive(&node)) => ("memnode", "memory"),
        NumaMode::Restrictive => return Ok(()),
        _ if tune.nodes.iter().any(|node| restrictive(&node)) => ("memory", "memnode"),
        _ => return Ok(()),
    };
    Err(ConfError::xml(format!(
        "'restrictive' mode is required in {here} element when mode is 'restrictive' in {there} element"
    )))
}
