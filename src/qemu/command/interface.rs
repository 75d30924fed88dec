//! Network cards and what they are connected to.

use super::address::Generation;
use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    BackendKind, DeviceInfo, HostdevSource, Interface, InterfaceKind, InterfaceSource, ModelName, Reconnect,
    TeamingType, TxMode, VhostUserMode, VirtioNetDriver,
};
use crate::conf::xml::{OnOff, YesNo};
use crate::qemu::capabilities::Cap;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for (index, interface) in guest.domain.devices.interfaces.iter().enumerate() {
        check_host_side(interface)?;
        if matches!(interface.source, InterfaceSource::Hostdev(_)) {
            continue;
        }
        let netdev = guest.netdev(line, interface)?;
        line.json("-netdev", netdev);
        line.device(guest.card(index, interface)?);
    }
    Ok(())
}

/// Cards that are devices of the host.
pub(super) fn cards_of_host(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for (index, interface) in guest.domain.devices.interfaces.iter().enumerate() {
        if let InterfaceSource::Hostdev(source) = &interface.source {
            guest.card_of_host(line, index, interface, source)?;
        }
    }
    Ok(())
}

/// What only some kinds of network devices of the host can do.
fn check_host_side(card: &Interface) -> Result<()> {
    use InterfaceKind::{Bridge, Direct, Ethernet, Network, Vdpa, Vhostuser};
    let kind = card.kind;
    let refuse = |what: &str| {
        let mac = card.mac.address.map(|mac| mac.to_string()).unwrap_or_default();
        unsupported(format!(
            "interface {mac} - {what} is not supported for network interfaces of type {kind}"
        ))
    };
    let has_queues = matches!(kind, Network | Bridge | Direct | Ethernet | Vhostuser | Vdpa);
    if card.model.driver.queues > 0 && !has_queues {
        return refuse("multiqueue");
    }
    let is_tap = matches!(kind, Network | Bridge | Ethernet);
    if card.filterref.is_some() && !is_tap {
        return refuse("filterref");
    }
    if card.backend.tap.is_some() && !is_tap {
        return refuse("custom tap device path");
    }
    Ok(())
}

impl Guest<'_> {
    /// The host's end.
    fn netdev(&self, line: &mut Line<'_>, interface: &Interface) -> Result<Props> {
        let alias = self.alias(&interface.info)?;
        let kind = interface.kind;
        if interface.script.is_some() && kind != InterfaceKind::Ethernet {
            return unsupported(format!("scripts are not supported on interfaces of type {kind}"));
        }
        let props = match interface.kind {
            InterfaceKind::Bridge
            | InterfaceKind::Ethernet
            | InterfaceKind::Network
            | InterfaceKind::Direct => {
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
            InterfaceKind::User if interface.backend.kind == Some(BackendKind::Passt) => {
                self.passt(interface)?
            }
            InterfaceKind::User => user(interface),
            InterfaceKind::Internal => Props::new().set("type", "user"),
            InterfaceKind::Server | InterfaceKind::Client | InterfaceKind::Mcast | InterfaceKind::Udp => {
                socket(interface)?
            }
            InterfaceKind::Vhostuser => self.vhost_user_net(line, interface)?,
            InterfaceKind::Vdpa => {
                let set = self.pass_file(line, &vdpa_name(alias))?;
                let props = Props::new().set("type", "vhost-vdpa").set("vhostdev", set);
                with_queues(props, interface)
            }
            kind => {
                return unsupported(format!(
                    "network device type '{kind}' is not supported by this hypervisor"
                ));
            }
        };
        Ok(props.set("id", format!("host{alias}")))
    }

    /// The stream that passt moves packets with.
    fn passt(&self, interface: &Interface) -> Result<Props> {
        let address = Props::new().set("type", "unix").set("path", passt_socket(interface)?);
        let props = Props::new().set("type", "stream").set("addr", address.into_value()).set("server", false);
        Ok(match self.supports(Cap::NetdevStreamReconnect) {
            true if self.supports(Cap::NetdevStreamReconnectMiliseconds) => {
                props.set("reconnect-ms", PASST_RECONNECT_S * 1000)
            }
            true => props.set("reconnect", PASST_RECONNECT_S),
            false => props,
        })
    }

    /// The socket of a process that moves packets in the guest's memory.
    fn vhost_user_net(&self, line: &mut Line<'_>, interface: &Interface) -> Result<Props> {
        let stream = format!("char{}", self.alias(&interface.info)?);
        let mut text = format!("socket,id={stream}");
        match &interface.source {
            InterfaceSource::VhostUser(socket) => {
                let path = socket.path.as_deref().unwrap_or_default();
                text.push_str(&format!(",path={}", escape_comma(path)));
                match socket.mode {
                    VhostUserMode::Server => text.push_str(",server=on"),
                    VhostUserMode::Client => self.push_reconnect(&mut text, socket.reconnect),
                }
            }
            _ => {
                text.push_str(&format!(",path={}", escape_comma(passt_socket(interface)?)));
                let reconnect = Reconnect { enabled: Some(YesNo::Yes), timeout_s: PASST_RECONNECT_S };
                self.push_reconnect(&mut text, Some(reconnect));
            }
        }
        line.option("-chardev", text);
        Ok(with_queues(Props::new().set("type", "vhost-user").set("chardev", stream), interface))
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
        Ok(self.rom(props, &interface.info))
    }

    /// A card of the host. Its other options are for the host's own driver.
    fn card_of_host(
        &self,
        line: &mut Line<'_>,
        index: usize,
        interface: &Interface,
        source: &HostdevSource,
    ) -> Result<()> {
        let HostdevSource::Pci(pci) = source else {
            return unsupported("only PCI network devices of the host are supported");
        };
        let place = self.boot_place_of_interface(index, &interface.info);
        line.device(self.pci_hostdev(pci, &interface.info, place, interface.teaming.as_deref())?);
        Ok(())
    }

    fn virtio_card(&self, interface: &Interface, model: &ModelName) -> Result<Props> {
        let generation = match model {
            ModelName::VirtioTransitional => Generation::Transitional,
            ModelName::VirtioNonTransitional => Generation::NonTransitional,
            _ => Generation::Any,
        };
        let driver: &VirtioNetDriver = &interface.model.driver;
        let (host, guest) = (driver.host, driver.guest);
        let teaming = interface.teaming.as_deref();
        let is_persistent = teaming.is_some_and(|teaming| teaming.kind == TeamingType::Persistent);
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
            .nonzero("host_mtu", interface.mtu.unwrap_or_default())
            .maybe("failover", is_persistent.then_some(true)))
    }

    pub(super) fn rom(&self, props: Props, info: &DeviceInfo) -> Props {
        let Some(rom) = &info.rom else { return props };
        if rom.enabled == Some(YesNo::No) {
            return props.set("romfile", "");
        }
        props
            .maybe("rombar", rom.bar.map(|bar| u32::from(bar == OnOff::On)))
            .maybe("romfile", rom.file.as_deref())
    }
}

/// How long QEMU waits before it connects with passt again.
const PASST_RECONNECT_S: u32 = 5;

fn passt_socket(interface: &Interface) -> Result<&str> {
    match interface.backend.socket.as_deref() {
        Some(path) => Ok(path),
        None => internal("passt was not started"),
    }
}

/// The name of a vDPA device's descriptor.
pub(super) fn vdpa_name(alias: &str) -> String {
    format!("{alias}-vdpa")
}

fn with_queues(props: Props, interface: &Interface) -> Props {
    let queues = interface.model.driver.queues;
    props.nonzero("queues", if queues > 1 { queues } else { 0 })
}

/// Sockets of QEMU itself.
fn socket(interface: &Interface) -> Result<Props> {
    let InterfaceSource::Socket(source) = &interface.source else {
        return internal("interface has no socket");
    };
    let address = format!("{}:{}", source.address.as_deref().unwrap_or_default(), source.port);
    let role = match interface.kind {
        InterfaceKind::Server => "listen",
        InterfaceKind::Mcast => "mcast",
        InterfaceKind::Udp => "udp",
        _ => "connect",
    };
    let props = Props::new().set("type", "socket").set(role, address);
    Ok(props.maybe("localaddr", source.local.as_ref().map(|(address, port)| format!("{address}:{port}"))))
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
