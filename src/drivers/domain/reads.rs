//! Answers that need no job: they come from the domain's state and from the kernel.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::Domains;
use super::event::MetadataKind;
use super::filter;
use super::flags::{CallFlags, Impact, ListFlags, VcpuFlags, XmlFlags};
use crate::conf::domain::{Domain, Seclabel, SeclabelType};
use crate::conf::xml::Form;
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, DomainObject, State};
use crate::util::bitmap::Bitmap;

/// `virDomainInfo`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub state: i32,
    pub max_memory_kib: u64,
    pub memory_kib: u64,
    pub vcpus: u32,
    pub cpu_time: Duration,
}

/// What one vCPU does on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuInfo {
    pub number: u32,
    pub cpu_time: Duration,
    /// The host CPU it ran on last.
    pub host_cpu: i32,
}

impl Domains {
    /// What `pick` takes of each domain that `flags` let through, by name. Monitoring asks for it every few
    /// seconds, so a domain costs no copy but what is picked.
    pub fn list_all<R>(&self, flags: u32, pick: impl Fn(&State) -> R) -> Result<Vec<R>> {
        let filter = ListFlags::accept(flags)?;
        let all = self.list.all();
        let picked = |object: &Arc<DomainObject>| {
            object.peek(|state| {
                filter::matches(filter, state, || self.has_managed_save(state)).then(|| pick(state))
            })
        };
        Ok(all.iter().filter_map(picked).collect())
    }

    /// Whether the guest's memory waits in a file to be restored by the next start.
    pub fn has_managed_save(&self, state: &State) -> bool {
        self.managed_save(&state.name).exists()
    }
}

/// The definition that answers for the domain.
pub fn definition(state: &State) -> Result<&Arc<Domain>> {
    // None only while the domain is being removed.
    state.definition().ok_or_else(|| {
        let (uuid, name) = (state.uuid, &state.name);
        Error::no_domain(format!("no domain with matching uuid '{uuid}' ({name})"))
    })
}

pub fn info(state: &State) -> Result<Info> {
    let definition = definition(state)?;
    let cpu_time = match state.process() {
        None => Duration::ZERO,
        Some(process) => cpu_time(process.pid(), None)
            .ok_or_else(|| Error::operation_failed("cannot read cputime for domain"))?,
    };
    Ok(Info {
        state: state.run.numbers().0,
        max_memory_kib: definition.memory.total_kib,
        memory_kib: definition.memory.current_kib,
        vcpus: definition.vcpus.online(),
        cpu_time,
    })
}

/// Whether a text with these flags is more than a read-only client may see.
pub fn shows_secrets(flags: u32) -> bool {
    XmlFlags::from_bits_truncate(flags).intersects(XmlFlags::SECURE | XmlFlags::MIGRATABLE)
}

pub fn os_type(state: &State) -> Result<&'static str> {
    Ok(definition(state)?.os.os_type.kind.0.as_str())
}

/// The definition as text: the live one while the domain runs, unless the inactive one is asked for.
pub fn xml(state: &State, flags: u32) -> Result<String> {
    let flags = XmlFlags::accept(flags)?;
    let (inactive, migratable) = (flags.contains(XmlFlags::INACTIVE), flags.contains(XmlFlags::MIGRATABLE));
    let (source, mut form) = match (&state.live, &state.inactive) {
        (Some(live), _) if !inactive => (live, Form::LIVE),
        (_, Some(inactive)) => (inactive, Form::INACTIVE),
        _ => (definition(state)?, Form::INACTIVE),
    };
    if migratable {
        return Ok(portable_of(state, source)?.to_xml(Form::SECURE | Form::MIGRATABLE));
    }
    form.set(Form::SECURE, flags.contains(XmlFlags::SECURE));
    Ok(source.to_xml(form))
}

/// What another host starts the guest with.
pub(super) fn portable(state: &State) -> Result<Domain> {
    portable_of(state, definition(state)?)
}

fn portable_of(state: &State, source: &Domain) -> Result<Domain> {
    let mut portable = as_defined(state, source)?;
    portable.remove_given();
    Ok(portable)
}

/// With all secrets and the CPU as it was defined, and nothing that is so on this host alone.
pub(super) fn as_defined(state: &State, source: &Domain) -> Result<Domain> {
    let mut portable = source.clone();
    // What every guest of a host is given.
    let is_given = |label: &Seclabel| {
        let dynamic = label.kind == SeclabelType::Dynamic && label.baselabel.is_none();
        label.implicit || (dynamic && label.model.as_deref() == Some("dac"))
    };
    portable.seclabels.retain(|label| !is_given(label));
    let mut portable = Domain::parse(&portable.to_xml(Form::SECURE), Form::INACTIVE)?;
    if let (Some(launched), true) =
        (&state.launched, state.live.as_deref().is_some_and(|it| std::ptr::eq(it, source)))
        && let Some(defined) = &launched.defined_cpu
    {
        portable.cpu = Some(defined.clone());
    }
    Ok(portable)
}

/// How many vCPUs: now or the next time, plugged in or at most.
pub fn vcpu_count(state: &State, flags: u32) -> Result<u32> {
    let flags = VcpuFlags::accept(flags)?;
    if flags.contains(VcpuFlags::LIVE | VcpuFlags::CONFIG) {
        return Err(Error::invalid_arg(
            "flags 'VIR_DOMAIN_VCPU_LIVE' and 'VIR_DOMAIN_VCPU_CONFIG' are mutually exclusive",
        ));
    }
    let definition = match flags {
        flags if flags.contains(VcpuFlags::LIVE) => running(state)?,
        flags if flags.contains(VcpuFlags::CONFIG) => persistent(state)?,
        _ => definition(state)?,
    };
    Ok(match flags.contains(VcpuFlags::MAXIMUM) {
        true => definition.vcpus.max,
        false => definition.vcpus.online(),
    })
}

/// The first `max` vCPUs of a running guest, and for each the host CPUs it may run on: `map_len` bytes.
pub fn vcpus(state: &State, max: usize, map_len: usize) -> Result<(Vec<VcpuInfo>, Vec<u8>)> {
    let Some(process) = state.process().filter(|_| state.is_active()) else {
        return Err(Error::operation_invalid("cannot retrieve vcpu information for inactive domain"));
    };
    let (mut infos, mut maps) = (Vec::new(), Vec::new());
    for (number, thread) in
        (0..).zip(state.vcpu_threads.iter().copied()).filter(|(_, thread)| *thread != 0).take(max)
    {
        let Some(stat) = Stat::read(process.pid(), Some(thread)) else { continue };
        infos.push(VcpuInfo { number, cpu_time: stat.cpu_time(), host_cpu: stat.processor });
        maps.extend(affinity(thread).to_bytes(map_len));
    }
    Ok((infos, maps))
}

/// The host CPUs that the kernel lets a thread run on.
pub(super) fn affinity(thread: u32) -> Bitmap {
    let mut cpus = Bitmap::new();
    let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
    if let Ok(set) = rustix::thread::sched_getaffinity(pid) {
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).for_each(|cpu| cpus.insert(cpu));
    }
    cpus
}

/// `virDomainControlInfo`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// `virDomainControlState`
    pub state: u32,
    /// `virDomainControlErrorReason`
    pub details: u32,
    pub since: Duration,
}

/// Whether the guest's monitor is free for a call.
pub fn control(domain: &DomainHandle) -> Result<Control> {
    const FREE: u32 = 0;
    const JOB: u32 = 1;
    const OCCUPIED: u32 = 2;
    const ERROR: u32 = 3;
    const MONITOR: u32 = 2;
    let state = domain.state();
    running(&state)?;
    let control = |state, since| Control { state, details: 0, since };
    if state.is_deaf() {
        return Ok(Control { details: MONITOR, ..control(ERROR, Duration::ZERO) });
    }
    Ok(match (domain.operation(), domain.occupied()) {
        (Some((_, age)), _) => control(JOB, age),
        (None, Some((_, age))) => control(OCCUPIED, age),
        (None, None) => control(FREE, Duration::ZERO),
    })
}

/// Title, description or a client's own element.
pub fn metadata(state: &State, kind: i32, uri: Option<&str>, flags: u32) -> Result<String> {
    let definition = match Impact::accept(flags)? {
        flags if flags.contains(Impact::LIVE) => running(state)?,
        flags if flags.contains(Impact::CONFIG) => persistent(state)?,
        _ => definition(state)?,
    };
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let found = match MetadataKind::from_number(kind) {
        Some(MetadataKind::Description) => text(&definition.description),
        Some(MetadataKind::Title) => text(&definition.title),
        Some(MetadataKind::Element) => {
            uri.and_then(|uri| definition.metadata.as_ref().and_then(|metadata| metadata.get(uri)))
        }
        None => return Err(unknown_metadata(kind)),
    };
    found.ok_or_else(|| {
        Error::no_domain_metadata("Requested metadata element is not present").from_origin(Origin::DOMAIN)
    })
}

pub(super) fn unknown_metadata(kind: i32) -> Error {
    Error::invalid_arg(format!("unknown metadata type '{kind}'")).from_origin(Origin::DOMAIN)
}

/// The live definition of a guest that must run.
pub fn running(state: &State) -> Result<&Arc<Domain>> {
    state
        .live
        .as_ref()
        .ok_or_else(|| Error::operation_invalid("domain is not running").from_origin(Origin::DOMAIN))
}

/// The inactive definition of a domain that must have one.
pub fn persistent(state: &State) -> Result<&Arc<Domain>> {
    state.inactive.as_ref().ok_or_else(|| {
        Error::operation_invalid("transient domains do not have any persistent config")
            .from_origin(Origin::DOMAIN)
    })
}

/// What the kernel counts for a process or one of its threads.
pub(super) struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    resident_pages: u64,
    processor: i32,
}

impl Stat {
    pub(super) fn read(pid: u32, thread: Option<u32>) -> Option<Self> {
        let path = match thread {
            None => format!("/proc/{pid}/stat"),
            Some(thread) => format!("/proc/{pid}/task/{thread}/stat"),
        };
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold blanks and parentheses itself. Field 3 comes first behind it.
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let user: u64 = fields.nth(11)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let resident_pages = fields.nth(8)?.parse().ok()?;
        let processor = fields.nth(14)?.parse().ok()?;
        Some(Self { user_ticks: user, system_ticks: system, resident_pages, processor })
    }

    pub(super) fn cpu_time(&self) -> Duration {
        self.user_time() + self.system_time()
    }

    pub(super) fn user_time(&self) -> Duration {
        duration(self.user_ticks)
    }

    pub(super) fn system_time(&self) -> Duration {
        duration(self.system_ticks)
    }

    pub(super) fn resident_kib(&self) -> u64 {
        self.resident_pages * (rustix::param::page_size() as u64 / 1024)
    }
}

fn duration(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / per_second.max(1)))
}

/// Memory of the host that QEMU has at present.
pub(super) fn resident_kib(state: &State) -> Option<u64> {
    Some(Stat::read(state.process()?.pid(), None)?.resident_kib())
}

fn cpu_time(pid: u32, thread: Option<u32>) -> Option<Duration> {
    Some(Stat::read(pid, thread)?.cpu_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_the_name() {
        let line = "4242 (CPU 0/KVM) x) S 1 4242 4242 0 -1 4194560 2 0 0 0 150 25 0 0 20 0 6 0 8 1 2 3 \
                    4 5 6 7 8 9 10 11 12 13 14 15 16 3 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            (stat.user_ticks, stat.system_ticks, stat.resident_pages, stat.processor),
            (150, 25, 2, 3)
        );
        assert!(Stat::read(std::process::id(), None).is_some());
    }
}
