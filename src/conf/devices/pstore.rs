//! `<pstore>`: where a guest keeps what it wants to find again after a crash.

use super::info::DeviceInfo;
use crate::conf::domain::Kib;
use crate::conf::xml::{xml, xml_enum};

xml! {
    pub struct Pstore {
        attr backend: PstoreBackend = "backend";
        text path: Option<Box<str>> = "path";
        child size: Kib = "size";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum PstoreBackend {
        AcpiErst = "acpi-erst",
    }
}
