//! Which host CPUs a guest's threads run on: given at start, and changed while it runs.

use std::sync::Arc;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::Domains;
use super::event::DomainEvent;
use super::flags::Impact;
use super::hotplug::check_impact;
use super::reads::{persistent, running};
use crate::conf::domain::{Domain, IoThreadPin, VcpuPin};
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Live, Modify, State};
use crate::qemu::monitor::QueryIothreads;
use crate::util::bitmap::Bitmap;

/// Threads of one guest that are pinned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    Vcpu(u32),
    /// QEMU's own.
    Emulator,
    IoThread(u32),
}

impl Threads {
    fn function(self) -> &'static str {
        match self {
            Self::Vcpu(_) => "qemuDomainPinVcpuFlags",
            Self::Emulator => "qemuDomainPinEmulator",
            Self::IoThread(_) => "qemuDomainPinIOThread",
        }
    }

    /// How subscribers know them.
    fn tunable(self) -> String {
        match self {
            Self::Vcpu(vcpu) => format!("cputune.vcpupin{vcpu}"),
            Self::Emulator => "cputune.emulatorpin".to_owned(),
            Self::IoThread(id) => format!("cputune.iothreadpin{id}"),
        }
    }

    /// Whether a definition to change has them.
    fn check_inactive(self, definition: &Domain) -> Result<()> {
        match self {
            Self::Vcpu(vcpu) if vcpu >= definition.vcpus.max => Err(Error::invalid_arg(format!(
                "vcpu {vcpu} is out of range of persistent cpu count {}",
                definition.vcpus.online()
            ))),
            Self::IoThread(id) if definition.iothreads.threads.iter().all(|thread| thread.id != id) => {
                Err(Error::invalid_arg(format!("iothreadid {id} not found")))
            }
            _ => Ok(()),
        }
    }

    /// The thread's number on the host; none for a vCPU that is not plugged.
    async fn thread(self, live: &Live<'_>) -> Result<Option<u32>> {
        let state = live.state();
        match self {
            Self::Emulator => Ok(state.process().map(crate::util::process::Process::pid)),
            Self::Vcpu(vcpu) => {
                let max = running(state)?.vcpus.max;
                if vcpu >= max {
                    let sentence = format!("vcpu {vcpu} is out of range of live cpu count {max}");
                    return Err(Error::invalid_arg(sentence));
                }
                Ok(state.vcpu_threads.get(vcpu as usize).copied().filter(|thread| *thread != 0))
            }
            Self::IoThread(id) => {
                let threads = live.monitor().execute(QueryIothreads {}).await?;
                let name = format!("iothread{id}");
                let thread = threads.iter().find(|thread| thread.id == name).map(|thread| thread.thread_id);
                thread.map(Some).ok_or_else(|| Error::invalid_arg(format!("iothread {id} not found")))
            }
        }
    }

    fn note(self, definition: &mut Domain, cpus: Bitmap) {
        let tune = definition.cputune.get_or_insert_default();
        match self {
            Self::Emulator => tune.emulatorpin = Some(cpus),
            Self::Vcpu(vcpu) => {
                tune.vcpupin.retain(|pin| pin.vcpu != vcpu);
                tune.vcpupin.push(VcpuPin { vcpu, cpuset: cpus });
                tune.vcpupin.sort_by_key(|pin| pin.vcpu);
            }
            Self::IoThread(iothread) => {
                tune.iothreadpin.retain(|pin| pin.iothread != iothread);
                tune.iothreadpin.push(IoThreadPin { iothread, cpuset: cpus });
                tune.iothreadpin.sort_by_key(|pin| pin.iothread);
            }
        }
    }
}

impl Domains {
    /// Lets threads run on these host CPUs only.
    pub async fn pin(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        threads: Threads,
        cpus: Bitmap,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, threads.function())?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        if impact.contains(Impact::CONFIG) {
            threads.check_inactive(persistent(&state)?)?;
        }
        if cpus.is_empty() {
            let sentence = match threads {
                Threads::IoThread(_) => "Empty iothread cpumap list for pinning",
                Threads::Vcpu(_) | Threads::Emulator => "Empty cpu list for pinning",
            };
            return Err(Error::invalid_arg(sentence));
        }
        if impact.contains(Impact::LIVE) {
            if let Some(thread) = threads.thread(&job.live()?).await? {
                set_affinity(thread, &cpus)?;
            }
            let change = |state: &mut State| {
                if let Some(live) = &mut state.live {
                    threads.note(Arc::make_mut(live), cpus.clone());
                }
            };
            let mut params = Params::default();
            params.push(threads.tunable(), cpus.to_string().as_str());
            job.update_then(change, |state, ()| {
                self.save_status(state);
                self.publish(state, DomainEvent::Tunable { params });
            });
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                threads.note(definition, cpus);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }
}

/// Where a started guest's vCPUs and QEMU itself run, as its definition says. `vcpus` are threads by index, 0
/// where there is none; `iothreads` pairs of id and thread.
pub(super) fn place(
    definition: &Domain,
    qemu: u32,
    vcpus: &[u32],
    iothreads: impl Iterator<Item = (u32, u32)>,
) -> Result<()> {
    let usual = definition.vcpus.cpuset.as_ref();
    let tune = definition.cputune.as_ref();
    if let Some(cpus) = tune.and_then(|tune| tune.emulatorpin.as_ref()).or(usual) {
        set_affinity(qemu, cpus)?;
    }
    for (number, thread) in (0..).zip(vcpus.iter().copied()).filter(|(_, thread)| *thread != 0) {
        place_vcpu(definition, number, thread)?;
    }
    for (id, thread) in iothreads {
        place_iothread(definition, id, thread)?;
    }
    Ok(())
}

/// Where one I/O thread runs, as the definition says.
pub(super) fn place_iothread(definition: &Domain, id: u32, thread: u32) -> Result<()> {
    let pins = definition.cputune.as_ref().map_or(&[][..], |tune| &tune.iothreadpin);
    let pin = pins.iter().find(|pin| pin.iothread == id).map(|pin| &pin.cpuset);
    match pin.or(definition.vcpus.cpuset.as_ref()) {
        Some(cpus) => set_affinity(thread, cpus),
        None => Ok(()),
    }
}

/// Where one vCPU runs, as the definition says.
pub(super) fn place_vcpu(definition: &Domain, number: u32, thread: u32) -> Result<()> {
    let pins = definition.cputune.as_ref().map_or(&[][..], |tune| &tune.vcpupin);
    let pin = pins.iter().find(|pin| pin.vcpu == number).map(|pin| &pin.cpuset);
    match pin.or(definition.vcpus.cpuset.as_ref()) {
        Some(cpus) => set_affinity(thread, cpus),
        None => Ok(()),
    }
}

fn set_affinity(thread: u32, cpus: &Bitmap) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| *cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
    rustix::thread::sched_setaffinity(pid, &set)
        .map_err(|error| Error::io(format_args!("cannot set CPU affinity on process {thread}"), error.into()))
}
