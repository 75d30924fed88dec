//! Disks that are about to stand on new images, as it is written down before QEMU hears of it.

use crate::conf::devices::Disk;
use crate::conf::xml::{YesNo, xml};

xml! {
    /// `<overlays>` of a status file.
    pub struct Overlays {
        /// Images were there before, and stay.
        attr reused: Option<YesNo> = "reused";
        /// As they are to be.
        child disks: Vec<Disk> = "disk";
    }
}
