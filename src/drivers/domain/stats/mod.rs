//! All numbers about many domains at once: what dashboards ask every few seconds.
//!
//! ```text
//!   filters ─► domains ─► supported groups ─► one question to each guest ─► records
//!                                             (ask: none waits for another)   (groups: from states, the
//!                                                                              kernel, and what guests told)
//! ```

pub(super) mod ask;
mod groups;
pub mod links;
mod peek;
pub mod single;

use std::sync::Arc;
use std::time::Duration;

use self::ask::Busy;
use self::groups::{Observed, untold};
use self::links::Links;
use super::event::DomainRef;
use super::flags::{CallFlags, ListFlags, StatsFlags};
use super::image_sizes::ImageSizes;
use super::{Domains, blocking, filter};
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::capabilities::Cap;
use crate::qemu::job::{DomainObject, State};
use crate::qemu::stats::Subjects;
use crate::util::uuid::Uuid;

/// The kernel is asked about processes; no longer than this.
const KERNEL_LIMIT: Duration = Duration::from_secs(30);

bitflags::bitflags! {
    /// `virDomainStatsTypes`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Groups: u32 {
        const STATE = 1;
        const CPU_TOTAL = 1 << 1;
        const BALLOON = 1 << 2;
        const VCPU = 1 << 3;
        const INTERFACE = 1 << 4;
        const BLOCK = 1 << 5;
        const PERF = 1 << 6;
        const IOTHREAD = 1 << 7;
        const MEMORY = 1 << 8;
        const DIRTYRATE = 1 << 9;
        const VM = 1 << 10;
    }
}

impl Groups {
    /// What can be told of this domain.
    fn supported(state: &State) -> Self {
        let capabilities = state.launched.as_ref().map(|launched| &launched.capabilities);
        let can = |cap| capabilities.is_some_and(|caps| caps.contains(cap));
        let mut groups = Self::all();
        groups.set(Self::DIRTYRATE, can(Cap::QueryDirtyRate));
        groups.set(Self::VM, can(Cap::QueryStats));
        groups
    }

    /// What a domain's record will have: all that can be told if nothing is named.
    fn choose(named: u32, flags: StatsFlags, state: &State) -> Result<Self> {
        let supported = Self::supported(state);
        let unknown = named & !supported.bits();
        if flags.contains(StatsFlags::ENFORCE) && unknown != 0 {
            return Err(Error::argument_unsupported(format!(
                "Stats types bits 0x{unknown:x} are not supported by this daemon or QEMU"
            )));
        }
        Ok(if named == 0 { supported } else { Self::from_bits_truncate(named) & supported })
    }

    /// What has to be asked for them.
    fn subjects(self, state: &State) -> Subjects {
        let can_count =
            self.intersects(Self::CPU_TOTAL | Self::VCPU) && Self::supported(state).contains(Self::VM);
        let subjects = [
            (self.contains(Self::BALLOON), Subjects::BALLOON),
            (self.contains(Self::BLOCK), Subjects::BLOCK),
            (can_count, Subjects::VCPUS),
            (self.contains(Self::VM), Subjects::VM),
            (self.contains(Self::IOTHREAD), Subjects::IOTHREADS),
            (self.contains(Self::DIRTYRATE), Subjects::DIRTY_RATE),
        ];
        subjects.into_iter().filter(|(wanted, _)| *wanted).map(|(_, subject)| subject).collect()
    }
}

/// What is told of one domain.
#[derive(Debug)]
pub struct Record {
    pub domain: DomainRef,
    pub params: Params,
}

impl Domains {
    /// Numbers about these domains, or about all; those that are gone are left out.
    pub async fn all_stats(&self, only: Vec<Uuid>, groups: u32, flags: u32) -> Result<Vec<Record>> {
        let flags = StatsFlags::accept(flags)?;
        let objects = match only.is_empty() {
            true => self.list.all(),
            false => only
                .iter()
                .filter_map(|uuid| Some(Arc::clone(self.list.by_uuid(*uuid).ok()?.object())))
                .collect(),
        };
        let lists = ListFlags::from_bits_truncate((flags & StatsFlags::FILTERS).bits());
        let mut chosen: Vec<(Arc<DomainObject>, Groups)> = Vec::with_capacity(objects.len());
        for object in objects {
            let state = object.state();
            if filter::matches(lists, &state, || self.has_managed_save(&state)) {
                let groups = Groups::choose(groups, flags, &state)?;
                chosen.push((object, groups));
            }
        }
        let question = |(object, groups): &(Arc<DomainObject>, Groups)| {
            (Arc::clone(object), groups.subjects(&object.state()))
        };
        let busy = if flags.contains(StatsFlags::NOWAIT) { Busy::Skip } else { Busy::Wait };
        ask::ask(chosen.iter().map(question).collect(), busy).await;
        let blocks = chosen.iter().filter(|(_, groups)| groups.contains(Groups::BLOCK));
        self.image_sizes.look(blocks.flat_map(|(object, _)| untold(&object.state(), flags)).collect()).await;
        let sizes = Arc::clone(&self.image_sizes);
        let records = blocking(move || Ok(records(&chosen, flags, &sizes)));
        tokio::time::timeout(KERNEL_LIMIT, records)
            .await
            .unwrap_or_else(|_| Err(Error::operation_timeout("the kernel does not answer")))
    }
}

fn records(chosen: &[(Arc<DomainObject>, Groups)], flags: StatsFlags, sizes: &ImageSizes) -> Vec<Record> {
    let links = match chosen.iter().any(|(_, groups)| groups.contains(Groups::INTERFACE)) {
        true => Links::read(),
        false => Links::default(),
    };
    let record = |(object, groups): &(Arc<DomainObject>, Groups)| {
        let state = object.state();
        let params = Observed::new(&state, &links, sizes)?.params(*groups, flags);
        Some(Record { domain: DomainRef::of(&state), params })
    };
    chosen.iter().filter_map(record).collect()
}
