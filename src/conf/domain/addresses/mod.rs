//! Where devices are plugged in: addresses a definition leaves out are chosen as libvirt chooses them,
//! because they are part of the guest's ABI.
//!
//! ```text
//!   virtio-serial ports → PCI (a sizing pass, then the real one) → USB ports
//! ```

mod chipset;
mod connect;
mod pci;
mod pci_set;
mod usb;
mod usb_set;
mod virtio_serial;

pub use pci_set::{Chooser, Connect, Growth, PciSet, PcieToPci};
pub use usb_set::UsbSet;

use super::Domain;
use super::defaults::{Age, Facts};
use crate::conf::Result;

/// Gives every device of the definition its place, adding the controllers that takes.
pub(super) fn assign(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    virtio_serial::assign(&mut domain.devices)?;
    pci::assign(domain, facts)?;
    // A hub that is added may come between devices and the ports they had.
    if facts.age == Age::New || usb::all_have_places(&mut domain.devices) {
        usb::assign(&mut domain.devices)?;
    }
    Ok(())
}

impl Domain {
    /// Chooses the USB ports that a definition from before they were part of it leaves out; needed for a start.
    pub fn assign_usb_ports(&mut self) -> Result<()> {
        usb::assign(&mut self.devices)
    }
}
