//! Where a disk's blocks come from: a place, and the images below it.

use super::network_storage::{
    NvmeSource, RemoteSource, Reservations, Slice, StorageAuth, VhostUserSource, VolumeSource,
};
use super::raw::Raw;
use crate::conf::storage::Encryption;
use crate::conf::xml::{Element, Form, Part, Writer, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    /// `type` of a disk or of a layer of its chain.
    pub enum StorageKind {
        File = "file",
        Block = "block",
        Dir = "dir",
        Network = "network",
        Volume = "volume",
        Nvme = "nvme",
        VhostUser = "vhostuser",
        VhostVdpa = "vhostvdpa",
    }
}

xml_enum! {
    /// How the blocks are arranged in the file.
    pub enum StorageFormat {
        None = "none",
        Raw = "raw",
        Dir = "dir",
        Bochs = "bochs",
        Cloop = "cloop",
        Dmg = "dmg",
        Iso = "iso",
        Vpc = "vpc",
        Vdi = "vdi",
        Fat = "fat",
        Vhd = "vhd",
        Ploop = "ploop",
        Cow = "cow",
        Qcow = "qcow",
        Qcow2 = "qcow2",
        Qed = "qed",
        Vmdk = "vmdk",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown driver format value '{text}'"))
}

impl StorageFormat {
    /// Whether images of this format can have one below them.
    pub fn has_backing(self) -> bool {
        matches!(self, Self::Cow | Self::Qcow | Self::Qcow2 | Self::Qed | Self::Vmdk)
    }
}

xml_enum! {
    /// What a missing source does to a start.
    pub enum StartupPolicy {
        Mandatory = "mandatory",
        Requisite = "requisite",
        Optional = "optional",
    }
}

/// `type`, `<source>` and `<backingStore>` of a disk or of a layer of its chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    pub place: Place,
    /// Descriptors that a client has handed over, by the name of their group.
    pub fdgroup: Option<Box<str>>,
    pub startup_policy: Option<StartupPolicy>,
    /// The layer's number in block node names, once the guest was started.
    pub index: Option<u32>,
    /// The part of the file that is the image.
    pub slice: Option<Slice>,
    pub seclabels: Vec<Raw>,
    pub auth: Option<Box<StorageAuth>>,
    pub encryption: Option<Box<Encryption>>,
    pub reservations: Option<Box<Reservations>>,
    /// Another file that has the image's data.
    pub data_store: Option<Box<Raw>>,
    pub backing: Option<Box<Backing>>,
    /// `backing` was found in the image, not in the definition: no part of the inactive form.
    pub backing_detected: bool,
    /// The source as the definition has it, where `place` is the volume of a pool that it names.
    pub volume: Option<Box<VolumeSource>>,
    /// The host's CD-ROM drive, found out at start.
    pub is_host_cdrom: bool,
}

/// Where the bytes are. No path means no medium.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    File(Option<Box<str>>),
    Block(Option<Box<str>>),
    Dir(Option<Box<str>>),
    Network(Box<RemoteSource>),
    /// A pool's volume that nobody has looked up yet.
    Volume(Box<VolumeSource>),
    Nvme(Box<NvmeSource>),
    VhostUser(Box<VhostUserSource>),
    /// A device of the host that speaks virtio itself.
    VhostVdpa(Box<str>),
}

/// What lies below an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Backing {
    /// Nothing, as is known.
    End,
    Layer(Layer),
}

/// One image of a chain, below the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    pub format: LayerFormat,
    pub storage: Storage,
}

xml! {
    pub struct LayerFormat {
        attr kind: StorageFormat = "type";
        child metadata_cache: Option<MetadataCache> = "metadata_cache";
    }
}

xml! {
    /// How much memory QEMU spends on an image's tables.
    pub struct MetadataCache {
        child max_size: CacheSize = "max_size";
    }
}

/// A size that is printed in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    pub bytes: u64,
}

impl Part for CacheSize {
    fn read(element: Element<'_>) -> Result<Self> {
        let text = element.text();
        let malformed =
            || ConfError::xml(format!("Invalid value '{text}' for element or attribute 'max_size'"));
        let value = text.trim().parse().map_err(|_| malformed())?;
        let bytes = crate::util::units::scale(value, element.attribute("unit"), 1, u64::MAX)
            .map_err(|error| ConfError::invalid_arg(error.to_string()))?;
        Ok(Self { bytes })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("unit", "bytes");
    }

    fn write_children(&self, out: &mut Writer) {
        out.body(&self.bytes);
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self::new(Place::File(None))
    }
}

impl Storage {
    pub fn new(place: Place) -> Self {
        Self {
            place,
            fdgroup: None,
            startup_policy: None,
            index: None,
            slice: None,
            seclabels: Vec::new(),
            auth: None,
            encryption: None,
            reservations: None,
            data_store: None,
            backing: None,
            backing_detected: false,
            volume: None,
            is_host_cdrom: false,
        }
    }

    pub fn kind(&self) -> StorageKind {
        match &self.place {
            _ if self.volume.is_some() => StorageKind::Volume,
            Place::File(_) => StorageKind::File,
            Place::Block(_) => StorageKind::Block,
            Place::Dir(_) => StorageKind::Dir,
            Place::Network(_) => StorageKind::Network,
            Place::Volume(_) => StorageKind::Volume,
            Place::Nvme(_) => StorageKind::Nvme,
            Place::VhostUser(_) => StorageKind::VhostUser,
            Place::VhostVdpa(_) => StorageKind::VhostVdpa,
        }
    }

    /// The path on this host, where there is one.
    pub fn path(&self) -> Option<&str> {
        match &self.place {
            Place::File(path) | Place::Block(path) | Place::Dir(path) => path.as_deref(),
            _ => None,
        }
    }

    /// Whether there is nothing in the drive.
    pub fn is_empty(&self) -> bool {
        matches!(self.place, Place::File(None) | Place::Block(None) | Place::Dir(None))
    }

    /// The other host that has the image, if one has.
    pub fn remote(&self) -> Option<&RemoteSource> {
        match &self.place {
            Place::Network(remote) => Some(remote),
            _ => None,
        }
    }

    /// The pool and the volume that stand for a place nobody has looked up yet.
    pub fn pool_and_volume(&self) -> Option<(&str, &str)> {
        match &self.place {
            Place::Volume(source) => Some((&source.pool, &source.volume)),
            _ => None,
        }
    }

    /// Notes where the volume is; the definition goes on naming pool and volume.
    pub fn locate(&mut self, place: Place) {
        if let Place::Volume(source) = std::mem::replace(&mut self.place, place) {
            self.volume = Some(source);
        }
    }

    /// The next image of the chain, if there is one.
    pub fn layer(&self) -> Option<&Layer> {
        match self.backing.as_deref() {
            Some(Backing::Layer(layer)) => Some(layer),
            _ => None,
        }
    }

    /// The images below this one, from the top.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::successors(self.layer(), |layer| layer.storage.layer())
    }

    /// A source that is called otherwise.
    pub fn read_source(source: Element<'_>, kind: StorageKind) -> Result<Self> {
        read_source(source, kind)
    }

    /// The same.
    pub fn write_source_as(&self, out: &mut Writer, name: &'static str) {
        self.write_named(out, name, WithIndex::No);
    }

    fn write_source(&self, out: &mut Writer, with_index: WithIndex) {
        self.write_named(out, "source", with_index);
    }

    fn write_named(&self, out: &mut Writer, name: &'static str, with_index: WithIndex) {
        out.group(name, |out| {
            match &self.place {
                _ if self.volume.is_some() => {}
                Place::File(path) => write_path(out, "file", path),
                Place::Block(path) => write_path(out, "dev", path),
                Place::Dir(path) => write_path(out, "dir", path),
                Place::Network(source) => source.write_attributes(out),
                Place::Volume(source) => source.write_attributes(out),
                Place::Nvme(source) => source.write_attributes(out),
                Place::VhostUser(source) => source.write_attributes(out),
                Place::VhostVdpa(device) => out.attribute("dev", device),
            }
            if let Some(source) = &self.volume {
                source.write_attributes(out);
            }
            if let Some(group) = &self.fdgroup {
                out.attribute("fdgroup", group);
            }
            if let Some(policy) = self.startup_policy.as_ref().filter(|_| self.remote().is_none()) {
                out.attribute("startupPolicy", policy);
            }
            let shown = out.form().contains(Form::LIVE) && !self.is_empty();
            if let (WithIndex::Yes, Some(index), true) = (with_index, &self.index, shown) {
                out.attribute("index", index);
            }
            match &self.place {
                Place::Network(source) => source.write_children(out),
                Place::Nvme(source) => source.write_children(out),
                Place::VhostUser(source) => source.write_children(out),
                _ => {}
            }
            self.write_extras(out);
        });
    }

    /// What any source may have.
    fn write_extras(&self, out: &mut Writer) {
        if let Some(slice) = self.slice {
            slice.write(out);
        }
        for label in self.seclabels.iter().filter(|_| self.remote().is_none()) {
            Part::write(label, out, "seclabel");
        }
        let is_volume = self.kind() == StorageKind::Volume;
        if let Some(auth) = self.auth.as_ref().filter(|_| !is_volume) {
            Part::write(&**auth, out, "auth");
        }
        if let Some(encryption) = &self.encryption {
            Part::write(&**encryption, out, "encryption");
        }
        if let Some(reservations) = &self.reservations {
            Part::write(&**reservations, out, "reservations");
        }
        if let Some(data_store) = &self.data_store {
            Part::write(data_store, out, "dataStore");
        }
    }

    fn write_backing(&self, out: &mut Writer) {
        match self.backing.as_deref() {
            None => {}
            Some(_) if self.backing_detected && !out.form().contains(Form::LIVE) => {}
            Some(Backing::End) => out.empty("backingStore"),
            Some(Backing::Layer(layer)) => out.element("backingStore", |out| {
                out.attribute("type", &layer.storage.kind());
                if let (Some(index), true) = (&layer.storage.index, out.form().contains(Form::LIVE)) {
                    out.attribute("index", index);
                }
                Part::write(&layer.format, out, "format");
                layer.storage.write_source(out, WithIndex::No);
                layer.storage.write_backing(out);
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum WithIndex {
    Yes,
    No,
}

fn write_path(out: &mut Writer, name: &str, path: &Option<Box<str>>) {
    if let Some(path) = path {
        out.attribute(name, path);
    }
}

impl Part for Storage {
    fn read(element: Element<'_>) -> Result<Self> {
        let kind = element.value("type")?.unwrap_or(StorageKind::File);
        let mut storage = match element.child("source") {
            Some(source) => read_source(source, kind)?,
            // An empty drive.
            None => Self::new(match kind {
                StorageKind::Block => Place::Block(None),
                StorageKind::Dir => Place::Dir(None),
                _ => Place::File(None),
            }),
        };
        storage.backing = read_backing(element)?.map(Box::new);
        Ok(storage)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.kind());
    }

    fn write_children(&self, out: &mut Writer) {
        self.write_source(out, WithIndex::Yes);
        self.write_backing(out);
    }
}

fn read_source(source: Element<'_>, kind: StorageKind) -> Result<Storage> {
    // Some programs write an empty path where they mean an empty drive.
    let path = |name: &str| source.attribute(name).filter(|path| !path.is_empty()).map(Box::<str>::from);
    let mut storage = Storage::new(match kind {
        StorageKind::File => Place::File(path("file")),
        StorageKind::Block => Place::Block(path("dev")),
        StorageKind::Dir => Place::Dir(path("dir")),
        StorageKind::Network => Place::Network(Box::new(RemoteSource::read_source(source)?)),
        StorageKind::Volume => match VolumeSource::read_source(source)? {
            Some(volume) => Place::Volume(Box::new(volume)),
            None => Place::File(None),
        },
        StorageKind::Nvme => Place::Nvme(Box::new(NvmeSource::read(source)?)),
        StorageKind::VhostUser => Place::VhostUser(Box::new(VhostUserSource::read(source)?)),
        StorageKind::VhostVdpa => Place::VhostVdpa(source.required("dev")?),
    });
    storage.startup_policy = source.value("startupPolicy")?;
    if kind == StorageKind::File {
        storage.fdgroup = source.attribute("fdgroup").map(Into::into);
    }
    if source.form().contains(Form::LIVE) {
        storage.index = source.value("index")?;
    }
    let child = |name: &str| source.child(name);
    storage.auth = child("auth").map(StorageAuth::read).transpose()?.map(Box::new);
    storage.encryption = child("encryption").map(Encryption::read).transpose()?.map(Box::new);
    storage.reservations = child("reservations").map(Reservations::read).transpose()?.map(Box::new);
    storage.slice = Slice::read_in(source)?;
    storage.seclabels = source.children_named("seclabel").map(Raw::read).collect::<Result<_>>()?;
    storage.data_store = child("dataStore").map(Raw::read).transpose()?.map(Box::new);
    Ok(storage)
}

fn read_backing(element: Element<'_>) -> Result<Option<Backing>> {
    let Some(backing) = element.child("backingStore") else { return Ok(None) };
    let Some(kind) = backing.value("type")? else { return Ok(Some(Backing::End)) };
    let Some(format) = backing.child("format") else {
        return Err(ConfError::xml("missing disk backing store format"));
    };
    let Some(source) = backing.child("source") else {
        return Err(ConfError::xml("missing disk backing store source"));
    };
    let mut storage = read_source(source, kind)?;
    storage.index = if backing.form().contains(Form::LIVE) { backing.value("index")? } else { None };
    storage.backing = read_backing(backing)?.map(Box::new);
    let format = LayerFormat::read(format)?;
    Ok(Some(Backing::Layer(Layer { format, storage })))
}
