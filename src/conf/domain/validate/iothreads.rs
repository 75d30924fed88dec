//! I/O threads that devices share out among their queues.

use std::collections::BTreeSet;

use super::super::Domain;
use super::{by_qemu, unsupported};
use crate::conf::Result;
use crate::conf::devices::{ControllerDriver, IoThreadMapping, ScsiModel};

/// No guest has more queues.
const MAX_QUEUES: u32 = 1024;

/// Every queue has one thread, or none is named.
pub(super) fn check_mapping(domain: &Domain, mapping: &IoThreadMapping, queues: u32) -> Result<()> {
    let is_explicit = mapping.threads.first().is_some_and(|first| !first.queues.is_empty());
    if is_explicit && queues == 0 {
        return by_qemu("'queue' count must be configured for explicit iothread to queue mapping");
    }
    let (mut threads, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for thread in &mapping.threads {
        let id = thread.id;
        if !threads.insert(id) {
            return by_qemu(format!("duplicate mapping for iothread '{id}'"));
        }
        if !domain.iothreads.threads.iter().any(|known| known.id == id) {
            return by_qemu(format!("iothread '{id}' not defined in iothreadid"));
        }
        if is_explicit == thread.queues.is_empty() {
            return by_qemu("iothread to queue mapping must be provided for all iothreads or for none");
        }
        for queue in &thread.queues {
            if queue.id >= queues {
                return by_qemu(format!("iothread queue '{}' mapping out of range", queue.id));
            }
            if !taken.insert(queue.id) {
                return by_qemu(format!("iothread queue '{}' is already assigned", queue.id));
            }
        }
    }
    let unused = (0..queues.min(MAX_QUEUES)).find(|queue| is_explicit && !taken.contains(queue));
    match unused {
        Some(queue) => by_qemu(format!("missing iothread mapping for queue '{queue}'")),
        None => Ok(()),
    }
}

pub(super) fn check_controller(
    domain: &Domain,
    model: Option<ScsiModel>,
    driver: &ControllerDriver,
) -> Result<()> {
    if driver.iothread == 0 && driver.iothreads.is_none() {
        return Ok(());
    }
    if !model.is_some_and(|model| model.is_virtio()) {
        return unsupported("iothreads are supported only by 'virtio-scsi' controllers");
    }
    if driver.iothread != 0 && driver.iothreads.is_some() {
        return Err(crate::conf::ConfError::xml(
            "controller driver 'iothread' attribute can't be used together with 'iothreads' subelement",
        ));
    }
    if let Some(mapping) = &driver.iothreads {
        return check_mapping(domain, mapping, driver.queues);
    }
    let iothread = driver.iothread;
    if !domain.iothreads.threads.iter().any(|thread| thread.id == iothread) {
        return by_qemu(format!("controller iothread '{iothread}' not defined in iothreadid"));
    }
    Ok(())
}
