//! vCPUs plugged and unplugged: of the running guest, of what it starts with the next time, or of both.
//!
//! A running guest's are plugged one after the other; when one fails, those before it stay.

use std::sync::Arc;
use std::time::Duration;

use super::flags::{CallFlags, Impact, SetVcpusFlags};
use super::hotplug::{Answer, UNPLUG_LIMIT, check_impact};
use super::reads::{persistent, running};
use super::start::Failure;
use super::{Domains, pins};
use crate::conf::domain::{Added, Domain, Vcpu};
use crate::conf::xml::YesNo;
use crate::drivers::domain::audit::Amount;
use crate::error::{Error, Result};
use crate::qemu::hotplug::vcpu::{self, Plugged, Slot};
use crate::qemu::job::{DomainHandle, DomainObject, Job, Modify, State};
use crate::qemu::monitor::Monitor;
use crate::util::audit::Outcome;
use crate::util::bitmap::Bitmap;

/// Guests number no vCPU from here on.
const MAX_VCPUS: usize = 4096;

/// What becomes of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    In,
    Out,
}

impl Domains {
    /// Gives the domain so many vCPUs, or lets it have so many at most, or its system use so many.
    pub async fn set_vcpus(self: &Arc<Self>, mut domain: DomainHandle, count: u32, flags: u32) -> Result<()> {
        check_words(count, flags)?;
        let flags = SetVcpusFlags::accept(flags)?;
        if flags.contains(SetVcpusFlags::GUEST) {
            return self.set_guest_vcpu_count(domain, count).await;
        }
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = Impact::from_bits_truncate(flags.bits()).on(&state);
        check_impact(impact, &state)?;
        let live = impact.contains(Impact::LIVE).then(|| running(&state)).transpose()?;
        let inactive = impact.contains(Impact::CONFIG).then(|| persistent(&state)).transpose()?;
        if flags.contains(SetVcpusFlags::MAXIMUM) {
            return self.set_max_vcpus(&object, live.is_some(), count).await;
        }
        for (definition, what) in [(live, "live"), (inactive, "persistent")] {
            if let Some(max) = definition.map(|it| it.vcpus.max).filter(|max| count > *max) {
                return Err(Error::invalid_arg(format!(
                    "requested vcpus is greater than max allowable vcpus for the {what} domain: {count} > {max}"
                )));
            }
        }
        if live.is_some() {
            let plugged = Plugged::ask(job.live()?.monitor()).await?;
            let (slots, turn) = select(&plugged.slots, count)?;
            self.turn_vcpus(&job, slots, turn).await?;
        }
        if inactive.is_some() {
            let hotpluggable = flags.contains(SetVcpusFlags::HOTPLUGGABLE);
            let added = if hotpluggable { Added::Hotpluggable } else { Added::Fixed };
            let edit = move |definition: &mut Domain| {
                definition.vcpus.set_online(count, added);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    async fn set_max_vcpus(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        is_live: bool,
        count: u32,
    ) -> Result<()> {
        if is_live {
            let sentence = "maximum vcpu count of a live domain can't be modified";
            return Err(Error::operation_unsupported(sentence));
        }
        let change = |definition: &mut Domain| set_max(definition, count);
        let edited = self.edit(&object.state(), &change).await?;
        self.replace_edited(object, edited, &change).await
    }

    /// Plugs or unplugs certain vCPUs; `turn` is 0 or 1.
    pub async fn set_vcpu(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        vcpus: &str,
        turn: i32,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetVcpu")?;
        let turn = match turn {
            0 => Turn::Out,
            1 => Turn::In,
            _ => {
                return Err(Error::refused_argument("qemuDomainSetVcpu", "state", "unsupported state value"));
            }
        };
        let wanted =
            Bitmap::parse(vcpus, MAX_VCPUS).map_err(|error| Error::invalid_arg(error.to_string()))?;
        let last = wanted.last().ok_or_else(|| Error::invalid_arg("no vcpus selected for modification"))?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        let live = impact.contains(Impact::LIVE).then(|| running(&state)).transpose()?;
        let inactive = impact.contains(Impact::CONFIG).then(|| persistent(&state)).transpose()?;
        for (definition, what) in [(inactive, "persistent"), (live, "live")] {
            if definition.is_some_and(|definition| last >= definition.vcpus.max as usize) {
                return Err(Error::invalid_arg(format!("vcpu {last} is not present in {what} config")));
            }
        }
        let slot = match live {
            Some(_) => Some(pick(Plugged::ask(job.live()?.monitor()).await?.slots, &wanted, turn)?),
            None => None,
        };
        if let Some(definition) = inactive {
            check_modifiable(&definition.vcpus.each(), &wanted)?;
        }
        if let Some(slot) = slot {
            self.turn_vcpus(&job, vec![slot], turn).await?;
        }
        if inactive.is_some() {
            let enabled = if turn == Turn::In { YesNo::Yes } else { YesNo::No };
            let edit = move |definition: &mut Domain| {
                definition.vcpus.enable(&wanted, enabled);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    async fn turn_vcpus(self: &Arc<Self>, job: &Job<'_, Modify>, slots: Vec<Slot>, turn: Turn) -> Result<()> {
        for slot in slots {
            // What there was before, for the record of one that does not come or go.
            let state = job.state();
            let before = running(&state)?;
            let (count, had) = (slot.count, before.vcpus.online());
            let failed = |wanted: u32| {
                let numbers = (had.into(), wanted.into());
                self.audit_amount(before, Amount::Vcpus, numbers, Outcome::Failure);
            };
            match turn {
                Turn::In => {
                    let plugged = slot.plug(job.live()?.monitor()).await;
                    plugged.inspect_err(|_| failed(had.saturating_add(count)))?;
                    self.refresh_vcpus(job).await?;
                    let state = job.state();
                    let definition = running(&state)?;
                    for number in slot.first..slot.first.saturating_add(slot.count) {
                        if let Some(thread) = state.vcpu_threads.get(number as usize) {
                            pins::place_vcpu(definition, number, *thread)?;
                        }
                    }
                }
                Turn::Out => {
                    let alias = slot.alias.as_deref().ok_or_else(|| {
                        Error::operation_unsupported(format!("vcpu '{}' can't be unplugged", slot.first))
                    })?;
                    let unplugged = self.unplug_vcpu(job, alias, UNPLUG_LIMIT).await;
                    unplugged.inspect_err(|_| failed(had.saturating_sub(count)))?;
                }
            }
        }
        Ok(())
    }

    async fn unplug_vcpu(
        self: &Arc<Self>,
        job: &Job<'_, Modify>,
        alias: &str,
        limit: Duration,
    ) -> Result<()> {
        let guest = job.live()?;
        let uuid = guest.state().uuid;
        let answer = self.unplugs.expect(uuid, alias);
        if let Err(error) = vcpu::unplug(guest.monitor(), alias).await {
            self.unplugs.forget(uuid, alias);
            return Err(error.into());
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Answer::Gone)) => self.refresh_vcpus(job).await,
            Ok(Ok(Answer::Refused)) => {
                Err(Error::operation_failed("unplug of device was rejected by the guest"))
            }
            Ok(Err(_)) | Err(_) => {
                self.unplugs.forget(uuid, alias);
                Err(Error::operation_timeout(
                    "vcpu unplug request timed out. Unplug result must be manually inspected in the domain",
                ))
            }
        }
    }

    /// Asks QEMU which vCPUs there are, and writes it down.
    pub(super) async fn refresh_vcpus(&self, job: &Job<'_, Modify>) -> Result<()> {
        let plugged = Plugged::ask(job.live()?.monitor()).await?;
        let change = |state: &mut State| {
            let live = state.live.as_mut()?;
            let before = Arc::clone(live);
            plugged.describe(&mut Arc::make_mut(live).vcpus);
            state.vcpu_threads = plugged.threads.into();
            Some((before, Arc::clone(live)))
        };
        if let Some((before, now)) = job.update_then(change, |state, _| self.save_status(state)) {
            let numbers = (before.vcpus.online().into(), now.vcpus.online().into());
            self.audit_amount(&now, Amount::Vcpus, numbers, Outcome::Success);
        }
        Ok(())
    }
}

/// Plugs the vCPUs that a guest has from its start and can do without, before it runs.
pub(super) async fn plug_at_start(monitor: &Monitor, definition: &Domain) -> Result<(), Failure> {
    let is_plugged = |vcpu: &&Vcpu| {
        let yes = |word: YesNo| word == YesNo::Yes;
        yes(vcpu.enabled) && vcpu.hotpluggable.is_some_and(yes)
    };
    let mut vcpus: Vec<_> = definition.vcpus.individual.iter().filter(is_plugged).collect();
    if vcpus.is_empty() {
        return Ok(());
    }
    check_orders(definition)?;
    vcpus.sort_by_key(|vcpu| vcpu.order);
    let slots = Plugged::ask(monitor).await?.slots;
    for vcpu in vcpus {
        if let Some(slot) = slots.iter().find(|slot| slot.first == vcpu.id) {
            slot.plug(monitor).await?;
        }
    }
    Ok(())
}

fn check_orders(definition: &Domain) -> Result<()> {
    let mut seen = Bitmap::new();
    for order in definition.vcpus.individual.iter().filter_map(|vcpu| vcpu.order).filter(|order| *order > 0) {
        if seen.contains(order as usize) {
            return Err(Error::config_unsupported(format!("duplicate vcpu order '{order}'")));
        }
        if order > definition.vcpus.max {
            return Err(Error::config_unsupported(format!("vcpu order '{order}' exceeds vcpu count")));
        }
        seen.insert(order as usize);
    }
    Ok(())
}

fn check_words(count: u32, flags: u32) -> Result<()> {
    let has = |flag: SetVcpusFlags| flags & flag.bits() != 0;
    if has(SetVcpusFlags::MAXIMUM) && !has(SetVcpusFlags::CONFIG) {
        let sentence = "Flag 'VIR_DOMAIN_AFFECT_CONFIG' is required by flag 'VIR_DOMAIN_VCPU_MAXIMUM'";
        return Err(Error::refused_argument("virDomainSetVcpusFlags", "flags", sentence));
    }
    if has(SetVcpusFlags::GUEST) && has(SetVcpusFlags::CONFIG) {
        let sentence = "Flags 'VIR_DOMAIN_VCPU_GUEST' and 'VIR_DOMAIN_AFFECT_CONFIG' are mutually exclusive";
        return Err(Error::refused_argument("virDomainSetVcpusFlags", "flags", sentence));
    }
    if count == 0 {
        let sentence = "nvcpus in virDomainSetVcpusFlags must not be zero";
        return Err(Error::refused_argument("virDomainSetVcpusFlags", "nvcpus", sentence));
    }
    Ok(())
}

/// The slots to plug or unplug so that there are so many vCPUs.
fn select(slots: &[Slot], count: u32) -> Result<(Vec<Slot>, Turn)> {
    let mut online: u32 = slots.iter().filter(|slot| slot.is_online).map(|slot| slot.count).sum();
    let granularity =
        || Error::config_unsupported("target vm vcpu granularity does not allow the desired vcpu count");
    let mut selected = Vec::new();
    let turn = if count > online { Turn::In } else { Turn::Out };
    if turn == Turn::In {
        for slot in slots.iter().filter(|slot| !slot.is_online) {
            if online >= count {
                break;
            }
            online += slot.count;
            if online > count {
                return Err(granularity());
            }
            selected.push(slot.clone());
        }
    } else {
        for slot in slots.iter().rev().filter(|slot| slot.is_online && slot.alias.is_some()) {
            if online <= count {
                break;
            }
            online = online.checked_sub(slot.count).filter(|left| *left >= count).ok_or_else(granularity)?;
            selected.push(slot.clone());
        }
    }
    if online != count {
        return Err(Error::config_unsupported(
            "failed to find appropriate hotpluggable vcpus to reach the desired target vcpu count",
        ));
    }
    Ok((selected, turn))
}

/// The one slot that a client means.
fn pick(slots: Vec<Slot>, wanted: &Bitmap, turn: Turn) -> Result<Slot> {
    let mut selected = Vec::new();
    for slot in slots {
        let ids = || slot.first..slot.first.saturating_add(slot.count);
        let Some(first) = ids().find(|id| wanted.contains(*id as usize)) else { continue };
        if slot.is_online == (turn == Turn::In) {
            return Err(Error::invalid_arg(format!("vcpu '{first}' is already in requested state")));
        }
        if let Some(missing) = ids().find(|id| !wanted.contains(*id as usize)) {
            return Err(Error::invalid_arg(format!(
                "vcpu '{missing}' was not selected but it belongs to hotpluggable entity '{}-{}' which was partially selected",
                slot.first,
                slot.first.saturating_add(slot.count).saturating_sub(1)
            )));
        }
        selected.push(slot);
    }
    match (selected.pop(), selected.is_empty()) {
        (Some(slot), true) => Ok(slot),
        _ => Err(Error::operation_unsupported("only one hotpluggable entity can be selected")),
    }
}

/// vCPUs that cannot be unplugged come first, and stay so.
fn check_modifiable(vcpus: &[Vcpu], wanted: &Bitmap) -> Result<()> {
    if wanted.contains(0) {
        return Err(Error::invalid_arg("vCPU '0' can't be modified"));
    }
    let first = wanted.iter().next().unwrap_or(0);
    let is_fixed = |vcpu: &&Vcpu| {
        vcpu.id as usize > first
            && !wanted.contains(vcpu.id as usize)
            && vcpu.enabled == YesNo::Yes
            && vcpu.hotpluggable == Some(YesNo::No)
    };
    match vcpus.iter().find(is_fixed) {
        Some(_) => Err(Error::invalid_arg(format!(
            "vcpu '{first}' can't be modified as it is followed by non-hotpluggable online vcpus"
        ))),
        None => Ok(()),
    }
}

/// Changes how many vCPUs there may be, where topology and NUMA cells allow it.
fn set_max(definition: &mut Domain, count: u32) -> Result<()> {
    if let Some(cpu) = &definition.cpu {
        let cells = cpu.rest.numa.iter().flat_map(|numa| numa.cells.iter());
        let in_numa: usize = cells.filter_map(|cell| cell.cpus.as_ref()).map(Bitmap::count).sum();
        if in_numa > count as usize {
            return Err(Error::invalid_arg(
                "Number of CPUs in <numa> exceeds the desired maximum vcpu count",
            ));
        }
        let total = cpu.rest.topology.and_then(|it| {
            [it.dies, it.clusters, it.cores, it.threads]
                .iter()
                .try_fold(it.sockets, |total, next| total.checked_mul(*next))
        });
        if total.is_some_and(|total| total != count) {
            return Err(Error::invalid_arg("CPU topology doesn't match the desired vcpu count"));
        }
    }
    definition.vcpus.set_max(count);
    Ok(())
}
