//! `<iommu>`: a unit that translates addresses of devices.

use super::info::DeviceInfo;
use crate::conf::xml::{OnOff, xml, xml_enum};

xml! {
    pub struct Iommu {
        attr model: IommuModel = "model";
        group driver: IommuDriver = "driver";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum IommuModel {
        Intel = "intel",
        Smmuv3 = "smmuv3",
        Virtio = "virtio",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct IommuDriver {
        attr intremap: Option<OnOff> = "intremap";
        attr caching_mode: Option<OnOff> = "caching_mode";
        attr eim: Option<OnOff> = "eim";
        attr iotlb: Option<OnOff> = "iotlb";
        attr aw_bits: Option<u32> = "aw_bits";
        attr dma_translation: Option<OnOff> = "dma_translation";
    }
}
