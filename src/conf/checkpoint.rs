//! `<domaincheckpoint>`: a moment from which on it is noted what a guest writes.

use std::sync::Arc;

use super::devices::Disk;
use super::domain::Domain;
use super::moments::Moment;
use super::snapshot::{KeptDomain, Parent};
use super::xml::{Form, read_document, write_document, xml, xml_enum};
use super::{ConfError, Result};

xml! {
    pub struct Checkpoint {
        text name: Option<Box<str>> = "name";
        text description: Option<Box<str>> = "description";
        child parent: Option<Parent> = "parent";
        /// Seconds since 1970.
        text creation_time: Option<i64> = "creationTime";
        list disks: Vec<CheckpointDisk> = "disks" / "disk";
        child domain: Option<KeptDomain> = "domain";
    }
}

xml! {
    /// `<disk>`
    pub struct CheckpointDisk {
        attr name: Box<str> = "name";
        attr kind: Option<CheckpointKind> = "checkpoint";
        attr bitmap: Option<Box<str>> = "bitmap";
        /// Bytes written since, where somebody has asked.
        attr size: Option<u64> = "size";
    }
}

xml_enum! {
    pub enum CheckpointKind {
        No = "no",
        Bitmap = "bitmap",
    }
}

impl CheckpointDisk {
    /// Whether it is noted what is written to the disk.
    pub fn is_noted(&self) -> bool {
        self.kind == Some(CheckpointKind::Bitmap)
    }
}

impl Moment for Checkpoint {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn parent(&self) -> Option<&str> {
        self.parent.as_ref().map(|parent| &*parent.name)
    }
}

/// What a client sees of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    All,
    WithoutDomain,
}

impl Checkpoint {
    /// Reads a client's description.
    pub fn parse(text: &str) -> Result<Self> {
        let mut checkpoint = Self::read_text(text)?;
        checkpoint.parent = None;
        checkpoint.creation_time = None;
        checkpoint.domain = None;
        Ok(checkpoint)
    }

    /// Reads the description of one that was made before, or a file.
    pub fn parse_made(text: &str) -> Result<Self> {
        let checkpoint = Self::read_text(text)?;
        if checkpoint.name.is_none() {
            return Err(ConfError::xml("a redefined checkpoint must have a name"));
        }
        if checkpoint.creation_time.is_none() {
            return Err(ConfError::internal("missing creationTime from existing checkpoint"));
        }
        Ok(checkpoint)
    }

    fn read_text(text: &str) -> Result<Self> {
        let mut checkpoint: Self = read_document(text, "domaincheckpoint", Form::INACTIVE)?;
        for disk in &mut checkpoint.disks {
            disk.kind.get_or_insert(CheckpointKind::Bitmap);
            disk.size = None;
        }
        match checkpoint.name.as_deref().filter(|name| name.contains('/') || name.starts_with('.')) {
            Some(name) => Err(ConfError::xml(format!("invalid checkpoint name '{name}'"))),
            None => Ok(checkpoint),
        }
    }

    pub fn to_xml(&self, form: Form, shown: Shown) -> String {
        match shown {
            Shown::All => write_document(self, "domaincheckpoint", form),
            Shown::WithoutDomain => {
                write_document(&Self { domain: None, ..self.clone() }, "domaincheckpoint", form)
            }
        }
    }

    pub fn set_parent(&mut self, name: Option<&str>) {
        self.parent = name.map(|name| Parent { name: name.into() });
    }

    pub fn name_bitmaps(&mut self) {
        let name = self.name.clone();
        for disk in self.disks.iter_mut().filter(|disk| disk.is_noted() && disk.bitmap.is_none()) {
            disk.bitmap.clone_from(&name);
        }
    }

    /// One disk for each of the domain's, in the same order.
    pub fn align(&mut self, domain: &Arc<Domain>) -> Result<()> {
        let disks = &domain.devices.disks;
        let unsupported = |sentence: String| Err(ConfError::unsupported(sentence));
        if self.disks.len() > disks.len() {
            return unsupported("too many disk checkpoint requests for domain".to_owned());
        }
        if disks.is_empty() {
            return unsupported("domain must have at least one disk to perform checkpoints".to_owned());
        }
        let usual = if self.disks.is_empty() { CheckpointKind::Bitmap } else { CheckpointKind::No };
        let is_fixed = |disk: &Disk| disk.storage.is_empty() || disk.readonly;
        let mut given: Vec<Option<CheckpointDisk>> = disks.iter().map(|_| None).collect();
        for mut wanted in std::mem::take(&mut self.disks) {
            let name = wanted.name.clone();
            let named = |disk: &Disk| *disk.name() == *name || disk.storage.path() == Some(&*name);
            let Some((disk, place)) = disks.iter().zip(&mut given).find(|(disk, _)| named(disk)) else {
                return unsupported(format!("no disk named '{name}'"));
            };
            if place.is_some() {
                return unsupported(format!("disk '{name}' specified twice"));
            }
            if is_fixed(disk) && wanted.is_noted() {
                return unsupported(format!("disk '{name}' is empty or readonly"));
            }
            wanted.name = disk.name().into();
            *place = Some(wanted);
        }
        let all = disks.iter().zip(given).map(|(disk, given)| {
            let kind = Some(if is_fixed(disk) { CheckpointKind::No } else { usual });
            given.unwrap_or_else(|| CheckpointDisk {
                name: disk.name().into(),
                kind,
                bitmap: None,
                size: None,
            })
        });
        self.disks = all.collect();
        self.name_bitmaps();
        Ok(())
    }
}
