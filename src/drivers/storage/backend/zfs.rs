//! Volumes of ZFS, through its own tools.

use std::sync::Arc;

use super::{BUILD, Found, Storage};
use crate::conf::storage::{Permissions, Pool, Probed, Role, Sizes, Target, Volume, VolumeType};
use crate::drivers::storage::errors;
use crate::drivers::storage::flags::{BuildFlags, no_flags};
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::{Error, Result};

fn dataset(pool: &Pool) -> Result<&str> {
    let name = pool.source.name.as_deref().unwrap_or(&pool.name);
    match name.starts_with('-') {
        // It would be an option.
        true => Err(errors::ours(Error::invalid_arg(format!("invalid dataset name '{name}'")))),
        false => Ok(name),
    }
}

/// One line of `zfs list`: "pool/name", its size, what is reserved for it.
fn volume(line: &str, directory: &str) -> Option<Volume> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [key, capacity, allocation] = *fields else { return None };
    let (capacity, allocation) = (capacity.parse().ok()?, allocation.parse().ok()?);
    let name = key.rsplit('/').next().unwrap_or(key);
    Some(Volume {
        name: name.into(),
        key: key.into(),
        kind: VolumeType::Block,
        capacity,
        allocation,
        has_allocation: true,
        probed: Probed::Link,
        physical: 0,
        role: if allocation < capacity { Role::Sparse } else { Role::Whole },
        extents: Vec::new(),
        target: Target {
            path: format!("{directory}/{name}").into(),
            permissions: Permissions::default(),
            ..Target::default()
        },
        backing: None,
    })
}

/// What `zpool get` tells, a property a line.
fn sizes(said: &str) -> Sizes {
    let property = |wanted: &str| {
        said.lines().find_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [_, name, value, _] = *fields else { return None };
            (name == wanted).then(|| value.parse().ok())?
        })
    };
    let property = |wanted| property(wanted).unwrap_or(0);
    Sizes { capacity: property("size"), available: property("free"), allocation: property("allocated") }
}

impl Storage {
    pub(super) async fn has_dataset(&self, pool: &Pool) -> bool {
        let Ok(name) = dataset(pool) else { return false };
        self.ask("zfs", &["list", "-H", "-t", "filesystem", "-o", "name", name]).await.is_ok()
    }

    pub(super) async fn make_dataset(&self, pool: &Pool, flags: BuildFlags) -> Result<()> {
        no_flags(flags.bits(), "virStorageBackendZFSBuildPool")?;
        let name = dataset(pool)?;
        if name.contains('/') {
            self.tools.tool("zfs", &["create", "-o", "mountpoint=none", name], BUILD).await?;
            return Ok(());
        }
        if pool.source.devices.is_empty() {
            return Err(errors::ours(Error::config_unsupported("missing source devices")));
        }
        let devices = pool.source.devices.iter().map(|device| &*device.path);
        let args: Vec<&str> = ["create", name].into_iter().chain(devices).collect();
        self.tools.tool("zpool", &args, BUILD).await?;
        Ok(())
    }

    pub(super) async fn remove_dataset(&self, pool: &Pool) -> Result<()> {
        let name = dataset(pool)?;
        match name.contains('/') {
            true => self.tools.tool("zfs", &["destroy", "-r", name], BUILD).await?,
            false => self.tools.tool("zpool", &["destroy", name], BUILD).await?,
        };
        Ok(())
    }

    pub(super) async fn look_through_dataset(&self, pool: &Pool) -> Result<Found> {
        let name = dataset(pool)?;
        let whole = name.split('/').next().unwrap_or(name);
        let said = self.ask("zpool", &["get", "-Hp", "health,size,free,allocated", whole]).await?;
        let volumes = self.zfs_volumes(pool).await?;
        Ok(Found { volumes, sizes: sizes(&said), ..Found::default() })
    }

    async fn zfs_volumes(&self, pool: &Pool) -> Result<Volumes> {
        let columns = "name,volsize,refreservation";
        let args = ["list", "-Hp", "-t", "volume", "-r", "-o", columns, dataset(pool)?];
        let said = self.ask("zfs", &args).await?;
        let found = said.lines().filter_map(|line| volume(line, &pool.path));
        Ok(found.map(|volume| (Arc::from(&*volume.name), Arc::new(Record::new(volume)))).collect())
    }

    pub(super) async fn make_zfs_volume(
        &self,
        _object: &PoolObject,
        pool: &Pool,
        volume: Volume,
    ) -> Result<Volume> {
        if volume.target.encryption.is_some() {
            let sentence = "storage pool does not support encrypted volumes";
            return Err(errors::ours(Error::config_unsupported(sentence)));
        }
        let kib = |bytes: u64| bytes.div_ceil(1024);
        let name = format!("{}/{}", dataset(pool)?, volume.name);
        let (reserved, size) =
            (format!("refreservation={}K", kib(volume.allocation)), format!("{}K", kib(volume.capacity)));
        let mut args = vec!["create", "-o", "volmode=dev"];
        if volume.capacity != volume.allocation {
            args.push("-s");
            if volume.allocation > 0 {
                args.extend(["-o", &*reserved]);
            }
        }
        args.extend(["-V", &*size, &*name]);
        self.ask("zfs", &args).await?;
        let found = self.zfs_volumes(pool).await?;
        let missing = || errors::no_volume(format_args!("name '{}'", volume.name));
        Ok(found.get(&*volume.name).ok_or_else(missing)?.volume.clone())
    }

    pub(super) async fn remove_zfs_volume(&self, pool: &Pool, volume: &Volume) -> Result<()> {
        let name = format!("{}/{}", dataset(pool)?, volume.name);
        self.ask("zfs", &["destroy", &name]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zfs_prints_is_understood() {
        let found = volume("test/vol1\t5368709120\t0", "/dev/zvol/test").unwrap();
        assert_eq!((&*found.name, &*found.key, found.role), ("vol1", "test/vol1", Role::Sparse));
        assert_eq!(&*found.target.path, "/dev/zvol/test/vol1");
        assert!(volume("no datasets available", "/dev/zvol/test").is_none());
        let said = "test\thealth\tONLINE\t-\ntest\tsize\t100\t-\ntest\tfree\t60\t-\ntest\tallocated\t40\t-\n";
        assert_eq!(sizes(said), Sizes { capacity: 100, available: 60, allocation: 40 });
    }
}
