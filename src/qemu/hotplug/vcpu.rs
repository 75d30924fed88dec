//! The places for vCPUs that a running QEMU has, and what is in them.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::conf::domain::{Vcpu, Vcpus};
use crate::conf::xml::YesNo;
use crate::qemu::monitor::{
    Cpu, HotpluggableCpu, Monitor, MonitorError, QueryCpusFast, QueryHotpluggableCpus,
};

/// Where QEMU keeps what was plugged by name.
const PLUGGED: &str = "/machine/peripheral/";

/// vCPUs that come and go together: on x86 always one.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    pub first: u32,
    pub count: u32,
    pub is_online: bool,
    /// Of what can be unplugged.
    pub alias: Option<String>,
    /// When it was plugged, counted from 1; 0 while it is not.
    order: u32,
    /// The arguments that plug it.
    device: Value,
}

/// All slots, and the thread of each vCPU: 0 for one that is not plugged.
#[derive(Debug)]
pub struct Plugged {
    pub slots: Vec<Slot>,
    pub threads: Vec<u32>,
}

impl Plugged {
    pub async fn ask(monitor: &Monitor) -> Result<Self, MonitorError> {
        let places = monitor.submit(QueryHotpluggableCpus {});
        let cpus = monitor.submit(QueryCpusFast {});
        Ok(Self::of(places.reply().await?, &cpus.reply().await?))
    }

    fn of(mut places: Vec<HotpluggableCpu>, cpus: &[Cpu]) -> Self {
        // `/thread[0]` is a part of what was plugged.
        let path_of = |cpu: &Cpu| cpu.qom_path.split("/thread").next().unwrap_or_default().to_owned();
        let mut orders = HashMap::new();
        for path in cpus.iter().map(path_of) {
            let next = orders.len() as u32 + 1;
            orders.entry(path).or_insert(next);
        }
        // QEMU tells the last one first.
        places.reverse();
        let mut first = 0;
        let slots = places.into_iter().map(|place| {
            let path = place.qom_path.as_deref();
            let slot = Slot {
                first,
                count: place.vcpus_count,
                is_online: path.is_some(),
                alias: path.and_then(|path| path.strip_prefix(PLUGGED)).map(str::to_owned),
                order: path.and_then(|path| orders.get(path)).copied().unwrap_or(0),
                device: device(&place, &alias_of(first)),
            };
            first += place.vcpus_count;
            slot
        });
        Self { slots: slots.collect(), threads: threads(told(cpus)) }
    }

    /// What a live definition says of the vCPUs that are there.
    pub fn describe(&self, vcpus: &mut Vcpus) {
        let each = self.slots.iter().flat_map(|slot| {
            (slot.first..slot.first.saturating_add(slot.count)).map(|id| Vcpu {
                id,
                enabled: yes(slot.is_online),
                hotpluggable: Some(yes(slot.alias.is_some() || !slot.is_online)),
                order: (slot.order > 0).then_some(slot.order),
            })
        });
        vcpus.individual = each.take(vcpus.max as usize).collect();
    }
}

/// Threads by the number of their vCPU; 0 where there is none.
pub fn threads(told: impl Iterator<Item = (u32, u32)>) -> Vec<u32> {
    /// No machine has as many.
    const MAX: u32 = 16384;
    let mut threads = Vec::new();
    for (number, thread) in told.filter(|(number, _)| *number < MAX) {
        let at = number as usize;
        if threads.len() <= at {
            threads.resize(at + 1, 0);
        }
        if let Some(place) = threads.get_mut(at) {
            *place = thread;
        }
    }
    threads
}

/// The number of each vCPU and its thread.
pub fn told(cpus: &[Cpu]) -> impl Iterator<Item = (u32, u32)> {
    cpus.iter().map(|cpu| (cpu.cpu_index, cpu.thread_id))
}

fn alias_of(vcpu: u32) -> String {
    format!("vcpu{vcpu}")
}

/// Whether an alias is one of a vCPU.
pub fn is_vcpu(alias: &str) -> bool {
    alias.strip_prefix("vcpu").is_some_and(|number| number.parse::<u32>().is_ok())
}

fn yes(is_so: bool) -> YesNo {
    if is_so { YesNo::Yes } else { YesNo::No }
}

fn device(place: &HotpluggableCpu, alias: &str) -> Value {
    let mut device = place.props.clone();
    device.insert("driver".to_owned(), place.kind.clone().into());
    device.insert("id".to_owned(), alias.into());
    Value::Object(device)
}

impl Slot {
    pub async fn plug(&self, monitor: &Monitor) -> Result<(), MonitorError> {
        monitor.execute_value("device_add", Some(self.device.clone())).await.map(drop)
    }
}

/// Asks the guest to let go of a vCPU.
pub async fn unplug(monitor: &Monitor, alias: &str) -> Result<(), MonitorError> {
    monitor.execute_value("device_del", Some(json!({ "id": alias }))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_numbered_from_the_end_and_ordered_as_they_were_plugged() {
        let places = json!([
            { "type": "x", "vcpus-count": 1, "props": { "core-id": 0, "socket-id": 2 },
              "qom-path": "/machine/peripheral/vcpu2" },
            { "type": "x", "vcpus-count": 1, "props": { "core-id": 0, "socket-id": 1 } },
            { "type": "x", "vcpus-count": 1, "props": { "core-id": 0, "socket-id": 0 },
              "qom-path": "/machine/unattached/device[0]" },
        ]);
        let cpus = json!([
            { "cpu-index": 0, "thread-id": 70, "qom-path": "/machine/unattached/device[0]" },
            { "cpu-index": 2, "thread-id": 72, "qom-path": "/machine/peripheral/vcpu2" },
        ]);
        let cpus: Vec<Cpu> = serde_json::from_value(cpus).unwrap();
        let plugged = Plugged::of(serde_json::from_value(places).unwrap(), &cpus);
        assert_eq!(plugged.threads, [70, 0, 72]);
        assert_eq!(
            plugged.slots[1].device,
            json!({ "driver": "x", "id": "vcpu1", "core-id": 0, "socket-id": 1 })
        );
        let mut vcpus = Vcpus { max: 3, ..Vcpus::default() };
        plugged.describe(&mut vcpus);
        let entry = |id, enabled, hotpluggable, order| Vcpu {
            id,
            enabled: yes(enabled),
            hotpluggable: Some(yes(hotpluggable)),
            order,
        };
        let expected =
            [entry(0, true, false, Some(1)), entry(1, false, true, None), entry(2, true, true, Some(2))];
        assert_eq!(vcpus.individual, expected);
        assert!(is_vcpu("vcpu12") && !is_vcpu("vcpu") && !is_vcpu("net0"));
    }
}
