//! What the host gives the guest: CPU time, host CPUs, NUMA nodes, disk bandwidth, a cgroup.

use std::collections::BTreeMap;

use super::memory::PrettySize;
use crate::conf::devices::IoTune;
use crate::conf::xml::{Element, Part, Writer, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::bitmap::Bitmap;
use crate::util::units;

xml! {
    /// Shares and limits of block I/O.
    #[derive(Default)]
    pub struct Blkiotune {
        text weight: Option<u32> = "weight";
        child devices: Vec<BlkioDevice> = "device";
    }
}

xml! {
    pub struct BlkioDevice {
        text path: Box<str> = "path";
        text weight: Option<u32> = "weight";
        text read_iops_sec: Option<u32> = "read_iops_sec";
        text write_iops_sec: Option<u32> = "write_iops_sec";
        text read_bytes_sec: Option<u64> = "read_bytes_sec";
        text write_bytes_sec: Option<u64> = "write_bytes_sec";
    }
}

/// Limits that several disks share, under a name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ThrottleGroup(pub IoTune);

impl ThrottleGroup {
    pub fn name(&self) -> &str {
        self.0.group_name.as_deref().unwrap_or_default()
    }
}

impl Part for ThrottleGroup {
    fn read(element: Element<'_>) -> Result<Self> {
        IoTune::read(element).map(Self)
    }

    fn write_children(&self, out: &mut Writer) {
        let name = &self.0.group_name;
        IoTune { group_name: None, ..self.0.clone() }.write_children(out);
        if let Some(name) = name {
            out.text_element("group_name", name);
        }
    }
}

xml! {
    /// CPU time and the host CPUs of each thread.
    #[derive(Default)]
    pub struct Cputune {
        text shares: Option<u64> = "shares";
        text period: Option<u64> = "period";
        text quota: Option<i64> = "quota";
        text global_period: Option<u64> = "global_period";
        text global_quota: Option<i64> = "global_quota";
        text emulator_period: Option<u64> = "emulator_period";
        text emulator_quota: Option<i64> = "emulator_quota";
        text iothread_period: Option<u64> = "iothread_period";
        text iothread_quota: Option<i64> = "iothread_quota";
        child vcpupin: Vec<VcpuPin> = "vcpupin";
        child_attr emulatorpin: Option<Bitmap> = "emulatorpin" / "cpuset";
        child iothreadpin: Vec<IoThreadPin> = "iothreadpin";
        child emulatorsched: Option<Scheduler> = "emulatorsched";
        child vcpusched: Vec<VcpuSched> = "vcpusched";
        child iothreadsched: Vec<IoThreadSched> = "iothreadsched";
        child cachetune: Vec<Cachetune> = "cachetune";
        child memorytune: Vec<Memorytune> = "memorytune";
    }
}

xml! {
    pub struct VcpuPin {
        attr vcpu: u32 = "vcpu";
        attr cpuset: Bitmap = "cpuset";
    }
}

xml! {
    pub struct IoThreadPin {
        attr iothread: u32 = "iothread";
        attr cpuset: Bitmap = "cpuset";
    }
}

xml_enum! {
    pub enum SchedulerPolicy {
        Batch = "batch",
        Idle = "idle",
        Fifo = "fifo",
        Rr = "rr",
    }
}

xml! {
    #[derive(Copy)]
    pub struct Scheduler {
        attr policy: SchedulerPolicy = "scheduler";
        attr priority: Option<i32> = "priority";
    }
}

xml! {
    pub struct VcpuSched {
        attr vcpus: Bitmap = "vcpus";
        flat scheduler: Scheduler;
    }
}

xml! {
    pub struct IoThreadSched {
        attr iothreads: Bitmap = "iothreads";
        flat scheduler: Scheduler;
    }
}

impl Cputune {
    /// Entries in the order of their threads and one scheduler entry per thread, as libvirt keeps them.
    pub(super) fn normalize(&mut self, vcpus: u32, iothreads: &[super::IoThread]) -> Result<()> {
        self.vcpupin.sort_by_key(|pin| pin.vcpu);
        let given = self.vcpusched.iter().map(|entry| (&entry.vcpus, entry.scheduler));
        let schedulers = one_per_thread("vcpusched", "vcpus", given, |vcpu| {
            let missing = || format!("vCPU '{vcpu}' is not present in domain definition");
            if vcpu < vcpus as usize { Ok(()) } else { Err(ConfError::xml(missing())) }
        })?;
        self.vcpusched = schedulers
            .into_iter()
            .map(|(vcpu, scheduler)| VcpuSched { vcpus: Bitmap::from_iter([vcpu]), scheduler })
            .collect();
        let given = self.iothreadsched.iter().map(|entry| (&entry.iothreads, entry.scheduler));
        let schedulers = one_per_thread("iothreadsched", "iothreads", given, |id| {
            let known = iothreads.iter().any(|thread| thread.id as usize == id);
            if known { Ok(()) } else { Err(ConfError::unsupported(format!("Cannot find 'iothread' : {id}"))) }
        })?;
        self.iothreadsched = schedulers
            .into_iter()
            .map(|(id, scheduler)| IoThreadSched { iothreads: Bitmap::from_iter([id]), scheduler })
            .collect();
        Ok(())
    }
}

fn one_per_thread<'a>(
    element: &str,
    attribute: &str,
    given: impl Iterator<Item = (&'a Bitmap, Scheduler)>,
    check: impl Fn(usize) -> Result<()>,
) -> Result<BTreeMap<usize, Scheduler>> {
    let mut schedulers = BTreeMap::new();
    for (threads, scheduler) in given {
        for thread in threads.iter() {
            check(thread)?;
            if schedulers.insert(thread, scheduler).is_some() {
                let message = format!("'{element}' attributes '{attribute}' must not overlap");
                return Err(ConfError::new(crate::conf::ErrorKind::XmlDetail, message));
            }
        }
    }
    Ok(schedulers)
}

xml! {
    /// A share of the CPUs' cache.
    pub struct Cachetune {
        attr vcpus: Bitmap = "vcpus";
        attr(live) id: Option<Box<str>> = "id";
        child caches: Vec<CacheShare> = "cache";
        child monitors: Vec<CacheMonitor> = "monitor";
    }
}

xml_enum! {
    pub enum CacheType {
        Both = "both",
        Code = "code",
        Data = "data",
    }
}

/// `<cache>` of `<cachetune>`.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheShare {
    pub id: u32,
    pub level: u32,
    pub kind: CacheType,
    pub size: PrettySize,
}

impl Part for CacheShare {
    fn read(element: Element<'_>) -> Result<Self> {
        let size: u64 = element.required("size")?;
        Ok(Self {
            id: element.required("id")?,
            level: element.required("level")?,
            kind: element.required("type")?,
            size: PrettySize(units::scale(size, element.attribute("unit"), 1024, u64::MAX)?),
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        let (size, unit) = self.size.parts();
        out.attribute("id", &self.id);
        out.attribute("level", &self.level);
        out.attribute("type", &self.kind);
        out.attribute("size", &size);
        out.attribute_str("unit", unit);
    }
}

xml! {
    pub struct CacheMonitor {
        attr level: u32 = "level";
        attr vcpus: Bitmap = "vcpus";
    }
}

xml! {
    /// A share of the memory's bandwidth.
    pub struct Memorytune {
        attr vcpus: Bitmap = "vcpus";
        attr(live) id: Option<Box<str>> = "id";
        child nodes: Vec<BandwidthShare> = "node";
        child monitors: Vec<BandwidthMonitor> = "monitor";
    }
}

xml! {
    pub struct BandwidthShare {
        attr id: u32 = "id";
        attr bandwidth: u32 = "bandwidth";
    }
}

xml! {
    pub struct BandwidthMonitor {
        attr vcpus: Bitmap = "vcpus";
    }
}

xml_enum! {
    pub enum NumaMode {
        Strict = "strict",
        Preferred = "preferred",
        Interleave = "interleave",
        Restrictive = "restrictive",
    }
}

xml! {
    /// The host's NUMA nodes the guest's memory comes from.
    #[derive(Default)]
    pub struct Numatune {
        child memory: Option<NumatuneMemory> = "memory";
        child nodes: Vec<NumatuneNode> = "memnode";
    }
}

xml! {
    pub struct NumatuneMemory {
        attr mode: NumaMode = "mode", or NumaMode::Strict;
        attr nodeset: Option<Bitmap> = "nodeset";
        attr placement: Option<super::vcpu::Placement> = "placement";
    }
}

xml! {
    pub struct NumatuneNode {
        attr cellid: u32 = "cellid";
        attr mode: NumaMode = "mode", or NumaMode::Strict;
        attr nodeset: Bitmap = "nodeset";
    }
}

xml! {
    /// Where the guest's processes are accounted.
    #[derive(Default)]
    pub struct Resource {
        text partition: Option<Box<str>> = "partition";
        child_attr fibrechannel_appid: Option<Box<str>> = "fibrechannel" / "appid";
    }
}

xml! {
    /// User and group ids inside a container.
    #[derive(Default)]
    pub struct Idmap {
        child uids: Vec<IdmapEntry> = "uid";
        child gids: Vec<IdmapEntry> = "gid";
    }
}

xml! {
    pub struct IdmapEntry {
        attr start: u32 = "start";
        attr target: u32 = "target";
        attr count: u32 = "count";
    }
}
