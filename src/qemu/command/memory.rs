//! The guest's memory and its I/O threads.

use super::line::{Line, Props};
use super::{Guest, Result, unsupported};
use crate::conf::domain::{Domain, IoThread, MemoryAccess, MemoryAllocation, MemorySource, NumaMode};
use crate::qemu::capabilities::Cap;
use crate::util::bitmap::Bitmap;

/// One piece of memory.
pub(super) struct Backend<'a> {
    pub id: &'a str,
    pub size_kib: u64,
    /// The NUMA node of the guest; the whole memory has none.
    pub node: Option<u32>,
    pub access: Option<MemoryAccess>,
}

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let memory = &guest.domain.memory;
    let mut text = String::from("size=");
    match memory.max {
        Some(max) => {
            text.push_str(&format!("{}k", memory.total_kib));
            if let Some(slots) = max.slots.filter(|slots| *slots > 0) {
                text.push_str(&format!(",slots={slots}"));
            }
            text.push_str(&format!(",maxmem={}k", max.kib));
        }
        // It was counted in MiB once, which rounded it.
        None => text.push_str(&format!("{}k", memory.total_kib & !0x1ff)),
    }
    line.option("-m", text);
    if let (Some(id), false) = (guest.default_ram_id(), guest.has_numa()) {
        let backend = Backend { id, size_kib: memory.total_kib, node: None, access: None };
        let props = guest.memory_backend(&backend)?;
        line.object(props);
    }
    let locked = guest.domain.memory_backing.as_ref().is_some_and(|backing| backing.locked);
    line.option("-overcommit", format!("mem-lock={}", if locked { "on" } else { "off" }));
    Ok(())
}

/// Whether memory of the guest is in files, which need a directory.
pub fn is_in_files(domain: &Domain) -> bool {
    let backing = domain.memory_backing.as_deref();
    let source = backing.and_then(|backing| backing.source);
    let numa = domain.cpu.as_deref().and_then(|cpu| cpu.rest.numa.as_deref());
    let has_access = backing.is_some_and(|backing| backing.access.is_some())
        || numa.is_some_and(|numa| numa.cells.iter().any(|cell| cell.access.is_some()));
    match source {
        Some(MemorySource::File) => true,
        Some(MemorySource::Memfd) => false,
        Some(MemorySource::Anonymous) | None => has_access,
    }
}

impl Guest<'_> {
    /// The host's pages behind a piece of memory.
    pub(super) fn memory_backend(&self, piece: &Backend<'_>) -> Result<Props> {
        let backing = self.domain.memory_backing.as_deref();
        if backing.is_some_and(|backing| backing.hugepages.is_some()) {
            return unsupported("huge pages are not supported");
        }
        let source = backing.and_then(|backing| backing.source);
        let access = piece.access.or(backing.and_then(|backing| backing.access));
        let share = access.map(|access| access == MemoryAccess::Shared);
        let mut shared_id = false;
        let mut props = match source {
            Some(MemorySource::Memfd) => {
                if !self.supports(Cap::ObjectMemoryMemfd) {
                    return unsupported("this qemu doesn't support the memory-backend-memfd object");
                }
                shared_id = true;
                Props::object("memory-backend-memfd", piece.id).maybe("share", share)
            }
            Some(MemorySource::File) | None | Some(MemorySource::Anonymous)
                if source == Some(MemorySource::File) || access.is_some() =>
            {
                shared_id = true;
                let file = self.context.memory_dir.join(piece.id).display().to_string();
                let discard = backing.is_some_and(|backing| backing.discard).then_some(true);
                Props::object("memory-backend-file", piece.id)
                    .set("mem-path", file)
                    .maybe("discard-data", discard)
                    .maybe("share", share)
            }
            _ => Props::object("memory-backend-ram", piece.id),
        };
        // Memory of the whole guest goes by the name that it had before there were backends.
        if shared_id && piece.node.is_none() && self.supports(Cap::XUseCanonicalPathForRamblockId) {
            props = props.set("x-use-canonical-path-for-ramblock-id", false);
        }
        if let Some(allocation) = backing.map(|backing| &backing.allocation) {
            let now = allocation.mode == Some(MemoryAllocation::Immediate);
            props = props.maybe("prealloc", now.then_some(true));
            props = props.nonzero("prealloc-threads", allocation.threads.unwrap_or_default());
        }
        props = props.set("size", piece.size_kib * 1024);
        Ok(match self.host_nodes(piece.node) {
            Some((nodes, policy)) => {
                let nodes: Vec<u64> = nodes.iter().map(|node| node as u64).collect();
                props.set("host-nodes", nodes).set("policy", policy)
            }
            None => props,
        })
    }

    /// The host's NUMA nodes that a piece of memory shall come from.
    fn host_nodes(&self, node: Option<u32>) -> Option<(&Bitmap, &'static str)> {
        let numatune = self.domain.numatune.as_deref()?;
        let own = numatune.nodes.iter().find(|tune| Some(tune.cellid) == node);
        let (mode, nodes) = match own {
            Some(tune) => (tune.mode, &tune.nodeset),
            None => {
                let memory = numatune.memory.as_ref()?;
                (memory.mode, memory.nodeset.as_ref()?)
            }
        };
        let policy = match mode {
            NumaMode::Strict => "bind",
            NumaMode::Preferred => "preferred",
            NumaMode::Interleave => "interleave",
            // The control group does it.
            NumaMode::Restrictive => return None,
        };
        Some((nodes, policy))
    }

    /// Whether this node's memory has nodes of the host of its own.
    pub(super) fn node_is_tuned(&self, node: u32) -> bool {
        let tuned =
            |numatune: &crate::conf::domain::Numatune| numatune.nodes.iter().any(|tune| tune.cellid == node);
        self.domain.numatune.as_deref().is_some_and(tuned)
    }
}

pub(super) fn iothreads(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for IoThread { id, pool, poll, .. } in &guest.domain.iothreads.threads {
        let props = Props::object("iothread", format!("iothread{id}"))
            .maybe("thread-pool-min", pool.min)
            .maybe("thread-pool-max", pool.max)
            .maybe("poll-max-ns", poll.max)
            .maybe("poll-grow", poll.grow)
            .maybe("poll-shrink", poll.shrink);
        line.object(props);
    }
    if let Some(pool) = &guest.domain.iothreads.default_thread {
        let props = Props::object("main-loop", "main-loop");
        line.object(props.maybe("thread-pool-min", pool.min).maybe("thread-pool-max", pool.max));
    }
    Ok(())
}
