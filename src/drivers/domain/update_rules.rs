//! What of a device must stay as it is while its guest runs. The sentences are libvirt's.

use crate::conf::devices::{
    Address, DeviceInfo, Disk, DiskCache, DiskDriver, Geometry, Interface, InterfaceKind, InterfaceSource,
    IoTune, ListenPlace, Tray, VirtioNetDriver, VirtioOptions, Vnc,
};
use crate::conf::domain::Domain;
use crate::error::{Code, Error, Result};

/// What no device may change, whatever its kind.
pub(super) fn check_compatible(live: &Domain, old: Option<&DeviceInfo>, new: &DeviceInfo) -> Result<()> {
    let denied = |sentence: &'static str| Err(Error::new(Code::OPERATION_DENIED, sentence));
    if let Some(old) = old {
        if new.alias.is_some() && old.alias.is_some() && new.alias != old.alias {
            return denied("changing device alias is not allowed");
        }
        if new.acpi_index != old.acpi_index {
            return denied("changing device 'acpi index' is not allowed");
        }
    }
    let Some(boot) = &new.boot else { return Ok(()) };
    if !live.os.boot.is_empty() {
        let sentence = "per-device boot elements cannot be used together with os/boot elements";
        return Err(Error::config_unsupported(sentence));
    }
    let order = boot.order;
    let has_it = |info: &DeviceInfo| info.boot.as_ref().is_some_and(|boot| boot.order == order);
    let others = live.devices.infos().map(|(_, info)| info);
    let mut others = others.filter(|info| old.is_none_or(|old| info.alias != old.alias));
    match others.any(has_it) {
        true => {
            Err(Error::config_unsupported(format!("boot order {order} is already used by another device")))
        }
        false => Ok(()),
    }
}

/// What of a disk must be as it is, mostly where the description says anything about it.
pub(super) fn check_disk(old: &Disk, new: &Disk) -> Result<()> {
    let (from, to) = (&old.blockio, &new.blockio);
    let cylinders = new.geometry.as_deref().filter(|it| it.cylinders > 0 && it.heads > 0 && it.sectors > 0);
    let geometry = |differs: fn(&Geometry) -> u32| {
        cylinders.is_some_and(|new| old.geometry.as_deref().is_none_or(|old| differs(old) != differs(new)))
    };
    let trans = |disk: &Disk| disk.geometry.as_ref().and_then(|geometry| geometry.trans);
    let identity = [
        ("device", old.device != new.device),
        ("bus", differs(&old.target.bus, &new.target.bus)),
        ("tray", new.target.tray == Tray::Open && old.target.tray != Tray::Open),
        ("removable", differs(&old.target.removable, &new.target.removable)),
        ("geometry cylinders", geometry(|it| it.cylinders)),
        ("geometry heads", geometry(|it| it.heads)),
        ("geometry sectors", geometry(|it| it.sectors)),
        ("BIOS-translation-modus", cylinders.is_some() && differs(&trans(old), &trans(new))),
        ("blockio logical_block_size", from.logical_block_size != to.logical_block_size),
        ("blockio physical_block_size", from.physical_block_size != to.physical_block_size),
        ("blockio discard_granularity", from.discard_granularity != to.discard_granularity),
    ];
    let names = [
        ("serial", differs(&old.serial, &new.serial)),
        ("wwn", differs(&old.wwn, &new.wwn)),
        ("vendor", differs(&old.vendor, &new.vendor)),
        ("product", differs(&old.product, &new.product)),
    ];
    let boot = |disk: &Disk| disk.info.boot.as_ref().map(|boot| boot.order);
    let transient = |disk: &Disk| disk.transient.as_ref().map(|_| ());
    let rest = [
        ("transient", differs(&transient(old), &transient(new))),
        ("address", differs(&old.info.address, &new.info.address)),
        ("boot order", differs(&boot(old), &boot(new))),
        ("rawio", differs(&old.rawio, &new.rawio)),
        ("sgio", differs(&old.sgio, &new.sgio)),
        ("discard", differs(&old.driver.discard, &new.driver.discard)),
        ("iothread", differs(&old.driver.iothread, &new.driver.iothread)),
    ];
    let changes = identity.into_iter().chain(changed_limits(&old.iotune, &new.iotune)).chain(names);
    let mut changes = changes.chain(changed_driver(&old.driver, &new.driver)).chain(rest);
    if let Some((field, _)) = changes.find(|(_, differs)| *differs) {
        return refuse_field(field);
    }
    if old.driver.iothreads != new.driver.iothreads {
        let sentence = "cannot modify '<iothreads>' configuration of the disk";
        return Err(Error::operation_unsupported(sentence));
    }
    let last = [
        ("backenddomain", differs(&old.backend_domain, &new.backend_domain)),
        ("readonly", new.readonly && !old.readonly),
        ("shared", new.shareable && !old.shareable),
        ("reservations", old.storage.reservations != new.storage.reservations),
    ];
    match last.iter().find(|(_, differs)| *differs) {
        Some((field, _)) => refuse_field(field),
        None => Ok(()),
    }
}

fn refuse_field(field: &str) -> Result<()> {
    Err(Error::operation_unsupported(format!("cannot modify field '{field}' of the disk")))
}

/// What is not said stays.
fn differs<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
    new.is_some() && old != new
}

fn changed_driver(old: &DiskDriver, new: &DiskDriver) -> [(&'static str, bool); 8] {
    [
        ("cache", new.cache != DiskCache::Default && old.cache != new.cache),
        ("error_policy", differs(&old.error_policy, &new.error_policy)),
        ("rerror_policy", differs(&old.rerror_policy, &new.rerror_policy)),
        ("io", differs(&old.io, &new.io)),
        ("ioeventfd", differs(&old.ioeventfd, &new.ioeventfd)),
        ("event_idx", differs(&old.event_idx, &new.event_idx)),
        ("copy_on_read", differs(&old.copy_on_read, &new.copy_on_read)),
        ("discard_no_unref", differs(&old.discard_no_unref, &new.discard_no_unref)),
    ]
}

fn changed_limits(old: &IoTune, new: &IoTune) -> Vec<(&'static str, bool)> {
    macro_rules! fields {
        ($($field:ident),*) => {
            vec![$((
                concat!("blkdeviotune ", stringify!($field)),
                new.$field.is_some_and(|limit| limit != 0 && old.$field.unwrap_or(0) != limit),
            )),*]
        };
    }
    let mut changes = fields!(
        total_bytes_sec,
        read_bytes_sec,
        write_bytes_sec,
        total_iops_sec,
        read_iops_sec,
        write_iops_sec,
        total_bytes_sec_max,
        read_bytes_sec_max,
        write_bytes_sec_max,
        total_iops_sec_max,
        read_iops_sec_max,
        write_iops_sec_max,
        size_iops_sec
    );
    changes.push(("blkdeviotune group name", differs(&old.group_name, &new.group_name)));
    changes
}

/// Refuses what no running guest's card can change, and completes what the description leaves out.
pub(super) fn complete_interface(old: &Interface, mut new: Interface) -> Result<Interface> {
    let refused = |sentence: String| Err(Error::operation_unsupported(sentence));
    if matches!(old.kind, InterfaceKind::Hostdev | InterfaceKind::Vdpa) {
        return refused(format!("cannot change config of '{}' network interface type", old.kind));
    }
    new.mac.address = new.mac.address.or(old.mac.address);
    new.model.name = new.model.name.or_else(|| old.model.name.clone());
    let model = |card: &Interface| card.model().map_or("(null)", |model| model.as_str()).to_owned();
    if model(old) != model(&new) {
        let (from, to) = (model(old), model(&new));
        return refused(format!("cannot modify network device model from {from} to {to}"));
    }
    let (from, to) = (&old.model.driver, &new.model.driver);
    let with_options_of_new = VirtioNetDriver { virtio: to.virtio.clone(), ..VirtioNetDriver::clone(from) };
    if old.is_virtio() && with_options_of_new != **to {
        return refused("cannot modify virtio network device driver attributes".to_owned());
    }
    if from.virtio != to.virtio && (old.is_virtio() || to.virtio != VirtioOptions::default()) {
        return refused("cannot modify virtio network device driver options".to_owned());
    }
    if old.script != new.script {
        return refused("cannot modify network device script attribute".to_owned());
    }
    new.target.dev = new.target.dev.or_else(|| old.target.dev.clone());
    if old.target.dev != new.target.dev {
        return refused("cannot modify network device tap name".to_owned());
    }
    complete_place(&old.info, &mut new.info)?;
    if old.mtu != new.mtu {
        return refused("cannot modify MTU".to_owned());
    }
    // The daemon itself has said where passt is.
    new.backend.socket = new.backend.socket.or_else(|| old.backend.socket.clone());
    if old.backend != new.backend {
        return refused("cannot modify network device backend settings".to_owned());
    }
    if matches!(new.kind, InterfaceKind::Hostdev | InterfaceKind::Vdpa) {
        return refused(format!("cannot change network interface type to '{}'", new.kind));
    }
    let kind = new.kind;
    let is_on_bridge = |card: &Interface| matches!(card.source, InterfaceSource::Bridge { .. });
    let reconnects = old.tune.sndbuf != new.tune.sndbuf
        || (old.kind != kind && !(is_on_bridge(old) && is_on_bridge(&new)))
        || (!is_on_bridge(&new) && old.source != new.source);
    if reconnects || matches!(kind, InterfaceKind::Vhostuser | InterfaceKind::Null | InterfaceKind::Vds) {
        return refused(format!("unable to change config on '{kind}' network type"));
    }
    Ok(new)
}

fn complete_place(old: &DeviceInfo, new: &mut DeviceInfo) -> Result<()> {
    let refused = |sentence: &'static str| Err(Error::operation_unsupported(sentence));
    let is_empty = match &new.address {
        Some(Address::Pci(address)) => address.is_empty(),
        address => address.is_none(),
    };
    if is_empty {
        new.address.clone_from(&old.address);
    }
    if old.address != new.address {
        return refused("cannot modify network device guest PCI address");
    }
    new.alias = new.alias.take().or_else(|| old.alias.clone());
    let rom =
        |info: &DeviceInfo| info.rom.clone().map(|rom| (rom.bar, rom.file, rom.enabled)).unwrap_or_default();
    let ((bar, file, enabled), (new_bar, new_file, new_enabled)) = (rom(old), rom(new));
    if bar != new_bar {
        return refused("cannot modify network device rom bar setting");
    }
    if file != new_file {
        return refused("cannot modify network rom file");
    }
    let boot = |info: &DeviceInfo| info.boot.as_ref().map(|boot| boot.order);
    if boot(old) != boot(new) {
        return refused("cannot modify network device boot index setting");
    }
    if enabled != new_enabled {
        return refused("cannot modify network device rom enabled setting");
    }
    Ok(())
}

pub(super) fn check_vnc(old: &Vnc, new: &Vnc) -> Result<()> {
    let refused = |sentence: &'static str| Err(Error::operation_unsupported(sentence));
    if old.listens.len() != new.listens.len() {
        return refused("cannot change the number of listen addresses on 'vnc' graphics");
    }
    for (old, new) in old.listens.iter().zip(&new.listens) {
        match (&old.place, &new.place) {
            (ListenPlace::Address { address: old }, ListenPlace::Address { address: new }) if old != new => {
                return refused("cannot change listen address setting on 'vnc' graphics");
            }
            (ListenPlace::Network { network: old, .. }, ListenPlace::Network { network: new, .. })
                if old != new =>
            {
                return refused("cannot change listen address setting on 'vnc' graphics");
            }
            (ListenPlace::Socket { socket: old }, ListenPlace::Socket { socket: new }) if old != new => {
                return refused("cannot change listen socket setting on 'vnc' graphics");
            }
            (old, new) if std::mem::discriminant(old) != std::mem::discriminant(new) => {
                return refused("cannot change the type of listen address on 'vnc' graphics");
            }
            _ => {}
        }
    }
    if old.autoport != new.autoport || (!new.autoport && old.port != new.port) {
        return refused("cannot change port settings on vnc graphics");
    }
    if old.keymap != new.keymap {
        return refused("cannot change keymap setting on vnc graphics");
    }
    Ok(())
}
