//! Which devices come and go, and what is said of those that do not. The sentences are libvirt's.

use super::flags::Impact;
use super::update_rules::check_compatible;
use crate::conf::devices::{
    Address, ConsoleType, Controller, ControllerKind, ControllerType, DeviceInfo, Devices, Disk, DiskBus,
    DiskDevice, HostdevSource, InputBus, InputKind, MemoryDevice, MemoryModel, Raw, ScsiPlace, UsbModel,
    Watchdog, WatchdogModel, is_fixed_in_definitions, is_fixed_in_guests,
};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};

/// Whether devices of a kind come and go at all.
pub(super) fn refuse_kind(what: &str, kind: &str, impact: Impact) -> Result<()> {
    for (whose, is_fixed, name) in [
        (Impact::CONFIG, is_fixed_in_definitions(kind), "persistent"),
        (Impact::LIVE, is_fixed_in_guests(kind), "live"),
    ] {
        if impact.contains(whose) && is_fixed {
            let sentence = format!("{name} {what} of device '{kind}' is not supported");
            return Err(Error::operation_unsupported(sentence));
        }
    }
    Ok(())
}

/// Whether a domain, running or not, has a place for devices.
pub(super) fn check_attach(definition: &Domain, new: &Devices) -> Result<()> {
    let has_usb = definition.devices.controllers.iter().any(|controller| match &controller.kind {
        ControllerKind::Usb(options) => options.model != Some(UsbModel::None),
        _ => false,
    });
    if !has_usb && is_usb(new) {
        let sentence = "Device configuration is not compatible: Domain has no USB bus support";
        return Err(Error::config_unsupported(sentence));
    }
    for (_, info) in new.infos() {
        check_compatible(definition, None, info)?;
    }
    if new.memories.is_empty() {
        return Ok(());
    }
    if definition.cells().is_empty() && new.memories.iter().any(|memory| memory.target.node.is_some()) {
        return Err(Error::xml_detail("can't add memory backend as guest has no NUMA nodes configured"));
    }
    let memory = &definition.memory;
    let max = memory.max.filter(|_| definition.has_memory_hotplug());
    let Some(max) = max else {
        let sentence = "cannot use/hotplug a memory device when domain 'maxMemory' is not defined";
        return Err(Error::config_unsupported(sentence));
    };
    let size_kib: u64 = new.memories.iter().map(|memory| memory.target.size_kib).fold(0, u64::saturating_add);
    match memory.total_kib.saturating_add(size_kib) > max.kib {
        true => Err(Error::config_unsupported(format!(
            "Attaching memory device with size '{size_kib}' would exceed domain's maxMemory config size '{}'",
            max.kib
        ))),
        false => Ok(()),
    }
}

/// Whether the board of a running guest has slots left for memory.
pub(super) fn check_slots(live: &Domain, new: &Devices) -> Result<()> {
    let needed = live.devices.memories.iter().chain(&new.memories).filter(|it| it.model.has_slot()).count();
    let slots = live.memory.max.and_then(|max| max.slots).unwrap_or(0);
    match new.memories.iter().any(|it| it.model.has_slot()) && needed as u64 > u64::from(slots) {
        true => Err(Error::config_unsupported(format!(
            "count of memory devices requiring memory slots '{needed}' exceeds slots count '{slots}'"
        ))),
        false => Ok(()),
    }
}

fn is_usb(new: &Devices) -> bool {
    let on_usb = |info: &DeviceInfo| matches!(info.address, Some(Address::Usb(_)));
    new.disks.iter().any(|disk| disk.target.bus == Some(DiskBus::Usb))
        || new.inputs.iter().any(|input| input.bus == Some(InputBus::Usb))
        || new.hostdevs.iter().any(|hostdev| matches!(hostdev.source, HostdevSource::Usb(_)))
        || !new.redirdevs.is_empty()
        || !new.hubs.is_empty()
        || new.infos().any(|(_, info)| on_usb(info))
}

/// Refuses what a definition has already.
pub(super) fn refuse_twins(definition: &Domain, new: &Devices) -> Result<()> {
    let invalid = |sentence: String| Err(Error::operation_invalid(sentence));
    let devices = &definition.devices;
    let has_disk = |disk: &&Disk| devices.disks.iter().any(|it| it.target.dev == disk.target.dev);
    if let Some(disk) = new.disks.iter().find(has_disk) {
        return invalid(format!("target {} already exists", disk.name()));
    }
    for controller in new.controllers.iter().filter(|it| it.index.is_some()) {
        let is_it =
            |it: &&Controller| it.kind.bus() == controller.kind.bus() && it.index() == controller.index();
        if devices.controllers.iter().any(|it| is_it(&it)) {
            return invalid(format!("controller index='{}' already exists", controller.index()));
        }
    }
    let tags = || devices.filesystems.iter().map(|it| &it.target);
    if new.filesystems.iter().any(|it| tags().any(|tag| *tag == it.target)) {
        return invalid("Target already exists".to_owned());
    }
    let mut rest = devices.clone();
    let again = rest.take_matching(&Devices {
        hostdevs: new.hostdevs.clone(),
        shmems: new.shmems.clone(),
        watchdogs: new.watchdogs.clone(),
        leases: new.leases.clone(),
        ..Devices::default()
    });
    if let Some(lease) = again.leases.first() {
        let (lockspace, key) = name_of_lease(lease);
        return invalid(format!("Lease {key} in lockspace {lockspace} already exists"));
    }
    if again.infos().next().is_some() {
        return invalid("device is already in the domain configuration".to_owned());
    }
    let alone = |it: &&Watchdog| {
        it.model != WatchdogModel::I6300esb && devices.watchdogs.iter().any(|other| other.model == it.model)
    };
    if let Some(watchdog) = new.watchdogs.iter().find(alone) {
        let model = watchdog.model;
        return invalid(format!("domain can only have one watchdog with model '{model}'"));
    }
    if !new.vsocks.is_empty() && !devices.vsocks.is_empty() {
        return invalid("domain already has a vsock device".to_owned());
    }
    if !new.iommus.is_empty() && !devices.iommus.is_empty() {
        return invalid("domain already has an iommu device".to_owned());
    }
    let has_slot = |it: &&MemoryDevice| it.model.has_slot();
    let slots = definition.memory.max.and_then(|max| max.slots).unwrap_or(0);
    if new.memories.iter().any(|it| has_slot(&it)) && devices.memories.len() as u64 == u64::from(slots) {
        return Err(Error::config_unsupported("no free memory device slot available"));
    }
    Ok(())
}

fn name_of_lease(lease: &Raw) -> (&str, &str) {
    let text = |name: &str| lease.child(name).and_then(Raw::text).unwrap_or_default();
    (text("lockspace"), text("key"))
}

/// What is said of a device that is not there.
pub(super) fn missing(kind: &str, device: &Devices, whose: Impact) -> Error {
    if whose.contains(Impact::CONFIG) {
        missing_in_definition(kind, device)
    } else {
        missing_in_guest(kind, device)
    }
}

fn missing_in_definition(kind: &str, device: &Devices) -> Error {
    if let Some(disk) = device.disks.first() {
        return Error::device_missing(format!("no target device {}", disk.name()));
    }
    if let Some(lease) = device.leases.first() {
        let (lockspace, key) = name_of_lease(lease);
        return Error::device_missing(format!("Lease {key} in lockspace {lockspace} does not exist"));
    }
    Error::device_missing(match kind {
        "filesystem" => "no matching filesystem device was found",
        "rng" => "no matching RNG device was found",
        "memory" => "matching memory device was not found",
        "redirdev" => "no matching redirdev was not found",
        "shmem" => "matching shmem device was not found",
        "watchdog" => "no matching watchdog was found",
        "input" => "matching input device not found",
        "vsock" => return Error::operation_failed("matching vsock device not found"),
        "iommu" => return Error::operation_failed("matching iommu device not found"),
        _ => "device not present in domain configuration",
    })
}

fn missing_in_guest(kind: &str, device: &Devices) -> Error {
    if let Some(disk) = device.disks.first() {
        return Error::device_missing(format!("disk {} not found", disk.name()));
    }
    if let Some(controller) = device.controllers.first() {
        let (bus, index) = (controller.kind.bus(), controller.index());
        return Error::device_missing(format!("controller {bus}:{index} not found"));
    }
    if let Some(hostdev) = device.hostdevs.first() {
        return missing_hostdev(&hostdev.source);
    }
    if let Some(memory) = device.memories.first() {
        let model = memory.model;
        return Error::device_missing(format!(
            "model '{model}' memory device not present in the domain configuration"
        ));
    }
    if let Some(shmem) = device.shmems.first() {
        let model = shmem.model;
        return Error::device_missing(format!(
            "model '{model}' shmem device not present in domain configuration"
        ));
    }
    if let Some(lease) = device.leases.first() {
        let (lockspace, key) = name_of_lease(lease);
        return Error::invalid_arg(format!("Lease {key} in lockspace {lockspace} does not exist"));
    }
    match kind {
        "rng" => Error::device_missing("model 'random' RNG device not present in domain configuration"),
        "watchdog" => Error::operation_invalid("no matching watchdog was found"),
        "redirdev" => Error::operation_invalid("no matching redirdev was not found"),
        "input" => Error::device_missing("matching input device not found"),
        "vsock" => Error::device_missing("matching vsock device not found"),
        "filesystem" => Error::device_missing("matching filesystem not found"),
        "serial" | "parallel" | "console" | "channel" => {
            Error::device_missing(format!("chr type '{kind}' device not present in domain configuration"))
        }
        _ => Error::device_missing(format!("matching {kind} device not found")),
    }
}

fn missing_hostdev(source: &HostdevSource) -> Error {
    Error::device_missing(match source {
        HostdevSource::Pci(pci) => {
            let at = &pci.address;
            format!(
                "host pci device {:04x}:{:02x}:{:02x}.{} not found",
                at.domain, at.bus, at.slot, at.function
            )
        }
        HostdevSource::Usb(usb) if usb.bus != 0 && usb.device != 0 => {
            format!("host usb device {:03}.{:03} not found", usb.bus, usb.device)
        }
        HostdevSource::Usb(usb) => {
            let (vendor, product) = usb.ids.unwrap_or_default();
            format!("host usb device vendor=0x{vendor:04x} product=0x{product:04x} not found")
        }
        HostdevSource::Scsi(scsi) => match &scsi.place {
            ScsiPlace::Host { adapter, bus, target, unit, .. } => {
                format!("host scsi device {adapter}:{bus}:{target}.{unit} not found")
            }
            ScsiPlace::Iscsi { source, .. } => {
                format!("host scsi iSCSI path {} not found", source.name.as_deref().unwrap_or_default())
            }
        },
        HostdevSource::Mdev(mdev) => format!("mediated device '{}' not found", mdev.uuid),
        HostdevSource::VhostScsi(_) | HostdevSource::Capabilities { .. } => {
            "matching hostdev device not found".to_owned()
        }
    })
}

/// What keeps a device in a running guest.
pub(super) fn refuse_unplugging(live: &Domain, device: &Devices) -> Result<()> {
    let unsupported = |sentence: String| Err(Error::operation_unsupported(sentence));
    for disk in &device.disks {
        let bus = disk.target.bus;
        match (disk.device, bus) {
            (DiskDevice::Disk | DiskDevice::Lun, Some(DiskBus::Virtio | DiskBus::Usb | DiskBus::Scsi)) => {}
            (DiskDevice::Disk | DiskDevice::Lun, _) => {
                return unsupported("This type of disk cannot be hot unplugged".to_owned());
            }
            (DiskDevice::Cdrom, Some(DiskBus::Usb | DiskBus::Scsi)) => {}
            (kind, _) => return unsupported(format!("disk device type '{kind}' cannot be detached")),
        }
    }
    for controller in &device.controllers {
        let bus = controller.kind.bus();
        if bus != ControllerType::Scsi {
            return unsupported(format!("'{bus}' controller cannot be hot unplugged."));
        }
        let is_on = |address: Option<&Address>| matches!(address, Some(Address::Drive(drive)) if drive.controller == controller.index());
        let disks = live.devices.disks.iter().filter(|disk| disk.target.bus == Some(DiskBus::Scsi));
        let hostdevs = live.devices.hostdevs.iter().map(|hostdev| &hostdev.info);
        if disks.map(|disk| &disk.info).chain(hostdevs).any(|info| is_on(info.address.as_ref())) {
            return Err(Error::operation_failed("device cannot be detached: device is busy"));
        }
    }
    if let Some(watchdog) = device.watchdogs.iter().find(|it| it.model != WatchdogModel::I6300esb) {
        let model = watchdog.model;
        return unsupported(format!("hot unplug of watchdog of model {model} is not supported"));
    }
    for input in device.inputs.iter().filter(|input| input.kind != InputKind::Evdev) {
        if !matches!(input.bus, Some(InputBus::Usb | InputBus::Virtio | InputBus::None)) {
            let bus = input.bus.map_or("default", InputBus::as_str);
            return unsupported(format!("input device on bus '{bus}' cannot be detached"));
        }
    }
    if device.filesystems.iter().any(|filesystem| !filesystem.is_virtiofs()) {
        return unsupported("only virtiofs filesystems can be hotplugged".to_owned());
    }
    let is_serial = |kind: Option<ConsoleType>| matches!(kind, None | Some(ConsoleType::Serial));
    // The serial port beside it goes by itself.
    if device.serials.is_empty() && device.consoles.iter().any(|it| is_serial(it.target.kind)) {
        let sentence = "detaching of <console/> is unsupported. Try corresponding <serial/> instead";
        return unsupported(sentence.to_owned());
    }
    if device.memories.iter().any(|memory| memory.model == MemoryModel::SgxEpc) {
        return unsupported("live detach of device 'memory' is not supported".to_owned());
    }
    Ok(())
}
