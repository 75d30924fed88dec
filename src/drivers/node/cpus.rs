//! The host's processors: which there are, where they sit, what they did so far.

use std::collections::{BTreeMap, BTreeSet};

use super::files::HostFiles;
use crate::conf::capabilities::host::Cpu;
use crate::error::{Error, Origin, Result};
use crate::util::arch::Arch;
use crate::util::bitmap::Bitmap;

pub(super) const CPU: &str = "/sys/devices/system/cpu";
pub(super) const NODE: &str = "/sys/devices/system/node";

/// Processors that are there and those that work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineCpus {
    pub present: usize,
    pub online: Bitmap,
}

pub(super) fn map(files: &HostFiles) -> Result<OnlineCpus> {
    let present = present(files)?.last().map_or(0, |last| last + 1);
    Ok(OnlineCpus { present, online: online(files)? })
}

fn present(files: &HostFiles) -> Result<Bitmap> {
    files.list(&format!("{CPU}/present"))?.map_or_else(|| online(files), Ok)
}

fn online(files: &HostFiles) -> Result<Bitmap> {
    let online = files.list(&format!("{CPU}/online"))?;
    online.ok_or_else(|| Error::no_support("Host CPU counting not supported on this platform"))
}

/// One processor's place. A kernel that does not say puts everything in place 0.
pub(super) fn place(files: &HostFiles, id: usize) -> Result<Cpu> {
    let number = |name: &str| -> Result<u32> {
        let value: Option<i64> = files.value(&format!("{CPU}/cpu{id}/topology/{name}"))?;
        Ok(value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0))
    };
    let siblings = files.list(&format!("{CPU}/cpu{id}/topology/thread_siblings_list"))?;
    Ok(Cpu {
        id: u32::try_from(id).unwrap_or(u32::MAX),
        socket: number("physical_package_id")?,
        die: number("die_id")?,
        cluster: number("cluster_id")?,
        core: number("core_id")?,
        siblings: siblings.unwrap_or_else(|| [id].into_iter().collect()),
    })
}

/// `virNodeInfo` without its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) cpus: u32,
    pub(super) nodes: u32,
    pub(super) sockets: u32,
    pub(super) cores: u32,
    pub(super) threads: u32,
}

/// How the host's processors are arranged. Sockets, cores and threads are the most that any node has;
/// where those do not multiply to the number of processors, all count as cores of one socket.
pub(super) fn shape(files: &HostFiles, arch: Option<Arch>) -> Result<Shape> {
    let (present, online) = (present(files)?, online(files)?);
    let nodes = files.list(&format!("{NODE}/online"))?.unwrap_or_default();
    let mut members = Vec::new();
    for node in nodes.iter() {
        members.push(files.list(&format!("{NODE}/node{node}/cpulist"))?.unwrap_or_default());
    }
    if members.iter().all(Bitmap::is_empty) {
        members = vec![present.clone()];
    }

    let mut shape = Shape { cpus: 0, nodes: count(members.len()), sockets: 0, cores: 0, threads: 0 };
    let offline = present.iter().filter(|cpu| !online.contains(*cpu)).count();
    for members in members {
        let mut cores: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for id in members.iter().filter(|id| online.contains(*id)) {
            let cpu = place(files, id)?;
            let core = if arch.is_some_and(Arch::is_s390) { cpu.id } else { cpu.core };
            cores.entry(cpu.socket).or_default().insert(core);
            shape.cpus += 1;
            shape.threads = shape.threads.max(count(cpu.siblings.count()));
        }
        shape.sockets = shape.sockets.max(count(cores.len()));
        shape.cores = shape.cores.max(cores.values().map(|cores| count(cores.len())).max().unwrap_or(0));
    }
    if shape.cpus == 0 {
        return Err(Error::internal_error("no CPUs found").from_origin(Origin::NONE));
    }
    let all = shape.cpus + count(offline);
    if shape.nodes * shape.sockets * shape.cores * shape.threads != all {
        return Ok(Shape { cpus: shape.cpus, nodes: 1, sockets: 1, cores: all, threads: 1 });
    }
    Ok(shape)
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The clock that /proc/cpuinfo gives for the last processor; 0 where it gives none.
pub(super) fn mhz(cpuinfo: &str, arch: Option<Arch>) -> u32 {
    let name = match arch {
        Some(arch) if arch.is_x86() => "cpu MHz",
        Some(arch) if arch.is_ppc() => "clock",
        Some(arch) if arch.is_s390() => "cpu MHz dynamic",
        Some(Arch::Loongarch64) => "CPU MHz",
        _ => return 0,
    };
    let fields = cpuinfo.lines().rev().filter_map(|line| line.split_once(':'));
    let mut clocks = fields.filter(|(field, _)| field.trim_end() == name);
    let whole = clocks.next().and_then(|(_, value)| value.trim().split('.').next()?.parse().ok());
    whole.unwrap_or(0)
}

/// Whose time is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    All,
    One(u32),
}

impl Which {
    /// As clients number processors: -1 is all of them.
    pub fn from_number(number: i32) -> Result<Self> {
        match u32::try_from(number) {
            Ok(number) => Ok(Self::One(number)),
            Err(_) if number == -1 => Ok(Self::All),
            Err(_) => {
                let sentence = "cpuNum in virNodeGetCPUStats only accepts -1 as a negative value";
                Err(Error::refused_argument("virNodeGetCPUStats", "cpuNum", sentence))
            }
        }
    }
}

/// Time spent since boot, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuStats {
    pub kernel: u64,
    pub user: u64,
    pub idle: u64,
    pub iowait: u64,
}

/// Finds a processor's line in /proc/stat; `hertz` is the length of its unit.
pub(super) fn stats(stat: &str, which: Which, hertz: u64) -> Option<CpuStats> {
    let name = match which {
        Which::All => "cpu".to_owned(),
        Which::One(id) => format!("cpu{id}"),
    };
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, rest @ ..] = ticks.as_slice() else { return None };
    let extra = |at: usize| rest.get(at).copied().unwrap_or(0);
    let time = |ticks: u64| ticks.saturating_mul(1_000_000_000 / hertz.max(1));
    Some(CpuStats {
        kernel: time(system + extra(1) + extra(2)),
        user: time(user + nice),
        idle: time(*idle),
        iowait: time(extra(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  7799 2 4891 243063 545 0 53 18 0 0\n\
                        cpu0 3401 0 1852 122818 84 1 15 7 0 0\n\
                        cpu10 1 2 3 4\n\
                        intr 219996 0 0\n";

    #[test]
    fn times_are_found_by_processor() {
        let all = CpuStats {
            kernel: 49_440_000_000,
            user: 78_010_000_000,
            idle: 2_430_630_000_000,
            iowait: 5_450_000_000,
        };
        assert_eq!(stats(STAT, Which::All, 100), Some(all));
        let first = CpuStats {
            kernel: 18_680_000_000,
            user: 34_010_000_000,
            idle: 1_228_180_000_000,
            iowait: 840_000_000,
        };
        assert_eq!(stats(STAT, Which::One(0), 100), Some(first));
        let old = CpuStats { kernel: 30_000_000, user: 30_000_000, idle: 40_000_000, iowait: 0 };
        assert_eq!(stats(STAT, Which::One(10), 100), Some(old));
        assert_eq!(stats(STAT, Which::One(1), 100), None);
    }

    #[test]
    fn the_clock_is_the_last_processors_without_its_fraction() {
        let cpuinfo = "cpu MHz\t\t: 2000.5\nmodel\t: 1\n\ncpu MHz\t\t: 2596.126\n";
        assert_eq!(mhz(cpuinfo, Some(Arch::X86_64)), 2596);
        assert_eq!(mhz(cpuinfo, Some(Arch::Aarch64)), 0);
        assert_eq!(mhz("", Some(Arch::X86_64)), 0);
    }
}
