//! How much of the network an interface may use.

use crate::conf::devices::Interface;
use crate::drivers::domain::flags::Impact;
use crate::drivers::domain::stats::single::{STRING_OKAY, interface_named};
use crate::drivers::domain::usage::one_definition;
use crate::drivers::params::Params;
use crate::error::Result;
use crate::qemu::job::State;

/// libvirt's name, the direction's element and its attribute.
const LIMITS: [(&str, &str, &str); 7] = [
    ("inbound.average", "inbound", "average"),
    ("inbound.peak", "inbound", "peak"),
    ("inbound.burst", "inbound", "burst"),
    ("inbound.floor", "inbound", "floor"),
    ("outbound.average", "outbound", "average"),
    ("outbound.peak", "outbound", "peak"),
    ("outbound.burst", "outbound", "burst"),
];

/// The limits of one interface, named by its device or its MAC address; 0 is none. Without a name all are none.
pub fn bandwidth(state: &State, interface: Option<&str>, flags: u32) -> Result<Params> {
    let impact = Impact::of(flags & !STRING_OKAY, "qemuDomainGetInterfaceParameters")?;
    let definition = one_definition(state, impact)?;
    let interface = interface.map(|name| interface_named(definition, name)).transpose()?;
    let mut params = Params::default();
    for (name, direction, attribute) in LIMITS {
        params.push(name, interface.map_or(0, |interface| limit(interface, direction, attribute)));
    }
    Ok(params)
}

fn limit(interface: &Interface, direction: &str, attribute: &str) -> u32 {
    let direction = interface.bandwidth.as_ref().and_then(|bandwidth| bandwidth.child(direction));
    direction.and_then(|limits| limits.attribute(attribute)?.parse().ok()).unwrap_or(0)
}
