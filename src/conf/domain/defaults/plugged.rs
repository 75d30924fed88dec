//! What devices of the host, memory that is plugged in and shared memory leave out.

use crate::conf::devices::{
    Address, Devices, Disk, DiskBus, DriveAddress, HostdevSource, MdevModel, MemoryModel, ScsiPlace,
    ShmemModel,
};
use crate::conf::domain::{Domain, MemoryAccess};
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, Result};

pub(super) fn complete(domain: &mut Domain, nvram_dir: &str) -> Result<()> {
    refuse_conflicts(&domain.devices)?;
    complete_hostdevs(&mut domain.devices)?;
    complete_shmems(&mut domain.devices)?;
    for memory in &mut domain.devices.memories {
        // What the guest writes shall be in the file.
        if memory.model == MemoryModel::VirtioPmem {
            memory.access.get_or_insert(MemoryAccess::Shared);
        }
    }
    for pstore in &mut domain.devices.pstores {
        let path = || format!("{nvram_dir}/{}_PSTORE.raw", domain.name).into();
        pstore.path.get_or_insert_with(path);
    }
    Ok(())
}

/// A disk whose name stands for the place of a device of the host.
fn refuse_conflicts(devices: &Devices) -> Result<()> {
    for disk in devices.disks.iter().filter(|disk| disk.target.bus == Some(DiskBus::Scsi)) {
        let Some(Address::Drive(place)) = disk.info.address else { continue };
        if scsi_places(devices).any(|taken| taken == place) {
            let (name, DriveAddress { controller, bus, target, unit }) = (disk.name(), place);
            return Err(ConfError::unsupported(format!(
                "using disk target name '{name}' conflicts with SCSI host device address \
                 controller='{controller}' bus='{bus}' target='{target}' unit='{unit}"
            )));
        }
    }
    Ok(())
}

/// The places of SCSI devices of the host.
fn scsi_places(devices: &Devices) -> impl Iterator<Item = DriveAddress> {
    let scsi = devices.hostdevs.iter().filter(|it| matches!(it.source, HostdevSource::Scsi(_)));
    scsi.filter_map(|hostdev| match hostdev.info.address {
        Some(Address::Drive(place)) => Some(place),
        _ => None,
    })
}

/// So many devices are put on one SCSI bus.
const UNITS: u32 = 7;

fn complete_hostdevs(devices: &mut Devices) -> Result<()> {
    for at in 0..devices.hostdevs.len() {
        let wants_place = devices.hostdevs.get(at).is_some_and(|hostdev| {
            matches!(hostdev.source, HostdevSource::Scsi(_)) && hostdev.info.address.is_none()
        });
        let place = wants_place.then(|| free_scsi_place(devices));
        let Some(hostdev) = devices.hostdevs.get_mut(at) else { continue };
        hostdev.info.address = hostdev.info.address.take().or(place.map(Address::Drive));
        match &mut hostdev.source {
            HostdevSource::Scsi(scsi) => {
                if let ScsiPlace::Iscsi { source, .. } = &mut scsi.place {
                    source.complete_unit();
                }
            }
            HostdevSource::Mdev(mdev) => {
                let tag = hostdev.info.address.as_ref().map(Address::tag);
                let expected = match mdev.model {
                    MdevModel::VfioPci => Some("pci"),
                    MdevModel::VfioCcw => Some("ccw"),
                    MdevModel::VfioAp => None,
                };
                if let (Some(tag), Some(_)) = (tag.filter(|tag| Some(*tag) != expected), expected) {
                    let model = mdev.model;
                    return Err(ConfError::xml(format!(
                        "Unsupported address type '{tag}' with mediated device model '{model}'"
                    )));
                }
                if mdev.model == MdevModel::VfioPci {
                    mdev.display.get_or_insert(OnOff::Off);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn free_scsi_place(devices: &Devices) -> DriveAddress {
    let on_scsi = |disk: &&Disk| disk.target.bus == Some(DiskBus::Scsi);
    let disks = devices.disks.iter().filter(on_scsi).filter_map(|disk| match disk.info.address {
        Some(Address::Drive(place)) => Some(place),
        _ => None,
    });
    let taken: Vec<DriveAddress> = scsi_places(devices).chain(disks).collect();
    // There are fewer devices than places on so many controllers.
    let controllers = 0..=u32::try_from(taken.len()).unwrap_or(u32::MAX);
    let mut places = controllers.flat_map(|controller| {
        (0..UNITS).map(move |unit| DriveAddress { controller, bus: 0, target: 0, unit })
    });
    places.find(|place| !taken.contains(place)).unwrap_or_default()
}

/// As much memory as shared memory without a server has by default.
const SHARED_BYTES: u64 = 4 << 20;

fn complete_shmems(devices: &mut Devices) -> Result<()> {
    for shmem in &mut devices.shmems {
        let model = shmem.model;
        let refuse = |what: &str| {
            Err(ConfError::unsupported(format!("shmem model '{model}' {what}")).by_qemu_driver())
        };
        if model != ShmemModel::Doorbell && shmem.size_bytes == 0 {
            shmem.size_bytes = SHARED_BYTES;
        }
        match (model, &shmem.server) {
            (ShmemModel::Ivshmem, _) => continue,
            (ShmemModel::Doorbell, None) => return refuse("is supported only with server option enabled"),
            (ShmemModel::Plain, None) => continue,
            (ShmemModel::Plain, Some(_)) => return refuse("is supported only with server option disabled"),
            (ShmemModel::Doorbell, Some(_)) if shmem.size_bytes != 0 => {
                return refuse("does not support size setting");
            }
            (ShmemModel::Doorbell, Some(_)) => {}
        }
        shmem.msi.get_or_insert_default().ioeventfd.get_or_insert(OnOff::On);
    }
    Ok(())
}
