//! The CPU that a guest starts with, made of the one its definition asks for.
//!
//! ```text
//! check='partial', a forbidden feature ─▶ refused if the host lacks or has something
//! host-model, match='minimum' ─▶ the host's model by name, then the definition's own features
//! policy='optional'           ─▶ require or disable, by what the host has
//! any named model             ─▶ features that QEMU took out of it since are disabled
//! ```
//!
//! After that the definition says everything: another host, or another QEMU, can give the guest the same CPU.

use super::compare::{Against, full_host};
use super::{Accel, Features, QemuCaps};
use crate::conf::capabilities::cpu::{Comparison, CpuError, CpuMap, Decoded, Described, Policy};
use crate::conf::domain::{Cpu, CpuCheck, CpuFeature, CpuMatch, CpuMode, Fallback, FeaturePolicy};
use crate::conf::xml::Value;
use crate::util::arch::Arch;

/// Why a guest cannot have the CPU it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestCpuError {
    #[error("CPU mode '{mode}' for {arch} {virt_type} domain on {arch} host is not supported by hypervisor")]
    Mode { mode: String, arch: Arch, virt_type: &'static str },
    #[error("unknown host CPU model")]
    UnknownHost,
    #[error("Unknown CPU model {0}")]
    UnknownModel(String),
    #[error("unknown CPU model {0}")]
    NoModel(String),
    #[error("{0}")]
    Incompatible(String),
    #[error(transparent)]
    Map(#[from] CpuError),
}

/// Features that QEMU never had, or no longer has.
pub const IGNORED: [&str; 8] = [
    "cmt",
    "mbm_total",
    "mbm_local",
    "osxsave",
    "ospke",
    "vmx-ept-uc",
    "vmx-ept-wb",
    "vmx-invvpid-single-context",
];

/// Completes `cpu` for a start on this binary.
pub fn resolve(
    cpu: &mut Cpu,
    caps: &QemuCaps,
    accel: Accel,
    map: Option<&CpuMap>,
) -> Result<(), GuestCpuError> {
    if cpu.mode == CpuMode::Custom && cpu.model.is_none() {
        return Ok(());
    }
    // Decoded once per binary, and only if someone asks.
    let host = || map.and_then(|map| caps.host_model(accel, Features::Migratable, map));
    check_mode(cpu.mode, caps, accel, host)?;
    if let Some(map) = map.filter(|_| caps.arch.is_x86()) {
        check_host(cpu, caps, accel, map)?;
    }
    if cpu.mode.has_model() && caps.arch.is_x86() {
        let optional = |feature: &CpuFeature| feature.policy == FeaturePolicy::Optional;
        let like_host = cpu.mode == CpuMode::HostModel || cpu.matching == CpuMatch::Minimum;
        if like_host || cpu.rest.features.iter().any(optional) {
            let (Some(host), Some(map)) = (host(), map) else { return Err(GuestCpuError::UnknownHost) };
            decide_optional(cpu, |feature| caps.host_has_feature(accel, feature, map));
            if like_host {
                take_host(cpu, host);
            }
        }
        if let Some(map) = map {
            let name = cpu.model.as_deref().unwrap_or_default();
            let model = map.model(name).ok_or_else(|| GuestCpuError::UnknownModel(name.to_owned()))?;
            for removed in model.removed() {
                if !cpu.rest.features.iter().any(|feature| *feature.name == **removed) {
                    set(&mut cpu.rest.features, removed, FeaturePolicy::Disable);
                }
            }
        }
        cpu.fallback = Fallback::Forbid;
    }
    if caps.arch.is_x86() {
        cpu.rest.features.retain(|feature| !IGNORED.contains(&&*feature.name));
    }
    Ok(())
}

fn check_mode<'a>(
    mode: CpuMode,
    caps: &QemuCaps,
    accel: Accel,
    host: impl Fn() -> Option<&'a Decoded>,
) -> Result<(), GuestCpuError> {
    let supported = match mode {
        CpuMode::HostPassthrough => accel == Accel::Kvm,
        CpuMode::Maximum => caps.supports(super::Cap::CpuMax),
        CpuMode::HostModel => host().is_some() || !caps.arch.is_x86(),
        CpuMode::Custom => caps.accel(accel).is_some_and(|accel| !accel.cpus.is_empty()),
    };
    if supported {
        return Ok(());
    }
    let mut name = String::new();
    mode.print(&mut name);
    let virt_type = if accel == Accel::Kvm { "kvm" } else { "qemu" };
    Err(GuestCpuError::Mode { mode: name, arch: caps.arch, virt_type })
}

/// Refuses what this host cannot give, as far as the definition wants that to be known before.
fn check_host(cpu: &Cpu, caps: &QemuCaps, accel: Accel, map: &CpuMap) -> Result<(), GuestCpuError> {
    if cpu.check == Some(CpuCheck::None) {
        return Ok(());
    }
    let forbids = cpu.rest.features.iter().any(|feature| feature.policy == FeaturePolicy::Forbid);
    if forbids && let Some(host) = full_host(caps, accel, map) {
        let provides = |name: &str| {
            let mut features = host.features.iter();
            features.any(|(known, policy)| known == name && *policy == Policy::Require)
        };
        let mut features = cpu.rest.features.iter();
        if let Some(feature) = features.find(|it| it.policy == FeaturePolicy::Forbid && provides(&it.name)) {
            let sentence = format!("Host CPU provides forbidden feature '{}'", feature.name);
            return Err(GuestCpuError::Incompatible(sentence));
        }
    }
    if cpu.check != Some(CpuCheck::Partial) || !cpu.mode.has_model() {
        return Ok(());
    }
    match caps.compare_cpu(Described::guest(cpu), accel, map, Against::Everything)? {
        Comparison::Incompatible(sentence) => Err(GuestCpuError::Incompatible(sentence)),
        Comparison::Identical | Comparison::Superset => Ok(()),
    }
}

fn decide_optional(cpu: &mut Cpu, has: impl Fn(&str) -> bool) {
    for feature in &mut cpu.rest.features {
        if feature.policy == FeaturePolicy::Optional {
            let there = has(&feature.name);
            feature.policy = if there { FeaturePolicy::Require } else { FeaturePolicy::Disable };
        }
    }
}

/// The host's model and features, on which the definition's own have the last word.
fn take_host(cpu: &mut Cpu, host: &Decoded) {
    let feature = |(name, policy): &(String, Policy)| CpuFeature {
        policy: match policy {
            Policy::Require => FeaturePolicy::Require,
            Policy::Disable => FeaturePolicy::Disable,
        },
        name: name.as_str().into(),
    };
    let own = std::mem::replace(&mut cpu.rest.features, host.features.iter().map(feature).collect());
    for feature in own {
        set(&mut cpu.rest.features, &feature.name, feature.policy);
    }
    if cpu.mode == CpuMode::HostModel {
        cpu.rest.vendor = host.vendor.as_deref().map(Into::into);
    }
    cpu.model = Some(host.model.as_str().into());
    cpu.mode = CpuMode::Custom;
    cpu.matching = CpuMatch::Exact;
}

fn set(features: &mut Vec<CpuFeature>, name: &str, policy: FeaturePolicy) {
    match features.iter_mut().find(|feature| *feature.name == *name) {
        Some(feature) => feature.policy = policy,
        None => features.push(CpuFeature { policy, name: name.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::caps;
    use super::*;
    use crate::conf::domain::Domain;
    use crate::conf::xml::Form;

    fn resolved(accel: Accel, cpu: &str) -> Result<String, GuestCpuError> {
        let directory = std::path::Path::new("/usr/share/libvirt/cpu_map");
        let map = CpuMap::load(|name| std::fs::read_to_string(directory.join(name))).unwrap();
        let text = format!(
            "<domain type='kvm'><name>x</name><memory>1</memory><os><type>hvm</type></os>{cpu}</domain>"
        );
        let mut cpu = *Domain::parse(&text, Form::INACTIVE).unwrap().cpu.unwrap();
        resolve(&mut cpu, &caps(), accel, Some(&map))?;
        let features = cpu.rest.features.iter().map(|feature| match feature.policy {
            FeaturePolicy::Require => format!("+{}", feature.name),
            _ => format!("-{}", feature.name),
        });
        Ok(format!("{} {}", cpu.model.as_deref().unwrap_or_default(), features.collect::<String>()))
    }

    #[test]
    fn a_host_model_is_named_and_the_definition_has_the_last_word() {
        let plain = resolved(Accel::Tcg, "<cpu mode='host-model'/>").unwrap();
        assert!(plain.starts_with("EPYC +monitor+x2apic+hypervisor+acpi+ss"), "{plain}");
        assert!(plain.ends_with("-topoext-fxsr_opt-nrip-save"), "{plain}");
        let own = "<cpu mode='host-model'><feature policy='disable' name='x2apic'/></cpu>";
        let own = resolved(Accel::Tcg, own).unwrap();
        assert_eq!(own, plain.replace("+x2apic", "-x2apic"));
        let kvm = resolved(Accel::Kvm, "<cpu mode='host-model'/>").unwrap();
        assert!(kvm.starts_with("EPYC-Genoa +x2apic+tsc-deadline+hypervisor"), "{kvm}");
        assert!(!kvm.contains("invtsc"), "a feature that keeps the guest from migrating: {kvm}");
    }

    #[test]
    fn what_left_a_model_is_disabled_and_what_is_optional_decided() {
        let cpu = "<cpu mode='custom'><model>EPYC</model></cpu>";
        assert_eq!(resolved(Accel::Tcg, cpu).unwrap(), "EPYC -monitor");
        let optional = "<cpu><model>qemu64</model><feature policy='optional' name='ss'/>\
                        <feature policy='optional' name='vme'/><feature policy='require' name='osxsave'/></cpu>";
        assert_eq!(resolved(Accel::Tcg, optional).unwrap(), "qemu64 +ss-vme");
        assert_eq!(resolved(Accel::Kvm, "<cpu mode='host-passthrough'/>").unwrap(), " ");
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let refused = |accel, cpu| resolved(accel, cpu).unwrap_err().to_string();
        assert_eq!(
            refused(Accel::Tcg, "<cpu mode='host-passthrough'/>"),
            "CPU mode 'host-passthrough' for x86_64 qemu domain on x86_64 host is not supported by hypervisor"
        );
        assert_eq!(refused(Accel::Kvm, "<cpu><model>vax</model></cpu>"), "Unknown CPU model vax");
    }
}
