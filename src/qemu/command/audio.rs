//! Where the host plays what the guest's sound cards say.

use super::line::{Line, Props};
use super::{Guest, Result, internal};
use crate::conf::devices::{Audio, AudioFormat, AudioKind, AudioStream};
use crate::conf::xml::YesNo;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for audio in &guest.domain.devices.audios {
        let driver = match audio.kind {
            AudioKind::None => "none",
            AudioKind::File => "wav",
            AudioKind::Alsa => "alsa",
            AudioKind::Oss => "oss",
            AudioKind::Pulseaudio => "pa",
            AudioKind::Sdl => "sdl",
            AudioKind::Jack => "jack",
            AudioKind::Pipewire => "pipewire",
            AudioKind::Coreaudio => "coreaudio",
            AudioKind::Spice => "spice",
            AudioKind::Dbus => "dbus",
        };
        let props = Props::new()
            .set("id", name(audio))
            .set("driver", driver)
            .nonzero("timer-period", audio.timer_period_us.unwrap_or_default())
            .maybe("try-mmap", audio.try_mmap.map(bool::from))
            .maybe("exclusive", audio.exclusive.map(bool::from))
            .maybe("dsp-policy", audio.dsp_policy)
            .maybe("server", audio.server_name.as_deref())
            .maybe("path", audio.path.as_deref());
        let (input, output) = (stream(audio.input.as_deref()), stream(audio.output.as_deref()));
        let props = if input.is_empty() { props } else { props.set("in", input.into_value()) };
        let props = if output.is_empty() { props } else { props.set("out", output.into_value()) };
        if let (AudioKind::Sdl, Some(driver)) = (audio.kind, &audio.driver) {
            line.env.push(("SDL_AUDIODRIVER".to_owned(), driver.to_string()));
        }
        if let (AudioKind::Pipewire, Some(directory)) = (audio.kind, &audio.runtime_dir) {
            line.env.push(("PIPEWIRE_RUNTIME_DIR".to_owned(), directory.to_string()));
        }
        line.json("-audiodev", props);
    }
    Ok(())
}

fn stream(stream: Option<&AudioStream>) -> Props {
    let Some(stream) = stream else { return Props::new() };
    let fixed = stream.fixed_settings == Some(YesNo::Yes);
    let settings = stream.settings.as_ref().filter(|_| fixed);
    Props::new()
        .maybe("mixing-engine", stream.mixing_engine.map(bool::from))
        .maybe("fixed-settings", stream.fixed_settings.map(bool::from))
        .nonzero("voices", stream.voices.unwrap_or_default())
        .nonzero("buffer-length", stream.buffer_length_us.unwrap_or_default())
        .nonzero("frequency", settings.and_then(|it| it.frequency_hz).unwrap_or_default())
        .nonzero("channels", settings.and_then(|it| it.channels).unwrap_or_default())
        .maybe("format", settings.and_then(|it| it.format).map(AudioFormat::as_str))
        .maybe("dev", stream.dev.as_deref())
        .nonzero("buffer-count", stream.buffer_count.unwrap_or_default())
        .maybe("try-poll", stream.try_poll.map(bool::from))
        .maybe("server-name", stream.server_name.as_deref())
        .maybe("client-name", stream.client_name.as_deref())
        .maybe("connect-ports", stream.connect_ports.as_deref())
        .maybe("exact-name", stream.exact_name.map(bool::from))
        .maybe("name", stream.name.as_deref())
        .maybe("stream-name", stream.stream_name.as_deref())
        .nonzero("latency", stream.latency_us.unwrap_or_default())
}

fn name(audio: &Audio) -> String {
    format!("audio{}", audio.id)
}

impl Guest<'_> {
    /// The backend with that id; the first one without.
    pub(super) fn audiodev(&self, id: Option<u32>) -> Result<String> {
        let audios = &self.domain.devices.audios;
        let found = match id {
            Some(id) => audios.iter().find(|audio| audio.id == id),
            None => audios.first(),
        };
        match found {
            Some(audio) => Ok(name(audio)),
            None => internal("unable to find audio backend for sound device"),
        }
    }
}
