//! Memory that is plugged in: where QEMU has put it, how much of it the guest has taken, and asking the guest for
//! more or less.

use std::sync::Arc;

use serde_json::json;

use super::Domains;
use super::event::DomainEvent;
use super::reads::running;
use super::update_rules::check_compatible;
use crate::conf::devices::{Address, BalloonModel, DimmAddress, HexLong, MemoryDevice, MemoryModel};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainObject, Job, Modify, State};
use crate::qemu::monitor::{Monitor, MonitorError, QueryBalloon, QueryMemoryDevices};

/// Notes where QEMU has put memory that was plugged in.
pub(super) async fn note_places(
    monitor: &Monitor,
    memories: &mut [MemoryDevice],
) -> Result<(), MonitorError> {
    if memories.is_empty() {
        return Ok(());
    }
    for found in monitor.execute(QueryMemoryDevices {}).await? {
        let found = found.data;
        let is_it = |memory: &&mut MemoryDevice| {
            memory.info.alias.is_some() && memory.info.alias.as_deref() == found.id.as_deref()
        };
        let Some(memory) = memories.iter_mut().find(is_it) else { continue };
        match memory.model {
            MemoryModel::VirtioMem => {
                memory.target.current_kib = found.size.div_ceil(1024);
                memory.target.base = found.addr;
            }
            MemoryModel::VirtioPmem => memory.target.base = found.addr,
            MemoryModel::Dimm | MemoryModel::Nvdimm => {
                let base = Some(HexLong(found.addr));
                memory.info.address = Some(Address::Dimm(DimmAddress { slot: found.slot, base }));
            }
            MemoryModel::SgxEpc => {}
        }
    }
    Ok(())
}

/// How much memory a guest has now, of which its balloon knows only what it began with.
pub(super) async fn current_kib(monitor: &Monitor, live: &Domain) -> Result<u64, MonitorError> {
    if live.devices.memballoons.iter().all(|it| it.model == BalloonModel::None) {
        // Nothing takes memory away.
        return Ok(live.memory.total_kib);
    }
    let actual_kib = monitor.execute(QueryBalloon {}).await?.actual / 1024;
    Ok(actual_kib.saturating_add(taken_kib(live)))
}

/// What a guest has taken of the memory that it may take.
pub(super) fn taken_kib(live: &Domain) -> u64 {
    live.devices.memories.iter().map(|memory| memory.target.current_kib).fold(0, u64::saturating_add)
}

impl Domains {
    /// Asks a guest to take more or less of a device's memory.
    pub(super) async fn update_memory(&self, job: &Job<'_, Modify>, new: &MemoryDevice) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        let Some(old) = find(&live.devices.memories, new) else {
            let alias = new.info.alias.as_deref().unwrap_or("(null)");
            return Err(Error::config_unsupported(format!("memory '{alias}' not found")));
        };
        check_compatible(live, Some(&old.info), &new.info)?;
        check_change(old, new)?;
        let alias = old.info.alias.clone().unwrap_or_default();
        let requested_kib = new.target.requested_kib;
        let size = json!({
            "path": format!("/machine/peripheral/{alias}"),
            "property": "requested-size",
            "value": requested_kib.saturating_mul(1024),
        });
        guest.monitor().execute_value("qom-set", Some(size)).await?;
        let change = |state: &mut State| {
            if let Some(memory) = state.live.as_mut().and_then(|live| by_alias(Arc::make_mut(live), &alias)) {
                memory.target.requested_kib = requested_kib;
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }

    /// The guest has taken more or less of a device's memory.
    pub(super) fn note_memory_device(&self, object: &DomainObject, alias: String, size: u64) {
        self.tell(object, |state| {
            let size_kib = size.div_ceil(1024);
            let Some(live) = &mut state.live else { return Vec::new() };
            let live = Arc::make_mut(live);
            let Some(memory) = by_alias(live, &alias).filter(|it| it.model == MemoryModel::VirtioMem) else {
                return Vec::new();
            };
            let before_kib = std::mem::replace(&mut memory.target.current_kib, size_kib);
            let current_kib = &mut live.memory.current_kib;
            *current_kib = current_kib.saturating_sub(before_kib).saturating_add(size_kib);
            vec![DomainEvent::MemoryDeviceSizeChange { alias, size_kib }]
        });
    }
}

fn by_alias<'a>(live: &'a mut Domain, alias: &str) -> Option<&'a mut MemoryDevice> {
    live.devices.memories.iter_mut().find(|memory| memory.info.alias.as_deref() == Some(alias))
}

/// The device that a description means: the one at the same place.
fn find<'a>(memories: &'a [MemoryDevice], wanted: &MemoryDevice) -> Option<&'a MemoryDevice> {
    memories.iter().find(|memory| is_it(memory, wanted))
}

pub(super) fn is_it(memory: &MemoryDevice, wanted: &MemoryDevice) -> bool {
    let alias = wanted.info.alias.as_ref();
    memory.info.address == wanted.info.address
        && alias.is_none_or(|alias| memory.info.alias.as_ref() == Some(alias))
}

/// A guest is asked for nothing but more or less memory.
fn check_change(old: &MemoryDevice, new: &MemoryDevice) -> Result<()> {
    let refused = |sentence: String| Err(Error::config_unsupported(sentence));
    if old.model != MemoryModel::VirtioMem {
        return refused(format!("cannot modify memory of model '{}'", old.model));
    }
    if old.model != new.model {
        return refused(format!("cannot modify memory model from '{}' to '{}'", old.model, new.model));
    }
    if old.access != new.access {
        let word = |it: &MemoryDevice| it.access.map_or("default", |access| access.as_str());
        return refused(format!("cannot modify memory access from '{}' to '{}'", word(old), word(new)));
    }
    if old.discard != new.discard {
        let word = |it: &MemoryDevice| it.discard.map_or("default", |discard| discard.as_str());
        return refused(format!("cannot modify memory discard from '{}' to '{}'", word(old), word(new)));
    }
    if old.source.nodes != new.source.nodes {
        return refused("cannot modify memory source nodes".to_owned());
    }
    let (from, to) = (&old.target, &new.target);
    let node = |node: Option<u32>| node.map_or(-1, i64::from).to_string();
    let hex = |base: u64| format!("0x{base:x}");
    for (field, from, to) in [
        ("pagesize", old.source.page_kib.to_string(), new.source.page_kib.to_string()),
        ("targetNode", node(from.node), node(to.node)),
        ("size", from.size_kib.to_string(), to.size_kib.to_string()),
        ("block size", from.block_kib.to_string(), to.block_kib.to_string()),
        ("address", hex(from.base), hex(to.base)),
    ] {
        if from != to {
            return refused(format!("cannot modify memory {field} from '{from}' to '{to}'"));
        }
    }
    Ok(())
}
