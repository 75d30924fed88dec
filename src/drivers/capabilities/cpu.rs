//! CPUs that clients describe, held against this host's and against each other.

use super::{HostCapabilities, Wanted};
use crate::conf::capabilities::cpu::{
    self as model, Comparison, CpuMap, DescribedCpu, Known, Migration, Offer,
};
use crate::conf::domain::{Fallback, MaxPhysAddr, PhysAddrMode};
use crate::conf::xml::{Form, write_document};
use crate::drivers::flags::{CallFlags, flag_words};
use crate::error::{Error, Origin, Result};
use crate::qemu::capabilities::{
    Accel, Against, CpuExpansion, Features, IGNORED_CPU_FEATURES, feature_from_qemu,
};
use crate::util::arch::Arch;

flag_words!(
    /// `virConnectCompareCPUFlags`
    CompareFlags of "qemuConnectCompareCPU" {
        FAIL_INCOMPATIBLE = 1,
        VALIDATE_XML = 1 << 1,
    }
    /// The same word of the other call.
    CompareHypervisorFlags of "qemuConnectCompareHypervisorCPU" {
        FAIL_INCOMPATIBLE = 1,
        VALIDATE_XML = 1 << 1,
    }
    /// `virConnectBaselineCPUFlags`
    BaselineFlags of "qemuConnectBaselineCPU" {
        EXPAND_FEATURES = 1,
        MIGRATABLE = 1 << 1,
    }
    /// The same word of the other call.
    BaselineHypervisorFlags of "qemuConnectBaselineHypervisorCPU" {
        EXPAND_FEATURES = 1,
        MIGRATABLE = 1 << 1,
    }
);

/// `virCPUCompareResult`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Incompatible = 0,
    Identical = 1,
    Superset = 2,
}

impl HostCapabilities {
    /// `virConnectCompareCPU`: against the processor.
    pub fn compare_cpu(&self, text: &str, flags: u32) -> Result<Verdict> {
        let flags = CompareFlags::accept(flags)?;
        let described = describe(text, flags.contains(CompareFlags::VALIDATE_XML))?;
        let fails = flags.contains(CompareFlags::FAIL_INCOMPATIBLE);
        let map = self.emulators.cpu_map();
        let host = self.cpu()?;
        let (Some(map), Some(name)) = (map, &host.model) else { return judge(unknown_host(), fails) };
        let bits = map.bits(name, host.features.iter().map(String::as_str))?;
        judge(map.compare(&bits, host.vendor.as_deref(), described.described())?, fails)
    }

    /// `virConnectCompareHypervisorCPU`: against what a QEMU offers here.
    pub async fn compare_hypervisor_cpu(
        &self,
        wanted: Wanted<'_>,
        text: &str,
        flags: u32,
    ) -> Result<Verdict> {
        let flags = CompareHypervisorFlags::accept(flags)?;
        let (caps, arch, accel) = self.emulator(wanted).await?;
        let map = self.emulators.cpu_map();
        let offered = map.as_deref().filter(|map| caps.host_model(accel, Features::All, map).is_some());
        let Some(map) = offered else {
            let binary = caps.binary.display();
            let sentence = format!(
                "QEMU '{binary}' does not support reporting CPU model for virttype '{}'",
                virt_type(accel)
            );
            return Err(Error::operation_unsupported(sentence));
        };
        let described = describe(text, flags.contains(CompareHypervisorFlags::VALIDATE_XML))?;
        if !arch.is_x86() {
            let sentence = format!("comparing with the hypervisor CPU is not supported for arch {arch}");
            return Err(Error::operation_unsupported(sentence));
        }
        let found = caps.compare_cpu(described.described(), accel, map, Against::Qemu)?;
        judge(found, flags.contains(CompareHypervisorFlags::FAIL_INCOMPATIBLE))
    }

    /// `virConnectBaselineCPU`
    pub fn baseline_cpu(&self, texts: &[String], flags: u32) -> Result<String> {
        check_given(texts, "virConnectBaselineCPU")?;
        let flags = BaselineFlags::accept(flags)?;
        let cpus = DescribedCpu::parse_list(texts, model::Wanted::Host)?;
        model::check_models(&cpus)?;
        let arch = cpus.first().and_then(|described| described.arch).unwrap_or(Arch::X86_64);
        if !arch.is_x86() {
            return Err(no_baseline(arch));
        }
        let map = self.described_models()?;
        let migration = migration(flags.contains(BaselineFlags::MIGRATABLE));
        let mut cpu = map.baseline(&cpus, None, migration)?;
        cpu.rest.features.retain(|feature| !IGNORED_CPU_FEATURES.contains(&&*feature.name));
        if flags.contains(BaselineFlags::EXPAND_FEATURES) {
            map.expand(&mut cpu)?;
        }
        Ok(write_document(&cpu, "cpu", Form::INACTIVE))
    }

    /// `virConnectBaselineHypervisorCPU`
    pub async fn baseline_hypervisor_cpu(
        &self,
        wanted: Wanted<'_>,
        texts: &[String],
        flags: u32,
    ) -> Result<String> {
        check_given(texts, "virConnectBaselineHypervisorCPU")?;
        let flags = BaselineHypervisorFlags::accept(flags)?;
        let cpus = DescribedCpu::parse_list(texts, model::Wanted::Either)?;
        let (caps, arch, accel) = self.emulator(wanted).await?;
        let Some(known) = caps.accel(accel).filter(|accel| !accel.cpus.is_empty()) else {
            let binary = caps.binary.display();
            let virt_type = virt_type(accel);
            let sentence =
                format!("QEMU '{binary}' does not support any CPU models for virttype '{virt_type}'");
            return Err(Error::operation_unsupported(sentence));
        };
        if !arch.is_x86() {
            let sentence = format!("computing baseline hypervisor CPU is not supported for arch {arch}");
            return Err(Error::operation_unsupported(sentence));
        }
        let map = self.described_models()?;
        let mut migration = migration(flags.contains(BaselineHypervisorFlags::MIGRATABLE));
        let models = |name: &str| known.cpu(name).map(|cpu| cpu.blockers(caps.arch));
        let models: &Known<'_> = &models;
        let features = known.host_cpu.as_ref().map(|cpu| features(cpu, caps.arch, migration));
        if known.host_cpu.as_ref().is_some_and(|cpu| cpu.migratability) {
            // QEMU itself has said which they are.
            migration = Migration::Any;
        }
        let mut cpu = map.baseline(&cpus, Some(&Offer { models, features }), migration)?;
        cpu.fallback = Fallback::Forbid;
        if flags.contains(BaselineHypervisorFlags::EXPAND_FEATURES) {
            map.expand(&mut cpu)?;
        }
        cpu.rest.maxphysaddr = address_limit(&cpus);
        Ok(write_document(&cpu, "cpu", Form::INACTIVE))
    }

    fn described_models(&self) -> Result<std::sync::Arc<CpuMap>> {
        let unknown = || Error::internal_error("cannot read the description of CPU models");
        self.emulators.cpu_map().ok_or_else(|| unknown().from_origin(Origin::CPU))
    }
}

fn check_given(texts: &[String], function: &'static str) -> Result<()> {
    if texts.is_empty() {
        let sentence = format!("xmlCPUs in {function} must not be NULL");
        return Err(Error::refused_argument(function, "xmlCPUs", sentence));
    }
    Ok(())
}

fn describe(text: &str, strictly: bool) -> Result<DescribedCpu> {
    Ok(match strictly {
        true => DescribedCpu::parse_strictly(text, model::Wanted::Either)?,
        false => DescribedCpu::parse(text, model::Wanted::Either)?,
    })
}

fn judge(found: Comparison, fails: bool) -> Result<Verdict> {
    match found {
        Comparison::Incompatible(sentence) if fails => {
            Err(Error::cpu_incompatible(sentence).from_origin(Origin::CPU))
        }
        Comparison::Incompatible(_) => Ok(Verdict::Incompatible),
        Comparison::Identical => Ok(Verdict::Identical),
        Comparison::Superset => Ok(Verdict::Superset),
    }
}

fn unknown_host() -> Comparison {
    Comparison::Incompatible("unknown host CPU".to_owned())
}

fn virt_type(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "qemu",
    }
}

fn no_baseline(arch: Arch) -> Error {
    let known = arch.is_arm() || arch.is_ppc64() || arch.is_s390();
    let sentence = match known || matches!(arch, Arch::Riscv64 | Arch::Loongarch64) {
        true => format!("cannot compute baseline CPU of {arch} architecture"),
        false => format!("'{arch}' architecture is not supported by CPU driver"),
    };
    Error::no_support(sentence).from_origin(Origin::CPU)
}

fn migration(only_possible: bool) -> Migration {
    if only_possible { Migration::Possible } else { Migration::Any }
}

/// What QEMU knows of the host's features, whether the host has them or not.
fn features(cpu: &CpuExpansion, arch: Arch, migration: Migration) -> Vec<&str> {
    let fits = |migratable: Option<bool>| migration == Migration::Any || migratable != Some(false);
    let properties = cpu.properties.iter().filter(|property| fits(property.migratable));
    properties.map(|property| feature_from_qemu(arch, &property.name)).collect()
}

/// The narrowest addresses; as libvirt counts, a CPU without a limit forgets those before it.
fn address_limit(cpus: &[DescribedCpu]) -> Option<MaxPhysAddr> {
    let mut narrowest = 0;
    for (index, described) in cpus.iter().enumerate() {
        let limit = described.cpu.rest.maxphysaddr.and_then(|addresses| addresses.limit).unwrap_or(0);
        if limit == 0 || index == 0 || limit < narrowest {
            narrowest = limit;
        }
    }
    (narrowest > 0).then_some(MaxPhysAddr {
        mode: PhysAddrMode::Passthrough,
        bits: None,
        limit: Some(narrowest),
    })
}
