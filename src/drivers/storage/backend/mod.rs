//! What pools stand on: how a type of pool is found, started, built, looked through and taken apart.
//!
//! | file | type | with |
//! |---|---|---|
//! | `directory` | dir, and what is mounted | |
//! | `mount` | fs, netfs | `mount`, `mkfs`, `blkid`, `showmount` |
//! | `logical` | logical | `pvs`, `lvcreate` and their like |
//! | `disk` | disk | `parted`, `blkid` |
//! | `scsi` | scsi, and what iscsi finds | sysfs |
//! | `iscsi` | iscsi | `iscsiadm` |
//! | `mpath` | mpath | sysfs |
//! | `zfs` | zfs | `zfs`, `zpool` |
//! | `device` | devices as volumes; what is on them before they are overwritten | `blkid` |
//!
//! The other types need libraries that this daemon is not built with.

mod device;
mod directory;
mod disk;
mod iscsi;
mod logical;
mod mount;
mod mpath;
mod scsi;
mod zfs;

use std::sync::Arc;
use std::time::Duration;

use super::flags::{BuildFlags, no_flags};
use super::pool::{PoolObject, Volumes};
use super::{Storage, errors};
use crate::conf::storage::{Extent, Permissions, Pool, PoolType, Sizes, Source, Volume};
use crate::error::{Error, Result};

/// A host or a tool that says nothing for so long is not there.
const ANSWER: Duration = Duration::from_secs(120);
/// Making a file system or a volume group on a large and slow disk.
const BUILD: Duration = Duration::from_secs(60 * 60);
/// For devices to appear.
const SETTLE: Duration = Duration::from_secs(30);

/// What a pool stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Directory,
    Mounted,
    Logical,
    Disk,
    Scsi,
    Iscsi,
    Mpath,
    Zfs,
}

/// What was found of an active pool.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub volumes: Volumes,
    pub sizes: Sizes,
    /// Of the pool's directory, if it is one.
    pub permissions: Option<Permissions>,
    /// Where its device has room.
    pub free: Vec<Extent>,
}

impl Backend {
    /// None for types that this daemon is not built for.
    pub(super) fn of(kind: PoolType) -> Option<Self> {
        Some(match kind {
            PoolType::Dir => Self::Directory,
            PoolType::Fs | PoolType::Netfs => Self::Mounted,
            PoolType::Logical => Self::Logical,
            PoolType::Disk => Self::Disk,
            PoolType::Scsi => Self::Scsi,
            PoolType::Iscsi => Self::Iscsi,
            PoolType::Mpath => Self::Mpath,
            PoolType::Zfs => Self::Zfs,
            PoolType::IscsiDirect
            | PoolType::Rbd
            | PoolType::Sheepdog
            | PoolType::Gluster
            | PoolType::Vstorage => return None,
        })
    }

    /// Volumes are files in a directory.
    pub(super) fn has_files(self) -> bool {
        matches!(self, Self::Directory | Self::Mounted)
    }

    /// What has to be in $PATH.
    fn tools(self) -> &'static [&'static str] {
        match self {
            Self::Directory | Self::Scsi | Self::Mpath => &[],
            Self::Mounted => &["mount", "umount"],
            Self::Logical => &["pvs", "vgs", "lvs", "vgchange", "lvcreate", "lvremove"],
            Self::Disk => &["parted", "blkid"],
            Self::Iscsi => &["iscsiadm"],
            Self::Zfs => &["zfs", "zpool"],
        }
    }
}

impl Storage {
    /// Whether pools of this type can be had here.
    pub(super) fn is_supported(&self, kind: PoolType) -> bool {
        Backend::of(kind)
            .is_some_and(|backend| backend.tools().iter().all(|tool| self.tools.find(tool).is_some()))
    }

    pub(super) fn backend(pool: &Pool) -> Result<Backend> {
        Backend::of(pool.kind).ok_or_else(|| errors::missing_backend(pool.kind))
    }

    /// Whether what an active pool stands on is still there.
    pub(super) async fn is_there(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<bool> {
        match Self::backend(pool)? {
            Backend::Directory => self.has_directory(object, pool).await,
            Backend::Mounted => self.is_mounted(object, pool).await,
            Backend::Logical => Ok(self.require_volume_group(pool).await.is_ok()),
            Backend::Disk => Ok(self.require_partitioned(pool).await.is_ok()),
            Backend::Scsi => Ok(scsi::host(pool).is_ok()),
            Backend::Iscsi => Ok(self.session(pool).await?.is_some()),
            Backend::Mpath => Ok(true),
            Backend::Zfs => Ok(self.has_dataset(pool).await),
        }
    }

    /// Makes the volumes appear on this host.
    pub(super) async fn start_source(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<()> {
        match Self::backend(pool)? {
            Backend::Mounted => self.mount(object, pool).await,
            Backend::Logical => self.activate_volume_group(pool).await,
            Backend::Disk => self.start_disk(object, pool).await,
            Backend::Iscsi => self.log_in(pool).await,
            Backend::Directory | Backend::Scsi | Backend::Mpath | Backend::Zfs => Ok(()),
        }
    }

    /// Undoes what [`Storage::start_source`] did.
    pub(super) async fn stop_source(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<()> {
        match Self::backend(pool)? {
            Backend::Mounted => self.unmount(object, pool).await,
            Backend::Logical => self.change_volume_group(pool, logical::OFF).await,
            Backend::Iscsi => self.log_out(pool).await,
            Backend::Directory | Backend::Disk | Backend::Scsi | Backend::Mpath | Backend::Zfs => Ok(()),
        }
    }

    /// Makes what the pool stands on: a directory, a file system, a volume group.
    pub(super) async fn build_source(
        &self,
        object: &PoolObject,
        pool: &Arc<Pool>,
        flags: BuildFlags,
    ) -> Result<()> {
        let backend = Self::backend(pool)?;
        let function = match backend {
            Backend::Logical => "virStorageBackendLogicalBuildPool",
            Backend::Disk => "virStorageBackendDiskBuildPool",
            _ => "virStorageBackendFileSystemBuild",
        };
        if flags.contains(BuildFlags::OVERWRITE | BuildFlags::NO_OVERWRITE) {
            let sentence = "Flags 'VIR_STORAGE_POOL_BUILD_OVERWRITE' and 'VIR_STORAGE_POOL_BUILD_NO_OVERWRITE' are mutually exclusive";
            return Err(errors::ours(Error::refused_argument(function, "flags", sentence)));
        }
        match backend {
            Backend::Directory | Backend::Mounted => {
                Self::make_directory(object, pool).await?;
                match flags.is_empty() {
                    true => Ok(()),
                    false => self.format(object, pool, flags).await,
                }
            }
            Backend::Logical => self.make_volume_group(object, pool, flags).await,
            Backend::Disk => self.make_partition_table(object, pool, flags).await,
            Backend::Zfs => self.make_dataset(pool, flags).await,
            Backend::Scsi | Backend::Iscsi | Backend::Mpath => Ok(()),
        }
    }

    /// Takes apart what [`Storage::build_source`] made, where that costs no volume of somebody else.
    pub(super) async fn delete_source(
        &self,
        object: &PoolObject,
        pool: &Arc<Pool>,
        flags: u32,
    ) -> Result<()> {
        match Self::backend(pool)? {
            Backend::Directory | Backend::Mounted => {
                no_flags(flags, "virStorageBackendDeleteLocal")?;
                Self::remove_directory(object, pool).await
            }
            Backend::Logical => {
                no_flags(flags, "virStorageBackendLogicalDeletePool")?;
                self.remove_volume_group(pool).await
            }
            Backend::Disk => {
                no_flags(flags, "virStorageBackendDiskDeletePool")?;
                Self::clear_device(object, &disk::device(pool)?.path).await
            }
            Backend::Zfs => {
                no_flags(flags, "virStorageBackendZFSDeletePool")?;
                self.remove_dataset(pool).await
            }
            Backend::Scsi | Backend::Iscsi | Backend::Mpath => {
                Err(errors::ours(Error::no_support("pool does not support pool deletion")))
            }
        }
    }

    /// Looks for the volumes of an active pool.
    pub(super) async fn look(&self, object: &Arc<PoolObject>) -> Result<Found> {
        let state = object.state();
        let pool = &state.current;
        match Self::backend(pool)? {
            Backend::Directory | Backend::Mounted => Self::look_through_directory(object).await,
            Backend::Logical => self.look_through_volume_group(object, pool).await,
            Backend::Disk => self.look_through_partitions(object, pool).await,
            Backend::Scsi => Self::look_through_adapter(object, pool).await,
            Backend::Iscsi => self.look_through_session(object, pool).await,
            Backend::Mpath => Self::look_for_multipaths(object).await,
            Backend::Zfs => self.look_through_dataset(pool).await,
        }
    }

    /// Makes a volume that is no file, and tells what became of it.
    pub(super) async fn make_block(&self, object: &Arc<PoolObject>, volume: Volume) -> Result<Volume> {
        let pool = &object.state().current;
        match Self::backend(pool)? {
            Backend::Logical => self.make_logical_volume(object, pool, volume).await,
            Backend::Disk => self.make_partition(object, volume).await,
            Backend::Zfs => self.make_zfs_volume(object, pool, volume).await,
            _ => Err(errors::ours(Error::no_support("storage pool does not support volume creation"))),
        }
    }

    /// Removes a volume that is no file.
    pub(super) async fn remove_block(&self, object: &Arc<PoolObject>, volume: &Volume) -> Result<()> {
        let pool = &object.state().current;
        match Self::backend(pool)? {
            Backend::Logical => self.remove_logical_volume(volume).await,
            Backend::Disk => self.remove_partition(pool, volume).await,
            Backend::Zfs => self.remove_zfs_volume(pool, volume).await,
            _ => Err(errors::ours(Error::no_support("storage pool does not support vol deletion"))),
        }
    }

    /// What pools of a type a host offers, as XML.
    pub async fn find_sources(&self, kind: &str, spec: Option<&str>, flags: u32) -> Result<String> {
        let unknown = || errors::ours(Error::internal_error(format!("unknown storage pool type {kind}")));
        let kind = PoolType::from_word(kind).ok_or_else(unknown)?;
        Self::require_backend(kind)?;
        let sources = match kind {
            PoolType::Netfs => {
                no_flags(flags, "virStorageBackendFileSystemNetFindPoolSources")?;
                self.exports_of(&Self::wanted_source(kind, spec)?).await?
            }
            PoolType::Iscsi => {
                no_flags(flags, "virStorageBackendISCSIFindPoolSources")?;
                self.targets_of(&Self::wanted_source(kind, spec)?).await?
            }
            PoolType::Logical => {
                no_flags(flags, "virStorageBackendLogicalFindPoolSources")?;
                self.volume_groups().await?
            }
            _ => {
                let sentence = format!("pool type '{kind}' does not support source discovery");
                return Err(errors::ours(Error::no_support(sentence)));
            }
        };
        Ok(Source::list_to_xml(&sources, kind))
    }

    fn wanted_source(kind: PoolType, spec: Option<&str>) -> Result<Source> {
        let missing = || Error::invalid_arg(format!("hostname must be specified for {kind} sources"));
        let spec = spec.ok_or_else(|| errors::ours(missing()))?;
        Source::parse(spec, kind).map_err(errors::refused)
    }

    /// Runs a tool for as long as an answer may take, and returns what it printed.
    async fn ask(&self, tool: &str, args: &[&str]) -> Result<String> {
        let said = self.tools.tool(tool, args, ANSWER).await?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Waits for the devices that were just made; a host without udev has them at once.
    async fn settle(&self) {
        if let Err(error) = self.tools.tool("udevadm", &["settle"], SETTLE).await {
            tracing::debug!(%error, "cannot wait for devices");
        }
    }
}

/// The only host of a source.
fn only_host(source: &Source) -> Result<&crate::conf::storage::Host> {
    match &*source.hosts {
        [host] => Ok(host),
        _ => {
            let sentence = "Expected exactly 1 host for the storage pool";
            Err(errors::ours(Error::config_unsupported(sentence)))
        }
    }
}
