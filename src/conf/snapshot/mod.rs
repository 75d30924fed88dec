//! `<domainsnapshot>`: a state of a domain that it can go back to.

mod align;

use std::sync::Arc;

pub use align::{Align, align};

use super::devices::{MetadataCache, SnapshotLocation, Storage, StorageFormat, StorageKind};
use super::domain::{Cpu, Domain};
use super::moments::Moment;
use super::xml::{Element, Form, Part, Writer, read_document, write_document, xml, xml_enum};
use super::{ConfError, Result};

xml_enum! {
    /// What the domain did then.
    pub enum SnapshotState {
        Running = "running",
        Blocked = "blocked",
        Paused = "paused",
        Shutdown = "shutdown",
        Shutoff = "shutoff",
        Crashed = "crashed",
        PmSuspended = "pmsuspended",
        /// It ran, and its memory was not kept.
        DiskSnapshot = "disk-snapshot",
    }
    refuse |_place, text| ConfError::unsupported(format!("Invalid state '{text}' in domain snapshot XML"))
}

xml! {
    pub struct Snapshot {
        text name: Option<Box<str>> = "name";
        text description: Option<Box<str>> = "description";
        text state: Option<SnapshotState> = "state";
        child parent: Option<Parent> = "parent";
        /// Seconds since 1970.
        text creation_time: Option<i64> = "creationTime";
        child memory: Option<Memory> = "memory";
        list disks: Vec<SnapshotDisk> = "disks" / "disk";
        /// What the disks stand on since the domain went back to here, where other snapshots follow on this one.
        list revert_disks: Vec<SnapshotDisk> = "revertDisks" / "disk";
        child domain: Option<KeptDomain> = "domain";
        /// What it would have started with the next time.
        child inactive: Option<KeptDomain> = "inactiveDomain";
        child cookie: Option<Cookie> = "cookie";
        /// In the daemon's own files: whether it is the current one.
        text active: Option<u32> = "active";
    }
}

xml! {
    pub struct Parent {
        text name: Box<str> = "name";
    }
}

xml! {
    /// `<memory>`
    pub struct Memory {
        attr location: Option<SnapshotLocation> = "snapshot";
        attr file: Option<Box<str>> = "file";
    }
}

xml! {
    /// `<cookie>`: what is kept of a guest beside its definition.
    pub struct Cookie {
        child cpu: Option<Box<Cpu>> = "cpu";
        flag slirp_helper: bool = "slirpHelper";
    }
}

/// A definition as it was then, shared by whoever reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptDomain(pub Arc<Domain>);

impl Part for KeptDomain {
    fn read(element: Element<'_>) -> Result<Self> {
        Domain::from_part(element).map(|domain| Self(Arc::new(domain)))
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.0.write_attributes(out);
    }

    fn write_children(&self, out: &mut Writer) {
        self.0.write_children(out);
    }
}

/// `<disk>`
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotDisk {
    pub name: Box<str>,
    pub location: Option<SnapshotLocation>,
    /// Its image is being merged into the one below.
    pub is_deleted: bool,
    pub format: Option<StorageFormat>,
    pub metadata_cache: Option<MetadataCache>,
    /// The image that the guest writes to from then on.
    pub storage: Storage,
}

impl SnapshotDisk {
    pub fn new(name: &str, location: Option<SnapshotLocation>) -> Self {
        let storage = Storage::default();
        Self { name: name.into(), location, is_deleted: false, format: None, metadata_cache: None, storage }
    }

    pub fn is_external(&self) -> bool {
        self.location == Some(SnapshotLocation::External)
    }
}

impl Part for SnapshotDisk {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(name) = element.attribute("name") else {
            return Err(ConfError::internal("missing name from disk snapshot element"));
        };
        let mut disk = Self::new(name, element.value("snapshot")?);
        disk.storage = Storage::read(element)?;
        disk.storage.backing = None;
        disk.is_deleted = element.child("snapshotDeleteInProgress").is_some();
        if let kind @ (StorageKind::Volume | StorageKind::Dir) = disk.storage.kind() {
            return Err(ConfError::xml(format!("unsupported disk snapshot type '{kind}'")));
        }
        if let Some(driver) = element.child("driver") {
            let word = driver.attribute("type");
            let format = word.and_then(StorageFormat::from_word).filter(|it| *it != StorageFormat::None);
            disk.format = match (word, format) {
                (Some(word), None) => {
                    let sentence = format!("unknown disk snapshot driver '{word}'");
                    return Err(ConfError::unsupported(sentence));
                }
                (_, format) => format,
            };
            disk.metadata_cache = driver.child("metadata_cache").map(MetadataCache::read).transpose()?;
        }
        if let Some(path) = disk.storage.path().filter(|path| !path.starts_with('/')) {
            return Err(ConfError::xml(format!("disk snapshot image path '{path}' must be absolute")));
        }
        if disk.location.is_none() && (!disk.storage.is_empty() || disk.format.is_some()) {
            disk.location = Some(SnapshotLocation::External);
        }
        Ok(disk)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("name", &self.name);
        if let Some(location) = &self.location {
            out.attribute("snapshot", location);
        }
        if !self.storage.is_empty() || self.format.is_some() {
            out.attribute("type", &self.storage.kind());
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if self.is_deleted {
            out.empty("snapshotDeleteInProgress");
        }
        if self.storage.is_empty() && self.format.is_none() {
            return;
        }
        out.group("driver", |out| {
            if let Some(format) = &self.format {
                out.attribute("type", format);
            }
            if let Some(cache) = &self.metadata_cache {
                Part::write(cache, out, "metadata_cache");
            }
        });
        self.storage.write_children(out);
    }
}

impl Moment for Snapshot {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn parent(&self) -> Option<&str> {
        self.parent.as_ref().map(|parent| &*parent.name)
    }
}

/// What a description of a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be made of a domain that runs, with its memory.
    Online,
    /// To be made of disks alone.
    Offline,
    /// It was made before, and its description says all.
    Redefine,
}

impl Snapshot {
    /// Reads a client's description, or a file.
    pub fn parse(text: &str, purpose: Purpose) -> Result<Self> {
        let mut snapshot: Self = read_document(text, "domainsnapshot", Form::INACTIVE)?;
        let redefined = purpose == Purpose::Redefine;
        if redefined {
            snapshot.check_complete()?;
        } else {
            snapshot.forget_history();
        }
        let offline = match purpose {
            Purpose::Online => false,
            Purpose::Offline => true,
            Purpose::Redefine => {
                matches!(snapshot.state, Some(SnapshotState::Shutoff | SnapshotState::DiskSnapshot))
            }
        };
        snapshot.complete_memory(offline, redefined)?;
        Ok(snapshot)
    }

    fn check_complete(&self) -> Result<()> {
        if self.name.is_none() {
            return Err(ConfError::xml("a redefined snapshot must have a name"));
        }
        if self.creation_time.is_none() {
            return Err(ConfError::internal("missing creationTime from existing snapshot"));
        }
        match self.state {
            Some(_) => Ok(()),
            None => Err(ConfError::xml("missing state from existing snapshot")),
        }
    }

    /// What only a snapshot has that was made.
    fn forget_history(&mut self) {
        self.state = None;
        self.parent = None;
        self.creation_time = None;
        self.revert_disks.clear();
        self.domain = None;
        self.inactive = None;
        self.cookie = None;
        self.active = None;
        self.disks.iter_mut().for_each(|disk| disk.is_deleted = false);
    }

    fn complete_memory(&mut self, offline: bool, redefined: bool) -> Result<()> {
        let given = self.memory.take().unwrap_or(Memory { location: None, file: None });
        let Memory { mut location, file } = given;
        if location == Some(SnapshotLocation::Manual) {
            return Err(ConfError::xml("'manual' memory snapshot mode not supported"));
        }
        if location.is_none() && file.is_some() {
            location = Some(SnapshotLocation::External);
        } else if location.is_none() && redefined {
            let kept = if offline { SnapshotLocation::No } else { SnapshotLocation::Internal };
            location = Some(kept);
        }
        match (&file, location) {
            (Some(file), location) if location != Some(SnapshotLocation::External) => {
                return Err(ConfError::xml(format!("memory filename '{file}' requires external snapshot")));
            }
            (None, Some(SnapshotLocation::External)) => {
                return Err(ConfError::xml("external memory snapshots require a filename"));
            }
            _ => {}
        }
        if offline && !matches!(location, None | Some(SnapshotLocation::No)) {
            let sentence = "memory state cannot be saved with offline or disk-only snapshot";
            return Err(ConfError::xml(sentence));
        }
        if let Some(file) = file.as_deref().filter(|file| !file.starts_with('/')) {
            return Err(ConfError::xml(format!("memory snapshot file path ({file}) must be absolute")));
        }
        self.memory = location.map(|location| Memory { location: Some(location), file });
        Ok(())
    }

    /// Where the memory is.
    pub fn memory_location(&self) -> Option<SnapshotLocation> {
        self.memory.as_ref().and_then(|memory| memory.location)
    }

    pub fn memory_file(&self) -> Option<&str> {
        self.memory.as_ref().and_then(|memory| memory.file.as_deref())
    }

    pub fn set_memory(&mut self, location: SnapshotLocation) {
        self.memory = Some(Memory { location: Some(location), file: None });
    }

    /// Whether anything of it is beside the disks' own images.
    pub fn is_external(&self) -> bool {
        self.memory_location() == Some(SnapshotLocation::External)
            || self.disks.iter().any(SnapshotDisk::is_external)
    }

    pub fn is_online(&self) -> bool {
        matches!(self.state, Some(SnapshotState::Running | SnapshotState::Paused))
    }

    pub fn set_parent(&mut self, name: Option<&str>) {
        self.parent = name.map(|name| Parent { name: name.into() });
    }

    /// As clients see it.
    pub fn to_xml(&self, form: Form) -> String {
        write_document(&Self { active: None, ..self.clone() }, "domainsnapshot", form)
    }

    /// As the daemon keeps it.
    pub fn to_file(&self, is_current: bool) -> String {
        let kept = Self { active: Some(is_current.into()), ..self.clone() };
        write_document(&kept, "domainsnapshot", Form::SECURE)
    }

    /// From what [`Self::to_file`] wrote, or libvirt; whether it is the current one.
    pub fn from_file(text: &str) -> Result<(Self, bool)> {
        let mut snapshot = Self::parse(text, Purpose::Redefine)?;
        let is_current = snapshot.active.take().is_some_and(|active| active != 0);
        Ok((snapshot, is_current))
    }
}

#[cfg(test)]
mod tests;
