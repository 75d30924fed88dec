//! The host's memory: how much there is, how much is free, in which pages.

use std::ops::RangeInclusive;

use super::cpus::NODE;
use super::files::HostFiles;
use crate::conf::capabilities::host::Pages;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Origin, Result};

const HUGE: &str = "hugepages-";
const KSM: &str = "/sys/kernel/mm/ksm";

/// Whose memory is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Host,
    Cell(u32),
}

impl Whose {
    /// As clients number cells: -1 is all of them.
    pub fn from_number(number: i32) -> Result<Self> {
        match u32::try_from(number) {
            Ok(number) => Ok(Self::Cell(number)),
            Err(_) if number == -1 => Ok(Self::Host),
            Err(_) => {
                let sentence = "cellNum in virNodeGetMemoryStats only accepts -1 as a negative value";
                Err(Error::refused_argument("virNodeGetMemoryStats", "cellNum", sentence))
            }
        }
    }
}

/// KiB, by the names that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    pub total: u64,
    pub free: u64,
    /// The host's only, not a cell's.
    pub cache: Option<CacheStats>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    pub buffers: u64,
    pub cached: u64,
}

/// Reads /proc/meminfo, or a cell's with `Node 0 ` before each line.
fn parse(meminfo: &str) -> Option<MemoryStats> {
    let field = |name: &str| -> Option<u64> {
        let mut lines = meminfo.lines().map(|line| match line.strip_prefix("Node ") {
            Some(line) => line.trim_start_matches(|char: char| char.is_ascii_digit()).trim_start(),
            None => line,
        });
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().trim_end_matches("kB").trim_end().parse().ok()
    };
    let cache = field("Buffers").zip(field("Cached"));
    Some(MemoryStats {
        total: field("MemTotal")?,
        free: field("MemFree")?,
        cache: cache.map(|(buffers, cached)| CacheStats { buffers, cached }),
    })
}

/// The cells that memory can be asked of by number; a host without NUMA is one cell.
pub(super) fn last_cell(files: &HostFiles) -> Result<u32> {
    let nodes = files.list(&format!("{NODE}/online"))?;
    let last = nodes.and_then(|nodes| nodes.last()).unwrap_or(0);
    Ok(u32::try_from(last).unwrap_or(u32::MAX))
}

fn has_cells(files: &HostFiles) -> bool {
    files.is_there(NODE)
}

pub(super) fn stats(files: &HostFiles, whose: Whose) -> Result<MemoryStats> {
    let path = match whose {
        Whose::Cell(cell) if has_cells(files) => format!("{NODE}/node{cell}/meminfo"),
        Whose::Host | Whose::Cell(_) => "/proc/meminfo".to_owned(),
    };
    let stats = parse(&files.text(&path)?);
    stats.ok_or_else(|| Error::internal_error("no available memory line found").from_origin(Origin::NONE))
}

/// The sum over all cells, which is less than /proc/meminfo shows where memory can still be added.
pub(super) fn whole(files: &HostFiles) -> Result<MemoryStats> {
    let Some(nodes) = files.list(&format!("{NODE}/online"))? else { return stats(files, Whose::Host) };
    let mut sum = MemoryStats { total: 0, free: 0, cache: None };
    for node in nodes.iter() {
        let cell = stats(files, Whose::Cell(u32::try_from(node).unwrap_or(u32::MAX)))?;
        sum.total += cell.total;
        sum.free += cell.free;
    }
    Ok(sum)
}

/// Changes how the kernel merges equal pages; a setting that it does not have changes nothing at all.
pub(super) fn set_merging(files: &HostFiles, params: &Params) -> Result<()> {
    params.validate(&[
        ("shm_pages_to_scan", ParamType::Uint),
        ("shm_sleep_millisecs", ParamType::Uint),
        ("shm_merge_across_nodes", ParamType::Uint),
    ])?;
    let settings = params.0.iter().filter_map(|(name, _)| Some((name, params.uint(name)?)));
    let file = |name: &str| format!("{KSM}/{}", name.strip_prefix("shm_").unwrap_or(name));
    if let Some((name, _)) = settings.clone().find(|(name, _)| !files.is_there(&file(name))) {
        let sentence = format!("Parameter '{name}' is not supported by this kernel");
        return Err(Error::operation_invalid(sentence).from_origin(Origin::NONE));
    }
    for (name, value) in settings {
        let failed = |error| Error::io(format_args!("failed to set {name}"), error);
        files.set(&file(name), &value.to_string()).map_err(failed)?;
    }
    Ok(())
}

/// Whether pages come on top of those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    Add,
    Set,
}

/// Sets huge pages of one size aside.
pub(super) fn allocate(
    files: &HostFiles,
    whose: Whose,
    size_kib: u32,
    count: u64,
    how: Allocation,
) -> Result<()> {
    if size_kib == page_kib() {
        let sentence = "system pages pool can't be modified";
        return Err(Error::operation_unsupported(sentence).from_origin(Origin::NONE));
    }
    free_pages(files, whose, size_kib)?;
    let path = format!("{}/{HUGE}{size_kib}kB/nr_hugepages", huge_pages(whose));
    let there = || files.value::<u64>(&path).map(Option::unwrap_or_default);
    let now = there()?;
    let wanted = match how {
        Allocation::Add => now.saturating_add(count),
        Allocation::Set => count,
    };
    if wanted == now {
        return Ok(());
    }
    let failed = |error| Error::io(format_args!("Unable to write to: {path}"), error);
    files.set(&path, &wanted.to_string()).map_err(failed)?;
    // The kernel does what it can, and says nothing of the rest.
    let given = there()?;
    if given != wanted {
        let sentence = format!("Unable to allocate {wanted} pages. Allocated only {given}");
        return Err(Error::operation_failed(sentence).from_origin(Origin::NONE));
    }
    Ok(())
}

/// How the kernel merges equal pages of guests: names behind `shm_`, wide ones are counters.
pub(super) fn merging(files: &HostFiles) -> Result<Params> {
    let mut params = Params::default();
    for name in [
        "pages_to_scan",
        "sleep_millisecs",
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_volatile",
        "full_scans",
        "merge_across_nodes",
    ] {
        let Some(value) = files.value::<u64>(&format!("{KSM}/{name}"))? else { continue };
        let setting = matches!(name, "pages_to_scan" | "sleep_millisecs" | "merge_across_nodes");
        match u32::try_from(value).ok().filter(|_| setting) {
            Some(value) => params.push(format!("shm_{name}"), value),
            None => params.push(format!("shm_{name}"), value),
        }
    }
    Ok(params)
}

/// Bytes that are free in each cell of a range; 0 for a number that no cell has.
pub(super) fn free_by_cell(files: &HostFiles, range: RangeInclusive<i64>) -> Vec<u64> {
    let free = |cell: i64| {
        let cell = u32::try_from(cell).ok()?;
        Some(stats(files, Whose::Cell(cell)).ok()?.free * 1024)
    };
    range.map(|cell| free(cell).unwrap_or(0)).collect()
}

fn huge_pages(whose: Whose) -> String {
    match whose {
        Whose::Host => "/sys/kernel/mm/hugepages".to_owned(),
        Whose::Cell(cell) => format!("{NODE}/node{cell}/hugepages"),
    }
}

fn page_kib() -> u32 {
    u32::try_from(rustix::param::page_size() / 1024).unwrap_or(4)
}

/// How many pages of one size are free.
pub(super) fn free_pages(files: &HostFiles, whose: Whose, size_kib: u32) -> Result<u64> {
    if size_kib == page_kib() {
        let memory = match whose {
            Whose::Host => whole(files)?,
            Whose::Cell(_) => stats(files, whose)?,
        };
        return Ok(memory.free / u64::from(size_kib));
    }
    let path = format!("{}/{HUGE}{size_kib}kB/free_hugepages", huge_pages(whose));
    files.value(&path)?.ok_or_else(|| {
        let place = match whose {
            Whose::Host => String::new(),
            Whose::Cell(cell) => format!(" on node {cell}"),
        };
        Error::operation_failed(format!("page size {size_kib} is not available{place}"))
            .from_origin(Origin::NONE)
    })
}

/// The pages of every size, huge pages taken off the ordinary ones.
pub(super) fn pages(files: &HostFiles, cell: u32, memory_kib: u64) -> Result<Vec<Pages>> {
    let directory = huge_pages(Whose::Cell(cell));
    let mut pages = Vec::new();
    for name in files.names(&directory)? {
        let size = name.strip_prefix(HUGE).and_then(|size| size.strip_suffix("kB")?.parse().ok());
        let Some(size_kib) = size else { continue };
        let count = files.value(&format!("{directory}/{name}/nr_hugepages"))?.unwrap_or(0);
        pages.push(Pages { size_kib, count });
    }
    let huge: u64 = pages.iter().map(|pages| u64::from(pages.size_kib) * pages.count).sum();
    let size_kib = page_kib();
    pages.push(Pages { size_kib, count: memory_kib.saturating_sub(huge) / u64::from(size_kib) });
    pages.sort_unstable_by_key(|pages| pages.size_kib);
    Ok(pages)
}

/// The page sizes that the host knows.
pub(super) fn page_sizes(files: &HostFiles) -> Result<Vec<u32>> {
    let names = files.names(&huge_pages(Whose::Host))?;
    let huge = names.iter().filter_map(|name| name.strip_prefix(HUGE)?.strip_suffix("kB")?.parse().ok());
    let mut sizes: Vec<u32> = huge.chain([page_kib()]).collect();
    sizes.sort_unstable();
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_a_cell_print_the_same_fields_differently() {
        let host = "MemTotal:       24684096 kB\nMemFree:        23932364 kB\nMemAvailable: 1 kB\n\
                    Buffers:            8464 kB\nCached:           467536 kB\nSwapCached:            0 kB\n";
        let cache = Some(CacheStats { buffers: 8464, cached: 467_536 });
        assert_eq!(parse(host), Some(MemoryStats { total: 24_684_096, free: 23_932_364, cache }));
        let cell = "Node 12 MemTotal:        9005272 kB\nNode 12 MemFree:         8253592 kB\n";
        assert_eq!(parse(cell), Some(MemoryStats { total: 9_005_272, free: 8_253_592, cache: None }));
        assert_eq!(parse("nothing here\n"), None);
    }

    #[test]
    fn settings_are_written_where_the_kernel_has_them() {
        let root = tempfile::tempdir().unwrap();
        let files = HostFiles::below(root.path());
        let huge = "sys/kernel/mm/hugepages/hugepages-2048kB";
        for (path, text) in [
            ("sys/kernel/mm/ksm/pages_to_scan".to_owned(), "100\n"),
            (format!("{huge}/nr_hugepages"), "3\n"),
            (format!("{huge}/free_hugepages"), "1\n"),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut params = Params::default();
        params.push("shm_pages_to_scan", 7u32);
        set_merging(&files, &params).unwrap();
        assert_eq!(merging(&files).unwrap().uint("shm_pages_to_scan"), Some(&7));
        params.push("shm_sleep_millisecs", 7u32);
        let error = set_merging(&files, &params).unwrap_err();
        assert!(
            error.message().ends_with("'shm_sleep_millisecs' is not supported by this kernel"),
            "{error}"
        );

        let pages = || files.value::<u64>(&format!("/{huge}/nr_hugepages")).unwrap();
        for (how, count, expected) in
            [(Allocation::Add, 2, 5), (Allocation::Set, 4, 4), (Allocation::Add, 0, 4)]
        {
            allocate(&files, Whose::Host, 2048, count, how).unwrap();
            assert_eq!(pages(), Some(expected));
        }
        assert!(allocate(&files, Whose::Host, 5, 1, Allocation::Add).is_err());
        assert!(allocate(&files, Whose::Host, page_kib(), 1, Allocation::Set).is_err());
    }
}
