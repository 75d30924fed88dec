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
use crate::conf::devices::{Address, DimmAddress, MemoryDevice};
use crate::conf::{ConfError, Result};

/// Gives every device of the definition its place, adding the controllers that takes.
pub(super) fn assign(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    assign_memory_slots(domain)?;
    virtio_serial::assign(&mut domain.devices)?;
    pci::assign(domain, facts)?;
    // A hub that is added may come between devices and the ports they had.
    if facts.age == Age::New || usb::all_have_places(&mut domain.devices) {
        usb::assign(&mut domain.devices)?;
    }
    Ok(())
}

/// Memory modules go into the first slots that are free.
fn assign_memory_slots(domain: &mut Domain) -> Result<()> {
    if !domain.has_memory_hotplug() {
        return Ok(());
    }
    let slots = domain.memory.max.and_then(|max| max.slots).unwrap_or(0);
    let mut taken: Vec<u32> = domain.devices.memories.iter().filter_map(MemoryDevice::slot).collect();
    let mut free = 0;
    for device in domain.devices.memories.iter_mut().filter(|device| device.model.has_slot()) {
        if device.slot().is_some() {
            continue;
        }
        while taken.contains(&free) {
            free += 1;
        }
        if free >= slots {
            return Err(ConfError::internal("failed to find an empty memory slot").by_qemu_driver());
        }
        taken.push(free);
        device.info.address = Some(Address::Dimm(DimmAddress { slot: free, base: None }));
    }
    Ok(())
}

impl Domain {
    /// Chooses the USB ports that a definition from before they were part of it leaves out; needed for a start.
    pub fn assign_usb_ports(&mut self) -> Result<()> {
        usb::assign(&mut self.devices)
    }
}
