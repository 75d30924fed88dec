//! How much memory a guest has: what its balloon leaves to it, at most, and how often it tells how it uses it.

use std::sync::Arc;

use super::Domains;
use super::flags::{CallFlags, Impact, SetMemoryFlags};
use super::hotplug::check_impact;
use super::reads::{persistent, running};
use crate::conf::devices::{BalloonModel, MemBalloon};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Live, Modify, State};
use crate::qemu::monitor::SetBalloon;
use crate::qemu::setup;

impl Domains {
    /// Lets the guest have so much memory, or the definition hold so much at most.
    pub async fn set_memory(self: &Arc<Self>, mut domain: DomainHandle, kib: u64, flags: u32) -> Result<()> {
        let flags = SetMemoryFlags::accept(flags)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = Impact::from_bits_truncate(flags.bits()).on(&state);
        check_impact(impact, &state)?;
        let live = impact.contains(Impact::LIVE).then(|| running(&state)).transpose()?;
        let inactive = impact.contains(Impact::CONFIG).then(|| persistent(&state)).transpose()?;
        if flags.contains(SetMemoryFlags::MAXIMUM) {
            if live.is_some() {
                let sentence = "cannot resize the maximum memory on an active domain";
                return Err(Error::operation_invalid(sentence));
            }
            return self.edit_inactive(&object, move |definition| set_maximum(definition, kib)).await;
        }
        let total = |definition: &Arc<Domain>| definition.memory.total_kib;
        let most = live.map(total).into_iter().chain(inactive.map(total)).min();
        if most.is_some_and(|most| kib > most) {
            return Err(Error::invalid_arg("cannot set memory higher than max memory"));
        }
        if live.is_some() {
            set_balloon(&job.live()?, kib).await?;
        }
        if inactive.is_some() {
            let edit = move |definition: &mut Domain| {
                definition.memory.current_kib = kib;
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    /// Lets the balloon's driver in the guest tell of its memory every so many seconds; 0: never.
    pub async fn set_memory_stats_period(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        period_s: i32,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetMemoryStatsPeriod")?;
        let period_s = u32::try_from(period_s).map_err(|_| {
            let sentence = "period in virDomainSetMemoryStatsPeriod must be positive or zero";
            Error::refused_argument("virDomainSetMemoryStatsPeriod", "period", sentence)
        })?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        if impact.contains(Impact::LIVE) {
            let mut balloon = running(&state)?.devices.memballoons.first().cloned();
            balloon_of(balloon.as_mut())?.stats_period_s = period_s;
            if let Some((name, arguments)) = balloon.as_ref().and_then(setup::balloon_period) {
                job.live()?.monitor().execute_value(name, Some(arguments)).await.map_err(|error| {
                    Error::operation_invalid("unable to set balloon driver collection period")
                        .with_source(error)
                })?;
            }
            let change = |state: &mut State| {
                let live = state.live.as_mut().map(Arc::make_mut);
                if let Some(balloon) = live.and_then(|live| live.devices.memballoons.first_mut()) {
                    balloon.stats_period_s = period_s;
                }
            };
            job.update_then(change, |state, ()| self.save_status(state));
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                balloon_of(definition.devices.memballoons.first_mut())?.stats_period_s = period_s;
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }
}

fn set_maximum(definition: &mut Domain, kib: u64) -> Result<()> {
    let numa = definition.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_ref());
    if numa.is_some_and(|numa| !numa.cells.is_empty()) {
        return Err(Error::operation_invalid(
            "initial memory size of a domain with NUMA nodes cannot be modified with this API",
        ));
    }
    let memory = &mut definition.memory;
    if memory.max.is_some_and(|max| max.kib < kib) {
        return Err(Error::operation_invalid(
            "cannot set initial memory size greater than the maximum memory size",
        ));
    }
    memory.total_kib = kib;
    memory.current_kib = memory.current_kib.min(kib);
    Ok(())
}

async fn set_balloon(live: &Live<'_>, kib: u64) -> Result<()> {
    let asked = live.monitor().execute(SetBalloon { value: kib.saturating_mul(1024) }).await;
    asked.map(drop).map_err(|error| match error {
        error if error.is_class("DeviceNotActive") || error.is_class("KVMMissingCap") => {
            Error::operation_invalid(
                "Unable to change memory of active domain without the balloon device and guest OS balloon driver",
            )
            .with_source(error)
        }
        error => error.into(),
    })
}

fn balloon_of(balloon: Option<&mut MemBalloon>) -> Result<&mut MemBalloon> {
    balloon.filter(|balloon| balloon.model != BalloonModel::None).ok_or_else(|| {
        Error::internal_error("No memory balloon device configured, can not set the collection period")
    })
}
