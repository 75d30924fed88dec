//! `<graphics>`: how a user sees the guest's screen.

use super::raw::Raw;
use super::screens::{Dbus, EglHeadless, Sdl, Spice};
use crate::conf::xml::{Element, Form, Part, Value, Writer, YesNo, xml_enum};
use crate::conf::{ConfError, Result};

#[derive(Debug, Clone, PartialEq)]
pub enum Graphics {
    Vnc(Box<Vnc>),
    Spice(Box<Spice>),
    Sdl(Box<Sdl>),
    EglHeadless(Box<EglHeadless>),
    Dbus(Box<Dbus>),
    /// Kinds that are kept but not understood; `type` is among the attributes.
    Other(GraphicsKind, Box<Raw>),
}

xml_enum! {
    pub enum GraphicsKind {
        Sdl = "sdl",
        Vnc = "vnc",
        Rdp = "rdp",
        Desktop = "desktop",
        Spice = "spice",
        EglHeadless = "egl-headless",
        Dbus = "dbus",
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vnc {
    /// 0: not chosen yet. While the guest runs: the port it listens on.
    pub port: i32,
    pub autoport: bool,
    /// 0: none. -1: to be chosen.
    pub websocket: i32,
    pub websocket_generated: bool,
    pub keymap: Option<Box<str>>,
    pub share_policy: Option<SharePolicy>,
    pub power_control: Option<YesNo>,
    pub auth: Option<Box<GraphicsAuth>>,
    /// At least one.
    pub listens: Vec<Listen>,
    /// The `id` of an `<audio>`.
    pub audio: Option<u32>,
}

xml_enum! {
    pub enum SharePolicy {
        AllowExclusive = "allow-exclusive",
        ForceShared = "force-shared",
        Ignore = "ignore",
    }
}

/// Who may look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphicsAuth {
    pub username: Option<Box<str>>,
    pub passwd: Box<str>,
    pub valid_to: Option<DateTime>,
    /// What happens to connected clients when the password changes.
    pub connected: Option<AuthConnected>,
}

xml_enum! {
    pub enum AuthConnected {
        Fail = "fail",
        Disconnect = "disconnect",
        Keep = "keep",
    }
}

/// A moment in UTC, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    pub year: u32,
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl DateTime {
    /// Seconds since 1970.
    pub fn unix_s(&self) -> i64 {
        // Years that begin in March have their leap day at the end.
        let (year, month) = match self.month {
            1 | 2 => (i64::from(self.year) - 1, i64::from(self.month) + 9),
            month => (i64::from(self.year), i64::from(month) - 3),
        };
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * 86_400 + time
    }
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub place: ListenPlace,
    /// The address is the daemon's default, not the definition's.
    pub from_config: bool,
    /// The socket's path is the daemon's, not the definition's.
    pub auto_generated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenPlace {
    None,
    Address {
        address: Option<Box<str>>,
    },
    Network {
        network: Option<Box<str>>,
        /// The network's address while the guest runs.
        address: Option<Box<str>>,
    },
    Socket {
        socket: Option<Box<str>>,
    },
}

impl Value for DateTime {
    fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.split_once('T')?;
        let numbers = |text: &str, separator: char| -> Option<[u32; 3]> {
            let mut numbers = text.split(separator).map(|number| number.parse().ok());
            let three = [numbers.next()??, numbers.next()??, numbers.next()??];
            numbers.next().is_none().then_some(three)
        };
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(time, ':')?;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let valid = (1..=9999).contains(&year)
            && (1..=days).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        valid.then_some(Self { year, month, day, hour, minute, second })
    }

    fn print(&self, out: &mut String) {
        use std::fmt::Write as _;
        let Self { year, month, day, hour, minute, second } = self;
        let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    }
}

impl Part for Graphics {
    fn read(element: Element<'_>) -> Result<Self> {
        match element.required("type")? {
            GraphicsKind::Vnc => Ok(Self::Vnc(Box::new(Vnc::read(element)?))),
            GraphicsKind::Spice => Ok(Self::Spice(Box::new(Spice::read(element)?))),
            GraphicsKind::Sdl => Ok(Self::Sdl(Part::read(element)?)),
            GraphicsKind::EglHeadless => Ok(Self::EglHeadless(Part::read(element)?)),
            GraphicsKind::Dbus => Ok(Self::Dbus(Part::read(element)?)),
            kind => Ok(Self::Other(kind, Box::new(Raw::read(element)?))),
        }
    }

    fn write_attributes(&self, out: &mut Writer) {
        match self {
            Self::Vnc(vnc) => return vnc.write_attributes(out),
            Self::Spice(spice) => return spice.write_attributes(out),
            Self::Other(_, raw) => return raw.write_attributes(out),
            Self::Sdl(_) | Self::EglHeadless(_) | Self::Dbus(_) => {}
        }
        out.attribute("type", &self.kind());
        match self {
            Self::Sdl(sdl) => sdl.write_attributes(out),
            Self::Dbus(dbus) => dbus.write_attributes(out),
            _ => {}
        }
    }

    fn write_children(&self, out: &mut Writer) {
        match self {
            Self::Vnc(vnc) => vnc.write_children(out),
            Self::Spice(spice) => spice.write_children(out),
            Self::Sdl(sdl) => sdl.write_children(out),
            Self::EglHeadless(headless) => headless.write_children(out),
            Self::Dbus(dbus) => dbus.write_children(out),
            Self::Other(_, raw) => raw.write_children(out),
        }
    }
}

impl Graphics {
    pub fn kind(&self) -> GraphicsKind {
        match self {
            Self::Vnc(_) => GraphicsKind::Vnc,
            Self::Spice(_) => GraphicsKind::Spice,
            Self::Sdl(_) => GraphicsKind::Sdl,
            Self::EglHeadless(_) => GraphicsKind::EglHeadless,
            Self::Dbus(_) => GraphicsKind::Dbus,
            Self::Other(kind, _) => *kind,
        }
    }
}

impl Vnc {
    /// The listener that the attributes of `<graphics>` speak of.
    pub fn listen(&self) -> Option<&Listen> {
        self.listens.first()
    }

    fn read(element: Element<'_>) -> Result<Self> {
        let live = element.form().contains(Form::LIVE);
        let mut vnc = Self { listens: read_listens(element)?, ..Self::default() };
        match element.attribute("port") {
            Some(text) => {
                vnc.port = i32::parse(text)
                    .ok_or_else(|| ConfError::internal(format!("cannot parse vnc port {text}")))?;
                vnc.autoport = vnc.port == -1;
            }
            None => vnc.autoport = true,
        }
        match element.attribute("autoport") {
            Some("yes") => vnc.autoport = true,
            Some("no") => vnc.autoport = false,
            _ => {}
        }
        if vnc.autoport && !live {
            vnc.port = 0;
        }
        vnc.websocket = element.value("websocket")?.unwrap_or(0);
        vnc.websocket_generated = element.attribute("websocketGenerated") == Some("yes");
        vnc.share_policy = element.value("sharePolicy")?;
        vnc.power_control = element.value("powerControl")?;
        vnc.keymap = element.attribute("keymap").map(Into::into);
        vnc.audio = element.child("audio").map(|audio| audio.required("id")).transpose()?;
        vnc.auth = read_auth(element)?.map(Box::new);
        Ok(vnc)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("type", "vnc");
        match self.listen().map(|listen| (listen, &listen.place)) {
            Some((listen, ListenPlace::Socket { socket: Some(socket) })) => {
                let ours = listen.auto_generated || listen.from_config;
                if !(ours && out.form().contains(Form::MIGRATABLE)) {
                    out.attribute("socket", socket);
                }
            }
            Some((listen, ListenPlace::Address { .. } | ListenPlace::Network { .. })) => {
                self.write_ports(out);
                listen.write_address(out);
            }
            _ => {}
        }
        write_optional(out, "keymap", &self.keymap);
        write_optional(out, "sharePolicy", &self.share_policy);
        write_optional(out, "powerControl", &self.power_control);
        AuthAttributes(self.auth.as_deref()).write(out);
    }

    fn write_ports(&self, out: &mut Writer) {
        let live = out.form().contains(Form::LIVE);
        if self.port != 0 && (!self.autoport || live) {
            out.attribute("port", &self.port);
        } else if self.autoport {
            out.attribute("port", &-1i32);
        }
        out.attribute_str("autoport", if self.autoport { "yes" } else { "no" });
        if self.websocket_generated && !live {
            out.attribute("websocket", &-1i32);
        } else if self.websocket != 0 {
            out.attribute("websocket", &self.websocket);
        }
        if out.form().contains(Form::STATUS) {
            out.attribute_str("websocketGenerated", if self.websocket_generated { "yes" } else { "no" });
        }
    }

    fn write_children(&self, out: &mut Writer) {
        for listen in &self.listens {
            listen.write(out);
        }
        if let Some(id) = &self.audio {
            out.element("audio", |out| out.attribute("id", id));
        }
    }
}

/// The attributes that say who may look.
pub(super) struct AuthAttributes<'a>(pub(super) Option<&'a GraphicsAuth>);

impl AuthAttributes<'_> {
    pub(super) fn write(&self, out: &mut Writer) {
        let Some(auth) = self.0 else { return };
        write_optional(out, "username", &auth.username);
        if out.form().contains(Form::SECURE) {
            out.attribute("passwd", &auth.passwd);
        }
        write_optional(out, "passwdValidTo", &auth.valid_to);
        write_optional(out, "connected", &auth.connected);
    }
}

impl Listen {
    pub fn new(place: ListenPlace) -> Self {
        Self { place, from_config: false, auto_generated: false }
    }

    /// The attribute of `<graphics>` that says it once more, for old clients.
    pub(super) fn write_address(&self, out: &mut Writer) {
        let form = out.form();
        let (address, shown) = match &self.place {
            ListenPlace::Address { address } => (address, true),
            ListenPlace::Network { address, .. } => {
                (address, form.contains(Form::LIVE) && !form.contains(Form::MIGRATABLE))
            }
            ListenPlace::None | ListenPlace::Socket { .. } => return,
        };
        if let (Some(address), true) = (address, shown && self.is_written(out)) {
            out.attribute("listen", address);
        }
    }

    /// What the daemon chose itself means nothing on another host.
    fn is_written(&self, out: &Writer) -> bool {
        !(self.from_config && out.form().contains(Form::MIGRATABLE))
    }

    pub(super) fn write(&self, out: &mut Writer) {
        let form = out.form();
        if !self.is_written(out) {
            return;
        }
        let migratable = form.contains(Form::MIGRATABLE);
        if let (ListenPlace::Socket { socket: Some(_) }, true, false) =
            (&self.place, migratable, self.auto_generated)
        {
            // The attribute of <graphics> says it already, and says it to old versions as well.
            return;
        }
        out.element("listen", |out| {
            match &self.place {
                ListenPlace::None => out.attribute_str("type", "none"),
                ListenPlace::Address { address } => {
                    out.attribute_str("type", "address");
                    write_optional(out, "address", address);
                }
                ListenPlace::Network { network, address } => {
                    out.attribute_str("type", "network");
                    if form.contains(Form::LIVE) {
                        write_optional(out, "address", address);
                    }
                    write_optional(out, "network", network);
                }
                ListenPlace::Socket { socket } => {
                    out.attribute_str("type", "socket");
                    if !(self.auto_generated && migratable) {
                        write_optional(out, "socket", socket);
                    }
                }
            }
            if form.contains(Form::STATUS) {
                out.attribute_str("fromConfig", if self.from_config { "1" } else { "0" });
                out.attribute_str("autoGenerated", if self.auto_generated { "yes" } else { "no" });
            }
        });
    }
}

/// The `<listen>` elements; attributes of `<graphics>` stand for the first one.
pub(super) fn read_listens(graphics: Element<'_>) -> Result<Vec<Listen>> {
    let mut listens = Vec::new();
    for element in graphics.children_named("listen") {
        let parent = listens.is_empty().then_some(graphics);
        listens.push(read_listen(element, parent)?);
    }
    // Only VNC has it.
    let socket = graphics.attribute("socket").filter(|_| graphics.attribute("type") == Some("vnc"));
    match (listens.first_mut(), socket) {
        (None, Some(socket)) => {
            listens.push(Listen::new(ListenPlace::Socket { socket: Some(socket.into()) }))
        }
        (None, None) => {
            let address = graphics.attribute("listen").filter(|address| !address.is_empty());
            listens.push(Listen::new(ListenPlace::Address { address: address.map(Into::into) }));
        }
        (Some(first), Some(socket))
            if matches!(first.place, ListenPlace::Address { .. } | ListenPlace::Network { .. }) =>
        {
            *first = Listen::new(ListenPlace::Socket { socket: Some(socket.into()) });
        }
        _ => {}
    }
    Ok(listens)
}

xml_enum! {
    /// How clients reach the screen.
    pub enum ListenKind {
        None = "none",
        Address = "address",
        Network = "network",
        Socket = "socket",
    }
}

fn read_listen(element: Element<'_>, parent: Option<Element<'_>>) -> Result<Listen> {
    let form = element.form();
    let given = |name: &str| element.attribute(name).filter(|text| !text.is_empty());
    let kind = element.required("type")?;
    for (name, meant) in [("network", ListenKind::Network), ("socket", ListenKind::Socket)] {
        if given(name).is_some() && kind != meant {
            return Err(ConfError::xml(format!("'{name}' attribute is valid only for listen type '{name}'")));
        }
    }
    // The attribute of the parent may repeat the element's, not contradict it.
    let shared = |parent_name: &str, name: &str| -> Result<Option<Box<str>>> {
        let above = parent.and_then(|parent| parent.attribute(parent_name));
        match (element.attribute(name), above) {
            (Some(here), Some(above)) if here != above => Err(ConfError::unsupported(format!(
                "graphics '{parent_name}' attribute '{above}' must match '{name}' attribute of first listen \
                 element (found '{here}')"
            ))),
            (here, above) => Ok(here.or(above).filter(|text| !text.is_empty()).map(Into::into)),
        }
    };
    let place = match kind {
        ListenKind::None => ListenPlace::None,
        ListenKind::Address => ListenPlace::Address { address: shared("listen", "address")? },
        ListenKind::Socket => ListenPlace::Socket { socket: shared("socket", "socket")? },
        ListenKind::Network => ListenPlace::Network {
            network: given("network").map(Into::into),
            address: given("address").filter(|_| form.contains(Form::LIVE)).map(Into::into),
        },
    };
    let mut listen = Listen::new(place);
    if form.contains(Form::STATUS) {
        listen.from_config = given("fromConfig").is_some_and(|text| text != "0");
        listen.auto_generated = given("autoGenerated") == Some("yes");
    }
    Ok(listen)
}

pub(super) fn read_auth(element: Element<'_>) -> Result<Option<GraphicsAuth>> {
    let Some(passwd) = element.attribute("passwd") else { return Ok(None) };
    let connected = match element.attribute("connected") {
        None => None,
        Some("keep") => Some(AuthConnected::Keep),
        Some("fail") if element.attribute("type") == Some("spice") => Some(AuthConnected::Fail),
        Some("disconnect") if element.attribute("type") == Some("spice") => Some(AuthConnected::Disconnect),
        Some("fail" | "disconnect") => {
            return Err(ConfError::unsupported("VNC supports connected='keep' only"));
        }
        Some(word) => return Err(ConfError::unsupported(format!("unknown connected value {word}"))),
    };
    Ok(Some(GraphicsAuth {
        username: element.attribute("username").map(Into::into),
        passwd: passwd.into(),
        valid_to: element.attribute("passwdValidTo").map(read_moment).transpose()?,
        connected,
    }))
}

fn read_moment(text: &str) -> Result<DateTime> {
    DateTime::parse(text).ok_or_else(|| {
        ConfError::internal(format!(
            "cannot parse password validity time '{text}', expect YYYY-MM-DDTHH:MM:SS"
        ))
    })
}

fn write_optional<V: Value>(out: &mut Writer, name: &str, value: &Option<V>) {
    if let Some(value) = value {
        out.attribute(name, value);
    }
}
