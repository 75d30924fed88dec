//! One domain's numbers, group by group, in libvirt's names, types and order.

use std::sync::Arc;
use std::time::Duration;

use super::Groups;
use super::links::{Direction, Links};
use crate::conf::devices::{BalloonModel, Disk, Storage, StorageFormat};
use crate::conf::domain::Domain;
use crate::drivers::domain::flags::StatsFlags;
use crate::drivers::domain::image_sizes::{Image, ImageSizes};
use crate::drivers::domain::reads::{Stat, resident_kib};
use crate::drivers::domain::usage::{BlockInfo, guest_memory};
use crate::drivers::params::{Name, ParamValue, Params};
use crate::qemu::block;
use crate::qemu::job::State;
use crate::qemu::monitor::DirtyRate;
use crate::qemu::stats::{Account, BlockAccount, Custom, CustomValue, NodeAccount};

/// Everything that is known of one domain.
pub(super) struct Observed<'a> {
    state: &'a State,
    definition: &'a Domain,
    account: Arc<Account>,
    links: &'a Links,
    sizes: &'a ImageSizes,
    params: Params,
}

impl<'a> Observed<'a> {
    /// Nothing of a domain that is being removed.
    pub(super) fn new(state: &'a State, links: &'a Links, sizes: &'a ImageSizes) -> Option<Self> {
        let account = state.told().map(|told| told.account()).unwrap_or_default();
        // A stopped guest without devices has ten.
        let (definition, params) = (state.definition()?, Params(Vec::with_capacity(16)));
        Some(Self { state, definition, account, links, sizes, params })
    }

    pub(super) fn params(mut self, groups: Groups, flags: StatsFlags) -> Params {
        for group in groups.iter() {
            match group {
                Groups::STATE => self.state(),
                Groups::CPU_TOTAL => self.cpu_total(),
                Groups::BALLOON => self.balloon(),
                Groups::VCPU => self.vcpus(),
                Groups::INTERFACE => self.interfaces(),
                Groups::BLOCK => self.block(flags),
                Groups::IOTHREAD => self.iothreads(),
                Groups::DIRTYRATE => self.dirty_rate(),
                Groups::VM => self.vm(),
                // Of these nothing is measured here: no perf events are enabled, no cache is monitored.
                _ => {}
            }
        }
        self.params
    }

    fn push(&mut self, name: impl Into<Name>, value: impl Into<ParamValue>) {
        self.params.push(name, value);
    }

    fn state(&mut self) {
        let (state, reason) = self.state.run.numbers();
        self.push("state.state", state);
        self.push("state.reason", reason);
    }

    /// What QEMU has used. libvirt answers the daemon's own time for a domain that does not run.
    fn cpu_total(&mut self) {
        let stat = self.state.process().and_then(|process| Stat::read(process.pid(), None));
        let time = |part: fn(&Stat) -> Duration| stat.as_ref().map_or(0, |stat| nanoseconds(part(stat)));
        let times = [
            ("cpu.time", time(Stat::cpu_time)),
            ("cpu.user", time(Stat::user_time)),
            ("cpu.system", time(Stat::system_time)),
        ];
        times.into_iter().for_each(|(name, time)| self.push(name, time));
        if !self.state.is_active() {
            return;
        }
        self.push("cpu.cache.monitor.count", 0u32);
        let Some(vcpus) = self.account.vcpus.clone() else { return };
        for (name, stat) in [
            ("cpu.haltpoll.success.time", "halt_poll_success_ns.sum"),
            ("cpu.haltpoll.fail.time", "halt_poll_fail_ns.sum"),
        ] {
            let found = vcpus.values().flatten().filter(|custom| &*custom.name == stat);
            let sum = found.fold(0u64, |sum, custom| match custom.value {
                CustomValue::Number(number) => sum.saturating_add(number),
                CustomValue::Truth(_) => sum,
            });
            self.push(name, sum);
        }
    }

    fn balloon(&mut self) {
        let memory = &self.definition.memory;
        let has_balloon =
            self.definition.devices.memballoons.iter().any(|balloon| balloon.model != BalloonModel::None);
        let (current, maximum) = (memory.current_kib, memory.total_kib);
        self.push("balloon.current", if has_balloon { current } else { maximum });
        self.push("balloon.maximum", maximum);
        if let Some(told) = self.account.balloon.clone() {
            guest_memory(&told).for_each(|stat| {
                if let Some(name) = balloon_name(stat.tag) {
                    self.push(format!("balloon.{name}"), stat.value);
                }
            });
        }
        if let Some(resident) = resident_kib(self.state) {
            self.push("balloon.rss", resident);
        }
    }

    fn vcpus(&mut self) {
        let vcpus = &self.definition.vcpus;
        let (current, maximum) = (vcpus.online(), vcpus.max);
        self.push("vcpu.current", current);
        self.push("vcpu.maximum", maximum);
        let Some(process) = self.state.process() else { return };
        let pid = process.pid();
        let custom = self.account.vcpus.clone();
        for (number, thread) in
            self.state.vcpu_threads.iter().copied().enumerate().filter(|(_, thread)| *thread != 0)
        {
            /// `VIR_VCPU_RUNNING`
            const RUNNING: i32 = 1;
            let Some(stat) = Stat::read(pid, Some(thread)) else { continue };
            self.push(format!("vcpu.{number}.state"), RUNNING);
            self.push(format!("vcpu.{number}.time"), nanoseconds(stat.cpu_time()));
            self.push(format!("vcpu.{number}.wait"), waited(pid, thread));
            self.push(format!("vcpu.{number}.delay"), delayed(pid, thread));
            let told = custom.as_ref().and_then(|told| told.get(&thread));
            self.custom(&format!("vcpu.{number}"), told.map_or(&[][..], |told| told));
        }
    }

    fn custom(&mut self, prefix: &str, stats: &[Custom]) {
        for Custom { name, value } in stats {
            let name = format!("{prefix}.{name}");
            match *value {
                CustomValue::Number(number) => self.push(name, number),
                CustomValue::Truth(truth) => self.push(name, truth),
            }
        }
    }

    fn interfaces(&mut self) {
        if !self.state.is_active() {
            return;
        }
        let interfaces = &self.definition.devices.interfaces;
        self.push("net.count", count(interfaces.len()));
        for (number, interface) in interfaces.iter().enumerate() {
            let Some(dev) = &interface.target.dev else { continue };
            self.push(format!("net.{number}.name"), &**dev);
            let Some(stats) = self.links.of(interface) else { continue };
            for (way, Direction { bytes, packets, errors, dropped }) in
                [("rx", stats.receive), ("tx", stats.transmit)]
            {
                for (name, value) in
                    [("bytes", bytes), ("pkts", packets), ("errs", errors), ("drop", dropped)]
                {
                    self.push(format!("net.{number}.{way}.{name}"), value);
                }
            }
        }
    }

    fn block(&mut self, flags: StatsFlags) {
        let images = images(self.definition, flags);
        self.push("block.count", count(images.len()));
        for (number, image) in images.into_iter().enumerate() {
            self.image(number, image);
        }
    }

    fn size(&self, image: &Storage, format: StorageFormat) -> Option<BlockInfo> {
        self.sizes.of(&(image.path()?.to_owned(), format))
    }

    fn image(&mut self, number: usize, (disk, image, format): (&Disk, &Storage, StorageFormat)) {
        let name = |what: &str| format!("block.{number}.{what}");
        self.push(name("name"), disk.name());
        if let Some(path) = image.path() {
            self.push(name("path"), path);
        }
        if let Some(index) = image.index.filter(|_| self.state.is_active() && !image.is_empty()) {
            self.push(name("backingIndex"), index);
        }
        if !self.state.is_active() {
            // No guest to ask: the file itself tells.
            if let Some(size) = self.size(image, format) {
                let sizes = [
                    ("allocation", size.allocation),
                    ("capacity", size.capacity),
                    ("physical", size.physical),
                ];
                sizes
                    .into_iter()
                    .filter(|(_, size)| *size > 0)
                    .for_each(|(what, size)| self.push(name(what), size));
            }
            return;
        }
        if let Some(account) = self.account.block.clone() {
            self.counted_image(&account, number, (disk, image, format));
        }
    }

    fn counted_image(
        &mut self,
        account: &BlockAccount,
        number: usize,
        (disk, image, format): (&Disk, &Storage, StorageFormat),
    ) {
        let name = |what: &str| format!("block.{number}.{what}");
        let alias = disk.info.alias.as_deref().filter(|_| std::ptr::eq(image, &disk.storage));
        if let Some(stats) = alias.and_then(|alias| account.frontend(alias)) {
            let counters = [
                ("rd.reqs", stats.rd_operations),
                ("rd.bytes", stats.rd_bytes),
                ("rd.times", stats.rd_total_time_ns),
                ("wr.reqs", stats.wr_operations),
                ("wr.bytes", stats.wr_bytes),
                ("wr.times", stats.wr_total_time_ns),
                ("fl.reqs", stats.flush_operations),
                ("fl.times", stats.flush_total_time_ns),
            ];
            counters.into_iter().for_each(|(what, value)| self.push(name(what), value));
        }
        let Some(nodes) = block::Nodes::of(image, format) else { return };
        if let Some(NodeAccount { highest_write, capacity, physical, .. }) = account.node(&nodes.top) {
            let physical = physical.or_else(|| Some(self.size(image, format)?.allocation)).unwrap_or(0);
            self.push(name("allocation"), *highest_write);
            let sizes = [("capacity", *capacity), ("physical", physical)];
            sizes
                .into_iter()
                .filter(|(_, size)| *size > 0)
                .for_each(|(what, size)| self.push(name(what), size));
            if physical == 0
                && let Some(size) = self.size(image, format)
            {
                self.push(name("physical"), size.physical);
            }
        }
        let threshold = account.node(&nodes.storage).map_or(0, |node| node.write_threshold);
        if threshold > 0 {
            self.push(name("threshold"), threshold);
        }
    }

    fn iothreads(&mut self) {
        let Some(threads) = self.account.iothreads.clone().filter(|threads| !threads.is_empty()) else {
            return;
        };
        self.push("iothread.count", count(threads.len()));
        for thread in threads.iter() {
            let number = thread.id.trim_start_matches("iothread");
            self.push(format!("iothread.{number}.poll-max-ns"), thread.poll_max_ns.cast_unsigned());
            for (what, value) in [("poll-grow", thread.poll_grow), ("poll-shrink", thread.poll_shrink)] {
                let name = format!("iothread.{number}.{what}");
                match u32::try_from(value) {
                    Ok(value) => self.push(name, value),
                    Err(_) => self.push(name, value.cast_unsigned()),
                }
            }
        }
    }

    fn dirty_rate(&mut self) {
        let Some(told) = self.account.dirty_rate.clone() else { return };
        let DirtyRate { status, dirty_rate, start_time, calc_time, mode, vcpu_dirty_rate } = &*told;
        let status = match status.as_str() {
            "unstarted" => 0,
            "measuring" => 1,
            _ => 2,
        };
        let mode = mode.as_deref().unwrap_or("page-sampling");
        self.push("dirtyrate.calc_status", status);
        self.push("dirtyrate.calc_start_time", *start_time);
        self.push("dirtyrate.calc_period", *calc_time);
        self.push("dirtyrate.calc_mode", mode);
        let Some(rate) = dirty_rate.filter(|_| status == 2) else { return };
        self.push("dirtyrate.megabytes_per_second", rate);
        for vcpu in vcpu_dirty_rate.iter().filter(|_| mode == "dirty-ring") {
            self.push(format!("dirtyrate.vcpu.{}.megabytes_per_second", vcpu.id), vcpu.dirty_rate);
        }
    }

    fn vm(&mut self) {
        if let Some(stats) = self.account.vm.clone() {
            self.custom("vm", &stats);
        }
    }
}

/// The images of a domain's disks, each with its disk and format.
fn images(definition: &Domain, flags: StatsFlags) -> Vec<(&Disk, &Storage, StorageFormat)> {
    let with_backing = flags.contains(StatsFlags::BACKING);
    let images = |disk| {
        let disk: &Disk = disk;
        let below = disk.storage.layers().map(|layer| (&layer.storage, layer.format.kind));
        let top = std::iter::once((&disk.storage, disk.format()));
        top.chain(below.take_while(move |_| with_backing)).map(move |(image, format)| (disk, image, format))
    };
    definition.devices.disks.iter().flat_map(images).collect()
}

/// Those whose files tell what no guest does.
pub(super) fn untold(state: &State, flags: StatsFlags) -> Vec<Image> {
    let Some(definition) = state.definition() else { return Vec::new() };
    if definition.devices.disks.is_empty() {
        return Vec::new();
    }
    let account = state.told().map(|told| told.account()).unwrap_or_default();
    let is_told = |image: &Storage, format| {
        let node = block::Nodes::of(image, format).map(|nodes| nodes.top);
        let node = node.and_then(|node| account.block.as_ref()?.node(&node)?.physical);
        node.is_some_and(|physical| physical > 0)
    };
    images(definition, flags)
        .into_iter()
        .filter(|(_, image, format)| !is_told(image, *format))
        .filter_map(|(_, image, format)| Some((image.path()?.to_owned(), format)))
        .collect()
}

/// `virDomainMemoryStatTags`, as far as a record has them.
fn balloon_name(tag: i32) -> Option<&'static str> {
    Some(match tag {
        0 => "swap_in",
        1 => "swap_out",
        2 => "major_fault",
        3 => "minor_fault",
        4 => "unused",
        5 => "available",
        8 => "usable",
        9 => "last-update",
        10 => "disk_caches",
        11 => "hugetlb_pgalloc",
        12 => "hugetlb_pgfail",
        _ => return None,
    })
}

/// How long a thread was ready without running, by the scheduler's own account; 0 where the kernel keeps none.
fn waited(pid: u32, thread: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/sched")).unwrap_or_default();
    let names = ["wait_sum", "se.statistics.wait_sum", "se.wait_sum"];
    let line = text.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
    let milliseconds: f64 =
        line.and_then(|line| line.split_once(':')?.1.trim().parse().ok()).unwrap_or_default();
    (milliseconds * 1e6) as u64
}

/// The same by the run queue's account.
fn delayed(pid: u32, thread: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|delay| delay.parse().ok()).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
