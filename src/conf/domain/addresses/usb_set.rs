//! Which ports of a guest's USB buses are taken.

use crate::conf::devices::{UsbAddress, UsbPort};
use crate::conf::{ConfError, Result};

/// Ports of the hub QEMU has.
pub(super) const HUB_PORTS: usize = 8;
/// The way to a device names at most this many ports.
const MAX_DEPTH: usize = 4;
/// Buses are numbered by controllers; a definition has a handful.
const MAX_BUSES: usize = 256;

#[derive(Debug, Clone)]
struct Hub {
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default)]
struct Port {
    used: bool,
    hub: Option<Hub>,
}

impl Hub {
    fn new(ports: usize) -> Self {
        Self { ports: vec![Port::default(); ports] }
    }

    /// The way to a free port, the nearest level first.
    fn free(&self, level: usize) -> Option<Vec<u8>> {
        if let Some(at) = self.ports.iter().position(|port| !port.used) {
            return Some(vec![at as u8 + 1]);
        }
        if level + 1 >= MAX_DEPTH {
            return None;
        }
        self.ports.iter().zip(1..).find_map(|(port, number)| {
            let mut way = port.hub.as_ref()?.free(level + 1)?;
            way.insert(0, number);
            Some(way)
        })
    }
}

/// The guest's USB buses by number.
#[derive(Debug, Clone, Default)]
pub struct UsbSet {
    buses: Vec<Option<Hub>>,
}

impl UsbSet {
    /// Adds the bus of a controller with that many ports; companions have none of their own.
    pub fn add_controller(&mut self, index: u32, ports: usize) -> Result<()> {
        if ports == 0 {
            return Ok(());
        }
        let at = index as usize;
        if at >= MAX_BUSES {
            return Err(ConfError::xml(format!(
                "USB controller index {index} is over the limit of {MAX_BUSES}"
            )));
        }
        if self.buses.len() <= at {
            self.buses.resize(at + 1, None);
        }
        match self.buses.get_mut(at) {
            Some(bus @ None) => *bus = Some(Hub::new(ports)),
            _ => return Err(ConfError::xml(format!("Duplicate USB controllers with index {index}"))),
        }
        Ok(())
    }

    /// Plugs in a hub that has its place.
    pub fn add_hub(&mut self, address: &UsbAddress) -> Result<()> {
        let (bus, text) = (address.bus, text_of(address));
        let port = self.find(address)?;
        if port.hub.is_some() {
            return Err(ConfError::xml(format!("Duplicate USB hub on bus {bus} port {text}")));
        }
        port.used = true;
        port.hub = Some(Hub::new(HUB_PORTS));
        Ok(())
    }

    /// Plugs a hub into a port that was just taken for it.
    pub fn turn_into_hub(&mut self, address: &UsbAddress) -> Result<()> {
        self.find(address)?.hub = Some(Hub::new(HUB_PORTS));
        Ok(())
    }

    /// Takes the port a user has chosen.
    pub fn reserve(&mut self, address: &UsbAddress) -> Result<()> {
        let (bus, text) = (address.bus, text_of(address));
        let port = self.find(address)?;
        if port.used {
            return Err(ConfError::xml(format!("Duplicate USB address bus {bus} port {text}")));
        }
        port.used = true;
        Ok(())
    }

    /// Chooses a port and takes it, on bus `bus` where one is given.
    pub fn reserve_next(&mut self, bus: Option<u32>) -> Result<UsbAddress> {
        if let Some(bus) = bus
            && !matches!(self.buses.get(bus as usize), Some(Some(_)))
        {
            let message = format!("USB bus {bus} requested but no controller with that index is present");
            return Err(ConfError::xml(message));
        }
        let found = self.buses.iter().zip(0..).find_map(|(hub, number)| {
            let wanted = bus.is_none_or(|bus| bus == number);
            let way = hub.as_ref().filter(|_| wanted)?.free(0)?;
            Some((number, way))
        });
        let Some((bus, way)) = found else { return Err(ConfError::internal("No free USB ports")) };
        let mut port = UsbPort::default();
        for (slot, number) in port.0.iter_mut().zip(way) {
            *slot = number;
        }
        let address = UsbAddress { bus, port: Some(port) };
        self.reserve(&address)?;
        Ok(address)
    }

    fn find(&mut self, address: &UsbAddress) -> Result<&mut Port> {
        let (bus, text) = (address.bus, text_of(address));
        let UsbPort(way) = address.port.unwrap_or_default();
        let mut way = way.into_iter().take_while(|port| *port != 0).peekable();
        let Some(Some(mut hub)) = self.buses.get_mut(bus as usize).map(Option::as_mut) else {
            return Err(ConfError::xml(format!("Missing USB bus {bus}")));
        };
        while let Some(number) = way.next() {
            let last = way.peek().is_none();
            let Some(port) = hub.ports.get_mut(usize::from(number) - 1) else {
                return Err(ConfError::xml(if last {
                    format!("requested USB port {text} not present on USB bus {bus}")
                } else {
                    format!("port {number} out of range in USB address bus: {bus} port: {text}")
                }));
            };
            if last {
                return Ok(port);
            }
            hub = port.hub.as_mut().ok_or_else(|| {
                ConfError::xml(format!(
                    "there is no hub at port {number} in USB address bus: {bus} port: {text}"
                ))
            })?;
        }
        Err(ConfError::xml(format!("requested USB port {text} not present on USB bus {bus}")))
    }
}

fn text_of(address: &UsbAddress) -> String {
    let UsbPort(way) = address.port.unwrap_or_default();
    let way: Vec<String> = way.iter().take_while(|port| **port != 0).map(u8::to_string).collect();
    way.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(bus: u32, way: [u8; 4]) -> UsbAddress {
        UsbAddress { bus, port: Some(UsbPort(way)) }
    }

    #[test]
    fn ports_are_taken_in_order_then_those_of_hubs() {
        let mut set = UsbSet::default();
        set.add_controller(0, 2).unwrap();
        set.add_hub(&address(0, [1, 0, 0, 0])).unwrap();
        assert_eq!(set.reserve_next(None).unwrap(), address(0, [2, 0, 0, 0]));
        for port in 1..=8 {
            assert_eq!(set.reserve_next(None).unwrap(), address(0, [1, port, 0, 0]));
        }
        assert_eq!(set.reserve_next(None).unwrap_err().message, "No free USB ports");
    }

    #[test]
    fn a_port_that_is_not_there_is_named() {
        let mut set = UsbSet::default();
        set.add_controller(0, 2).unwrap();
        for (place, message) in [
            (address(1, [1, 0, 0, 0]), "Missing USB bus 1"),
            (address(0, [3, 0, 0, 0]), "requested USB port 3 not present on USB bus 0"),
            (address(0, [1, 1, 0, 0]), "there is no hub at port 1 in USB address bus: 0 port: 1.1"),
            (address(0, [4, 1, 0, 0]), "port 4 out of range in USB address bus: 0 port: 4.1"),
        ] {
            assert_eq!(set.reserve(&place).unwrap_err().message, message);
        }
        set.reserve(&address(0, [1, 0, 0, 0])).unwrap();
        let again = set.reserve(&address(0, [1, 0, 0, 0])).unwrap_err();
        assert_eq!(again.message, "Duplicate USB address bus 0 port 1");
    }
}
