//! What is refused although it can be read: definitions that would make no sense to QEMU.
//!
//! [`Domain::validate`] runs on a complete definition, in libvirt's order: the domain as QEMU sees it, each
//! device, the domain as a whole.

mod company;
mod devices;
mod disks;
mod early;
mod hostdevs;
mod interfaces;
mod iothreads;
mod memory;
mod processor;
mod screens;
mod sources;
#[cfg(test)]
mod tests;

pub(super) use early::{timers, vcpus};

use super::defaults::{Facts, Has};
use super::{
    Domain, FirmwareFeatureName, FirmwareKind, Hpt, LifecycleAction, LoaderType, MemoryAccess, OsType,
    ThreadPool,
};
use crate::conf::devices::{Address, DeviceInfo, Iommu};
use crate::conf::xml::{OnOff, YesNo};
use crate::conf::{ConfError, ErrorKind, Result};
use crate::util::arch::Arch;

pub(super) fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfError::unsupported(message))
}

/// A refusal in the name of the hypervisor driver rather than of definitions in general.
fn by_qemu<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfError::unsupported(message).by_qemu_driver())
}

/// The most virtual CPUs without interrupt remapping.
pub(super) const MAX_VCPUS_WITHOUT_EIM: u32 = 255;

impl Domain {
    /// Refuses what QEMU could not run or libvirt would not accept.
    pub fn validate(&self, facts: &Facts<'_>) -> Result<()> {
        self.check_emulator(facts)?;
        self.check_firmware_console()?;
        self.check_lifecycle()?;
        self.check_iothreads()?;
        self.check_platform(facts)?;
        self.check_topology(facts)?;
        if let Some(cpu) = &self.cpu {
            processor::check(cpu)?;
        }
        if let Some(tune) = &self.numatune {
            memory::check_tuning(self, tune)?;
        }
        memory::check_hotplug(self)?;
        memory::check_backing(self, facts)?;
        disks::check_all(self, facts)?;
        self.check_addresses()?;
        devices::check_all(self, facts)?;
        company::check_all(&self.devices)?;
        disks::check_duplicates(&self.devices)?;
        hostdevs::check_scsi_places(self)?;
        hostdevs::check_duplicates(self)?;
        devices::check_aliases(&self.devices)?;
        self.check_lifecycle_events()?;
        self.check_hugepages()?;
        self.check_firmware()?;
        self.check_cputune()?;
        self.check_boot_options()?;
        self.check_name()
    }

    fn check_emulator(&self, facts: &Facts<'_>) -> Result<()> {
        let emulator = self.devices.emulator.as_deref().unwrap_or_default();
        let refuse = |what: &str, value: &str| {
            by_qemu(format!("Emulator '{emulator}' does not support {what} '{value}'"))
        };
        let os_type = self.os.os_type.kind.0;
        if os_type != OsType::Hvm {
            return refuse("os type", os_type.as_str());
        }
        if self.arch() != facts.arch && (facts.arch, self.arch()) != (Arch::X86_64, Arch::I686) {
            return refuse("arch", self.arch().as_str());
        }
        if !facts.virt_type_works {
            return refuse("virt type", self.virt_type.as_str());
        }
        if facts.machine.is_none() {
            return refuse("machine type", self.machine());
        }
        if facts.acpi == Some(false) && self.features.acpi {
            return by_qemu(format!("machine type '{}' does not support ACPI", self.machine()));
        }
        if self.memtune.as_ref().and_then(|memtune| memtune.min_guarantee).is_some_and(|kib| kib.0 != 0) {
            return by_qemu("Parameter 'min_guarantee' not supported by QEMU.");
        }
        Ok(())
    }

    /// What firmware and the board's old devices need of each other.
    fn check_platform(&self, facts: &Facts<'_>) -> Result<()> {
        let features = &self.features;
        let of_pseries = [
            ("hpt", features.hpt != Hpt::default()),
            ("htm", features.htm.is_some()),
            ("nested-hv", features.nested_hv.is_some()),
            ("ccf-assist", features.ccf_assist.is_some()),
            ("cfpc", features.cfpc.is_some()),
            ("sbbc", features.sbbc.is_some()),
            ("ibs", features.ibs.is_some()),
        ];
        if let Some((name, _)) = of_pseries.iter().find(|(_, is_given)| *is_given) {
            return by_qemu(format!(
                "The '{name}' feature is not supported for architecture '{}' or machine type '{}'",
                self.arch(),
                self.machine()
            ));
        }
        let vmport_on = features.vmport.is_some_and(|vmport| vmport.state == OnOff::On);
        if features.ps2.is_some() && !facts.has.contains(Has::MACHINE_I8042) {
            return by_qemu("ps2 feature state cannot be controlled with this QEMU binary");
        }
        if vmport_on && features.ps2.is_some_and(|ps2| ps2.state == OnOff::Off) {
            return by_qemu("vmport feature requires the ps2 feature not to be disabled");
        }
        let loader = self.os.loader.as_ref().and_then(|loader| loader.kind);
        let is_uefi = self.os.firmware == Some(FirmwareKind::Efi) || loader == Some(LoaderType::Pflash);
        if is_uefi && self.arch().is_x86() && !features.acpi {
            return by_qemu("UEFI requires ACPI on this architecture");
        }
        Ok(())
    }

    /// Memory that a process beside QEMU shall see must be shared.
    pub(super) fn require_shared_memory(&self, what: &str) -> Result<()> {
        let usual = self.memory_backing.as_deref().and_then(|backing| backing.access);
        let cells =
            self.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_deref()).map_or(&[][..], |it| &it.cells);
        let shared = |own: Option<MemoryAccess>| own.or(usual) == Some(MemoryAccess::Shared);
        let all = if cells.is_empty() { shared(None) } else { cells.iter().all(|cell| shared(cell.access)) };
        if all { Ok(()) } else { by_qemu(format!("'{what}' requires shared memory")) }
    }

    fn check_firmware_console(&self) -> Result<()> {
        if self.os.bios.useserial != Some(YesNo::Yes) {
            return Ok(());
        }
        if !self.arch().is_x86() {
            return by_qemu("BIOS serial console only supported on x86 architectures");
        }
        if self.devices.serials.is_empty() {
            let message = "need at least one serial port to use BIOS serial output";
            return Err(ConfError::xml(message).by_qemu_driver());
        }
        Ok(())
    }

    /// Refuses what is to happen when the guest powers off, reboots or crashes.
    pub fn check_actions(&self) -> Result<()> {
        self.check_lifecycle_events()?;
        self.check_lifecycle()
    }

    fn check_lifecycle(&self) -> Result<()> {
        let (off, reboot, crash) = (self.on_poweroff, self.on_reboot, self.on_crash);
        if [off, reboot, crash].contains(&LifecycleAction::RenameRestart) {
            return by_qemu(
                "qemu driver doesn't support the 'rename-restart' action for 'on_reboot'/'on_poweroff'/'on_crash'",
            );
        }
        if [off, reboot].contains(&LifecycleAction::Preserve) {
            return by_qemu(
                "qemu driver doesn't support the 'preserve' action for 'on_reboot'/'on_poweroff'",
            );
        }
        if off == LifecycleAction::Restart && reboot == LifecycleAction::Destroy {
            return by_qemu(
                "qemu driver doesn't support 'onReboot' set to 'destroy and 'onPoweroff' set to 'reboot'",
            );
        }
        Ok(())
    }

    fn check_lifecycle_events(&self) -> Result<()> {
        for (event, action) in [("poweroff", self.on_poweroff), ("reboot", self.on_reboot)] {
            if matches!(action, LifecycleAction::CoredumpDestroy | LifecycleAction::CoredumpRestart) {
                return unsupported(format!("Lifecycle event '{event}' doesn't support '{action}' action"));
            }
        }
        Ok(())
    }

    fn check_iothreads(&self) -> Result<()> {
        let pools =
            self.iothreads.threads.iter().map(|thread| thread.pool).chain(self.iothreads.default_thread);
        for ThreadPool { min, max } in pools {
            if max == Some(0) {
                return unsupported("thread_pool_max must be a positive integer");
            }
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                return unsupported("thread_pool_min must be smaller or equal to thread_pool_max");
            }
        }
        Ok(())
    }

    fn check_name(&self) -> Result<()> {
        match self.name.contains('\n') {
            true => {
                let message = "invalid char in name: \n";
                Err(ConfError::new(ErrorKind::XmlDetail, message).by_xml_parser())
            }
            false => Ok(()),
        }
    }

    /// Addresses of a kind that the machine has no places for.
    fn check_addresses(&self) -> Result<()> {
        let is_ccw = |info: &DeviceInfo| matches!(info.address, Some(Address::Ccw(_)));
        if !self.machine().starts_with("s390-ccw") && self.devices.infos().any(|(_, info)| is_ccw(info)) {
            let machine = self.machine();
            return by_qemu(format!("CCW addresses are not supported by machine type '{machine}'"));
        }
        Ok(())
    }

    fn check_topology(&self, facts: &Facts<'_>) -> Result<()> {
        let max = self.vcpus.max;
        if self.vcpus.online() == 0 {
            return by_qemu("Domain requires at least 1 vCPU");
        }
        if self.vcpus.online() > max {
            let message = "maximum vCPU count must not be less than current vCPU count";
            return Err(ConfError::unsupported(message));
        }
        if let Some(limit) = facts.max_vcpus.filter(|limit| max > *limit) {
            return by_qemu(format!("Maximum CPUs greater than specified machine type limit {limit}"));
        }
        if let Some(topology) = self.cpu.as_ref().and_then(|cpu| cpu.rest.topology) {
            let counts = [topology.dies, topology.clusters, topology.cores, topology.threads];
            let total = counts.iter().try_fold(topology.sockets, |total, count| total.checked_mul(*count));
            let Some(total) = total else {
                return unsupported(format!("cpu topology results in more than {} cpus", u32::MAX));
            };
            if total != max {
                return by_qemu("CPU topology doesn't match maximum vcpu count");
            }
        }
        if self.arch().is_x86() && max > MAX_VCPUS_WITHOUT_EIM {
            if !self.is_q35() {
                let limit = MAX_VCPUS_WITHOUT_EIM;
                return by_qemu(format!(
                    "more than {limit} vCPUs are only supported on q35-based machine types"
                ));
            }
            let knows_all = |iommu: &Iommu| iommu.driver.eim == Some(OnOff::On);
            if !self.devices.iommus.iter().any(knows_all) {
                return by_qemu(format!(
                    "more than {MAX_VCPUS_WITHOUT_EIM} vCPUs require extended interrupt mode enabled on the iommu device"
                ));
            }
        }
        Ok(())
    }

    fn check_hugepages(&self) -> Result<()> {
        let Some(hugepages) = self.memory_backing.as_ref().and_then(|backing| backing.hugepages.as_ref())
        else {
            return Ok(());
        };
        let detail = |message: String| Err(ConfError::new(ErrorKind::XmlDetail, message));
        let cells =
            self.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_ref()).map_or(0, |numa| numa.cells.len());
        for (at, page) in hugepages.pages.iter().enumerate() {
            for other in hugepages.pages.iter().take(at) {
                let (size, other_size) = (page.size_kib, other.size_kib);
                match (&page.nodeset, &other.nodeset) {
                    (Some(one), Some(two)) if one.iter().any(|node| two.contains(node)) => {
                        return detail(format!(
                            "nodeset attribute of hugepages of sizes {size} and {other_size} intersect"
                        ));
                    }
                    (None, None) => {
                        return detail(format!("two master hugepages detected: {size} and {other_size}"));
                    }
                    _ => {}
                }
            }
            let beyond =
                page.nodeset.as_ref().and_then(|nodes| nodes.iter().find(|node| *node >= cells.max(1)));
            if let Some(node) = beyond {
                return detail(format!("hugepages: node {node} not found"));
            }
        }
        Ok(())
    }

    pub(super) fn check_firmware(&self) -> Result<()> {
        let detail = |message: &str| Err(ConfError::new(ErrorKind::XmlDetail, message));
        let os = &self.os;
        if os.firmware.is_none() {
            if !os.firmware_features.is_empty() {
                return detail(
                    "cannot use feature-based firmware autoselection when firmware autoselection is disabled",
                );
            }
            let path = os.loader.as_ref().and_then(|loader| loader.path.as_ref());
            if (os.loader.is_some() || os.nvram.is_some()) && path.is_none() {
                return detail("no loader path specified and firmware auto selection disabled");
            }
        } else {
            let feature = |name| os.firmware_features.iter().find(|it| it.name == name).map(|it| it.enabled);
            if feature(FirmwareFeatureName::EnrolledKeys) == Some(YesNo::Yes)
                && feature(FirmwareFeatureName::SecureBoot) == Some(YesNo::No)
            {
                return detail(
                    "firmware feature 'enrolled-keys' cannot be enabled when firmware feature 'secure-boot' is disabled",
                );
            }
            if os.nvram.is_some() && os.firmware == Some(FirmwareKind::Bios) {
                return detail("firmware type 'bios' does not support nvram");
            }
        }
        let stateless = os.loader.as_ref().and_then(|loader| loader.stateless);
        let kind = os.loader.as_ref().and_then(|loader| loader.kind);
        if stateless == Some(YesNo::No) {
            match os.firmware {
                None if kind != Some(LoaderType::Pflash) => {
                    return detail("Only pflash loader type permits NVRAM");
                }
                Some(FirmwareKind::Bios) => return detail("Only EFI firmware permits NVRAM"),
                _ => {}
            }
        }
        if stateless == Some(YesNo::Yes) && os.nvram.as_ref().is_some_and(|nvram| nvram.template.is_some()) {
            return detail("NVRAM template is not permitted when loader is stateless");
        }
        if stateless == Some(YesNo::Yes) && os.nvram.is_some() {
            return detail("NVRAM is not permitted when loader is stateless");
        }
        if os.shim.is_some() && os.kernel.is_none() {
            return unsupported("shim only allowed with kernel option");
        }
        Ok(())
    }

    fn check_cputune(&self) -> Result<()> {
        let Some(tune) = &self.cputune else { return Ok(()) };
        let periods = [
            ("period", tune.period),
            ("global_period", tune.global_period),
            ("emulator_period", tune.emulator_period),
            ("iothread_period", tune.iothread_period),
        ];
        for (name, value) in periods {
            if value.is_some_and(|value| value != 0 && !(1000..=1_000_000).contains(&value)) {
                let message = format!("Value of cputune '{name}' must be in range [1000, 1000000]");
                return unsupported(message);
            }
        }
        let quotas = [
            ("quota", tune.quota),
            ("global_quota", tune.global_quota),
            ("emulator_quota", tune.emulator_quota),
            ("iothread_quota", tune.iothread_quota),
        ];
        for (name, value) in quotas {
            if value.is_some_and(|value| value > 0 && !(1000..=MAX_QUOTA).contains(&value)) {
                let message = format!("Value of cputune '{name}' must be in range [1000, {MAX_QUOTA}]");
                return unsupported(message);
            }
        }
        Ok(())
    }

    fn check_boot_options(&self) -> Result<()> {
        let timeout = self.os.bootmenu.and_then(|menu| menu.timeout_ms);
        if timeout.is_some_and(|timeout| timeout > 65535) {
            return unsupported("invalid value for boot menu timeout, must be in range [0,65535]");
        }
        if self.os.bios.reboot_timeout_ms.is_some_and(|timeout| !(-1..=65535).contains(&timeout)) {
            return unsupported("invalid value for rebootTimeout, must be in range [-1,65535]");
        }
        Ok(())
    }
}

/// The kernel's limit of a CPU quota, in microseconds.
const MAX_QUOTA: i64 = 17_592_186_044_415;
