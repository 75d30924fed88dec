//! The guest's processors: model, features, enlightenments, topology.

use super::line::Line;
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::PanicModel;
use crate::conf::domain::{
    Cpu, CpuCacheMode, CpuMode, FeaturePolicy, Hyperv, HypervMode, PhysAddrMode, State, TimerName,
};
use crate::conf::xml::{OnOff, YesNo};
use crate::qemu::capabilities::Cap;

/// CPU features whose names differ between libvirt and QEMU.
const RENAMED: &[(&str, &str)] = &[
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
];

/// QEMU's name of a CPU feature.
pub(crate) fn qemu_feature(name: &str) -> &str {
    RENAMED.iter().find(|(ours, _)| *ours == name).map_or(name, |(_, theirs)| theirs)
}

/// libvirt's name of a CPU feature that QEMU calls `name`.
pub(crate) fn libvirt_feature(name: &str) -> &str {
    RENAMED.iter().find(|(_, theirs)| *theirs == name).map_or(name, |(ours, _)| ours)
}

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let domain = guest.domain;
    let mut model = String::new();
    if let Some(cpu) = &domain.cpu
        && (cpu.mode != CpuMode::Custom || cpu.model.is_some())
    {
        push_model(guest, cpu, &mut model)?;
    }
    let mut flags = String::new();
    timers(guest, &mut flags);
    if let Some(eoi) = domain.features.apic.and_then(|apic| apic.eoi) {
        flag(&mut flags, "kvm-pv-eoi", eoi.as_str());
    }
    if let Some(spinlock) = domain.features.pvspinlock {
        flag(&mut flags, "kvm-pv-unhalt", spinlock.state.as_str());
    }
    if let Some(hyperv) = &domain.features.hyperv {
        push_hyperv(hyperv, &mut flags);
    }
    if domain.devices.panics.iter().any(|panic| panic.model == PanicModel::Hyperv) {
        flags.push_str(",hv-crash");
    }
    push_kvm(guest, &mut flags);
    if let Some(pmu) = domain.features.pmu {
        flag(&mut flags, "pmu", pmu.state.as_str());
    }
    if let Some(cpu) = &domain.cpu {
        push_cache(cpu, &mut flags);
        push_address_bits(cpu, &mut flags);
    }
    if model.is_empty() && !flags.is_empty() {
        model.push_str("qemu64");
    }
    if !model.is_empty() {
        line.option("-cpu", model + &flags);
    }
    Ok(())
}

fn flag(out: &mut String, name: &str, value: &str) {
    out.push_str(&format!(",{name}={value}"));
}

fn push_model(guest: &Guest<'_>, cpu: &Cpu, out: &mut String) -> Result<()> {
    match cpu.mode {
        CpuMode::Custom => out.push_str(cpu.model.as_deref().unwrap_or_default()),
        CpuMode::HostModel => {
            return internal("unexpected host-model CPU for x86_64 architecture");
        }
        CpuMode::HostPassthrough | CpuMode::Maximum => {
            out.push_str(if cpu.mode == CpuMode::Maximum { "max" } else { "host" });
            if let Some(migratable) = cpu.migratable
                && guest.supports(Cap::CpuMigratable)
            {
                flag(out, "migratable", migratable.as_str());
            }
        }
    }
    if let Some(vendor) = &cpu.vendor_id {
        flag(out, "vendor", vendor);
    }
    let known = guest.caps.accel(guest.accel()).and_then(|accel| accel.host_cpu.as_ref());
    for feature in &cpu.rest.features {
        let name = qemu_feature(&feature.name);
        match feature.policy {
            FeaturePolicy::Force | FeaturePolicy::Require => flag(out, name, "on"),
            // A feature that QEMU has never heard of is off by itself.
            FeaturePolicy::Disable | FeaturePolicy::Forbid => {
                let is_known = known.is_none_or(|host| {
                    host.properties
                        .iter()
                        .any(|property| qemu_spelling(&property.name) == qemu_spelling(name))
                });
                if is_known {
                    flag(out, name, "off");
                }
            }
            FeaturePolicy::Optional => {}
        }
    }
    Ok(())
}

/// QEMU takes both `_` and `-` in the names of features.
fn qemu_spelling(name: &str) -> String {
    name.replace('_', "-")
}

fn timers(guest: &Guest<'_>, out: &mut String) {
    for timer in &guest.domain.clock.timers {
        match (timer.name, timer.present, timer.frequency_hz) {
            (TimerName::Kvmclock, Some(present), _) => {
                flag(out, "kvmclock", if present == YesNo::Yes { "on" } else { "off" });
            }
            (TimerName::Hypervclock, Some(YesNo::Yes), _) => flag(out, "hv-time", "on"),
            (TimerName::Tsc, _, Some(frequency)) if frequency > 0 => {
                flag(out, "tsc-frequency", &frequency.to_string());
            }
            _ => {}
        }
    }
}

fn push_hyperv(hyperv: &Hyperv, out: &mut String) {
    if hyperv.mode == HypervMode::Passthrough {
        flag(out, "hv-passthrough", "on");
    }
    let list = &hyperv.list;
    let on = |state: Option<State>| (state?.state == OnOff::On).then(|| "on".to_owned());
    let spinlocks = list.spinlocks.filter(|it| it.state == OnOff::On).and_then(|it| it.retries);
    let vendor = list.vendor_id.as_ref().filter(|it| it.state == OnOff::On);
    let (stimer, tlbflush) = (list.stimer, list.tlbflush);
    let enlightenments = [
        ("relaxed", on(list.relaxed)),
        ("vapic", on(list.vapic)),
        ("spinlocks", spinlocks.map(|retries| format!("0x{retries:x}"))),
        ("vpindex", on(list.vpindex)),
        ("runtime", on(list.runtime)),
        ("synic", on(list.synic)),
        ("stimer", on(stimer.map(|it| State { state: it.state }))),
        ("stimer-direct", on(stimer.and_then(|it| it.direct))),
        ("reset", on(list.reset)),
        ("vendor-id", vendor.and_then(|it| it.value.as_deref()).map(str::to_owned)),
        ("frequencies", on(list.frequencies)),
        ("reenlightenment", on(list.reenlightenment)),
        ("tlbflush", on(tlbflush.map(|it| State { state: it.state }))),
        ("tlbflush-direct", on(tlbflush.and_then(|it| it.direct))),
        ("tlbflush-ext", on(tlbflush.and_then(|it| it.extended))),
        ("ipi", on(list.ipi)),
        ("evmcs", on(list.evmcs)),
        ("avic", on(list.avic)),
        ("emsr-bitmap", on(list.emsr_bitmap)),
        ("xmm-input", on(list.xmm_input)),
    ];
    for (name, value) in enlightenments {
        if let Some(value) = value {
            flag(out, &format!("hv-{name}"), &value);
        }
    }
}

fn push_kvm(guest: &Guest<'_>, out: &mut String) {
    let Some(kvm) = guest.domain.features.kvm.as_ref().map(|kvm| kvm.0) else { return };
    let is = |state: Option<State>, wanted| state.is_some_and(|it| it.state == wanted);
    if is(kvm.hidden, OnOff::On) {
        flag(out, "kvm", "off");
    }
    if is(kvm.hint_dedicated, OnOff::On) {
        flag(out, "kvm-hint-dedicated", "on");
    }
    if is(kvm.poll_control, OnOff::On) {
        flag(out, "kvm-poll-control", "on");
    }
    if is(kvm.pv_ipi, OnOff::Off) {
        flag(out, "kvm-pv-ipi", "off");
    }
}

fn push_cache(cpu: &Cpu, out: &mut String) {
    let Some(cache) = cpu.rest.cache else { return };
    let is_host = matches!(cpu.mode, CpuMode::HostPassthrough | CpuMode::Maximum);
    match cache.mode {
        CpuCacheMode::Emulate => flag(out, "l3-cache", "on"),
        CpuCacheMode::Passthrough => flag(out, "host-cache-info", "on"),
        CpuCacheMode::Disable => {}
    }
    if cache.mode != CpuCacheMode::Passthrough && is_host {
        flag(out, "host-cache-info", "off");
    }
    if cache.mode != CpuCacheMode::Emulate {
        flag(out, "l3-cache", "off");
    }
}

fn push_address_bits(cpu: &Cpu, out: &mut String) {
    let Some(bits) = cpu.rest.maxphysaddr else { return };
    match bits.mode {
        PhysAddrMode::Passthrough => {
            flag(out, "host-phys-bits", "on");
            if let Some(limit) = bits.limit.filter(|limit| *limit > 0) {
                flag(out, "host-phys-bits-limit", &limit.to_string());
            }
        }
        PhysAddrMode::Emulate => match bits.bits.filter(|bits| *bits > 0) {
            Some(bits) => flag(out, "phys-bits", &bits.to_string()),
            None => flag(out, "host-phys-bits", "off"),
        },
    }
}

pub(super) fn topology(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let vcpus = &guest.domain.vcpus;
    // Those that can be unplugged are plugged in before the guest runs.
    let boot_cpus = match vcpus.individual.is_empty() {
        true => vcpus.online(),
        false => {
            let fixed = vcpus
                .individual
                .iter()
                .filter(|vcpu| vcpu.enabled == YesNo::Yes && vcpu.hotpluggable == Some(YesNo::No));
            fixed.count() as u32
        }
    };
    let mut text = boot_cpus.to_string();
    if boot_cpus != vcpus.max {
        flag(&mut text, "maxcpus", &vcpus.max.to_string());
    }
    match guest.domain.cpu.as_deref().and_then(|cpu| cpu.rest.topology) {
        Some(topology) => {
            if topology.dies != 1 && !guest.supports(Cap::SmpDies) {
                return unsupported("Only 1 die per socket is supported");
            }
            if topology.clusters != 1 && !guest.supports(Cap::SmpClusters) {
                return unsupported("Only 1 cluster per die is supported");
            }
            flag(&mut text, "sockets", &topology.sockets.to_string());
            if guest.supports(Cap::SmpDies) {
                flag(&mut text, "dies", &topology.dies.to_string());
            }
            if guest.supports(Cap::SmpClusters) {
                flag(&mut text, "clusters", &topology.clusters.to_string());
            }
            flag(&mut text, "cores", &topology.cores.to_string());
            flag(&mut text, "threads", &topology.threads.to_string());
        }
        None => text.push_str(&format!(",sockets={},cores=1,threads=1", vcpus.max)),
    }
    line.option("-smp", text);
    Ok(())
}
