//! Random number devices.

use super::address::Generation;
use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::{RngBackend, RngModel};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for rng in &guest.domain.devices.rngs {
        let alias = guest.alias(&rng.info)?;
        let id = format!("obj{alias}");
        let source = match &rng.backend {
            RngBackend::Random(random) => {
                Props::object("rng-random", &*id).maybe("filename", random.path.as_deref())
            }
            RngBackend::Egd(source) => {
                let chardev = guest.chardev(line, source, alias)?;
                Props::object("rng-egd", &*id).set("chardev", chardev)
            }
            RngBackend::Builtin => Props::object("rng-builtin", &*id),
        };
        line.object(source);
        let generation = match rng.model {
            RngModel::Virtio => Generation::Any,
            RngModel::VirtioTransitional => Generation::Transitional,
            RngModel::VirtioNonTransitional => Generation::NonTransitional,
        };
        let mut props = guest.virtio("virtio-rng", generation, &rng.info, &rng.driver)?;
        props = props.set("rng", id).set("id", alias);
        if let Some(rate) = &rng.rate {
            let period = rate.period_ms.filter(|period| *period > 0).unwrap_or(1000);
            props = props.set("max-bytes", rate.bytes).set("period", period);
        }
        line.device(guest.at(props, &rng.info)?);
    }
    Ok(())
}
