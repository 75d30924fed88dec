//! PCI addresses, and the bridges and ports that it takes to have enough of them.

use super::connect::{Needs, Visited, visit};
use super::{Connect, Growth, PciSet, PcieToPci, chipset};
use crate::conf::devices::{
    Address, Controller, ControllerKind, ControllerType, DeviceInfo, Devices, InterfaceKind, PciAddress,
    PciModel, PciModelName, PciOptions, VideoKind,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::{Facts, Has, insert_controller};
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, Result};

/// A bus number is one byte.
const MAX_BUSES: u32 = 256;

/// The first pass counts the buses that are missing, the second hands out addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Sizing,
    Final,
}

/// Whether a PCI address has yet to be chosen.
pub(super) fn is_wanted(info: &DeviceInfo) -> bool {
    match &info.address {
        None => true,
        Some(Address::Pci(address)) => address.is_empty(),
        Some(_) => false,
    }
}

/// The PCI address, where it was chosen.
pub(super) fn present(info: &DeviceInfo) -> Option<PciAddress> {
    match &info.address {
        Some(Address::Pci(address)) if !address.is_empty() => Some(*address),
        _ => None,
    }
}

/// Chooses an address for a device that wants one.
pub(super) fn place(set: &mut PciSet, info: &mut DeviceInfo, needs: Connect, pass: Pass) -> Result<()> {
    if !is_wanted(info) {
        return Ok(());
    }
    let address = set.reserve_next(needs, None)?;
    if pass == Pass::Final {
        info.address = Some(Address::Pci(address));
    }
    Ok(())
}

pub(super) fn assign(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    let express = if root(&domain.devices) == Some(PciModel::PcieRoot) {
        Connect::CHOSEN_PCIE
    } else {
        Connect::CHOSEN_PCI
    };
    let needs = Needs { express };
    let mut buses = count_buses(&domain.devices)?;
    if buses > 0 {
        buses = add_missing_buses(domain, facts, needs, buses)?;
    }
    let mut set = fill(domain, facts, needs, buses, Growth::Fixed)?;
    if buses > 0 {
        chipset::settle(domain, &mut set, Pass::Final, express)?;
    }
    place_all(&mut domain.devices, &mut set, needs, Pass::Final)?;
    mark_multifunction(&mut domain.devices, needs)?;
    complete_controllers(&mut domain.devices, facts)
}

fn pci_controllers(devices: &Devices) -> impl Iterator<Item = (&Controller, &PciOptions)> {
    devices.controllers.iter().filter_map(|controller| Some((controller, controller.pci_options()?)))
}

/// The model of the root bus.
fn root(devices: &Devices) -> Option<PciModel> {
    pci_controllers(devices)
        .find(|(controller, _)| controller.index() == 0)
        .and_then(|(_, options)| options.model)
}

fn count_buses(devices: &Devices) -> Result<u32> {
    let highest = pci_controllers(devices).map(|(controller, _)| controller.index()).max();
    match highest {
        Some(index) if index >= MAX_BUSES => Err(ConfError::internal(format!(
            "Inappropriate new pci controller index {index} exceeds addrs array length"
        ))
        .by_qemu_driver()),
        Some(index) => Ok(index + 1),
        None => Ok(0),
    }
}

/// A set of `buses` buses in which everything that has an address is plugged in.
fn fill(domain: &mut Domain, facts: &Facts<'_>, needs: Needs, buses: u32, growth: Growth) -> Result<PciSet> {
    let devices = &mut domain.devices;
    let missing =
        if needs.express == Connect::CHOSEN_PCIE { PciModel::PcieRootPort } else { PciModel::PciBridge };
    let mut models = vec![missing; buses as usize];
    if let Some(first) = models.first_mut() {
        *first = PciModel::PciRoot;
    }
    for (controller, options) in pci_controllers(devices) {
        if let (Some(model), Some(bus)) = (options.model, models.get_mut(controller.index() as usize)) {
            *bus = model;
        }
    }
    let bridge = if facts.has.contains(Has::PCIE_TO_PCI) { PcieToPci::Available } else { PcieToPci::Missing };
    let mut set = PciSet::new(&models, growth, bridge);
    visit(devices, needs, |Visited { needs, info, controller }| {
        let Some(address) = present(info) else { return Ok(()) };
        if let Some((kind, index)) = controller
            && chipset::is_piix3(kind, index, &address)
        {
            if models.first() != Some(&PciModel::PciRoot) {
                let message = "Bus 0 must be PCI for integrated PIIX3 USB or IDE controllers";
                return Err(ConfError::internal(message).by_qemu_driver());
            }
            return Ok(());
        }
        // A device that needs none was given an address all the same; it takes the place.
        let needs = if needs.is_empty() { Connect::PCI } else { needs };
        set.reserve(address, needs)
    })?;
    Ok(set)
}

/// Plugs everything in once to see how many buses that takes, and adds controllers for those.
fn add_missing_buses(domain: &mut Domain, facts: &Facts<'_>, needs: Needs, buses: u32) -> Result<u32> {
    let mut set = fill(domain, facts, needs, buses, Growth::Allowed)?;
    chipset::settle(domain, &mut set, Pass::Sizing, needs.express)?;
    // One slot stays free for a bridge to come.
    if root(&domain.devices) == Some(PciModel::PciRoot) && !set.is_full() {
        set.reserve_next(Connect::CHOSEN_PCI, None)?;
    }
    place_all(&mut domain.devices, &mut set, needs, Pass::Sizing)?;
    // Who leaves the buses to us gets an empty port for a device to be plugged in later.
    let ours = buses == 1 && set.models().len() > 1;
    if ours && needs.express == Connect::CHOSEN_PCIE {
        set.reserve_next(Connect::CHOSEN_PCIE, None)?;
    }
    for (index, model) in (0..).zip(set.models()).skip(1) {
        let there = pci_controllers(&domain.devices).any(|(controller, _)| controller.index() == index);
        if !there {
            insert_controller(&mut domain.devices.controllers, Controller::pci(model, index));
            set.reserve_next(Connect::of_controller(model), None)?;
        }
    }
    Ok(set.models().len() as u32)
}

/// Plugs in what has no address, in the order that old QEMU did it by itself.
fn place_all(devices: &mut Devices, set: &mut PciSet, needs: Needs, pass: Pass) -> Result<()> {
    for controller in &mut devices.controllers {
        let ControllerKind::Pci(PciOptions { model: Some(model), .. }) = controller.kind else { continue };
        if !matches!(model, PciModel::PciRoot | PciModel::PcieRoot) {
            place(set, &mut controller.info, Connect::of_controller(model), pass)?;
        }
    }
    for filesystem in &mut devices.filesystems {
        let wanted = needs.filesystem(filesystem);
        if !wanted.is_empty() {
            place(set, &mut filesystem.info, wanted, pass)?;
        }
    }
    for card in &mut devices.interfaces {
        let wanted = needs.interface(card.kind, card.model.name.as_ref());
        if !wanted.is_empty() {
            place(set, &mut card.info, wanted, pass)?;
        }
    }
    for sound in &mut devices.sounds {
        let wanted = needs.sound(sound.model);
        if !wanted.is_empty() {
            place(set, &mut sound.info, wanted, pass)?;
        }
    }
    place_controllers(devices, set, needs, pass)?;
    place_disks(devices, set, needs, pass)?;
    place_rest(devices, set, needs, pass)
}

/// SCSI, USB, SATA, virtio-serial and further IDE controllers.
fn place_controllers(devices: &mut Devices, set: &mut PciSet, needs: Needs, pass: Pass) -> Result<()> {
    for at in 0..devices.controllers.len() {
        let Some(controller) = devices.controllers.get(at) else { break };
        let wanted = needs.controller(&controller.kind);
        let first_ide = controller.kind.bus() == ControllerType::Ide && controller.index() == 0;
        let skipped = matches!(controller.kind, ControllerKind::Pci(_)) || first_ide || wanted.is_empty();
        if skipped || !is_wanted(&controller.info) {
            continue;
        }
        let address = match chipset::usb2_place(devices, at) {
            None => set.reserve_next(wanted, None)?,
            Some((_, Some(beside))) => {
                set.reserve(beside, wanted)?;
                beside
            }
            Some((shape, None)) => {
                let found = set.reserve_next(wanted, Some(shape.function))?;
                PciAddress { multifunction: shape.multifunction, ..found }
            }
        };
        // Companions find their group in the sizing pass only if it was given a place.
        let grouped = chipset::usb2_place(devices, at).is_some_and(|(_, beside)| beside.is_some());
        if let Some(controller) = devices.controllers.get_mut(at)
            && (pass == Pass::Final || grouped)
        {
            controller.info.address = Some(Address::Pci(address));
        }
    }
    Ok(())
}

fn place_disks(devices: &mut Devices, set: &mut PciSet, needs: Needs, pass: Pass) -> Result<()> {
    for disk in &mut devices.disks {
        let wanted = needs.disk(disk.target.bus, disk.model);
        if wanted.is_empty() || present(&disk.info).is_some() {
            continue;
        }
        match &disk.info.address {
            Some(Address::Ccw(_)) => {}
            Some(address) if !matches!(address, Address::Pci(_)) => {
                let kind = address.tag();
                let message = format!("virtio disk cannot have an address of type '{kind}'");
                return Err(ConfError::unsupported(message).by_qemu_driver());
            }
            _ => place(set, &mut disk.info, wanted, pass)?,
        }
    }
    Ok(())
}

fn place_rest(devices: &mut Devices, set: &mut PciSet, needs: Needs, pass: Pass) -> Result<()> {
    let mut plug = |wanted: Connect, info: &mut DeviceInfo| {
        if wanted.is_empty() { Ok(()) } else { place(set, info, wanted, pass) }
    };
    // Cards of the host come with its other devices.
    for card in devices.interfaces.iter_mut().filter(|card| card.kind == InterfaceKind::Hostdev) {
        plug(needs.card(card), &mut card.info)?;
    }
    for hostdev in &mut devices.hostdevs {
        plug(needs.hostdev(&hostdev.source), &mut hostdev.info)?;
    }
    for balloon in &mut devices.memballoons {
        plug(needs.balloon(balloon.model), &mut balloon.info)?;
    }
    for rng in &mut devices.rngs {
        plug(needs.rng(rng.model), &mut rng.info)?;
    }
    for watchdog in &mut devices.watchdogs {
        plug(Needs::watchdog(watchdog.model), &mut watchdog.info)?;
    }
    for video in &mut devices.videos {
        if !matches!(video.model.kind, VideoKind::None | VideoKind::Ramfb) {
            plug(needs.video(video.model.kind), &mut video.info)?;
        }
    }
    for shmem in &mut devices.shmems {
        plug(Connect::CHOSEN_PCI, &mut shmem.info)?;
    }
    for input in &mut devices.inputs {
        plug(needs.input(input.bus, input.model), &mut input.info)?;
    }
    for serial in &mut devices.serials {
        plug(Needs::serial(serial.target.kind), &mut serial.info)?;
    }
    for iommu in &mut devices.iommus {
        plug(needs.iommu(iommu.model), &mut iommu.info)?;
    }
    for vsock in &mut devices.vsocks {
        plug(needs.vsock(vsock.model), &mut vsock.info)?;
    }
    for memory in &mut devices.memories {
        plug(needs.memory(memory.model), &mut memory.info)?;
    }
    for crypto in &mut devices.cryptos {
        plug(Connect::CHOSEN_PCI, &mut crypto.info)?;
    }
    for panic in &mut devices.panics {
        plug(Needs::panic(panic.model), &mut panic.info)?;
    }
    for pstore in &mut devices.pstores {
        plug(Connect::CHOSEN_PCI, &mut pstore.info)?;
    }
    Ok(())
}

/// Function 0 of a slot that has others says so, unless the definition says otherwise.
fn mark_multifunction(devices: &mut Devices, needs: Needs) -> Result<()> {
    let mut shared = Vec::new();
    visit(devices, needs, |visited| {
        shared.extend(present(visited.info).filter(|address| address.function != 0).map(|a| (a.bus, a.slot)));
        Ok(())
    })?;
    visit(devices, needs, |visited| {
        if let Some(Address::Pci(address)) = &mut visited.info.address
            && address.function == 0
            && !address.is_empty()
            && shared.contains(&(address.bus, address.slot))
        {
            address.multifunction.get_or_insert(OnOff::On);
        }
        Ok(())
    })
}

/// Names QEMU's device behind each PCI controller and numbers what the guest sees of it.
fn complete_controllers(devices: &mut Devices, facts: &Facts<'_>) -> Result<()> {
    let mut lowest_bus_nr =
        pci_controllers(devices).filter_map(|(_, options)| options.target.bus_nr).min().unwrap_or(256);
    for controller in &mut devices.controllers {
        let index = controller.index();
        let address = present(&controller.info).unwrap_or_default();
        let ControllerKind::Pci(options) = &mut controller.kind else { continue };
        let Some(model) = options.model else { continue };
        if options.model_name.is_none() {
            options.model_name = device_behind(model, facts.has);
        }
        let target = &mut options.target;
        match model {
            PciModel::PciBridge => {
                target.chassis_nr.get_or_insert(index);
                if index <= address.bus.into() {
                    let bus = address.bus;
                    return Err(ConfError::unsupported(format!(
                        "PCI controller at index {index} (0x{index:02x}) has bus='0x{bus:02x}', but index must be \
                         larger than bus"
                    ))
                    .by_qemu_driver());
                }
            }
            PciModel::PcieRootPort => {
                target.chassis.get_or_insert(index);
                target.port.get_or_insert((u32::from(address.slot) << 3) + u32::from(address.function));
            }
            PciModel::PcieSwitchDownstreamPort => {
                target.chassis.get_or_insert(index);
                target.port.get_or_insert(address.slot.into());
            }
            PciModel::PciExpanderBus | PciModel::PcieExpanderBus if target.bus_nr.is_none() => {
                if lowest_bus_nr <= 2 {
                    let bus = address.bus;
                    return Err(ConfError::unsupported(format!(
                        "No free busNr lower than current lowest busNr is available to auto-assign to bus {bus}. \
                         Must be manually assigned"
                    ))
                    .by_qemu_driver());
                }
                lowest_bus_nr -= 2;
                target.bus_nr = Some(lowest_bus_nr);
            }
            _ => {}
        }
    }
    Ok(())
}

fn device_behind(model: PciModel, has: Has) -> Option<PciModelName> {
    Some(match model {
        PciModel::PciRoot | PciModel::PcieRoot => return None,
        PciModel::PciBridge => PciModelName::PciBridge,
        PciModel::DmiToPciBridge => PciModelName::I82801b11Bridge,
        PciModel::PcieToPciBridge => PciModelName::PciePciBridge,
        PciModel::PcieRootPort if has.contains(Has::PCIE_ROOT_PORT) => PciModelName::PcieRootPort,
        PciModel::PcieRootPort => PciModelName::Ioh3420,
        PciModel::PcieSwitchUpstreamPort => PciModelName::X3130Upstream,
        PciModel::PcieSwitchDownstreamPort => PciModelName::Xio3130Downstream,
        PciModel::PciExpanderBus => PciModelName::Pxb,
        PciModel::PcieExpanderBus => PciModelName::PxbPcie,
    })
}
