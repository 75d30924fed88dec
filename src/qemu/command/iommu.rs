//! Units that translate addresses of devices.

use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::IommuModel;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for iommu in &guest.domain.devices.iommus {
        let alias = guest.alias(&iommu.info)?;
        let driver = &iommu.driver;
        match iommu.model {
            IommuModel::Intel => line.device(
                Props::driver("intel-iommu")
                    .set("id", alias)
                    .maybe("intremap", driver.intremap.map(|state| state.as_str()))
                    .switch("caching-mode", driver.caching_mode)
                    .maybe("eim", driver.eim.map(|state| state.as_str()))
                    .switch("device-iotlb", driver.iotlb)
                    .nonzero("aw-bits", driver.aw_bits.unwrap_or_default())
                    .switch("dma-translation", driver.dma_translation),
            ),
            IommuModel::Virtio => {
                let props = Props::driver("virtio-iommu").set("id", alias);
                line.device(guest.at(props, &iommu.info)?);
            }
            // It is part of the machine.
            IommuModel::Smmuv3 => {}
        }
    }
    Ok(())
}
