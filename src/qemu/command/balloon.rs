//! The memory balloon.

use super::address::Generation;
use super::line::Line;
use super::{Guest, Result};
use crate::conf::devices::BalloonModel;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let Some(balloon) = guest.domain.devices.memballoons.first() else { return Ok(()) };
    let generation = match balloon.model {
        BalloonModel::None | BalloonModel::Xen => return Ok(()),
        BalloonModel::Virtio => Generation::Any,
        BalloonModel::VirtioTransitional => Generation::Transitional,
        BalloonModel::VirtioNonTransitional => Generation::NonTransitional,
    };
    let props = guest
        .virtio("virtio-balloon", generation, &balloon.info, &balloon.driver)?
        .set("id", guest.alias(&balloon.info)?)
        .switch("deflate-on-oom", balloon.autodeflate)
        .switch("free-page-reporting", balloon.free_page_reporting);
    line.device(guest.at(props, &balloon.info)?);
    Ok(())
}
