//! Wiring a guest's cards to the host's networks.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use thiserror::Error;

use crate::conf::devices::{Interface, InterfaceKind, InterfaceSource, NetDriver};
use crate::conf::xml::YesNo;
use crate::util::mac::Mac;
use crate::util::reason::Reason;
use crate::util::tap::{self, Links, Offload};

/// Why a card could not be wired. The texts are libvirt's.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// `VIR_ERR_SYSTEM_ERROR`, from no driver in particular.
    #[error("{what}: {}", Reason(source))]
    System { what: String, source: io::Error },
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    #[error("{0}")]
    Unsupported(String),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::System { what, source }
}

/// A card's open devices; QEMU inherits them.
#[derive(Debug)]
pub struct Wired {
    pub tap: Vec<OwnedFd>,
    /// The kernel's half of virtio, one for each queue, or none.
    pub vhost: Vec<OwnedFd>,
}

/// Names of network devices that the daemon makes up; the kernel puts the first free number.
const GENERATED: &str = "vnet%d";

/// Refuses what a definition may say of the host's end and nothing here does.
pub fn refuse_unsupported(interface: &Interface) -> Result<(), NetworkError> {
    let kept = [
        ("vlan", interface.vlan.is_some()),
        ("virtualport", interface.virtualport.is_some()),
        ("filterref", interface.filterref.is_some()),
        ("script", interface.script.is_some() || interface.downscript.is_some()),
    ];
    if let Some((name, _)) = kept.iter().find(|(_, there)| *there) {
        return Err(NetworkError::Unsupported(format!("interface element '{name}' is not supported")));
    }
    Ok(())
}

/// Makes or opens the network device of `interface`, puts it into its bridge and notes its name. `accelerated`
/// says whether the guest runs on KVM, without which the kernel cannot take over virtio queues.
pub fn wire(interface: &mut Interface, accelerated: Accelerated) -> Result<Wired, NetworkError> {
    let queues = interface.model.driver.queues.max(1);
    let offload = if interface.is_virtio() { Offload::VirtioHeader } else { Offload::None };
    let links = Links::new().map_err(failed("Cannot open control socket"))?;
    let bridge = match (&interface.kind, &interface.source) {
        (InterfaceKind::Bridge, InterfaceSource::Bridge { bridge }) => Some(bridge.clone()),
        (InterfaceKind::Ethernet, _) => None,
        (kind, _) => {
            let message = format!("interface type '{kind}' has no network device of its own");
            return Err(NetworkError::Unsupported(message));
        }
    };
    let given = interface.target.dev.as_deref();
    let tap = tap::open(given.unwrap_or(GENERATED), queues, offload)
        .map_err(failed(format!("Unable to create tap device {}", given.unwrap_or(GENERATED))))?;
    let name = tap.name;
    let ours = interface.target.managed != Some(YesNo::No);
    if ours {
        if let Some(mac) = interface.mac.address {
            let mac = host_side(mac);
            links
                .set_mac(&name, mac)
                .map_err(failed(format!("Cannot set interface MAC to {mac} on '{name}'")))?;
        }
        let mtu = match (interface.mtu, &bridge) {
            (Some(mtu), _) => Some(mtu),
            (None, Some(bridge)) => {
                Some(links.mtu(bridge).map_err(failed(format!("Cannot get interface MTU on '{bridge}'")))?)
            }
            (None, None) => None,
        };
        if let Some(mtu) = mtu {
            links.set_mtu(&name, mtu).map_err(failed(format!("Cannot set interface MTU on '{name}'")))?;
        }
        if let Some(bridge) = &bridge {
            links
                .add_to_bridge(bridge, &name)
                .map_err(failed(format!("Unable to add bridge {bridge} port {name}")))?;
        }
        links.set_up(&name).map_err(failed(format!("Cannot set interface flags on '{name}'")))?;
    }
    if bridge.is_some() && interface.is_isolated() {
        isolate(&name, true)?;
    }
    if interface.coalesce.rx_max_frames > 0 {
        coalesce(&name, interface.coalesce.rx_max_frames)?;
    }
    interface.target.dev = Some(name.into());
    let vhost = open_vhost(interface, accelerated, queues)?;
    Ok(Wired { tap: tap.queues, vhost })
}

/// Keeps guests on a bridge from each other, if both are isolated.
pub fn isolate(name: &str, is_isolated: bool) -> Result<(), NetworkError> {
    let path = format!("/sys/class/net/{name}/brport/isolated");
    std::fs::write(&path, if is_isolated { "1" } else { "0" })
        .map_err(failed(format!("Unable to set bridge port {name} isolated to {}", u8::from(is_isolated))))
}

/// Tells the guest of packets only when there are so many.
pub fn coalesce(name: &str, frames: u32) -> Result<(), NetworkError> {
    let links = Links::new().map_err(failed("Cannot open control socket"))?;
    links.set_coalesced_frames(name, frames).map_err(failed(format!("Cannot set coalesce info on '{name}'")))
}

/// Puts a device into another bridge.
pub fn move_to_bridge(name: &str, bridge: &str) -> Result<(), NetworkError> {
    let links = Links::new().map_err(failed("Cannot open control socket"))?;
    if let Ok(old) = std::fs::read_link(format!("/sys/class/net/{name}/master"))
        && let Some(old) = old.file_name().and_then(|old| old.to_str())
    {
        let sentence = format!("Unable to remove bridge {old} port {name}");
        links.remove_from_bridge(old, name).map_err(failed(sentence))?;
    }
    links.add_to_bridge(bridge, name).map_err(failed(format!("Unable to add bridge {bridge} port {name}")))
}

/// Whether the guest's instructions run on the processor itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerated {
    Yes,
    No,
}

/// The host's end has an address of its own: high, so that the bridge does not take it for itself.
fn host_side(guest: Mac) -> Mac {
    let Mac([_, rest @ ..]) = guest;
    let [b, c, d, e, f] = rest;
    Mac([0xfe, b, c, d, e, f])
}

/// A default is a wish: where there is no vhost, QEMU does it.
fn open_vhost(
    interface: &Interface,
    accelerated: Accelerated,
    queues: u32,
) -> Result<Vec<OwnedFd>, NetworkError> {
    let asked_for = interface.model.driver.name;
    let refuse = |reason: &str| match asked_for {
        Some(NetDriver::Vhost) => Err(NetworkError::Unsupported(reason.to_owned())),
        _ => Ok(Vec::new()),
    };
    if asked_for == Some(NetDriver::Qemu) {
        return Ok(Vec::new());
    }
    if accelerated == Accelerated::No {
        return refuse("vhost-net is only supported for KVM guests");
    }
    if !interface.is_virtio() {
        return refuse("vhost-net is only supported for virtio network interfaces");
    }
    let path = interface.backend.vhost.as_deref().unwrap_or("/dev/vhost-net");
    let opened: io::Result<Vec<OwnedFd>> = (0..queues)
        .map(|_| OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from))
        .collect();
    match opened {
        Ok(opened) => Ok(opened),
        Err(_) => refuse("vhost-net was requested for an interface, but is unavailable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document};

    #[test]
    fn a_bridge_that_is_not_there_is_refused_in_libvirts_words() {
        let text = "<interface type='bridge'><source bridge='nobridge9'/></interface>";
        let mut interface: Interface = read_document(text, "interface", Form::INACTIVE).unwrap();
        let run = std::thread::spawn(move || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return None;
            }
            Some(wire(&mut interface, Accelerated::No).unwrap_err().to_string())
        });
        match run.join().unwrap() {
            Some(message) if message.starts_with("Unable to create tap device") => {
                eprintln!("skipped: {message}");
            }
            Some(message) => {
                assert_eq!(message, "Cannot get interface MTU on 'nobridge9': No such device");
            }
            None => eprintln!("skipped: no network namespace"),
        }
    }

    #[test]
    fn the_hosts_end_has_the_guests_address_but_for_the_first_byte() {
        assert_eq!(host_side(Mac([0x52, 0x54, 0, 1, 2, 3])), Mac([0xfe, 0x54, 0, 1, 2, 3]));
    }
}
