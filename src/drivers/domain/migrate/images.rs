//! Disks that come along and are not there yet: made through the pool that they lie in, as large as at the source.

use std::path::Path;

use super::allowed;
use super::request::{MigrateFlags, Request};
use crate::conf::devices::{Disk, Place, StorageFormat};
use crate::conf::domain::Domain;
use crate::conf::migration::{Nbd, NewTarget, NewVolume};
use crate::drivers::domain::Domains;
use crate::error::{Error, Result};

/// `VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA`
const PREALLOCATE: u32 = 1;

impl Domains {
    /// Makes what is missing of a guest that is about to come.
    pub(super) async fn make_images(&self, definition: &Domain, request: &Request, nbd: &Nbd) -> Result<()> {
        let copied = allowed::copied(definition, request);
        for told in &nbd.disks {
            let is_it = |disk: &&Disk| disk.target.dev.as_deref() == Some(&*told.target);
            let disk = definition.devices.disks.iter().find(is_it).ok_or_else(|| {
                let target = &told.target;
                Error::internal_error(format!(
                    "unable to find disk target '{target}' for non-shared-storage migration"
                ))
            })?;
            if copied.iter().any(|it| std::ptr::eq(*it, disk)) && !is_there(disk)? {
                self.make_image(disk, told.capacity, request).await?;
            }
        }
        Ok(())
    }

    async fn make_image(&self, disk: &Disk, capacity: u64, request: &Request) -> Result<()> {
        let target = disk.target.dev.as_deref().unwrap_or_default();
        if request.has(MigrateFlags::NON_SHARED_INC) {
            return Err(Error::operation_unsupported(format!(
                "pre-creation of storage target for incremental storage migration of disk '{target}' is not supported"
            )));
        }
        let format = disk.driver.format.unwrap_or(StorageFormat::Raw);
        let is_qcow2 = format == StorageFormat::Qcow2;
        let (pool, name, compat) = match (&disk.storage.place, disk.storage.pool_and_volume()) {
            (Place::File(Some(path)), _) => {
                let malformed = || Error::invalid_arg(format!("malformed disk path: {path}"));
                let (directory, name) = path.rsplit_once('/').ok_or_else(malformed)?;
                (self.storage.by_target_path(directory)?, name, is_qcow2.then(|| "1.1".into()))
            }
            (_, Some((pool, volume))) => (self.storage.by_name(pool)?, volume, None),
            _ => {
                let sentence = format!("cannot precreate storage for disk type '{}'", disk.storage.kind());
                return Err(Error::internal_error(sentence));
            }
        };
        if pool.volume(name).is_some() {
            return Ok(());
        }
        let volume = NewVolume {
            name: name.into(),
            allocation: is_qcow2.then_some(0),
            capacity,
            target: NewTarget { format: Some(format), compat },
        };
        let (pool, flags) = (pool.reference(), if is_qcow2 { PREALLOCATE } else { 0 });
        self.storage.create_volume(pool.uuid, &pool.name, &volume.to_xml(), flags).await.map(drop)
    }
}

fn is_there(disk: &Disk) -> Result<bool> {
    match &disk.storage.place {
        Place::File(Some(path)) | Place::Block(Some(path)) | Place::VhostVdpa(path) => {
            Ok(Path::new(&**path).exists())
        }
        // Nobody here could make one.
        Place::Network(_) | Place::Nvme(_) | Place::File(None) | Place::Block(None) => Ok(true),
        Place::Volume(_) => Ok(false),
        Place::Dir(_) | Place::VhostUser(_) => Err(Error::operation_unsupported(format!(
            "non-shared storage migration into '{}' target is not supported",
            disk.storage.kind()
        ))),
    }
}
