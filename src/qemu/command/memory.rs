//! The guest's memory and its I/O threads.

use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{MemoryDevice, MemoryModel};
use crate::conf::domain::{
    Domain, Hugepage, IoThread, MemoryAccess, MemoryAllocation, MemorySource, NumaMode, NumatuneNode,
    Placement,
};
use crate::conf::xml::YesNo;
use crate::qemu::capabilities::Cap;
use crate::qemu::hugepages::Hugetlbfs;
use crate::util::bitmap::Bitmap;

/// One piece of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backend<'a> {
    pub id: &'a str,
    pub size_kib: u64,
    /// The NUMA node of the guest; the whole memory has none.
    pub node: Option<u32>,
    pub part: Part<'a>,
}

/// What of the guest a piece is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    Everything,
    Node,
    Device(&'a MemoryDevice),
}

impl<'a> Part<'a> {
    fn device(self) -> Option<&'a MemoryDevice> {
        match self {
            Self::Device(device) => Some(device),
            Self::Everything | Self::Node => None,
        }
    }
}

/// The pages behind a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    /// 0 for the host's ordinary ones.
    size_kib: u64,
    /// Whether these pages were chosen for this very piece.
    own: bool,
    prealloc: bool,
}

/// The host's ordinary pages.
const ORDINARY_KIB: u64 = 4;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let memory = &guest.domain.memory;
    let initial_kib = guest.domain.initial_memory_kib();
    let mut text = String::from("size=");
    match memory.max.filter(|max| max.kib > 0 || max.slots.is_some_and(|slots| slots > 0)) {
        Some(max) => {
            text.push_str(&format!("{initial_kib}k"));
            if let Some(slots) = max.slots.filter(|slots| *slots > 0) {
                text.push_str(&format!(",slots={slots}"));
            }
            if max.kib > 0 {
                text.push_str(&format!(",maxmem={}k", max.kib));
            }
        }
        // It was counted in MiB once, which rounded it.
        None => text.push_str(&format!("{}k", initial_kib & !0x1ff)),
    }
    line.option("-m", text);
    match guest.default_ram_id() {
        _ if guest.has_numa() => {}
        Some(id) => {
            let whole = Backend { id, size_kib: initial_kib, node: None, part: Part::Everything };
            guest.memory_backend(line, &whole)?;
        }
        None => memory_path(guest, line)?,
    }
    let locked = guest.domain.memory_backing.as_ref().is_some_and(|backing| backing.locked);
    line.option("-overcommit", format!("mem-lock={}", if locked { "on" } else { "off" }));
    Ok(())
}

/// What stands behind memory that has no backend, for machines from before there were any.
pub(super) fn memory_path(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let backing = guest.domain.memory_backing.as_deref();
    let huge = guest.hugepages().map(|pages| pages.first().map_or(0, |page| page.size_kib));
    let huge = huge.filter(|size| *size != ORDINARY_KIB);
    let in_files = backing.is_some_and(|backing| backing.source == Some(MemorySource::File));
    let path = match huge {
        Some(0) => Some(guest.hugepage_path(guest.default_hugepage_kib()?)?),
        Some(size) => Some(guest.hugepage_path(size)?),
        None if in_files => Some(guest.context.memory_dir.join("ram").display().to_string()),
        None => None,
    };
    let now = backing.is_some_and(|it| it.allocation.mode == Some(MemoryAllocation::Immediate));
    if (now || huge.is_some()) && !line.mem_prealloc {
        line.flag("-mem-prealloc");
        line.mem_prealloc = true;
    }
    if let Some(path) = path {
        line.option("-mem-path", path);
    }
    Ok(())
}

/// Whether memory of the guest is in files, which need a directory.
pub fn is_in_files(domain: &Domain) -> bool {
    let backing = domain.memory_backing.as_deref();
    let source = backing.and_then(|backing| backing.source);
    let numa = domain.cpu.as_deref().and_then(|cpu| cpu.rest.numa.as_deref());
    let devices = &domain.devices.memories;
    let has_access = backing.is_some_and(|backing| backing.access.is_some())
        || numa.is_some_and(|numa| numa.cells.iter().any(|cell| cell.access.is_some()))
        || devices.iter().any(|device| device.access.is_some());
    match source {
        Some(MemorySource::File) => true,
        Some(MemorySource::Memfd) => false,
        Some(MemorySource::Anonymous) | None => has_access,
    }
}

impl Guest<'_> {
    /// The page sizes that the definition asks for; an empty list stands for the host's default size.
    fn hugepages(&self) -> Option<&[Hugepage]> {
        let backing = self.domain.memory_backing.as_deref()?;
        backing.hugepages.as_ref().map(|hugepages| hugepages.pages.as_slice())
    }

    fn hugetlbfs(&self) -> &[Hugetlbfs] {
        self.context.settings.hugetlbfs.as_deref().unwrap_or_default()
    }

    fn default_hugepage_kib(&self) -> Result<u64> {
        match self.hugetlbfs().first() {
            Some(mounted) => Ok(mounted.page_kib),
            None => internal("hugetlbfs filesystem is not mounted or disabled by administrator config"),
        }
    }

    /// The guest's own directory among pages of this size.
    fn hugepage_path(&self, size_kib: u64) -> Result<String> {
        let mounts = self.hugetlbfs();
        if mounts.is_empty() {
            return internal("hugetlbfs filesystem is not mounted or disabled by administrator config");
        }
        let Some(mounted) = mounts.iter().find(|mounted| mounted.page_kib == size_kib) else {
            return internal(format!("Unable to find any usable hugetlbfs mount for {size_kib} KiB"));
        };
        let name = self.context.memory_dir.file_name().unwrap_or_default();
        Ok(mounted.guest_directory(name).display().to_string())
    }

    fn pages(&self, piece: &Backend<'_>) -> Result<Pages> {
        let device = piece.part.device();
        let mut size_kib = device.map_or(0, |device| device.source.page_kib);
        let mut own = size_kib > 0;
        let mut huge = own;
        if let (false, Some(pages)) = (own, self.hugepages()) {
            let node = piece.node.map(|node| node as usize);
            let of_node = |page: &&Hugepage| {
                let nodes = page.nodeset.as_ref();
                node.is_some_and(|node| nodes.is_some_and(|nodes| nodes.contains(node)))
            };
            let found = pages.iter().find(of_node);
            own = found.is_some();
            let found = found.or_else(|| pages.iter().rev().find(|page| page.nodeset.is_none()));
            huge = found.is_some() || pages.is_empty();
            size_kib = found.map_or(0, |page| page.size_kib);
        }
        if size_kib == ORDINARY_KIB {
            (size_kib, own, huge) = (0, false, false);
        } else if huge && size_kib == 0 {
            size_kib = self.default_hugepage_kib()?;
        }
        let backing = self.domain.memory_backing.as_deref();
        let now = backing.is_some_and(|it| it.allocation.mode == Some(MemoryAllocation::Immediate));
        let on_device = device.is_some_and(|device| device.source.path.is_some());
        // A real device has nothing to allocate.
        let prealloc = match device {
            Some(device) if on_device => now || (device.model == MemoryModel::Nvdimm && !device.source.pmem),
            _ => now || huge,
        };
        Ok(Pages { size_kib, own, prealloc })
    }

    /// Whether a device allocates the memory that the guest takes.
    pub(super) fn preallocates(&self, device: &MemoryDevice) -> Result<bool> {
        let (size_kib, node) = (device.target.size_kib, device.target.node);
        let piece = Backend { id: "", size_kib, node, part: Part::Device(device) };
        Ok(self.supports(Cap::DeviceVirtioMemPciPrealloc) && self.pages(&piece)?.prealloc)
    }

    fn access(&self, piece: &Backend<'_>) -> Option<MemoryAccess> {
        let cell = piece.node.and_then(|node| self.numa_cell(node));
        let own = piece.part.device().and_then(|device| device.access);
        let backing = self.domain.memory_backing.as_deref();
        own.or(cell.and_then(|cell| cell.access)).or(backing.and_then(|backing| backing.access))
    }

    fn discard(&self, piece: &Backend<'_>) -> Option<bool> {
        let cell = piece.node.and_then(|node| self.numa_cell(node));
        let own = piece.part.device().and_then(|device| device.discard);
        let given = own.or(cell.and_then(|cell| cell.discard)).map(|discard| discard == YesNo::Yes);
        let usual = self.domain.memory_backing.as_deref().is_some_and(|backing| backing.discard);
        given.or(usual.then_some(true))
    }

    /// Whether QEMU cannot simply take what memory it finds.
    pub(super) fn needs_backend(&self, piece: &Backend<'_>) -> Result<bool> {
        let source = self.domain.memory_backing.as_deref().and_then(|backing| backing.source);
        let tuned = piece.node.is_some_and(|node| self.tuned_node(node).is_some());
        Ok(self.pages(piece)?.own
            || tuned
            || self.access(piece).is_some()
            || matches!(source, Some(MemorySource::File | MemorySource::Memfd)))
    }

    /// Adds the host's pages behind a piece of memory.
    pub(super) fn memory_backend(&self, line: &mut Line<'_>, piece: &Backend<'_>) -> Result<()> {
        let pages = self.pages(piece)?;
        let kind = self.backend_kind(piece, pages)?;
        let mut props = self.backend_head(kind, piece, pages)?;
        let backing = self.domain.memory_backing.as_deref();
        let device = piece.part.device();
        let mut prealloc = pages.prealloc && !line.mem_prealloc;
        match device.map(|device| device.model) {
            Some(MemoryModel::VirtioMem) => {
                prealloc = false;
                if line.mem_prealloc && !self.supports(Cap::DeviceVirtioMemPciPrealloc) {
                    props = props.set("prealloc", false);
                }
                if self.supports(Cap::MemoryBackendReserve) {
                    props = props.set("reserve", false);
                }
            }
            model => {
                prealloc |= model == Some(MemoryModel::SgxEpc) && !line.mem_prealloc;
                let threads = backing.and_then(|backing| backing.allocation.threads).unwrap_or(0);
                props = props.maybe("prealloc", prealloc.then_some(true));
                if !line.mem_prealloc {
                    props = props.nonzero("prealloc-threads", threads);
                }
            }
        }
        props = props.set("size", piece.size_kib.saturating_mul(1024));
        if let Some(nvdimm) = device.filter(|device| device.model == MemoryModel::Nvdimm) {
            props = props.nonzero("align", nvdimm.source.align_kib.saturating_mul(1024));
            props = props.maybe("pmem", nvdimm.source.pmem.then_some(true));
        }
        let nodes = self.host_nodes(piece)?;
        if let Some(nodes) = nodes {
            self.check_host_nodes(nodes)?;
            if let Some(policy) = policy(self.numa_mode(piece.node)) {
                props = props.set("host-nodes", numbers(nodes)).set("policy", policy);
            }
        }
        // Who allocates does so where the memory shall be.
        let allocators = nodes.filter(|_| prealloc && self.supports(Cap::ThreadContext));
        let allocators = allocators.map(|nodes| self.nodes_of_emulator(nodes)).unwrap_or_default();
        if !allocators.is_empty() {
            let context = format!("tc-{}", piece.id);
            line.object(
                Props::object("thread-context", &*context).set("node-affinity", numbers(&allocators)),
            );
            props = props.set("prealloc-context", context);
        }
        line.object(props);
        Ok(())
    }

    fn backend_kind(&self, piece: &Backend<'_>, pages: Pages) -> Result<&'static str> {
        let source = self.domain.memory_backing.as_deref().and_then(|backing| backing.source);
        let device = piece.part.device();
        let on_device = device.is_some_and(|device| device.source.path.is_some());
        if device.is_some_and(|device| device.model == MemoryModel::SgxEpc) {
            return Ok("memory-backend-epc");
        }
        if !on_device && source == Some(MemorySource::Memfd) {
            return match self.supports(Cap::ObjectMemoryMemfd) {
                true => Ok("memory-backend-memfd"),
                false => unsupported("this qemu doesn't support the memory-backend-memfd object"),
            };
        }
        let in_files = pages.size_kib > 0
            || on_device
            || self.access(piece).is_some()
            || source == Some(MemorySource::File);
        Ok(if in_files { "memory-backend-file" } else { "memory-backend-ram" })
    }

    fn backend_head(&self, kind: &'static str, piece: &Backend<'_>, pages: Pages) -> Result<Props> {
        let share = self.access(piece).map(|access| access == MemoryAccess::Shared);
        let props = Props::object(kind, piece.id);
        let props = match kind {
            "memory-backend-memfd" => {
                let props = match pages.size_kib {
                    0 => props,
                    size => props.set("hugetlb", true).set("hugetlbsize", size.saturating_mul(1024)),
                };
                props.maybe("share", share)
            }
            "memory-backend-file" => {
                let device_path = piece.part.device().and_then(|device| device.source.path.as_deref());
                let path = match device_path {
                    Some(path) => path.to_owned(),
                    None if pages.size_kib > 0 => self.hugepage_path(pages.size_kib)?,
                    None => self.context.memory_dir.join(self.file_name(piece)).display().to_string(),
                };
                let discard = self.discard(piece).filter(|_| device_path.is_none());
                props.set("mem-path", path).maybe("discard-data", discard).maybe("share", share)
            }
            _ => return Ok(props),
        };
        // Memory of the whole guest goes by the name that it had before there were backends.
        let is_whole = matches!(piece.part, Part::Everything);
        Ok(match is_whole && self.supports(Cap::XUseCanonicalPathForRamblockId) {
            true => props.set("x-use-canonical-path-for-ramblock-id", false),
            false => props,
        })
    }

    fn file_name<'p>(&self, piece: &Backend<'p>) -> &'p str {
        match piece.part {
            Part::Device(device) => device.info.alias.as_deref().unwrap_or_default(),
            Part::Everything | Part::Node => piece.id,
        }
    }

    fn tuned_node(&self, node: u32) -> Option<&NumatuneNode> {
        self.domain.numatune.as_deref()?.nodes.iter().find(|tune| tune.cellid == node)
    }

    fn numa_mode(&self, node: Option<u32>) -> NumaMode {
        let usual = self.domain.numatune.as_deref().and_then(|tune| tune.memory.as_ref());
        let own = node.and_then(|node| self.tuned_node(node)).map(|tune| tune.mode);
        own.or(usual.map(|memory| memory.mode)).unwrap_or(NumaMode::Strict)
    }

    /// The host's NUMA nodes that a piece of memory shall come from.
    fn host_nodes<'s>(&'s self, piece: &Backend<'s>) -> Result<Option<&'s Bitmap>> {
        if let Some(nodes) = piece.part.device().and_then(|device| device.source.nodes.as_ref()) {
            return Ok(Some(nodes));
        }
        let memory = self.domain.numatune.as_deref().and_then(|tune| tune.memory.as_ref());
        if memory.is_some_and(|memory| memory.placement == Some(Placement::Auto)) {
            let Some(advice) = &self.context.settings.placement_advice else {
                return internal("Advice from numad is needed in case of automatic numa placement");
            };
            return Ok(Some(advice));
        }
        let own = piece.node.and_then(|node| self.tuned_node(node)).map(|tune| &tune.nodeset);
        Ok(own.or(memory.and_then(|memory| memory.nodeset.as_ref())))
    }

    /// The nodes among these on which QEMU's own threads may run at all.
    fn nodes_of_emulator(&self, nodes: &Bitmap) -> Bitmap {
        let pin = self.domain.cputune.as_ref().and_then(|tune| tune.emulatorpin.as_ref());
        let (Some(cpus), Some(there)) =
            (pin.or(self.domain.vcpus.cpuset.as_ref()), &self.context.settings.numa_nodes)
        else {
            return nodes.clone();
        };
        let may_run = |id: &usize| {
            there.iter().any(|node| node.id == *id && node.cpus.iter().any(|cpu| cpus.contains(cpu)))
        };
        nodes.iter().filter(may_run).collect()
    }

    /// Refuses nodes that this host does not have.
    pub(super) fn check_host_nodes(&self, nodes: &Bitmap) -> Result<()> {
        let Some(there) = &self.context.settings.numa_nodes else { return Ok(()) };
        match nodes.iter().find(|id| !there.iter().any(|node| node.id == *id)) {
            Some(node) => unsupported(format!("NUMA node {node} is unavailable")),
            None => Ok(()),
        }
    }
}

fn numbers(nodes: &Bitmap) -> Vec<u64> {
    nodes.iter().map(|node| node as u64).collect()
}

fn policy(mode: NumaMode) -> Option<&'static str> {
    match mode {
        NumaMode::Strict => Some("bind"),
        NumaMode::Preferred => Some("preferred"),
        NumaMode::Interleave => Some("interleave"),
        // The control group does it.
        NumaMode::Restrictive => None,
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
