//! Whether a guest could go on with another definition as if nothing had happened.
//!
//! What a guest sees of its machine is compared: processors, memory, buses, devices and their places. What it does
//! not see, such as where its disks' contents are or what its screen is shown on, may differ.

mod devices;

use crate::conf::devices::BalloonModel;
use crate::conf::domain::{Cpu, Domain, Features, Timer, TimerName};
use crate::conf::{ConfError, Result};

/// Refuses what differs; `{}` in the sentence are the target's value and the source's.
macro_rules! same {
    ($target:expr, $source:expr, $sentence:literal) => {
        if $target != $source {
            let (target, source) = (
                $crate::conf::migration::abi::Shown::shown(&$target),
                $crate::conf::migration::abi::Shown::shown(&$source),
            );
            return Err($crate::conf::ConfError::unsupported(format!($sentence, target, source)));
        }
    };
}

/// The same with a sentence that quotes nothing.
macro_rules! alike {
    ($target:expr, $source:expr, $sentence:literal) => {
        if $target != $source {
            return Err($crate::conf::ConfError::unsupported($sentence));
        }
    };
}

use {alike, same};

/// A value as libvirt's sentences quote it.
trait Shown {
    /// What stands for no value.
    const NONE: &'static str = "default";

    fn shown(&self) -> String;
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| T::NONE.to_owned(), Shown::shown)
    }
}

impl<T: Shown + ?Sized> Shown for &T {
    const NONE: &'static str = T::NONE;

    fn shown(&self) -> String {
        T::shown(self)
    }
}

impl<T: Shown + ?Sized> Shown for Box<T> {
    const NONE: &'static str = T::NONE;

    fn shown(&self) -> String {
        T::shown(self)
    }
}

impl Shown for str {
    const NONE: &'static str = "<null>";

    fn shown(&self) -> String {
        self.to_owned()
    }
}

macro_rules! shown {
    ($none:literal: $($type:ty),*) => {$(
        impl Shown for $type {
            const NONE: &'static str = $none;

            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

use shown;

shown!("0": u16, u32, u64, usize);
shown!("default": crate::conf::xml::OnOff, crate::conf::xml::YesNo, crate::util::uuid::Uuid);
shown!("default": crate::conf::domain::VirtType, crate::conf::domain::OsType, crate::util::arch::Arch);
shown!("default": crate::conf::domain::SmbiosMode, TimerName, crate::conf::domain::TimerMode);
shown!("default": crate::conf::domain::CpuMode, crate::conf::domain::CpuCheck, crate::conf::domain::FeaturePolicy);
shown!("default": crate::conf::domain::IoapicDriver);

impl Domain {
    /// Refuses a definition that shows the guest another machine than this one. Both as another host gets them.
    pub fn check_same_machine(&self, target: &Self) -> Result<()> {
        let source = self;
        same!(target.virt_type, source.virt_type, "Target domain virt type {} does not match source {}");
        same!(target.uuid, source.uuid, "Target domain uuid {} does not match source {}");
        alike!(target.genid, source.genid, "Target domain requested genid does not match source");
        // A guest is not renamed through the back door.
        same!(target.name, source.name, "Target domain name '{}' does not match source '{}'");
        memory(source, target)?;
        processors(source, target)?;
        let (new, old) = (&target.os, &source.os);
        same!(new.os_type.kind.0, old.os_type.kind.0, "Target domain OS type {} does not match source {}");
        same!(new.os_type.arch, old.os_type.arch, "Target domain architecture {} does not match source {}");
        same!(
            new.os_type.machine,
            old.os_type.machine,
            "Target domain machine type {} does not match source {}"
        );
        same!(new.smbios, old.smbios, "Target domain SMBIOS mode {} does not match source {}");
        features(&source.features, &target.features)?;
        let (new, old) = (&target.clock.timers, &source.clock.timers);
        alike!(new.len(), old.len(), "Target domain timers do not match source");
        old.iter().zip(new).try_for_each(|(old, new)| timer(old, new))?;
        match (&source.cpu, &target.cpu) {
            (None, None) => {}
            (Some(old), Some(new)) => cpu(old, new)?,
            _ => return Err(ConfError::unsupported("Target CPU does not match source").by_cpu_parser()),
        }
        alike!(
            target.sysinfo.len(),
            source.sysinfo.len(),
            "Target domain count of sysinfo does not match source"
        );
        alike!(target.sysinfo, source.sysinfo, "Target sysinfo does not match source");
        devices::check(&source.devices, &target.devices)
    }
}

fn memory(source: &Domain, target: &Domain) -> Result<()> {
    let (new, old) = (&target.memory, &source.memory);
    same!(new.total_kib, old.total_kib, "Target domain max memory {} does not match source {}");
    let balloon =
        |domain: &Domain| domain.devices.memballoons.iter().any(|it| it.model != BalloonModel::None);
    // A balloon moves while nobody looks.
    if !balloon(source) {
        same!(new.current_kib, old.current_kib, "Target domain current memory {} does not match source {}");
    }
    let size = |memory: &crate::conf::domain::Memory| memory.max.map_or(0, |max| max.kib);
    let slots = |memory: &crate::conf::domain::Memory| memory.max.and_then(|max| max.slots).unwrap_or(0);
    same!(size(new), size(old), "Target maximum memory size '{}' doesn't match source '{}'");
    same!(slots(new), slots(old), "Target domain memory slots count '{}' doesn't match source '{}'");
    let cells = |domain: &Domain| {
        let numa = domain.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_ref());
        numa.map(|numa| numa.cells.clone()).unwrap_or_default()
    };
    let (new, old) = (cells(target), cells(source));
    same!(new.len(), old.len(), "Target NUMA node count '{}' doesn't match source '{}'");
    for (at, (new, old)) in new.iter().zip(&old).enumerate() {
        if new.memory_kib != old.memory_kib {
            return Err(ConfError::unsupported(format!(
                "Size of target NUMA node {at} ({}) doesn't match source ({})",
                new.memory_kib, old.memory_kib
            )));
        }
        if new.cpus != old.cpus {
            return Err(ConfError::unsupported(format!(
                "Processor mask of target NUMA node {at} doesn't match source"
            )));
        }
        if new.distances != old.distances {
            let to = new.distances.iter().zip(&old.distances).find(|(new, old)| new != old);
            let to = to.map_or(0, |(new, _)| new.id);
            return Err(ConfError::unsupported(format!(
                "Target NUMA distance from {at} to {to} doesn't match source"
            )));
        }
    }
    Ok(())
}

fn processors(source: &Domain, target: &Domain) -> Result<()> {
    let (new, old) = (&target.vcpus, &source.vcpus);
    same!(new.max, old.max, "Target domain vCPU max {} does not match source {}");
    let state = |domain: &Domain, id: u32| {
        let named = domain.vcpus.individual.iter().find(|vcpu| vcpu.id == id);
        let online =
            named.map_or(id < domain.vcpus.online(), |it| it.enabled == crate::conf::xml::YesNo::Yes);
        (online, named.and_then(|vcpu| vcpu.order))
    };
    for id in 0..old.max {
        let ((online, order), (was_online, had_order)) = (state(target, id), state(source, id));
        if online != was_online {
            return Err(ConfError::unsupported(format!(
                "State of vCPU '{id}' differs between source and destination definitions"
            )));
        }
        if order != had_order {
            return Err(ConfError::unsupported(format!(
                "vcpu enable order of vCPU '{id}' differs between source and destination definitions"
            )));
        }
    }
    Ok(())
}

fn features(source: &Features, target: &Features) -> Result<()> {
    macro_rules! states {
        ($($name:literal: $of:expr;)*) => {[$({
            let of: fn(&Features) -> String = $of;
            ($name, of(source), of(target))
        }),*]};
    }
    let states = states! {
        "acpi": |it| flag(it.acpi);
        "pae": |it| flag(it.pae);
        "hap": |it| it.hap.map(|it| it.state).shown();
        "viridian": |it| flag(it.viridian);
        "privnet": |it| flag(it.privnet);
        "kvm": |it| flag(it.kvm.is_some());
        "pvspinlock": |it| it.pvspinlock.map(|it| it.state).shown();
        "pmu": |it| it.pmu.map(|it| it.state).shown();
        "vmport": |it| it.vmport.map(|it| it.state).shown();
        "smm": |it| it.smm.map(|it| it.state).shown();
        "vmcoreinfo": |it| it.vmcoreinfo.map(|it| it.state).shown();
        "htm": |it| it.htm.map(|it| it.state).shown();
        "nested-hv": |it| it.nested_hv.map(|it| it.state).shown();
        "ccf-assist": |it| it.ccf_assist.map(|it| it.state).shown();
        "ras": |it| it.ras.map(|it| it.state).shown();
        "ps2": |it| it.ps2.map(|it| it.state).shown();
        "apic": |it| match it.apic {
            None => "default,eoi=default".to_owned(),
            Some(apic) => format!("on,eoi={}", apic.eoi.shown()),
        };
        "ioapic": |it| format!("driver={}", it.ioapic.shown());
    };
    for (name, was, is) in states {
        if was != is {
            return Err(ConfError::unsupported(format!(
                "State of feature '{name}' differs: source: '{was}', destination: '{is}'"
            )));
        }
    }
    alike!(target.hyperv, source.hyperv, "State of HyperV enlightenment features differs");
    alike!(target.kvm, source.kvm, "State of KVM features differs");
    alike!(target.smm, source.smm, "SMM TSEG differs");
    Ok(())
}

fn flag(is: bool) -> String {
    if is { "on" } else { "default" }.to_owned()
}

fn timer(source: &Timer, target: &Timer) -> Result<()> {
    same!(target.name, source.name, "Target timer {} does not match source {}");
    same!(target.present, source.present, "Target timer presence '{}' does not match source '{}'");
    if source.name == TimerName::Tsc {
        same!(target.frequency_hz, source.frequency_hz, "Target TSC frequency {} does not match source {}");
        same!(target.mode, source.mode, "Target TSC mode {} does not match source {}");
    }
    Ok(())
}

fn cpu(source: &Cpu, target: &Cpu) -> Result<()> {
    same_cpu(source, target).map_err(ConfError::by_cpu_parser)
}

fn same_cpu(source: &Cpu, target: &Cpu) -> Result<()> {
    same!(target.mode, source.mode, "Target CPU mode {} does not match source {}");
    same!(target.check, source.check, "Target CPU check {} does not match source {}");
    same!(target.model, source.model, "Target CPU model {} does not match source {}");
    let (new, old) = (&target.rest, &source.rest);
    same!(new.vendor, old.vendor, "Target CPU vendor {} does not match source {}");
    same!(target.vendor_id, source.vendor_id, "Target CPU vendor id {} does not match source {}");
    if let (Some(new), Some(old)) = (new.topology, old.topology) {
        same!(new.sockets, old.sockets, "Target CPU sockets {} does not match source {}");
        same!(new.dies, old.dies, "Target CPU dies {} does not match source {}");
        same!(new.clusters, old.clusters, "Target CPU clusters {} does not match source {}");
        same!(new.cores, old.cores, "Target CPU cores {} does not match source {}");
        same!(new.threads, old.threads, "Target CPU threads {} does not match source {}");
    }
    alike!(new.topology.is_some(), old.topology.is_some(), "Target CPU does not match source");
    alike!(new.maxphysaddr, old.maxphysaddr, "Target CPU maxphysaddr does not match source");
    same!(new.features.len(), old.features.len(), "Target CPU feature count {} does not match source {}");
    for (new, old) in new.features.iter().zip(&old.features) {
        same!(new.name, old.name, "Target CPU feature {} does not match source {}");
        same!(new.policy, old.policy, "Target CPU feature policy {} does not match source {}");
    }
    alike!(new.cache, old.cache, "Target CPU cache does not match source");
    Ok(())
}

#[cfg(test)]
mod tests;
