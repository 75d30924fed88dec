//! What a guest is plugged together from: one file per kind of device.
//!
//! # How to add a device
//!
//! 1. A file named after libvirt's element, with one `xml!` per element (its module documentation lists
//!    the kinds of fields) and `xml_enum!` for the words. `flat info: DeviceInfo;` as the last
//!    line brings alias, address, boot order and option ROM. [`rng`] is the model to follow.
//! 2. One line in [`Devices`], where libvirt prints it: the order of lines is the order of output.
//! 3. Where the device needs an address, an arm in `conf::domain::defaults`; where nonsense could reach
//!    QEMU, a check in `conf::domain::validate`.
//! 4. A definition that uses it in `tests/data/domain`, with upstream's answer beside it.
//!
//! What libvirt does not know is dropped when read; nobody needs to say so.

mod info;
mod rng;

pub use info::{
    Address, Boot, CcidAddress, CcwAddress, DeviceInfo, DimmAddress, DriveAddress, HexLong, IsaAddress,
    PciAddress, Rom, SpaprVioAddress, UsbAddress, UsbPort, VirtioOptions, VirtioSerialAddress,
};
pub use rng::{RandomSource, Rng, RngBackend, RngModel, RngRate};

use super::xml::xml;

xml! {
    /// `<devices>`: every kind in the order libvirt prints them.
    #[derive(Default)]
    pub struct Devices {
        text emulator: Option<Box<str>> = "emulator";
        child rngs: Vec<Rng> = "rng";
    }
}
