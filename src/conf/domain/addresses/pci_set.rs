//! Which places of a guest's PCI buses are taken.
//!
//! A bus accepts some kinds of devices ([`Connect`]); a place is chosen on the first bus that accepts the
//! device and has a free slot. The set is filled twice: the first time it may grow, which tells how many
//! buses are missing, the second time it hands out the addresses.

use crate::conf::devices::{PciAddress, PciModel};
use crate::conf::{ConfError, ErrorKind, Result};

bitflags::bitflags! {
    /// What a device needs, or what a bus accepts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Connect: u32 {
        /// A conventional PCI device.
        const PCI = 1;
        /// A PCI Express endpoint.
        const PCIE = 1 << 1;
        const ROOT_PORT = 1 << 2;
        const UPSTREAM_PORT = 1 << 3;
        const DOWNSTREAM_PORT = 1 << 4;
        const DMI_BRIDGE = 1 << 5;
        const PCIE_TO_PCI = 1 << 6;
        const EXPANDER = 1 << 7;
        const PCIE_EXPANDER = 1 << 8;
        const BRIDGE = 1 << 9;
        /// Device: its place is ours to choose. Bus: we may choose places on it.
        const CHOSEN = 1 << 10;
        /// Shares its slot with others of its kind.
        const SHARES = 1 << 11;
        /// Built into the machine: stays on bus 0.
        const INTEGRATED = 1 << 12;
    }
}

impl Connect {
    const KINDS: Self = Self::from_bits_retain(0x3ff);
    const ENDPOINTS: Self = Self::PCI.union(Self::PCIE);
    pub const CHOSEN_PCI: Self = Self::PCI.union(Self::CHOSEN);
    pub const CHOSEN_PCIE: Self = Self::PCIE.union(Self::CHOSEN);

    /// What a controller of that model needs from the bus above it; empty for the roots.
    pub fn of_controller(model: PciModel) -> Self {
        match model {
            PciModel::PciRoot | PciModel::PcieRoot => Self::empty(),
            PciModel::PciBridge => Self::BRIDGE,
            PciModel::PciExpanderBus => Self::EXPANDER,
            PciModel::PcieExpanderBus => Self::PCIE_EXPANDER,
            PciModel::DmiToPciBridge => Self::DMI_BRIDGE,
            PciModel::PcieToPciBridge => Self::PCIE_TO_PCI,
            PciModel::PcieRootPort => Self::ROOT_PORT | Self::SHARES,
            PciModel::PcieSwitchUpstreamPort => Self::UPSTREAM_PORT,
            PciModel::PcieSwitchDownstreamPort => Self::DOWNSTREAM_PORT,
        }
    }

    /// What a bus behind a controller of that model accepts, and its first and last slot.
    fn accepted_by(model: PciModel) -> (Self, u8, u8) {
        let conventional = Self::CHOSEN | Self::PCI | Self::BRIDGE;
        match model {
            PciModel::PciRoot => (conventional | Self::EXPANDER, 1, LAST_SLOT),
            PciModel::PciBridge | PciModel::PcieToPciBridge => (conventional, 1, LAST_SLOT),
            PciModel::PciExpanderBus => (conventional, 0, LAST_SLOT),
            PciModel::PcieRoot => {
                (Self::PCIE | Self::ROOT_PORT | Self::DMI_BRIDGE | Self::PCIE_EXPANDER, 1, LAST_SLOT)
            }
            PciModel::DmiToPciBridge => (Self::PCI | Self::BRIDGE, 0, LAST_SLOT),
            PciModel::PcieRootPort | PciModel::PcieSwitchDownstreamPort => {
                (Self::CHOSEN | Self::PCIE | Self::UPSTREAM_PORT | Self::PCIE_TO_PCI, 0, 0)
            }
            PciModel::PcieSwitchUpstreamPort => (Self::DOWNSTREAM_PORT, 0, LAST_SLOT),
            PciModel::PcieExpanderBus => (Self::ROOT_PORT | Self::DMI_BRIDGE, 0, LAST_SLOT),
        }
    }

    /// The kind in libvirt's words.
    fn describe(self) -> &'static str {
        const WORDS: &[(Connect, &str)] = &[
            (Connect::PCI, "standard PCI device"),
            (Connect::PCIE, "PCI Express device"),
            (Connect::ROOT_PORT, "pcie-root-port"),
            (Connect::UPSTREAM_PORT, "pcie-switch-upstream-port"),
            (Connect::DOWNSTREAM_PORT, "pcie-switch-downstream-port"),
            (Connect::DMI_BRIDGE, "dmi-to-pci-bridge"),
            (Connect::PCIE_TO_PCI, "pcie-to-pci-bridge"),
            (Connect::EXPANDER, "pci-expander-bus"),
            (Connect::PCIE_EXPANDER, "pcie-expander-bus"),
            (Connect::BRIDGE, "pci-bridge"),
        ];
        WORDS.iter().find(|(kind, _)| self.contains(*kind)).map_or("device", |(_, word)| word)
    }
}

const LAST_SLOT: u8 = 31;

/// Who chose an address: it decides how strict the checks are, and the error's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chooser {
    User,
    Daemon,
}

impl Chooser {
    fn error(self, message: String) -> ConfError {
        let kind = match self {
            Self::User => ErrorKind::Xml,
            Self::Daemon => ErrorKind::Internal,
        };
        ConfError::new(kind, message)
    }
}

/// Whether missing buses are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    Allowed,
    Fixed,
}

#[derive(Debug, Clone)]
struct Bus {
    model: PciModel,
    accepts: Connect,
    first_slot: u8,
    last_slot: u8,
    slots: [Slot; LAST_SLOT as usize + 1],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// One bit per function in use.
    functions: u8,
    shared: bool,
}

impl Bus {
    fn new(model: PciModel) -> Self {
        let (accepts, first_slot, last_slot) = Connect::accepted_by(model);
        Self { model, accepts, first_slot, last_slot, slots: [Slot::default(); LAST_SLOT as usize + 1] }
    }

    fn usable(&self) -> impl Iterator<Item = (u8, &Slot)> {
        (self.first_slot..=self.last_slot).zip(self.slots.iter().skip(self.first_slot.into()))
    }

    /// A free place for a device; `function` wants that one of an empty slot.
    fn find(&self, needs: Connect, function: Option<u8>) -> Option<(u8, u8)> {
        for (number, slot) in self.usable() {
            if slot.functions == 0 {
                return Some((number, function.unwrap_or(0)));
            }
            if needs.contains(Connect::SHARES) && slot.shared {
                let mut candidates = function.map_or(0..8, |function| function..function + 1);
                if let Some(free) = candidates.find(|bit| slot.functions & (1 << bit) == 0) {
                    return Some((number, free));
                }
            }
        }
        None
    }
}

/// The guest's buses, the roots included.
#[derive(Debug, Clone)]
pub struct PciSet {
    buses: Vec<Bus>,
    growth: Growth,
    /// QEMU knows pcie-to-pci-bridge.
    pcie_to_pci: bool,
}

impl PciSet {
    /// Buses of these models, in the order of their numbers.
    pub fn new(models: &[PciModel], growth: Growth, pcie_to_pci: PcieToPci) -> Self {
        let buses = models.iter().copied().map(Bus::new).collect();
        Self { buses, growth, pcie_to_pci: pcie_to_pci == PcieToPci::Available }
    }

    /// The models of all buses, added ones included.
    pub fn models(&self) -> Vec<PciModel> {
        self.buses.iter().map(|bus| bus.model).collect()
    }

    pub fn slot_in_use(&self, bus: u8, slot: u8) -> bool {
        let bus = self.buses.get(usize::from(bus));
        bus.and_then(|bus| bus.slots.get(usize::from(slot))).is_some_and(|slot| slot.functions != 0)
    }

    /// No bus has an empty slot.
    pub fn is_full(&self) -> bool {
        self.buses.iter().all(|bus| bus.usable().all(|(_, slot)| slot.functions != 0))
    }

    /// Takes the place a user, or the machine, has chosen.
    pub fn reserve(&mut self, address: PciAddress, needs: Connect) -> Result<()> {
        self.take(address, needs, Chooser::User)
    }

    /// Chooses a place and takes it; `function` asks for that function of a slot.
    pub fn reserve_next(&mut self, needs: Connect, function: Option<u8>) -> Result<PciAddress> {
        if self.buses.is_empty() {
            return Err(ConfError::xml("No PCI buses available"));
        }
        let found = self.buses.iter().zip(0..=u8::MAX).find_map(|(bus, number)| {
            compatible(bus.accepts, needs, number, Chooser::Daemon).ok()?;
            let (slot, function) = bus.find(needs, function)?;
            Some(PciAddress::new(number, slot, function))
        });
        let address = match found {
            Some(address) => address,
            None if self.growth == Growth::Fixed => {
                return Err(ConfError::internal("No more available PCI slots"));
            }
            None => {
                let bus = self.grow(self.buses.len(), needs)?;
                let slot = self.buses.get(usize::from(bus)).map_or(0, |bus| bus.first_slot);
                PciAddress::new(bus, slot, function.unwrap_or(0))
            }
        };
        self.take(address, needs, Chooser::Daemon)?;
        Ok(address)
    }

    /// As [`Self::reserve`], for a place that must be checked as `chooser`'s.
    fn take(&mut self, mut address: PciAddress, needs: Connect, chooser: Chooser) -> Result<()> {
        let text = display(&address);
        if self.growth == Growth::Allowed && usize::from(address.bus) >= self.buses.len() {
            address.bus = self.grow(address.bus.into(), needs)?;
        }
        self.check(&address, needs, chooser)?;
        let bus = self.buses.get_mut(usize::from(address.bus));
        let Some(slot) = bus.and_then(|bus| bus.slots.get_mut(usize::from(address.slot))) else {
            return Err(ConfError::xml("No PCI buses available"));
        };
        let bit = 1 << address.function;
        if slot.functions & bit != 0 {
            return Err(chooser.error(format!("Attempted double use of PCI Address {text}")));
        }
        slot.shared |= slot.functions == 0 && needs.contains(Connect::SHARES);
        slot.functions |= bit;
        Ok(())
    }

    /// Whether the place exists and suits the device.
    pub fn check(&self, address: &PciAddress, needs: Connect, chooser: Chooser) -> Result<()> {
        let text = display(address);
        let invalid = |what: String| Err(chooser.error(format!("Invalid PCI address {text}. {what}")));
        if self.buses.is_empty() {
            return Err(chooser.error("No PCI buses available".to_owned()));
        }
        if address.domain != 0 {
            return invalid("Only PCI domain 0 is available".to_owned());
        }
        let Some(bus) = self.buses.get(usize::from(address.bus)) else {
            return invalid(format!("Only PCI buses up to {} are available", self.buses.len() - 1));
        };
        compatible(bus.accepts, needs, address.bus, chooser)
            .map_err(|refusal| chooser.error(refusal.sentence(&text, address.bus, needs)))?;
        if address.slot < bus.first_slot {
            return invalid(format!("slot must be >= {}", bus.first_slot));
        }
        if address.slot > bus.last_slot {
            return invalid(format!("slot must be <= {}", bus.last_slot));
        }
        if address.function > 7 {
            return invalid("function must be <= 7".to_owned());
        }
        Ok(())
    }

    /// Adds buses until number `wanted` exists for a device with these needs; answers the number it got.
    fn grow(&mut self, wanted: usize, needs: Connect) -> Result<u8> {
        let mut wanted = wanted;
        let mut added = Vec::new();
        let model = if needs.contains(Connect::PCI) {
            // A guest that is all Express needs a way to conventional PCI first.
            if !self.buses.iter().any(|bus| bus.accepts.contains(Connect::BRIDGE)) {
                if wanted == self.buses.len() {
                    wanted += 1;
                }
                added.extend(self.way_to_conventional());
            }
            PciModel::PciBridge
        } else if needs.intersects(Connect::PCIE | Connect::UPSTREAM_PORT) {
            PciModel::PcieRootPort
        } else {
            let model = needs.describe();
            let message = format!(
                "a PCI slot is needed to connect a PCI controller model='{model}', but none is available, \
                 and it cannot be automatically added"
            );
            return Err(ConfError::internal(message));
        };
        let number = u8::try_from(wanted).map_err(|_| ConfError::internal("No more available PCI slots"))?;
        self.buses.extend(added);
        while self.buses.len() <= wanted {
            self.buses.push(Bus::new(model));
        }
        Ok(number)
    }

    fn way_to_conventional(&self) -> Vec<Bus> {
        if !self.pcie_to_pci {
            return vec![Bus::new(PciModel::DmiToPciBridge)];
        }
        // The port is for the bridge alone.
        let mut port = Bus::new(PciModel::PcieRootPort);
        port.accepts = Connect::PCIE_TO_PCI;
        vec![port, Bus::new(PciModel::PcieToPciBridge)]
    }
}

/// Whether QEMU has the pcie-pci-bridge device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PcieToPci {
    Available,
    Missing,
}

/// Why a device does not fit a bus.
enum Refusal {
    NotIntegrated,
    NotChosen,
    WrongKind,
}

impl Refusal {
    fn sentence(&self, address: &str, bus: u8, needs: Connect) -> String {
        match self {
            Self::NotIntegrated => {
                format!("The device at PCI address {address} needs to be an integrated device (bus=0)")
            }
            Self::NotChosen => format!(
                "The device at PCI address {address} was auto-assigned this address, but the PCI controller \
                 with index='{bus}' doesn't allow auto-assignment"
            ),
            Self::WrongKind => format!(
                "The device at PCI address {address} cannot be plugged into the PCI controller with \
                 index='{bus}'. It requires a controller that accepts a {}.",
                needs.describe()
            ),
        }
    }
}

fn compatible(accepts: Connect, needs: Connect, bus: u8, chooser: Chooser) -> Result<(), Refusal> {
    let (mut accepts, mut needs) = (accepts, needs);
    if needs.contains(Connect::INTEGRATED) {
        if bus != 0 {
            return Err(Refusal::NotIntegrated);
        }
        accepts |= Connect::CHOSEN_PCI;
    }
    match chooser {
        // A user may mix conventional and Express devices.
        Chooser::User => {
            if accepts.intersects(Connect::ENDPOINTS) {
                accepts |= Connect::ENDPOINTS;
            }
            if needs.contains(Connect::BRIDGE) {
                needs |= Connect::PCI;
            }
        }
        Chooser::Daemon if needs.contains(Connect::CHOSEN) && !accepts.contains(Connect::CHOSEN) => {
            return Err(Refusal::NotChosen);
        }
        Chooser::Daemon => {}
    }
    if (accepts & needs).intersects(Connect::KINDS) { Ok(()) } else { Err(Refusal::WrongKind) }
}

fn display(address: &PciAddress) -> String {
    let PciAddress { domain, bus, slot, function, .. } = address;
    format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_ports_share_slots_and_grow_with_demand() {
        let mut set = PciSet::new(&[PciModel::PcieRoot], Growth::Allowed, PcieToPci::Available);
        for bus in 1..=9 {
            let address = set.reserve_next(Connect::CHOSEN_PCIE, None).unwrap();
            assert_eq!(address, PciAddress::new(bus, 0, 0));
        }
        let port = Connect::of_controller(PciModel::PcieRootPort);
        let places: Vec<_> = (0..9).map(|_| set.reserve_next(port, None).unwrap()).collect();
        assert_eq!(places.first(), Some(&PciAddress::new(0, 1, 0)));
        assert_eq!(places.get(7), Some(&PciAddress::new(0, 1, 7)));
        assert_eq!(places.get(8), Some(&PciAddress::new(0, 2, 0)));
    }

    #[test]
    fn a_conventional_device_on_express_gets_its_bridge() {
        let mut set = PciSet::new(&[PciModel::PcieRoot], Growth::Allowed, PcieToPci::Available);
        assert_eq!(set.reserve_next(Connect::CHOSEN_PCI, None).unwrap(), PciAddress::new(2, 1, 0));
        assert_eq!(set.models(), [PciModel::PcieRoot, PciModel::PcieRootPort, PciModel::PcieToPciBridge]);
        // The port that carries the bridge takes no endpoint.
        assert_eq!(set.reserve_next(Connect::CHOSEN_PCIE, None).unwrap(), PciAddress::new(3, 0, 0));
    }

    #[test]
    fn a_place_is_given_once_and_must_exist() {
        let mut set = PciSet::new(&[PciModel::PciRoot], Growth::Fixed, PcieToPci::Missing);
        set.reserve(PciAddress::new(0, 3, 0), Connect::PCI).unwrap();
        let again = set.reserve(PciAddress::new(0, 3, 0), Connect::PCI).unwrap_err();
        assert_eq!(again.message, "Attempted double use of PCI Address 0000:00:03.0");
        let beyond = set.reserve(PciAddress::new(7, 3, 0), Connect::PCI).unwrap_err();
        assert_eq!(beyond.message, "Invalid PCI address 0000:07:03.0. Only PCI buses up to 0 are available");
        let host_bridge = set.reserve(PciAddress::new(0, 0, 1), Connect::PCI).unwrap_err();
        assert_eq!(host_bridge.message, "Invalid PCI address 0000:00:00.1. slot must be >= 1");
        while set.reserve_next(Connect::CHOSEN_PCI, None).is_ok() {}
        assert!(set.is_full());
    }
}
