//! What an agent tells of its guest. Every field may be missing or mean nothing: guests lie.

use serde::Deserialize;
use serde_json::Value;

use super::error::AgentError;
use super::request::Request;
use crate::conf::devices::{Address, Controller, ControllerKind, Disk, DiskBus, PciAddress};
use crate::conf::domain::Domain;
use crate::qemu::job::LiveAgent;

/// Reads a field that a reply must have.
fn required<T>(field: Option<T>, name: &str, command: &str) -> Result<T, AgentError> {
    field.ok_or_else(|| AgentError::Missing(format!("'{name}' missing in reply of {command}")))
}

/// `guest-get-host-name`
pub async fn hostname(agent: &LiveAgent<'_>) -> Result<String, AgentError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Reply {
        host_name: Option<String>,
    }
    let Reply { host_name } = agent.ask(&Request::new("guest-get-host-name", Value::Null)).await?;
    let missing = || AgentError::Missing("'host-name' missing in guest-get-host-name reply".to_owned());
    host_name.ok_or_else(missing)
}

/// A processor of the guest's system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu {
    pub id: u64,
    pub online: bool,
    pub offlinable: bool,
}

impl Vcpu {
    /// `guest-get-vcpus`
    pub async fn all(agent: &LiveAgent<'_>) -> Result<Vec<Self>, AgentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Reply {
            logical_id: Option<u64>,
            online: Option<bool>,
            can_offline: Option<bool>,
        }
        const COMMAND: &str = "guest-get-vcpus";
        let vcpus: Vec<Reply> = agent.ask(&Request::new(COMMAND, Value::Null)).await?;
        vcpus
            .into_iter()
            .map(|vcpu| {
                Ok(Self {
                    id: required(vcpu.logical_id, "logical-id", COMMAND)?,
                    online: required(vcpu.online, "online", COMMAND)?,
                    offlinable: vcpu.can_offline.unwrap_or(false),
                })
            })
            .collect()
    }
}

/// Who is logged in.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub name: String,
    /// Windows has these.
    pub domain: Option<String>,
    /// Since 1970.
    pub login_time_ms: u64,
}

impl User {
    /// `guest-get-users`
    pub async fn all(agent: &LiveAgent<'_>) -> Result<Vec<Self>, AgentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Reply {
            user: Option<String>,
            domain: Option<String>,
            login_time: Option<f64>,
        }
        const COMMAND: &str = "guest-get-users";
        let users: Vec<Reply> = agent.ask(&Request::new(COMMAND, Value::Null)).await?;
        users
            .into_iter()
            .map(|user| {
                Ok(Self {
                    name: required(user.user, "user", COMMAND)?,
                    domain: user.domain,
                    login_time_ms: (required(user.login_time, "login-time", COMMAND)? * 1000.0) as u64,
                })
            })
            .collect()
    }
}

/// `guest-get-osinfo`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Os {
    pub id: Option<String>,
    pub name: Option<String>,
    pub pretty_name: Option<String>,
    pub version: Option<String>,
    pub version_id: Option<String>,
    pub machine: Option<String>,
    pub variant: Option<String>,
    pub variant_id: Option<String>,
    pub kernel_release: Option<String>,
    pub kernel_version: Option<String>,
}

impl Os {
    pub async fn of(agent: &LiveAgent<'_>) -> Result<Self, AgentError> {
        agent.ask(&Request::new("guest-get-osinfo", Value::Null)).await
    }
}

/// The guest's time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timezone {
    pub name: Option<String>,
    /// East of Greenwich.
    pub offset_s: i32,
}

impl Timezone {
    /// `guest-get-timezone`
    pub async fn of(agent: &LiveAgent<'_>) -> Result<Self, AgentError> {
        #[derive(Deserialize)]
        struct Reply {
            zone: Option<String>,
            offset: Option<i32>,
        }
        const COMMAND: &str = "guest-get-timezone";
        let Reply { zone, offset } = agent.ask(&Request::new(COMMAND, Value::Null)).await?;
        Ok(Self { name: zone, offset_s: required(offset, "offset", COMMAND)? })
    }
}

/// How many processes of the guest want to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    pub one_minute: f64,
    pub five_minutes: f64,
    pub fifteen_minutes: f64,
}

impl Load {
    /// `guest-get-load`
    pub async fn of(agent: &LiveAgent<'_>) -> Result<Self, AgentError> {
        #[derive(Deserialize)]
        struct Reply {
            load1m: Option<f64>,
            load5m: Option<f64>,
            load15m: Option<f64>,
        }
        let missing = |name: &str| {
            AgentError::Missing(format!("parameter '{name}' is missing in reply of guest-get-load"))
        };
        let reply: Reply = agent.ask(&Request::new("guest-get-load", Value::Null)).await?;
        Ok(Self {
            one_minute: reply.load1m.ok_or_else(|| missing("load1m"))?,
            five_minutes: reply.load5m.ok_or_else(|| missing("load5m"))?,
            fifteen_minutes: reply.load15m.ok_or_else(|| missing("load15m"))?,
        })
    }
}

/// Where the guest sees a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskAddress {
    /// What the guest takes it for: `scsi`, `virtio`, …
    pub bus_kind: Option<String>,
    pub serial: Option<String>,
    /// The device's path in the guest.
    pub device: Option<String>,
    bus: i64,
    target: i64,
    unit: i64,
    controller: [i64; 4],
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawDiskAddress {
    bus_type: Option<String>,
    serial: Option<String>,
    dev: Option<String>,
    bus: Option<i64>,
    target: Option<i64>,
    unit: Option<i64>,
    pci_controller: Option<RawPci>,
}

#[derive(Deserialize)]
struct RawPci {
    domain: Option<i64>,
    bus: Option<i64>,
    slot: Option<i64>,
    function: Option<i64>,
}

impl DiskAddress {
    fn read(raw: RawDiskAddress) -> Result<Self, AgentError> {
        let missing = |name: &str| AgentError::Missing(format!("'{name}' missing"));
        let number = |number: Option<i64>, name: &str| number.ok_or_else(|| missing(name));
        let pci = raw.pci_controller.ok_or_else(|| missing("pci-controller"))?;
        Ok(Self {
            bus_kind: raw.bus_type,
            serial: raw.serial,
            device: raw.dev,
            bus: number(raw.bus, "bus")?,
            target: number(raw.target, "target")?,
            unit: number(raw.unit, "unit")?,
            controller: [
                number(pci.domain, "domain")?,
                number(pci.bus, "bus")?,
                number(pci.slot, "slot")?,
                number(pci.function, "function")?,
            ],
        })
    }

    /// The disk of the definition that this is.
    pub fn find<'a>(&self, domain: &'a Domain) -> Option<&'a Disk> {
        let controller =
            domain.devices.controllers.iter().find(|controller| self.is(&controller.info.address));
        domain.devices.disks.iter().find(|disk| match &disk.info.address {
            Some(Address::Drive(drive)) => {
                let place = [drive.bus, drive.target, drive.unit].map(i64::from);
                place == [self.bus, self.target, self.unit]
                    && controller.is_some_and(|it| it.index == Some(drive.controller) && carries(it, disk))
            }
            address => self.is(address),
        })
    }

    fn is(&self, address: &Option<Address>) -> bool {
        let Some(Address::Pci(PciAddress { domain, bus, slot, function, .. })) = address else {
            return false;
        };
        self.controller == [i64::from(*domain), i64::from(*bus), i64::from(*slot), i64::from(*function)]
    }
}

fn carries(controller: &Controller, disk: &Disk) -> bool {
    let bus = disk.target.bus;
    match controller.kind {
        ControllerKind::Ide(_) => bus == Some(DiskBus::Ide),
        ControllerKind::Scsi(_) => bus == Some(DiskBus::Scsi),
        ControllerKind::Sata => bus == Some(DiskBus::Sata),
        ControllerKind::Fdc => bus == Some(DiskBus::Fdc),
        _ => false,
    }
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    pub mountpoint: String,
    pub name: String,
    pub kind: String,
    pub used_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub disks: Vec<DiskAddress>,
}

impl Filesystem {
    /// `guest-get-fsinfo`, in the order of mounting.
    pub async fn all(agent: &LiveAgent<'_>) -> Result<Vec<Self>, AgentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Reply {
            mountpoint: Option<String>,
            name: Option<String>,
            #[serde(rename = "type")]
            kind: Option<String>,
            used_bytes: Option<u64>,
            total_bytes: Option<u64>,
            disk: Option<Vec<RawDiskAddress>>,
        }
        const COMMAND: &str = "guest-get-fsinfo";
        let found: Vec<Reply> = agent.ask(&Request::new(COMMAND, Value::Null)).await?;
        let read = |found: Reply| {
            let disks = required(found.disk, "disk", COMMAND)?;
            Ok(Self {
                mountpoint: required(found.mountpoint, "mountpoint", COMMAND)?,
                name: required(found.name, "name", COMMAND)?,
                kind: required(found.kind, "type", COMMAND)?,
                used_bytes: found.used_bytes,
                total_bytes: found.total_bytes,
                disks: disks.into_iter().map(DiskAddress::read).collect::<Result<_, _>>()?,
            })
        };
        found.into_iter().rev().map(read).collect()
    }
}

/// A disk or a partition as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    pub name: String,
    pub partition: bool,
    /// What it is made of.
    pub dependencies: Option<Vec<String>>,
    pub address: Option<DiskAddress>,
    pub alias: Option<String>,
}

impl GuestDisk {
    /// `guest-get-disks`
    pub async fn all(agent: &LiveAgent<'_>) -> Result<Vec<Self>, AgentError> {
        #[derive(Deserialize)]
        struct Reply {
            name: Option<String>,
            partition: Option<bool>,
            dependencies: Option<Vec<String>>,
            address: Option<RawDiskAddress>,
            alias: Option<String>,
        }
        const COMMAND: &str = "guest-get-disks";
        let disks: Vec<Reply> = agent.ask(&Request::new(COMMAND, Value::Null)).await?;
        let read = |disk: Reply| {
            Ok(Self {
                name: required(disk.name, "name", COMMAND)?,
                partition: required(disk.partition, "partition", COMMAND)?,
                dependencies: disk.dependencies,
                address: disk.address.map(DiskAddress::read).transpose()?,
                alias: disk.alias,
            })
        };
        disks.into_iter().map(read).collect()
    }
}

/// A network interface as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: Option<String>,
    pub addresses: Vec<IpAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpAddress {
    pub family: IpFamily,
    pub address: String,
    pub prefix: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    V4,
    V6,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawInterface {
    name: Option<String>,
    hardware_address: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<RawIpAddress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawIpAddress {
    ip_address_type: Option<String>,
    ip_address: Option<String>,
    prefix: Option<u32>,
}

impl Interface {
    /// `guest-network-get-interfaces`
    pub async fn all(agent: &LiveAgent<'_>) -> Result<Vec<Self>, AgentError> {
        let found: Vec<RawInterface> =
            agent.ask(&Request::new("guest-network-get-interfaces", Value::Null)).await?;
        Self::read(found)
    }

    /// What the guest calls `eth0:1` is a further address of `eth0`.
    fn read(found: Vec<RawInterface>) -> Result<Vec<Self>, AgentError> {
        let mut interfaces: Vec<Self> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for raw in found {
            let whole = raw
                .name
                .ok_or_else(|| AgentError::Missing("qemu agent didn't provide 'name' field".to_owned()))?;
            let name = whole.split(':').next().unwrap_or_default();
            let at = *places.entry(name.to_owned()).or_insert_with(|| {
                let mac = raw.hardware_address;
                interfaces.push(Self { name: name.to_owned(), mac, addresses: Vec::new() });
                interfaces.len() - 1
            });
            for address in raw.ip_addresses {
                let address = IpAddress::read(address, &whole)?;
                if let Some(interface) = interfaces.get_mut(at) {
                    interface.addresses.push(address);
                }
            }
        }
        Ok(interfaces)
    }
}

impl IpAddress {
    fn read(raw: RawIpAddress, interface: &str) -> Result<Self, AgentError> {
        let missing = |name: &str| {
            let sentence = format!("qemu agent didn't provide '{name}' field for interface '{interface}'");
            AgentError::Missing(sentence)
        };
        let family = match raw.ip_address_type.as_deref() {
            Some("ipv4") => IpFamily::V4,
            Some("ipv6") => IpFamily::V6,
            Some(other) => return Err(AgentError::Missing(format!("unknown ip address type '{other}'"))),
            None => return Err(missing("ip-address-type")),
        };
        let address = raw.ip_address.ok_or_else(|| missing("ip-address"))?;
        let prefix = raw.prefix.ok_or_else(|| AgentError::Missing("malformed 'prefix' field".to_owned()))?;
        Ok(Self { family, address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces(json: &str) -> Result<Vec<Interface>, String> {
        Interface::read(serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_alias_of_an_interface_is_the_interface() {
        let found = interfaces(
            r#"[{"name": "eth0", "hardware-address": "52:54:00:00:00:01",
                 "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.0.0.2", "prefix": 24}]},
                {"name": "lo"},
                {"name": "eth0:1", "ip-addresses": [{"ip-address-type": "ipv6", "ip-address": "fe80::1", "prefix": 64}]}]"#,
        );
        let found = found.unwrap();
        assert_eq!(
            found.iter().map(|it| (it.name.as_str(), it.addresses.len())).collect::<Vec<_>>(),
            [("eth0", 2), ("lo", 0)]
        );
        assert_eq!(found[0].mac.as_deref(), Some("52:54:00:00:00:01"));
        assert_eq!(
            found[0].addresses[1],
            IpAddress { family: IpFamily::V6, address: "fe80::1".into(), prefix: 64 }
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (json, sentence) in [
            (r#"[{}]"#, "qemu agent didn't provide 'name' field"),
            (
                r#"[{"name": "x", "ip-addresses": [{}]}]"#,
                "qemu agent didn't provide 'ip-address-type' field for interface 'x'",
            ),
            (
                r#"[{"name": "x", "ip-addresses": [{"ip-address-type": "ipx"}]}]"#,
                "unknown ip address type 'ipx'",
            ),
            (
                r#"[{"name": "x", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "1"}]}]"#,
                "malformed 'prefix' field",
            ),
        ] {
            assert_eq!(interfaces(json).unwrap_err(), sentence);
        }
        let raw: RawDiskAddress = serde_json::from_str(r#"{"bus": 0, "target": 0, "unit": 0}"#).unwrap();
        assert_eq!(DiskAddress::read(raw).unwrap_err().to_string(), "'pci-controller' missing");
    }
}
