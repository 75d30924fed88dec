//! Sockets between host and guest.

use super::address::Generation;
use super::line::Line;
use super::{Guest, Result, internal};
use crate::conf::devices::VsockModel;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for vsock in &guest.domain.devices.vsocks {
        let alias = guest.alias(&vsock.info)?;
        let generation = match vsock.model {
            VsockModel::Virtio => Generation::Any,
            VsockModel::VirtioTransitional => Generation::Transitional,
            VsockModel::VirtioNonTransitional => Generation::NonTransitional,
        };
        let Some(opened) = guest.context.descriptors.vsocks.get(alias) else {
            return internal(format!("no descriptor was opened for '{alias}'"));
        };
        let props = guest
            .virtio("vhost-vsock", generation, &vsock.info, &vsock.driver)?
            .set("id", alias)
            .set("guest-cid", opened.cid)
            .set("vhostfd", opened.descriptor.to_string());
        line.device(guest.at(props, &vsock.info)?);
    }
    Ok(())
}
