//! What a definition leaves out, filled in as libvirt fills it in.
//!
//! The order matters, because later steps look at what earlier ones added:
//!
//! ```text
//!   lists in order, MACs → machine, its built-in devices, CPU → each device's own defaults
//!     → memory, boot order, consoles, implied controllers, video → addresses
//! ```
//!
//! Everything that depends on the host or on chance is passed in: [`Facts`] and [`Generator`].

mod consoles;
mod controllers;
mod devices;
mod firmware;
mod lists;
mod machine;
mod plugged;
#[cfg(test)]
pub(super) mod tests;

pub use firmware::{Firmware, FlashMode, Image, Mapping, Target};
pub use lists::plug;
pub(super) use lists::{add_controller, insert_controller, is_usb2};

use super::{Domain, LoaderType, Memtune, NumaMode, Numatune, NumatuneMemory, Placement, SeclabelType, Vcpu};
use crate::conf::devices::{DeviceInfo, Devices};
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, ErrorKind, Result};
use crate::util::arch::Arch;
use crate::util::mac::Mac;
use crate::util::uuid::Uuid;

bitflags::bitflags! {
    /// Which of the devices that serve as defaults, or that not every emulator has, this one has.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Has: u64 {
        const QEMU_XHCI = 1;
        const NEC_XHCI = 1 << 1;
        const ICH9_EHCI = 1 << 2;
        const PIIX3_UHCI = 1 << 3;
        const RTL8139 = 1 << 4;
        const E1000 = 1 << 5;
        const VIRTIO_NET = 1 << 6;
        const LSI = 1 << 7;
        const VIRTIO_SCSI = 1 << 8;
        const CIRRUS = 1 << 9;
        const VGA = 1 << 10;
        const I8042 = 1 << 11;
        const PCIE_TO_PCI = 1 << 12;
        const PCIE_ROOT_PORT = 1 << 13;
        /// `-cpu host` can be told not to show what cannot migrate.
        const CPU_MIGRATABLE = 1 << 14;
        const QXL = 1 << 15;
        const VMVGA = 1 << 16;
        const BOCHS = 1 << 17;
        const VIRTIO_GPU = 1 << 18;
        const RAMFB = 1 << 19;
        const NBD_TLS_HOSTNAME = 1 << 20;
        const RBD_ENCRYPTION = 1 << 21;
        const RBD_ENCRYPTION_LAYERING = 1 << 22;
        const RBD_ENCRYPTION_LUKS_ANY = 1 << 23;
        const VIRTIO_BLK_SCSI = 1 << 24;
        const MEMFD_HUGETLB = 1 << 25;
        const PC_DIMM = 1 << 26;
        const NVDIMM = 1 << 27;
        const VIRTIO_PMEM = 1 << 28;
        const VIRTIO_MEM = 1 << 29;
        const VIRTIO_MEM_SLOTS = 1 << 30;
        const SGX_EPC = 1 << 31;
        const USB_HOST_RESETS = 1 << 32;
        const VHOST_SCSI = 1 << 33;
        const IVSHMEM_PLAIN = 1 << 34;
        const IVSHMEM_DOORBELL = 1 << 35;
        const ACPI_ERST = 1 << 36;
        /// An Intel IOMMU that takes more than 255 CPUs.
        const INTEL_IOMMU_EIM = 1 << 37;
        const MACHINE_I8042 = 1 << 38;
        const SDL = 1 << 39;
        const VNC = 1 << 40;
        const SPICE = 1 << 41;
        const EGL_HEADLESS = 1 << 42;
        const DBUS_DISPLAY = 1 << 43;
    }
}

/// Whether the guest may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// The definition is new: what it leaves open is chosen as well as today allows.
    New,
    /// The guest was defined before: what it sees stays as it was chosen then.
    Known,
}

/// What the host has for the domain at hand.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The guest's architecture where the definition names none: the host's.
    pub arch: Arch,
    /// The emulator of a definition that names none.
    pub emulator: &'a str,
    /// The canonical name of the definition's machine, or of the emulator's default one; `None` for a machine
    /// that the emulator does not know, which keeps its name.
    pub machine: Option<&'a str>,
    /// The model QEMU gives to a guest of this machine that names none, as `qemu64`.
    pub default_cpu: Option<&'a str>,
    pub has: Has,
    pub age: Age,
    /// Whether the emulator runs guests of the definition's virtualization type on this host.
    pub virt_type_works: bool,
    /// The most CPUs the machine takes.
    pub max_vcpus: Option<u32>,
    /// The host's firmware images, best first.
    pub firmwares: &'a [Firmware],
    /// Where variables of firmware are kept.
    pub nvram_dir: &'a str,
    /// Whether the machine has ACPI, where QEMU says.
    pub acpi: Option<bool>,
}

/// Source of values that no two guests share.
pub trait Generator {
    fn uuid(&mut self) -> Uuid;
    fn mac(&mut self) -> Mac;
}

/// More devices of one kind than any guest has.
const MAX_DEVICES: usize = 1024;

impl Domain {
    /// Gives it a uuid if it has none: the one that its firmware's tables show, or else a fresh one.
    pub fn identify(&mut self, fresh: impl FnOnce() -> Uuid) {
        if !self.has_uuid() {
            self.uuid = self.smbios_uuid().unwrap_or_else(fresh);
        }
    }

    /// Completes an inactive definition that was just read.
    pub fn defaults(&mut self, facts: &Facts<'_>, generator: &mut dyn Generator) -> Result<()> {
        check_counts(&self.devices)?;
        self.identify(|| generator.uuid());
        if self.smbios_uuid().is_some_and(|shown| shown != self.uuid) {
            let message = "UUID mismatch between <uuid> and <sysinfo>";
            return Err(ConfError::new(ErrorKind::XmlDetail, message));
        }
        if let Some(genid) = &mut self.genid {
            genid.0.get_or_insert_with(|| generator.uuid());
        }
        self.forget_what_says_nothing();
        self.complete_seclabels()?;
        self.complete_placement()?;
        lists::arrange(&mut self.devices, generator)?;
        self.devices.emulator.get_or_insert_with(|| facts.emulator.into());
        self.os.os_type.arch.get_or_insert(facts.arch);
        self.check_numa_cpus()?;
        lists::number_controllers(&mut self.devices);
        self.complete_loader();
        machine::name_machine(self, facts);
        firmware::complete(self, facts)?;
        machine::complete(self, facts)?;
        devices::complete_all(self, facts)?;
        self.complete_vcpus()?;
        self.complete_memory(facts.age)?;
        controllers::refuse_duplicates(&self.devices)?;
        self.complete_hugepages();
        self.complete_boot_order()?;
        super::validate::timers(&self.clock)?;
        consoles::pair_with_serial(&mut self.devices)?;
        controllers::add_implied(&mut self.devices);
        devices::complete_video(self, facts);
        devices::complete_late_arrivals(self, facts)?;
        machine::check_cpu(self)?;
        super::addresses::assign(self, facts)?;
        consoles::mirror_serial(&mut self.devices);
        lists::shrink(&mut self.devices);
        if self.name.contains('/') {
            return Err(ConfError::xml(format!("name {} cannot contain '/'", self.name)));
        }
        Ok(())
    }

    pub(super) fn arch(&self) -> Arch {
        self.os.os_type.arch.unwrap_or(Arch::X86_64)
    }

    pub fn machine(&self) -> &str {
        self.os.os_type.machine.as_deref().unwrap_or_default()
    }

    /// Leaves out what every guest of its machine is given: older libvirt gives it the same and would not
    /// understand the words.
    pub fn remove_given(&mut self) {
        machine::remove_given(self);
    }

    pub fn is_q35(&self) -> bool {
        self.arch().is_x86() && (self.machine() == "q35" || self.machine().starts_with("pc-q35-"))
    }

    /// The `pc` machines.
    pub fn is_i440fx(&self) -> bool {
        let machine = self.machine();
        let versioned = ["pc-0.", "pc-1.", "pc-i440fx-", "rhel"];
        self.arch().is_x86()
            && (machine == "pc" || versioned.iter().any(|prefix| machine.starts_with(prefix)))
    }

    /// A uuid given in `<sysinfo>` alone is the guest's.
    fn smbios_uuid(&self) -> Option<Uuid> {
        self.sysinfo.iter().find_map(|sysinfo| match sysinfo {
            super::Sysinfo::Smbios(tables) => tables.system_uuid()?.parse().ok(),
            super::Sysinfo::FwCfg(_) => None,
        })
    }

    /// A lone label without a model is one of the host's security driver, of which there is none.
    fn complete_seclabels(&mut self) -> Result<()> {
        for (at, label) in self.seclabels.iter().enumerate() {
            if self.seclabels.iter().skip(at + 1).any(|other| other.model == label.model) {
                let model = label.model.as_deref().unwrap_or("(null)");
                let message = format!("seclabel for model {model} is already provided");
                return Err(ConfError::new(ErrorKind::XmlDetail, message));
            }
        }
        let several = self.seclabels.len() > 1;
        for label in self.seclabels.iter_mut().filter(|label| label.model.is_none()) {
            if several {
                return Err(ConfError::xml("missing security model when using multiple labels"));
            }
            if label.kind == SeclabelType::Static || label.baselabel.is_some() {
                return Err(ConfError::xml("missing security model in domain seclabel"));
            }
            label.model = Some("none".into());
            (label.kind, label.relabel) = (SeclabelType::None, false);
        }
        Ok(())
    }

    fn check_numa_cpus(&self) -> Result<()> {
        let sets = || self.cells().iter().filter_map(|cell| cell.cpus.as_ref());
        let count: usize = sets().map(crate::util::bitmap::Bitmap::count).sum();
        if count > self.vcpus.max as usize {
            return Err(ConfError::internal("Number of CPUs in <numa> exceeds the <vcpu> count"));
        }
        let last = sets().filter_map(crate::util::bitmap::Bitmap::last).max().unwrap_or(0);
        if last >= self.vcpus.max as usize {
            return Err(ConfError::internal("CPU IDs in <numa> exceed the <vcpu> count"));
        }
        Ok(())
    }

    /// Who chooses the host's nodes for the guest.
    fn complete_placement(&mut self) -> Result<()> {
        let is_static = self.vcpus.placement == Placement::Static;
        if !is_static && self.numatune.as_ref().is_none_or(|tune| tune.memory.is_none()) {
            let memory =
                NumatuneMemory { mode: NumaMode::Strict, nodeset: None, placement: Some(Placement::Auto) };
            self.numatune.get_or_insert_default().memory = Some(memory);
        }
        if let Some(memory) = self.numatune.as_mut().and_then(|tune| tune.memory.as_mut()) {
            let usual =
                if memory.nodeset.is_some() || is_static { Placement::Static } else { Placement::Auto };
            match memory.placement.unwrap_or(usual) {
                Placement::Auto => (memory.placement, memory.nodeset) = (Some(Placement::Auto), None),
                Placement::Static if memory.nodeset.is_none() => {
                    return Err(ConfError::unsupported(
                        "nodeset for NUMA memory tuning must be set if 'placement' is 'static'",
                    ));
                }
                // The nodes say it.
                Placement::Static => memory.placement = None,
            }
        }
        let is_auto = |tune: &Numatune| {
            tune.memory.as_ref().is_some_and(|memory| memory.placement == Some(Placement::Auto))
        };
        if !self.numatune.as_deref().is_some_and(is_auto) {
            return Ok(());
        }
        if self.numatune.as_ref().is_some_and(|tune| !tune.nodes.is_empty()) {
            return Err(ConfError::unsupported(
                "Per-node binding is not compatible with automatic NUMA placement.",
            ));
        }
        let is_pinned = self.cputune.as_ref().is_some_and(|tune| {
            !tune.vcpupin.is_empty() || tune.emulatorpin.is_some() || !tune.iothreadpin.is_empty()
        });
        if self.vcpus.cpuset.is_none() && !is_pinned {
            self.vcpus.placement = Placement::Auto;
        }
        Ok(())
    }

    /// The first node is the whole guest where there are no others.
    fn complete_hugepages(&mut self) {
        if !self.cells().is_empty() {
            return;
        }
        let pages = self.memory_backing.as_mut().and_then(|backing| backing.hugepages.as_mut());
        for page in pages.into_iter().flat_map(|pages| &mut pages.pages) {
            page.nodeset = page.nodeset.take().filter(|nodes| nodes.last().is_some_and(|last| last > 0));
        }
    }

    /// CPUs that the definition names are fixed when present at start and pluggable otherwise.
    fn complete_vcpus(&mut self) -> Result<()> {
        if self.vcpus.individual.is_empty() {
            return Ok(());
        }
        let named = std::mem::take(&mut self.vcpus.individual);
        for id in 0..self.vcpus.max {
            let absent = Vcpu { id, enabled: YesNo::No, hotpluggable: None, order: None };
            let mut vcpu = named.iter().rev().find(|vcpu| vcpu.id == id).cloned().unwrap_or(absent);
            let online = vcpu.enabled == YesNo::Yes;
            match vcpu.hotpluggable {
                None => vcpu.hotpluggable = Some(if online { YesNo::No } else { YesNo::Yes }),
                Some(YesNo::No) if !online => {
                    let message = format!("vcpu '{id}' is both offline and not hotpluggable");
                    return Err(ConfError::unsupported(message));
                }
                Some(_) => {}
            }
            self.vcpus.individual.push(vcpu);
        }
        Ok(())
    }

    fn complete_memory(&mut self, age: Age) -> Result<()> {
        let cells = self.cells().iter().map(|cell| cell.memory_kib).fold(0, u64::saturating_add);
        let plugged = self.plugged_memory_kib();
        let memory = &mut self.memory;
        // What a guest has that was defined before is not counted anew.
        if cells > 0 && (age == Age::New || memory.total_kib == 0) {
            memory.total_kib = cells.saturating_add(plugged);
        } else if plugged > memory.total_kib {
            return Err(ConfError::xml("Total size of memory devices exceeds the total memory size"));
        }
        if memory.total_kib == plugged {
            let message = "Memory size must be specified via <memory> or in the <numa> configuration";
            return Err(ConfError::xml(message));
        }
        if memory.current_kib == 0 || memory.current_kib > memory.total_kib {
            memory.current_kib = memory.total_kib;
        }
        match memory.max {
            Some(max) if max.kib == 0 && max.slots.is_some_and(|slots| slots > 0) => Err(ConfError::xml(
                "maximum memory size must be specified when specifying number of memory slots",
            )),
            Some(max) if max.kib != 0 && max.kib < memory.total_kib => Err(ConfError::xml(
                "maximum memory size must be equal or greater than the actual memory size",
            )),
            _ => Ok(()),
        }
    }

    /// A boot menu that is not shown has no time limit, and memory without limits no `<memtune>`.
    fn forget_what_says_nothing(&mut self) {
        if let Some(menu) = &mut self.os.bootmenu
            && menu.enable != Some(YesNo::Yes)
        {
            menu.timeout_ms = None;
        }
        let limits = |tune: &Memtune| {
            let limits = [tune.hard_limit, tune.soft_limit, tune.swap_hard_limit];
            tune.min_guarantee.is_some() || limits.iter().flatten().any(|limit| limit.0.is_some())
        };
        self.memtune = self.memtune.take().filter(|tune| limits(tune));
    }

    fn complete_loader(&mut self) {
        if let Some(loader) = &mut self.os.loader
            && loader.path.is_some()
            && self.os.firmware.is_none()
        {
            loader.kind.get_or_insert(LoaderType::Rom);
        }
    }

    /// A guest boots from its first disk unless it says otherwise.
    fn complete_boot_order(&mut self) -> Result<()> {
        let mut orders: Vec<u32> = Vec::new();
        visit_bootable(&self.devices, |info| orders.extend(info.boot.as_ref().map(|boot| boot.order)));
        orders.sort_unstable();
        if let Some(pair) = orders.windows(2).find(|pair| pair.first() == pair.last()) {
            let order = pair.first().copied().unwrap_or_default();
            let message = format!("boot order '{order}' used for more than one device");
            return Err(ConfError::unsupported(message));
        }
        if !orders.is_empty() && !self.os.boot.is_empty() {
            let message = "per-device boot elements cannot be used together with os/boot elements";
            return Err(ConfError::unsupported(message));
        }
        if orders.is_empty() && self.os.boot.is_empty() {
            self.os.boot.push(super::BootEntry { dev: super::BootDevice::Hd });
        }
        Ok(())
    }
}

/// The devices a guest can boot from.
fn visit_bootable(devices: &Devices, mut visit: impl FnMut(&DeviceInfo)) {
    devices.disks.iter().for_each(|disk| visit(&disk.info));
    devices.interfaces.iter().for_each(|interface| visit(&interface.info));
    devices.filesystems.iter().for_each(|filesystem| visit(&filesystem.info));
    devices.hostdevs.iter().for_each(|hostdev| visit(&hostdev.info));
    devices.redirdevs.iter().for_each(|redirdev| visit(&redirdev.info));
}

fn check_counts(devices: &Devices) -> Result<()> {
    let counts = [
        devices.disks.len(),
        devices.controllers.len(),
        devices.interfaces.len(),
        devices.serials.len(),
        devices.parallels.len(),
        devices.consoles.len(),
        devices.channels.len(),
        devices.inputs.len(),
        devices.graphics.len(),
        devices.sounds.len(),
        devices.videos.len(),
        devices.hubs.len(),
        devices.watchdogs.len(),
        devices.rngs.len(),
        devices.panics.len(),
        devices.filesystems.len(),
        devices.redirdevs.len(),
        devices.smartcards.len(),
        devices.tpms.len(),
        devices.vsocks.len(),
        devices.iommus.len(),
        devices.hostdevs.len(),
        devices.shmems.len(),
        devices.memories.len(),
        devices.cryptos.len(),
        devices.pstores.len(),
    ];
    if counts.iter().any(|count| *count > MAX_DEVICES) {
        let message = format!("more than {MAX_DEVICES} devices of one kind");
        return Err(ConfError::new(ErrorKind::Unsupported, message));
    }
    Ok(())
}
