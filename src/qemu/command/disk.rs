//! Disks as the guest sees them.

use serde_json::{Value, json};

use super::address::Generation;
use super::blockdev::{self, CacheFlags};
use super::line::{Line, Props, escape_comma};
use super::{CommandError, Guest, Result, internal, unsupported};
use crate::conf::devices::{
    Address, Disk, DiskBus, DiskDevice, DiskModel, ErrorPolicy, IoThreadMapping, Place, VhostUserSource,
};
use crate::conf::xml::OnOff;
use crate::qemu::capabilities::Cap;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    floppy_controller(guest, line);
    for disk in &guest.domain.devices.disks {
        // It comes later, with the image that is its own.
        if disk.shares_backing() && !disk.has_overlay() {
            continue;
        }
        match &disk.storage.place {
            Place::VhostUser(source) => guest.vhost_user(line, disk, source)?,
            _ => blockdev::build(guest, line, disk)?,
        }
        line.device(guest.disk(disk)?);
    }
    Ok(())
}

/// Floppy drives boot by their controller.
fn floppy_controller(guest: &Guest<'_>, line: &mut Line<'_>) {
    let (mut place_a, mut place_b, mut any) = (0, 0, false);
    for disk in guest.domain.devices.disks.iter().filter(|disk| disk.target.bus == Some(DiskBus::Fdc)) {
        any = true;
        let place = guest.boot_place_of_disk(disk);
        match &disk.info.address {
            Some(Address::Drive(address)) if address.unit != 0 => place_b = place,
            _ => place_a = place,
        }
    }
    if any && guest.is_q35() {
        let props = Props::driver("isa-fdc");
        line.device(props.nonzero("bootindexA", place_a).nonzero("bootindexB", place_b));
    } else if any {
        for (name, place) in [("bootindexA", place_a), ("bootindexB", place_b)] {
            if place > 0 {
                line.option("-global", format!("isa-fdc.{name}={place}"));
            }
        }
    }
}

impl Guest<'_> {
    /// The connection with the process that makes the disk.
    fn vhost_user(&self, line: &mut Line<'_>, disk: &Disk, source: &VhostUserSource) -> Result<()> {
        let id = vhost_user_stream(self.alias(&disk.info)?);
        let mut text = format!("socket,id={id},path={}", escape_comma(&source.path));
        self.push_reconnect(&mut text, source.reconnect);
        line.option("-chardev", text);
        Ok(())
    }

    fn disk(&self, disk: &Disk) -> Result<Props> {
        let Some(bus) = disk.target.bus else { return internal("disk has no bus") };
        let props = self.disk_driver(disk, bus)?;
        let props = match &disk.info.address {
            Some(Address::Drive(address)) => self.at_drive(props, bus, address)?,
            _ => self.at(props, &disk.info)?,
        };
        let device_id = match bus {
            DiskBus::Scsi if disk.device != DiskDevice::Lun => Some(vital_product_id(disk, self)?),
            _ => None,
        };
        let is_floppy = disk.device == DiskDevice::Floppy;
        let place = if is_floppy { 0 } else { self.boot_place_of_disk(disk) };
        let wwn = disk.wwn.as_deref().map(parse_wwn).transpose()?;
        let product = disk.product.as_deref();
        let is_ata = matches!(bus, DiskBus::Ide | DiskBus::Sata);
        let write_cache = match disk.device {
            DiskDevice::Lun => None,
            _ => CacheFlags::of(disk.effective_cache()).map(|flags| on_off(flags.writeback)),
        };
        let geometry = disk.geometry.as_deref();
        let dimension = |value: Option<u32>| value.unwrap_or_default();
        let (werror, rerror) = error_policies(disk);
        let alias = self.alias(&disk.info)?;
        let stream = matches!(disk.storage.place, Place::VhostUser(_)).then(|| vhost_user_stream(alias));
        // QEMU reads it as an option, where a blank ends the value.
        let serial = disk.serial.as_ref().map(|serial| serial.replace('\\', "\\\\").replace(' ', "\\ "));
        Ok(props
            .maybe("device_id", device_id)
            .maybe("share-rw", disk.shareable.then_some(true))
            .maybe("drive", blockdev::top_node(disk)?)
            .maybe("chardev", stream)
            .set("id", alias)
            .nonzero("bootindex", place)
            .nonzero("logical_block_size", disk.blockio.logical_block_size)
            .nonzero("physical_block_size", disk.blockio.physical_block_size)
            .nonzero("discard_granularity", disk.blockio.discard_granularity)
            .maybe("wwn", wwn)
            .nonzero("rotation_rate", disk.target.rotation_rate)
            .maybe("vendor", disk.vendor.as_deref())
            .maybe("product", product.filter(|_| bus == DiskBus::Scsi))
            .maybe("model", product.filter(|_| is_ata))
            .switch("removable", removable(disk, bus))
            .maybe("write-cache", write_cache)
            .nonzero("cyls", dimension(geometry.map(|it| it.cylinders)))
            .nonzero("heads", dimension(geometry.map(|it| it.heads)))
            .nonzero("secs", dimension(geometry.map(|it| it.sectors)))
            .maybe("bios-chs-trans", geometry.and_then(|it| it.trans).map(|it| it.as_str()))
            .maybe("serial", serial)
            .maybe("werror", werror)
            .maybe("rerror", rerror))
    }

    fn disk_driver(&self, disk: &Disk, bus: DiskBus) -> Result<Props> {
        let is_cdrom = disk.device == DiskDevice::Cdrom;
        Ok(match bus {
            DiskBus::Ide | DiskBus::Sata => Props::driver(if is_cdrom { "ide-cd" } else { "ide-hd" }),
            DiskBus::Scsi => Props::driver(match disk.device {
                DiskDevice::Lun => "scsi-block",
                DiskDevice::Cdrom => "scsi-cd",
                DiskDevice::Disk | DiskDevice::Floppy => "scsi-hd",
            }),
            DiskBus::Usb => Props::driver("usb-storage"),
            DiskBus::Fdc => Props::driver("floppy"),
            DiskBus::Virtio => {
                let generation = match disk.model {
                    DiskModel::VirtioTransitional => Generation::Transitional,
                    DiskModel::VirtioNonTransitional => Generation::NonTransitional,
                    DiskModel::Default | DiskModel::Virtio => Generation::Any,
                };
                let driver = &disk.driver;
                let name = match disk.storage.place {
                    Place::VhostUser(_) => "vhost-user-blk",
                    _ => "virtio-blk",
                };
                let speaks_scsi = disk.device == DiskDevice::Lun && self.supports(Cap::VirtioBlkScsi);
                self.virtio(name, generation, &disk.info, &driver.virtio)?
                    .maybe("iothread", driver.iothread.map(|id| format!("iothread{id}")))
                    .switch("ioeventfd", driver.ioeventfd)
                    .switch("event_idx", driver.event_idx)
                    .maybe("scsi", speaks_scsi.then_some(true))
                    .nonzero("num-queues", driver.queues)
                    .nonzero("queue-size", driver.queue_size)
                    .maybe("iothread-vq-mapping", driver.iothreads.as_deref().map(iothread_mapping))
            }
            DiskBus::Xen | DiskBus::Uml | DiskBus::Sd => {
                return unsupported(format!("unsupported disk bus '{bus}' with device setup"));
            }
        })
    }
}

/// Which threads work on which queues.
pub(super) fn iothread_mapping(mapping: &IoThreadMapping) -> Value {
    let threads = mapping.threads.iter().map(|thread| {
        let mut entry = json!({ "iothread": format!("iothread{}", thread.id) });
        if !thread.queues.is_empty() {
            entry["vqs"] = thread.queues.iter().map(|queue| queue.id).collect();
        }
        entry
    });
    threads.collect()
}

fn vhost_user_stream(alias: &str) -> String {
    format!("chr-vu-{alias}")
}

/// What a SCSI disk answers when it is asked for its identity: once the name of QEMU's drive, for ever.
fn vital_product_id(disk: &Disk, guest: &Guest<'_>) -> Result<String> {
    match &disk.serial {
        Some(serial) => Ok(serial.to_string()),
        None => Ok(format!("drive-{}", guest.alias(&disk.info)?)),
    }
}

fn removable(disk: &Disk, bus: DiskBus) -> Option<OnOff> {
    match (bus, disk.device) {
        (DiskBus::Usb, _) => Some(disk.target.removable.unwrap_or(OnOff::Off)),
        (DiskBus::Scsi, DiskDevice::Disk | DiskDevice::Floppy) => disk.target.removable,
        _ => None,
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn parse_wwn(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| CommandError::InvalidArg(format!("Failed to parse wwn '{text}' as number")))
}

/// What happens after failed writes and failed reads.
fn error_policies(disk: &Disk) -> (Option<&'static str>, Option<&'static str>) {
    let read = disk.driver.rerror_policy.map(ErrorPolicy::as_str);
    match disk.driver.error_policy {
        // Reads do not run out of space.
        Some(ErrorPolicy::Enospace) => (Some("enospc"), read),
        Some(policy) => (Some(policy.as_str()), read.or(Some(policy.as_str()))),
        None => (None, read),
    }
}
