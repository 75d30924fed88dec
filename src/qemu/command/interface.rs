//! Network cards and what they are connected to.

use super::address::Generation;
use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{BackendKind, Interface, InterfaceKind, ModelName, TxMode, VirtioNetDriver};
use crate::conf::xml::{OnOff, YesNo};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for (index, interface) in guest.domain.devices.interfaces.iter().enumerate() {
        refuse(interface)?;
        let netdev = guest.netdev(interface)?;
        line.json("-netdev", netdev);
        line.device(guest.card(index, interface)?);
    }
    Ok(())
}

fn refuse(interface: &Interface) -> Result<()> {
    let kept = [
        ("vlan", interface.vlan.is_some()),
        ("virtualport", interface.virtualport.is_some()),
        ("bandwidth", interface.bandwidth.is_some()),
        ("teaming", interface.teaming.is_some()),
        ("filterref", interface.filterref.is_some()),
        ("coalesce", interface.coalesce.is_some()),
        ("portForward", !interface.port_forwards.is_empty()),
        ("script", interface.script.is_some() || interface.downscript.is_some()),
    ];
    match kept.iter().find(|(_, there)| *there) {
        Some((name, _)) => unsupported(format!("interface element '{name}' is not supported")),
        None => Ok(()),
    }
}

impl Guest<'_> {
    /// The host's end.
    fn netdev(&self, interface: &Interface) -> Result<Props> {
        let alias = self.alias(&interface.info)?;
        let props = match interface.kind {
            InterfaceKind::Bridge | InterfaceKind::Ethernet | InterfaceKind::Network => {
                let Some(descriptors) = self.context.descriptors.interfaces.get(alias) else {
                    return internal(format!("no network device was opened for '{alias}'"));
                };
                let (tap, vhost) = (&descriptors.tap, &descriptors.vhost);
                let mut props = Props::new().set("type", "tap");
                props = props.set(if tap.len() > 1 { "fds" } else { "fd" }, joined(tap));
                if !vhost.is_empty() {
                    let name = if vhost.len() > 1 { "vhostfds" } else { "vhostfd" };
                    props = props.set("vhost", true).set(name, joined(vhost));
                }
                props.maybe("sndbuf", interface.tune.sndbuf)
            }
            InterfaceKind::User => {
                if interface.backend.kind == Some(BackendKind::Passt) {
                    return unsupported("the passt backend is not supported");
                }
                user(interface)
            }
            kind => {
                return unsupported(format!(
                    "network device type '{kind}' is not supported by this hypervisor"
                ));
            }
        };
        Ok(props.set("id", format!("host{alias}")))
    }

    /// The guest's end.
    fn card(&self, index: usize, interface: &Interface) -> Result<Props> {
        let Some(model) = interface.model() else { return internal("interface has no model") };
        let Some(mac) = interface.mac.address else { return internal("interface has no mac address") };
        let alias = self.alias(&interface.info)?;
        let props = match model.is_virtio() {
            true => self.virtio_card(interface, model)?,
            false => Props::driver(model.as_str()),
        };
        let props = props
            .set("netdev", format!("host{alias}"))
            .set("id", alias)
            .set("mac", mac.to_string())
            .nonzero("bootindex", self.boot_place_of_interface(index, &interface.info));
        let props = self.at(props, &interface.info)?;
        Ok(self.rom(props, interface))
    }

    fn virtio_card(&self, interface: &Interface, model: &ModelName) -> Result<Props> {
        let generation = match model {
            ModelName::VirtioTransitional => Generation::Transitional,
            ModelName::VirtioNonTransitional => Generation::NonTransitional,
            _ => Generation::Any,
        };
        let driver: &VirtioNetDriver = &interface.model.driver;
        let (host, guest) = (driver.host, driver.guest);
        let queues = (driver.queues > 1).then_some(driver.queues);
        let props = self.virtio("virtio-net", generation, &interface.info, &driver.virtio)?;
        Ok(props
            .maybe("tx", driver.txmode.map(|mode| if mode == TxMode::Iothread { "bh" } else { "timer" }))
            .switch("ioeventfd", driver.ioeventfd)
            .switch("event_idx", driver.event_idx)
            .switch("csum", host.csum)
            .switch("gso", host.gso)
            .switch("host_tso4", host.tso4)
            .switch("host_tso6", host.tso6)
            .switch("host_ecn", host.ecn)
            .switch("host_ufo", host.ufo)
            .switch("mrg_rxbuf", host.mrg_rxbuf)
            .switch("guest_csum", guest.csum)
            .switch("guest_tso4", guest.tso4)
            .switch("guest_tso6", guest.tso6)
            .switch("guest_ecn", guest.ecn)
            .switch("guest_ufo", guest.ufo)
            .maybe("mq", queues.map(|_| true))
            // An interrupt for each queue of each direction, one for the control queue, one for changes.
            .maybe("vectors", queues.map(|queues| 2 * u64::from(queues) + 2))
            .nonzero("rx_queue_size", driver.rx_queue_size)
            .nonzero("tx_queue_size", driver.tx_queue_size)
            .switch("rss", driver.rss)
            .switch("hash", driver.rss_hash_report)
            .nonzero("host_mtu", interface.mtu.unwrap_or_default()))
    }

    fn rom(&self, props: Props, interface: &Interface) -> Props {
        let Some(rom) = &interface.info.rom else { return props };
        if rom.enabled == Some(YesNo::No) {
            return props.set("romfile", "");
        }
        props
            .maybe("rombar", rom.bar.map(|bar| u32::from(bar == OnOff::On)))
            .maybe("romfile", rom.file.as_deref())
    }
}

/// QEMU's own network stack, with the guest's network around its addresses.
fn user(interface: &Interface) -> Props {
    let mut props = Props::new().set("type", "user");
    for ip in &interface.ips {
        let prefix = ip.prefix.filter(|prefix| *prefix > 0);
        props = match (ip.address.is_ipv4(), prefix) {
            (true, Some(prefix)) => props.set("net", format!("{}/{prefix}", ip.address)),
            (true, None) => props.set("net", ip.address.to_string()),
            (false, prefix) => {
                props.set("ipv6-prefix", ip.address.to_string()).maybe("ipv6-prefixlen", prefix)
            }
        };
    }
    props
}

fn joined(descriptors: &[std::os::fd::RawFd]) -> String {
    descriptors.iter().map(i32::to_string).collect::<Vec<_>>().join(":")
}
