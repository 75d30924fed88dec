//! Cookies: what one host's phase of a migration leaves for the next phase on the other host. The client carries
//! them and does not look inside.
//!
//! | from | to | what it is there for |
//! |---|---|---|
//! | begin | prepare | locks, disks to copy with their sizes, the CPU, what QEMU can do in a migration |
//! | prepare | perform | where screens and the NBD server listen, what the other QEMU can do |
//! | perform | finish | statistics, data of network ports, the persistent definition |
//! | finish | confirm | statistics with the downtime |

use crate::conf::domain::{Cpu, Domain};
use crate::conf::xml::{Document, Element, Form, Part, Writer, YesNo, write_document, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

use super::Statistics;

/// Beyond this nothing is read, and nothing is written.
pub const MAX_BYTES: usize = 16 * 1024;

xml! {
    /// `<qemu-migration>`
    pub struct Cookie {
        text name: Box<str> = "name";
        text uuid: Uuid = "uuid";
        /// Of the host that wrote it, as the next.
        text hostname: Box<str> = "hostname";
        text host_uuid: Uuid = "hostuuid";
        /// What the reader has to understand.
        child features: Vec<FeatureName> = "feature";
        child graphics: Option<CookieGraphics> = "graphics";
        child lockstate: Option<LockState> = "lockstate";
        child persistent: Option<Persistent> = "domain";
        list network: Vec<PortData> = "network" / "interface";
        child nbd: Option<Nbd> = "nbd";
        child statistics: Option<Box<Statistics>> = "statistics";
        /// As QEMU made it, where the definition in the call has it as it was defined.
        child cpu: Option<Box<Cpu>> = "cpu";
        list capabilities: Vec<Capability> = "capabilities" / "cap";
        list bitmaps: Vec<BitmapDisk> = "blockDirtyBitmaps" / "disk";
    }
}

xml_enum! {
    /// Parts of a cookie by libvirt's names.
    pub enum Feature {
        Graphics = "graphics",
        Lockstate = "lockstate",
        Persistent = "persistent",
        Network = "network",
        Nbd = "nbd",
        Statistics = "statistics",
        MemoryHotplug = "memory-hotplug",
        CpuHotplug = "cpu-hotplug",
        Cpu = "cpu",
        AllowReboot = "allowReboot",
        Capabilities = "capabilities",
        Bitmaps = "block-dirty-bitmaps",
    }
}

/// Which parts a phase reads.
pub type Features<'a> = &'a [Feature];

xml! {
    /// `<feature>`
    pub struct FeatureName {
        attr name: String = "name";
    }
}

xml! {
    /// `<graphics>`: where clients of a screen find it after the migration.
    pub struct CookieGraphics {
        attr kind: String = "type";
        attr port: i32 = "port";
        attr listen: String = "listen";
        /// SPICE only; -1: none.
        attr tls_port: Option<i32> = "tlsPort";
        child certificate: Option<Certificate> = "cert";
    }
}

xml! {
    /// `<cert>`
    pub struct Certificate {
        attr info: String = "info";
        attr value: String = "value";
    }
}

xml! {
    /// `<lockstate>`
    pub struct LockState {
        attr driver: String = "driver";
        text leases: Option<String> = "leases";
    }
}

xml! {
    /// `<interface>`: what a switch keeps of a guest's port.
    pub struct PortData {
        attr index: u32 = "index", or 0;
        attr port_type: String = "vporttype";
        text data: Option<String> = "portdata";
    }
}

xml! {
    /// `<nbd>`: disks that are copied; the destination adds the port of its server.
    pub struct Nbd {
        attr port: Option<u16> = "port";
        child disks: Vec<NbdDisk> = "disk";
    }
}

xml! {
    /// `<disk>`
    pub struct NbdDisk {
        attr target: String = "target";
        /// Bytes.
        attr capacity: u64 = "capacity";
    }
}

xml! {
    /// `<cap>`: something that the writer's QEMU can do in a migration.
    pub struct Capability {
        attr name: String = "name";
        /// Whether the writer switches it on when both sides can.
        attr auto: YesNo = "auto", or YesNo::No;
    }
}

xml! {
    /// `<disk>` of the bitmaps.
    pub struct BitmapDisk {
        attr target: String = "target";
        child bitmaps: Vec<Bitmap> = "bitmap";
    }
}

xml! {
    /// `<bitmap>`
    pub struct Bitmap {
        attr name: String = "name";
        attr alias: String = "alias";
    }
}

/// What the guest is defined as from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Persistent(pub Box<Domain>);

impl Part for Persistent {
    fn read(element: Element<'_>) -> Result<Self> {
        Domain::from_element(element).map(|domain| Self(Box::new(domain)))
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.0.write_attributes(out);
    }

    fn write_children(&self, out: &mut Writer) {
        self.0.write_children(out);
    }
}

/// What the reader of a cookie knows already: the guest under the name it had at the source, and the reader's own host.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    pub name: &'a str,
    pub uuid: Uuid,
    pub host_uuid: Uuid,
}

impl Cookie {
    /// One that says only who wrote it, on which host.
    pub fn new(peer: Peer<'_>, hostname: &str) -> Self {
        Self {
            name: peer.name.into(),
            uuid: peer.uuid,
            hostname: hostname.into(),
            host_uuid: peer.host_uuid,
            features: Vec::new(),
            graphics: None,
            lockstate: None,
            persistent: None,
            network: Vec::new(),
            nbd: None,
            statistics: None,
            cpu: None,
            capabilities: Vec::new(),
            bitmaps: Vec::new(),
        }
    }

    /// Reads what the other host wrote. None: it wrote nothing, as old ones do.
    pub fn parse(bytes: &[u8], peer: Peer<'_>, understood: Features<'_>) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > MAX_BYTES {
            return Err(refused(format!(
                "Migration cookie has {} bytes, at most {MAX_BYTES} are read",
                bytes.len()
            )));
        }
        let Some((0, text)) = bytes.split_last() else {
            return Err(refused("Migration cookie was not NULL terminated"));
        };
        let document = Document::parse_bytes(text, Form::INACTIVE)?;
        let root = document.root().expect_root("qemu-migration")?;
        check_writer(root, peer)?;
        check_features(root, understood)?;
        let cookie = Self::read(root)?;
        if let Some(graphics) = &cookie.graphics
            && graphics.kind == "spice"
            && graphics.tls_port.is_none()
        {
            return Err(refused("missing tlsPort attribute in migration data"));
        }
        Ok(Some(cookie))
    }

    /// The bytes for the other host.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let form = Form::SECURE | Form::MIGRATABLE;
        let mut bytes = write_document(self, "qemu-migration", form).into_bytes();
        bytes.push(0);
        match bytes.len() {
            0..=MAX_BYTES => Ok(bytes),
            length => Err(refused(format!(
                "Migration cookie would have {length} bytes, at most {MAX_BYTES} are sent"
            ))),
        }
    }

    /// Demands that the reader understands a part.
    pub fn demand(&mut self, feature: Feature) {
        self.features.push(FeatureName { name: feature.as_str().to_owned() });
    }

    /// Whether the writer's QEMU can do something; `None` if it says nothing about what it can do.
    pub fn can(&self, capability: &str) -> Option<bool> {
        (!self.capabilities.is_empty()).then(|| self.capabilities.iter().any(|cap| cap.name == capability))
    }

    /// Whether the writer switches something on because it can.
    pub fn does_by_itself(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|cap| cap.name == capability && cap.auto == YesNo::Yes)
    }
}

/// It is about this guest, and from another host.
fn check_writer(root: Element<'_>, peer: Peer<'_>) -> Result<()> {
    let text = |name: &str| {
        let found = root.child(name).map(Element::text).filter(|text| !text.is_empty());
        found.ok_or_else(|| refused(format!("missing {name} element in migration data")))
    };
    let name = text("name")?;
    if *name != *peer.name {
        return Err(refused(format!("Incoming cookie data had unexpected name {name} vs {}", peer.name)));
    }
    let uuid = text("uuid")?;
    if uuid.parse() != Ok(peer.uuid) {
        return Err(refused(format!("Incoming cookie data had unexpected UUID {uuid} vs {}", peer.uuid)));
    }
    text("hostname")?;
    let host_uuid = text("hostuuid")?;
    match host_uuid.parse::<Uuid>() {
        Err(_) => Err(refused("malformed hostuuid element in migration data")),
        Ok(it) if it == peer.host_uuid => {
            Err(refused(format!("Attempt to migrate guest to the same host {host_uuid}")))
        }
        Ok(_) => Ok(()),
    }
}

fn check_features(root: Element<'_>, understood: Features<'_>) -> Result<()> {
    for demanded in root.children_named("feature") {
        let name = demanded.attribute("name").ok_or_else(|| refused("missing feature name"))?;
        let Some(feature) = Feature::from_word(name) else {
            return Err(refused(format!("Unknown migration cookie feature {name}")));
        };
        if !understood.contains(&feature) {
            return Err(refused(format!("Unsupported migration cookie feature {name}")));
        }
    }
    if root.children_named("domain").nth(1).is_some() {
        return Err(refused("Too many domain elements in migration cookie"));
    }
    Ok(())
}

fn refused(sentence: impl Into<String>) -> ConfError {
    ConfError::internal(sentence).by_qemu_driver()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features<'_> = Feature::ALL;

    /// All parts that libvirt 11.3 has in its cookies, in one.
    const UPSTREAM: &str = include_str!("../../../tests/data/migration/cookie.xml");

    fn peer() -> Peer<'static> {
        Peer {
            name: "guest",
            uuid: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".parse().unwrap(),
            host_uuid: Uuid([9; 16]),
        }
    }

    fn bytes(text: &str) -> Vec<u8> {
        [text.as_bytes(), &[0]].concat()
    }

    #[test]
    fn libvirts_cookie_is_read_and_written_alike() {
        let cookie = Cookie::parse(&bytes(UPSTREAM), peer(), ALL).unwrap().unwrap();
        assert_eq!(String::from_utf8(cookie.to_bytes().unwrap()).unwrap(), format!("{UPSTREAM}\0"));
        assert_eq!((cookie.can("multifd"), cookie.can("teleport")), (Some(true), Some(false)));
        assert!(cookie.does_by_itself("pause-before-switchover") && !cookie.does_by_itself("multifd"));
        assert_eq!(cookie.nbd.unwrap().disks[0].capacity, 1_073_741_824);
        assert_eq!(cookie.statistics.unwrap().downtime, Some(7));
        assert_eq!(&*cookie.persistent.unwrap().0.name, "guest");
    }

    #[test]
    fn what_is_not_a_cookie_for_this_guest_is_refused() {
        let refusal = |bytes: &[u8], understood: Features<'_>| {
            Cookie::parse(bytes, peer(), understood).unwrap_err().message
        };
        assert_eq!(refusal(UPSTREAM.as_bytes(), ALL), "Migration cookie was not NULL terminated");
        assert!(refusal(&vec![b' '; MAX_BYTES + 1], ALL).starts_with("Migration cookie has 16385 bytes"));
        let cases = [
            (
                "<name>guest</name>",
                "<name>other</name>",
                "Incoming cookie data had unexpected name other vs guest",
            ),
            ("<name>guest</name>", "", "missing name element in migration data"),
            (
                "<uuid>6ba7b810",
                "<uuid>6ba7b811",
                "Incoming cookie data had unexpected UUID 6ba7b811-9dad-41d1-80b4-00c04fd430c8 vs \
                 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            ),
            ("<hostname>far</hostname>", "", "missing hostname element in migration data"),
            (">01010101-0101", ">zz010101-0101", "malformed hostuuid element in migration data"),
            (
                "01010101-0101-0101-0101-010101010101",
                "09090909-0909-0909-0909-090909090909",
                "Attempt to migrate guest to the same host 09090909-0909-0909-0909-090909090909",
            ),
            ("name='lockstate'", "name='telepathy'", "Unknown migration cookie feature telepathy"),
            ("<feature name='lockstate'/>", "<feature/>", "missing feature name"),
            (" tlsPort='-1'", "", "missing tlsPort attribute in migration data"),
        ];
        for (from, to, expected) in cases {
            assert!(UPSTREAM.contains(from), "{from}");
            assert_eq!(refusal(&bytes(&UPSTREAM.replace(from, to)), ALL), expected);
        }
        assert_eq!(
            refusal(&bytes(UPSTREAM), &[Feature::Nbd]),
            "Unsupported migration cookie feature lockstate"
        );
        assert!(Cookie::parse(b"", peer(), &[]).unwrap().is_none());
    }

    #[test]
    fn what_would_not_be_read_is_not_sent() {
        let mut cookie = Cookie::new(peer(), "far");
        cookie.lockstate = Some(LockState { driver: "nop".to_owned(), leases: Some("x".repeat(MAX_BYTES)) });
        assert!(cookie.to_bytes().unwrap_err().message.starts_with("Migration cookie would have 16"));
    }
}
