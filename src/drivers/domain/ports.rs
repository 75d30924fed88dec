//! TCP ports of displays, and those at which guests arrive, chosen by the daemon.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::conf::devices::{Graphics, ListenPlace};
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
    /// Of guests that are about to come.
    arrivals: Mutex<HashMap<u16, Uuid>>,
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
        for graphics in starting.devices.graphics.iter().filter(|screen| is_on_network(screen)) {
            for port in named(graphics) {
                match self.taken().entry(port) {
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
        for port in running.devices.graphics.iter().flat_map(all) {
            self.taken().insert(port, running.uuid);
        }
    }

    /// Chooses where a guest is to arrive.
    pub(super) fn for_arrival(&self, mut range: RangeInclusive<u16>, guest: Uuid) -> Option<u16> {
        let mut arrivals = self.arrivals();
        let port = range.find(|port| !arrivals.contains_key(port) && is_free(*port))?;
        arrivals.insert(port, guest);
        Some(port)
    }

    /// The guest has arrived, or will not.
    pub(super) fn release_arrival(&self, guest: Uuid) {
        self.arrivals().retain(|_, it| *it != guest);
    }

    pub(super) fn release(&self, owner: Uuid) {
        self.taken().retain(|_, it| *it != owner);
        self.release_arrival(owner);
    }

    fn arrivals(&self) -> MutexGuard<'_, HashMap<u16, Uuid>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn spice_port(&mut self) -> Option<u16> {
        self.ports.choose(DISPLAYS, self.owner)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        self.ports.choose(WEBSOCKETS, self.owner)
    }
}

fn is_on_network(screen: &Graphics) -> bool {
    let listen = match screen {
        Graphics::Vnc(vnc) => vnc.listens.first(),
        Graphics::Spice(spice) => spice.listen(),
        _ => None,
    };
    listen.is_some_and(|listen| {
        matches!(listen.place, ListenPlace::Address { .. } | ListenPlace::Network { .. })
    })
}

/// The ports of a screen that nobody is asked to choose.
fn named(screen: &Graphics) -> Vec<u16> {
    match screen {
        Graphics::Vnc(vnc) if vnc.autoport => ports(&[vnc.websocket]),
        Graphics::Spice(spice) if spice.autoport => Vec::new(),
        _ => all(screen),
    }
}

/// The ports of a screen, as far as they are known.
fn all(screen: &Graphics) -> Vec<u16> {
    match screen {
        Graphics::Vnc(vnc) => ports(&[vnc.port, vnc.websocket]),
        Graphics::Spice(spice) => ports(&[spice.port, spice.tls_port]),
        _ => Vec::new(),
    }
}

/// Those that are ports: 0 and -1 stand for none and any.
fn ports(numbers: &[i32]) -> Vec<u16> {
    numbers.iter().filter_map(|number| u16::try_from(*number).ok()).filter(|port| *port > 0).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    fn guest(screen: &str) -> Domain {
        let text = format!(
            "<domain type='qemu'><name>x</name><os><type>hvm</type></os><devices>{screen}</devices></domain>"
        );
        Domain::parse(&text, Form::INACTIVE).unwrap()
    }

    #[test]
    fn screens_of_both_kinds_share_the_ports() {
        let ports = Ports::default();
        let (first, second) = (Uuid([1; 16]), Uuid([2; 16]));
        let mut vnc = guest("<graphics type='vnc' port='64001' autoport='no' listen='0.0.0.0'/>");
        vnc.uuid = first;
        ports.take_named(&vnc).unwrap();
        for taken in ["port='64001'", "port='64002' tlsPort='64001'"] {
            let mut spice =
                guest(&format!("<graphics type='spice' {taken} autoport='no' listen='0.0.0.0'/>"));
            spice.uuid = second;
            let refusal = ports.take_named(&spice).unwrap_err();
            assert!(refusal.to_string().contains("Failed to reserve port 64001"), "{refusal}");
            ports.release(second);
        }
        let mut spice =
            guest("<graphics type='spice' port='64003' tlsPort='64004' autoport='no' listen='::'/>");
        spice.uuid = second;
        ports.reserve(&spice);
        assert_eq!(ports.taken().get(&64003), Some(&second));
        assert_eq!(ports.taken().get(&64004), Some(&second));
        // What a stopped guest had is not what it gets.
        let automatic = guest("<graphics type='spice' autoport='yes' listen='0.0.0.0'/>");
        ports.take_named(&automatic).unwrap();
        let chosen = ports.choice(first).spice_port().unwrap();
        assert!(ports.taken().contains_key(&chosen));
    }
}
