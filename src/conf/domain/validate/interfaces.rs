//! Network cards.

use std::net::IpAddr;

use super::devices::refuse_virtio_options;
use super::{by_qemu, unsupported};
use crate::conf::devices::{
    BackendKind, Interface, InterfaceKind, InterfaceSource, TeamingType, VhostUserMode,
};
use crate::conf::domain::Domain;
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, Result};

pub(super) fn check(domain: &Domain, card: &Interface) -> Result<()> {
    check_target(card)?;
    check_backend(card)?;
    check_addresses(card)?;
    check_connection(domain, card)?;
    let driver = &card.model.driver;
    if card.is_virtio() {
        for (name, size) in [("rx_queue_size", driver.rx_queue_size), ("tx_queue_size", driver.tx_queue_size)]
        {
            if size != 0 && !size.is_power_of_two() {
                return by_qemu(format!("{name} has to be a power of two"));
            }
        }
    }
    check_options(card)
}

fn check_target(card: &Interface) -> Result<()> {
    let kind = card.kind;
    if card.target.managed == Some(YesNo::No) && kind != InterfaceKind::Ethernet {
        return unsupported(format!("unmanaged target dev is not supported on interfaces of type '{kind}'"));
    }
    if let Some(teaming) = card.teaming.as_deref() {
        match (teaming.kind, &teaming.persistent) {
            (TeamingType::Transient, None) => {
                return unsupported(
                    "teaming persistent attribute must be set if teaming type is 'transient'",
                );
            }
            (TeamingType::Persistent, Some(_)) => {
                return unsupported(
                    "teaming persistent attribute not allowed if teaming type is 'persistent'",
                );
            }
            _ => {}
        }
    }
    if !card.is_virtio() {
        refuse_virtio_options(&card.model.driver.virtio)?;
    }
    Ok(())
}

fn check_backend(card: &Interface) -> Result<()> {
    let for_passt = matches!(card.kind, InterfaceKind::User | InterfaceKind::Vhostuser);
    let is_passt = card.backend.kind == Some(BackendKind::Passt);
    if is_passt && !for_passt {
        return unsupported(
            "The 'passt' backend can only be used with interface type='user' or type='vhostuser'",
        );
    }
    let takes_forwards = for_passt && is_passt;
    if !takes_forwards && !card.port_forwards.is_empty() {
        return unsupported(
            "The <portForward> element can only be used with the 'passt' backend of interface type='user' or \
             type='vhostuser'",
        );
    }
    Ok(())
}

/// Addresses of the guest's end, which only the host's own network stacks hand out.
fn check_addresses(card: &Interface) -> Result<()> {
    if !card.routes.is_empty() {
        return by_qemu(
            "Invalid attempt to set network interface guest-side IP route, not supported by QEMU",
        );
    }
    let is_passt = card.backend.kind == Some(BackendKind::Passt);
    if card.kind != InterfaceKind::User && !(card.kind == InterfaceKind::Vhostuser && is_passt) {
        return match card.ips.is_empty() {
            true => Ok(()),
            false => by_qemu(
                "Invalid attempt to set network interface guest-side IP address info, not supported by QEMU",
            ),
        };
    }
    let (mut has_ipv4, mut has_ipv6) = (false, false);
    for ip in &card.ips {
        if ip.peer.is_some() {
            return by_qemu("Invalid attempt to set peer IP for guest");
        }
        let prefix = ip.prefix.unwrap_or(0);
        match ip.address {
            IpAddr::V4(_) => {
                if std::mem::replace(&mut has_ipv4, true) {
                    return by_qemu("Only one IPv4 address per interface is allowed");
                }
                if prefix > 0 && !(4..=27).contains(&prefix) {
                    let message = "invalid prefix, must be in range of 4-27";
                    return Err(ConfError::xml(message).by_qemu_driver());
                }
            }
            IpAddr::V6(_) => {
                if std::mem::replace(&mut has_ipv6, true) {
                    return by_qemu("Only one IPv6 address per interface is allowed");
                }
                if prefix != 0 && prefix != 64 {
                    return by_qemu(format!("unsupported IPv6 address prefix='{prefix}' - must be 64"));
                }
            }
        }
    }
    Ok(())
}

fn check_connection(domain: &Domain, card: &Interface) -> Result<()> {
    let kind = card.kind;
    if kind == InterfaceKind::Vhostuser {
        if let InterfaceSource::VhostUser(socket) = &card.source {
            if socket.path.is_none() {
                let error = ConfError::xml("Missing required attribute 'path' in element 'source'");
                return Err(error.by_qemu_driver());
            }
            let reconnects = socket.reconnect.is_some_and(|it| it.enabled == Some(YesNo::Yes));
            if socket.mode == VhostUserMode::Server && reconnects {
                return by_qemu(
                    "'reconnect' attribute is not supported when source mode='server' for <interface \
                     type='vhostuser'>",
                );
            }
        }
        domain.require_shared_memory("interface")?;
    }
    if matches!(kind, InterfaceKind::Vdpa | InterfaceKind::Vhostuser) && !card.is_virtio() {
        let model = card.model().map_or("unknown", |model| model.as_str());
        return by_qemu(format!(
            "invalid model for interface of type '{kind}': '{model}' - must be 'virtio'"
        ));
    }
    Ok(())
}

fn check_options(card: &Interface) -> Result<()> {
    use InterfaceKind::{Bridge, Direct, Ethernet, Hostdev, Network, User, Vdpa, Vhostuser};
    let (kind, is_passt) = (card.kind, card.backend.kind == Some(BackendKind::Passt));
    let has_mtu =
        matches!(kind, Network | Bridge | Ethernet | Vhostuser | Vdpa | Direct) || (kind == User && is_passt);
    if card.mtu.is_some_and(|mtu| mtu > 0) && !has_mtu {
        return by_qemu(format!("setting MTU on interface type {kind} is not supported yet"));
    }
    if let Some(teaming) = card.teaming.as_deref() {
        if teaming.kind == TeamingType::Persistent && !card.is_virtio() {
            let model = card.model().map_or("(null)", |model| model.as_str());
            return by_qemu(format!(
                "virtio-net teaming persistent interface must be <model type='virtio'/>, not '{model}'"
            ));
        }
        if teaming.kind == TeamingType::Transient && !matches!(kind, Hostdev | Network) {
            return by_qemu(format!(
                "virtio-net teaming transient interface must be type='hostdev', not '{kind}'"
            ));
        }
    }
    let coalesces = matches!(kind, Network | Bridge | Ethernet | Direct | Vdpa);
    if card.coalesce.rx_max_frames > 0 && !coalesces {
        return by_qemu(format!("coalesce settings on interface type {kind} are not supported"));
    }
    Ok(())
}
