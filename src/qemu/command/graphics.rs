//! How a user sees the guest's screen.

use super::line::{Line, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{Graphics, ListenPlace, Vnc};
use crate::conf::xml::YesNo;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for graphics in &guest.domain.devices.graphics {
        match graphics {
            Graphics::Vnc(vnc) => build_vnc(guest, line, vnc)?,
            Graphics::Other(kind, _) => {
                return unsupported(format!("{kind} graphics are not supported with this QEMU"));
            }
        }
    }
    Ok(())
}

fn build_vnc(guest: &Guest<'_>, line: &mut Line<'_>, vnc: &Vnc) -> Result<()> {
    let Some(listen) = vnc.listen() else { return internal("missing listen element") };
    let mut text = match &listen.place {
        ListenPlace::None => "none".to_owned(),
        ListenPlace::Socket { socket } => {
            format!("vnc=unix:{}", escape_comma(socket.as_deref().unwrap_or_default()))
        }
        ListenPlace::Network { address: None, .. } => {
            return unsupported("listen type 'network' is not supported");
        }
        ListenPlace::Address { address } | ListenPlace::Network { address, .. } => {
            if !(5900..=65535).contains(&vnc.port) {
                return unsupported("vnc port must be in range [5900,65535]");
            }
            let host = match address.as_deref() {
                Some(address) if address.contains(':') => format!("[{address}]"),
                other => other.unwrap_or_default().to_owned(),
            };
            let mut text = format!("{host}:{}", vnc.port - 5900);
            if vnc.websocket != 0 {
                text.push_str(&format!(",websocket={}", vnc.websocket));
            }
            text
        }
    };
    if let Some(policy) = vnc.share_policy {
        text.push_str(&format!(",share={policy}"));
    }
    // The password itself goes over QMP.
    if vnc.auth.is_some() {
        text.push_str(",password=on");
    }
    if let Some(control) = vnc.power_control {
        text.push_str(&format!(",power-control={}", if control == YesNo::Yes { "on" } else { "off" }));
    }
    text.push_str(&format!(",audiodev={}", guest.audiodev(vnc.audio)?));
    line.option("-vnc", text);
    if let Some(keymap) = &vnc.keymap {
        line.option("-k", &**keymap);
    }
    Ok(())
}
