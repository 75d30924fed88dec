//! Volumes that are there: lookups, descriptions, deletion.

use std::sync::Arc;

use super::backend::Backend;
use super::flags::no_flags;
use super::pool::{PoolObject, Record, Use, free};
use super::{Storage, errors};
use crate::conf::storage::{PoolType, Volume, VolumeType, clean_path};
use crate::error::{Error, Result};
use crate::qemu::storage as image;
use crate::util::uuid::Uuid;

/// A volume as clients know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRef {
    pub pool: String,
    pub name: String,
    pub key: String,
}

impl VolumeRef {
    pub fn of(pool: &str, volume: &Volume) -> Self {
        Self { pool: pool.to_owned(), name: volume.name.to_string(), key: volume.key.to_string() }
    }
}

impl Storage {
    /// The first volume of the active pools that is meant.
    fn find(&self, is_meant: impl Fn(&Volume) -> bool) -> Option<VolumeRef> {
        self.list.all().into_iter().find_map(|object| {
            let state = object.state();
            let mut volumes = state.volumes.values().filter(|_| state.is_active);
            let record = volumes.find(|record| is_meant(&record.volume))?;
            Some(VolumeRef::of(&state.current.name, &record.volume))
        })
    }

    pub fn volume_by_name(&self, (uuid, pool): (Uuid, &str), name: &str) -> Result<VolumeRef> {
        let state = self.state(uuid, pool)?;
        state.require_active()?;
        let missing = || errors::no_volume(format_args!("name '{name}'"));
        let record = state.volume(name).ok_or_else(missing)?;
        Ok(VolumeRef::of(&state.current.name, &record.volume))
    }

    pub fn volume_by_key(&self, key: &str) -> Result<VolumeRef> {
        self.find(|volume| *volume.key == *key).ok_or_else(|| errors::no_volume(format_args!("key {key}")))
    }

    pub fn volume_by_path(&self, path: &str) -> Result<VolumeRef> {
        let clean = clean_path(path);
        self.find(|volume| volume.target.path == clean).ok_or_else(|| match *clean == *path {
            true => errors::no_volume(format_args!("path '{path}'")),
            false => errors::no_volume(format_args!("path '{path}' ({clean})")),
        })
    }

    /// The pool of a volume that a client names, and the volume.
    pub(super) fn volume(&self, name: &VolumeRef) -> Result<(Arc<PoolObject>, Arc<Record>)> {
        let object = self.list.by_name(&name.pool)?;
        let state = object.state();
        state.require_active()?;
        let missing = || errors::no_volume(format_args!("name '{}'", name.name));
        let record = Arc::clone(state.volume(&name.name).ok_or_else(missing)?);
        Ok((object, record))
    }

    pub fn volume_path(&self, name: &VolumeRef) -> Result<String> {
        let (_, record) = self.volume(name)?;
        Ok(record.volume.target.path.to_string())
    }

    /// The volume as its file is now.
    pub async fn fresh_volume(&self, name: &VolumeRef) -> Result<Volume> {
        let (object, record) = self.volume(name)?;
        let mut volume = record.volume.clone();
        if !has_files(&object) {
            return Ok(volume);
        }
        let volume = object.blocking(move || {
            image::update(&mut volume)?;
            Ok(volume)
        });
        let volume = volume.await?;
        // What became of it meanwhile is newer: resized, or another of its name.
        remember_if(&object, &volume, |kept| *kept == record.volume);
        Ok(volume)
    }

    /// Removes a volume and its file. What a link in the pool leads to stays.
    pub async fn delete_volume(self: &Arc<Self>, name: &VolumeRef, flags: u32) -> Result<()> {
        let object = self.list.by_name(&name.pool)?;
        // Until it is gone nobody else begins to work with it, nor deletes what has its name by then.
        let (deleting, volume) = Use::begin(&object, &name.name, free)?;
        no_flags(flags, "virStorageBackendVolDeleteLocal")?;
        if has_files(&object) {
            let (path, kind) = (volume.target.path.clone(), volume.kind);
            object.blocking(move || remove_file(&path, kind)).await?;
        } else {
            self.remove_block(&object, &volume).await?;
        }
        deleting.end_with_volume(signed(volume.allocation));
        if object.state().current.kind == PoolType::Disk {
            // The numbers of the others may have changed with it.
            self.refresh_object(&object).await?;
        }
        Ok(())
    }
}

/// Volumes are files in a directory.
pub(super) fn has_files(object: &PoolObject) -> bool {
    Backend::of(object.state().current.kind).is_some_and(Backend::has_files)
}

/// Keeps what was found of a volume that is still there, and that the caller works with.
pub(super) fn remember(object: &PoolObject, volume: &Volume) {
    remember_if(object, volume, |_| true);
}

fn remember_if(object: &PoolObject, volume: &Volume, is_meant: impl FnOnce(&Volume) -> bool) {
    object.update(
        |state| {
            state.change_volumes(|volumes| {
                if let Some(record) = volumes.get_mut(&*volume.name).filter(|it| is_meant(&it.volume)) {
                    Arc::make_mut(record).volume = volume.clone();
                }
            });
        },
        |_, ()| (),
    );
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn remove_file(path: &str, kind: VolumeType) -> Result<()> {
    let (removed, what) = match kind {
        VolumeType::Dir if !is_link(path) => (std::fs::remove_dir(path), "cannot remove directory"),
        VolumeType::File | VolumeType::Dir => (std::fs::remove_file(path), "cannot unlink file"),
        _ => {
            let sentence = format!("removing block or network volumes is not supported: {path}");
            return Err(errors::ours(Error::no_support(sentence)));
        }
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Storage::io(format_args!("{what} '{path}'"), error))
        }
        _ => Ok(()),
    }
}

fn is_link(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}
