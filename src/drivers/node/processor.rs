//! What the host's processor is called: its own answers, decoded with libvirt's description of models.

use crate::conf::capabilities::cpu::{CpuData, CpuMap, Place, Purpose};
use crate::conf::capabilities::host::{HostCpu, TscCounter};
use crate::util::host_cpu;

/// The leaves from which on hypervisors, and then the extensions, answer.
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;

/// All bits that the processor has of those that features are made of.
fn data(map: &CpuMap) -> Option<CpuData> {
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

/// The processor by name, with what /proc/cpuinfo and KVM add.
pub(super) fn describe(map: &CpuMap, cpuinfo: &str) -> HostCpu {
    let microcode = field(cpuinfo, "microcode").and_then(|text| {
        text.strip_prefix("0x")
            .map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok())
    });
    let unnamed = HostCpu { microcode, phys_bits: phys_bits(cpuinfo), ..HostCpu::default() };
    let Some(data) = data(map) else { return unnamed };
    let Some(decoded) = map.decode(&data, Purpose::Host, None) else { return unnamed };
    let counter = map.has_feature(&data, "invtsc").then(host_cpu::tsc).and_then(Result::ok);
    HostCpu {
        model: Some(decoded.model),
        vendor: decoded.vendor,
        signature: decoded.signature,
        counter: counter.map(|(frequency_hz, scaling)| TscCounter { frequency_hz, scaling: Some(scaling) }),
        features: decoded.features.into_iter().map(|(name, _)| name).collect(),
        ..unnamed
    }
}

/// Bits of a physical address.
pub(super) fn phys_bits(cpuinfo: &str) -> Option<u32> {
    field(cpuinfo, "address sizes")?.split(' ').next()?.parse().ok()
}

/// The first processor's line of that name.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.trim_end() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_first_processors() {
        let cpuinfo =
            "microcode\t: 0x1000065\naddress sizes\t: 48 bits physical, 48 bits virtual\n\nmicrocode\t: 7\n";
        assert_eq!(field(cpuinfo, "microcode"), Some("0x1000065"));
        let described = describe(&CpuMap::default(), cpuinfo);
        assert_eq!((described.microcode, described.phys_bits), (Some(0x0100_0065), Some(48)));
        assert_eq!(described.model, None);
    }
}
