//! What the host's processor is called: its own answers, decoded with libvirt's description of models.

use crate::conf::capabilities::cpu::{CpuMap, Purpose};
use crate::conf::capabilities::host::{HostCpu, TscCounter};
use crate::qemu::capabilities::processor;
use crate::util::host_cpu;

/// The processor by name, with what /proc/cpuinfo and KVM add.
pub(super) fn describe(map: &CpuMap, cpuinfo: &str) -> HostCpu {
    let microcode = field(cpuinfo, "microcode").and_then(|text| {
        text.strip_prefix("0x")
            .map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok())
    });
    let unnamed = HostCpu { microcode, phys_bits: phys_bits(cpuinfo), ..HostCpu::default() };
    let Some(data) = processor::bits(map) else { return unnamed };
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
