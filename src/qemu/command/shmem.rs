//! Memory shared with other guests.

use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{Address, Shmem, ShmemModel, ShmemRole};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for shmem in &guest.domain.devices.shmems {
        if !matches!(shmem.info.address, Some(Address::Pci(_))) {
            return unsupported("only 'pci' addresses are supported for the shared memory device");
        }
        let alias = guest.alias(&shmem.info)?;
        let memory = format!("shmmem-{alias}");
        if shmem.model == ShmemModel::Plain {
            line.object(
                Props::object("memory-backend-file", &*memory)
                    .set("mem-path", format!("/dev/shm/{}", shmem.name))
                    .set("size", shmem.size_bytes)
                    .set("share", true),
            );
        }
        line.device(guest.shmem(shmem, memory)?);
        if let Some(server) = &shmem.server {
            let Some(path) = &server.path else { return internal("missing path of the shmem server") };
            line.option("-chardev", format!("socket,id=char{alias},path={}", escape_comma(path)));
        }
    }
    Ok(())
}

impl Guest<'_> {
    fn shmem(&self, shmem: &Shmem, memory: String) -> Result<Props> {
        let alias = self.alias(&shmem.info)?;
        let props = Props::driver(shmem.model.as_str()).set("id", alias);
        let props = match shmem.server {
            Some(_) => props.set("chardev", format!("char{alias}")),
            None => props
                .set("memdev", memory)
                .maybe("master", shmem.role.map(|role| if role == ShmemRole::Master { "on" } else { "off" })),
        };
        let msi = shmem.msi.unwrap_or_default();
        self.at(props.nonzero("vectors", msi.vectors).switch("ioeventfd", msi.ioeventfd), &shmem.info)
    }
}
