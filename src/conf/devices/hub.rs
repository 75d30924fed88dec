//! `<hub>`: more USB ports.

use super::info::DeviceInfo;
use crate::conf::xml::{xml, xml_enum};

xml! {
    pub struct Hub {
        attr kind: HubKind = "type";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum HubKind {
        Usb = "usb",
    }
}
