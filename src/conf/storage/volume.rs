//! `<volume>`: one image in a pool, and the image below it.

use super::encryption::Encryption;
use super::lookup;
use super::permissions::Permissions;
use super::pool::{Extent, write_bytes};
use super::types::{PARTITIONS, PoolType};
use crate::conf::devices::StorageFormat;
use crate::conf::xml::{Document, Element, Form, Part, Writer, xml_enum};
use crate::conf::{ConfError, ErrorKind, Result};
use crate::util::units::{self, UnitError};

/// Files are not larger: offsets have a sign.
const MAX_SIZE: u64 = i64::MAX as u64;

xml_enum! {
    /// `type` of a volume, in the order of `virStorageVolType`.
    pub enum VolumeType {
        File = "file",
        Block = "block",
        Dir = "dir",
        Network = "network",
        Netdir = "netdir",
        Ploop = "ploop",
    }
}

impl VolumeType {
    /// libvirt's number.
    pub fn number(self) -> i8 {
        self as i8
    }
}

/// Whether a volume is described as its file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// As a client asked for it.
    No,
    /// As the file with this number says.
    File(u64),
    /// As what a link leads to says, which changes without a trace in the pool.
    Link,
}

/// What is special about a volume among those of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    #[default]
    Whole,
    /// A device that takes room as it is written.
    Sparse,
    /// A partition that holds others.
    Extended,
    /// A partition inside another.
    Logical,
}

xml_enum! {
    /// What an image of format qcow2 may have.
    pub enum VolumeFeature {
        LazyRefcounts = "lazy_refcounts",
        ExtendedL2 = "extended_l2",
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    pub name: Box<str>,
    pub key: Box<str>,
    pub kind: VolumeType,
    pub capacity: u64,
    pub allocation: u64,
    /// The client said how much to allocate.
    pub has_allocation: bool,
    pub probed: Probed,
    pub physical: u64,
    pub role: Role,
    /// Where it lies on the devices of its pool.
    pub extents: Vec<(Box<str>, Extent)>,
    pub target: Target,
    pub backing: Option<Target>,
}

/// An image: the volume's own, or the one below it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Target {
    pub path: Box<str>,
    /// None where volumes are no images.
    pub format: Option<StorageFormat>,
    /// What a partition is for; none where volumes are no partitions.
    pub partition: Option<&'static str>,
    pub permissions: Permissions,
    pub timestamps: Option<Timestamps>,
    pub encryption: Option<Box<Encryption>>,
    pub compat: Option<Box<str>>,
    pub cluster_size: u64,
    pub features: Option<Vec<VolumeFeature>>,
    pub no_copy_on_write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamps {
    pub accessed: Moment,
    pub modified: Moment,
    pub changed: Moment,
}

/// Seconds since 1970, and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64, pub u32);

/// Whether a description must say how large the volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// Unless it has an image below it.
    Needed,
    /// It is as large as the one it is copied from.
    Optional,
}

impl Volume {
    /// Reads what a client wants to be made in a pool of this type.
    pub fn parse(text: &str, pool: PoolType, capacity: Capacity) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE)?;
        let element = document.root().expect_root("volume")?;
        let name = lookup::text(element, &["name"]);
        let name = name.ok_or_else(|| ConfError::xml("missing volume name element"))?;
        let kind = element.attribute("type").filter(|word| !word.is_empty()).map(|word| {
            let unknown = || ConfError::unsupported(format!("unknown volume type '{word}'"));
            VolumeType::from_word(word).ok_or_else(unknown)
        });
        let backing = lookup::text(element, &["backingStore", "path"]);
        let backing = backing.map(|path| read_backing(element, path, pool)).transpose()?;
        let size = read_size(element, "capacity")?;
        if size.is_none() && capacity == Capacity::Needed && backing.is_none() {
            return Err(ConfError::xml("missing capacity element"));
        }
        let allocation = read_size(element, "allocation")?;
        let size = size.unwrap_or(0);
        Ok(Self {
            name,
            key: Box::default(),
            kind: kind.transpose()?.unwrap_or(VolumeType::File),
            capacity: size,
            allocation: allocation.unwrap_or(size),
            has_allocation: allocation.is_some(),
            probed: Probed::No,
            physical: 0,
            role: Role::Whole,
            extents: Vec::new(),
            target: read_target(element, pool)?,
            backing,
        })
    }

    pub fn to_xml(&self) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("volume", |out| {
            out.attribute("type", &self.kind);
            out.text_element("name", &self.name);
            out.text_element("key", &self.key);
            out.group("source", |out| self.write_extents(out));
            write_bytes(out, "capacity", self.capacity);
            write_bytes(out, "allocation", self.allocation);
            if self.physical != 0 {
                write_bytes(out, "physical", self.physical);
            }
            self.target.write(out, "target");
            if let Some(backing) = &self.backing {
                backing.write(out, "backingStore");
            }
        });
        out.finish()
    }

    /// The extents, those in a row on one device together.
    fn write_extents(&self, out: &mut Writer) {
        for extents in self.extents.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((path, _)) = extents.first() else { continue };
            out.element("device", |out| {
                out.attribute("path", path);
                extents.iter().for_each(|(_, extent)| extent.write(out, "extent"));
            });
        }
    }
}

fn read_size(element: Element<'_>, name: &str) -> Result<Option<u64>> {
    let Some(text) = lookup::text(element, &[name]) else { return Ok(None) };
    let value = text.trim_start().parse().map_err(|_| ConfError::xml("malformed capacity element"))?;
    scale(value, element.child(name).and_then(|child| child.attribute("unit")), MAX_SIZE).map(Some)
}

fn scale(value: u64, unit: Option<&str>, max: u64) -> Result<u64> {
    units::scale(value, unit, 1, max).map_err(|error| {
        let kind = match error {
            UnitError::UnknownSuffix { .. } => ErrorKind::InvalidArg,
            UnitError::TooLarge { .. } | UnitError::MemoryTooLarge => ErrorKind::Overflow,
        };
        ConfError::new(kind, error.to_string())
    })
}

fn read_format(element: Element<'_>, parent: &str, pool: PoolType) -> Result<Option<StorageFormat>> {
    if !pool.has_images() {
        return Ok(None);
    }
    let Some(word) = lookup::attribute(element, &[parent, "format"], "type") else {
        return Ok(Some(StorageFormat::Raw));
    };
    let format = StorageFormat::from_word(word).filter(|format| *format != StorageFormat::None);
    match format {
        Some(format) => Ok(Some(format)),
        None => Err(ConfError::unsupported(format!("unknown volume format type {word}"))),
    }
}

fn read_partition(element: Element<'_>, parent: &str, pool: PoolType) -> Result<Option<&'static str>> {
    if pool != PoolType::Disk {
        return Ok(None);
    }
    let word = lookup::attribute(element, &[parent, "format"], "type").unwrap_or(PARTITIONS.default);
    let unknown = || ConfError::unsupported(format!("unknown volume format type {word}"));
    PARTITIONS.find(word).map(Some).ok_or_else(unknown)
}

fn read_backing(element: Element<'_>, path: Box<str>, pool: PoolType) -> Result<Target> {
    Ok(Target {
        path,
        format: read_format(element, "backingStore", pool)?,
        partition: read_partition(element, "backingStore", pool)?,
        permissions: Permissions::read_in(element.child("backingStore"))?,
        ..Target::default()
    })
}

fn read_target(element: Element<'_>, pool: PoolType) -> Result<Target> {
    let target = element.child("target");
    let inside = |name| target.and_then(|target| target.child(name));
    let mut compat = lookup::text(element, &["target", "compat"]);
    if compat.as_deref().is_some_and(|compat| !is_version(compat)) {
        return Err(ConfError::xml("forbidden characters in 'compat' attribute"));
    }
    let features = inside("features").map(read_features).transpose()?;
    if features.is_some() {
        compat.get_or_insert_with(|| "1.1".into());
    }
    let cluster_size = match inside("clusterSize") {
        None => 0,
        Some(size) => {
            let text = size.text();
            let malformed = || {
                ConfError::xml(format!(
                    "Invalid value '{text}' for element or attribute './target/clusterSize'"
                ))
            };
            scale(text.trim().parse().map_err(|_| malformed())?, size.attribute("unit"), u64::MAX)?
        }
    };
    let encryption = inside("encryption").map(Encryption::read).transpose()?.map(Box::new);
    Ok(Target {
        path: lookup::text(element, &["target", "path"]).unwrap_or_default(),
        format: read_format(element, "target", pool)?,
        partition: read_partition(element, "target", pool)?,
        permissions: Permissions::read_in(target)?,
        timestamps: None,
        encryption,
        compat,
        cluster_size,
        features,
        no_copy_on_write: inside("nocow").is_some(),
    })
}

fn is_version(text: &str) -> bool {
    text.split_once('.')
        .is_some_and(|(major, minor)| major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok())
}

fn read_features(element: Element<'_>) -> Result<Vec<VolumeFeature>> {
    let mut features = Vec::new();
    for child in element.children() {
        let unsupported = || ConfError::unsupported(format!("unsupported feature {}", child.name()));
        let feature = VolumeFeature::from_word(child.name()).ok_or_else(unsupported)?;
        if !features.contains(&feature) {
            features.push(feature);
        }
    }
    features.sort_unstable();
    Ok(features)
}

impl Target {
    fn write(&self, out: &mut Writer, name: &str) {
        out.block(name, |out| {
            if !self.path.is_empty() {
                out.text_element("path", &self.path);
            }
            if let Some(format) = &self.format {
                out.element("format", |out| out.attribute("type", format));
            }
            if let Some(partition) = self.partition {
                out.element("format", |out| out.attribute_str("type", partition));
            }
            self.permissions.write(out);
            if let Some(timestamps) = &self.timestamps {
                timestamps.write(out);
            }
            if let Some(encryption) = &self.encryption {
                Part::write(&**encryption, out, "encryption");
            }
            if let Some(compat) = &self.compat {
                out.text_element("compat", compat);
            }
            if self.cluster_size > 0 {
                out.element("clusterSize", |out| {
                    out.attribute_str("unit", "B");
                    out.body(&self.cluster_size);
                });
            }
            if let Some(features) = &self.features {
                out.element("features", |out| {
                    features.iter().for_each(|feature| out.empty(feature.as_str()));
                });
            }
        });
    }
}

impl Timestamps {
    fn write(&self, out: &mut Writer) {
        // Linux tells no time of birth here; libvirt prints it as 0.
        let birth = Moment(0, 0);
        out.element("timestamps", |out| {
            let moments = [
                ("atime", self.accessed),
                ("mtime", self.modified),
                ("ctime", self.changed),
                ("btime", birth),
            ];
            for (name, Moment(seconds, nanos)) in moments {
                let text = match nanos {
                    0 => seconds.to_string(),
                    nanos => format!("{seconds}.{nanos:09}"),
                };
                out.text_element(name, &text);
            }
        });
    }
}
