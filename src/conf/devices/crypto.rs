//! `<crypto>`: a device that encrypts for the guest.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{Element, Part, Writer, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    pub enum CryptoModel {
        Virtio = "virtio",
    }
}

xml_enum! {
    pub enum CryptoType {
        Qemu = "qemu",
    }
}

xml_enum! {
    /// Who does the work on the host.
    pub enum CryptoBackend {
        Builtin = "builtin",
        Lkcf = "lkcf",
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Crypto {
    pub model: CryptoModel,
    pub kind: CryptoType,
    pub backend: CryptoBackend,
    pub queues: u32,
    pub driver: VirtioOptions,
    pub info: DeviceInfo,
}

impl Part for Crypto {
    fn read(element: Element<'_>) -> Result<Self> {
        let (model, kind) = (element.required("model")?, element.required("type")?);
        let mut backends = element.children_named("backend");
        let (Some(backend), None) = (backends.next(), backends.next()) else {
            return Err(ConfError::xml("only one crypto backend is supported"));
        };
        Ok(Self {
            model,
            kind,
            backend: backend.required("model")?,
            queues: backend.value("queues")?.unwrap_or(0),
            driver: element.child("driver").map(VirtioOptions::read).transpose()?.unwrap_or_default(),
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("model", &self.model);
        out.attribute("type", &self.kind);
    }

    fn write_children(&self, out: &mut Writer) {
        out.element("backend", |out| {
            out.attribute("model", &self.backend);
            if self.queues != 0 {
                out.attribute("queues", &self.queues);
            }
        });
        self.driver.write_group(out, "driver");
        self.info.write_children(out);
    }
}
