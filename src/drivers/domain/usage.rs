//! What a domain uses of the host: processors, memory, images.

use std::sync::Arc;

use super::Domains;
use super::flags::{Impact, no_flags};
use super::reads::{definition, persistent, resident_kib, running};
use super::stats::ask::ask_for;
use crate::conf::devices::Disk;
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, State};
use crate::qemu::monitor::GuestStats;
use crate::qemu::stats::{Subjects, balloon_alias};
use crate::util::bitmap::Bitmap;

/// The host CPUs that each of the first `max` vCPUs may run on, one map after the other. `host` are those
/// that work.
pub fn vcpu_pins(
    state: &State,
    host: &Bitmap,
    max: usize,
    map_len: usize,
    flags: u32,
) -> Result<Vec<Vec<u8>>> {
    let definition = one_definition(state, Impact::of(flags, "qemuDomainGetVcpuPinInfo")?)?;
    let pins = definition.cputune.as_ref().map_or(&[][..], |cputune| &cputune.vcpupin);
    let usual = definition.vcpus.cpuset.as_ref().unwrap_or(host);
    let cpus = |vcpu| pins.iter().find(|pin| pin.vcpu == vcpu).map_or(usual, |pin| &pin.cpuset);
    Ok((0..definition.vcpus.max).take(max).map(|vcpu| cpus(vcpu).to_bytes(map_len)).collect())
}

/// The host CPUs that QEMU's other threads may run on.
pub fn emulator_pin(state: &State, host: &Bitmap, map_len: usize, flags: u32) -> Result<Vec<u8>> {
    let definition = one_definition(state, Impact::of(flags, "qemuDomainGetEmulatorPinInfo")?)?;
    let pin = definition.cputune.as_ref().and_then(|cputune| cputune.emulatorpin.as_ref());
    Ok(pin.or(definition.vcpus.cpuset.as_ref()).unwrap_or(host).to_bytes(map_len))
}

/// The definition that a flag word names: the guest's, the inactive one, or whichever counts at present.
pub(super) fn one_definition(state: &State, impact: Impact) -> Result<&Arc<Domain>> {
    if impact.contains(Impact::LIVE | Impact::CONFIG) {
        let flags = "Flags 'VIR_DOMAIN_AFFECT_LIVE' and 'VIR_DOMAIN_AFFECT_CONFIG' are mutually exclusive";
        return Err(Error::refused_argument("virDomainObjGetOneDefState", "flags", flags));
    }
    match impact {
        impact if impact.contains(Impact::LIVE) => running(state),
        impact if impact.contains(Impact::CONFIG) => persistent(state),
        _ => definition(state),
    }
}

/// `virDomainBlockInfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// What the guest sees.
    pub capacity: u64,
    /// What the host's file system has set aside.
    pub allocation: u64,
    /// Where the image ends.
    pub physical: u64,
}

/// One `virDomainMemoryStat`: `virDomainMemoryStatTags`, KiB or a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStat {
    pub tag: i32,
    pub value: u64,
}

impl Domains {
    /// How large the image of a disk is, given its target or its path.
    pub async fn block_info(&self, domain: &DomainHandle, disk: &str, flags: u32) -> Result<BlockInfo> {
        no_flags(flags, "qemuDomainGetBlockInfo")?;
        let state = domain.state();
        let found = disk_named(definition(&state)?, disk)
            .ok_or_else(|| Error::invalid_arg(format!("invalid path {disk} not assigned to domain")))?;
        if found.storage.is_empty() {
            let sentence = format!("disk '{disk}' does not currently have a source assigned");
            return Err(Error::invalid_arg(sentence));
        }
        if found.storage.fdgroup.is_some() {
            let sentence = "block info is not supported for FD passed disk image";
            return Err(Error::operation_unsupported(sentence));
        }
        let path = found.storage.path().map(str::to_owned).ok_or_else(|| {
            Error::operation_unsupported(format!("the image of disk '{disk}' is no file of this host"))
        })?;
        self.image_sizes.measure(&path, found.format()).await
    }

    /// What QEMU and the balloon's driver in the guest tell of its memory.
    pub async fn memory_stats(
        &self,
        domain: DomainHandle,
        max: usize,
        flags: u32,
    ) -> Result<Vec<MemoryStat>> {
        no_flags(flags, "qemuDomainMemoryStats")?;
        let state = domain.state();
        running(&state)?;
        let mut stats = Vec::new();
        if state.live.as_ref().is_some_and(|definition| balloon_alias(definition).is_some()) {
            let account = ask_for(domain.object(), Subjects::BALLOON).await?;
            let state = domain.state();
            // What the balloon leaves is known from its events.
            stats.push(MemoryStat { tag: 6, value: running(&state)?.memory.current_kib });
            stats.extend(account.balloon.iter().flat_map(|told| guest_memory(told)));
        }
        let resident = resident_kib(&domain.state());
        stats.extend(resident.map(|value| MemoryStat { tag: 7, value }));
        stats.truncate(max);
        Ok(stats)
    }
}

/// QEMU's names, libvirt's tags, and how many of QEMU's units are one of libvirt's.
const GUEST_STATS: [(&str, i32, u64); 11] = [
    ("stat-swap-in", 0, 1024),
    ("stat-swap-out", 1, 1024),
    ("stat-major-faults", 2, 1),
    ("stat-minor-faults", 3, 1),
    ("stat-free-memory", 4, 1024),
    ("stat-total-memory", 5, 1024),
    ("stat-available-memory", 8, 1024),
    ("last-update", 9, 1),
    ("stat-disk-caches", 10, 1024),
    ("stat-htlb-pgalloc", 11, 1),
    ("stat-htlb-pgfail", 12, 1),
];

/// What the balloon's driver told, in libvirt's order.
pub(super) fn guest_memory(told: &GuestStats) -> impl Iterator<Item = MemoryStat> {
    GUEST_STATS.iter().filter_map(|(name, tag, unit)| match *name {
        "last-update" => Some(MemoryStat { tag: *tag, value: told.last_update }),
        name => {
            let value = *told.stats.get(name)?;
            (value != u64::MAX).then_some(MemoryStat { tag: *tag, value: value / unit })
        }
    })
}

pub(super) fn disk_named<'a>(definition: &'a Domain, name: &str) -> Option<&'a Disk> {
    let named = |disk: &&Disk| disk.target.dev.as_deref() == Some(name) || disk.storage.path() == Some(name);
    definition.devices.disks.iter().find(named)
}
