//! USB ports for everything on that bus, with hubs where the controllers have too few.

use super::usb_set::{HUB_PORTS, UsbSet};
use crate::conf::devices::{
    Address, Controller, ControllerKind, DeviceInfo, Devices, DiskBus, FilesystemDriverType, HostdevSource,
    Hub, HubKind, InputBus, ModelName, SerialType, SoundModel, UsbAddress, UsbModel,
};
use crate::conf::{ConfError, Result};

/// Which devices to visit.
#[derive(Clone, Copy, PartialEq)]
enum Hubs {
    Included,
    Left,
}

/// Visits the devices on USB in libvirt's order.
fn visit(
    devices: &mut Devices,
    hubs: Hubs,
    mut visit: impl FnMut(&mut DeviceInfo) -> Result<()>,
) -> Result<()> {
    for disk in devices.disks.iter_mut().filter(|disk| disk.target.bus == Some(DiskBus::Usb)) {
        visit(&mut disk.info)?;
    }
    for interface in devices.interfaces.iter_mut().filter(|card| card.model() == Some(&ModelName::UsbNet)) {
        visit(&mut interface.info)?;
    }
    for sound in devices.sounds.iter_mut().filter(|sound| sound.model == SoundModel::Usb) {
        visit(&mut sound.info)?;
    }
    for hostdev in devices.hostdevs.iter_mut().filter(|it| matches!(it.source, HostdevSource::Usb(_))) {
        visit(&mut hostdev.info)?;
    }
    for controller in devices.controllers.iter_mut().filter(|c| matches!(c.kind, ControllerKind::Ccid)) {
        visit(&mut controller.info)?;
    }
    for serial in devices.serials.iter_mut().filter(|serial| serial.target.kind == Some(SerialType::Usb)) {
        visit(&mut serial.info)?;
    }
    for input in devices.inputs.iter_mut().filter(|input| input.bus == Some(InputBus::Usb)) {
        visit(&mut input.info)?;
    }
    for filesystem in &mut devices.filesystems {
        if filesystem.driver.kind == Some(FilesystemDriverType::Mtp) {
            visit(&mut filesystem.info)?;
        }
    }
    for redirdev in &mut devices.redirdevs {
        visit(&mut redirdev.info)?;
    }
    if hubs == Hubs::Included {
        for hub in &mut devices.hubs {
            visit(&mut hub.info)?;
        }
    }
    Ok(())
}

/// No controller has more.
const MAX_PORTS: u32 = 15;

fn ports(controller: &Controller) -> usize {
    let ControllerKind::Usb(options) = &controller.kind else { return 0 };
    match options.model {
        None | Some(UsbModel::Piix3Uhci | UsbModel::Piix4Uhci | UsbModel::Vt82c686bUhci) => 2,
        Some(UsbModel::Ehci | UsbModel::Ich9Ehci1) => 6,
        // Companions share the ports of their master.
        Some(UsbModel::Ich9Uhci1 | UsbModel::Ich9Uhci2 | UsbModel::Ich9Uhci3 | UsbModel::None) => 0,
        Some(UsbModel::PciOhci) => 3,
        Some(UsbModel::NecXhci | UsbModel::QemuXhci) => options.ports.unwrap_or(4).min(MAX_PORTS) as usize,
        Some(UsbModel::Qusb1 | UsbModel::Qusb2) => options.ports.unwrap_or(8).min(MAX_PORTS) as usize,
    }
}

/// Whether every device on USB has its port.
pub(super) fn all_have_places(devices: &mut Devices) -> bool {
    let mut all = true;
    let visited = visit(devices, Hubs::Included, |info| {
        all &= place(info).is_some();
        Ok(())
    });
    visited.is_ok() && all
}

/// The port a device was given.
fn place(info: &DeviceInfo) -> Option<&UsbAddress> {
    match &info.address {
        Some(Address::Usb(place)) if place.port.is_some() => Some(place),
        _ => None,
    }
}

pub(super) fn assign(devices: &mut Devices) -> Result<()> {
    add_hubs(devices)?;
    let mut set = UsbSet::default();
    for controller in &devices.controllers {
        set.add_controller(controller.index(), ports(controller))?;
    }
    for place in devices.hubs.iter().filter_map(|hub| place(&hub.info)) {
        set.add_hub(place)?;
    }
    visit(devices, Hubs::Left, |info| place(info).map_or(Ok(()), |place| set.reserve(place)))?;
    for hub in devices.hubs.iter_mut().filter(|hub| place(&hub.info).is_none()) {
        let chosen = set.reserve_next(bus_of(&hub.info))?;
        set.turn_into_hub(&chosen)?;
        hub.info.address = Some(Address::Usb(chosen));
    }
    visit(devices, Hubs::Left, |info| {
        if place(info).is_none() && matches!(info.address, None | Some(Address::Usb(_))) {
            info.address = Some(Address::Usb(set.reserve_next(bus_of(info))?));
        }
        Ok(())
    })
}

fn bus_of(info: &DeviceInfo) -> Option<u32> {
    match &info.address {
        Some(Address::Usb(place)) => Some(place.bus),
        _ => None,
    }
}

/// Adds as many hubs as it takes to have a port for everyone.
fn add_hubs(devices: &mut Devices) -> Result<()> {
    let mut count = 0;
    visit(devices, Hubs::Included, |_| {
        count += 1;
        Ok(())
    })?;
    let usb =
        devices.controllers.iter().filter(|controller| matches!(controller.kind, ControllerKind::Usb(_)));
    let has_usb = usb.clone().any(|controller| controller.usb_model() != Some(UsbModel::None));
    if count > 0 && !has_usb {
        let message = "USB is disabled for this domain, but USB devices are present in the domain XML";
        return Err(ConfError::unsupported(message).by_qemu_driver());
    }
    let available = usb.map(ports).sum::<usize>() + devices.hubs.len() * HUB_PORTS;
    if count > available {
        // A hub takes a port itself.
        let needed = (count - available + 1).div_ceil(HUB_PORTS - 1);
        devices.hubs.extend((0..needed).map(|_| Hub { kind: HubKind::Usb, info: DeviceInfo::default() }));
    }
    Ok(())
}
