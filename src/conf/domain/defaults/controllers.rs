//! Controllers that other devices need.

use super::lists::{add_controller, find_controller};
use crate::conf::devices::{
    Address, CcidAddress, ChannelTarget, ConsoleType, ControllerKind, ControllerType, DeviceInfo, Devices,
    DiskBus, HostdevSource, VirtioSerialOptions,
};
use crate::conf::{ConfError, Result};

/// Two controllers of a type share no number, except for USB 2 and its companions.
pub(super) fn refuse_duplicates(devices: &Devices) -> Result<()> {
    let mut seen: Vec<(ControllerType, u32)> = devices
        .controllers
        .iter()
        .map(|controller| (controller.kind.bus(), controller.index()))
        .filter(|(bus, _)| *bus != ControllerType::Usb)
        .collect();
    seen.sort_unstable();
    match seen.windows(2).find(|pair| pair.first() == pair.last()).and_then(|pair| pair.first()) {
        Some((bus, index)) => {
            Err(ConfError::xml(format!("Multiple '{bus}' controllers with index '{index}'")))
        }
        None => Ok(()),
    }
}

/// One per bus up to the highest that a disk's address names, and one for virtio channels.
pub(super) fn add_implied(devices: &mut Devices) {
    let buses = [
        (DiskBus::Scsi, ControllerKind::Scsi(None)),
        (DiskBus::Fdc, ControllerKind::Fdc),
        (DiskBus::Ide, ControllerKind::Ide(None)),
        (DiskBus::Sata, ControllerKind::Sata),
    ];
    add_for_host_devices(devices);
    for (bus, kind) in buses {
        let used = devices.disks.iter().filter(|disk| disk.target.bus == Some(bus));
        let highest = used.filter_map(|disk| drive_controller(&disk.info)).max();
        for index in 0..highest.map_or(0, |highest| highest.saturating_add(1)).min(MAX_CONTROLLERS) {
            add_controller(devices, kind.clone(), index);
        }
    }
    let channels =
        devices.channels.iter().filter(|channel| matches!(channel.target, ChannelTarget::Virtio { .. }));
    let consoles = devices.consoles.iter().filter(|console| console.target.kind == Some(ConsoleType::Virtio));
    let infos = channels.map(|channel| &channel.info).chain(consoles.map(|console| &console.info));
    let wanted: Vec<u32> = infos.map(serial_controller).collect();
    for index in wanted {
        add_controller(devices, ControllerKind::VirtioSerial(VirtioSerialOptions::default()), index);
    }
    place_smartcards(devices);
}

/// Those for SCSI devices of the host are like the one that is full.
fn add_for_host_devices(devices: &mut Devices) {
    let scsi = devices.hostdevs.iter().filter(|it| matches!(it.source, HostdevSource::Scsi(_)));
    let mut highest = None;
    let mut model = None;
    for index in scsi.filter_map(|hostdev| drive_controller(&hostdev.info)) {
        if highest.is_some_and(|highest| index <= highest) {
            continue;
        }
        highest = Some(index);
        let found = find_controller(devices, ControllerType::Scsi, index);
        if let Some(ControllerKind::Scsi(Some(found))) = found.map(|controller| controller.kind.clone()) {
            model = Some(found);
        }
    }
    for index in 0..highest.map_or(0, |highest| highest.saturating_add(1)).min(MAX_CONTROLLERS) {
        add_controller(devices, ControllerKind::Scsi(model), index);
    }
}

/// Cards go into readers: a card without a place into the first slot that no other card has.
fn place_smartcards(devices: &mut Devices) {
    for at in 0..devices.smartcards.len() {
        let used = |controller: u32| {
            devices.smartcards.iter().any(|card| {
                matches!(&card.info.address, Some(Address::Ccid(place)) if place.controller == controller)
            })
        };
        let free = (0..).find(|controller| !used(*controller)).unwrap_or(0);
        if let Some(card) = devices.smartcards.get_mut(at).filter(|card| card.info.address.is_none()) {
            card.info.address = Some(Address::Ccid(CcidAddress { controller: free, slot: 0 }));
        }
    }
    let places = devices.smartcards.iter().filter_map(|card| match &card.info.address {
        Some(Address::Ccid(place)) => Some(place.controller),
        _ => None,
    });
    for index in places.filter(|index| *index < MAX_CONTROLLERS).collect::<Vec<_>>() {
        add_controller(devices, ControllerKind::Ccid, index);
    }
}

/// A disk on a controller beyond this is refused when its address is checked.
const MAX_CONTROLLERS: u32 = 256;

fn drive_controller(info: &DeviceInfo) -> Option<u32> {
    match &info.address {
        Some(Address::Drive(drive)) => Some(drive.controller),
        _ => None,
    }
}

fn serial_controller(info: &DeviceInfo) -> u32 {
    match &info.address {
        Some(Address::VirtioSerial(place)) => place.controller,
        _ => 0,
    }
}
