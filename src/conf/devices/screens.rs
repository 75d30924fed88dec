//! The other ways to see a guest's screen: SPICE, and windows of the host.

use super::graphics::{AuthAttributes, GraphicsAuth, Listen, ListenPlace, read_auth, read_listens};
use crate::conf::Result;
use crate::conf::xml::{Element, Form, OnOff, Part, Writer, YesNo, xml, xml_enum};

/// `<graphics type='spice'>`
#[derive(Debug, Clone, PartialEq)]
pub struct Spice {
    /// 0: not chosen yet; -1: to be chosen.
    pub port: i32,
    pub tls_port: i32,
    pub autoport: bool,
    pub keymap: Option<Box<str>>,
    pub default_mode: Option<SpiceMode>,
    pub auth: Option<Box<GraphicsAuth>>,
    /// At least one.
    pub listens: Vec<Listen>,
    pub options: SpiceOptions,
}

xml! {
    #[derive(Default)]
    pub struct SpiceOptions {
        child channels: Vec<SpiceChannel> = "channel";
        child_attr image: Option<ImageCompression> = "image" / "compression";
        child_attr jpeg: Option<WanCompression> = "jpeg" / "compression";
        child_attr zlib: Option<WanCompression> = "zlib" / "compression";
        child_attr playback: Option<OnOff> = "playback" / "compression";
        child_attr streaming: Option<StreamingMode> = "streaming" / "mode";
        child_attr mouse: Option<MouseMode> = "mouse" / "mode";
        child_attr copy_paste: Option<YesNo> = "clipboard" / "copypaste";
        child_attr file_transfer: Option<YesNo> = "filetransfer" / "enable";
        child gl: Option<Gl> = "gl";
    }
}

xml! {
    /// Whether one kind of traffic is encrypted.
    #[derive(Copy, Eq)]
    pub struct SpiceChannel {
        attr name: SpiceChannelName = "name";
        attr mode: SpiceMode = "mode";
    }
}

xml_enum! {
    pub enum SpiceChannelName {
        Main = "main",
        Display = "display",
        Inputs = "inputs",
        Cursor = "cursor",
        Playback = "playback",
        Record = "record",
        Smartcard = "smartcard",
        Usbredir = "usbredir",
    }
}

xml_enum! {
    pub enum SpiceMode {
        Any = "any",
        Secure = "secure",
        Insecure = "insecure",
    }
}

xml_enum! {
    pub enum ImageCompression {
        AutoGlz = "auto_glz",
        AutoLz = "auto_lz",
        Quic = "quic",
        Glz = "glz",
        Lz = "lz",
        Off = "off",
    }
}

xml_enum! {
    pub enum WanCompression {
        Auto = "auto",
        Never = "never",
        Always = "always",
    }
}

xml_enum! {
    pub enum StreamingMode {
        Filter = "filter",
        All = "all",
        Off = "off",
    }
}

xml_enum! {
    pub enum MouseMode {
        Server = "server",
        Client = "client",
    }
}

xml! {
    /// Drawing by the host's graphics card.
    #[derive(Default)]
    pub struct Gl {
        attr enable: Option<YesNo> = "enable";
        attr rendernode: Option<Box<str>> = "rendernode";
    }
}

xml! {
    /// A window on the host's X display.
    #[derive(Default)]
    pub struct Sdl {
        attr display: Option<Box<str>> = "display";
        attr xauth: Option<Box<str>> = "xauth";
        attr fullscreen: Option<YesNo> = "fullscreen";
        child gl: Option<Gl> = "gl";
    }
}

xml! {
    /// The host's graphics card draws, another kind of screen shows it.
    #[derive(Default)]
    pub struct EglHeadless {
        child gl: Option<Gl> = "gl";
    }
}

xml! {
    /// A screen on a message bus.
    #[derive(Default)]
    pub struct Dbus {
        attr p2p: Option<YesNo> = "p2p";
        attr address: Option<Box<str>> = "address";
        child gl: Option<Gl> = "gl";
        /// The `id` of an `<audio>`.
        child_attr audio: Option<u32> = "audio" / "id";
    }
}

impl Spice {
    /// The listener that the attributes of `<graphics>` speak of.
    pub fn listen(&self) -> Option<&Listen> {
        self.listens.first()
    }

    pub(super) fn read(element: Element<'_>) -> Result<Self> {
        let mut options = SpiceOptions::read(element)?;
        // The last word on a channel counts, and a channel that may be either needs none.
        let channels = &mut options.channels;
        channels.reverse();
        channels.sort_by_key(|channel| channel.name);
        channels.dedup_by_key(|channel| channel.name);
        channels.retain(|channel| channel.mode != SpiceMode::Any);
        let mut spice = Self {
            port: element.value("port")?.unwrap_or(0),
            tls_port: element.value("tlsPort")?.unwrap_or(0),
            autoport: element.value("autoport")? == Some(YesNo::Yes),
            keymap: element.value("keymap")?,
            default_mode: element.value("defaultMode")?.filter(|mode| *mode != SpiceMode::Any),
            auth: read_auth(element)?.map(Box::new),
            listens: read_listens(element)?,
            options,
        };
        spice.autoport |= spice.port == -1 && spice.tls_port == -1;
        if spice.autoport && !element.form().contains(Form::LIVE) {
            (spice.port, spice.tls_port) = (0, 0);
        }
        // Without ports there is nothing to listen on; the screen is for whoever is handed a socket.
        let on_network = |listen: &Listen| {
            matches!(listen.place, ListenPlace::Address { .. } | ListenPlace::Network { .. })
        };
        if spice.port == 0
            && spice.tls_port == 0
            && !spice.autoport
            && let Some(first) = spice.listens.first_mut().filter(|listen| on_network(listen))
        {
            *first = Listen::new(ListenPlace::None);
        }
        Ok(spice)
    }

    pub(super) fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("type", "spice");
        let migratable = out.form().contains(Form::MIGRATABLE);
        if let Some(listen) = self.listen() {
            match &listen.place {
                ListenPlace::Address { .. } | ListenPlace::Network { .. } => {
                    if self.port != 0 {
                        out.attribute("port", &self.port);
                    }
                    if self.tls_port != 0 {
                        out.attribute("tlsPort", &self.tls_port);
                    }
                    out.attribute_str("autoport", if self.autoport { "yes" } else { "no" });
                    listen.write_address(out);
                }
                ListenPlace::None if migratable => out.attribute_str("autoport", "no"),
                ListenPlace::Socket { .. } if migratable && listen.from_config => {
                    out.attribute_str("autoport", "yes");
                }
                ListenPlace::None | ListenPlace::Socket { .. } => {}
            }
        }
        if let Some(keymap) = &self.keymap {
            out.attribute("keymap", keymap);
        }
        if let Some(mode) = &self.default_mode {
            out.attribute("defaultMode", mode);
        }
        AuthAttributes(self.auth.as_deref()).write(out);
    }

    pub(super) fn write_children(&self, out: &mut Writer) {
        self.listens.iter().for_each(|listen| listen.write(out));
        self.options.write_children(out);
    }
}
