//! `<shmem>`: memory that guests of a host share, or share with a process of it.

use super::info::DeviceInfo;
use crate::conf::xml::{Element, OnOff, Part, Writer, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::units;

xml_enum! {
    pub enum ShmemModel {
        Ivshmem = "ivshmem",
        Plain = "ivshmem-plain",
        Doorbell = "ivshmem-doorbell",
    }
}

xml_enum! {
    pub enum ShmemRole {
        Master = "master",
        Peer = "peer",
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Shmem {
    pub name: Box<str>,
    pub role: Option<ShmemRole>,
    pub model: ShmemModel,
    /// 0 until one is chosen, and where the server says it.
    pub size_bytes: u64,
    pub server: Option<ShmemServer>,
    pub msi: Option<Msi>,
    pub info: DeviceInfo,
}

/// The process that hands the memory out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShmemServer {
    pub path: Option<Box<str>>,
}

/// How the guests interrupt each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Msi {
    pub vectors: u32,
    pub ioeventfd: Option<OnOff>,
}

impl Part for Shmem {
    fn read(element: Element<'_>) -> Result<Self> {
        let given = element.child("model").map(|model| model.value("type")).transpose()?.flatten();
        let model = given.unwrap_or(ShmemModel::Ivshmem);
        let Some(name) = element.attribute("name") else {
            return Err(ConfError::xml("shmem element must contain 'name' attribute"));
        };
        let role = if model == ShmemModel::Ivshmem { None } else { element.value("role")? };
        let server = element.child("server").map(|server| ShmemServer {
            path: server.attribute("path").map(crate::conf::storage::clean_path),
        });
        let msi = match element.child("msi") {
            None => None,
            Some(msi) => Some(Msi {
                vectors: msi.value::<crate::conf::xml::Dec>("vectors")?.unwrap_or_default().0,
                ioeventfd: msi.value("ioeventfd")?,
            }),
        };
        if msi.is_some() && server.is_none() {
            return Err(ConfError::xml("msi option is only supported with a server"));
        }
        let size_bytes = element.child("size").map(read_size).transpose()?.unwrap_or(0);
        let info = DeviceInfo::read(element)?;
        Ok(Self { name: name.into(), role, model, size_bytes, server, msi, info })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("name", &self.name);
        if let Some(role) = &self.role {
            out.attribute("role", role);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        out.element("model", |out| out.attribute("type", &self.model));
        if self.size_bytes != 0 {
            out.element("size", |out| {
                out.attribute_str("unit", "M");
                out.body(&(self.size_bytes >> 20));
            });
        }
        if let Some(server) = &self.server {
            out.element("server", |out| {
                if let Some(path) = &server.path {
                    out.attribute("path", path);
                }
            });
        }
        if let Some(msi) = &self.msi {
            out.element("msi", |out| {
                if msi.vectors != 0 {
                    out.attribute("vectors", &msi.vectors);
                }
                if let Some(ioeventfd) = &msi.ioeventfd {
                    out.attribute("ioeventfd", ioeventfd);
                }
            });
        }
        self.info.write_children(out);
    }
}

impl Shmem {
    /// Whether both are the same memory, wherever it is plugged in.
    pub fn describes(&self, other: &Self) -> bool {
        Self { info: other.info.clone(), ..self.clone() } == *other
    }
}

fn read_size(element: Element<'_>) -> Result<u64> {
    let value = crate::conf::xml::read_body::<u64>(element)?.unwrap_or(0);
    Ok(units::scale(value, element.attribute("unit"), 1, u64::MAX)?)
}
