//! SPICE screens.

use super::line::{Line, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{ListenPlace, MouseMode, Spice, SpiceMode};
use crate::conf::xml::YesNo;

/// Which ways in a screen has.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    plain: bool,
    encrypted: bool,
}

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>, spice: &Spice) -> Result<()> {
    let settings = guest.context.settings;
    let mut options = Vec::new();
    let ways = listen(spice, &mut options)?;
    if let Some(directory) = &settings.spice_sasl_dir {
        options.push("sasl=on".to_owned());
        line.env.push(("SASL_CONF_PATH".to_owned(), directory.clone()));
    }
    match spice.options.mouse {
        Some(MouseMode::Server) => options.push("agent-mouse=off".to_owned()),
        Some(MouseMode::Client) => options.push("agent-mouse=on".to_owned()),
        None => {}
    }
    // A password itself goes over QMP.
    if spice.auth.is_none() && settings.spice_password.is_none() {
        options.push("disable-ticketing=on".to_owned());
    }
    if ways.encrypted {
        let directory = settings.spice_tls_dir.as_deref().unwrap_or("/etc/pki/libvirt-spice");
        options.push(format!("x509-dir={}", escape_comma(directory)));
    }
    channels(spice, ways, &mut options)?;
    features(spice, &mut options);
    options.push("seamless-migration=on".to_owned());
    line.option("-spice", options.join(","));
    if let Some(keymap) = &spice.keymap {
        line.option("-k", &**keymap);
    }
    Ok(())
}

fn listen(spice: &Spice, options: &mut Vec<String>) -> Result<Ways> {
    let Some(listen) = spice.listen() else { return internal("missing listen element") };
    let mut ways = Ways::default();
    match &listen.place {
        ListenPlace::Socket { socket } => {
            let socket = escape_comma(socket.as_deref().unwrap_or_default());
            options.push(format!("unix=on,addr={socket}"));
            ways.plain = true;
        }
        ListenPlace::Address { address } | ListenPlace::Network { address, .. } => {
            if spice.port > 0 {
                options.push(format!("port={}", spice.port));
                ways.plain = true;
            }
            if spice.tls_port > 0 {
                options.push(format!("tls-port={}", spice.tls_port));
                ways.encrypted = true;
            }
            if let (Some(address), true) = (address, ways.plain || ways.encrypted) {
                options.push(format!("addr={address}"));
            }
        }
        // QEMU wants to be told some port.
        ListenPlace::None => {
            options.push("port=0".to_owned());
            ways.plain = true;
        }
    }
    Ok(ways)
}

fn channels(spice: &Spice, ways: Ways, options: &mut Vec<String>) -> Result<()> {
    let modes = spice.options.channels.iter().map(|channel| (channel.name.as_str(), channel.mode));
    for (name, mode) in spice.default_mode.map(|mode| ("default", mode)).into_iter().chain(modes) {
        let is_default = name == "default";
        match mode {
            SpiceMode::Secure if !ways.encrypted && is_default => {
                return unsupported(
                    "spice defaultMode secure requested in XML configuration, but TLS connection is not available",
                );
            }
            SpiceMode::Secure if !ways.encrypted => {
                return unsupported(
                    "spice secure channels set in XML configuration, but TLS connection is not available",
                );
            }
            SpiceMode::Insecure if !ways.plain && is_default => {
                return unsupported(
                    "spice defaultMode insecure requested in XML configuration, but plaintext connection is not \
                     available",
                );
            }
            SpiceMode::Insecure if !ways.plain => {
                return unsupported(
                    "spice insecure channels set in XML configuration, but plaintext connection is not available",
                );
            }
            SpiceMode::Secure => options.push(format!("tls-channel={name}")),
            SpiceMode::Insecure => options.push(format!("plaintext-channel={name}")),
            SpiceMode::Any => {}
        }
    }
    Ok(())
}

fn features(spice: &Spice, options: &mut Vec<String>) {
    let chosen = &spice.options;
    let words = [
        ("image-compression", chosen.image.map(|it| it.as_str())),
        ("jpeg-wan-compression", chosen.jpeg.map(|it| it.as_str())),
        ("zlib-glz-wan-compression", chosen.zlib.map(|it| it.as_str())),
        ("playback-compression", chosen.playback.map(|it| it.as_str())),
        ("streaming-video", chosen.streaming.map(|it| it.as_str())),
        ("disable-copy-paste", (chosen.copy_paste == Some(YesNo::No)).then_some("on")),
        ("disable-agent-file-xfer", (chosen.file_transfer == Some(YesNo::No)).then_some("on")),
    ];
    options.extend(words.iter().filter_map(|(name, word)| Some(format!("{name}={}", (*word)?))));
    if let Some(gl) = chosen.gl.as_ref().filter(|gl| gl.enable == Some(YesNo::Yes)) {
        options.push("gl=on".to_owned());
        options.extend(gl.rendernode.as_deref().map(|node| format!("rendernode={}", escape_comma(node))));
    }
}
