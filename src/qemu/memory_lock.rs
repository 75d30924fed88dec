//! How much memory a QEMU may keep from being swapped.
//!
//! The kernel counts locked memory against a limit of the process, which usually is a few MiB. More is needed by a guest
//! whose memory is locked on its definition's word, and by one with a device of the host that reads and writes memory by
//! itself, as that may not move meanwhile. The amounts are libvirt's.

use std::io;

use crate::conf::devices::{Disk, HostdevSource, Place, Storage};
use crate::conf::domain::Domain;
use crate::util::process::{LockLimit, Process};

/// What devices of the host map beside the guest's memory.
const MAPPED_KIB: u64 = 1 << 20;

/// What a guest needs, if that is more than every process may.
pub fn needed(domain: &Domain) -> Option<LockLimit> {
    let hard_limit = domain.memtune.as_ref().and_then(|memtune| memtune.hard_limit?.0);
    if let Some(kib) = hard_limit {
        return Some(LockLimit::of(kib << 10));
    }
    if domain.memory_backing.as_ref().is_some_and(|backing| backing.locked) {
        // Nobody knows what QEMU takes for itself.
        return Some(LockLimit { current: None, maximum: None });
    }
    let assigned = domain
        .devices
        .hostdevs
        .iter()
        .filter(|device| matches!(device.source, HostdevSource::Pci(_) | HostdevSource::Mdev(_)))
        .count();
    let nvme = domain.devices.disks.iter().filter(|disk| has_nvme(disk)).count();
    // Behind an IOMMU of the guest each has a view of memory of its own; otherwise they share one.
    let views = nvme + if domain.devices.iommus.is_empty() { assigned.min(1) } else { assigned };
    (views > 0).then(|| LockLimit::of((views as u64 * domain.memory.total_kib + MAPPED_KIB) << 10))
}

/// Lets a QEMU that runs lock what it needs from now on; one that may already is left alone, as whoever allowed it
/// knows why.
pub fn allow(process: &Process, domain: &Domain) -> io::Result<()> {
    let Some(needed) = needed(domain) else { return Ok(()) };
    match process.lock_limit()? {
        LockLimit { maximum: None, .. } => Ok(()),
        LockLimit { maximum, .. } if needed.maximum.is_some() && maximum >= needed.maximum => Ok(()),
        _ => process.limit_locked(needed).map(drop),
    }
}

fn has_nvme(disk: &Disk) -> bool {
    let is_nvme = |storage: &Storage| matches!(storage.place, Place::Nvme(_));
    is_nvme(&disk.storage) || disk.storage.layers().any(|layer| is_nvme(&layer.storage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    #[test]
    fn what_is_needed_is_what_may_not_move() {
        let pci = |slot: u8| {
            format!(
                "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='{slot}' \
                 function='0'/></source></hostdev>"
            )
        };
        let nvme = "<disk type='nvme'><source type='pci' namespace='1'><address domain='0' bus='1' slot='0' \
                    function='0'/></source><target dev='vda'/></disk>";
        let iommu = "<iommu model='intel'/>";
        let bytes = |kib: u64| Some(LockLimit::of(kib << 10));
        for (before, devices, expected) in [
            ("", String::new(), None),
            ("<memtune><hard_limit>5000</hard_limit></memtune>", pci(1), bytes(5000)),
            (
                "<memoryBacking><locked/></memoryBacking>",
                String::new(),
                Some(LockLimit { current: None, maximum: None }),
            ),
            ("", pci(1), bytes(16_384 + MAPPED_KIB)),
            ("", pci(1) + &pci(2), bytes(16_384 + MAPPED_KIB)),
            ("", pci(1) + &pci(2) + iommu, bytes(2 * 16_384 + MAPPED_KIB)),
            ("", pci(1) + nvme, bytes(2 * 16_384 + MAPPED_KIB)),
        ] {
            let xml = format!(
                "<domain type='kvm'><name>g</name><memory>16384</memory>{before}<os><type arch='x86_64' \
                 machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
            );
            assert_eq!(needed(&Domain::parse(&xml, Form::INACTIVE).unwrap()), expected, "{xml}");
        }
    }
}
