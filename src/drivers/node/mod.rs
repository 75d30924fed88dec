//! The host itself: its processors and memory, as the kernel shows them.
//!
//! Pure readers of the kernel's texts (`cpus`, `memory`) over `files`, which knows where /proc and /sys
//! are. Nothing is kept: what a call answers is what the kernel says at that moment.

mod cpus;
mod files;
mod memory;
mod processor;
mod sysinfo;

use std::path::Path;

pub use cpus::{CpuStats, OnlineCpus, Which};
pub use memory::{Allocation, CacheStats, MemoryStats, Whose};

use self::files::HostFiles;
use crate::conf::capabilities::cpu::CpuMap;
use crate::conf::capabilities::host::{CacheBank, CacheKind, Cell, Cpu, Distance, HostCpu};
use crate::drivers::domain::blocking;
use crate::drivers::params::Params;
use crate::error::{Error, Origin, Result};
use crate::util::arch::Arch;
use crate::util::bitmap::Bitmap;

/// The host.
#[derive(Debug, Clone)]
pub struct Node {
    files: HostFiles,
    arch: Option<Arch>,
}

/// `virNodeInfo`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub model: &'static str,
    pub memory_kib: u64,
    pub cpus: u32,
    pub mhz: u32,
    pub nodes: u32,
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
}

impl Node {
    /// The host whose /proc and /sys are below `root`: `/` but in tests.
    pub fn new(root: &Path) -> Self {
        Self { files: HostFiles::below(root), arch: Arch::host() }
    }

    pub fn arch(&self) -> Option<Arch> {
        self.arch
    }

    pub fn info(&self) -> Result<NodeInfo> {
        let shape = cpus::shape(&self.files, self.arch)?;
        Ok(NodeInfo {
            model: self.arch.map_or("", Arch::as_str),
            memory_kib: memory::whole(&self.files)?.total,
            cpus: shape.cpus,
            mhz: cpus::mhz(&self.files.text("/proc/cpuinfo")?, self.arch),
            nodes: shape.nodes,
            sockets: shape.sockets,
            cores: shape.cores,
            threads: shape.threads,
        })
    }

    /// What the host's firmware says of the host: `<sysinfo>`.
    pub fn sysinfo(&self) -> Result<String> {
        sysinfo::xml(&self.files)
    }

    /// The processors that are there and those that work.
    pub fn online(&self) -> Result<OnlineCpus> {
        cpus::map(&self.files)
    }

    pub fn cpu_stats(&self, which: Which) -> Result<CpuStats> {
        let stat = self.files.text("/proc/stat")?;
        let hertz = rustix::param::clock_ticks_per_second();
        cpus::stats(&stat, which, hertz).ok_or_else(|| {
            let function = "virHostCPUGetStatsLinux";
            Error::refused_argument(function, "cpuNum", format!("Invalid cpuNum in {function}"))
        })
    }

    /// How the kernel merges equal pages, as named values.
    pub fn memory_merging(&self) -> Result<Params> {
        memory::merging(&self.files)
    }

    pub fn memory_stats(&self, whose: Whose) -> Result<MemoryStats> {
        if let Whose::Cell(cell) = whose {
            let last = memory::last_cell(&self.files)?;
            if cell > last {
                let function = "virHostMemGetStats";
                let sentence = format!("cellNum in {function} must be less than or equal to {last}");
                return Err(Error::refused_argument(function, "cellNum", sentence));
            }
        }
        memory::stats(&self.files, whose)
    }

    /// Bytes.
    pub fn free_memory(&self) -> Result<u64> {
        Ok(memory::whole(&self.files)?.free * 1024)
    }

    /// Bytes that are free in up to `max` cells from `start` on.
    pub fn cells_free_memory(&self, start: i32, max: u32) -> Result<Vec<u64>> {
        let last = self.end_of_cells(start, max)?;
        Ok(memory::free_by_cell(&self.files, i64::from(start)..=last))
    }

    /// How many pages of each size are free in up to `max` cells from `start` on; cell -1 is the whole host.
    pub fn free_pages(&self, sizes_kib: &[u32], start: i32, max: u32) -> Result<Vec<u64>> {
        let last = self.end_of_cells(start, max)?;
        let mut counts = Vec::new();
        for cell in i64::from(start)..=last {
            let whose = u32::try_from(cell).map_or(Whose::Host, Whose::Cell);
            for size in sizes_kib {
                counts.push(memory::free_pages(&self.files, whose, *size)?);
            }
        }
        if counts.is_empty() {
            return Err(Error::internal_error("no suitable info found").from_origin(Origin::NONE));
        }
        Ok(counts)
    }

    /// Sets pages of each size aside in up to `max` cells from `start` on; answers how many kinds of pages.
    pub async fn allocate_pages(
        &self,
        pages: Vec<(u32, u64)>,
        start: i32,
        max: u32,
        how: Allocation,
    ) -> Result<usize> {
        let last = self.end_of_cells(start, max)?;
        let files = self.files.clone();
        // The kernel takes its time for pages of a gigabyte.
        blocking(move || {
            let mut done = 0;
            for cell in i64::from(start)..=last {
                let whose = u32::try_from(cell).map_or(Whose::Host, Whose::Cell);
                for (size_kib, count) in &pages {
                    memory::allocate(&files, whose, *size_kib, *count, how)?;
                    done += 1;
                }
            }
            Ok(done)
        })
        .await
    }

    /// Changes how the kernel merges equal pages of guests.
    pub async fn set_merging(&self, params: Params) -> Result<()> {
        let files = self.files.clone();
        blocking(move || memory::set_merging(&files, &params)).await
    }

    fn end_of_cells(&self, start: i32, max: u32) -> Result<i64> {
        let last = i64::from(memory::last_cell(&self.files)?);
        if i64::from(start) > last {
            let sentence = format!("start cell {start} out of range (0-{last})");
            return Err(Error::internal_error(sentence).from_origin(Origin::NONE));
        }
        Ok(last.min(i64::from(start) + i64::from(max) - 1))
    }

    /// The host's processor by name, as far as `map` and the host tell.
    pub fn cpu(&self, map: &CpuMap) -> Result<HostCpu> {
        Ok(processor::describe(map, &self.files.text("/proc/cpuinfo")?))
    }

    /// Bits of a physical address; not every architecture says.
    pub fn phys_bits(&self) -> Result<Option<u32>> {
        Ok(processor::phys_bits(&self.files.text("/proc/cpuinfo")?))
    }

    /// Whether PCI devices can be handed to guests.
    pub fn has_vfio(&self) -> bool {
        self.has_iommu() && self.files.is_there("/dev/vfio/vfio")
    }

    /// Whether devices can be kept to their guest's memory.
    pub fn has_iommu(&self) -> bool {
        self.files.names("/sys/kernel/iommu_groups").is_ok_and(|groups| !groups.is_empty())
    }

    /// The page sizes in KiB that the host knows.
    pub fn page_sizes(&self) -> Result<Vec<u32>> {
        memory::page_sizes(&self.files)
    }

    /// The NUMA cells; a host without NUMA is one.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let Some(nodes) = self.files.list(&format!("{}/online", cpus::NODE))? else {
            let memory = memory::whole(&self.files)?.total;
            let cpus = self.places(&cpus::map(&self.files)?.online)?;
            return Ok(vec![Cell { memory_kib: memory, cpus, ..Cell::default() }]);
        };
        nodes.iter().map(|node| self.cell(u32::try_from(node).unwrap_or(u32::MAX))).collect()
    }

    fn cell(&self, id: u32) -> Result<Cell> {
        let directory = format!("{}/node{id}", cpus::NODE);
        let memory_kib = memory::stats(&self.files, Whose::Cell(id))?.total;
        let distances = self.files.text_if_there(&format!("{directory}/distance"))?.unwrap_or_default();
        let distances = distances.split_ascii_whitespace().map(|value| value.parse().unwrap_or(0));
        let distances = (0..).zip(distances).filter(|(_, value)| *value != 0);
        let members = self.files.list(&format!("{directory}/cpulist"))?.unwrap_or_default();
        Ok(Cell {
            id,
            memory_kib,
            pages: memory::pages(&self.files, id, memory_kib)?,
            distances: distances.map(|(cell, value)| Distance { cell, value }).collect(),
            cpus: self.places(&members)?,
        })
    }

    fn places(&self, cpus: &Bitmap) -> Result<Vec<Cpu>> {
        cpus.iter().map(|id| cpus::place(&self.files, id)).collect()
    }

    /// Caches of the second level and above, each once.
    pub fn cache_banks(&self) -> Result<Vec<CacheBank>> {
        let mut banks: Vec<CacheBank> = Vec::new();
        for cpu in self.online()?.online.iter() {
            let directory = format!("{}/cpu{cpu}/cache", cpus::CPU);
            for index in self.files.names(&directory)? {
                if !index.starts_with("index") {
                    continue;
                }
                let bank = self.cache_bank(&format!("{directory}/{index}"))?;
                banks.extend(bank.filter(|bank| !banks.contains(bank)));
            }
        }
        banks.sort_by_key(|bank| (bank.level, bank.id));
        Ok(banks)
    }

    fn cache_bank(&self, directory: &str) -> Result<Option<CacheBank>> {
        let number = |name: &str| self.files.value::<u32>(&format!("{directory}/{name}"));
        let (Some(level @ 2..), Some(id)) = (number("level")?, number("id")?) else { return Ok(None) };
        let kind = match self.files.text_if_there(&format!("{directory}/type"))?.as_deref().map(str::trim) {
            Some("Data") => CacheKind::Data,
            Some("Instruction") => CacheKind::Code,
            Some("Unified") => CacheKind::Both,
            _ => return Ok(None),
        };
        let size = self.files.text_if_there(&format!("{directory}/size"))?;
        let size = size.and_then(|size| size.trim().strip_suffix('K')?.parse::<u64>().ok());
        let cpus = self.files.list(&format!("{directory}/shared_cpu_list"))?;
        let found = size.zip(cpus);
        Ok(found.map(|(size, cpus)| CacheBank { id, level, kind, size: size * 1024, cpus }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two sockets of two cores of two threads in two cells; the last processor is switched off.
    fn host() -> (tempfile::TempDir, Node) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        };
        write("sys/devices/system/cpu/present", "0-7");
        write("sys/devices/system/cpu/online", "0-6");
        write("sys/devices/system/node/online", "0-1");
        for cpu in 0..7 {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            write(&format!("{topology}/physical_package_id"), &(cpu / 4).to_string());
            write(&format!("{topology}/core_id"), &(cpu / 2 % 2).to_string());
            write(&format!("{topology}/die_id"), "-1");
            let first = cpu / 2 * 2;
            let siblings = if first == 6 { "6".to_owned() } else { format!("{first}-{}", first + 1) };
            write(&format!("{topology}/thread_siblings_list"), &siblings);
            for (index, level, kind, shared) in
                [(0, 1, "Data", cpu..=cpu), (2, 2, "Unified", first..=first + 1)]
            {
                let cache = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
                write(&format!("{cache}/level"), &level.to_string());
                write(&format!("{cache}/id"), &(cpu / 2).to_string());
                write(&format!("{cache}/type"), kind);
                write(&format!("{cache}/size"), "1024K");
                write(&format!("{cache}/shared_cpu_list"), &format!("{}-{}", shared.start(), shared.end()));
            }
        }
        for node in 0..2 {
            let directory = format!("sys/devices/system/node/node{node}");
            write(&format!("{directory}/cpulist"), ["0-3", "4-7"][node]);
            write(&format!("{directory}/distance"), ["10 20", "20 10"][node]);
            let meminfo = format!("Node {node} MemTotal: 8192 kB\nNode {node} MemFree: 40{node}0 kB");
            write(&format!("{directory}/meminfo"), &meminfo);
            write(&format!("{directory}/hugepages/hugepages-2048kB/nr_hugepages"), "1");
            write(&format!("{directory}/hugepages/hugepages-2048kB/free_hugepages"), "1");
        }
        write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "2");
        write("proc/cpuinfo", "cpu MHz\t: 2400.1");
        write("proc/meminfo", "MemTotal: 20000 kB\nMemFree: 9000 kB\nBuffers: 1 kB\nCached: 2 kB");
        write("proc/stat", "cpu  1 1 1 1 1 1 1");
        let node = Node { arch: Some(Arch::X86_64), ..Node::new(root.path()) };
        (root, node)
    }

    #[test]
    fn processors_are_counted_per_cell() {
        let (_root, node) = host();
        let info = node.info().unwrap();
        let shape = (info.cpus, info.nodes, info.sockets, info.cores, info.threads);
        // One socket a cell, two cores a socket, two threads a core, and the one that is off makes eight.
        assert_eq!(shape, (7, 2, 1, 2, 2));
        assert_eq!((info.model, info.mhz, info.memory_kib), ("x86_64", 2400, 16384));
        let map = node.online().unwrap();
        assert_eq!((map.present, map.online.count()), (8, 7));
    }

    #[test]
    fn an_arrangement_that_does_not_multiply_up_is_one_socket_of_cores() {
        let (root, node) = host();
        fs::write(root.path().join("sys/devices/system/cpu/online"), "0-4\n").unwrap();
        fs::write(root.path().join("sys/devices/system/cpu/present"), "0-5\n").unwrap();
        let info = node.info().unwrap();
        assert_eq!((info.cpus, info.nodes, info.sockets, info.cores, info.threads), (5, 1, 1, 6, 1));
    }

    #[test]
    fn cells_hold_their_processors_pages_and_distances() {
        let (_root, node) = host();
        let cells = node.cells().unwrap();
        let [first, second] = cells.as_slice() else { panic!("{cells:?}") };
        assert_eq!((first.id, first.memory_kib, second.cpus.len()), (0, 8192, 4));
        assert_eq!(second.distances, [Distance { cell: 0, value: 20 }, Distance { cell: 1, value: 10 }]);
        let sizes: Vec<_> = first.pages.iter().map(|pages| (pages.size_kib, pages.count)).collect();
        assert_eq!(sizes, [(4, (8192 - 2048) / 4), (2048, 1)]);
        let cpu = &second.cpus[1];
        assert_eq!((cpu.id, cpu.socket, cpu.core, cpu.die), (5, 1, 0, 0));
        let banks = node.cache_banks().unwrap();
        let [bank, ..] = banks.as_slice() else { panic!("no cache") };
        assert_eq!((banks.len(), bank.level, bank.kind, bank.size), (4, 2, CacheKind::Both, 1 << 20));
    }

    #[test]
    fn memory_is_asked_of_the_host_or_of_cells() {
        let (_root, node) = host();
        assert_eq!(node.free_memory().unwrap(), (4000 + 4010) * 1024);
        assert_eq!(node.cells_free_memory(1, 5).unwrap(), [4010 * 1024]);
        assert_eq!(node.cells_free_memory(-1, 2).unwrap(), [0, 4000 * 1024]);
        assert_eq!(node.free_pages(&[4, 2048], 0, 2).unwrap(), [1000, 1, 1002, 1]);
        assert_eq!(node.free_pages(&[2048], -1, 1).unwrap(), [2]);
        assert_eq!(node.memory_stats(Whose::Host).unwrap().total, 20000);
        assert_eq!(node.memory_stats(Whose::Cell(1)).unwrap().cache, None);
    }

    #[test]
    fn bad_numbers_are_refused_in_libvirts_words() {
        let (_root, node) = host();
        let cases = [
            (node.cpu_stats(Which::One(9)).map(drop), 8, "Invalid cpuNum in virHostCPUGetStatsLinux"),
            (
                node.memory_stats(Whose::Cell(9)).map(drop),
                8,
                "cellNum in virHostMemGetStats must be less than or equal to 1",
            ),
            (node.cells_free_memory(5, 1).map(drop), 1, "internal error: start cell 5 out of range (0-1)"),
            (
                node.free_pages(&[5], 0, 1).map(drop),
                9,
                "operation failed: page size 5 is not available on node 0",
            ),
            (node.free_pages(&[5], -1, 1).map(drop), 9, "operation failed: page size 5 is not available"),
        ];
        for (answer, code, sentence) in cases {
            let error = answer.unwrap_err();
            assert_eq!((error.code.0, error.message().as_str()), (code, sentence));
        }
    }

    #[test]
    fn this_host_has_all_of_it() {
        let node = Node::new(Path::new("/"));
        let info = node.info().unwrap();
        assert!(info.cpus > 0 && info.memory_kib > 0, "{info:?}");
        assert!(node.cpu_stats(Which::All).unwrap().user > 0);
        assert!(node.cpu_stats(Which::One(0)).unwrap().idle > 0);
        assert!(node.memory_stats(Whose::Host).unwrap().cache.is_some());
        assert!(!node.cells().unwrap().is_empty());
    }
}
