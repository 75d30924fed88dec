//! The devices of the two machines, kind by kind, in the order in which they are plugged in.

use super::{Shown, alike, same, shown};
use crate::conf::devices::{
    Address, Channel, ChannelTarget, Console, Controller, ControllerKind, DeviceInfo, Devices, Disk,
    Filesystem, Hub, Input, Interface, Iommu, MemBalloon, ModelName, Panic, Parallel, RedirFilter, Redirdev,
    Rng, Serial, Smartcard, Sound, Tpm, TpmBackend, Video, VirtioOptions, Vsock, Watchdog,
};
use crate::conf::{ConfError, Result};

shown!("default": crate::conf::devices::DiskDevice, crate::conf::devices::DiskBus, crate::conf::devices::DiskModel);
shown!("default": crate::conf::devices::ControllerType, crate::conf::devices::InputKind, crate::conf::devices::InputBus);
shown!("default": crate::conf::devices::InputModel, crate::conf::devices::SoundModel, crate::conf::devices::VideoKind);
shown!("default": crate::conf::devices::SerialType, crate::conf::devices::SerialModel, crate::conf::devices::ConsoleType);
shown!("default": crate::conf::devices::WatchdogModel, crate::conf::devices::BalloonModel, crate::conf::devices::RngModel);
shown!("default": crate::conf::devices::HubKind, crate::conf::devices::RedirBus, crate::conf::devices::PanicModel);
shown!("default": crate::conf::devices::IommuModel, crate::conf::devices::VsockModel, crate::util::mac::Mac);

impl Shown for ModelName {
    const NONE: &'static str = "unknown";

    fn shown(&self) -> String {
        self.as_str().to_owned()
    }
}

/// Compares lists of one kind: first how many there are, then one by one.
macro_rules! each {
    ($source:expr, $target:expr, $sentence:literal, $check:expr) => {
        same!($target.len(), $source.len(), $sentence);
        for (source, target) in $source.iter().zip(&$target) {
            $check(source, target)?;
        }
    };
}

pub(super) fn check(old: &Devices, new: &Devices) -> Result<()> {
    each!(old.disks, new.disks, "Target domain disk count {} does not match source {}", disk);
    each!(
        old.controllers,
        new.controllers,
        "Target domain controller count {} does not match source {}",
        controller
    );
    each!(
        old.filesystems,
        new.filesystems,
        "Target domain filesystem count {} does not match source {}",
        filesystem
    );
    each!(
        old.interfaces,
        new.interfaces,
        "Target domain net card count {} does not match source {}",
        interface
    );
    each!(old.inputs, new.inputs, "Target domain input device count {} does not match source {}", input);
    each!(old.sounds, new.sounds, "Target domain sound card count {} does not match source {}", sound);
    each!(old.videos, new.videos, "Target domain video card count {} does not match source {}", video);
    same!(
        new.hostdevs.len(),
        old.hostdevs.len(),
        "Target domain host device count {} does not match source {}"
    );
    ports(old, new)?;
    others(old, new)
}

fn ports(old: &Devices, new: &Devices) -> Result<()> {
    each!(
        old.smartcards,
        new.smartcards,
        "Target domain smartcard count {} does not match source {}",
        smartcard
    );
    each!(old.serials, new.serials, "Target domain serial port count {} does not match source {}", serial);
    each!(
        old.parallels,
        new.parallels,
        "Target domain parallel port count {} does not match source {}",
        parallel
    );
    each!(old.channels, new.channels, "Target domain channel count {} does not match source {}", channel);
    each!(old.consoles, new.consoles, "Target domain console count {} does not match source {}", console);
    Ok(())
}

fn others(old: &Devices, new: &Devices) -> Result<()> {
    each!(old.hubs, new.hubs, "Target domain hub device count {} does not match source {}", hub);
    each!(
        old.redirdevs,
        new.redirdevs,
        "Target domain redirected devices count {} does not match source {}",
        redirdev
    );
    each!(
        old.redirfilters,
        new.redirfilters,
        "Target domain USB redirection filter count {} does not match source {}",
        redirfilter
    );
    each!(
        old.watchdogs,
        new.watchdogs,
        "Target domain watchdog device count {} does not match source {}",
        watchdog
    );
    each!(
        old.memballoons,
        new.memballoons,
        "Target domain memory balloon count {} does not match source {}",
        balloon
    );
    each!(old.rngs, new.rngs, "Target domain RNG device count {} does not match source {}", rng);
    each!(old.panics, new.panics, "Target domain panic device count {} does not match source {}", panic);
    same!(
        new.shmems.len(),
        old.shmems.len(),
        "Target domain shared memory device count {} does not match source {}"
    );
    each!(old.tpms, new.tpms, "Target domain TPM device count {} does not match source {}", tpm);
    same!(
        new.memories.len(),
        old.memories.len(),
        "Target domain memory device count {} does not match source {}"
    );
    each!(old.iommus, new.iommus, "Target domain IOMMU device count {} does not match source {}", iommu);
    each!(old.vsocks, new.vsocks, "Target domain vsock device count {} does not match source {}", vsock);
    Ok(())
}

fn disk(old: &Disk, new: &Disk) -> Result<()> {
    same!(new.device, old.device, "Target disk device {} does not match source {}");
    same!(new.target.bus, old.target.bus, "Target disk bus {} does not match source {}");
    same!(new.target.dev, old.target.dev, "Target disk {} does not match source {}");
    same!(new.serial, old.serial, "Target disk serial {} does not match source {}");
    same!(new.wwn, old.wwn, "Target disk wwn '{}' does not match source '{}'");
    alike!(new.readonly, old.readonly, "Target disk access mode does not match source");
    same!(new.model, old.model, "Target disk model {} does not match source {}");
    same!(
        new.target.rotation_rate,
        old.target.rotation_rate,
        "Target disk rotation rate {} RPM does not match source {} RPM"
    );
    same!(new.driver.queues, old.driver.queues, "Target disk queue count {} does not match source {}");
    same!(new.driver.queue_size, old.driver.queue_size, "Target disk queue size {} does not match source {}");
    virtio(&old.driver.virtio, &new.driver.virtio)?;
    info(&old.info, &new.info)?;
    let (new, old) = (&new.blockio, &old.blockio);
    same!(
        new.logical_block_size,
        old.logical_block_size,
        "Target disk logical_block_size {} does not match source {}"
    );
    same!(
        new.physical_block_size,
        old.physical_block_size,
        "Target disk physical_block_size {} does not match source {}"
    );
    let (new, old) = (new.discard_granularity, old.discard_granularity);
    same!(new, old, "Target disk discard_granularity {} does not match source {}");
    Ok(())
}

fn controller(old: &Controller, new: &Controller) -> Result<()> {
    same!(new.kind.bus(), old.kind.bus(), "Target controller type {} does not match source {}");
    same!(new.index, old.index, "Target controller index {} does not match source {}");
    match (&new.kind, &old.kind) {
        (ControllerKind::VirtioSerial(new), ControllerKind::VirtioSerial(old)) => {
            same!(new.ports, old.ports, "Target controller ports {} does not match source {}");
            same!(new.vectors, old.vectors, "Target controller vectors {} does not match source {}");
        }
        (ControllerKind::Usb(new), ControllerKind::Usb(old)) => {
            same!(new.ports, old.ports, "Target controller ports {} does not match source {}");
        }
        _ => {}
    }
    alike!(new.kind, old.kind, "Target controller model does not match source");
    virtio(&old.driver.virtio, &new.driver.virtio)?;
    info(&old.info, &new.info)
}

fn filesystem(old: &Filesystem, new: &Filesystem) -> Result<()> {
    same!(new.target, old.target, "Target filesystem guest target {} does not match source {}");
    alike!(new.readonly, old.readonly, "Target filesystem access mode does not match source");
    alike!(new.model, old.model, "Target filesystem model does not match source");
    virtio(&old.driver.virtio, &new.driver.virtio)?;
    info(&old.info, &new.info)
}

fn interface(old: &Interface, new: &Interface) -> Result<()> {
    same!(new.mac.address, old.mac.address, "Target network card mac {} does not match source {}");
    same!(new.model.name, old.model.name, "Target network card model {} does not match source {}");
    same!(new.mtu, old.mtu, "Target network card MTU {} does not match source {}");
    info(&old.info, &new.info)
}

fn input(old: &Input, new: &Input) -> Result<()> {
    same!(new.kind, old.kind, "Target input device type {} does not match source {}");
    same!(new.bus, old.bus, "Target input device bus {} does not match source {}");
    same!(new.model, old.model, "Target input model {} does not match source {}");
    virtio(&old.driver, &new.driver)?;
    info(&old.info, &new.info)
}

fn sound(old: &Sound, new: &Sound) -> Result<()> {
    same!(new.model, old.model, "Target sound card model {} does not match source {}");
    same!(
        new.multichannel,
        old.multichannel,
        "Target sound card multichannel setting '{}' does not match source '{}'"
    );
    info(&old.info, &new.info)
}

fn video(old: &Video, new: &Video) -> Result<()> {
    virtio(&old.driver.virtio, &new.driver.virtio)?;
    info(&old.info, &new.info)?;
    let (new, old) = (&new.model, &old.model);
    same!(new.kind, old.kind, "Target video card model {} does not match source {}");
    same!(new.ram_kib, old.ram_kib, "Target video card ram {} does not match source {}");
    same!(new.vram_kib, old.vram_kib, "Target video card vram {} does not match source {}");
    same!(new.vram64_kib, old.vram64_kib, "Target video card vram64 {} does not match source {}");
    same!(new.vgamem_kib, old.vgamem_kib, "Target video card vgamem {} does not match source {}");
    same!(new.heads, old.heads, "Target video card heads {} does not match source {}");
    let acceleration = |model: &crate::conf::devices::VideoModel| {
        model.acceleration.as_ref().map(|acceleration| (acceleration.accel2d, acceleration.accel3d))
    };
    alike!(acceleration(new), acceleration(old), "Target video card acceleration does not match source");
    Ok(())
}

fn smartcard(old: &Smartcard, new: &Smartcard) -> Result<()> {
    info(&old.info, &new.info)
}

fn serial(old: &Serial, new: &Serial) -> Result<()> {
    same!(new.target.kind, old.target.kind, "Target serial type {} does not match source {}");
    same!(new.target.model, old.target.model, "Target serial model {} does not match source {}");
    same!(new.target.port, old.target.port, "Target serial port {} does not match source {}");
    info(&old.info, &new.info)
}

fn parallel(old: &Parallel, new: &Parallel) -> Result<()> {
    same!(new.target.port, old.target.port, "Target parallel port {} does not match source {}");
    info(&old.info, &new.info)
}

fn channel(old: &Channel, new: &Channel) -> Result<()> {
    let kind = |target: &ChannelTarget| match target {
        ChannelTarget::Guestfwd { .. } => "guestfwd",
        ChannelTarget::Virtio { .. } => "virtio",
        ChannelTarget::Xen { .. } => "xen",
    };
    same!(kind(&new.target), kind(&old.target), "Target channel type {} does not match source {}");
    match (&new.target, &old.target) {
        (
            ChannelTarget::Guestfwd { address: new, port },
            ChannelTarget::Guestfwd { address, port: old_port },
        ) => {
            let (new, old) = (format!("{new}:{port}"), format!("{address}:{old_port}"));
            same!(*new, *old, "Target channel addr {} does not match source {}");
        }
        (ChannelTarget::Virtio { name: new, .. }, ChannelTarget::Virtio { name: old, .. })
        | (ChannelTarget::Xen { name: new }, ChannelTarget::Xen { name: old }) => {
            same!(new, old, "Target channel name {} does not match source {}");
        }
        _ => {}
    }
    info(&old.info, &new.info)
}

fn console(old: &Console, new: &Console) -> Result<()> {
    same!(new.target.kind, old.target.kind, "Target console type {} does not match source {}");
    info(&old.info, &new.info)
}

fn hub(old: &Hub, new: &Hub) -> Result<()> {
    same!(new.kind, old.kind, "Target hub device type {} does not match source {}");
    info(&old.info, &new.info)
}

fn redirdev(old: &Redirdev, new: &Redirdev) -> Result<()> {
    same!(new.bus, old.bus, "Target redirected device bus {} does not match source {}");
    info(&old.info, &new.info)
}

fn redirfilter(old: &RedirFilter, new: &RedirFilter) -> Result<()> {
    same!(
        new.rules.len(),
        old.rules.len(),
        "Target USB redirection filter rule count {} does not match source {}"
    );
    for (new, old) in new.rules.iter().zip(&old.rules) {
        alike!(new.class, old.class, "Target USB Class code does not match source");
        alike!(new.vendor, old.vendor, "Target USB vendor ID does not match source");
        alike!(new.product, old.product, "Target USB product ID does not match source");
        alike!(new.version, old.version, "Target USB version does not match source");
        let word = |allow| if allow { "yes" } else { "no" };
        same!(word(new.allow), word(old.allow), "Target USB allow '{}' does not match source '{}'");
    }
    Ok(())
}

fn watchdog(old: &Watchdog, new: &Watchdog) -> Result<()> {
    same!(new.model, old.model, "Target watchdog model {} does not match source {}");
    info(&old.info, &new.info)
}

fn balloon(old: &MemBalloon, new: &MemBalloon) -> Result<()> {
    same!(new.model, old.model, "Target balloon model {} does not match source {}");
    same!(
        new.autodeflate,
        old.autodeflate,
        "Target balloon autodeflate attribute value '{}' does not match source '{}'"
    );
    same!(
        new.free_page_reporting,
        old.free_page_reporting,
        "Target balloon freePageReporting attribute value '{}' does not match source '{}'"
    );
    virtio(&old.driver, &new.driver)?;
    info(&old.info, &new.info)
}

fn rng(old: &Rng, new: &Rng) -> Result<()> {
    same!(new.model, old.model, "Target RNG model '{}' does not match source '{}'");
    virtio(&old.driver, &new.driver)?;
    info(&old.info, &new.info)
}

fn panic(old: &Panic, new: &Panic) -> Result<()> {
    same!(new.model, old.model, "Target panic model '{}' does not match source '{}'");
    info(&old.info, &new.info)
}

fn tpm(old: &Tpm, new: &Tpm) -> Result<()> {
    alike!(new.backend.tag(), old.backend.tag(), "Target TPM device type doesn't match source");
    alike!(new.model, old.model, "Target TPM device model doesn't match source");
    if let (TpmBackend::Emulator(new), TpmBackend::Emulator(old)) = (&new.backend, &old.backend) {
        alike!(new.version, old.version, "Target TPM version doesn't match source");
        alike!(new.pcr_banks, old.pcr_banks, "Target active PCR banks doesn't match source");
    }
    info(&old.info, &new.info)
}

fn iommu(old: &Iommu, new: &Iommu) -> Result<()> {
    same!(new.model, old.model, "Target domain IOMMU device model '{}' does not match source '{}'");
    info(&old.info, &new.info)?;
    let (new, old) = (&new.driver, &old.driver);
    same!(
        new.intremap,
        old.intremap,
        "Target domain IOMMU device intremap value '{}' does not match source '{}'"
    );
    same!(
        new.caching_mode,
        old.caching_mode,
        "Target domain IOMMU device caching mode '{}' does not match source '{}'"
    );
    same!(new.eim, old.eim, "Target domain IOMMU device eim value '{}' does not match source '{}'");
    same!(new.iotlb, old.iotlb, "Target domain IOMMU device iotlb value '{}' does not match source '{}'");
    same!(
        new.aw_bits,
        old.aw_bits,
        "Target domain IOMMU device aw_bits value '{}' does not match source '{}'"
    );
    same!(
        new.dma_translation,
        old.dma_translation,
        "Target domain IOMMU device dma translation '{}' does not match source '{}'"
    );
    Ok(())
}

fn vsock(old: &Vsock, new: &Vsock) -> Result<()> {
    same!(new.model, old.model, "Target domain vsock device model '{}' does not match source '{}'");
    virtio(&old.driver, &new.driver)?;
    info(&old.info, &new.info)
}

fn virtio(old: &VirtioOptions, new: &VirtioOptions) -> Result<()> {
    same!(new.iommu, old.iommu, "Target device iommu option '{}' does not match source '{}'");
    same!(new.ats, old.ats, "Target device ats option '{}' does not match source '{}'");
    same!(new.packed, old.packed, "Target device packed option '{}' does not match source '{}'");
    same!(
        new.page_per_vq,
        old.page_per_vq,
        "Target device page_per_vq option '{}' does not match source '{}'"
    );
    Ok(())
}

/// Where it is plugged in.
fn info(old: &DeviceInfo, new: &DeviceInfo) -> Result<()> {
    let kind = |info: &DeviceInfo| info.address.as_ref().map_or("none", Address::tag);
    same!(kind(new), kind(old), "Target device address type {} does not match source {}");
    if let (Some(at), Some(was_at)) = (&new.address, &old.address)
        && let (Some((what, at)), Some((_, was_at))) = (place(at), place(was_at))
        && at != was_at
    {
        return Err(ConfError::unsupported(format!(
            "Target device {what} {at} does not match source {was_at}"
        )));
    }
    same!(new.acpi_index, old.acpi_index, "Target ACPI index '{}' does not match source '{}'");
    Ok(())
}

/// A place that the guest sees, in libvirt's words; of the others it is not sure.
fn place(address: &Address) -> Option<(&'static str, String)> {
    match address {
        Address::Pci(at) => {
            let text = format!("{:04x}:{:02x}:{:02x}.{}", at.domain, at.bus, at.slot, at.function);
            Some(("PCI address", text))
        }
        Address::Drive(at) => Some(("drive address", format!("{}:{}:{}", at.controller, at.bus, at.unit))),
        Address::VirtioSerial(at) => {
            Some(("virtio serial address", format!("{}:{}:{}", at.controller, at.bus, at.port)))
        }
        Address::Ccid(at) => Some(("ccid address", format!("{}:{}", at.controller, at.slot))),
        _ => None,
    }
}
