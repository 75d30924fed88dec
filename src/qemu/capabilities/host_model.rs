//! The CPU that `<cpu mode='host-model'/>` stands for: what QEMU can offer on this host, by name.

use std::sync::OnceLock;

use super::{Accel, Cap, CpuDefinition, CpuValue, QemuCaps};
use crate::conf::capabilities::cpu::{CpuData, CpuMap, Decoded, Purpose};
use crate::conf::capabilities::host::Signature;
use crate::util::arch::Arch;

/// Whether features that keep a guest from being migrated are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Features {
    All,
    Migratable,
}

/// Answers found so far, for KVM and TCG.
#[derive(Debug, Clone, Default)]
pub(super) struct HostModels {
    all: [OnceLock<Option<Decoded>>; 2],
    migratable: [OnceLock<Option<Decoded>>; 2],
}

/// Features of x86 that libvirt and QEMU spell differently.
const SPELLINGS: &[(&str, &str)] = &[
    ("cmp_legacy", "cmp-legacy"),
    ("ds_cpl", "ds-cpl"),
    ("fxsr_opt", "fxsr-opt"),
    ("kvm_pv_eoi", "kvm-pv-eoi"),
    ("kvm_pv_unhalt", "kvm-pv-unhalt"),
    ("lahf_lm", "lahf-lm"),
    ("nodeid_msr", "nodeid-msr"),
    ("pclmuldq", "pclmulqdq"),
    ("perfctr_core", "perfctr-core"),
    ("perfctr_nb", "perfctr-nb"),
    ("tsc_adjust", "tsc-adjust"),
    ("vmx-invvpid-single-context-noglobals", "vmx-invept-single-context-noglobals"),
    ("hv-vendor_id", "hv-vendor-id"),
    ("hv-emsr_bitmap", "hv-emsr-bitmap"),
    ("hv-xmm_input", "hv-xmm-input"),
];

/// libvirt's name of a feature that QEMU names.
pub fn feature_from_qemu(arch: Arch, name: &str) -> &str {
    let known = SPELLINGS.iter().filter(|_| arch.is_x86()).find(|(_, qemu)| *qemu == name);
    known.map_or(name, |(libvirt, _)| libvirt)
}

/// QEMU's name of a feature that libvirt names.
pub fn feature_to_qemu(arch: Arch, name: &str) -> &str {
    let known = SPELLINGS.iter().filter(|_| arch.is_x86()).find(|(libvirt, _)| *libvirt == name);
    known.map_or(name, |(_, qemu)| qemu)
}

impl CpuDefinition {
    /// What this host lacks of the model, under libvirt's names, sorted.
    pub fn blockers(&self, arch: Arch) -> Vec<String> {
        let blockers = self.blockers.iter().flatten();
        let mut blockers: Vec<_> = blockers.map(|name| feature_from_qemu(arch, name).to_owned()).collect();
        blockers.sort_unstable();
        blockers
    }
}

impl QemuCaps {
    /// The model, what it has to have beyond that and what it lacks; nothing where QEMU or the map does not
    /// say. There is one map per process, so the answer is found once.
    pub fn host_model(&self, accel: Accel, features: Features, map: &CpuMap) -> Option<&Decoded> {
        let answers = match features {
            Features::All => &self.host_models.all,
            Features::Migratable => &self.host_models.migratable,
        };
        let answer = match accel {
            Accel::Kvm => &answers[0],
            Accel::Tcg => &answers[1],
        };
        answer.get_or_init(|| self.decode_host(accel, features, map)).as_ref()
    }

    fn decode_host(&self, accel: Accel, features: Features, map: &CpuMap) -> Option<Decoded> {
        let data = self.host_data(accel, features, map)?;
        let cpus = self.accel(accel)?;
        let known = |name: &str| cpus.cpu(name).map(|cpu| cpu.blockers(self.arch));
        let mut decoded = map.decode(&data, Purpose::Guest, Some(&known))?;
        // Such a QEMU does not say what of a register it really gives the guest.
        if !self.supports(Cap::CpuUnavailableFeatures) {
            decoded.features.retain(|(name, _)| !map.is_in_register(name));
        }
        Some(decoded)
    }

    /// Whether a guest that may be migrated can have the feature here.
    pub(super) fn host_has_feature(&self, accel: Accel, feature: &str, map: &CpuMap) -> bool {
        self.host_data(accel, Features::Migratable, map).is_some_and(|data| map.has_feature(&data, feature))
    }

    /// QEMU's properties of the host's CPU as bits.
    fn host_data(&self, accel: Accel, features: Features, map: &CpuMap) -> Option<CpuData> {
        let cpu = self.accel(accel)?.host_cpu.as_ref().filter(|_| self.arch.is_x86())?;
        let mut data = CpuData::default();
        let mut signature = Signature { family: 0, model: 0, stepping: 0 };
        for property in &cpu.properties {
            let fits = features == Features::All || property.migratable != Some(false);
            match (&property.value, property.name.as_str()) {
                (CpuValue::Bool(true), name) if fits => {
                    map.set_feature(&mut data, feature_from_qemu(self.arch, name));
                }
                (CpuValue::Text(vendor), "vendor") => data.set_vendor(vendor),
                (CpuValue::Number(number), "family") => signature.family = u32::try_from(*number).ok()?,
                (CpuValue::Number(number), "model") => signature.model = u32::try_from(*number).ok()?,
                (CpuValue::Number(number), "stepping") => signature.stepping = u32::try_from(*number).ok()?,
                _ => {}
            }
        }
        data.set_signature(signature);
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_translate_both_ways_on_x86_only() {
        assert_eq!(feature_to_qemu(Arch::X86_64, "pclmuldq"), "pclmulqdq");
        assert_eq!(feature_from_qemu(Arch::X86_64, "tsc-adjust"), "tsc_adjust");
        assert_eq!(feature_from_qemu(Arch::X86_64, "aes"), "aes");
        assert_eq!(feature_from_qemu(Arch::S390x, "tsc-adjust"), "tsc-adjust");
    }
}
