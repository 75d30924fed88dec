//! The bits of the host's own processor.

use crate::conf::capabilities::cpu::{CpuData, CpuMap, Place};
use crate::util::host_cpu;

/// The leaves from which on hypervisors, and then the extensions, answer.
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;

/// All bits that the processor has of those that features are made of.
pub fn bits(map: &CpuMap) -> Option<CpuData> {
    let first = host_cpu::cpuid(0, 0)?;
    let last_extended = host_cpu::cpuid(EXTENDED, 0)?.eax;
    let mut data = CpuData::default();
    let own = [0, 1].map(|leaf| Place::Cpuid { leaf, subleaf: 0 });
    for place in map.places().into_iter().chain(own) {
        match place {
            Place::Cpuid { leaf, subleaf } => {
                let last = if leaf < HYPERVISOR { first.eax } else { last_extended };
                let answers = leaf <= last && !(HYPERVISOR..EXTENDED).contains(&leaf);
                if let Some(answer) = host_cpu::cpuid(leaf, subleaf).filter(|_| answers) {
                    data.set(place, [answer.eax, answer.ebx, answer.ecx, answer.edx]);
                }
            }
            Place::Msr(index) => {
                // Readable only where KVM works, and then only some.
                if let Ok(value) = host_cpu::msr(index) {
                    data.set(place, [value as u32, 0, 0, (value >> 32) as u32]);
                }
            }
        }
    }
    Some(data)
}
