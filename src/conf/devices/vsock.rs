//! `<vsock>`: sockets between host and guest.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{YesNo, xml, xml_enum};

xml! {
    pub struct Vsock {
        attr model: VsockModel = "model", or VsockModel::Virtio;
        group cid: Cid = "cid";
        flat info: DeviceInfo;
        group driver: VirtioOptions = "driver";
    }
}

xml_enum! {
    pub enum VsockModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

xml! {
    /// The guest's address.
    #[derive(Copy, Eq, Default)]
    pub struct Cid {
        attr auto: Option<YesNo> = "auto";
        attr address: Option<u32> = "address";
    }
}
