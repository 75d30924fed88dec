//! Where QEMU has put the devices whose places the command line leaves open.

use crate::conf::devices::{Address, ControllerType, DeviceInfo, DiskBus, InputBus, PciAddress};
use crate::conf::domain::Domain;
use crate::qemu::monitor::PciDevice;

/// Makers of devices.
const VIRTIO: u32 = 0x1af4;
const INTEL: u32 = 0x8086;

/// What tells that a device of the bus is one of a kind.
type Fits = fn(&PciDevice) -> bool;

/// Gives the devices of a running guest the places on the first bus that they have.
pub fn place(domain: &mut Domain, mut found: Vec<PciDevice>) {
    let mut open = open_places(domain);
    // Those with a name first: what is left over is for those without.
    for (info, _) in open.iter_mut().filter(|(info, _)| info.alias.is_some()) {
        let alias = info.alias.clone();
        settle(info, &mut found, |device| alias.as_deref() == Some(&*device.qdev_id));
    }
    for (info, fits) in open.iter_mut().filter(|(info, _)| info.alias.is_none()) {
        settle(info, &mut found, |device| device.qdev_id.is_empty() && fits(device));
    }
}

fn settle(info: &mut DeviceInfo, found: &mut Vec<PciDevice>, fits: impl Fn(&PciDevice) -> bool) {
    let Some(at) = found.iter().position(|device| device.bus == 0 && fits(device)) else { return };
    let PciDevice { slot, function, .. } = found.remove(at);
    info.address = Some(Address::Pci(PciAddress::new(0, slot, function)));
}

fn is_virtio(device: &PciDevice, number: u32) -> bool {
    // Drafts before 1.0 count from 0x1000 in an order of their own.
    let old = match number {
        1 => 0x1000,
        2 => 0x1001,
        3 => 0x1003,
        4 => 0x1005,
        5 => 0x1002,
        8 => 0x1004,
        _ => 0,
    };
    device.id.vendor == VIRTIO && (device.id.device == old || device.id.device == 0x1040 + number)
}

/// The devices that are on a PCI bus and do not say where.
fn open_places(domain: &mut Domain) -> Vec<(&mut DeviceInfo, Fits)> {
    let devices = &mut domain.devices;
    let disks = devices.disks.iter_mut().filter(|disk| disk.target.bus == Some(DiskBus::Virtio));
    let disks = disks.map(|it| (&mut it.info, (|device| is_virtio(device, 2)) as Fits));
    let cards = devices
        .interfaces
        .iter_mut()
        .map(|it| (&mut it.info, (|device| device.class.class == 0x200) as Fits));
    let controllers = devices.controllers.iter_mut().filter_map(|it| {
        let fits: Fits = match it.kind.bus() {
            ControllerType::Usb => |device| device.class.class == 0xc03,
            ControllerType::Scsi => |device| is_virtio(device, 8),
            ControllerType::VirtioSerial => |device| is_virtio(device, 3),
            ControllerType::Sata => |device| device.class.class == 0x106,
            _ => return None,
        };
        Some((&mut it.info, fits))
    });
    let videos =
        devices.videos.iter_mut().map(|it| (&mut it.info, (|device| device.class.class >> 8 == 3) as Fits));
    let sounds =
        devices.sounds.iter_mut().map(|it| (&mut it.info, (|device| device.class.class >> 8 == 4) as Fits));
    let balloons =
        devices.memballoons.iter_mut().map(|it| (&mut it.info, (|device| is_virtio(device, 5)) as Fits));
    let rngs = devices.rngs.iter_mut().map(|it| (&mut it.info, (|device| is_virtio(device, 4)) as Fits));
    let inputs = devices.inputs.iter_mut().filter(|input| input.bus == Some(InputBus::Virtio));
    let inputs = inputs.map(|it| (&mut it.info, (|device| is_virtio(device, 18)) as Fits));
    let watchdogs = devices.watchdogs.iter_mut();
    let watchdogs = watchdogs
        .map(|it| (&mut it.info, (|device| (device.id.vendor, device.id.device) == (INTEL, 0x25ab)) as Fits));
    let all = disks.chain(cards).chain(controllers).chain(videos).chain(sounds).chain(balloons);
    let all = all.chain(rngs).chain(inputs).chain(watchdogs);
    all.filter(|(info, _)| info.address.is_none()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conf::xml::Form;

    #[test]
    fn devices_are_where_qemu_says() {
        let device = |slot: u8, class: u32, vendor: u32, number: u32, name: &str| {
            serde_json::from_value(json!({
                "bus": 0, "slot": slot, "function": 0, "class_info": { "class": class },
                "id": { "vendor": vendor, "device": number }, "qdev_id": name, "regions": []
            }))
            .unwrap()
        };
        // The second card was the first on the command line, and has a name.
        let found = vec![
            device(2, 0x300, 0x1234, 0x1111, ""),
            device(3, 0x200, VIRTIO, 0x1000, "named"),
            device(4, 0x200, INTEL, 0x100e, ""),
            device(5, 0x100, VIRTIO, 0x1001, ""),
            device(6, 0xff, VIRTIO, 0x1045, "bal"),
            device(9, 0xff, 0x1234, 0x11e8, ""),
        ];
        let text = "<domain type='qemu'><name>x</name><memory>1</memory><os><type>hvm</type></os><devices>\
             <disk type='file'><target dev='vda' bus='virtio'/></disk><disk type='file'><target dev='hda' bus='ide'/></disk>\
             <interface type='user'/><interface type='user'><alias name='named'/></interface>\
             <video><model type='vga'/></video><rng model='virtio'><backend model='builtin'/></rng>\
             <memballoon model='virtio'><alias name='bal'/></memballoon></devices></domain>";
        let mut domain = Domain::parse(text, Form::LIVE).unwrap();
        place(&mut domain, found);
        let slot = |info: &DeviceInfo| match &info.address {
            Some(Address::Pci(address)) => Some(address.slot),
            _ => None,
        };
        let devices = &domain.devices;
        assert_eq!(devices.disks.iter().map(|it| slot(&it.info)).collect::<Vec<_>>(), [Some(5), None]);
        assert_eq!(
            devices.interfaces.iter().map(|it| slot(&it.info)).collect::<Vec<_>>(),
            [Some(4), Some(3)]
        );
        assert_eq!((slot(&devices.videos[0].info), slot(&devices.memballoons[0].info)), (Some(2), Some(6)));
        assert_eq!(slot(&devices.rngs[0].info), None);
    }
}
