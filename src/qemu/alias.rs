//! Names by which QEMU and the live definition know the devices of a running guest.

use crate::conf::devices::{
    Address, BalloonModel, ConsoleType, Controller, ControllerKind, DeviceInfo, Devices, Disk, DiskBus,
    InterfaceKind, MemoryModel, PciModel, ScsiModel,
};
use crate::conf::domain::Domain;
use crate::qemu::command::{CommandError, has_builtin_ide, is_q35};

/// Gives every device that has no alias of its own the one libvirt would give it. Addresses must have been
/// assigned before.
pub fn assign_aliases(domain: &mut Domain) -> Result<(), CommandError> {
    let machine = domain.os.os_type.machine.clone().unwrap_or_default();
    let devices = &mut domain.devices;
    assign_disks(devices)?;
    assign_cards(devices);
    next_free(devices.filesystems.iter_mut().map(|device| &mut device.info), "fs");
    by_position(devices.sounds.iter_mut().map(|device| &mut device.info), "sound");
    next_free(devices.redirdevs.iter_mut().map(|device| &mut device.info), "redir");
    by_position(devices.videos.iter_mut().map(|device| &mut device.info), "video");
    for controller in &mut devices.controllers {
        if controller.info.alias.is_none() {
            controller.info.alias = Some(controller_alias(controller, &machine).into());
        }
    }
    by_position(devices.inputs.iter_mut().map(|device| &mut device.info), "input");
    by_position(devices.parallels.iter_mut().map(|device| &mut device.info), "parallel");
    by_position(devices.serials.iter_mut().map(|device| &mut device.info), "serial");
    by_position(devices.channels.iter_mut().map(|device| &mut device.info), "channel");
    assign_consoles(devices);
    by_position(devices.hubs.iter_mut().map(|device| &mut device.info), "hub");
    by_position(devices.shmems.iter_mut().map(|device| &mut device.info), "shmem");
    by_position(devices.smartcards.iter_mut().map(|device| &mut device.info), "smartcard");
    by_position(devices.watchdogs.iter_mut().map(|device| &mut device.info), "watchdog");
    let balloons = devices.memballoons.iter_mut().filter(|balloon| balloon.model != BalloonModel::None);
    by_position(balloons.map(|device| &mut device.info), "balloon");
    next_free(devices.rngs.iter_mut().map(|device| &mut device.info), "rng");
    by_position(devices.tpms.iter_mut().map(|device| &mut device.info), "tpm");
    assign_memories(devices);
    by_position(devices.vsocks.iter_mut().map(|device| &mut device.info), "vsock");
    by_position(devices.iommus.iter_mut().map(|device| &mut device.info), "iommu");
    next_free(devices.cryptos.iter_mut().map(|device| &mut device.info), "crypto");
    by_position(devices.pstores.iter_mut().map(|device| &mut device.info), "pstore");
    Ok(())
}

/// Gives the devices of a running guest that have no alias one that no other has.
pub fn assign_new_aliases(domain: &mut Domain) -> Result<(), CommandError> {
    let machine = domain.os.os_type.machine.clone().unwrap_or_default();
    let devices = &mut domain.devices;
    assign_disks(devices)?;
    assign_cards(devices);
    for controller in devices.controllers.iter_mut().filter(|controller| controller.info.alias.is_none()) {
        controller.info.alias = Some(controller_alias(controller, &machine).into());
    }
    next_free(devices.inputs.iter_mut().map(|device| &mut device.info), "input");
    next_free(devices.parallels.iter_mut().map(|device| &mut device.info), "parallel");
    next_free(devices.serials.iter_mut().map(|device| &mut device.info), "serial");
    next_free(devices.channels.iter_mut().map(|device| &mut device.info), "channel");
    next_free(devices.consoles.iter_mut().map(|device| &mut device.info), "console");
    next_free(devices.watchdogs.iter_mut().map(|device| &mut device.info), "watchdog");
    next_free(devices.rngs.iter_mut().map(|device| &mut device.info), "rng");
    next_free(devices.filesystems.iter_mut().map(|device| &mut device.info), "fs");
    next_free(devices.redirdevs.iter_mut().map(|device| &mut device.info), "redir");
    next_free(devices.shmems.iter_mut().map(|device| &mut device.info), "shmem");
    next_free(devices.vsocks.iter_mut().map(|device| &mut device.info), "vsock");
    assign_memories(devices);
    Ok(())
}

/// Network cards, and devices of the host: cards of the host are both.
fn assign_cards(devices: &mut Devices) {
    let own = devices.interfaces.iter_mut().filter(|card| card.kind != InterfaceKind::Hostdev);
    next_free(own.map(|device| &mut device.info), "net");
    let cards = devices.interfaces.iter_mut().filter(|card| card.kind == InterfaceKind::Hostdev);
    let hostdevs = devices.hostdevs.iter_mut().map(|device| &mut device.info);
    next_free(cards.map(|device| &mut device.info).chain(hostdevs), "hostdev");
}

/// Memory in slots is called after them.
fn assign_memories(devices: &mut Devices) {
    for device in &mut devices.memories {
        let prefix = if device.model == MemoryModel::Dimm { "dimm" } else { "nvdimm" };
        if let (None, Some(slot)) = (&device.info.alias, device.slot()) {
            device.info.alias = Some(format!("{prefix}{slot}").into());
        }
    }
    for (model, prefix) in [
        (MemoryModel::VirtioPmem, "virtiopmem"),
        (MemoryModel::VirtioMem, "virtiomem"),
        (MemoryModel::SgxEpc, "epc"),
        (MemoryModel::Dimm, "dimm"),
        (MemoryModel::Nvdimm, "nvdimm"),
    ] {
        let of_model = devices.memories.iter_mut().filter(|device| device.model == model);
        next_free(of_model.map(|device| &mut device.info), prefix);
    }
}

/// Numbers the devices in their order; names that users chose take a number with them.
fn by_position<'a>(devices: impl Iterator<Item = &'a mut DeviceInfo>, prefix: &str) {
    for (number, info) in devices.enumerate() {
        if info.alias.is_none() {
            info.alias = Some(format!("{prefix}{number}").into());
        }
    }
}

/// Numbers the devices beyond the highest number in use.
fn next_free<'a>(devices: impl Iterator<Item = &'a mut DeviceInfo>, prefix: &str) {
    let mut devices: Vec<&mut DeviceInfo> = devices.collect();
    let number_of =
        |info: &&mut DeviceInfo| -> Option<u32> { info.alias.as_deref()?.strip_prefix(prefix)?.parse().ok() };
    let first = devices.iter().filter_map(number_of).max().map_or(0, |number| number + 1);
    let nameless = devices.iter_mut().filter(|info| info.alias.is_none());
    for (number, info) in (first..).zip(nameless) {
        info.alias = Some(format!("{prefix}{number}").into());
    }
}

/// The first console of a guest with serial ports is the first serial port.
fn assign_consoles(devices: &mut Devices) {
    let serial = devices.serials.first().and_then(|serial| serial.info.alias.clone());
    for (number, console) in devices.consoles.iter_mut().enumerate() {
        if console.info.alias.is_some() {
            continue;
        }
        let is_serial = console.target.kind == Some(ConsoleType::Serial);
        console.info.alias = match &serial {
            Some(alias) if number == 0 && is_serial => Some(alias.clone()),
            _ => Some(format!("console{number}").into()),
        };
    }
}

fn controller_alias(controller: &Controller, machine: &str) -> String {
    let index = controller.index();
    match &controller.kind {
        // What is part of the machine has QEMU's own names.
        ControllerKind::Pci(options) if options.model == Some(PciModel::PcieRoot) => format!("pcie.{index}"),
        ControllerKind::Pci(_) => format!("pci.{index}"),
        ControllerKind::Ide(_) if index == 0 && has_builtin_ide(machine) => "ide".to_owned(),
        ControllerKind::Sata if index == 0 && is_q35(machine) => "ide".to_owned(),
        ControllerKind::Usb(_) if index == 0 => "usb".to_owned(),
        ControllerKind::Scsi(Some(ScsiModel::Ncr53c90)) if index == 0 => "scsi".to_owned(),
        kind => format!("{}{index}", kind.bus()),
    }
}

fn assign_disks(devices: &mut Devices) -> Result<(), CommandError> {
    let controllers = &devices.controllers;
    for disk in &mut devices.disks {
        if disk.info.alias.is_none() {
            disk.info.alias = Some(disk_alias(disk, controllers)?.into());
        }
    }
    Ok(())
}

fn disk_alias(disk: &Disk, controllers: &[Controller]) -> Result<String, CommandError> {
    let Some(bus) = disk.target.bus else {
        return Err(CommandError::Internal("disk has no bus".to_owned()));
    };
    let Some(Address::Drive(address)) = &disk.info.address else {
        return Ok(format!("{bus}-disk{}", drive_number(disk.name()).unwrap_or_default()));
    };
    let (controller, target, unit) = (address.controller, address.target, address.unit);
    let has_targets = bus == DiskBus::Scsi && {
        let model = controllers.iter().find_map(|it| match &it.kind {
            ControllerKind::Scsi(model) if it.index() == controller => Some(*model),
            _ => None,
        });
        let Some(model) = model.flatten() else {
            let message = format!("unable to find a SCSI controller for idx={controller}");
            return Err(CommandError::Internal(message));
        };
        model != ScsiModel::Lsilogic
    };
    Ok(match has_targets {
        true => format!("{bus}{controller}-{}-{target}-{unit}", address.bus),
        false => format!("{bus}{controller}-{}-{unit}", address.bus),
    })
}

/// The place of a drive's name in the alphabet: `vda` is 0, `vdz` 25, `vdaa` 26.
pub fn drive_number(name: &str) -> Option<u32> {
    let letters =
        ["fd", "hd", "vd", "sd", "xvd", "ubd"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let letters = letters.trim_end_matches(|c: char| c.is_ascii_digit());
    let mut number: u32 = 0;
    for letter in letters.bytes() {
        let digit = letter.checked_sub(b'a').filter(|digit| *digit < 26)?;
        number = number.checked_mul(26)?.checked_add(u32::from(digit) + 1)?;
    }
    number.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::drive_number;

    #[test]
    fn drive_names_count_like_columns() {
        for (name, number) in [
            ("vda", Some(0)),
            ("sdb", Some(1)),
            ("vdz", Some(25)),
            ("vdaa", Some(26)),
            ("sdzz", Some(701)),
            ("xvdc1", Some(2)),
            ("vd", None),
            ("cd", None),
            ("vdA", None),
            ("vdzzzzzzzzzzzz", None),
        ] {
            assert_eq!(drive_number(name), number, "{name}");
        }
    }
}
