//! How a user sees the guest's screen.

use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{Dbus, Gl, Graphics, ListenPlace, Sdl, Vnc};
use crate::conf::xml::YesNo;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for graphics in &guest.domain.devices.graphics {
        match graphics {
            Graphics::Vnc(vnc) => build_vnc(guest, line, vnc)?,
            Graphics::Spice(spice) => super::spice::build(guest, line, spice)?,
            Graphics::Sdl(sdl) => build_sdl(line, sdl),
            Graphics::EglHeadless(headless) => {
                let node = headless.gl.as_ref().and_then(|gl| gl.rendernode.as_deref());
                line.option("-display", format!("egl-headless{}", render_node(node)));
            }
            Graphics::Dbus(dbus) => build_dbus(guest, line, dbus)?,
            Graphics::Other(kind, _) => {
                return unsupported(format!("{kind} graphics are not supported with this QEMU"));
            }
        }
    }
    Ok(())
}

fn render_node(node: Option<&str>) -> String {
    node.map(|node| format!(",rendernode={}", escape_comma(node))).unwrap_or_default()
}

fn gl(gl: Option<&Gl>) -> String {
    match gl.and_then(|gl| gl.enable) {
        Some(enable) => format!(",gl={}", if enable == YesNo::Yes { "on" } else { "off" }),
        None => String::new(),
    }
}

fn build_sdl(line: &mut Line<'_>, sdl: &Sdl) {
    for (name, value) in [("XAUTHORITY", &sdl.xauth), ("DISPLAY", &sdl.display)] {
        line.env.extend(value.as_ref().map(|value| (name.to_owned(), value.to_string())));
    }
    if sdl.fullscreen == Some(YesNo::Yes) {
        line.flag("-full-screen");
    }
    line.option("-display", format!("sdl{}", gl(sdl.gl.as_ref())));
}

fn build_dbus(guest: &Guest<'_>, line: &mut Line<'_>, dbus: &Dbus) -> Result<()> {
    let mut text = match (&dbus.address, dbus.p2p) {
        (_, Some(YesNo::Yes)) => "dbus,p2p=on".to_owned(),
        (Some(address), _) => format!("dbus,addr={}", escape_comma(address)),
        (None, _) => return unsupported("a message bus for the guest's screen is not supported"),
    };
    text.push_str(&gl(dbus.gl.as_ref()));
    text.push_str(&render_node(dbus.gl.as_ref().and_then(|gl| gl.rendernode.as_deref())));
    if dbus.audio.is_some() {
        text.push_str(&format!(",audiodev={}", guest.audiodev(dbus.audio)?));
    }
    line.option("-display", text);
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
    let settings = guest.context.settings;
    if let Some(directory) = &settings.vnc_tls_dir {
        let props = Props::object("tls-creds-x509", "vnc-tls-creds0").set("dir", directory.as_str());
        line.object(props.set("endpoint", "server").set("verify-peer", settings.vnc_tls_verify));
        text.push_str(",tls-creds=vnc-tls-creds0");
    }
    if let Some(directory) = &settings.vnc_sasl_dir {
        text.push_str(",sasl=on");
        line.env.push(("SASL_CONF_PATH".to_owned(), directory.clone()));
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
