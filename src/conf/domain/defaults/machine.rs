//! What the machine brings along: buses, input devices, a watchdog, a balloon, a CPU.

use super::lists::{add_controller, find_controller};
use super::{Age, Facts, Has};
use crate::conf::devices::{
    Audio, AudioKind, BalloonModel, Controller, ControllerKind, ControllerType, DeviceInfo, Devices,
    GraphicsKind, Input, InputBus, InputKind, Iommu, IommuDriver, IommuModel, MemBalloon, PciModel,
    PciOptions, UsbModel, UsbOptions, Watchdog, WatchdogAction, WatchdogModel,
};
use crate::conf::domain::validate::MAX_VCPUS_WITHOUT_EIM;
use crate::conf::domain::{CpuCheck, CpuMatch, CpuMode, Domain, Fallback, IoapicDriver, VirtType};
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, Result};

/// The machine's canonical name.
pub(super) fn name_machine(domain: &mut Domain, facts: &Facts<'_>) {
    if let Some(machine) = facts.machine {
        domain.os.os_type.machine = Some(machine.into());
    }
}

pub(super) fn complete(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    add_devices(domain, facts)?;
    complete_iommu(domain, facts);
    default_cpu(domain, facts);
    super::super::validate::vcpus(&domain.vcpus)?;
    complete_cpu(domain, facts);
    check_tseg(domain)?;
    fill_numa_cpus(domain);
    Ok(())
}

/// More CPUs than the usual interrupts can name need an IOMMU that knows more.
fn complete_iommu(domain: &mut Domain, facts: &Facts<'_>) {
    let is_large = domain.vcpus.max > MAX_VCPUS_WITHOUT_EIM && domain.is_q35();
    let is_new = is_large && facts.age == Age::New && facts.has.contains(Has::INTEL_IOMMU_EIM);
    let iommus = &mut domain.devices.iommus;
    if is_new && iommus.is_empty() {
        let driver = IommuDriver::default();
        iommus.push(Iommu { model: IommuModel::Intel, driver, info: DeviceInfo::default() });
    }
    for iommu in iommus.iter_mut().filter(|iommu| is_new && iommu.model == IommuModel::Intel) {
        iommu.driver.intremap.get_or_insert(OnOff::On);
        iommu.driver.eim.get_or_insert(OnOff::On);
    }
    if iommus.first().is_some_and(|iommu| is_large || iommu.driver.intremap == Some(OnOff::On)) {
        domain.features.ioapic.get_or_insert(IoapicDriver::Qemu);
    }
}

fn add_devices(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    let (q35, i440fx) = (domain.is_q35(), domain.is_i440fx());
    let x86 = domain.arch().is_x86();
    let isapc = x86 && domain.machine() == "isapc";
    let ps2_off = domain.features.ps2.is_some_and(|ps2| ps2.state == OnOff::Off);
    let virt = domain.arch() == crate::util::arch::Arch::Aarch64 && is_virt(domain.machine());
    let devices = &mut domain.devices;
    if facts.has.contains(Has::I8042) && (q35 || i440fx || isapc) && !ps2_off {
        add_input(devices, InputKind::Mouse);
        add_input(devices, InputKind::Keyboard);
    }
    if x86 && !isapc && find_controller(devices, ControllerType::Usb, 0).is_none() {
        add_usb(devices, facts.has, q35);
    }
    if q35 {
        add_controller(devices, ControllerKind::Sata, 0);
    }
    if i440fx {
        add_root(devices, PciModel::PciRoot)?;
    }
    if q35 || virt {
        add_root(devices, PciModel::PcieRoot)?;
    }
    if x86 && devices.memballoons.is_empty() {
        devices.memballoons.push(MemBalloon::new(BalloonModel::Virtio));
    }
    if q35 {
        add_itco(devices);
    }
    add_audio(devices);
    Ok(())
}

/// Takes away what [`add_devices`] gives to every guest of that machine, as far as it says nothing: libvirt before
/// it knew of them is to understand what is left.
pub(super) fn remove_given(domain: &mut Domain) {
    let (q35, i440fx) = (domain.is_q35(), domain.is_i440fx());
    let devices = &mut domain.devices;
    let plain = |controller: &Controller| {
        let chosen = controller.info.alias.as_deref().is_some_and(|alias| alias.starts_with("ua-"));
        controller.index == Some(0)
            && !chosen
            && match &controller.kind {
                ControllerKind::Usb(options) => {
                    i440fx && matches!(options.model, None | Some(UsbModel::Piix3Uhci))
                }
                ControllerKind::Pci(options) => {
                    options.model == Some(PciModel::PciRoot) && options.pcihole64_kib.is_none()
                }
                _ => false,
            }
    };
    for bus in [ControllerType::Usb, ControllerType::Pci] {
        let of_bus = |controller: &Controller| controller.kind.bus() == bus;
        if devices.controllers.iter().filter(|controller| of_bus(controller)).count() == 1 {
            devices.controllers.retain(|controller| !of_bus(controller) || !plain(controller));
        }
    }
    if let [audio] = &devices.audios[..] {
        let audio = audio.clone();
        devices.audios.clear();
        add_audio(devices);
        match devices.audios.first() == Some(&audio) {
            true => devices.audios.clear(),
            false => devices.audios = vec![audio],
        }
    }
    if q35 {
        let given = |it: &Watchdog| it.model == WatchdogModel::Itco && it.action == WatchdogAction::Reset;
        if let Some(at) = devices.watchdogs.iter().position(given) {
            devices.watchdogs.remove(at);
        }
    }
}

fn is_virt(machine: &str) -> bool {
    machine == "virt" || machine.starts_with("virt-")
}

fn add_input(devices: &mut Devices, kind: InputKind) {
    let there = |input: &Input| input.kind == kind && input.bus == Some(InputBus::Ps2);
    if !devices.inputs.iter().any(there) {
        devices.inputs.push(Input::new(kind, InputBus::Ps2));
    }
}

fn add_usb(devices: &mut Devices, has: Has, q35: bool) {
    let usb = |model| ControllerKind::Usb(UsbOptions { model, ports: None });
    if !q35 {
        return add_controller(devices, usb(None), 0);
    }
    if has.contains(Has::QEMU_XHCI) {
        add_controller(devices, usb(Some(UsbModel::QemuXhci)), 0);
    } else if has.contains(Has::NEC_XHCI) {
        add_controller(devices, usb(Some(UsbModel::NecXhci)), 0);
    } else if has.contains(Has::ICH9_EHCI) {
        add_controller(devices, usb(Some(UsbModel::Ich9Ehci1)), 0);
        let companions = [(UsbModel::Ich9Uhci1, 0), (UsbModel::Ich9Uhci2, 2), (UsbModel::Ich9Uhci3, 4)];
        for (model, port) in companions {
            let mut companion = crate::conf::devices::Controller::usb(model, 0);
            companion.info.master_startport = Some(port);
            super::lists::insert_controller(&mut devices.controllers, companion);
        }
    }
}

/// The machine's root bus, number 0; a definition may name it, but not as another model.
fn add_root(devices: &mut Devices, model: PciModel) -> Result<()> {
    let Some(root) = find_controller(devices, ControllerType::Pci, 0) else {
        add_controller(
            devices,
            ControllerKind::Pci(PciOptions { model: Some(model), ..PciOptions::default() }),
            0,
        );
        return Ok(());
    };
    let found = root.pci_options().and_then(|options| options.model);
    if found == Some(model) {
        return Ok(());
    }
    let found = found.map_or("", PciModel::as_str);
    Err(ConfError::xml(format!(
        "The PCI controller with index='0' must be model='{model}' for this machine type, but model='{found}' was \
         found instead"
    ))
    .by_qemu_driver())
}

/// The watchdog that every q35 chipset has.
fn add_itco(devices: &mut Devices) {
    if devices.watchdogs.iter().any(|watchdog| watchdog.model == WatchdogModel::Itco) {
        return;
    }
    let action = devices.watchdogs.first().map_or(WatchdogAction::Reset, |watchdog| watchdog.action);
    devices.watchdogs.push(Watchdog { model: WatchdogModel::Itco, action, info: DeviceInfo::default() });
}

/// Where sound goes: nowhere, or to the screen's client.
fn add_audio(devices: &mut Devices) {
    if !devices.audios.is_empty() {
        return;
    }
    let mut backend = devices.graphics.is_empty().then_some(AudioKind::None);
    for graphics in &devices.graphics {
        match graphics.kind() {
            GraphicsKind::Vnc => backend = Some(AudioKind::None),
            GraphicsKind::Spice => backend = Some(AudioKind::Spice),
            // The desktop's own sound; nobody asked for it by name.
            GraphicsKind::Sdl => backend = None,
            GraphicsKind::Rdp | GraphicsKind::Desktop | GraphicsKind::EglHeadless | GraphicsKind::Dbus => {}
        }
    }
    devices.audios.extend(backend.map(|kind| Audio::new(1, kind)));
}

/// A guest without a model gets the machine's default, unchecked: QEMU drops what the host lacks.
fn default_cpu(domain: &mut Domain, facts: &Facts<'_>) {
    let named = domain.cpu.as_ref().is_some_and(|cpu| cpu.mode != CpuMode::Custom || cpu.model.is_some());
    let Some(model) = facts.default_cpu.filter(|_| !named) else { return };
    if !domain.arch().is_x86() && domain.virt_type != VirtType::Qemu {
        return;
    }
    let cpu = domain.cpu.get_or_insert_default();
    if model == "host" {
        cpu.mode = CpuMode::HostPassthrough;
        return;
    }
    cpu.mode = CpuMode::Custom;
    cpu.matching = CpuMatch::Exact;
    cpu.check = Some(CpuCheck::None);
    cpu.fallback = Fallback::Forbid;
    cpu.model = Some(model.into());
}

fn complete_cpu(domain: &mut Domain, facts: &Facts<'_>) {
    let (virt_type, x86) = (domain.virt_type, domain.arch().is_x86());
    let Some(cpu) = &mut domain.cpu else { return };
    if cpu.mode == CpuMode::HostPassthrough && cpu.migratable.is_none() {
        if facts.has.contains(Has::CPU_MIGRATABLE) {
            cpu.migratable = Some(OnOff::On);
        } else if x86 {
            cpu.migratable = Some(OnOff::Off);
        }
    }
    if cpu.mode == CpuMode::Custom && cpu.model.is_none() {
        return;
    }
    cpu.check.get_or_insert(match cpu.mode {
        CpuMode::HostPassthrough | CpuMode::Maximum => CpuCheck::None,
        CpuMode::HostModel => CpuCheck::Partial,
        CpuMode::Custom if virt_type == VirtType::Qemu => CpuCheck::None,
        CpuMode::Custom => CpuCheck::Partial,
    });
}

pub(super) fn check_cpu(domain: &Domain) -> Result<()> {
    match &domain.cpu {
        Some(cpu) if cpu.mode == CpuMode::Custom && cpu.model.is_none() && cpu.check.is_some() => {
            Err(ConfError::unsupported("check attribute specified for CPU with no model"))
        }
        _ => Ok(()),
    }
}

fn check_tseg(domain: &Domain) -> Result<()> {
    let Some(size) = domain.features.smm.and_then(|smm| smm.tseg) else { return Ok(()) };
    if !domain.is_q35() {
        return Err(
            ConfError::unsupported("SMM TSEG is only supported with q35 machine type").by_qemu_driver()
        );
    }
    if !size.0.is_multiple_of(1 << 20) {
        return Err(ConfError::unsupported("SMM TSEG size must be divisible by 1 MiB").by_qemu_driver());
    }
    Ok(())
}

/// CPUs that no cell claims belong to the first.
fn fill_numa_cpus(domain: &mut Domain) {
    let max = domain.vcpus.max as usize;
    let Some(numa) = domain.cpu.as_mut().and_then(|cpu| cpu.rest.numa.as_mut()) else { return };
    let claimed: Vec<usize> =
        numa.cells.iter().flat_map(|cell| cell.cpus.iter().flat_map(|cpus| cpus.iter())).collect();
    if claimed.len() >= max {
        return;
    }
    if let Some(first) = numa.cells.first_mut() {
        let cpus = first.cpus.get_or_insert_default();
        let mut taken = vec![false; max];
        claimed.iter().for_each(|cpu| {
            if let Some(taken) = taken.get_mut(*cpu) {
                *taken = true;
            }
        });
        taken.iter().enumerate().filter(|(_, taken)| !**taken).for_each(|(cpu, _)| cpus.insert(cpu));
    }
}
