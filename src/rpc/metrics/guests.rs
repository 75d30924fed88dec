//! Numbers of guests, by the names and labels that exporters for libvirt gave them.

use super::exposition::{Exposition, Kind};
use crate::drivers::Drivers;
use crate::drivers::domain::stats::Record;
use crate::drivers::params::ParamValue;

/// `VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT`
const NOWAIT: u32 = 1 << 29;

/// `virDomainState`, as `virsh list` names them.
const STATES: [&str; 8] =
    ["no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"];

/// A family with one sample for each guest: name, kind, help, where the value is, its unit in ours.
type Whole = (&'static str, Kind, &'static str, &'static str, f64);

const WHOLE: [Whole; 5] = [
    (
        "libvirt_domain_info_cpu_time_seconds_total",
        Kind::Counter,
        "Processor time that the guest used.",
        "cpu.time",
        1e-9,
    ),
    (
        "libvirt_domain_info_maximum_memory_bytes",
        Kind::Gauge,
        "Memory that the guest may have.",
        "balloon.maximum",
        1024.0,
    ),
    (
        "libvirt_domain_info_memory_usage_bytes",
        Kind::Gauge,
        "Memory that the guest has.",
        "balloon.current",
        1024.0,
    ),
    ("libvirt_domain_info_virtual_cpus", Kind::Gauge, "Processors of the guest.", "vcpu.current", 1.0),
    ("libvirt_domain_state_code", Kind::Gauge, "The guest's state, as virDomainState.", "state.state", 1.0),
];

/// A family with one sample for each disk or interface: name, help, the group of the values, where, the unit.
type Parted = (&'static str, &'static str, &'static str, &'static str, f64);

const PARTED: [Parted; 14] = [
    ("libvirt_domain_block_stats_read_bytes_total", "Bytes read.", "block", "rd.bytes", 1.0),
    ("libvirt_domain_block_stats_read_requests_total", "Reads.", "block", "rd.reqs", 1.0),
    ("libvirt_domain_block_stats_read_time_seconds_total", "Time in reads.", "block", "rd.times", 1e-9),
    ("libvirt_domain_block_stats_write_bytes_total", "Bytes written.", "block", "wr.bytes", 1.0),
    ("libvirt_domain_block_stats_write_requests_total", "Writes.", "block", "wr.reqs", 1.0),
    ("libvirt_domain_block_stats_write_time_seconds_total", "Time in writes.", "block", "wr.times", 1e-9),
    ("libvirt_domain_interface_stats_receive_bytes_total", "Bytes received.", "net", "rx.bytes", 1.0),
    ("libvirt_domain_interface_stats_receive_packets_total", "Packets received.", "net", "rx.pkts", 1.0),
    ("libvirt_domain_interface_stats_receive_errors_total", "Errors in receiving.", "net", "rx.errs", 1.0),
    ("libvirt_domain_interface_stats_receive_drops_total", "Packets not received.", "net", "rx.drop", 1.0),
    ("libvirt_domain_interface_stats_transmit_bytes_total", "Bytes sent.", "net", "tx.bytes", 1.0),
    ("libvirt_domain_interface_stats_transmit_packets_total", "Packets sent.", "net", "tx.pkts", 1.0),
    ("libvirt_domain_interface_stats_transmit_errors_total", "Errors in sending.", "net", "tx.errs", 1.0),
    ("libvirt_domain_interface_stats_transmit_drops_total", "Packets not sent.", "net", "tx.drop", 1.0),
];

pub(super) async fn write(text: &mut Exposition, drivers: &Drivers) {
    let told = drivers.domains.all_stats(Vec::new(), 0, NOWAIT).await;
    text.family("libvirt_up", Kind::Gauge, "Whether the guests' numbers could be had.");
    text.sample(&[], u8::from(told.is_ok()));
    let records = told.unwrap_or_else(|error| {
        tracing::warn!(%error, "no numbers of guests for a scrape");
        Vec::new()
    });
    text.family("libvirt_domains_number", Kind::Gauge, "Guests, running or not.");
    text.sample(&[], records.len());
    text.family("ferrovirt_domains", Kind::Gauge, "Guests by state.");
    for (number, state) in STATES.iter().enumerate() {
        let is_it = |record: &&Record| value(record, "state.state") == Some(number as f64);
        text.sample(&[("state", state)], records.iter().filter(is_it).count());
    }
    let uuids: Vec<String> = records.iter().map(|record| record.domain.uuid.to_string()).collect();
    let named = || records.iter().zip(&uuids);
    for (name, kind, help, key, unit) in WHOLE {
        text.family(name, kind, help);
        for (record, uuid) in named() {
            if let Some(value) = value(record, key) {
                text.sample(&[("domain", &record.domain.name), ("uuid", uuid)], value * unit);
            }
        }
    }
    for (name, help, group, key, unit) in PARTED {
        text.family(name, Kind::Counter, help);
        for (record, uuid) in named() {
            let count = value(record, &format!("{group}.count")).unwrap_or(0.0) as u32;
            for number in 0..count {
                let of_part = |what: &str| format!("{group}.{number}.{what}");
                let Some(value) = value(record, &of_part(key)) else { continue };
                let device = record.params.text(&of_part("name")).map_or("", String::as_str);
                let mut labels =
                    vec![("domain", &*record.domain.name), ("target_device", device), ("uuid", uuid)];
                if let Some(path) = record.params.text(&of_part("path")) {
                    labels.insert(1, ("source_file", path));
                }
                text.sample(&labels, value * unit);
            }
        }
    }
}

fn value(record: &Record, name: &str) -> Option<f64> {
    Some(match *record.params.get(name)? {
        ParamValue::Int(number) => number.into(),
        ParamValue::Uint(number) => number.into(),
        ParamValue::Llong(number) => number as f64,
        ParamValue::Ullong(number) => number as f64,
        ParamValue::Double(number) => number,
        ParamValue::Boolean(truth) => u8::from(truth).into(),
        ParamValue::Text(_) => return None,
    })
}
