//! Disks and the controllers they hang on.

use std::collections::{BTreeMap, BTreeSet};

use super::{by_qemu, iothreads, sources, unsupported};
use crate::conf::devices::{
    Address, Devices, Disk, DiskBus, DiskCache, DiskDevice, DiskIo, DiskModel, IoTune, NetworkProtocol,
    StartupPolicy, StorageFormat, StorageKind, Tray,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::{Facts, Has};
use crate::conf::storage::EncryptionFormat;
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, ErrorKind, Result};

pub(super) fn check_all(domain: &Domain, facts: &Facts<'_>) -> Result<()> {
    for disk in &domain.devices.disks {
        check_model(disk)?;
        check_texts(disk)?;
        check_names(disk)?;
        check_frontend(disk, facts)?;
        check_address(disk)?;
        check_options(domain, disk)?;
        check_filters(domain, disk)?;
        check_transient(disk)?;
        check_driver(domain, disk, facts)?;
    }
    Ok(())
}

/// Who serves the image: QEMU itself.
fn check_driver(domain: &Domain, disk: &Disk, facts: &Facts<'_>) -> Result<()> {
    let name = disk.name();
    let is_raw = disk.format() == StorageFormat::Raw && !disk.is_luks();
    if disk.shareable && !disk.readonly && !is_raw {
        return by_qemu(format!("shared access for disk '{name}' requires use of supported storage format"));
    }
    if let Some(other) = disk.driver.name.as_deref().filter(|driver| *driver != "qemu") {
        return by_qemu(format!("unsupported driver name '{other}' for disk '{name}'"));
    }
    let number = name.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
    if number.parse().is_ok_and(|partition: u32| partition != 0) {
        return by_qemu(format!("invalid disk target '{name}', partitions can't appear in disk targets"));
    }
    sources::check_for_qemu(domain, disk, facts)
}

fn internal<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfError::internal(message))
}

fn bus(disk: &Disk) -> DiskBus {
    disk.target.bus.unwrap_or(DiskBus::Ide)
}

/// Limits that a disk shares with others.
fn check_filters(domain: &Domain, disk: &Disk) -> Result<()> {
    let filters = &disk.throttle_filters.0;
    if filters.is_empty() {
        return Ok(());
    }
    let refused = |message: String| Err(ConfError::new(ErrorKind::OperationUnsupported, message));
    if *disk.iotune != IoTune::default() {
        let name = disk.name();
        return refused(format!(
            "block 'throttlefilters' can't be used together with 'iotune' for disk '{name}'"
        ));
    }
    if disk.device == DiskDevice::Cdrom {
        return refused("cdrom device with throttle filters isn't supported".to_owned());
    }
    let has = |name: &str| domain.throttle_groups.iter().any(|group| group.name() == name);
    match filters.iter().find(|filter| !has(&filter.group)) {
        Some(filter) => Err(ConfError::xml(format!("throttle group '{}' not found", filter.group))),
        None => Ok(()),
    }
}

/// A disk whose changes are thrown away.
fn check_transient(disk: &Disk) -> Result<()> {
    let (name, bus) = (disk.name(), bus(disk));
    if disk.transient.is_none() {
        return Ok(());
    }
    if disk.storage.is_empty() {
        return by_qemu(format!("transient disk '{name}' must not be empty"));
    }
    if disk.readonly {
        return by_qemu(format!("transient disk '{name}' must not be read-only"));
    }
    if disk.storage.kind() != StorageKind::File {
        return by_qemu(format!("transient disk supported only with 'file' type ({name})"));
    }
    if disk.device != DiskDevice::Disk {
        return by_qemu(format!("transient disk supported only with 'disk' device ({name})"));
    }
    if disk.shares_backing() && !matches!(bus, DiskBus::Usb | DiskBus::Virtio | DiskBus::Scsi) {
        return by_qemu(format!("disk bus '{bus}' doesn't support transiend disk backing image sharing"));
    }
    Ok(())
}

/// What the disk is, in general.
fn check_model(disk: &Disk) -> Result<()> {
    if disk.target.dev.is_none() {
        let source = disk.storage.path().unwrap_or_default();
        return Err(ConfError::new(ErrorKind::NoTarget, source));
    }
    sources::check(disk)?;
    let bus = bus(disk);
    if disk.device == DiskDevice::Lun {
        check_lun(disk)?;
    } else if disk.storage.reservations.is_some() {
        return unsupported("<reservations/> allowed only for lun devices");
    } else if disk.rawio.is_some() {
        return unsupported("rawio can be used only with device='lun'");
    } else if disk.sgio.is_some() {
        return unsupported("sgio can be used only with device='lun'");
    }
    if let Some(address) = &disk.info.address
        && matches!(bus, DiskBus::Ide | DiskBus::Fdc | DiskBus::Scsi | DiskBus::Sata)
        && !matches!(address, Address::Drive(_))
    {
        let (kind, name) = (address.tag(), disk.name());
        return unsupported(format!(
            "Invalid address type '{kind}' for the disk '{name}' with the bus type '{bus}'"
        ));
    }
    if bus != DiskBus::Virtio {
        check_not_virtio(disk, bus)?;
    }
    if disk.target.tray != Tray::Closed && !disk.device.is_removable() {
        return unsupported("tray is only valid for cdrom and floppy");
    }
    Ok(())
}

/// A disk that the guest speaks SCSI with.
fn check_lun(disk: &Disk) -> Result<()> {
    if let Some(remote) = disk.storage.remote() {
        if remote.protocol != NetworkProtocol::Iscsi {
            let protocol = remote.protocol;
            return unsupported(format!("disk device='lun' is not supported for protocol='{protocol}'"));
        }
    } else if !matches!(disk.storage.kind(), StorageKind::Block | StorageKind::Volume) {
        return unsupported("disk device='lun' is only valid for block type disk source");
    }
    if disk.format() != StorageFormat::Raw {
        return unsupported("disk device 'lun' must use 'raw' format");
    }
    if disk.storage.slice.is_some() {
        return unsupported("disk device 'lun' doesn't support storage slice");
    }
    if disk.storage_encryption().is_some_and(|it| it.format != EncryptionFormat::Default) {
        return unsupported("disk device 'lun' doesn't support encryption");
    }
    Ok(())
}

fn check_not_virtio(disk: &Disk, bus: DiskBus) -> Result<()> {
    if disk.model != DiskModel::Default {
        return unsupported(format!("disk model '{}' not supported for bus '{bus}'", disk.model));
    }
    let driver = &disk.driver;
    if driver.queues != 0 {
        return unsupported("queues attribute in disk driver element is only supported for virtio bus");
    }
    if driver.queue_size != 0 {
        return unsupported("queue_size attribute in disk driver is only supported for virtio bus");
    }
    if driver.event_idx.is_some() {
        return unsupported("disk event_idx mode supported only for virtio bus");
    }
    if driver.ioeventfd.is_some() {
        return unsupported("disk ioeventfd mode supported only for virtio bus");
    }
    super::devices::refuse_virtio_options(&driver.virtio)
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

fn check_texts(disk: &Disk) -> Result<()> {
    if let Some(vendor) = disk.vendor.as_deref() {
        if !is_printable(vendor) {
            return Err(ConfError::xml("disk vendor is not printable string"));
        }
        if vendor.len() > 8 {
            return unsupported("disk vendor is more than 8 characters");
        }
    }
    if let Some(product) = disk.product.as_deref() {
        let limit = if bus(disk) == DiskBus::Scsi { 16 } else { 40 };
        if !is_printable(product) {
            return Err(ConfError::xml("disk product is not printable string"));
        }
        if product.len() > limit {
            return unsupported(format!("disk product is more than {limit} characters"));
        }
    }
    if let Some(wwn) = disk.wwn.as_deref() {
        let digits = wwn.strip_prefix("0x").unwrap_or(wwn);
        if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ConfError::xml(format!("malformed wwn: {wwn}")));
        }
    }
    Ok(())
}

/// Names, and media that may be missing.
fn check_names(disk: &Disk) -> Result<()> {
    let (bus, name) = (bus(disk), disk.name());
    let floppy = disk.device == DiskDevice::Floppy;
    if floppy && bus != DiskBus::Fdc {
        return internal(format!("Invalid bus type '{bus}' for floppy disk"));
    }
    if !floppy && bus == DiskBus::Fdc {
        return internal(format!("Invalid bus type '{bus}' for disk"));
    }
    let scsi_disk = bus == DiskBus::Scsi && disk.device == DiskDevice::Disk;
    if disk.target.removable.is_some() && bus != DiskBus::Usb && !scsi_disk {
        return Err(ConfError::xml("removable is only valid for usb or scsi disks"));
    }
    if disk.storage.startup_policy == Some(StartupPolicy::Requisite) && !disk.device.is_removable() {
        return Err(ConfError::xml("disk startupPolicy 'requisite' is allowed only for cdrom or floppy"));
    }
    let hard_disk = matches!(disk.device, DiskDevice::Disk | DiskDevice::Lun);
    if hard_disk && !["hd", "sd", "vd", "xvd", "ubd"].iter().any(|prefix| name.starts_with(prefix)) {
        return internal(format!("Invalid harddisk device name: {name}"));
    }
    if floppy && !name.starts_with("fd") {
        return internal(format!("Invalid floppy device name: {name}"));
    }
    if disk.storage.is_empty() && disk.device == DiskDevice::Disk {
        return Err(ConfError::new(ErrorKind::NoSource, name));
    }
    if disk.driver.discard_no_unref == Some(OnOff::On) {
        if disk.format() != StorageFormat::Qcow2 {
            return unsupported("'discard_no_unref' only works with qcow2 disk format");
        }
        if disk.readonly {
            return unsupported("'discard_no_unref' is not compatible with read-only disk");
        }
    }
    Ok(())
}

/// What the guest sees, as QEMU can show it.
fn check_frontend(disk: &Disk, facts: &Facts<'_>) -> Result<()> {
    let (bus, name) = (bus(disk), disk.name());
    if let Some(geometry) = disk.geometry.as_deref()
        && geometry.cylinders > 0
        && geometry.heads > 0
        && geometry.sectors > 0
    {
        if matches!(bus, DiskBus::Usb | DiskBus::Sd) {
            return by_qemu(format!("CHS geometry can not be set for '{bus}' bus"));
        }
        if geometry.trans.is_some() && bus != DiskBus::Ide {
            return by_qemu(format!("CHS translation mode can only be set for 'ide' bus not '{bus}'"));
        }
    }
    if disk.device == DiskDevice::Cdrom && matches!(bus, DiskBus::Virtio | DiskBus::Sd) {
        return by_qemu(format!("disk type of '{name}' does not support ejectable media"));
    }
    if disk.driver.copy_on_read == Some(OnOff::On) {
        if disk.readonly {
            return by_qemu(format!("copy_on_read is not compatible with read-only disk '{name}'"));
        }
        if disk.device.is_removable() {
            return by_qemu(format!("copy_on_read is not supported with removable disk '{name}'"));
        }
    }
    if disk.wwn.is_some() && !matches!(bus, DiskBus::Ide | DiskBus::Scsi) {
        return by_qemu("Only ide and scsi disk support wwn");
    }
    if disk.vendor.is_some() && bus != DiskBus::Scsi {
        return by_qemu("Only scsi disk supports 'vendor'");
    }
    if disk.product.is_some() && !matches!(bus, DiskBus::Ide | DiskBus::Sata | DiskBus::Scsi) {
        return by_qemu("Only ide, sata and scsi disk supports 'product'");
    }
    if disk.device == DiskDevice::Lun {
        check_lun_device(disk, bus, facts)?;
    }
    if disk.target.rotation_rate != 0 {
        let refuse = |message: &str| Err(ConfError::internal(message).by_qemu_driver());
        if !matches!(bus, DiskBus::Scsi | DiskBus::Ide | DiskBus::Sata) {
            return refuse("rotation rate is only valid for SCSI/IDE/SATA bus");
        }
        if disk.device != DiskDevice::Disk {
            return refuse("rotation rate is only valid for disk device");
        }
    }
    Ok(())
}

fn check_lun_device(disk: &Disk, bus: DiskBus, facts: &Facts<'_>) -> Result<()> {
    if !matches!(bus, DiskBus::Scsi | DiskBus::Virtio) {
        return by_qemu(format!("disk device='lun' is not supported for bus='{bus}'"));
    }
    if bus == DiskBus::Virtio && !facts.has.contains(Has::VIRTIO_BLK_SCSI) {
        return by_qemu("This QEMU doesn't support SCSI emulation with 'virtio-blk' device");
    }
    if disk.wwn.is_some() {
        return by_qemu("Setting wwn is not supported for lun device");
    }
    if disk.vendor.is_some() || disk.product.is_some() {
        return by_qemu("Setting vendor or product is not supported for lun device");
    }
    Ok(())
}

fn check_address(disk: &Disk) -> Result<()> {
    let bus = bus(disk);
    let on_drive_bus = matches!(bus, DiskBus::Scsi | DiskBus::Ide | DiskBus::Fdc | DiskBus::Sata);
    let suits = match &disk.info.address {
        Some(Address::Drive(_)) => on_drive_bus,
        Some(Address::Usb(_)) | None => !on_drive_bus,
        Some(_) => !on_drive_bus && bus != DiskBus::Usb,
    };
    if !suits {
        return Err(ConfError::internal(format!("unexpected address type for {bus} disk")).by_qemu_driver());
    }
    if bus == DiskBus::Usb && disk.storage.is_empty() {
        return by_qemu("'usb' disk must not be empty");
    }
    if disk.readonly && disk.device == DiskDevice::Disk && matches!(bus, DiskBus::Ide | DiskBus::Sata) {
        return by_qemu(format!("readonly {bus} disks are not supported"));
    }
    Ok(())
}

fn check_options(domain: &Domain, disk: &Disk) -> Result<()> {
    let (bus, driver) = (bus(disk), &disk.driver);
    if driver.io == Some(DiskIo::Native) && !matches!(driver.cache, DiskCache::Directsync | DiskCache::None) {
        return by_qemu("io='native' needs either no disk cache or directsync cache mode");
    }
    if let Some(serial) = disk.serial.as_deref() {
        let safe =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b' ' | b'.' | b'+');
        if !serial.bytes().all(safe) {
            let message = format!("driver serial '{serial}' contains unsafe characters");
            return Err(ConfError::internal(message).by_qemu_driver());
        }
    }
    let iothread = driver.iothread.filter(|iothread| *iothread != 0);
    if iothread.is_none() && driver.iothreads.is_none() {
        return Ok(());
    }
    if iothread.is_some() && driver.iothreads.is_some() {
        return Err(ConfError::xml(
            "disk driver 'iothread' attribute can't be used together with 'iothreads' subelement",
        ));
    }
    if bus != DiskBus::Virtio {
        return by_qemu(format!("IOThreads not available for bus {bus} target {}", disk.name()));
    }
    if let Some(mapping) = &driver.iothreads {
        return iothreads::check_mapping(domain, mapping, driver.queues);
    }
    let Some(iothread) = iothread else { return Ok(()) };
    if !domain.iothreads.threads.iter().any(|thread| thread.id == iothread) {
        return by_qemu(format!("Disk iothread '{iothread}' not defined in iothreadid"));
    }
    Ok(())
}

/// No two disks have a name or a place in common.
pub(super) fn check_duplicates(devices: &Devices) -> Result<()> {
    let mut names: BTreeMap<&str, &Disk> = BTreeMap::new();
    let mut places = BTreeSet::new();
    for disk in &devices.disks {
        if let Some(other) = names.insert(disk.name(), disk) {
            let source = |disk: &Disk| disk.storage.path().unwrap_or("<null>").to_owned();
            return Err(ConfError::xml(format!(
                "target '{}' duplicated for disk sources '{}' and '{}'",
                disk.name(),
                source(other),
                source(disk)
            )));
        }
    }
    for disk in &devices.disks {
        let Some(Address::Drive(place)) = &disk.info.address else { continue };
        let key = (bus(disk), place.controller, place.bus, place.target, place.unit);
        if !places.insert(key) {
            let (_, controller, bus, target, unit) = key;
            let same = |other: &&Disk| {
                other.info.address == disk.info.address && other.target.bus == disk.target.bus
            };
            let first = devices.disks.iter().find(same).map_or("", Disk::name);
            return unsupported(format!(
                "Found duplicate drive address for disk with target name '{first}' controller='{controller}' \
                 bus='{bus}' target='{target}' unit='{unit}'"
            ));
        }
    }
    Ok(())
}
