//! The guest's processor.

use super::by_qemu;
use crate::conf::Result;
use crate::conf::domain::{Cpu, CpuCacheMode, CpuMode, PhysAddrMode};

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
