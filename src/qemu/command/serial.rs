//! Serial and parallel ports, consoles and channels as the guest sees them.

use serde_json::json;

use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{ChannelTarget, CharBackend, CharKind, ConsoleType, GraphicsKind, SerialModel};

pub(super) fn serials(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let has_spice = guest.domain.devices.graphics.iter().any(|it| it.kind() == GraphicsKind::Spice);
    for serial in &guest.domain.devices.serials {
        let alias = guest.alias(&serial.info)?;
        if matches!(serial.source.backend, CharBackend::Other(CharKind::Spiceport, _)) && !has_spice {
            continue;
        }
        let chardev = guest.chardev(line, &serial.source, alias)?;
        let Some(model) = serial.target.model else {
            // A port of the board.
            line.option("-serial", format!("chardev:{chardev}"));
            continue;
        };
        let mut props = Props::driver(model.as_str()).set("chardev", chardev).set("id", alias);
        if model == SerialModel::IsaSerial {
            props = props.maybe("index", serial.target.port);
        }
        line.device(guest.at(props, &serial.info)?);
    }
    Ok(())
}

pub(super) fn parallels(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for parallel in &guest.domain.devices.parallels {
        let alias = guest.alias(&parallel.info)?;
        let chardev = guest.chardev(line, &parallel.source, alias)?;
        line.device(Props::driver("isa-parallel").set("chardev", chardev).set("id", alias));
    }
    Ok(())
}

pub(super) fn channels(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for channel in &guest.domain.devices.channels {
        let alias = guest.alias(&channel.info)?;
        let chardev = guest.chardev(line, &channel.source, alias)?;
        match &channel.target {
            ChannelTarget::Guestfwd { address, port } => {
                let rule = format!("tcp:{address}:{port}-chardev:{chardev}");
                let props = Props::new().set("type", "user").set("guestfwd", json!([{ "str": rule }]));
                line.json("-netdev", props.set("id", alias));
            }
            ChannelTarget::Virtio { name, .. } => {
                let props = guest.at(Props::driver("virtserialport"), &channel.info)?;
                let props = props.set("chardev", chardev).set("id", alias);
                // The guest's agent looks for it by this name.
                let usual = matches!(channel.source.backend, CharBackend::Other(CharKind::Spicevmc, _));
                let usual = usual.then_some("com.redhat.spice.0");
                match (name.as_deref(), usual) {
                    (Some(name), Some(usual)) if name != usual => {
                        return unsupported(format!("Unsupported spicevmc target name '{name}'"));
                    }
                    (name, usual) => line.device(props.maybe("name", name.or(usual))),
                }
            }
            ChannelTarget::Xen { .. } => return unsupported("channel target type 'xen' is not supported"),
        }
    }
    Ok(())
}

pub(super) fn consoles(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for console in &guest.domain.devices.consoles {
        match console.target.kind {
            // Another view of a serial port.
            Some(ConsoleType::Serial) => {}
            Some(ConsoleType::Virtio) => {
                let alias = guest.alias(&console.info)?;
                let chardev = guest.chardev(line, &console.source, alias)?;
                let props = guest.at(Props::driver("virtconsole"), &console.info)?;
                line.device(props.set("chardev", chardev).set("id", alias));
            }
            Some(kind) => return unsupported(format!("unsupported console target type {kind}")),
            None => return internal("console has no target type"),
        }
    }
    Ok(())
}
