//! `<memballoon>`: the host takes memory back from the guest.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::Result;
use crate::conf::xml::{Element, OnOff, Part, Writer, xml_enum};

#[derive(Debug, Clone, PartialEq)]
pub struct MemBalloon {
    pub model: BalloonModel,
    pub autodeflate: Option<OnOff>,
    pub free_page_reporting: Option<OnOff>,
    /// How often the guest reports statistics; 0: never.
    pub stats_period_s: u32,
    pub info: DeviceInfo,
    pub driver: VirtioOptions,
}

xml_enum! {
    pub enum BalloonModel {
        Virtio = "virtio",
        Xen = "xen",
        /// The guest has none.
        None = "none",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

impl MemBalloon {
    pub fn new(model: BalloonModel) -> Self {
        Self {
            model,
            autodeflate: None,
            free_page_reporting: None,
            stats_period_s: 0,
            info: DeviceInfo::default(),
            driver: VirtioOptions::default(),
        }
    }
}

impl Part for MemBalloon {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut balloon = Self::new(element.required("model")?);
        balloon.autodeflate = element.value("autodeflate")?;
        balloon.free_page_reporting = element.value("freePageReporting")?;
        if let Some(stats) = element.child("stats") {
            let period: Option<i32> = stats.value("period")?;
            balloon.stats_period_s = period.and_then(|period| period.try_into().ok()).unwrap_or(0);
        }
        balloon.info = DeviceInfo::read(element)?;
        if balloon.model == BalloonModel::None {
            // What is not there has no address.
            balloon.info.address = None;
        }
        if let Some(driver) = element.child("driver") {
            balloon.driver = VirtioOptions::read(driver)?;
        }
        Ok(balloon)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("model", &self.model);
        if let Some(autodeflate) = &self.autodeflate {
            out.attribute("autodeflate", autodeflate);
        }
        if let Some(reporting) = &self.free_page_reporting {
            out.attribute("freePageReporting", reporting);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if self.stats_period_s != 0 {
            out.element("stats", |out| out.attribute("period", &self.stats_period_s));
        }
        self.info.write_children(out);
        self.driver.write_group(out, "driver");
    }
}
