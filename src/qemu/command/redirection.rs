//! USB devices of whoever looks at the guest's screen.

use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::{FilterRule, RedirFilter};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let devices = &guest.domain.devices;
    for redirdev in &devices.redirdevs {
        let alias = guest.alias(&redirdev.info)?;
        let chardev = guest.chardev(line, &redirdev.source, alias)?;
        let boot = redirdev.info.boot.as_ref().map_or(0, |boot| boot.order);
        let props = Props::driver("usb-redir")
            .set("chardev", chardev)
            .set("id", alias)
            .maybe("filter", devices.redirfilters.first().map(filter))
            .nonzero("bootindex", boot);
        line.device(guest.at(props, &redirdev.info)?);
    }
    Ok(())
}

fn filter(filter: &RedirFilter) -> String {
    filter.rules.iter().map(rule).collect::<Vec<_>>().join("|")
}

/// `class:vendor:product:version:allow`
fn rule(rule: &FilterRule) -> String {
    let hex = |number: Option<u32>, digits: usize| match number {
        Some(number) => format!("0x{number:0digits$X}"),
        None => "-1".to_owned(),
    };
    let version = rule.version.map(|version| u32::from(version.0));
    let (class, vendor, product) = (hex(rule.class, 2), hex(rule.vendor, 4), hex(rule.product, 4));
    format!("{class}:{vendor}:{product}:{}:{}", hex(version, 4), u8::from(rule.allow))
}
