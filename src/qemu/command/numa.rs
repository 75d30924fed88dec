//! The guest's NUMA nodes.

use super::line::Line;
use super::memory::{self, Backend, Part};
use super::{Guest, Result, unsupported};
use crate::conf::domain::{AccessType, CacheAssociativity, CachePolicy, Interconnect, Link, Numa, NumaCell};
use crate::util::bitmap::Bitmap;

impl Guest<'_> {
    pub(super) fn numa(&self) -> Option<&Numa> {
        let numa = self.domain.cpu.as_deref()?.rest.numa.as_deref()?;
        (!numa.cells.is_empty()).then_some(numa)
    }

    pub(super) fn has_numa(&self) -> bool {
        self.numa().is_some()
    }

    /// Whether the guest's firmware tells how far memory and processors are from each other.
    pub(super) fn has_hmat(&self) -> bool {
        self.numa().is_some_and(|numa| {
            numa.interconnects.is_some() || numa.cells.iter().any(|cell| !cell.caches.is_empty())
        })
    }

    pub(super) fn numa_cell(&self, id: u32) -> Option<&NumaCell> {
        self.numa()?.cells.iter().find(|cell| cell.id == id)
    }

    /// Whether nodes need memory backends, or QEMU may split the memory itself.
    fn nodes_have_backends(&self, pieces: &[Backend<'_>]) -> Result<bool> {
        let machine = self.caps.machine(self.accel(), self.machine());
        if !machine.is_some_and(|machine| machine.numa_memory) || self.has_hmat() {
            return Ok(true);
        }
        for piece in pieces {
            if self.needs_backend(piece)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses nodes that this host does not have.
    fn check_tuned_nodes(&self) -> Result<()> {
        let Some(tune) = self.domain.numatune.as_deref() else { return Ok(()) };
        let whole = tune.memory.as_ref().and_then(|memory| memory.nodeset.as_ref());
        let nodes = tune.nodes.iter().map(|node| &node.nodeset);
        whole.into_iter().chain(nodes).try_for_each(|nodes| self.check_host_nodes(nodes))
    }
}

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let Some(numa) = guest.numa() else { return Ok(()) };
    guest.check_tuned_nodes()?;
    let ids: Vec<String> = numa.cells.iter().map(|cell| format!("ram-node{}", cell.id)).collect();
    let pieces: Vec<Backend<'_>> = numa
        .cells
        .iter()
        .zip(&ids)
        .map(|(cell, id)| Backend { id, size_kib: cell.memory_kib, node: Some(cell.id), part: Part::Node })
        .collect();
    let backends = guest.nodes_have_backends(&pieces)?;
    if !backends {
        memory::memory_path(guest, line)?;
    }
    let Some(first_with_cpus) = numa.cells.iter().find(|cell| cell.cpus.is_some()) else {
        return unsupported("At least one NUMA node has to have CPUs");
    };
    for (cell, piece) in numa.cells.iter().zip(&pieces) {
        if backends {
            guest.memory_backend(line, piece)?;
        }
        let mut text = format!("node,nodeid={}", cell.id);
        for range in cell.cpus.iter().flat_map(cpu_ranges) {
            text.push_str(&format!(",cpus={range}"));
        }
        if guest.has_hmat() {
            let initiator = if cell.cpus.is_some() { cell.id } else { first_with_cpus.id };
            text.push_str(&format!(",initiator={initiator}"));
        }
        match backends {
            true => text.push_str(&format!(",memdev={}", piece.id)),
            false => text.push_str(&format!(",mem={}", cell.memory_kib / 1024)),
        }
        line.option("-numa", text);
    }
    distances(&numa.cells, line);
    if guest.has_hmat() {
        for link in numa.interconnects.iter().flat_map(|links| &links.0) {
            line.option("-numa", interconnect(link));
        }
        numa.cells.iter().for_each(|cell| caches(cell, line));
    }
    Ok(())
}

/// `0-1,4` as `0-1` and `4`.
fn cpu_ranges(cpus: &Bitmap) -> Vec<String> {
    cpus.to_string().split(',').filter(|range| !range.is_empty()).map(str::to_owned).collect()
}

/// One distance given means that QEMU wants all of them.
fn distances(cells: &[NumaCell], line: &mut Line<'_>) {
    if cells.iter().all(|cell| cell.distances.is_empty()) {
        return;
    }
    let given = |from: &NumaCell, to: &NumaCell| {
        from.distances.iter().find(|distance| distance.id == to.id).map(|distance| distance.value)
    };
    for from in cells {
        for to in cells {
            let usual = if from.id == to.id { 10 } else { 20 };
            // The way back is as long, unless it is said otherwise.
            let value = given(from, to).or_else(|| given(to, from)).unwrap_or(usual);
            line.option("-numa", format!("dist,src={},dst={},val={value}", from.id, to.id));
        }
    }
}

fn interconnect(link: &Interconnect) -> String {
    let (what, unit, link) = match link {
        Interconnect::Latency(link) => ("latency", "", link),
        Interconnect::Bandwidth(link) => ("bandwidth", "K", link),
    };
    let Link { initiator, target, cache, kind, value } = link;
    let hierarchy = match cache {
        Some(1) => "first-level",
        Some(2) => "second-level",
        Some(3) => "third-level",
        _ => "memory",
    };
    let access = match kind {
        AccessType::Access => "access",
        AccessType::Read => "read",
        AccessType::Write => "write",
    };
    format!(
        "hmat-lb,initiator={initiator},target={target},hierarchy={hierarchy},data-type={access}-{what},\
         {what}={value}{unit}"
    )
}

fn caches(cell: &NumaCell, line: &mut Line<'_>) {
    for cache in &cell.caches {
        let associativity = match cache.associativity {
            CacheAssociativity::None => "none",
            CacheAssociativity::Direct => "direct",
            CacheAssociativity::Full => "complex",
        };
        let policy = match cache.policy {
            CachePolicy::None => "none",
            CachePolicy::Writeback => "write-back",
            CachePolicy::Writethrough => "write-through",
        };
        let mut text = format!(
            "hmat-cache,node-id={},size={}K,level={},associativity={associativity},policy={policy}",
            cell.id, cache.size.0, cache.level
        );
        if let Some(line_size) = &cache.line {
            text.push_str(&format!(",line={}", line_size.bytes));
        }
        line.option("-numa", text);
    }
}
