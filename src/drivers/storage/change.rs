//! What is done to volumes that are there: resized, wiped.

use super::flags::{CallFlags, ResizeFlags, no_flags};
use super::pool::{Use, free};
use super::volumes::{VolumeRef, has_files, remember, signed};
use super::{Storage, errors};
use crate::conf::devices::StorageFormat;
use crate::conf::storage::{Encryption, Role, SecretLookup, Volume};
use crate::drivers::secret::Value;
use crate::error::{Error, Result};
use crate::qemu::storage::{self as image, Allocate, Opening};

/// What `scrub` calls the algorithms of `virStorageVolWipeAlgorithm`, from 1.
const PATTERNS: [&str; 8] =
    ["nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random"];

/// How a volume is wiped.
#[derive(Debug, Clone, Copy)]
enum Wipe {
    Zero,
    Pattern(&'static str),
}

impl Wipe {
    fn from_number(number: u32) -> Result<Self> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        match (number, at.checked_sub(1).and_then(|at| PATTERNS.get(at))) {
            (0, _) => Ok(Self::Zero),
            (_, Some(pattern)) => Ok(Self::Pattern(pattern)),
            (9, None) => Err(errors::ours(Error::argument_unsupported("'trim' algorithm not supported"))),
            (_, None) => {
                let sentence = format!("wiping algorithm {number} not supported");
                Err(errors::ours(Error::invalid_arg(sentence)))
            }
        }
    }
}

impl Storage {
    pub async fn resize_volume(&self, name: &VolumeRef, capacity: u64, flags: u32) -> Result<()> {
        let flags = ResizeFlags::accept(flags)?;
        let object = self.list.by_name(&name.pool)?;
        let (_use, mut volume) = Use::begin(&object, &name.name, free)?;
        if !has_files(&object) {
            let sentence = "storage pool does not support changing of volume capacity";
            return Err(errors::ours(Error::no_support(sentence)));
        }
        let wanted = wanted_capacity(&volume, capacity, flags)?;
        let allocate = flags.contains(ResizeFlags::ALLOCATE);
        let more = if allocate { wanted.saturating_sub(volume.allocation) } else { 0 };
        if more > object.state().current.sizes.available {
            return Err(errors::ours(Error::operation_failed("Not enough space left in storage pool")));
        }
        let is_raw = volume.target.format == Some(StorageFormat::Raw);
        if is_raw && volume.target.encryption.is_none() {
            let path = volume.target.path.clone();
            let allocate = if allocate { Allocate::Now } else { Allocate::WhenWritten };
            object.copying(move || Ok(image::resize(&path, wanted, allocate)?)).await?;
        } else if allocate {
            let which = if is_raw { "an unencrypted raw" } else { "raw type" };
            let sentence = format!("preallocate is only supported for {which} volume");
            return Err(errors::ours(Error::operation_unsupported(sentence)));
        } else {
            let passphrase = self.passphrase(&volume)?;
            self.tools.resize(Opening { volume: &volume, passphrase: passphrase.as_deref() }, wanted).await?;
        }
        volume.capacity = wanted;
        if allocate {
            volume.allocation = wanted;
            object.update(|state| state.grow(signed(more)), |_, ()| ());
        }
        remember(&object, &volume);
        Ok(())
    }

    pub async fn wipe_volume(&self, name: &VolumeRef, algorithm: u32, flags: u32) -> Result<()> {
        no_flags(flags, "storageVolWipePattern")?;
        let wipe = Wipe::from_number(algorithm);
        let object = self.list.by_name(&name.pool)?;
        let (_use, volume) = Use::begin(&object, &name.name, free)?;
        let path = volume.target.path.clone();
        let wipe = wipe?;
        may_be_wiped(&volume)?;
        match wipe {
            Wipe::Zero => {
                let allocation = volume.allocation;
                object.copying(move || Ok(image::wipe(&path, allocation)?)).await?;
            }
            Wipe::Pattern(pattern) => self.tools.scrub(&path, pattern).await?,
        }
        if !has_files(&object) {
            return Ok(());
        }
        // Nothing is left of what its header said.
        let (directory, before) = (object.state().current.path.clone(), volume);
        let probed = object.blocking(move || Ok(image::probe(&directory, &before.name, None)?)).await?;
        if let Some(volume) = probed {
            remember(&object, &volume);
        }
        Ok(())
    }

    /// What is to open an encrypted volume that is made.
    pub(super) fn new_passphrase(&self, volume: &Volume) -> Result<Option<Value>> {
        let Some(encryption) = &volume.target.encryption else { return Ok(None) };
        let value = if encryption.secrets.len() > 1 { None } else { self.passphrase(volume)? };
        let sentence = "A single <secret type='passphrase'...> element is expected in encryption description";
        value.map(Some).ok_or_else(|| errors::ours(Error::invalid_arg(sentence)))
    }

    /// What opens an encrypted volume: the secret that its description names, or the one for its path.
    pub(super) fn passphrase(&self, volume: &Volume) -> Result<Option<Value>> {
        let Some(encryption) = &volume.target.encryption else { return Ok(None) };
        let Encryption { secrets, .. } = &**encryption;
        let value = match secrets.first().map(|secret| &secret.lookup) {
            Some(SecretLookup::Uuid(uuid)) => self.secrets.value_for_us(*uuid)?,
            Some(SecretLookup::Usage(usage)) => self.secrets.volume_value(usage)?,
            None => match self.secrets.volume_value(&volume.target.path) {
                Ok(value) => value,
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(value))
    }
}

/// Refuses to overwrite devices that a wipe would fill or break.
fn may_be_wiped(volume: &Volume) -> Result<()> {
    let path = &volume.target.path;
    let sentence = match volume.role {
        Role::Whole | Role::Logical => return Ok(()),
        Role::Sparse => format!("logical volume '{path}' is sparse, volume wipe not supported"),
        Role::Extended => format!("cannot wipe extended partition '{path}'"),
    };
    Err(errors::ours(Error::no_support(sentence)))
}

fn wanted_capacity(volume: &Volume, capacity: u64, flags: ResizeFlags) -> Result<u64> {
    let wanted = match (flags.contains(ResizeFlags::DELTA), flags.contains(ResizeFlags::SHRINK)) {
        (true, true) => volume.capacity.saturating_sub(capacity),
        (true, false) => volume.capacity.saturating_add(capacity),
        (false, _) => capacity,
    };
    let invalid = |sentence: &'static str| Err(errors::ours(Error::invalid_arg(sentence)));
    if wanted < volume.allocation {
        return invalid("can't shrink capacity below existing allocation");
    }
    if wanted < volume.capacity && !flags.contains(ResizeFlags::SHRINK) {
        return invalid(
            "Can't shrink capacity below current capacity unless shrink flag explicitly specified",
        );
    }
    Ok(wanted)
}
