//! Images that another host serves, and what is needed to be let in there.

use crate::conf::storage::SecretLookup;
use crate::conf::xml::{Element, Form, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

xml_enum! {
    pub enum NetworkProtocol {
        Nbd = "nbd",
        Rbd = "rbd",
        Sheepdog = "sheepdog",
        Gluster = "gluster",
        Iscsi = "iscsi",
        Http = "http",
        Https = "https",
        Ftp = "ftp",
        Ftps = "ftps",
        Tftp = "tftp",
        Ssh = "ssh",
        Vxhs = "vxhs",
        Nfs = "nfs",
    }
}

impl NetworkProtocol {
    /// The port of a host that names none; 0: there is no usual one.
    fn port(self) -> u32 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Ftp => 21,
            Self::Ftps => 990,
            Self::Tftp => 69,
            Self::Sheepdog => 7000,
            Self::Nbd => 10809,
            Self::Ssh => 22,
            Self::Iscsi => 3260,
            Self::Gluster => 24007,
            Self::Vxhs => 9999,
            Self::Rbd | Self::Nfs => 0,
        }
    }

    fn is_web(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    fn is_curl(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::Ftp | Self::Ftps)
    }

    /// Whether a path begins with the name of a pool or of a volume.
    pub fn has_volume(self) -> bool {
        matches!(self, Self::Gluster | Self::Rbd)
    }
}

xml! {
    /// `<source>` of an image on another host.
    pub struct RemoteSource {
        attr protocol: NetworkProtocol = "protocol";
        attr name: Option<Box<str>> = "name";
        attr query: Option<Box<str>> = "query";
        attr tls: Option<YesNo> = "tls";
        attr tls_hostname: Option<Box<str>> = "tlsHostname";
        child hosts: Vec<StorageHost> = "host";
        group nfs: NfsIdentity = "identity";
        child reconnect: Option<ReconnectDelay> = "reconnect";
        child_attr snapshot: Option<Box<str>> = "snapshot" / "name";
        child_attr config: Option<Box<str>> = "config" / "file";
        list initiator: Vec<InitiatorName> = "initiator" / "iqn";
        child_attr ssl_verify: Option<YesNo> = "ssl" / "verify";
        list(secret) cookies: Vec<Cookie> = "cookies" / "cookie";
        child_attr readahead: Option<u64> = "readahead" / "size";
        child_attr timeout_s: Option<u64> = "timeout" / "seconds";
        child_attr known_hosts: Option<Box<str>> = "knownHosts" / "path";
        group ssh: SshIdentity = "identity";
    }
}

xml! {
    #[derive(Eq, Default)]
    pub struct NfsIdentity {
        attr user: Option<Box<str>> = "user";
        attr group: Option<Box<str>> = "group";
    }
}

xml! {
    #[derive(Eq, Default)]
    pub struct SshIdentity {
        attr username: Option<Box<str>> = "username";
        attr keyfile: Option<Box<str>> = "keyfile";
        attr agentsock: Option<Box<str>> = "agentsock";
    }
}

xml! {
    /// How long a lost connection may stay lost.
    #[derive(Eq, Copy)]
    pub struct ReconnectDelay {
        attr seconds: u32 = "delay", or 0;
    }
}

xml! {
    /// By which name an iSCSI server knows us.
    #[derive(Eq)]
    pub struct InitiatorName {
        attr name: Box<str> = "name";
    }
}

/// What a web server wants to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    pub name: Box<str>,
    pub value: Box<str>,
}

impl Part for Cookie {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = element.attribute("name").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| ConfError::xml("missing cookie name"))?;
        let value = element.text();
        if value.is_empty() {
            return Err(ConfError::xml(format!("missing value for cookie '{name}'")));
        }
        let cookie = Self { name: name.into(), value: value.into() };
        cookie.check()?;
        Ok(cookie)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("name", &self.name);
    }

    fn write_children(&self, out: &mut Writer) {
        out.body(&self.value);
    }
}

impl Cookie {
    /// What would end the name or the value in the header of a request.
    fn check(&self) -> Result<()> {
        let name = &self.name;
        let splits_name = |char: char| "()<>@,;:\\\"/[]?={} \t\r\n".contains(char) || char.is_control();
        if name.contains(splits_name) {
            return Err(ConfError::xml(format!("cookie name '{name}' contains invalid characters")));
        }
        let quoted = self.value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let bare = quoted.unwrap_or(&self.value);
        if bare.contains(|char: char| "\",;\\ ".contains(char) || char.is_control()) {
            return Err(ConfError::xml(format!("value of cookie '{name}' contains invalid characters")));
        }
        Ok(())
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum StorageTransport {
        #[default]
        Tcp = "tcp",
        Unix = "unix",
        Rdma = "rdma",
    }
}

/// One of the hosts that serve an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageHost {
    Inet { name: Box<str>, port: u32, transport: StorageTransport },
    Unix { socket: Box<str> },
}

impl Part for StorageHost {
    fn read(element: Element<'_>) -> Result<Self> {
        let transport = element.value::<StorageTransport>("transport")?.unwrap_or_default();
        let socket = element.attribute("socket");
        if transport == StorageTransport::Unix {
            let socket = socket.ok_or_else(|| ConfError::xml("missing socket for unix transport"))?;
            return Ok(Self::Unix { socket: socket.into() });
        }
        if socket.is_some() {
            return Err(ConfError::xml(format!("transport '{transport}' does not support socket attribute")));
        }
        let port = match element.attribute("port") {
            None => 0,
            Some(text) => text.parse::<u32>().ok().filter(|port| *port <= 65535).ok_or_else(|| {
                ConfError::invalid_arg(format!("failed to parse port number '{text}'")).by_nobody()
            })?,
        };
        let name = element.attribute("name").ok_or_else(|| ConfError::xml("missing name for host"))?;
        Ok(Self::Inet { name: name.into(), port, transport })
    }

    fn write_attributes(&self, out: &mut Writer) {
        match self {
            Self::Inet { name, port, transport } => {
                out.attribute("name", name);
                if *port != 0 {
                    out.attribute("port", port);
                }
                if *transport != StorageTransport::Tcp {
                    out.attribute("transport", transport);
                }
            }
            Self::Unix { socket } => {
                out.attribute_str("transport", "unix");
                out.attribute("socket", socket);
            }
        }
    }
}

impl RemoteSource {
    /// Reads it and drops what its protocol has no use for.
    pub(super) fn read_source(element: Element<'_>) -> Result<Self> {
        let source = Self::read(element)?;
        let protocol = source.protocol;
        let repeated =
            source.cookies.iter().enumerate().find(|(at, cookie)| {
                source.cookies.iter().skip(at + 1).any(|other| other.name == cookie.name)
            });
        if let Some((_, cookie)) = repeated {
            return Err(ConfError::xml(format!("duplicate cookie '{}'", cookie.name)));
        }
        let Some(name) = &source.name else {
            if protocol != NetworkProtocol::Nbd {
                return Err(ConfError::xml("missing name for disk source"));
            }
            return Ok(source.pruned());
        };
        if protocol.has_volume() && name.split_once('/').is_none_or(|(volume, _)| volume.is_empty()) {
            return Err(ConfError::xml(format!("can't split path '{name}' into pool name and image name")));
        }
        if protocol == NetworkProtocol::Ssh {
            source.check_ssh(element)?;
        }
        Ok(source.pruned())
    }

    fn check_ssh(&self, element: Element<'_>) -> Result<()> {
        if let Some(known) = element.child("knownHosts") {
            known.required::<Box<str>>("path")?;
        }
        let Some(identity) = element.child("identity") else { return Ok(()) };
        identity.required::<Box<str>>("username")?;
        if self.ssh.keyfile.is_none() && self.ssh.agentsock.is_none() {
            return Err(ConfError::xml(
                "element 'identity' requires either 'keyfile' or 'agentsock' attribute",
            ));
        }
        Ok(())
    }

    fn pruned(mut self) -> Self {
        let protocol = self.protocol;
        for host in &mut self.hosts {
            if let StorageHost::Inet { port, .. } = host
                && *port == 0
            {
                *port = protocol.port();
            }
        }
        if protocol != NetworkProtocol::Nbd || self.reconnect.is_some_and(|reconnect| reconnect.seconds == 0)
        {
            self.reconnect = None;
        }
        if protocol != NetworkProtocol::Nfs {
            self.nfs = NfsIdentity::default();
        }
        if protocol != NetworkProtocol::Ssh {
            (self.ssh, self.known_hosts) = (SshIdentity::default(), None);
        }
        if !matches!(protocol, NetworkProtocol::Https | NetworkProtocol::Ftps) {
            self.ssl_verify = None;
        }
        if !protocol.is_web() {
            (self.query, self.cookies) = (None, Vec::new());
        }
        if !protocol.is_curl() {
            (self.readahead, self.timeout_s) = (None, None);
        }
        self.readahead = self.readahead.filter(|bytes| *bytes > 0);
        self.timeout_s = self.timeout_s.filter(|seconds| *seconds > 0);
        self.initiator.truncate(1);
        self
    }

    /// A target of an iSCSI server.
    pub(super) fn iscsi(name: &str, hosts: Vec<StorageHost>, initiator: Option<InitiatorName>) -> Self {
        Self {
            protocol: NetworkProtocol::Iscsi,
            name: Some(name.into()),
            query: None,
            tls: None,
            tls_hostname: None,
            hosts,
            nfs: NfsIdentity::default(),
            reconnect: None,
            snapshot: None,
            config: None,
            initiator: initiator.into_iter().collect(),
            ssl_verify: None,
            cookies: Vec::new(),
            readahead: None,
            timeout_s: None,
            known_hosts: None,
            ssh: SshIdentity::default(),
        }
    }

    /// Completes the name of an iSCSI target that names no unit: the first one is meant.
    pub fn complete_unit(&mut self) {
        if self.protocol == NetworkProtocol::Iscsi
            && let Some(name) = &mut self.name
            && !name.contains('/')
        {
            *name = format!("{name}/0").into();
        }
    }

    /// Whether the connection is encrypted.
    pub fn uses_tls(&self) -> bool {
        self.tls == Some(YesNo::Yes)
    }

    /// Pool or volume, where the protocol has them, and the image in it.
    pub fn volume_and_path(&self) -> (Option<&str>, Option<&str>) {
        let name = self.name.as_deref();
        match name.filter(|_| self.protocol.has_volume()).and_then(|name| name.split_once('/')) {
            Some((volume, path)) => (Some(volume), Some(path)),
            None => (None, name),
        }
    }
}

xml_enum! {
    pub enum AuthKind {
        Chap = "chap",
        Ceph = "ceph",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown auth type '{text}'"))
}

/// `<auth>`: who asks, and with which secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageAuth {
    pub kind: Option<AuthKind>,
    pub username: Box<str>,
    /// `type` of the secret, which must suit the protocol.
    pub secret_type: Option<Box<str>>,
    pub secret: SecretLookup,
}

impl Part for StorageAuth {
    fn read(element: Element<'_>) -> Result<Self> {
        let username = element.attribute("username").filter(|name| !name.is_empty());
        let username = username.ok_or_else(|| ConfError::xml("missing username for auth"))?;
        let kind = match element.attribute("type") {
            Some("none") => None,
            _ => element.value("type")?,
        };
        let Some(secret) = element.child("secret") else {
            return Err(ConfError::xml("Missing <secret> element in auth"));
        };
        Ok(Self {
            kind,
            username: username.into(),
            secret_type: secret.attribute("type").map(Into::into),
            secret: read_lookup(secret)?,
        })
    }

    fn write(&self, out: &mut Writer, name: &str) {
        out.block(name, |out| {
            if let Some(kind) = &self.kind {
                out.attribute("type", kind);
            }
            out.attribute("username", &self.username);
            out.element("secret", |out| {
                if let Some(kind) = &self.secret_type {
                    out.attribute("type", kind);
                }
                match &self.secret {
                    SecretLookup::Uuid(uuid) => out.attribute("uuid", uuid),
                    SecretLookup::Usage(usage) => out.attribute("usage", usage),
                }
            });
        });
    }
}

fn read_lookup(secret: Element<'_>) -> Result<SecretLookup> {
    match (secret.attribute("uuid"), secret.attribute("usage")) {
        (None, None) => Err(ConfError::xml("missing secret uuid or usage attribute")),
        (Some(_), Some(_)) => Err(ConfError::xml("either secret uuid or usage expected")),
        (Some(uuid), None) => {
            let invalid = |_| ConfError::xml(format!("invalid secret uuid '{uuid}'"));
            Ok(SecretLookup::Uuid(uuid.parse::<Uuid>().map_err(invalid)?))
        }
        (None, Some(usage)) => Ok(SecretLookup::Usage(usage.into())),
    }
}

/// `<reservations>`: who reserves a SCSI disk for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservations {
    pub managed: YesNo,
    pub socket: Option<Box<str>>,
}

impl Part for Reservations {
    fn read(element: Element<'_>) -> Result<Self> {
        let managed: YesNo = element.required("managed")?;
        let of_source = |name: &str| element.child("source").and_then(|source| source.attribute(name));
        let (kind, path, mode) = (of_source("type"), of_source("path"), of_source("mode"));
        let missing = |what: &str| Err(ConfError::xml(format!("missing {what} for <reservations/>")));
        if managed == YesNo::No || kind.is_some() || path.is_some() || mode.is_some() {
            if kind.is_none() {
                return missing("connection type");
            }
            if path.is_none() {
                return missing("path");
            }
            if mode.is_none() {
                return missing("connection mode");
            }
        }
        let unsupported = |what: &str, word: &str| {
            Err(ConfError::xml(format!("unsupported connection {what} for <reservations/>: {word}")))
        };
        if let Some(kind) = kind.filter(|kind| *kind != "unix") {
            return unsupported("type", kind);
        }
        if let Some(mode) = mode.filter(|mode| *mode != "client") {
            return unsupported("mode", mode);
        }
        Ok(Self { managed, socket: path.map(Into::into) })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("managed", &self.managed);
    }

    fn write_children(&self, out: &mut Writer) {
        let shown = self.managed == YesNo::No || !out.form().contains(Form::MIGRATABLE);
        if let Some(socket) = self.socket.as_ref().filter(|_| shown) {
            out.element("source", |out| {
                out.attribute_str("type", "unix");
                out.attribute("path", socket);
                out.attribute_str("mode", "client");
            });
        }
    }
}

/// `<slice>`: the part of a file that is the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    pub offset: u64,
    pub size: u64,
}

impl Slice {
    pub(super) fn read_in(source: Element<'_>) -> Result<Option<Self>> {
        let Some(slices) = source.child("slices") else { return Ok(None) };
        let mut listed = slices.children_named("slice");
        let Some(slice) = listed.find(|slice| slice.attribute("type") == Some("storage")) else {
            return Ok(None);
        };
        let given = |name: &str| slice.attribute(name).filter(|text| !text.is_empty());
        let (Some(offset), Some(size)) = (given("offset"), given("size")) else {
            return Err(ConfError::xml("missing offset or size attribute of slice"));
        };
        let number = |name: &str, text: &str| {
            let malformed =
                |_| ConfError::xml(format!("malformed value '{text}' of '{name}' attribute of slice"));
            text.parse::<u64>().map_err(malformed)
        };
        let (offset, size) = (number("offset", offset)?, number("size", size)?);
        Ok(Some(Self { offset, size }))
    }

    pub(super) fn write(self, out: &mut Writer) {
        out.element("slices", |out| {
            out.element("slice", |out| {
                out.attribute_str("type", "storage");
                out.attribute("offset", &self.offset);
                out.attribute("size", &self.size);
            });
        });
    }
}

/// An NVMe namespace of a controller that is taken from the host.
#[derive(Debug, Clone, PartialEq)]
pub struct NvmeSource {
    pub managed: Option<YesNo>,
    pub namespace: u64,
    pub address: super::PciAddress,
}

impl Part for NvmeSource {
    fn read(element: Element<'_>) -> Result<Self> {
        match element.attribute("type") {
            Some("pci") => {}
            None => return Err(ConfError::xml("missing 'type' attribute to disk source")),
            Some(other) => return Err(ConfError::xml(format!("unsupported source type '{other}'"))),
        }
        let namespace = element.required("namespace")?;
        let managed = element.value("managed")?;
        let Some(address) = element.child("address") else {
            return Err(ConfError::xml("NVMe disk source is missing address"));
        };
        Ok(Self { managed, namespace, address: super::PciAddress::read(address)? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("type", "pci");
        if let Some(managed) = &self.managed {
            out.attribute("managed", managed);
        }
        out.attribute("namespace", &self.namespace);
    }

    fn write_children(&self, out: &mut Writer) {
        out.element("address", |out| self.address.write_attributes(out));
    }
}

/// A disk that another process of the host makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserSource {
    pub path: Box<str>,
    pub reconnect: Option<super::Reconnect>,
}

impl Part for VhostUserSource {
    fn read(element: Element<'_>) -> Result<Self> {
        let refuse = |what: &str, name: &str| {
            Err(ConfError::xml(format!("{what} '{name}' attribute for vhostuser disk source")))
        };
        match element.attribute("type") {
            Some("unix") => {}
            None => return refuse("missing", "type"),
            Some(_) => return refuse("invalid", "type"),
        }
        let Some(path) = element.attribute("path") else { return refuse("missing", "path") };
        let reconnect = element.child("reconnect").map(super::Reconnect::read).transpose()?;
        Ok(Self { path: path.into(), reconnect })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("type", "unix");
        out.attribute("path", &self.path);
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(reconnect) = &self.reconnect {
            Part::write(reconnect, out, "reconnect");
        }
    }
}

xml! {
    /// A volume by its name in a pool.
    #[derive(Eq)]
    pub struct VolumeSource {
        attr pool: Box<str> = "pool";
        attr volume: Box<str> = "volume";
        attr mode: Option<VolumeMode> = "mode";
    }
}

xml_enum! {
    /// Whether an iSCSI volume is used as the host sees it or without the host.
    pub enum VolumeMode {
        Host = "host",
        Direct = "direct",
    }
}

impl VolumeSource {
    /// Nothing where a drive is empty.
    pub(super) fn read_source(element: Element<'_>) -> Result<Option<Self>> {
        match (element.attribute("pool"), element.attribute("volume")) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Self::read(element).map(Some),
            _ => Err(ConfError::xml("'pool' and 'volume' must be specified together for 'pool' type source")),
        }
    }
}
