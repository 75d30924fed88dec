//! `<pool>`: where volumes are.

use super::lookup;
use super::permissions::Permissions;
use super::types::{Needs, PoolType};
use crate::conf::devices::Raw;
use crate::conf::xml::{Document, Element, Form, Part, Writer, YesNo, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

/// The namespace of options for mounting, and its prefix.
const MOUNT_OPTIONS: (&str, &str) = ("http://libvirt.org/schemas/storagepool/fs/1.0", "fs");

#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub kind: PoolType,
    pub name: Box<str>,
    pub uuid: Uuid,
    /// As found by the last refresh; no part of a definition.
    pub sizes: Sizes,
    pub copy_on_write: Option<YesNo>,
    pub source: Source,
    /// Where volumes appear on this host. Empty for types that have no such place.
    pub path: Box<str>,
    pub permissions: Permissions,
    pub refresh: Option<RefreshAllocation>,
    pub mount_options: Vec<Box<str>>,
}

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    pub capacity: u64,
    pub allocation: u64,
    pub available: u64,
}

xml_enum! {
    /// How the allocation of a volume is found.
    pub enum RefreshAllocation {
        Default = "default",
        Capacity = "capacity",
    }
}

/// `<source>`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    pub hosts: Vec<Host>,
    pub devices: Vec<Device>,
    pub directory: Option<Box<str>>,
    pub adapter: Option<Box<Raw>>,
    pub name: Option<Box<str>>,
    pub initiator: Option<Box<str>>,
    pub format: Option<&'static str>,
    pub auth: Option<Box<Raw>>,
    pub protocol_version: Option<Box<str>>,
    pub vendor: Option<Box<str>>,
    pub product: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub name: Box<str>,
    pub port: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub path: Box<str>,
    pub part_separator: Option<YesNo>,
    /// Where there is room for partitions, as found by the last refresh.
    pub free: Vec<Extent>,
}

/// Part of a device, in bytes; the end is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub start: u64,
    pub end: u64,
}

impl Extent {
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub(super) fn write(self, out: &mut Writer, name: &str) {
        out.element(name, |out| {
            out.attribute("start", &self.start);
            out.attribute("end", &self.end);
        });
    }
}

impl Pool {
    /// Reads a definition; `fresh` is its uuid if it has none.
    pub fn parse(text: &str, fresh: Uuid) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE)?;
        Self::read(document.root().expect_root("pool")?, fresh)
    }

    /// Reads what [`Pool::to_state`] wrote.
    pub fn parse_state(text: &str, fresh: Uuid) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE)?;
        let state = document.root().expect_root("poolstate")?;
        let pool = state.child("pool");
        let missing = || ConfError::internal("Could not find any 'pool' element in state file");
        Self::read(pool.ok_or_else(missing)?, fresh)
    }

    fn read(element: Element<'_>, fresh: Uuid) -> Result<Self> {
        let kind: PoolType = element.required("type")?;
        let needs = kind.needs();
        let mut source = Source::read(element.child("source"), kind)?;
        let own_name = lookup::text(element, &["name"]);
        let name = own_name.or_else(|| source.name.clone().filter(|_| needs.contains(Needs::NAME)));
        let name = name.ok_or_else(|| ConfError::xml("missing pool source name element"))?;
        if name.contains('/') {
            return Err(ConfError::xml(format!("name {name} cannot contain '/'")));
        }
        let uuid = match lookup::text(element, &["uuid"]) {
            Some(text) => text.parse().map_err(|_| ConfError::xml("malformed uuid element"))?,
            None => fresh,
        };
        let copy_on_write = lookup::element(element, &["features", "cow"]);
        let copy_on_write = copy_on_write.map(|cow| cow.value("state")).transpose()?.flatten();
        if copy_on_write.is_some() && !matches!(kind, PoolType::Fs | PoolType::Dir) {
            return Err(ConfError::unsupported("cow feature may only be used for 'fs' and 'dir' pools"));
        }
        source.complete(kind, &name)?;
        let (path, permissions) = read_target(element, kind, &source)?;
        if kind == PoolType::IscsiDirect && source.initiator.is_none() {
            return Err(ConfError::unsupported("missing initiator IQN"));
        }
        let refresh = lookup::attribute(element, &["refresh", "volume"], "allocation").map(|word| {
            let sentence = || format!("unknown storage pool volume refresh allocation type {word}");
            RefreshAllocation::from_word(word).ok_or_else(|| ConfError::unsupported(sentence()))
        });
        Ok(Self {
            kind,
            name,
            uuid,
            sizes: Sizes::default(),
            copy_on_write,
            source,
            path,
            permissions,
            refresh: refresh.transpose()?,
            mount_options: read_mount_options(element, kind)?,
        })
    }

    /// The definition as clients and files have it.
    pub fn to_xml(&self) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        self.write(&mut out);
        out.finish()
    }

    /// What the next daemon must know of an active pool.
    pub fn to_state(&self) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("poolstate", |out| self.write(out));
        out.finish()
    }

    fn write(&self, out: &mut Writer) {
        let (uri, prefix) = MOUNT_OPTIONS;
        out.element("pool", |out| {
            out.attribute("type", &self.kind);
            if !self.mount_options.is_empty() {
                out.attribute_str(&format!("xmlns:{prefix}"), uri);
            }
            out.text_element("name", &self.name);
            out.text_element("uuid", &self.uuid);
            write_bytes(out, "capacity", self.sizes.capacity);
            write_bytes(out, "allocation", self.sizes.allocation);
            write_bytes(out, "available", self.sizes.available);
            if let Some(state) = &self.copy_on_write {
                out.element("features", |out| out.element("cow", |out| out.attribute("state", state)));
            }
            self.source.write(out, self.kind);
            if self.kind.has_target() {
                out.block("target", |out| {
                    out.text_element("path", &self.path);
                    self.permissions.write(out);
                });
            }
            if let Some(allocation) = &self.refresh {
                out.element("refresh", |out| {
                    out.element("volume", |out| out.attribute("allocation", allocation));
                });
            }
            out.group(&format!("{prefix}:mount_opts"), |out| {
                for option in &self.mount_options {
                    out.element(&format!("{prefix}:option"), |out| out.attribute("name", option));
                }
            });
        });
    }

    /// Whether two pools would serve the same volumes.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        if self.name == other.name {
            return false;
        }
        match (self.kind, other.kind) {
            (PoolType::Dir, PoolType::Dir) => self.path == other.path,
            (PoolType::Netfs, PoolType::Netfs) => {
                self.source.directory == other.source.directory && self.source.hosts == other.source.hosts
            }
            (
                PoolType::Fs | PoolType::Logical | PoolType::Disk,
                PoolType::Fs | PoolType::Logical | PoolType::Disk,
            ) => {
                let ours = &self.source.devices;
                ours.iter().any(|device| other.source.devices.iter().any(|it| it.path == device.path))
            }
            _ => false,
        }
    }
}

pub(super) fn write_bytes(out: &mut Writer, name: &str, bytes: u64) {
    out.element(name, |out| {
        out.attribute_str("unit", "bytes");
        out.body(&bytes);
    });
}

fn read_target(element: Element<'_>, kind: PoolType, source: &Source) -> Result<(Box<str>, Permissions)> {
    if kind.needs().contains(Needs::NETWORK) {
        return Ok((Box::default(), Permissions::default()));
    }
    let name = source.name.as_deref().unwrap_or_default();
    let path = match kind {
        PoolType::Logical => Some(format!("/dev/{name}").into()),
        PoolType::Zfs => Some(format!("/dev/zvol/{name}").into()),
        _ => lookup::text(element, &["target", "path"]),
    };
    let path = path.ok_or_else(|| ConfError::xml("missing storage pool target path"))?;
    Ok((lookup::clean_path(&path), Permissions::read_in(element.child("target"))?))
}

fn read_mount_options(element: Element<'_>, kind: PoolType) -> Result<Vec<Box<str>>> {
    let (uri, _) = MOUNT_OPTIONS;
    let options =
        element.child_in(uri, "mount_opts").filter(|_| matches!(kind, PoolType::Fs | PoolType::Netfs));
    let Some(options) = options else { return Ok(Vec::new()) };
    let named = options.children().filter(|child| child.name() == "option").map(|option| {
        let name = option.attribute("name").filter(|name| !name.is_empty());
        name.map(Box::from).ok_or_else(|| ConfError::xml("no fs mount option name specified"))
    });
    named.collect()
}

/// Refuses names of a fibre channel adapter that cannot be any.
fn check_adapter(adapter: &Raw) -> Result<()> {
    if adapter.attribute("type") != Some("fc_host") {
        return Ok(());
    }
    let (Some(node), Some(port)) = (adapter.attribute("wwnn"), adapter.attribute("wwpn")) else {
        return Err(ConfError::xml("'wwnn' and 'wwpn' must be specified for adapter type 'fchost'"));
    };
    let parent = |name| adapter.attribute(name);
    let alone = |given: &str, value: &str, missing: &str| {
        Err(ConfError::xml(format!("when providing {given}='{value}', the {missing} must also be provided")))
    };
    let parents = ["parent_wwnn", "parent_wwpn", "parent_fabric_wwn"];
    match (parent(parents[0]), parent(parents[1])) {
        (Some(value), None) => return alone(parents[0], value, parents[1]),
        (None, Some(value)) => return alone(parents[1], value, parents[0]),
        _ => {}
    }
    let is_wwn = |text: &str| {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut names = [node, port].into_iter().chain(parents.into_iter().filter_map(parent));
    match names.find(|name| !is_wwn(name)) {
        Some(name) => Err(ConfError::internal(format!("Malformed wwn: {name}"))),
        None => Ok(()),
    }
}

/// Refuses credentials of which something is missing or unknown; the secret is looked for when the pool starts.
fn check_auth(auth: &Raw) -> Result<()> {
    if auth.attribute("username").is_none_or(str::is_empty) {
        return Err(ConfError::xml("missing username for auth"));
    }
    if let Some(kind) = auth.attribute("type").filter(|kind| !["", "none", "chap", "ceph"].contains(kind)) {
        return Err(ConfError::unsupported(format!("unknown auth type '{kind}'")));
    }
    match auth.child("secret") {
        Some(_) => Ok(()),
        None => Err(ConfError::xml("Missing <secret> element in auth")),
    }
}

impl Source {
    /// Reads the description of a source alone, with which a client looks for pools.
    pub fn parse(text: &str, kind: PoolType) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE)?;
        Self::read(Some(document.root().expect_root("source")?), kind)
    }

    fn read(element: Option<Element<'_>>, kind: PoolType) -> Result<Self> {
        let formats = kind.source_formats();
        let Some(element) = element else {
            return Ok(Self { format: formats.map(|formats| formats.default), ..Self::default() });
        };
        let format = formats.map(|formats| match lookup::attribute(element, &["format"], "type") {
            None => Ok(formats.default),
            Some(word) => formats
                .find(word)
                .ok_or_else(|| ConfError::unsupported(format!("unknown pool format type {word}"))),
        });
        let raw = |name| element.child(name).map(Raw::read).transpose().map(|it| it.map(Box::new));
        let directory = lookup::attribute(element, &["dir"], "path").map(lookup::clean_path);
        let root = || (kind == PoolType::Gluster).then(|| "/".into());
        let source = Self {
            hosts: element.children_named("host").map(Host::read).collect::<Result<_>>()?,
            devices: element.children_named("device").map(Device::read).collect::<Result<_>>()?,
            directory: directory.or_else(root),
            adapter: raw("adapter")?,
            name: lookup::text(element, &["name"]),
            initiator: lookup::attribute(element, &["initiator", "iqn"], "name").map(Into::into),
            format: format.transpose()?,
            auth: raw("auth")?,
            protocol_version: lookup::attribute(element, &["protocol"], "ver").map(Into::into),
            vendor: lookup::attribute(element, &["vendor"], "name").map(Into::into),
            product: lookup::attribute(element, &["product"], "name").map(Into::into),
        };
        source.check_protocol()?;
        source.adapter.as_deref().map_or(Ok(()), check_adapter)?;
        source.auth.as_deref().map_or(Ok(()), check_auth)?;
        Ok(source)
    }

    fn check_protocol(&self) -> Result<()> {
        let Some(version) = &self.protocol_version else { return Ok(()) };
        if let Some(other) = self.format.filter(|format| !matches!(*format, "nfs" | "auto")) {
            let sentence = format!("storage pool protocol ver unsupported for pool type '{other}'");
            return Err(ConfError::unsupported(sentence));
        }
        match version.contains(',') {
            true => {
                let sentence = format!("storage pool protocol ver '{version}' must not contain ','");
                Err(ConfError::new(crate::conf::ErrorKind::XmlDetail, sentence))
            }
            false => Ok(()),
        }
    }

    /// Adds what follows from the rest, and refuses what lacks a part.
    fn complete(&mut self, kind: PoolType, pool: &str) -> Result<()> {
        let needs = kind.needs();
        let missing = |what: &str| Err(ConfError::xml(format!("missing storage pool source {what}")));
        if needs.contains(Needs::HOST) && self.hosts.is_empty() {
            return missing("host name");
        }
        if needs.contains(Needs::DIR) && self.directory.is_none() {
            return missing("path");
        }
        if needs.contains(Needs::NAME) && self.name.is_none() {
            self.name = Some(pool.into());
        }
        if needs.contains(Needs::ADAPTER) && self.adapter.is_none() {
            return missing("adapter");
        }
        if needs == Needs::DEVICE && self.devices.is_empty() {
            return missing("device name");
        }
        Ok(())
    }

    fn write(&self, out: &mut Writer, kind: PoolType) {
        let needs = kind.needs();
        let named = |out: &mut Writer, element: &str, attribute: &str, value: &Option<Box<str>>| {
            if let Some(value) = value {
                out.element(element, |out| out.attribute(attribute, value));
            }
        };
        out.block("source", |out| {
            if needs.contains(Needs::HOST) {
                self.hosts.iter().for_each(|host| host.write(out));
            }
            if needs.contains(Needs::DEVICE) {
                self.devices.iter().for_each(|device| device.write(out));
            }
            if needs.contains(Needs::DIR) {
                named(out, "dir", "path", &self.directory);
            }
            if let Some(adapter) = self.adapter.as_ref().filter(|_| needs.contains(Needs::ADAPTER)) {
                Part::write(&**adapter, out, "adapter");
            }
            if let Some(name) = self.name.as_ref().filter(|_| needs.contains(Needs::NAME)) {
                out.text_element("name", name);
            }
            if let Some(name) = self.initiator.as_ref().filter(|_| needs.contains(Needs::INITIATOR)) {
                out.element("initiator", |out| out.element("iqn", |out| out.attribute("name", name)));
            }
            if let Some(format) = self.format {
                out.element("format", |out| out.attribute_str("type", format));
            }
            if let Some(auth) = &self.auth {
                Part::write(&**auth, out, "auth");
            }
            named(out, "protocol", "ver", &self.protocol_version);
            named(out, "vendor", "name", &self.vendor);
            named(out, "product", "name", &self.product);
        });
    }

    /// The sources that a search has found.
    pub fn list_to_xml(sources: &[Self], kind: PoolType) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        out.block("sources", |out| sources.iter().for_each(|source| source.write(out, kind)));
        out.finish()
    }
}

impl Host {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = element.attribute("name");
        let name = name.ok_or_else(|| ConfError::xml("missing storage pool host name"))?.into();
        Ok(Self { name, port: element.value("port")?.unwrap_or(0) })
    }

    fn write(&self, out: &mut Writer) {
        out.element("host", |out| {
            out.attribute("name", &self.name);
            if self.port != 0 {
                out.attribute("port", &self.port);
            }
        });
    }
}

impl Device {
    fn read(element: Element<'_>) -> Result<Self> {
        let path = element.attribute("path");
        let path = path.ok_or_else(|| ConfError::xml("missing storage pool source device path"))?.into();
        Ok(Self { path, part_separator: element.value("part_separator")?, free: Vec::new() })
    }

    fn write(&self, out: &mut Writer) {
        out.element("device", |out| {
            out.attribute("path", &self.path);
            if let Some(separator) = &self.part_separator {
                out.attribute("part_separator", separator);
            }
            self.free.iter().for_each(|extent| extent.write(out, "freeExtent"));
        });
    }
}
