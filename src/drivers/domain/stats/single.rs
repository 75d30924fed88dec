//! One kind of numbers about one domain.

use std::sync::Arc;

use super::ask::ask_for;
use super::links::{LinkStats, Links};
use crate::conf::devices::{Disk, Interface};
use crate::conf::domain::{Domain, PerfEventName};
use crate::conf::xml::YesNo;
use crate::drivers::domain::Domains;
use crate::drivers::domain::flags::{Impact, no_flags};
use crate::drivers::domain::reads::{Stat, affinity, running};
use crate::drivers::domain::usage::{disk_named, one_definition};
use crate::drivers::params::Params;
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, State};
use crate::qemu::monitor::BlockCounters;
use crate::qemu::stats::Subjects;
use crate::util::bitmap::Bitmap;

/// `VIR_TYPED_PARAM_STRING_OKAY`: every client of these days sets it.
pub const STRING_OKAY: u32 = 1 << 2;

/// An I/O thread and the host CPUs it may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoThreadCpus {
    pub id: u32,
    pub cpus: Bitmap,
}

/// A guest's interface and the addresses it was seen with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub interface: String,
    pub mac: String,
    pub ipv4: String,
}

impl Domains {
    /// What one disk has done, or all of them if none is named.
    pub async fn block_stats(&self, domain: &DomainHandle, disk: &str) -> Result<BlockCounters> {
        let state = domain.state();
        let definition = running(&state)?;
        let disks: Vec<&Disk> = match disk {
            "" => definition.devices.disks.iter().collect(),
            name => vec![
                disk_named(definition, name)
                    .ok_or_else(|| Error::invalid_arg(format!("invalid path: {name}")))?,
            ],
        };
        let account = ask_for(domain.object(), Subjects::BLOCK).await?;
        let mut sum = BlockCounters::default();
        for disk in disks {
            let alias = disk.info.alias.as_deref().unwrap_or_default();
            let counters =
                account.block.as_ref().and_then(|block| block.frontend(alias)).ok_or_else(|| {
                    Error::internal_error(format!("cannot find statistics for device '{alias}'"))
                })?;
            sum.rd_operations += counters.rd_operations;
            sum.rd_bytes += counters.rd_bytes;
            sum.rd_total_time_ns += counters.rd_total_time_ns;
            sum.wr_operations += counters.wr_operations;
            sum.wr_bytes += counters.wr_bytes;
            sum.wr_total_time_ns += counters.wr_total_time_ns;
            sum.flush_operations += counters.flush_operations;
            sum.flush_total_time_ns += counters.flush_total_time_ns;
        }
        Ok(sum)
    }

    /// The I/O threads of the running guest, or those that it starts with the next time. `host` are the
    /// host CPUs that work.
    pub async fn iothreads(
        &self,
        domain: &DomainHandle,
        host: &Bitmap,
        flags: u32,
    ) -> Result<Vec<IoThreadCpus>> {
        let impact = Impact::of(flags, "qemuDomainGetIOThreadInfo")?;
        let state = domain.state();
        let definition = Arc::clone(one_definition(&state, impact)?);
        let is_live = state.is_active() && !impact.contains(Impact::CONFIG);
        if !is_live {
            return Ok(configured_iothreads(&definition, host));
        }
        if definition.iothreads.threads.is_empty() {
            return Ok(Vec::new());
        }
        let account = ask_for(domain.object(), Subjects::IOTHREADS).await?;
        let threads = account.iothreads.iter().flat_map(|threads| threads.iter());
        let numbered = threads.filter_map(|thread| {
            let id = thread.id.strip_prefix("iothread")?.parse().ok()?;
            Some(IoThreadCpus { id, cpus: affinity(thread.thread_id) })
        });
        Ok(numbered.collect())
    }
}

fn configured_iothreads(definition: &Domain, host: &Bitmap) -> Vec<IoThreadCpus> {
    let pins = definition.cputune.as_ref().map_or(&[][..], |cputune| &cputune.iothreadpin);
    let usual = definition.vcpus.cpuset.as_ref().unwrap_or(host);
    let cpus = |id| pins.iter().find(|pin| pin.iothread == id).map_or(usual, |pin| &pin.cpuset).clone();
    definition
        .iothreads
        .threads
        .iter()
        .map(|thread| IoThreadCpus { id: thread.id, cpus: cpus(thread.id) })
        .collect()
}

/// What one interface, named by its device or its MAC address, has received and sent.
pub fn interface_stats(state: &State, name: &str) -> Result<LinkStats> {
    let interface = interface_named(running(state)?, name)?;
    let lost = |sentence: &'static str| Error::internal_error(sentence).from_origin(Origin::NONE);
    if interface.target.dev.is_none() {
        return Err(lost("Interface name not provided"));
    }
    Links::read().of(interface).ok_or_else(|| lost("/proc/net/dev: Interface not found"))
}

pub(in crate::drivers::domain) fn interface_named<'a>(
    definition: &'a Domain,
    name: &str,
) -> Result<&'a Interface> {
    let mac = name.parse().ok();
    let is_it = |interface: &&Interface| match mac {
        Some(mac) => interface.mac.address == Some(mac),
        None => interface.target.dev.as_deref() == Some(name),
    };
    definition.devices.interfaces.iter().find(is_it).ok_or_else(|| {
        Error::invalid_arg(format!("'{name}' is not a known interface")).from_origin(Origin::DOMAIN)
    })
}

/// The processor time of the whole guest; nobody counts it by host CPU without a cgroup.
pub fn cpu_stats(state: &State, start: i32, flags: u32) -> Result<Params> {
    no_flags(flags & !STRING_OKAY, "qemuDomainGetCPUStats")?;
    running(state)?;
    if start != -1 {
        return Err(Error::operation_invalid("cgroup CPUACCT controller is not mounted"));
    }
    let stat = state.process().and_then(|process| Stat::read(process.pid(), None));
    let stat = stat.ok_or_else(|| Error::operation_failed("cannot read cputime for domain"))?;
    let mut params = Params::default();
    for (name, time) in
        [("cpu_time", stat.cpu_time()), ("user_time", stat.user_time()), ("system_time", stat.system_time())]
    {
        params.push(name, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(params)
}

/// Which perf events are counted for the guest.
pub fn perf_events(state: &State, flags: u32) -> Result<Params> {
    let definition = one_definition(state, Impact::of(flags & !STRING_OKAY, "qemuDomainGetPerfEvents")?)?;
    let mut params = Params::default();
    for name in PerfEventName::ALL {
        let enabled = definition.perf.iter().any(|event| event.name == *name && event.enabled == YesNo::Yes);
        params.push(name.as_str(), enabled);
    }
    Ok(params)
}

/// The addresses that the host has seen the guest's interfaces with, by `virDomainInterfaceAddressesSource`.
pub fn interface_addresses(state: &State, source: u32) -> Result<Vec<InterfaceAddress>> {
    const LEASE: u32 = 0;
    const ARP: u32 = 2;
    let definition = running(state)?;
    match source {
        // Leases are given by networks, of which there are none.
        LEASE => Ok(Vec::new()),
        ARP => Ok(neighbours(definition, &std::fs::read_to_string("/proc/net/arp").unwrap_or_default())),
        other => Err(Error::argument_unsupported(format!("Unknown IP address data source {other}"))),
    }
}

/// Whom of a guest the host has talked to on its own networks.
fn neighbours(definition: &Domain, table: &str) -> Vec<InterfaceAddress> {
    let seen = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (address, mac) = (fields.next()?, fields.nth(2)?);
        let mac = mac.parse().ok()?;
        let interface = definition.devices.interfaces.iter().find(|it| it.mac.address == Some(mac))?;
        let name = interface.target.dev.as_deref()?;
        Some(InterfaceAddress { interface: name.to_owned(), mac: mac.to_string(), ipv4: address.to_owned() })
    };
    table.lines().skip(1).filter_map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    #[test]
    fn a_neighbour_is_found_by_its_mac_address() {
        let text = "<domain type='kvm'><name>x</name><os><type>hvm</type></os><devices>\
                    <interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='vnet0'/></interface>\
                    </devices></domain>";
        let definition = Domain::parse(text, Form::LIVE).unwrap();
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.7         0x1         0x2         52:54:00:00:00:01     *        br0\n\
                     10.0.0.8         0x1         0x2         52:54:00:00:00:02     *        br0\n";
        let seen = InterfaceAddress {
            interface: "vnet0".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            ipv4: "10.0.0.7".to_owned(),
        };
        assert_eq!(neighbours(&definition, table), [seen]);
        assert!(interface_named(&definition, "52:54:00:00:00:01").is_ok());
        assert!(interface_named(&definition, "vnet0").is_ok());
        let error = interface_named(&definition, "vnet1").unwrap_err();
        assert_eq!(error.message(), "invalid argument: 'vnet1' is not a known interface");
    }
}
