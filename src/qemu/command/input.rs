//! Keyboards, mice and tablets.

use super::address::Generation;
use super::line::{Line, Props};
use super::{Guest, Result, unsupported};
use crate::conf::devices::{GrabToggle, Input, InputBus, InputKind, InputModel};
use crate::conf::xml::OnOff;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for input in &guest.domain.devices.inputs {
        match input.bus {
            _ if input.kind == InputKind::Evdev => line.object(evdev(guest, input)?),
            Some(InputBus::Usb) => {
                let driver = match input.kind {
                    InputKind::Mouse => "usb-mouse",
                    InputKind::Tablet => "usb-tablet",
                    InputKind::Keyboard => "usb-kbd",
                    kind => return unsupported(format!("usb bus does not support {kind} input device")),
                };
                let props = Props::driver(driver).set("id", guest.alias(&input.info)?);
                line.device(guest.at(props, &input.info)?);
            }
            Some(InputBus::Virtio) => line.device(virtio(guest, input)?),
            // The board has them.
            Some(InputBus::Ps2 | InputBus::Xen | InputBus::Parallels | InputBus::None) | None => {}
        }
    }
    Ok(())
}

/// A device of the host, with which the host's own keys go back and forth.
fn evdev(guest: &Guest<'_>, input: &Input) -> Result<Props> {
    let source = input.source.as_deref();
    let props = Props::object("input-linux", guest.alias(&input.info)?);
    Ok(props
        .maybe("evdev", source.and_then(|source| source.dev.as_deref()))
        .maybe("repeat", source.and_then(|source| source.repeat).map(|repeat| repeat == OnOff::On))
        .maybe("grab_all", source.and_then(|source| source.grab).map(|_| true))
        .maybe("grab-toggle", source.and_then(|source| source.grab_toggle).map(GrabToggle::as_str)))
}

fn virtio(guest: &Guest<'_>, input: &Input) -> Result<Props> {
    let name = match input.kind {
        InputKind::Mouse => "virtio-mouse",
        InputKind::Tablet => "virtio-tablet",
        InputKind::Keyboard => "virtio-keyboard",
        InputKind::Passthrough => "virtio-input-host",
        InputKind::Evdev => return unsupported("virtio bus does not support evdev input device"),
    };
    let generation = match input.model {
        Some(InputModel::VirtioTransitional) => Generation::Transitional,
        Some(InputModel::VirtioNonTransitional) => Generation::NonTransitional,
        Some(InputModel::Virtio) | None => Generation::Any,
    };
    let evdev = input.source.as_ref().and_then(|source| source.evdev.as_deref());
    let props = guest.virtio(name, generation, &input.info, &input.driver)?;
    let props = props.set("id", guest.alias(&input.info)?).maybe("evdev", evdev);
    guest.at(props, &input.info)
}
