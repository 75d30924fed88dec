//! Devices of the host, and memory that guests share.

use super::{by_qemu, unsupported};
use crate::conf::devices::{
    Address, DeviceInfo, Disk, DiskBus, DriveAddress, Hostdev, HostdevSource, MdevModel, Shmem, ShmemModel,
    TeamingType,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::{Facts, Has};
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, Result};

pub(super) fn check(domain: &Domain, hostdev: &Hostdev, facts: &Facts<'_>) -> Result<()> {
    check_address(hostdev)?;
    check_teaming(hostdev)?;
    let boots = hostdev.info.boot.is_some();
    match &hostdev.source {
        HostdevSource::Capabilities { .. } => {
            let kind = domain.virt_type;
            by_qemu(format!("hostdev mode 'capabilities' is not supported in {kind}"))
        }
        HostdevSource::Usb(usb) => {
            if usb.guest_reset.is_some() && !facts.has.contains(Has::USB_HOST_RESETS) {
                return by_qemu("guestReset is not supported with this version of QEMU");
            }
            Ok(())
        }
        HostdevSource::Pci(pci) => {
            if pci.write_filtering.is_some() {
                return by_qemu("Write filtering of PCI device configuration space is not supported by qemu");
            }
            check_display(domain, pci.display)
        }
        HostdevSource::VhostScsi(_) => {
            if boots {
                return by_qemu("booting from assigned devices is not supported by vhost SCSI devices");
            }
            match facts.has.contains(Has::VHOST_SCSI) {
                true => Ok(()),
                false => by_qemu("This QEMU doesn't support vhost-scsi devices"),
            }
        }
        HostdevSource::Mdev(mdev) => {
            let model = mdev.model;
            if model != MdevModel::VfioPci {
                let name = if model == MdevModel::VfioAp { "AP" } else { "CCW" };
                return by_qemu(format!(
                    "VFIO {name} device assignment is not supported by this version of QEMU"
                ));
            }
            if boots {
                return by_qemu(
                    "booting from assigned devices is not supported by mediated devices of model vfio-pci",
                );
            }
            check_display(domain, mdev.display)
        }
        HostdevSource::Scsi(_) => Ok(()),
    }
}

fn check_address(hostdev: &Hostdev) -> Result<()> {
    let Some(address) = &hostdev.info.address else { return Ok(()) };
    match (&hostdev.source, address) {
        (HostdevSource::Pci(_), Address::Pci(_) | Address::Unassigned)
        | (HostdevSource::Scsi(_), Address::Drive(_))
        | (HostdevSource::VhostScsi(_), Address::Pci(_) | Address::Ccw(_))
        | (HostdevSource::Usb(_), Address::Usb(_))
        | (HostdevSource::Mdev(_) | HostdevSource::Capabilities { .. }, _) => Ok(()),
        (HostdevSource::Pci(_), _) => {
            Err(ConfError::internal("PCI host devices must use 'pci' or 'unassigned' address type"))
        }
        (HostdevSource::Scsi(_), _) => unsupported("SCSI host device must use 'drive' address type"),
        (HostdevSource::VhostScsi(_), _) => {
            unsupported("SCSI_host host device must use 'pci' or 'ccw' address type")
        }
        (HostdevSource::Usb(_), _) => unsupported("USB host device must use 'usb' address type"),
    }
}

fn check_teaming(hostdev: &Hostdev) -> Result<()> {
    let Some(teaming) = hostdev.teaming.as_deref() else { return Ok(()) };
    if teaming.kind != TeamingType::Transient {
        return unsupported("teaming hostdev devices must have type='transient'");
    }
    if teaming.persistent.is_none() {
        return unsupported("missing required persistent attribute in hostdev teaming element");
    }
    match hostdev.source {
        HostdevSource::Pci(_) => Ok(()),
        _ => unsupported("teaming is only supported for pci hostdev devices"),
    }
}

fn check_display(domain: &Domain, display: Option<OnOff>) -> Result<()> {
    if display == Some(OnOff::On) && domain.devices.graphics.is_empty() {
        return by_qemu("graphics device is needed for attribute value 'display=on' in <hostdev>");
    }
    Ok(())
}

/// No device is there twice.
pub(super) fn check_duplicates(domain: &Domain) -> Result<()> {
    let mut has_ramfb = false;
    for (at, hostdev) in domain.devices.hostdevs.iter().enumerate() {
        let mut later = domain.devices.hostdevs.iter().skip(at + 1);
        if later.any(|other| hostdev.source.is_same(&other.source)) {
            return Err(ConfError::xml("Hostdev already exists in the domain configuration"));
        }
        let ramfb = match &hostdev.source {
            HostdevSource::Pci(pci) => pci.ramfb,
            HostdevSource::Mdev(mdev) => mdev.ramfb,
            _ => None,
        };
        if ramfb == Some(OnOff::On) && std::mem::replace(&mut has_ramfb, true) {
            return unsupported("Only one vgpu device can have 'ramfb' enabled");
        }
    }
    Ok(())
}

fn scsi_address(hostdev: &Hostdev) -> Option<DriveAddress> {
    match (&hostdev.source, &hostdev.info) {
        (HostdevSource::Scsi(_), DeviceInfo { address: Some(Address::Drive(address)), .. }) => Some(*address),
        _ => None,
    }
}

fn is_at(disk: &Disk, place: DriveAddress) -> bool {
    disk.target.bus == Some(DiskBus::Scsi) && disk.info.address == Some(Address::Drive(place))
}

/// No two SCSI devices are at one place of a bus.
pub(super) fn check_scsi_places(domain: &Domain) -> Result<()> {
    let devices = &domain.devices;
    for (at, hostdev) in devices.hostdevs.iter().enumerate() {
        let Some(place) = scsi_address(hostdev) else { continue };
        let user = if devices.hostdevs.iter().skip(at + 1).any(|other| scsi_address(other) == Some(place)) {
            "host device"
        } else if devices.disks.iter().any(|disk| is_at(disk, place)) {
            "disk"
        } else {
            continue;
        };
        // Bus and controller change places in libvirt's sentence.
        let DriveAddress { controller, bus, target, unit } = place;
        return unsupported(format!(
            "SCSI host address controller='{bus}' bus='{controller}' target='{target}' unit='{unit}' in use by \
             another SCSI {user}"
        ));
    }
    Ok(())
}

pub(super) fn check_shmem(shmem: &Shmem, facts: &Facts<'_>) -> Result<()> {
    if shmem.name.contains('/') {
        return unsupported("shmem name cannot include '/' character");
    }
    if matches!(&*shmem.name, "." | "..") {
        return unsupported(format!("shmem name cannot be equal to '{}'", shmem.name));
    }
    let size = shmem.size_bytes;
    if size > 0 && (size < 1 << 20 || !size.is_power_of_two()) {
        return Err(
            ConfError::xml("shmem size must be a power of 2 and at least 1 MiB (1024 KiB)").by_qemu_driver()
        );
    }
    let needed = match shmem.model {
        ShmemModel::Ivshmem => return by_qemu("ivshmem device is no longer supported"),
        ShmemModel::Plain => Has::IVSHMEM_PLAIN,
        ShmemModel::Doorbell => Has::IVSHMEM_DOORBELL,
    };
    match facts.has.contains(needed) {
        true => Ok(()),
        false => {
            let model = shmem.model;
            by_qemu(format!("shmem model '{model}' is not supported by this QEMU binary"))
        }
    }
}
