//! Limits that a cgroup keeps.

use std::ops::RangeInclusive;

use crate::conf::domain::{BlkioDevice, Domain, LimitKib, Memtune, NumaMode, NumatuneMemory, Placement};
use crate::drivers::params::{ParamType, ParamValue, Params};
use crate::error::{Error, Origin, Result};
use crate::util::bitmap::Bitmap;

/// Which limits a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    Scheduler,
    Blkio,
    Memory,
    Numa,
}

const PERIOD: RangeInclusive<u64> = 1000..=1_000_000;
const QUOTA: RangeInclusive<i64> = 1000..=17_592_186_044_415;

/// No guest's node or processor has a higher number.
const MAX_NODES: usize = 1024;

/// A guest whose processors may run only now and then does not start where nothing holds it to that. Shares, weights
/// and amounts of memory are left at what the host has, as libvirt's daemon does without cgroups.
pub(in crate::drivers::domain) fn refuse_unkept(domain: &Domain) -> Result<()> {
    let Some(tune) = domain.cputune.as_deref() else { return Ok(()) };
    let mut periods = vec![tune.period, tune.global_period, tune.emulator_period];
    let mut quotas = vec![tune.quota, tune.global_quota, tune.emulator_quota];
    if !domain.iothreads.threads.is_empty() {
        periods.push(tune.iothread_period);
        quotas.push(tune.iothread_quota);
    }
    let is_limited = periods.into_iter().flatten().any(|period| period != 0)
        || quotas.into_iter().flatten().any(|quota| quota != 0);
    match is_limited {
        true => Err(Error::config_unsupported("cgroup cpu is required for scheduler tuning")),
        false => Ok(()),
    }
}

impl Limits {
    pub(super) fn reader(self) -> &'static str {
        match self {
            Self::Scheduler => "qemuDomainGetSchedulerParametersFlags",
            Self::Blkio => "qemuDomainGetBlkioParameters",
            Self::Memory => "qemuDomainGetMemoryParameters",
            Self::Numa => "qemuDomainGetNumaParameters",
        }
    }

    pub(super) fn writer(self) -> &'static str {
        match self {
            Self::Scheduler => "qemuDomainSetSchedulerParametersFlags",
            Self::Blkio => "qemuDomainSetBlkioParameters",
            Self::Memory => "qemuDomainSetMemoryParameters",
            Self::Numa => "qemuDomainSetNumaParameters",
        }
    }

    /// Why a running guest's limits cannot be changed.
    pub(super) fn missing(self) -> &'static str {
        match self {
            Self::Scheduler => "cgroup CPU controller is not mounted",
            Self::Blkio => "blkio cgroup isn't mounted",
            Self::Memory => "cgroup memory controller is not mounted",
            Self::Numa => "cgroup cpuset controller is not mounted",
        }
    }

    /// A running guest's NUMA nodes are those of its definition; everything else only its cgroup knows.
    pub(super) fn check_readable(self) -> Result<()> {
        match self {
            Self::Numa => Ok(()),
            _ => Err(Error::operation_invalid(self.missing())),
        }
    }

    /// What libvirt calls the scheduler, and how many parameters it has.
    pub fn scheduler(is_running: bool) -> Result<(&'static str, i32)> {
        const PARAMETERS: i32 = 9;
        match is_running {
            true => Err(Error::operation_invalid(Self::Scheduler.missing())),
            false => Ok(("posix", PARAMETERS)),
        }
    }

    pub(super) fn known(self) -> &'static [(&'static str, ParamType)] {
        use ParamType::{Int, Llong, Text, Uint, Ullong};
        match self {
            Self::Scheduler => &[
                ("cpu_shares", Ullong),
                ("vcpu_period", Ullong),
                ("vcpu_quota", Llong),
                ("emulator_period", Ullong),
                ("emulator_quota", Llong),
                ("global_period", Ullong),
                ("global_quota", Llong),
                ("iothread_period", Ullong),
                ("iothread_quota", Llong),
            ],
            Self::Blkio => &[
                ("weight", Uint),
                ("device_weight", Text),
                ("device_read_iops_sec", Text),
                ("device_write_iops_sec", Text),
                ("device_read_bytes_sec", Text),
                ("device_write_bytes_sec", Text),
            ],
            Self::Memory => &[("hard_limit", Ullong), ("soft_limit", Ullong), ("swap_hard_limit", Ullong)],
            Self::Numa => &[("numa_mode", Int), ("numa_nodeset", Text)],
        }
    }

    pub(super) fn read(self, definition: &Domain) -> Params {
        let mut params = Params::default();
        match self {
            Self::Scheduler => read_scheduler(definition, &mut params),
            Self::Blkio => read_blkio(definition, &mut params),
            Self::Memory => {
                let limits = definition.memtune.as_deref();
                let kib = |limit: fn(&Memtune) -> Option<LimitKib>| {
                    limits.and_then(limit).and_then(|limit| limit.0).unwrap_or(LimitKib::UNLIMITED)
                };
                params.push("hard_limit", kib(|limits| limits.hard_limit));
                params.push("soft_limit", kib(|limits| limits.soft_limit));
                params.push("swap_hard_limit", kib(|limits| limits.swap_hard_limit));
            }
            Self::Numa => {
                let memory = definition.numatune.as_ref().and_then(|numa| numa.memory.as_ref());
                let nodes = memory.and_then(|memory| memory.nodeset.as_ref());
                params.push("numa_mode", memory.map_or(0, |memory| number(memory.mode)));
                params.push("numa_nodeset", nodes.map(Bitmap::to_string).unwrap_or_default());
            }
        }
        params
    }

    pub(super) fn write(self, definition: &mut Domain, params: &Params) -> Result<()> {
        match self {
            Self::Scheduler => write_scheduler(definition, params),
            Self::Blkio => write_blkio(definition, params),
            Self::Memory => write_memory(definition, params),
            Self::Numa => write_numa(definition, params),
        }
    }
}

fn read_scheduler(definition: &Domain, params: &mut Params) {
    let tune = definition.cputune.clone().unwrap_or_default();
    params.push("cpu_shares", tune.shares.unwrap_or(0));
    for (name, period, quota) in [
        ("vcpu", tune.period, tune.quota),
        ("emulator", tune.emulator_period, tune.emulator_quota),
        ("global", tune.global_period, tune.global_quota),
        ("iothread", tune.iothread_period, tune.iothread_quota),
    ] {
        params.push(format!("{name}_period"), period.unwrap_or(0));
        params.push(format!("{name}_quota"), quota.unwrap_or(0));
    }
}

fn write_scheduler(definition: &mut Domain, params: &Params) -> Result<()> {
    let tune = definition.cputune.get_or_insert_default();
    if let Some(shares) = params.ullong("cpu_shares") {
        tune.shares = Some(*shares);
    }
    for (name, period, quota) in [
        ("vcpu", &mut tune.period, &mut tune.quota),
        ("emulator", &mut tune.emulator_period, &mut tune.emulator_quota),
        ("global", &mut tune.global_period, &mut tune.global_quota),
        ("iothread", &mut tune.iothread_period, &mut tune.iothread_quota),
    ] {
        let refused = |what: &str, min: i64, max: i64| {
            let sentence = format!("value of '{name}_{what}' is out of range [{min}, {max}]");
            Err(Error::invalid_arg(sentence))
        };
        // 0 stands for no limit.
        if let Some(value) = params.ullong(&format!("{name}_period")) {
            if *value > 0 && !PERIOD.contains(value) {
                return refused("period", 1000, 1_000_000);
            }
            *period = Some(*value).filter(|value| *value > 0);
        }
        if let Some(value) = params.llong(&format!("{name}_quota")) {
            if *value > 0 && !QUOTA.contains(value) {
                return refused("quota", *QUOTA.start(), *QUOTA.end());
            }
            *quota = Some(*value).filter(|value| *value != 0);
        }
    }
    Ok(())
}

/// A limit of one block device, as a number of any width.
type DeviceLimit = (&'static str, fn(&BlkioDevice) -> Option<u64>, fn(&mut BlkioDevice, Option<u64>));

fn narrow(value: Option<u64>) -> Option<u32> {
    value.map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

const DEVICE_LIMITS: [DeviceLimit; 5] = [
    ("device_weight", |it| it.weight.map(u64::from), |it, value| it.weight = narrow(value)),
    (
        "device_read_iops_sec",
        |it| it.read_iops_sec.map(u64::from),
        |it, value| it.read_iops_sec = narrow(value),
    ),
    (
        "device_write_iops_sec",
        |it| it.write_iops_sec.map(u64::from),
        |it, value| it.write_iops_sec = narrow(value),
    ),
    ("device_read_bytes_sec", |it| it.read_bytes_sec, |it, value| it.read_bytes_sec = value),
    ("device_write_bytes_sec", |it| it.write_bytes_sec, |it, value| it.write_bytes_sec = value),
];

fn read_blkio(definition: &Domain, params: &mut Params) {
    let tune = definition.blkiotune.as_deref();
    params.push("weight", tune.and_then(|tune| tune.weight).unwrap_or(0));
    let devices = tune.map_or(&[][..], |tune| &tune.devices);
    for (name, limit, _) in DEVICE_LIMITS {
        let limits =
            devices.iter().filter_map(|device| Some((&device.path, limit(device).filter(|it| *it > 0)?)));
        let limits: Vec<String> = limits.map(|(path, limit)| format!("{path},{limit}")).collect();
        params.push(name, limits.join(","));
    }
}

fn write_blkio(definition: &mut Domain, params: &Params) -> Result<()> {
    let tune = definition.blkiotune.get_or_insert_default();
    if let Some(weight) = params.uint("weight") {
        tune.weight = Some(*weight).filter(|weight| *weight > 0);
    }
    for (name, _, set) in DEVICE_LIMITS {
        let Some(text) = params.text(name).filter(|text| !text.is_empty()) else { continue };
        let fields: Vec<&str> = text.split(',').collect();
        if !fields.len().is_multiple_of(2) {
            let sentence = format!("unable to parse blkio device '{name}' '{text}'");
            return Err(Error::invalid_arg(sentence));
        }
        for field in fields.chunks_exact(2) {
            let &[path, value] = field else { continue };
            let limit: u64 = value.parse().map_err(|_| {
                Error::invalid_arg(format!(
                    "invalid value '{value}' for parameter '{name}' of device '{path}'"
                ))
            })?;
            let at = tune.devices.iter().position(|device| &*device.path == path).unwrap_or_else(|| {
                tune.devices.push(BlkioDevice {
                    path: path.into(),
                    weight: None,
                    read_iops_sec: None,
                    write_iops_sec: None,
                    read_bytes_sec: None,
                    write_bytes_sec: None,
                });
                tune.devices.len() - 1
            });
            if let Some(device) = tune.devices.get_mut(at) {
                set(device, Some(limit).filter(|limit| *limit > 0));
            }
        }
    }
    let is_limited = |device: &BlkioDevice| DEVICE_LIMITS.iter().any(|(_, limit, _)| limit(device).is_some());
    tune.devices.retain(is_limited);
    Ok(())
}

fn write_memory(definition: &mut Domain, params: &Params) -> Result<()> {
    let mut limits = definition.memtune.as_deref().cloned().unwrap_or_default();
    for (name, limit) in [
        ("hard_limit", &mut limits.hard_limit),
        ("soft_limit", &mut limits.soft_limit),
        ("swap_hard_limit", &mut limits.swap_hard_limit),
    ] {
        if let Some(kib) = params.ullong(name) {
            *limit = Some(LimitKib(Some(*kib).filter(|kib| *kib < LimitKib::UNLIMITED)));
        }
    }
    let kib = |limit: Option<LimitKib>| limit.and_then(|limit| limit.0).unwrap_or(LimitKib::UNLIMITED);
    let changes_both = params.get("hard_limit").is_some() || params.get("swap_hard_limit").is_some();
    if changes_both && kib(limits.hard_limit) > kib(limits.swap_hard_limit) {
        let sentence = "memory hard_limit tunable value must be lower than or equal to swap_hard_limit";
        return Err(Error::invalid_arg(sentence).from_origin(Origin::NONE));
    }
    definition.memtune = Some(Box::new(limits));
    Ok(())
}

fn write_numa(definition: &mut Domain, params: &Params) -> Result<()> {
    let mode = match params.int("numa_mode") {
        None => None,
        Some(given) => Some(
            NumaMode::ALL
                .iter()
                .copied()
                .find(|mode| number(*mode) == *given)
                .ok_or_else(|| Error::invalid_arg(format!("unsupported numatune mode: '{given}'")))?,
        ),
    };
    let nodes = match params.get("numa_nodeset") {
        Some(ParamValue::Text(text)) => {
            let nodes = Bitmap::parse(text, MAX_NODES).map_err(|_| {
                Error::invalid_arg(format!("Failed to parse bitmap '{text}'")).from_origin(Origin::NONE)
            })?;
            if nodes.is_empty() {
                return Err(Error::operation_invalid(format!("Invalid nodeset of 'numatune': {text}")));
            }
            Some(nodes)
        }
        _ => None,
    };
    let tune = definition.numatune.get_or_insert_default();
    let old = tune.memory.take();
    let memory = NumatuneMemory {
        mode: mode.or(old.as_ref().map(|old| old.mode)).unwrap_or(NumaMode::Strict),
        nodeset: nodes.clone().or(old.as_ref().and_then(|old| old.nodeset.clone())),
        placement: old.and_then(|old| old.placement).filter(|_| nodes.is_none()),
    };
    if memory.nodeset.is_none() && memory.placement != Some(Placement::Auto) {
        let sentence = "nodeset for NUMA memory tuning must be set if 'placement' is 'static'";
        return Err(Error::config_unsupported(sentence).from_origin(Origin::DOMAIN));
    }
    tune.memory = Some(memory);
    Ok(())
}

/// `virDomainNumatuneMemMode`
fn number(mode: NumaMode) -> i32 {
    match mode {
        NumaMode::Strict => 0,
        NumaMode::Preferred => 1,
        NumaMode::Interleave => 2,
        NumaMode::Restrictive => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    fn changed(limits: Limits, params: &[(&str, ParamValue)]) -> Result<String> {
        let text = "<domain type='kvm'><name>x</name><os><type>hvm</type></os></domain>";
        let mut definition = Domain::parse(text, Form::INACTIVE)?;
        for (name, value) in params {
            let one = Params(vec![((*name).to_owned().into(), value.clone())]);
            one.validate(limits.known())?;
            limits.write(&mut definition, &one)?;
        }
        let params = limits.read(&definition).0.into_iter().map(|(name, value)| match value {
            ParamValue::Text(value) => format!("{name}={value}"),
            ParamValue::Ullong(value) => format!("{name}={value}"),
            ParamValue::Llong(value) => format!("{name}={value}"),
            ParamValue::Uint(value) => format!("{name}={value}"),
            other => format!("{name}={other:?}"),
        });
        Ok(params
            .filter(|param| !param.ends_with("=0") && !param.ends_with('='))
            .collect::<Vec<_>>()
            .join(" "))
    }

    #[test]
    fn what_was_set_is_read() {
        let check = |limits, params: &[(&str, ParamValue)], expected| {
            assert_eq!(changed(limits, params).map_err(|error| error.message()), Ok(String::from(expected)));
        };
        check(
            Limits::Scheduler,
            &[("cpu_shares", 7u64.into()), ("vcpu_quota", (-1i64).into()), ("global_period", 1000u64.into())],
            "cpu_shares=7 vcpu_quota=-1 global_period=1000",
        );
        check(Limits::Scheduler, &[("vcpu_period", 2000u64.into()), ("vcpu_period", 0u64.into())], "");
        check(
            Limits::Blkio,
            &[
                ("weight", 3u32.into()),
                ("device_weight", "/dev/a,300,/dev/b,1".into()),
                ("device_read_bytes_sec", "/dev/b,5".into()),
                ("device_weight", "/dev/a,0".into()),
            ],
            "weight=3 device_weight=/dev/b,1 device_read_bytes_sec=/dev/b,5",
        );
        let unlimited = "swap_hard_limit=9007199254740991";
        let expected = format!("hard_limit=5 soft_limit=9007199254740991 {unlimited}");
        assert_eq!(changed(Limits::Memory, &[("hard_limit", 5u64.into())]).unwrap(), expected);
        check(Limits::Numa, &[("numa_nodeset", "1,0".into())], "numa_mode=Int(0) numa_nodeset=0-1");
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |limits, params: &[(&str, ParamValue)], expected| {
            assert_eq!(changed(limits, params).unwrap_err().message(), expected);
        };
        check(
            Limits::Scheduler,
            &[("emulator_quota", 999i64.into())],
            "invalid argument: value of 'emulator_quota' is out of range [1000, 17592186044415]",
        );
        check(
            Limits::Blkio,
            &[("device_weight", "/dev/a".into())],
            "invalid argument: unable to parse blkio device 'device_weight' '/dev/a'",
        );
        check(
            Limits::Memory,
            &[("swap_hard_limit", 5u64.into()), ("hard_limit", 6u64.into())],
            "invalid argument: memory hard_limit tunable value must be lower than or equal to swap_hard_limit",
        );
        check(Limits::Numa, &[("numa_mode", 9.into())], "invalid argument: unsupported numatune mode: '9'");
    }
}
