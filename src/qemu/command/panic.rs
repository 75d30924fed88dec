//! Devices by which a guest says that it crashed.

use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::{Address, PanicModel};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for panic in &guest.domain.devices.panics {
        match panic.model {
            PanicModel::Isa => {
                // This one has its own word for the base address.
                let base = match &panic.info.address {
                    Some(Address::Isa(address)) => address.iobase.map(|base| base.0),
                    _ => None,
                };
                line.device(Props::driver("pvpanic").maybe("ioport", base));
            }
            PanicModel::Pvpanic => line.device(guest.at(Props::driver("pvpanic-pci"), &panic.info)?),
            // Part of the machine, or of the CPU.
            PanicModel::Hyperv | PanicModel::Pseries | PanicModel::S390 | PanicModel::Default => {}
        }
    }
    Ok(())
}
