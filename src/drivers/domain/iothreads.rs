//! I/O threads: added, removed and tuned, in the running guest, in what it starts with the next time, or in both.

use std::sync::Arc;

use super::Domains;
use super::flags::Impact;
use super::hotplug::check_impact;
use super::pins;
use super::reads::{persistent, running};
use crate::conf::devices::{Controller, Disk, IoThreadMapping};
use crate::conf::domain::{Domain, IoThread, Poll, ThreadPool};
use crate::drivers::domain::audit::Amount;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, Job, Live, Modify, State};
use crate::qemu::monitor::{ObjectAddIothread, ObjectDel, QomGetNumber, QomSetNumber, QueryIothreads};
use crate::util::audit::Outcome;

/// What becomes of a thread.
#[derive(Debug)]
pub enum Change {
    Add,
    Remove,
    Tune(Params),
}

/// What a client wants changed of a thread; what it does not name stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Tuning {
    poll: Poll,
    /// -1 for QEMU's own choice.
    pool_min: Option<i32>,
    pool_max: Option<i32>,
}

/// A change that was understood.
#[derive(Debug, Clone, Copy)]
enum Step {
    Add,
    Remove,
    Tune(Tuning),
}

/// Which definition a change is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Guest,
    NextStart,
}

const TUNINGS: [(&str, ParamType); 5] = [
    ("poll_max_ns", ParamType::Ullong),
    ("poll_grow", ParamType::Uint),
    ("poll_shrink", ParamType::Uint),
    ("thread_pool_min", ParamType::Int),
    ("thread_pool_max", ParamType::Int),
];

impl Change {
    fn function(&self) -> &'static str {
        match self {
            Self::Add => "qemuDomainAddIOThread",
            Self::Remove => "qemuDomainDelIOThread",
            Self::Tune(_) => "qemuDomainSetIOThreadParams",
        }
    }

    fn read(self) -> Result<Step> {
        Ok(match self {
            Self::Add => Step::Add,
            Self::Remove => Step::Remove,
            Self::Tune(params) => Step::Tune(Tuning::read(&params)?),
        })
    }
}

impl Tuning {
    fn read(params: &Params) -> Result<Self> {
        params.validate(&TUNINGS)?;
        let tuning = Self {
            poll: Poll {
                max: params.ullong("poll_max_ns").copied(),
                grow: params.uint("poll_grow").copied().map(u64::from),
                shrink: params.uint("poll_shrink").copied().map(u64::from),
            },
            pool_min: params.int("thread_pool_min").copied(),
            pool_max: params.int("thread_pool_max").copied(),
        };
        if let Some(min) = tuning.pool_min.filter(|min| *min < -1) {
            let sentence = format!("thread_pool_min ({min}) must be equal to or greater than -1");
            return Err(Error::config_unsupported(sentence));
        }
        if let Some(max) = tuning.pool_max.filter(|max| *max < -1 || *max == 0) {
            let sentence = format!("thread_pool_max ({max}) must be a positive number or -1");
            return Err(Error::config_unsupported(sentence));
        }
        Ok(tuning)
    }

    fn check(self, thread: &IoThread, target: Target) -> Result<()> {
        for (name, value) in [("min", self.pool_min), ("max", self.pool_max)] {
            // QEMU has no way back to its own choice.
            if let Some(value) = value.filter(|value| *value < 0 && target == Target::Guest) {
                return Err(Error::operation_invalid(format!(
                    "thread_pool_{name} ({value}) must be equal to or greater than 0 for live change"
                )));
            }
        }
        let now = |value: Option<u32>| value.map_or(-1, i64::from);
        let min = self.pool_min.map_or(now(thread.pool.min), i64::from);
        let max = self.pool_max.map_or(now(thread.pool.max), i64::from);
        if min > max {
            return Err(Error::operation_invalid(format!(
                "thread_pool_min ({min}) can't be greater than thread_pool_max ({max})"
            )));
        }
        Ok(())
    }

    fn note(self, thread: &mut IoThread) {
        thread.poll.max = self.poll.max.or(thread.poll.max);
        thread.poll.grow = self.poll.grow.or(thread.poll.grow);
        thread.poll.shrink = self.poll.shrink.or(thread.poll.shrink);
        for (value, kept) in [(self.pool_min, &mut thread.pool.min), (self.pool_max, &mut thread.pool.max)] {
            if let Some(value) = value {
                *kept = u32::try_from(value).ok();
            }
        }
    }

    async fn apply(self, live: &Live<'_>, id: u32) -> Result<()> {
        let monitor = live.monitor();
        let path = || format!("/objects/{}", alias(id));
        let polls = [
            ("poll-max-ns", self.poll.max),
            ("poll-grow", self.poll.grow),
            ("poll-shrink", self.poll.shrink),
        ];
        let number = |value: i32| u64::try_from(value).ok();
        let mut pools = [
            ("thread-pool-min", self.pool_min.and_then(number)),
            ("thread-pool-max", self.pool_max.and_then(number)),
        ];
        if let [(_, Some(min)), (property, Some(_))] = pools {
            let max = monitor.execute(QomGetNumber { path: path(), property }).await?;
            if max < min.cast_signed() {
                // The least must never be more than the most.
                pools.reverse();
            }
        }
        for (property, value) in polls.into_iter().chain(pools) {
            if let Some(value) = value {
                monitor.execute(QomSetNumber { path: path(), property, value }).await?;
            }
        }
        Ok(())
    }
}

impl Step {
    fn check(self, definition: &Domain, id: u32, target: Target) -> Result<()> {
        let refused = |sentence: String| Err(Error::invalid_arg(sentence).from_origin(Origin::DOMAIN));
        let thread = definition.iothreads.threads.iter().find(|thread| thread.id == id);
        match (self, thread) {
            (Self::Add, None) => Ok(()),
            (Self::Add, Some(_)) => refused(format!("an IOThread is already using iothread_id '{id}'")),
            (Self::Remove, None) => refused(format!("cannot find IOThread '{id}' in iothreadids list")),
            (Self::Remove, Some(_)) => check_unused(definition, id),
            (Self::Tune(_), None) => {
                Err(Error::invalid_arg(format!("cannot find IOThread '{id}' in iothreadids")))
            }
            (Self::Tune(tuning), Some(thread)) => tuning.check(thread, target),
        }
    }

    fn note(self, definition: &mut Domain, id: u32) {
        let threads = &mut definition.iothreads.threads;
        let at = threads.iter().position(|thread| thread.id == id);
        match (self, at) {
            (Self::Add, _) => {
                let (pool, poll) = (ThreadPool::default(), Poll::default());
                threads.push(IoThread { id, explicit: true, pool, poll });
            }
            (Self::Remove, Some(at)) => {
                threads.remove(at);
                if let Some(tune) = &mut definition.cputune {
                    tune.iothreadpin.retain(|pin| pin.iothread != id);
                }
                // Those behind it would be counted from another number on.
                threads.iter_mut().skip(at).for_each(|thread| thread.explicit = true);
            }
            (Self::Tune(tuning), Some(at)) => {
                if let Some(thread) = threads.get_mut(at) {
                    tuning.note(thread);
                }
            }
            (_, None) => {}
        }
    }
}

fn alias(id: u32) -> String {
    format!("iothread{id}")
}

fn check_unused(definition: &Domain, id: u32) -> Result<()> {
    let devices = &definition.devices;
    let lists = |mapping: Option<&IoThreadMapping>| {
        mapping.is_some_and(|mapping| mapping.threads.iter().any(|thread| thread.id == id))
    };
    let uses = |disk: &&Disk| disk.driver.iothread == Some(id) || lists(disk.driver.iothreads.as_deref());
    if let Some(disk) = devices.disks.iter().find(uses) {
        let disk = disk.name();
        let sentence = format!("cannot remove IOThread {id} since it is being used by disk '{disk}'");
        return Err(Error::invalid_arg(sentence).from_origin(Origin::DOMAIN));
    }
    let uses = |it: &Controller| it.driver.iothread == id || lists(it.driver.iothreads.as_deref());
    if devices.controllers.iter().any(uses) {
        let sentence = format!("cannot remove IOThread '{id}' since it is being used by controller");
        return Err(Error::invalid_arg(sentence).from_origin(Origin::DOMAIN));
    }
    Ok(())
}

impl Domains {
    /// Adds, removes or tunes the I/O thread of this number.
    pub async fn change_iothread(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        id: u32,
        change: Change,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, change.function())?;
        if id == 0 {
            return Err(Error::invalid_arg("invalid value of 0 for iothread_id"));
        }
        let step = change.read()?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        if impact.contains(Impact::CONFIG) {
            step.check(persistent(&state)?, id, Target::NextStart)?;
        }
        if impact.contains(Impact::LIVE) {
            step.check(running(&state)?, id, Target::Guest)?;
            let taken = take(&job.live()?, step, id).await;
            let threads = |definition: &Domain| definition.iothreads.threads.len() as u64;
            let live = running(&state)?;
            let mut wanted = Domain::clone(live);
            step.note(&mut wanted, id);
            let numbers = (threads(live), threads(&wanted));
            self.audit_amount(live, Amount::IoThreads, numbers, Outcome::of(&taken));
            let thread = taken?;
            self.note_iothread(&job, step, id)?;
            if let Some(thread) = thread {
                pins::place_iothread(running(&job.state())?, id, thread)?;
            }
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                step.check(definition, id, Target::NextStart)?;
                definition.iothreads.keep_numbers();
                step.note(definition, id);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    fn note_iothread(&self, job: &Job<'_, Modify>, step: Step, id: u32) -> Result<()> {
        let change = |state: &mut State| {
            if let Some(live) = &mut state.live {
                step.note(Arc::make_mut(live), id);
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }
}

/// Has QEMU do it; answers the host's number of a thread that is new.
async fn take(live: &Live<'_>, step: Step, id: u32) -> Result<Option<u32>> {
    let monitor = live.monitor();
    match step {
        Step::Tune(tuning) => tuning.apply(live, id).await.map(|()| None),
        Step::Remove => {
            monitor.execute(ObjectDel { id: alias(id) }).await?;
            Ok(None)
        }
        Step::Add => {
            monitor.execute(ObjectAddIothread { qom_type: "iothread", id: alias(id) }).await?;
            let threads = monitor.execute(QueryIothreads {}).await?;
            let thread = threads.iter().find(|thread| thread.id == alias(id));
            let thread = thread.map(|thread| thread.thread_id);
            thread.map(Some).ok_or_else(|| {
                Error::internal_error(format!("cannot find new IOThread '{id}' in QEMU monitor."))
            })
        }
    }
}
