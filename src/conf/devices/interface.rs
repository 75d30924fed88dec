//! `<interface>`: network cards.

use super::bandwidth::Bandwidth;
use super::chardev::Reconnect;
use super::hostdev::{AddressType, HostdevSource, Teaming};
use super::info::{DeviceInfo, VirtioOptions};
use super::raw::Raw;
use crate::conf::xml::{Element, Form, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::mac::Mac;

xml! {
    pub struct Interface {
        attr kind: InterfaceKind = "type", or InterfaceKind::User;
        /// Of interfaces that are devices of the host.
        attr managed: Option<YesNo> = "managed";
        attr trust_guest_rx_filters: Option<YesNo> = "trustGuestRxFilters";
        group mac: MacAddress = "mac";
        flat source: InterfaceSource;
        child vlan: Option<Box<Raw>> = "vlan";
        child virtualport: Option<Box<Raw>> = "virtualport";
        group bandwidth: Bandwidth = "bandwidth";
        child port: Option<Box<Raw>> = "port";
        child ips: Vec<IpAddress> = "ip";
        child routes: Vec<Raw> = "route";
        child port_forwards: Vec<Raw> = "portForward";
        child_attr script: Option<Box<str>> = "script" / "path";
        child_attr downscript: Option<Box<str>> = "downscript" / "path";
        child_attr backend_domain: Option<Box<str>> = "backenddomain" / "name";
        group target: InterfaceTarget = "target";
        child guest: Option<Box<Raw>> = "guest";
        flat model: InterfaceModel;
        group backend: InterfaceBackend = "backend";
        child filterref: Option<Box<Raw>> = "filterref";
        group tune: InterfaceTune = "tune";
        child teaming: Option<Box<Teaming>> = "teaming";
        child link: Option<LinkState> = "link";
        child_attr mtu: Option<u32> = "mtu" / "size";
        group coalesce: Coalesce = "coalesce";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum InterfaceKind {
        User = "user",
        Ethernet = "ethernet",
        Vhostuser = "vhostuser",
        Server = "server",
        Client = "client",
        Mcast = "mcast",
        Network = "network",
        Bridge = "bridge",
        Internal = "internal",
        Direct = "direct",
        Hostdev = "hostdev",
        Udp = "udp",
        Vdpa = "vdpa",
        Null = "null",
        Vds = "vds",
    }
}

/// The guest's side's address and how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MacAddress {
    /// One is made up where the definition has none.
    pub address: Option<Mac>,
    pub kind: Option<MacKind>,
    pub check: Option<YesNo>,
}

xml_enum! {
    pub enum MacKind {
        Generated = "generated",
        Static = "static",
    }
}

impl Part for MacAddress {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut address = None;
        if let Some(text) = element.attribute("address") {
            let mac: Mac =
                text.parse().map_err(|_| ConfError::xml(format!("unable to parse mac address '{text}'")))?;
            if mac.is_multicast() {
                return Err(ConfError::xml(format!(
                    "expected unicast mac address, found multicast '{text}'"
                )));
            }
            address = Some(mac).filter(|mac| *mac != Mac([0; 6]));
        }
        Ok(Self { address, kind: element.value("type")?, check: element.value("check")? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        if let Some(address) = &self.address {
            out.attribute_str("address", &address.to_string());
        }
        if let Some(kind) = &self.kind {
            out.attribute("type", kind);
        }
        if let Some(check) = &self.check {
            out.attribute("check", check);
        }
    }
}

/// What the card is connected to: `<source>` as the kind of interface has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum InterfaceSource {
    /// `user`, `ethernet`, `null`: nothing to name.
    #[default]
    None,
    Bridge {
        bridge: Box<str>,
    },
    Network(Box<NetworkSource>),
    /// A card of the host.
    Hostdev(Box<HostdevSource>),
    /// Packets through sockets of QEMU: `client`, `server`, `mcast`, `udp`.
    Socket(Box<SocketSource>),
    /// Another process of the host moves the packets.
    VhostUser(Box<VhostUserNet>),
    /// A device of the host that speaks virtio itself.
    Vdpa(Box<str>),
    /// The host's device that passt uses.
    Passt(Box<str>),
    /// Kinds that are kept but not understood.
    Other(Option<Box<Raw>>),
}

xml! {
    pub struct NetworkSource {
        attr network: Box<str> = "network";
        attr portgroup: Option<Box<str>> = "portgroup";
        attr(live) portid: Option<Box<str>> = "portid";
    }
}

/// Where packets are sent and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSource {
    pub address: Option<Box<str>>,
    pub port: i32,
    pub local: Option<(Box<str>, i32)>,
}

impl SocketSource {
    fn read(source: Element<'_>, kind: InterfaceKind) -> Result<Self> {
        let address = match kind {
            InterfaceKind::Server => source.attribute("address").map(Into::into),
            _ => Some(source.required("address")?),
        };
        let local = match source.child("local") {
            Some(local) if kind == InterfaceKind::Udp => {
                Some((local.required("address")?, local.required("port")?))
            }
            None if kind == InterfaceKind::Udp => {
                let message = "'<local>' element missing for 'udp' socket interface";
                return Err(ConfError::xml(message));
            }
            _ => None,
        };
        Ok(Self { address, port: source.required("port")?, local })
    }

    fn write(&self, out: &mut Writer) {
        out.element("source", |out| {
            if let Some(address) = &self.address {
                out.attribute("address", address);
            }
            out.attribute("port", &self.port);
            if let Some((address, port)) = &self.local {
                out.element("local", |out| {
                    out.attribute("address", address);
                    out.attribute("port", port);
                });
            }
        });
    }
}

/// The socket of the process that moves a card's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserNet {
    /// Nothing where passt makes it.
    pub path: Option<Box<str>>,
    pub mode: VhostUserMode,
    pub reconnect: Option<Reconnect>,
}

xml_enum! {
    /// Whether QEMU waits for the process or the other way round.
    #[derive(Default)]
    pub enum VhostUserMode {
        #[default]
        Client = "client",
        Server = "server",
    }
}

impl VhostUserNet {
    fn read(source: Option<Element<'_>>) -> Result<Self> {
        let Some(source) = source else {
            return Ok(Self { path: None, mode: VhostUserMode::Client, reconnect: None });
        };
        if let Some(kind) = source.attribute("type").filter(|kind| *kind != "unix") {
            return Err(ConfError::unsupported(format!(
                "Type='{kind}' unsupported for <interface type='vhostuser'>"
            )));
        }
        Ok(Self {
            path: source.attribute("path").map(Into::into),
            mode: source.value("mode")?.unwrap_or_default(),
            reconnect: source.child("reconnect").map(Reconnect::read).transpose()?,
        })
    }

    fn write(&self, out: &mut Writer) {
        let Some(path) = &self.path else { return };
        out.element("source", |out| {
            out.attribute_str("type", "unix");
            out.attribute("path", path);
            out.attribute("mode", &self.mode);
            if let Some(reconnect) = &self.reconnect {
                Part::write(reconnect, out, "reconnect");
            }
        });
    }
}

impl Part for InterfaceSource {
    fn read(element: Element<'_>) -> Result<Self> {
        let kind = element.value("type")?.unwrap_or(InterfaceKind::User);
        let source = element.child("source");
        let required = || {
            source
                .ok_or_else(|| ConfError::xml(format!("interface type='{kind}' requires a 'source' element")))
        };
        Ok(match kind {
            InterfaceKind::User | InterfaceKind::Vhostuser if uses_passt(element) => {
                match source.and_then(|source| source.attribute("dev")) {
                    Some(dev) => Self::Passt(dev.into()),
                    None => Self::None,
                }
            }
            InterfaceKind::User | InterfaceKind::Ethernet | InterfaceKind::Null => match source {
                // The host's end of it may have addresses.
                Some(source) if source.children().next().is_some() || source.attribute("dev").is_some() => {
                    Self::Other(Some(Box::new(Raw::read(source)?)))
                }
                _ => Self::None,
            },
            InterfaceKind::Bridge => Self::Bridge { bridge: required()?.required("bridge")? },
            InterfaceKind::Network => Self::Network(Box::new(NetworkSource::read(required()?)?)),
            InterfaceKind::Hostdev => {
                Self::Hostdev(Box::new(HostdevSource::read_network(element, required()?)?))
            }
            InterfaceKind::Vhostuser => Self::VhostUser(Box::new(VhostUserNet::read(source)?)),
            InterfaceKind::Server | InterfaceKind::Client | InterfaceKind::Mcast | InterfaceKind::Udp => {
                Self::Socket(Box::new(SocketSource::read(required()?, kind)?))
            }
            InterfaceKind::Vdpa => Self::Vdpa(required()?.required("dev")?),
            InterfaceKind::Internal | InterfaceKind::Direct | InterfaceKind::Vds => {
                let source = required()?;
                if kind == InterfaceKind::Direct {
                    source.required::<Box<str>>("dev")?;
                }
                let mut raw = Raw::read(source)?;
                if kind == InterfaceKind::Direct && raw.attribute("mode").is_none() {
                    raw.set_attribute("mode", "vepa");
                }
                Self::Other(Some(Box::new(raw)))
            }
        })
    }

    fn write_children(&self, out: &mut Writer) {
        match self {
            Self::None => {}
            Self::Bridge { bridge } => out.element("source", |out| out.attribute("bridge", bridge)),
            Self::Network(network) => Part::write(network, out, "source"),
            Self::Hostdev(device) => device.write(out, AddressType::Named),
            Self::Socket(socket) => socket.write(out),
            Self::VhostUser(socket) => socket.write(out),
            Self::Vdpa(device) | Self::Passt(device) => {
                out.element("source", |out| out.attribute("dev", device));
            }
            Self::Other(raw) => {
                if let Some(raw) = raw {
                    Part::write(raw, out, "source");
                }
            }
        }
    }
}

/// Whether passt moves the packets, whatever the kind.
fn uses_passt(element: Element<'_>) -> bool {
    element.child("backend").and_then(|backend| backend.attribute("type")) == Some("passt")
}

/// An address of the guest's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpAddress {
    pub address: std::net::IpAddr,
    pub prefix: Option<u32>,
    pub peer: Option<std::net::IpAddr>,
}

impl Part for IpAddress {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(text) = element.attribute("address") else {
            return Err(ConfError::xml("Missing required address in <ip>"));
        };
        let parse = |text: &str| {
            text.parse().map_err(|_| ConfError::xml(format!("Invalid address '{text}' in <ip>")))
        };
        let address: std::net::IpAddr = parse(text)?;
        let family = if address.is_ipv6() { "ipv6" } else { "ipv4" };
        if element.attribute("family").is_some_and(|given| given != family) {
            return Err(ConfError::xml(format!("Invalid address '{text}' in <ip>")));
        }
        let prefix = element.value("prefix")?;
        if prefix.is_some_and(|prefix: u32| prefix > if address.is_ipv6() { 128 } else { 32 }) {
            return Err(ConfError::xml(format!("Invalid prefix value '{}' for <ip>", prefix.unwrap_or(0))));
        }
        Ok(Self { address, prefix, peer: element.attribute("peer").map(parse).transpose()? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("address", &self.address.to_string());
        out.attribute_str("family", if self.address.is_ipv6() { "ipv6" } else { "ipv4" });
        if let Some(prefix) = self.prefix.filter(|prefix| *prefix != 0) {
            out.attribute("prefix", &prefix);
        }
        if let Some(peer) = &self.peer {
            out.attribute_str("peer", &peer.to_string());
        }
    }
}

/// The host's end: a network device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceTarget {
    pub dev: Option<Box<str>>,
    /// Whether the daemon creates the device; else it must exist.
    pub managed: Option<YesNo>,
}

impl InterfaceTarget {
    /// Beginnings of the names that the daemon makes up.
    const GENERATED: [&'static str; 3] = ["vnet", "macvtap", "macvlan"];

    fn is_generated(&self) -> bool {
        let generated = |dev: &str| Self::GENERATED.iter().any(|prefix| dev.starts_with(prefix));
        self.managed != Some(YesNo::No) && self.dev.as_deref().is_some_and(generated)
    }
}

impl Part for InterfaceTarget {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut target =
            Self { dev: element.attribute("dev").map(Into::into), managed: element.value("managed")? };
        if !element.form().contains(Form::LIVE) && target.is_generated() {
            target.dev = None;
        }
        Ok(target)
    }

    fn write_attributes(&self, out: &mut Writer) {
        match &self.dev {
            Some(dev) if out.form().contains(Form::LIVE) || !self.is_generated() => out.attribute("dev", dev),
            _ => {}
        }
        if let Some(managed) = &self.managed {
            out.attribute("managed", managed);
        }
    }
}

/// `<model>` and what only virtio cards have.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InterfaceModel {
    pub name: Option<ModelName>,
    pub driver: Box<VirtioNetDriver>,
}

macro_rules! models {
    ($($variant:ident $word:literal,)*) => {
        /// The card the guest sees.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum ModelName {
            $($variant,)*
            /// A QEMU device that libvirt has no name for.
            Other(Box<str>),
        }

        impl ModelName {
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(name) => name,
                }
            }

            /// The model of that name; upper and lower case do not matter.
            pub fn from_word(word: &str) -> Self {
                $(if word.eq_ignore_ascii_case($word) {
                    return Self::$variant;
                })*
                Self::Other(word.into())
            }
        }
    };
}

models! {
    Netfront "netfront",
    Rtl8139 "rtl8139",
    Virtio "virtio",
    E1000 "e1000",
    E1000e "e1000e",
    Igb "igb",
    VirtioTransitional "virtio-transitional",
    VirtioNonTransitional "virtio-non-transitional",
    UsbNet "usb-net",
    SpaprVlan "spapr-vlan",
    Lan9118 "lan9118",
    Scm91c111 "scm91c111",
    Vlance "vlance",
    Vmxnet "vmxnet",
    Vmxnet2 "vmxnet2",
    Vmxnet3 "vmxnet3",
    Am79c970a "Am79C970A",
    Am79c973 "Am79C973",
    I82540em "82540EM",
    I82545em "82545EM",
    I82543gc "82543GC",
}

impl ModelName {
    pub fn is_virtio(&self) -> bool {
        matches!(self, Self::Virtio | Self::VirtioTransitional | Self::VirtioNonTransitional)
    }
}

impl Part for InterfaceModel {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = match element.child("model").and_then(|model| model.attribute("type")) {
            None | Some("") => None,
            Some(word) => {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                if !word.bytes().all(legal) {
                    return Err(ConfError::invalid_arg("Model name contains invalid characters"));
                }
                Some(ModelName::from_word(word))
            }
        };
        let mut driver = Box::<VirtioNetDriver>::default();
        // The driver of a host's card is the host's.
        let is_hostdev = element.attribute("type") == Some(InterfaceKind::Hostdev.as_str());
        if let Some(child) = element.child("driver").filter(|_| !is_hostdev) {
            if name.as_ref().is_some_and(ModelName::is_virtio) {
                *driver = VirtioNetDriver::read(child)?;
                // There is always one pair of queues.
                driver.queues = if driver.queues == 1 { 0 } else { driver.queues };
            } else {
                driver.virtio = VirtioOptions::read(child)?;
            }
        }
        Ok(Self { name, driver })
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(name) = &self.name {
            out.element("model", |out| out.attribute_str("type", name.as_str()));
            if name.is_virtio() {
                self.driver.write_group(out, "driver");
            }
        }
    }
}

xml! {
    #[derive(Default)]
    pub struct VirtioNetDriver {
        attr name: Option<NetDriver> = "name";
        attr txmode: Option<TxMode> = "txmode";
        attr ioeventfd: Option<OnOff> = "ioeventfd";
        attr event_idx: Option<OnOff> = "event_idx";
        attr(omit) queues: u32 = "queues", or 0;
        attr(omit) rx_queue_size: u32 = "rx_queue_size", or 0;
        attr(omit) tx_queue_size: u32 = "tx_queue_size", or 0;
        attr rss: Option<OnOff> = "rss";
        attr rss_hash_report: Option<OnOff> = "rss_hash_report";
        flat virtio: VirtioOptions;
        group host: HostOffloads = "host";
        group guest: GuestOffloads = "guest";
    }
}

xml_enum! {
    pub enum NetDriver {
        Qemu = "qemu",
        Vhost = "vhost",
    }
}

xml_enum! {
    pub enum TxMode {
        Iothread = "iothread",
        Timer = "timer",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct HostOffloads {
        attr csum: Option<OnOff> = "csum";
        attr gso: Option<OnOff> = "gso";
        attr tso4: Option<OnOff> = "tso4";
        attr tso6: Option<OnOff> = "tso6";
        attr ecn: Option<OnOff> = "ecn";
        attr ufo: Option<OnOff> = "ufo";
        attr mrg_rxbuf: Option<OnOff> = "mrg_rxbuf";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct GuestOffloads {
        attr csum: Option<OnOff> = "csum";
        attr tso4: Option<OnOff> = "tso4";
        attr tso6: Option<OnOff> = "tso6";
        attr ecn: Option<OnOff> = "ecn";
        attr ufo: Option<OnOff> = "ufo";
    }
}

xml! {
    #[derive(Default)]
    pub struct InterfaceBackend {
        attr kind: Option<BackendKind> = "type";
        attr tap: Option<Box<str>> = "tap";
        attr vhost: Option<Box<str>> = "vhost";
        attr log_file: Option<Box<str>> = "logFile";
        /// Where passt is to be reached, once it was started.
        skip socket: Option<Box<str>>;
    }
}

xml_enum! {
    pub enum BackendKind {
        Default = "default",
        Passt = "passt",
    }
}

xml! {
    #[derive(Default)]
    pub struct InterfaceTune {
        text sndbuf: Option<u64> = "sndbuf";
    }
}

/// How many packets may come before the guest is told; 0 leaves it to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coalesce {
    pub rx_max_frames: u32,
}

impl Part for Coalesce {
    fn read(element: Element<'_>) -> Result<Self> {
        let frames = element.child("rx").and_then(|rx| rx.child("frames"));
        let max = frames.map(|frames| frames.value("max")).transpose()?.flatten();
        Ok(Self { rx_max_frames: max.unwrap_or(0) })
    }

    fn write_children(&self, out: &mut Writer) {
        if self.rx_max_frames != 0 {
            out.element("rx", |out| {
                out.element("frames", |out| out.attribute("max", &self.rx_max_frames));
            });
        }
    }
}

/// Whether the guest sees a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    Up,
    Down,
}

impl Part for LinkState {
    fn read(element: Element<'_>) -> Result<Self> {
        match element.attribute("state") {
            Some("up") => Ok(Self::Up),
            Some("down") => Ok(Self::Down),
            word => {
                let word = word.unwrap_or_default();
                Err(ConfError::unsupported(format!("unknown interface link state '{word}'")))
            }
        }
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("state", if *self == Self::Up { "up" } else { "down" });
    }
}

impl Interface {
    /// Whether it sees no other isolated guest on its bridge.
    pub fn is_isolated(&self) -> bool {
        self.port.as_ref().is_some_and(|port| port.attribute("isolated") == Some("yes"))
    }

    pub fn model(&self) -> Option<&ModelName> {
        self.model.name.as_ref()
    }

    pub fn is_virtio(&self) -> bool {
        self.model().is_some_and(ModelName::is_virtio)
    }
}
