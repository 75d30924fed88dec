//! `<panic>`: a device by which the guest says that it crashed.

use super::info::DeviceInfo;
use crate::conf::xml::{xml, xml_enum};

xml! {
    pub struct Panic {
        attr(omit) model: PanicModel = "model", or PanicModel::Default;
        flat info: DeviceInfo;
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum PanicModel {
        #[default]
        Default = "default",
        Isa = "isa",
        Pseries = "pseries",
        Hyperv = "hyperv",
        S390 = "s390",
        Pvpanic = "pvpanic",
    }
}
