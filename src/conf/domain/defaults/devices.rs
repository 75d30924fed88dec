//! What each device leaves out.

use super::lists::disk_index;
use super::{Facts, Has};
use crate::conf::devices::{
    AccessMode, Address, Backing, ChannelTarget, CharBackend, CharSource, Console, ConsoleType, Controller,
    ControllerKind, Devices, Disk, DiskBus, DiskDevice, DriveAddress, Input, InputBus, InputKind, Interface,
    InterfaceKind, ModelName, PanicModel, PciModel, Place, RngBackend, ScsiModel, Serial, SerialModel,
    SerialType, SnapshotLocation, SoundModel, SourceMode, Storage, StorageFormat, StorageKind, Tpm,
    TpmBackend, TpmModel, TpmVersion, UsbModel, Video, VideoKind,
};
use crate::conf::domain::Domain;
use crate::conf::storage::Encryption;
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, Result};
use crate::util::arch::Arch;

/// Every device in the order libvirt visits them.
pub(super) fn complete_all(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    number_isa_serials(&mut domain.devices)?;
    for at in 0..domain.devices.disks.len() {
        if let Some(disk) = domain.devices.disks.get_mut(at) {
            complete_disk(disk)?;
        }
    }
    for interface in &mut domain.devices.interfaces {
        complete_interface(interface, facts);
    }
    for sound in &mut domain.devices.sounds {
        if sound.model == SoundModel::Virtio {
            sound.streams = sound.streams.filter(|streams| *streams != 0).or(Some(2));
        }
    }
    for video in &mut domain.devices.videos {
        complete_one_video(video, facts);
    }
    super::plugged::complete(domain, facts.nvram_dir)?;
    complete_controllers(domain, facts)?;
    let arch = domain.arch();
    let devices = &mut domain.devices;
    complete_serials(devices, arch)?;
    for channel in &mut devices.channels {
        if let ChannelTarget::Virtio { name, .. } = &channel.target {
            forget_default_path(&mut channel.source, name.as_deref().unwrap_or_default());
        }
        complete_char(&mut channel.source);
    }
    for console in &mut devices.consoles {
        complete_console(console);
    }
    for input in &mut devices.inputs {
        complete_input(input, arch);
    }
    for rng in &mut devices.rngs {
        if let RngBackend::Random(source) = &mut rng.backend {
            source.path.get_or_insert_with(|| "/dev/random".into());
        }
    }
    for filesystem in &mut devices.filesystems {
        filesystem.validate()?;
        let served_elsewhere = filesystem.source.as_ref().is_some_and(|source| source.socket.is_some());
        if !served_elsewhere {
            filesystem.access_mode.get_or_insert(AccessMode::Passthrough);
        }
    }
    for tpm in &mut devices.tpms {
        complete_tpm(tpm, arch);
    }
    for vsock in &mut devices.vsocks {
        let auto = if vsock.cid.address.is_some() { YesNo::No } else { YesNo::Yes };
        vsock.cid.auto.get_or_insert(auto);
    }
    for panic in &mut devices.panics {
        if panic.model == PanicModel::Default && arch.is_x86() {
            panic.model = PanicModel::Isa;
        }
    }
    Ok(())
}

/// The oldest combination is the one that guests of old expect; all others are modern.
fn complete_tpm(tpm: &mut Tpm, arch: Arch) {
    let usual = if matches!(arch, Arch::Ppc64 | Arch::Ppc64le) { TpmModel::Spapr } else { TpmModel::Tis };
    let model = *tpm.model.get_or_insert(usual);
    if let TpmBackend::Emulator(emulator) = &mut tpm.backend {
        let old = model == TpmModel::Tis && arch.is_x86();
        emulator.version.get_or_insert(if old { TpmVersion::V1_2 } else { TpmVersion::V2_0 });
    }
}

fn complete_disk(disk: &mut Disk) -> Result<()> {
    complete_source(disk)?;
    disk.driver.name.get_or_insert_with(|| "qemu".into());
    if disk.storage.kind() != StorageKind::Volume {
        disk.driver.format = disk.driver.format.filter(|format| *format != StorageFormat::None);
        disk.driver.format.get_or_insert(StorageFormat::Raw);
    }
    if let Some(name) = disk.target.dev.as_deref().and_then(|name| name.strip_prefix("ioemu:")) {
        disk.target.dev = Some(name.into());
    }
    if disk.device == DiskDevice::Cdrom {
        disk.readonly = true;
    }
    let bus = *disk.target.bus.insert(bus_of(disk));
    if let (None, Some(name)) = (&disk.info.address, disk.target.dev.as_deref()) {
        disk.info.address = drive_address(bus, name)?.map(Address::Drive);
    }
    Ok(())
}

fn complete_source(disk: &mut Disk) -> Result<()> {
    for (twice, element) in [
        (disk.auth.is_some() && disk.storage.auth.is_some(), "auth"),
        (disk.encryption.is_some() && disk.storage.encryption.is_some(), "encryption"),
    ] {
        if twice {
            let message = format!("an <{element}> definition already found for disk source");
            return Err(ConfError::unsupported(message));
        }
    }
    // Nobody takes snapshots of what cannot be written; there is no need to say so.
    if disk.readonly || disk.device == DiskDevice::Cdrom {
        disk.snapshot = disk.snapshot.filter(|location| *location != SnapshotLocation::No);
    }
    let snapshot = &mut disk.snapshot;
    match &mut disk.storage.place {
        Place::Network(source) => source.complete_unit(),
        Place::Nvme(source) => _ = source.managed.get_or_insert(YesNo::Yes),
        Place::VhostUser(_) => _ = snapshot.get_or_insert(SnapshotLocation::No),
        _ => {}
    }
    let own = disk.encryption.as_deref_mut().into_iter();
    for encryption in own.chain(encryptions(&mut disk.storage)) {
        encryption.engine.get_or_insert_with(|| "qemu".into());
    }
    Ok(())
}

/// How the images of a chain are encrypted.
fn encryptions(storage: &mut Storage) -> Vec<&mut Encryption> {
    let mut all = Vec::new();
    let mut here = Some(storage);
    while let Some(storage) = here {
        all.extend(storage.encryption.as_deref_mut());
        here = match storage.backing.as_deref_mut() {
            Some(Backing::Layer(layer)) => Some(&mut layer.storage),
            _ => None,
        };
    }
    all
}

/// A disk's bus, said or by its name.
pub(super) fn bus_of(disk: &Disk) -> DiskBus {
    disk.target.bus.unwrap_or_else(|| default_bus(disk.device, disk.target.dev.as_deref()))
}

fn default_bus(device: DiskDevice, name: Option<&str>) -> DiskBus {
    if device == DiskDevice::Floppy {
        return DiskBus::Fdc;
    }
    let prefixes = [
        ("hd", DiskBus::Ide),
        ("sd", DiskBus::Scsi),
        ("vd", DiskBus::Virtio),
        ("xvd", DiskBus::Xen),
        ("ubd", DiskBus::Uml),
    ];
    let found = prefixes.iter().find(|(prefix, _)| name.is_some_and(|name| name.starts_with(prefix)));
    found.map_or(DiskBus::Ide, |(_, bus)| *bus)
}

/// The place on a drive controller that a name such as `sdb` stands for.
fn drive_address(bus: DiskBus, name: &str) -> Result<Option<DriveAddress>> {
    let Some(index) = disk_index(name) else {
        return Err(ConfError::xml(format!("Unknown disk name '{name}' and no address specified")));
    };
    let place = |per_controller: u32| DriveAddress {
        controller: index / per_controller,
        bus: 0,
        target: 0,
        unit: index % per_controller,
    };
    Ok(match bus {
        DiskBus::Scsi => Some(place(7)),
        DiskBus::Sata => Some(place(6)),
        DiskBus::Fdc => Some(place(2)),
        DiskBus::Ide => Some(DriveAddress { bus: (index % 4) / 2, unit: index % 2, ..place(4) }),
        DiskBus::Virtio | DiskBus::Xen | DiskBus::Usb | DiskBus::Uml | DiskBus::Sd => None,
    })
}

fn complete_interface(interface: &mut Interface, facts: &Facts<'_>) {
    let kind = interface.kind;
    if !matches!(kind, InterfaceKind::Network | InterfaceKind::Bridge | InterfaceKind::Ethernet) {
        interface.filterref = None;
    }
    if kind == InterfaceKind::Hostdev || !interface.is_virtio() {
        interface.backend.vhost = None;
    }
    if interface.model.name.is_some() || interface.kind == InterfaceKind::Hostdev {
        return;
    }
    let arm = facts.arch == Arch::Aarch64;
    let model = match interface.kind {
        InterfaceKind::Vdpa | InterfaceKind::Vhostuser => ModelName::Virtio,
        _ if arm => ModelName::Virtio,
        _ if facts.has.contains(Has::RTL8139) => ModelName::Rtl8139,
        _ if facts.has.contains(Has::E1000) => ModelName::E1000,
        _ if facts.has.contains(Has::VIRTIO_NET) => ModelName::Virtio,
        _ => ModelName::Rtl8139,
    };
    interface.model.name = Some(model);
}

fn complete_one_video(video: &mut Video, facts: &Facts<'_>) {
    let model = &mut video.model;
    if model.kind == VideoKind::Default {
        model.kind = if facts.arch == Arch::Aarch64 {
            VideoKind::Virtio
        } else if facts.has.contains(Has::CIRRUS) {
            VideoKind::Cirrus
        } else if facts.has.contains(Has::VGA) {
            VideoKind::Vga
        } else {
            VideoKind::Default
        };
    }
    if model.kind != VideoKind::None {
        model.heads.get_or_insert(1);
    }
    let memory_kib = match model.kind {
        VideoKind::Vga | VideoKind::Cirrus | VideoKind::Vmvga | VideoKind::Bochs => 16 * 1024,
        VideoKind::Xen => 4 * 1024,
        VideoKind::Qxl => 64 * 1024,
        _ => 0,
    };
    if model.kind == VideoKind::Qxl {
        if model.vgamem_kib == 0 {
            model.vgamem_kib = 16 * 1024;
        }
        if model.ram_kib == 0 {
            model.ram_kib = memory_kib;
        }
    }
    if model.vram_kib == 0 {
        model.vram_kib = memory_kib;
    }
    let round_up = |kib: u32| if kib == 0 { 0 } else { kib.checked_next_power_of_two().unwrap_or(kib) };
    model.ram_kib = round_up(model.ram_kib);
    model.vram_kib = round_up(model.vram_kib);
}

/// A guest with a screen has a video card; the first one is the primary.
pub(super) fn complete_video(domain: &mut Domain, facts: &Facts<'_>) {
    let devices = &mut domain.devices;
    if devices.videos.is_empty() && !devices.graphics.is_empty() {
        devices.videos.push(Video::default());
    }
    let Some(first) = devices.videos.first_mut() else { return };
    if first.model.kind == VideoKind::None {
        // Nothing but the name of a device that is not there.
        let alias = first.info.alias.take();
        *first = Video::default();
        first.model.kind = VideoKind::None;
        first.info.alias = alias;
    } else {
        first.model.primary = YesNo::Yes;
        complete_one_video(first, facts);
    }
}

fn complete_controllers(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    let i440fx = domain.is_i440fx();
    let express_expander = domain.is_q35() || domain.arch() == Arch::Aarch64;
    let cells = domain.cells().len();
    let x86 = domain.arch().is_x86();
    for controller in &mut domain.devices.controllers {
        complete_controller(controller, facts, x86)?;
        let index = controller.index();
        let Some(options) = controller.pci_options() else { continue };
        match options.model {
            Some(PciModel::PciRoot | PciModel::PcieRoot) if index != 0 => {
                return Err(
                    ConfError::xml("pci-root and pcie-root controllers should have index 0").by_qemu_driver()
                );
            }
            Some(PciModel::PciExpanderBus) if !i440fx => {
                let message = "pci-expander-bus controllers are only supported on 440fx-based machinetypes";
                return Err(ConfError::unsupported(message).by_qemu_driver());
            }
            Some(PciModel::PcieExpanderBus) if !express_expander => {
                let message = "pcie-expander-bus controllers are not supported with this machine type";
                return Err(ConfError::unsupported(message).by_qemu_driver());
            }
            Some(_) => {}
            None => return Err(ConfError::internal("PCI controller model was not set correctly")),
        }
        if let (Some(node), Some(model)) = (options.target.node, options.model)
            && node as usize >= cells
        {
            return Err(ConfError::xml(format!(
                "{model} with index {index} is configured for a NUMA node ({node}) not present in the domain's \
                 <cpu><numa> array ({cells})"
            ))
            .by_qemu_driver());
        }
    }
    Ok(())
}

fn complete_controller(controller: &mut Controller, facts: &Facts<'_>, x86: bool) -> Result<()> {
    let index = controller.index();
    if controller.driver.iothread != 0 && !matches!(controller.kind, ControllerKind::Scsi(_)) {
        return Err(ConfError::xml("'iothread' attribute only supported for virtio scsi controllers"));
    }
    match &mut controller.kind {
        ControllerKind::Scsi(model) => {
            if matches!(model, None | Some(ScsiModel::Auto)) {
                *model = if facts.has.contains(Has::LSI) {
                    Some(ScsiModel::Lsilogic)
                } else if facts.has.contains(Has::VIRTIO_SCSI) {
                    Some(ScsiModel::VirtioScsi)
                } else {
                    let message = format!("Unable to determine model for SCSI controller idx={index}");
                    return Err(ConfError::internal(message).by_qemu_driver());
                };
            }
            if controller.driver.iothread != 0 && !model.is_some_and(ScsiModel::is_virtio) {
                return Err(ConfError::xml(
                    "'iothread' attribute only supported for virtio scsi controllers",
                ));
            }
        }
        ControllerKind::Usb(options) => {
            if options.model.is_none() && x86 && facts.has.contains(Has::PIIX3_UHCI) {
                options.model = Some(UsbModel::Piix3Uhci);
            } else if options.model.is_none() && facts.has.contains(Has::QEMU_XHCI) {
                options.model = Some(UsbModel::QemuXhci);
            }
            match options.model {
                Some(UsbModel::Qusb1 | UsbModel::Qusb2) => {
                    let message = "USB controller model type 'qusb1' or 'qusb2' is not supported in qemu";
                    return Err(ConfError::unsupported(message));
                }
                Some(model @ (UsbModel::NecXhci | UsbModel::QemuXhci))
                    if options.ports.is_some_and(|ports| ports > 15) =>
                {
                    let message = format!("'{model}' controller only supports up to '15' ports");
                    return Err(ConfError::unsupported(message).by_qemu_driver());
                }
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// As many ISA serial ports as a PC has.
const MAX_ISA_SERIALS: u32 = 4;

/// Ports of serial ports that say they are ISA.
fn number_isa_serials(devices: &mut Devices) -> Result<()> {
    let isa = |serial: &&Serial| serial.target.kind == Some(SerialType::Isa);
    let ports: Vec<Option<u32>> =
        devices.serials.iter().filter(isa).map(|serial| serial.target.port).collect();
    let mut used = [false; MAX_ISA_SERIALS as usize];
    for port in ports.iter().flatten() {
        match used.get_mut(*port as usize) {
            Some(used @ false) => *used = true,
            Some(true) => {
                return Err(ConfError::internal(format!("target port '{port}' already allocated")));
            }
            None => return Err(too_many_isa_serials()),
        }
    }
    if ports.len() > used.len() {
        return Err(too_many_isa_serials());
    }
    let mut free = (0u32..).zip(used).filter(|(_, used)| !used).map(|(port, _)| port);
    let unnumbered = devices
        .serials
        .iter_mut()
        .filter(|serial| isa(&&**serial))
        .filter(|serial| serial.target.port.is_none());
    for (serial, port) in unnumbered.zip(&mut free) {
        serial.target.port = Some(port);
    }
    Ok(())
}

fn too_many_isa_serials() -> ConfError {
    ConfError::internal(format!("Maximum supported number of ISA serial ports is '{MAX_ISA_SERIALS}'"))
}

fn complete_serials(devices: &mut Devices, arch: Arch) -> Result<()> {
    let mut highest = devices.serials.iter().filter_map(|serial| serial.target.port).max();
    for serial in &mut devices.serials {
        complete_serial(serial, arch)?;
        let next = highest.map_or(0, |port| port.saturating_add(1));
        let port = *serial.target.port.get_or_insert(next);
        highest = highest.max(Some(port));
    }
    for parallel in &mut devices.parallels {
        complete_char(&mut parallel.source);
    }
    Ok(())
}

fn complete_serial(serial: &mut Serial, arch: Arch) -> Result<()> {
    let target = &mut serial.target;
    if target.kind == Some(SerialType::IsaDebug) && !arch.is_x86() {
        return Err(ConfError::unsupported("isa-debug serial type only valid on x86 architecture"));
    }
    if matches!(target.kind, None | Some(SerialType::Isa)) {
        target.kind = match arch {
            Arch::Aarch64 => Some(SerialType::System),
            arch if arch.is_x86() => Some(SerialType::Isa),
            _ => None,
        };
    }
    if let Some(kind) = target.kind {
        target.model.get_or_insert(match kind {
            SerialType::Isa => SerialModel::IsaSerial,
            SerialType::Usb => SerialModel::UsbSerial,
            SerialType::Pci => SerialModel::PciSerial,
            SerialType::SpaprVio => SerialModel::SpaprVty,
            SerialType::System => SerialModel::Pl011,
            SerialType::Sclp => SerialModel::Sclpconsole,
            SerialType::IsaDebug => SerialModel::IsaDebugcon,
        });
    }
    complete_char(&mut serial.source);
    Ok(())
}

/// A socket's path that a daemon chose for a running guest is none of the definition's: the next start chooses
/// again. Such a path is `…/qemu/channel/ID-GUEST/NAME`, or one of its older forms.
fn forget_default_path(source: &mut CharSource, name: &str) {
    let CharBackend::Unix(socket) = &mut source.backend else { return };
    let Some((above, rest)) = socket.path.as_deref().and_then(|path| path.rsplit_once("/channel/")) else {
        return;
    };
    let Some(guest) = rest.strip_prefix("target/").unwrap_or(rest).strip_suffix(name) else { return };
    let chosen = match guest.strip_suffix('/') {
        Some(directory) => {
            let mark = directory.split_once('-').map(|(mark, rest)| (mark, !rest.contains('/')));
            mark.is_some_and(|(mark, one)| {
                one && (mark == "domain"
                    || (!mark.is_empty() && mark.bytes().all(|byte| byte.is_ascii_digit())))
            })
        }
        None => guest.len() > 1 && guest.ends_with('.') && !guest.contains('/'),
    };
    if chosen && above.ends_with("/qemu") {
        socket.path = None;
    }
}

/// A socket whose path the daemon chooses is one it listens on.
fn complete_char(source: &mut CharSource) {
    if let CharBackend::Unix(socket) = &mut source.backend
        && socket.path.is_none()
    {
        socket.mode = SourceMode::Bind;
    }
}

fn complete_console(console: &mut Console) {
    console.target.kind.get_or_insert(ConsoleType::Serial);
    complete_char(&mut console.source);
}

fn complete_input(input: &mut Input, arch: Arch) {
    input.bus.get_or_insert(match input.kind {
        InputKind::Mouse | InputKind::Keyboard if arch.is_x86() => InputBus::Ps2,
        InputKind::Passthrough => InputBus::Virtio,
        InputKind::Evdev => InputBus::None,
        InputKind::Mouse | InputKind::Keyboard | InputKind::Tablet => InputBus::Usb,
    });
}

/// Devices that came after all others were completed.
pub(super) fn complete_late_arrivals(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    let arch = domain.arch();
    if let Some(serial) = domain.devices.serials.first_mut() {
        complete_serial(serial, arch)?;
        serial.target.port.get_or_insert(0);
    }
    for controller in &mut domain.devices.controllers {
        complete_controller(controller, facts, arch.is_x86())?;
    }
    Ok(())
}
