//! How volumes come into being: made from nothing, or copied from others.
//!
//! A volume is on the list from the beginning, marked as not whole, so that its progress can be seen and
//! nobody else takes its name. What fails is off the list again and its file is gone.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::flags::{CallFlags, CloneFlags, VolumeFlags};
use super::pool::{PoolObject, Record, Use, whole};
use super::volumes::{VolumeRef, has_files, signed};
use super::{Storage, errors};
use crate::conf::devices::StorageFormat;
use crate::conf::storage::{Capacity, Volume, VolumeType};
use crate::error::{Code, Error, Result};
use crate::qemu::storage::{self as image, Build, Opening, Reflink};
use crate::util::uuid::Uuid;

/// What file systems take.
const MAX_NAME: usize = 255;

/// A volume on the list that is not whole. Dropped, it was never there.
struct Building {
    object: Arc<PoolObject>,
    name: Box<str>,
    /// What to remove with it.
    file: Option<Box<str>>,
    is_done: bool,
}

impl Building {
    fn begin(object: &Arc<PoolObject>, volume: &Volume, taken: impl FnOnce() -> Error) -> Result<Self> {
        let record = Record { building: true, ..Record::new(volume.clone()) };
        object.update(
            |state| {
                state.require_active()?;
                state.change_volumes(|volumes| match volumes.contains_key(&*volume.name) {
                    true => Err(taken()),
                    false => {
                        volumes.insert(Arc::from(&*volume.name), Arc::new(record));
                        Ok(())
                    }
                })
            },
            |_, _| (),
        )?;
        Ok(Self { object: Arc::clone(object), name: volume.name.clone(), file: None, is_done: false })
    }

    /// Its file is ours to remove from now on.
    fn owns(&mut self, path: &str) {
        self.file = Some(path.into());
    }

    /// Removes it beside the tasks: the disk may be the one that has just failed.
    async fn abandon(self) -> Result<()> {
        let object = Arc::clone(&self.object);
        object
            .blocking(move || {
                drop(self);
                Ok(())
            })
            .await
    }

    fn finish(mut self, volume: &Volume) {
        self.is_done = true;
        self.object.update(
            |state| {
                let record = Record::new(volume.clone());
                state.change_volumes(|volumes| volumes.insert(Arc::from(&*volume.name), Arc::new(record)));
                state.grow(signed(volume.allocation));
            },
            |_, ()| (),
        );
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Some(path) = &self.file {
            let path = Path::new(&**path);
            let removed = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was left of a volume");
            }
        }
        self.object
            .update(|state| drop(state.change_volumes(|volumes| volumes.remove(&*self.name))), |_, ()| ());
    }
}

impl Storage {
    pub async fn create_volume(&self, uuid: Uuid, pool: &str, xml: &str, flags: u32) -> Result<VolumeRef> {
        let flags = VolumeFlags::accept(flags)?;
        let object = self.referred(uuid, pool)?;
        let state = object.state();
        state.require_active()?;
        let volume = Volume::parse(xml, state.current.kind, Capacity::Needed).map_err(errors::refused)?;
        let name = volume.name.clone();
        let taken = || errors::ours(Error::new(Code::STORAGE_VOL_EXIST, format!("'{name}'")));
        if state.volume(&name).is_some() {
            return Err(taken());
        }
        let volume = place(&object, volume).await?;
        let building = Building::begin(&object, &volume, taken)?;
        let preallocate = flags.contains(VolumeFlags::PREALLOCATE_METADATA);
        self.make(building, volume, None, Options { preallocate, reflink: Reflink::No }).await
    }

    /// Makes a volume with the content of `original`, in whatever format is asked for.
    pub async fn clone_volume(
        &self,
        (uuid, pool): (Uuid, &str),
        xml: &str,
        original: &VolumeRef,
        flags: u32,
    ) -> Result<VolumeRef> {
        let flags = CloneFlags::accept(flags)?;
        let object = self.referred(uuid, pool)?;
        let source = self.list.by_name(&original.pool)?;
        let state = object.state();
        state.require_active()?;
        let (_use, _) = Use::begin(&source, &original.name, whole)?;
        let mut volume =
            Volume::parse(xml, state.current.kind, Capacity::Optional).map_err(errors::refused)?;
        let name = volume.name.clone();
        let taken =
            || errors::ours(Error::internal_error(format!("storage volume name '{name}' already in use.")));
        if state.volume(&name).is_some() {
            return Err(taken());
        }
        let original = self.fresh_volume(original).await?;
        volume.capacity = volume.capacity.max(original.capacity);
        if !volume.has_allocation {
            volume.allocation = volume.capacity;
        }
        let volume = place(&object, volume).await?;
        let building = Building::begin(&object, &volume, taken)?;
        let options = Options {
            preallocate: flags.contains(CloneFlags::PREALLOCATE_METADATA),
            reflink: if flags.contains(CloneFlags::REFLINK) { Reflink::Yes } else { Reflink::No },
        };
        self.make(building, volume, Some(original), options).await
    }

    async fn make(
        &self,
        mut building: Building,
        volume: Volume,
        original: Option<Volume>,
        options: Options,
    ) -> Result<VolumeRef> {
        let made = match self.make_file(&mut building, volume, original, options).await {
            Ok(made) => made,
            Err(error) => {
                if let Err(left) = building.abandon().await {
                    tracing::warn!(error = %left, "cannot remove what was left of a volume");
                }
                return Err(error);
            }
        };
        let reference = VolumeRef::of(&building.object.state().current.name, &made);
        building.finish(&made);
        tracing::info!(pool = reference.pool, volume = reference.name, "made a volume");
        Ok(reference)
    }

    async fn make_file(
        &self,
        building: &mut Building,
        mut volume: Volume,
        original: Option<Volume>,
        options: Options,
    ) -> Result<Volume> {
        let object = Arc::clone(&building.object);
        if !has_files(&object) {
            return self.make_device(&object, volume, original).await;
        }
        let how = How::of(&volume, original.as_ref(), &options)?;
        if how == How::Directory {
            let target = volume.target.clone();
            let made = object.blocking(move || Ok(image::make_directory(&target.path, &target.permissions)?));
            made.await?;
            building.owns(&volume.target.path);
        } else {
            let path = volume.target.path.clone();
            let file = object.blocking(move || Ok(image::reserve(&path)?)).await?;
            building.owns(&volume.target.path);
            match how {
                How::Raw => fill(&object, file, &volume, original.as_ref(), options.reflink).await?,
                _ => {
                    self.format_image(&object, file, &volume, original.as_ref(), options.preallocate).await?
                }
            }
        }
        let update = move || {
            image::update(&mut volume)?;
            Ok(volume)
        };
        object.blocking(update).await
    }

    /// Makes a volume that is no file. Who makes it removes it if it fails.
    async fn make_device(
        &self,
        object: &Arc<PoolObject>,
        volume: Volume,
        original: Option<Volume>,
    ) -> Result<Volume> {
        let made = self.make_block(object, volume).await?;
        let Some(original) = original else { return Ok(made) };
        let filled = match is_plain(&original) && made.target.encryption.is_none() {
            true => {
                let path = made.target.path.clone();
                object.copying(move || Ok(image::fill_device(&path, &original)?)).await
            }
            false => self.convert_to_device(&made, &original).await,
        };
        match filled {
            Ok(()) => Ok(made),
            Err(error) => {
                if let Err(left) = self.remove_block(object, &made).await {
                    tracing::warn!(error = %left, "cannot remove what was left of a volume");
                }
                Err(error)
            }
        }
    }

    async fn convert_to_device(&self, volume: &Volume, original: &Volume) -> Result<()> {
        let (passphrase, source) = (self.new_passphrase(volume)?, self.passphrase(original)?);
        let new = Opening { volume, passphrase: passphrase.as_deref() };
        Ok(self
            .tools
            .convert(new, Opening { volume: original, passphrase: source.as_deref() }, false)
            .await?)
    }

    /// Makes a device an encrypted image.
    pub(super) async fn encrypt_device(&self, volume: &Volume) -> Result<()> {
        let passphrase = self.new_passphrase(volume)?;
        Ok(self.tools.create(Opening { volume, passphrase: passphrase.as_deref() }, false).await?)
    }

    async fn format_image(
        &self,
        object: &Arc<PoolObject>,
        file: File,
        volume: &Volume,
        original: Option<&Volume>,
        preallocate: bool,
    ) -> Result<()> {
        let passphrase = self.new_passphrase(volume)?;
        let new = Opening { volume, passphrase: passphrase.as_deref() };
        match original {
            None => self.tools.create(new, preallocate).await?,
            Some(original) => {
                let passphrase = self.passphrase(original)?;
                let opening = Opening { volume: original, passphrase: passphrase.as_deref() };
                self.tools.convert(new, opening, preallocate).await?;
            }
        }
        let target = volume.target.clone();
        object.blocking(move || Ok(image::set_permissions(&file, &target.path, &target.permissions)?)).await
    }
}

#[derive(Debug, Clone, Copy)]
struct Options {
    preallocate: bool,
    reflink: Reflink,
}

/// Who makes a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Raw,
    Directory,
    QemuImg,
}

impl How {
    fn of(volume: &Volume, original: Option<&Volume>, options: &Options) -> Result<Self> {
        let no_support = |sentence: &'static str| Err(errors::ours(Error::no_support(sentence)));
        if volume.kind == VolumeType::Dir {
            if original.is_some() {
                let sentence = "cannot copy from volume to a directory volume";
                return Err(errors::ours(Error::internal_error(sentence)));
            }
            return match volume.backing {
                Some(_) => no_support("backing storage not supported for directories volumes"),
                None => Ok(Self::Directory),
            };
        }
        if !is_plain(volume) || original.is_some_and(|original| !is_plain(original)) {
            // What asked for no second copy of the data must not get one.
            return match options.reflink {
                Reflink::Yes => {
                    let flag = CloneFlags::REFLINK.bits();
                    Err(errors::ours(Error::unsupported_flags(flag, "storageBackendCreateQemuImg")))
                }
                Reflink::No => Ok(Self::QemuImg),
            };
        }
        if options.preallocate {
            let sentence = "metadata preallocation is not supported for raw volumes";
            return Err(errors::ours(Error::config_unsupported(sentence)));
        }
        match volume.backing {
            Some(_) => no_support("backing storage not supported for raw volumes"),
            None => Ok(Self::Raw),
        }
    }
}

/// An image without a format: what is read of it is its content.
fn is_plain(volume: &Volume) -> bool {
    matches!(volume.target.format, Some(StorageFormat::Raw) | None) && volume.target.encryption.is_none()
}

async fn fill(
    object: &Arc<PoolObject>,
    mut file: File,
    volume: &Volume,
    original: Option<&Volume>,
    reflink: Reflink,
) -> Result<()> {
    let (volume, original) = (volume.clone(), original.cloned());
    let work = move || {
        image::build(&mut file, Build { volume: &volume, original: original.as_ref(), reflink })?;
        Ok(image::set_permissions(&file, &volume.target.path, &volume.target.permissions)?)
    };
    object.copying(work).await
}

/// Where the file of a new volume goes: into the pool's directory and nowhere else.
async fn place(object: &PoolObject, mut volume: Volume) -> Result<Volume> {
    let directory = &object.state().current.path;
    let name = &volume.name;
    if name.contains('/') {
        return Err(errors::invalid(format!("volume name '{name}' cannot contain '/'")));
    }
    if let Some(control) = name.chars().find(char::is_ascii_control) {
        // A refresh would not show it any more.
        let error =
            Error::new(Code::XML_DETAIL, format!("invalid char in name: {}", control.escape_default()));
        return Err(errors::ours(error));
    }
    let path = format!("{directory}/{name}");
    if name.len() > MAX_NAME {
        return Err(Storage::io(format_args!("Failed to create file '{path}'"), Errno::NAMETOOLONG.into()));
    }
    if !has_files(object) {
        volume.kind = VolumeType::Block;
        volume.key = path.as_str().into();
        volume.target.path = path.into();
        return Ok(volume);
    }
    let looked_for = path.clone();
    if object.blocking(move || Ok(std::fs::symlink_metadata(looked_for).is_ok())).await? {
        return Err(errors::invalid(format!("volume target path '{path}' already exists")));
    }
    volume.kind = match volume.target.format {
        Some(StorageFormat::Dir) => VolumeType::Dir,
        Some(StorageFormat::Ploop) => {
            let sentence = "unable to find ploop, please install ploop tools";
            return Err(errors::ours(Error::internal_error(sentence)));
        }
        _ => VolumeType::File,
    };
    volume.key = path.as_str().into();
    volume.target.path = path.into();
    Ok(volume)
}
