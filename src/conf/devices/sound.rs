//! `<sound>` and `<audio>`: sound cards, and where the host plays what they say.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{YesNo, xml, xml_enum};

xml! {
    pub struct Sound {
        attr model: SoundModel = "model";
        attr multichannel: Option<YesNo> = "multichannel";
        attr streams: Option<u32> = "streams";
        child codecs: Vec<Codec> = "codec";
        /// The `id` of an `<audio>`.
        child_attr audio: Option<u32> = "audio" / "id";
        flat info: DeviceInfo;
        group driver: VirtioOptions = "driver";
    }
}

xml_enum! {
    pub enum SoundModel {
        Sb16 = "sb16",
        Es1370 = "es1370",
        Pcspk = "pcspk",
        Ac97 = "ac97",
        Ich6 = "ich6",
        Ich9 = "ich9",
        Usb = "usb",
        Ich7 = "ich7",
        Virtio = "virtio",
    }
}

xml! {
    pub struct Codec {
        attr kind: CodecKind = "type";
    }
}

xml_enum! {
    pub enum CodecKind {
        Duplex = "duplex",
        Micro = "micro",
        Output = "output",
    }
}

xml! {
    pub struct Audio {
        attr id: u32 = "id";
        attr kind: AudioKind = "type";
        attr timer_period_us: Option<u32> = "timerPeriod";
        attr try_mmap: Option<YesNo> = "tryMMap";
        attr exclusive: Option<YesNo> = "exclusive";
        attr dsp_policy: Option<i32> = "dspPolicy";
        attr path: Option<Box<str>> = "path";
        attr server_name: Option<Box<str>> = "serverName";
        attr driver: Option<Box<str>> = "driver";
        attr runtime_dir: Option<Box<str>> = "runtimeDir";
        child input: Option<Box<AudioStream>> = "input";
        child output: Option<Box<AudioStream>> = "output";
    }
}

xml_enum! {
    pub enum AudioKind {
        None = "none",
        Alsa = "alsa",
        Coreaudio = "coreaudio",
        Jack = "jack",
        Oss = "oss",
        Pulseaudio = "pulseaudio",
        Sdl = "sdl",
        Spice = "spice",
        File = "file",
        Dbus = "dbus",
        Pipewire = "pipewire",
    }
}

xml! {
    /// One direction of a backend. Each backend has some of the attributes.
    pub struct AudioStream {
        attr mixing_engine: Option<YesNo> = "mixingEngine";
        attr fixed_settings: Option<YesNo> = "fixedSettings";
        attr voices: Option<u32> = "voices";
        attr buffer_length_us: Option<u32> = "bufferLength";
        attr dev: Option<Box<str>> = "dev";
        attr buffer_count: Option<u32> = "bufferCount";
        attr try_poll: Option<YesNo> = "tryPoll";
        attr server_name: Option<Box<str>> = "serverName";
        attr client_name: Option<Box<str>> = "clientName";
        attr connect_ports: Option<Box<str>> = "connectPorts";
        attr exact_name: Option<YesNo> = "exactName";
        attr name: Option<Box<str>> = "name";
        attr stream_name: Option<Box<str>> = "streamName";
        attr latency_us: Option<u32> = "latency";
        child settings: Option<AudioSettings> = "settings";
    }
}

xml! {
    pub struct AudioSettings {
        attr frequency_hz: Option<u32> = "frequency";
        attr channels: Option<u32> = "channels";
        attr format: Option<AudioFormat> = "format";
    }
}

xml_enum! {
    pub enum AudioFormat {
        U8 = "u8",
        S8 = "s8",
        U16 = "u16",
        S16 = "s16",
        U32 = "u32",
        S32 = "s32",
        F32 = "f32",
    }
}

impl Audio {
    pub fn new(id: u32, kind: AudioKind) -> Self {
        Self {
            id,
            kind,
            timer_period_us: None,
            try_mmap: None,
            exclusive: None,
            dsp_policy: None,
            path: None,
            server_name: None,
            driver: None,
            runtime_dir: None,
            input: None,
            output: None,
        }
    }
}
