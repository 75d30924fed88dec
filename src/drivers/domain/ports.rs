//! TCP ports of displays, chosen by the daemon.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::conf::devices::{Graphics, Listen, ListenPlace};
use crate::conf::domain::Domain;
use crate::error::{Error, Origin, Result};
use crate::qemu::prepare::Chooser;
use crate::util::uuid::Uuid;

/// libvirt's defaults for displays and for displays through a websocket.
const DISPLAYS: RangeInclusive<u16> = 5900..=65535;
const WEBSOCKETS: RangeInclusive<u16> = 5700..=65535;

/// The ports that guests of this daemon have.
#[derive(Debug, Default)]
pub(super) struct Ports {
    taken: Mutex<HashMap<u16, Uuid>>,
}

impl Ports {
    /// Chooses for one guest. What is taken is kept until [`Ports::release`].
    pub(super) fn choice(&self, owner: Uuid) -> Choice<'_> {
        Choice { ports: self, owner }
    }

    fn choose(&self, mut range: RangeInclusive<u16>, owner: Uuid) -> Option<u16> {
        let mut taken = self.taken();
        let port = range.find(|port| !taken.contains_key(port) && is_free(*port))?;
        taken.insert(port, owner);
        Some(port)
    }

    /// Takes the ports that the definition of a starting guest names.
    pub(super) fn take_named(&self, starting: &Domain) -> Result<()> {
        for graphics in &starting.devices.graphics {
            let Graphics::Vnc(vnc) = graphics else { continue };
            let on_network = |listen: &Listen| {
                matches!(listen.place, ListenPlace::Address { .. } | ListenPlace::Network { .. })
            };
            if !vnc.listens.first().is_some_and(on_network) {
                continue;
            }
            let named = [Some(vnc.port).filter(|_| !vnc.autoport), Some(vnc.websocket)];
            for port in named.into_iter().flatten().filter_map(|port| u16::try_from(port).ok()) {
                match self.taken().entry(port) {
                    _ if port == 0 => {}
                    Entry::Vacant(place) => drop(place.insert(starting.uuid)),
                    Entry::Occupied(_) => {
                        let sentence = format!("Failed to reserve port {port}");
                        return Err(Error::internal_error(sentence).from_origin(Origin::NONE));
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes the ports of a guest that runs already.
    pub(super) fn reserve(&self, running: &Domain) {
        for graphics in &running.devices.graphics {
            let Graphics::Vnc(vnc) = graphics else { continue };
            for port in [vnc.port, vnc.websocket].into_iter().filter_map(|port| u16::try_from(port).ok()) {
                self.taken().insert(port, running.uuid);
            }
        }
    }

    pub(super) fn release(&self, owner: Uuid) {
        self.taken().retain(|_, it| *it != owner);
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u16, Uuid>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One guest's choices.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    ports: &'a Ports,
    owner: Uuid,
}

impl Chooser for Choice<'_> {
    fn vnc_port(&mut self) -> Option<u16> {
        self.ports.choose(DISPLAYS, self.owner)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        self.ports.choose(WEBSOCKETS, self.owner)
    }
}

/// Whether nobody on this host listens on the port.
fn is_free(port: u16) -> bool {
    let bound = |result: std::io::Result<TcpListener>| match result {
        Ok(_) => true,
        // A host without IPv6 leaves it free there.
        Err(error) => matches!(
            error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
            Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
        ),
    };
    bound(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
        && bound(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}
