//! The order of devices: disks by bus and name, controllers by number, the primary video card first.

use super::Generator;
use super::devices::bus_of;
use crate::conf::devices::{
    Controller, ControllerKind, ControllerType, Devices, Disk, InputBus, UsbModel, UsbOptions,
};
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, ErrorKind, Result};

/// What reading the lists one device at a time does to them.
pub(super) fn arrange(devices: &mut Devices, generator: &mut dyn Generator) -> Result<()> {
    let mut disks = Vec::with_capacity(devices.disks.len());
    for disk in devices.disks.drain(..) {
        insert_disk(&mut disks, disk);
    }
    devices.disks = disks;
    check_usb(devices)?;
    let controllers = std::mem::take(&mut devices.controllers);
    for controller in controllers {
        insert_controller(&mut devices.controllers, controller);
    }
    for interface in &mut devices.interfaces {
        interface.mac.address.get_or_insert_with(|| generator.mac());
    }
    let mut highest = None;
    for parallel in &mut devices.parallels {
        let port = *parallel
            .target
            .port
            .get_or_insert_with(|| highest.map_or(0, |port: u32| port.saturating_add(1)));
        highest = highest.max(Some(port));
    }
    for (port, console) in (0..).zip(&mut devices.consoles) {
        console.target.port = Some(port);
    }
    if devices.memballoons.len() > 1 {
        return Err(ConfError::internal("only a single memory balloon device is supported"));
    }
    // Each primary card in turn goes to the front.
    let (mut primary, others): (Vec<_>, Vec<_>) =
        devices.videos.drain(..).partition(|video| video.model.primary == YesNo::Yes);
    primary.reverse();
    devices.videos.extend(primary.into_iter().chain(others));
    Ok(())
}

/// Adds devices to those of a running guest, in the order in which a definition has them.
pub fn plug(devices: &mut Devices, mut new: Devices) {
    for mut disk in new.disks.drain(..) {
        disk.target.bus = Some(bus_of(&disk));
        insert_disk(&mut devices.disks, disk);
    }
    new.controllers.drain(..).for_each(|it| insert_controller(&mut devices.controllers, it));
    devices.append(new);
}

/// Gives back what the lists grew too far: thousands of definitions stay in memory.
pub(super) fn shrink(devices: &mut Devices) {
    devices.disks.shrink_to_fit();
    devices.controllers.shrink_to_fit();
    devices.interfaces.shrink_to_fit();
    devices.serials.shrink_to_fit();
    devices.consoles.shrink_to_fit();
    devices.inputs.shrink_to_fit();
    devices.audios.shrink_to_fit();
    devices.videos.shrink_to_fit();
    devices.watchdogs.shrink_to_fit();
    devices.memballoons.shrink_to_fit();
    devices.hubs.shrink_to_fit();
}

/// The number a disk's name stands for: `vda` is 0, `sdaa` is 26.
pub(crate) fn disk_index(name: &str) -> Option<u32> {
    let rest = ["fd", "hd", "vd", "sd", "xvd", "ubd"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.is_empty() {
        return None;
    }
    let mut index: u32 = 0;
    for (place, letter) in letters.bytes().enumerate() {
        if !letter.is_ascii_lowercase() {
            return None;
        }
        let carried = if place == 0 { 0 } else { index.checked_add(1)? };
        index = carried.checked_mul(26)?.checked_add(u32::from(letter - b'a'))?;
    }
    i32::try_from(index).is_ok().then_some(index)
}

/// Puts a disk behind the last one of its bus, before those with a later name.
fn insert_disk(disks: &mut Vec<Disk>, disk: Disk) {
    let index = disk.target.dev.as_deref().map(disk_index);
    let mut place = None;
    for (at, current) in disks.iter().enumerate().rev() {
        if current.target.bus != disk.target.bus {
            continue;
        }
        let later = match (current.target.dev.as_deref().map(disk_index), index) {
            (Some(current), Some(index)) => current > index,
            _ => false,
        };
        if later {
            place = Some(at);
        } else if place.is_none() {
            place = Some(at + 1);
        }
    }
    disks.insert(place.unwrap_or(disks.len()), disk);
}

/// Puts a controller behind those of its type with a lower number, a USB master before its companions.
pub(crate) fn insert_controller(controllers: &mut Vec<Controller>, controller: Controller) {
    let bus = controller.kind.bus();
    let is_companion = |controller: &Controller| controller.info.master_startport.is_some();
    let mut place = None;
    for (at, current) in controllers.iter().enumerate().rev() {
        if current.kind.bus() != bus {
            continue;
        }
        if controller.index.is_none() {
            place = Some(at + 1);
            break;
        }
        let before_companion =
            !is_companion(&controller) && is_companion(current) && current.index == controller.index;
        if current.index > controller.index || before_companion {
            place = Some(at);
        } else if place.is_none() {
            place = Some(at + 1);
        }
    }
    controllers.insert(place.unwrap_or(controllers.len()), controller);
}

/// USB is either off or has a controller that is nobody's companion.
fn check_usb(devices: &Devices) -> Result<()> {
    let usb: Vec<&Controller> = devices
        .controllers
        .iter()
        .filter(|controller| controller.kind.bus() == ControllerType::Usb)
        .collect();
    let off = usb.iter().filter(|controller| controller.usb_model() == Some(UsbModel::None)).count();
    if off > 0 && devices.inputs.iter().any(|input| input.bus == Some(InputBus::Usb)) {
        return Err(ConfError::unsupported("Can't add USB input device. USB bus is disabled"));
    }
    if off > 0 && !devices.hubs.is_empty() {
        return Err(ConfError::unsupported("Can't add USB hub: USB is disabled for this domain"));
    }
    if off > 0 && usb.len() > 1 {
        let message = "Can't add another USB controller: USB is disabled for this domain";
        return Err(ConfError::new(ErrorKind::XmlDetail, message));
    }
    if !usb.is_empty() && usb.iter().all(|controller| controller.info.master_startport.is_some()) {
        return Err(ConfError::new(ErrorKind::XmlDetail, "No master USB controller specified"));
    }
    Ok(())
}

pub(super) fn find_controller(devices: &Devices, bus: ControllerType, index: u32) -> Option<&Controller> {
    devices
        .controllers
        .iter()
        .find(|controller| controller.kind.bus() == bus && controller.index == Some(index))
}

/// Adds a controller unless one of its type has that number.
pub(crate) fn add_controller(devices: &mut Devices, kind: ControllerKind, index: u32) {
    if find_controller(devices, kind.bus(), index).is_none() {
        insert_controller(&mut devices.controllers, Controller::new(kind, index));
    }
}

fn usb2_model(controller: &Controller) -> Option<UsbModel> {
    match controller.kind {
        ControllerKind::Usb(UsbOptions { model: Some(model), .. })
            if matches!(
                model,
                UsbModel::Ich9Ehci1 | UsbModel::Ich9Uhci1 | UsbModel::Ich9Uhci2 | UsbModel::Ich9Uhci3
            ) =>
        {
            Some(model)
        }
        _ => None,
    }
}

pub(crate) fn is_usb2(controller: &Controller) -> bool {
    usb2_model(controller).is_some()
}

/// Gives a number to controllers without one: the lowest free of their type. A USB 2 controller joins the
/// group before it when that group lacks its model.
pub(super) fn number_controllers(devices: &mut Devices) {
    let mut reinsert = false;
    for at in 0..devices.controllers.len() {
        let Some(controller) = devices.controllers.get(at) else { return };
        if controller.index.is_some() {
            continue;
        }
        let bus = controller.kind.bus();
        let mut index = None;
        if at > 0
            && let Some(model) = usb2_model(controller)
        {
            reinsert = true;
            index = group_before(devices, at, model);
        }
        let index = index.unwrap_or_else(|| free_index(devices, bus));
        if let Some(controller) = devices.controllers.get_mut(at) {
            controller.index = Some(index);
        }
    }
    if reinsert {
        for controller in std::mem::take(&mut devices.controllers) {
            insert_controller(&mut devices.controllers, controller);
        }
    }
}

fn free_index(devices: &Devices, bus: ControllerType) -> u32 {
    let mut used: Vec<u32> = devices
        .controllers
        .iter()
        .filter(|controller| controller.kind.bus() == bus)
        .filter_map(|controller| controller.index)
        .collect();
    used.sort_unstable();
    used.dedup();
    (0..).zip(&used).find(|(free, used)| free != *used).map_or(used.len() as u32, |(free, _)| free)
}

fn group_before(devices: &Devices, at: usize, model: UsbModel) -> Option<u32> {
    let before = devices.controllers.get(..at)?;
    let previous = before.iter().rev().find(|controller| controller.kind.bus() == ControllerType::Usb)?;
    usb2_model(previous)?;
    let taken = devices
        .controllers
        .iter()
        .any(|controller| controller.index == previous.index && controller.usb_model() == Some(model));
    if taken { None } else { previous.index }
}
