//! What each device needs from the bus it is plugged into.

use super::Connect;
use crate::conf::Result;
use crate::conf::devices::{
    BalloonModel, ControllerKind, DeviceInfo, Devices, DiskBus, DiskModel, Filesystem, FilesystemDriverType,
    FilesystemModel, HostdevSource, InputBus, InputModel, Interface, InterfaceKind, InterfaceSource,
    IommuModel, MdevModel, MemoryModel, ModelName, PanicModel, RngModel, ScsiModel, SerialType, SoundModel,
    UsbModel, VhostScsiModel, VideoKind, VirtioModel, VsockModel, WatchdogModel,
};

/// What Express devices need in this guest: that, or conventional PCI where there is nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    pub express: Connect,
}

impl Needs {
    pub(super) fn disk(self, bus: Option<DiskBus>, model: DiskModel) -> Connect {
        match (bus, model) {
            (Some(DiskBus::Virtio), DiskModel::VirtioTransitional) => Connect::CHOSEN_PCI,
            (Some(DiskBus::Virtio), _) => self.express,
            _ => Connect::empty(),
        }
    }

    pub(super) fn interface(self, kind: InterfaceKind, model: Option<&ModelName>) -> Connect {
        match model {
            _ if kind == InterfaceKind::Hostdev => Connect::empty(),
            Some(ModelName::UsbNet) => Connect::empty(),
            Some(
                ModelName::Virtio | ModelName::VirtioNonTransitional | ModelName::E1000e | ModelName::Igb,
            )
            | None => self.express,
            Some(_) => Connect::CHOSEN_PCI,
        }
    }

    /// A network card: QEMU's own, or one of the host.
    pub(super) fn card(self, card: &Interface) -> Connect {
        match &card.source {
            InterfaceSource::Hostdev(source) => self.hostdev(source),
            _ => self.interface(card.kind, card.model.name.as_ref()),
        }
    }

    pub(super) fn filesystem(self, filesystem: &Filesystem) -> Connect {
        match (filesystem.driver.kind, filesystem.model) {
            (Some(FilesystemDriverType::Mtp), _) => Connect::empty(),
            (_, Some(FilesystemModel::VirtioTransitional)) => Connect::CHOSEN_PCI,
            _ => self.express,
        }
    }

    pub(super) fn sound(self, model: SoundModel) -> Connect {
        match model {
            SoundModel::Es1370 | SoundModel::Ac97 | SoundModel::Ich6 | SoundModel::Ich9 => {
                Connect::CHOSEN_PCI
            }
            SoundModel::Virtio => self.express,
            SoundModel::Sb16 | SoundModel::Pcspk | SoundModel::Usb | SoundModel::Ich7 => Connect::empty(),
        }
    }

    pub(super) fn video(self, kind: VideoKind) -> Connect {
        match kind {
            VideoKind::Virtio | VideoKind::Bochs => self.express,
            VideoKind::Default | VideoKind::Gop | VideoKind::None | VideoKind::Ramfb => Connect::empty(),
            VideoKind::Vga
            | VideoKind::Cirrus
            | VideoKind::Vmvga
            | VideoKind::Xen
            | VideoKind::Vbox
            | VideoKind::Qxl
            | VideoKind::Parallels => Connect::CHOSEN_PCI,
        }
    }

    pub(super) fn controller(self, kind: &ControllerKind) -> Connect {
        match kind {
            ControllerKind::Pci(options) => options.model.map_or(Connect::empty(), Connect::of_controller),
            ControllerKind::Sata | ControllerKind::Ide(_) => Connect::CHOSEN_PCI,
            ControllerKind::Usb(options) => match options.model {
                Some(UsbModel::NecXhci | UsbModel::QemuXhci) => self.express,
                Some(UsbModel::Qusb1 | UsbModel::Qusb2 | UsbModel::None) => Connect::empty(),
                _ => Connect::CHOSEN_PCI,
            },
            ControllerKind::Scsi(model) => match model {
                Some(ScsiModel::Ncr53c90 | ScsiModel::Auto) | None => Connect::empty(),
                Some(ScsiModel::VirtioScsi | ScsiModel::VirtioNonTransitional) => self.express,
                Some(_) => Connect::CHOSEN_PCI,
            },
            ControllerKind::VirtioSerial(options) => match options.model {
                Some(VirtioModel::VirtioTransitional) => Connect::CHOSEN_PCI,
                _ => self.express,
            },
            ControllerKind::Fdc | ControllerKind::Ccid | ControllerKind::Xenbus | ControllerKind::Isa => {
                Connect::empty()
            }
        }
    }

    pub(super) fn balloon(self, model: BalloonModel) -> Connect {
        match model {
            BalloonModel::VirtioTransitional => Connect::CHOSEN_PCI,
            BalloonModel::Virtio | BalloonModel::VirtioNonTransitional => self.express,
            BalloonModel::Xen | BalloonModel::None => Connect::empty(),
        }
    }

    pub(super) fn rng(self, model: RngModel) -> Connect {
        match model {
            RngModel::VirtioTransitional => Connect::CHOSEN_PCI,
            RngModel::Virtio | RngModel::VirtioNonTransitional => self.express,
        }
    }

    pub(super) fn input(self, bus: Option<InputBus>, model: Option<InputModel>) -> Connect {
        match (bus, model) {
            (Some(InputBus::Virtio), Some(InputModel::VirtioTransitional)) => Connect::CHOSEN_PCI,
            (Some(InputBus::Virtio), _) => self.express,
            _ => Connect::empty(),
        }
    }

    pub(super) fn iommu(self, model: IommuModel) -> Connect {
        match model {
            IommuModel::Virtio => self.express | Connect::INTEGRATED,
            IommuModel::Intel | IommuModel::Smmuv3 => Connect::empty(),
        }
    }

    pub(super) fn vsock(self, model: VsockModel) -> Connect {
        match model {
            VsockModel::VirtioTransitional => Connect::CHOSEN_PCI,
            VsockModel::Virtio | VsockModel::VirtioNonTransitional => self.express,
        }
    }

    pub(super) fn hostdev(self, source: &HostdevSource) -> Connect {
        match source {
            HostdevSource::VhostScsi(scsi) => match scsi.model {
                Some(VhostScsiModel::VirtioTransitional) => Connect::CHOSEN_PCI,
                _ => self.express,
            },
            HostdevSource::Pci(_) => self.express,
            HostdevSource::Mdev(mdev) if mdev.model == MdevModel::VfioPci => self.express,
            _ => Connect::empty(),
        }
    }

    pub(super) fn memory(self, model: MemoryModel) -> Connect {
        if model.is_virtio() { self.express } else { Connect::empty() }
    }

    pub(super) fn serial(kind: Option<SerialType>) -> Connect {
        if kind == Some(SerialType::Pci) { Connect::CHOSEN_PCI } else { Connect::empty() }
    }

    pub(super) fn watchdog(model: WatchdogModel) -> Connect {
        if model == WatchdogModel::I6300esb { Connect::CHOSEN_PCI } else { Connect::empty() }
    }

    pub(super) fn panic(model: PanicModel) -> Connect {
        if model == PanicModel::Pvpanic {
            Connect::CHOSEN_PCI | Connect::INTEGRATED
        } else {
            Connect::empty()
        }
    }
}

/// A device that may have a PCI address, on a visit.
pub(super) struct Visited<'a> {
    pub needs: Connect,
    pub info: &'a mut DeviceInfo,
    /// Of controllers: type and number.
    pub controller: Option<(&'a ControllerKind, u32)>,
}

/// Visits every device that has an address, in libvirt's order.
pub(super) fn visit(
    devices: &mut Devices,
    needs: Needs,
    mut visit: impl FnMut(Visited<'_>) -> Result<()>,
) -> Result<()> {
    let mut plain = |needs, info| visit(Visited { needs, info, controller: None });
    for disk in &mut devices.disks {
        plain(needs.disk(disk.target.bus, disk.model), &mut disk.info)?;
    }
    for card in &mut devices.interfaces {
        plain(needs.card(card), &mut card.info)?;
    }
    for filesystem in &mut devices.filesystems {
        plain(needs.filesystem(filesystem), &mut filesystem.info)?;
    }
    for sound in &mut devices.sounds {
        plain(needs.sound(sound.model), &mut sound.info)?;
    }
    for hostdev in &mut devices.hostdevs {
        plain(needs.hostdev(&hostdev.source), &mut hostdev.info)?;
    }
    for video in &mut devices.videos {
        plain(needs.video(video.model.kind), &mut video.info)?;
    }
    for controller in &mut devices.controllers {
        let index = controller.index();
        let (kind, info) = (&controller.kind, &mut controller.info);
        visit(Visited { needs: needs.controller(kind), info, controller: Some((kind, index)) })?;
    }
    let mut plain = |needs, info| visit(Visited { needs, info, controller: None });
    for serial in &mut devices.serials {
        plain(Needs::serial(serial.target.kind), &mut serial.info)?;
    }
    for input in &mut devices.inputs {
        plain(needs.input(input.bus, input.model), &mut input.info)?;
    }
    for watchdog in &mut devices.watchdogs {
        plain(Needs::watchdog(watchdog.model), &mut watchdog.info)?;
    }
    for balloon in &mut devices.memballoons {
        plain(needs.balloon(balloon.model), &mut balloon.info)?;
    }
    for rng in &mut devices.rngs {
        plain(needs.rng(rng.model), &mut rng.info)?;
    }
    for shmem in &mut devices.shmems {
        plain(Connect::CHOSEN_PCI, &mut shmem.info)?;
    }
    for memory in &mut devices.memories {
        plain(needs.memory(memory.model), &mut memory.info)?;
    }
    for crypto in &mut devices.cryptos {
        plain(Connect::CHOSEN_PCI, &mut crypto.info)?;
    }
    for pstore in &mut devices.pstores {
        plain(Connect::CHOSEN_PCI, &mut pstore.info)?;
    }
    for vsock in &mut devices.vsocks {
        plain(needs.vsock(vsock.model), &mut vsock.info)?;
    }
    for iommu in &mut devices.iommus {
        plain(needs.iommu(iommu.model), &mut iommu.info)?;
    }
    for panic in &mut devices.panics {
        plain(Needs::panic(panic.model), &mut panic.info)?;
    }
    Ok(())
}
