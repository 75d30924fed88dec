//! Lookups, lists and descriptions of pools: from memory, without waiting for anybody.

use std::sync::Arc;

use super::flags::{CallFlags, ListFlags, XmlFlags, no_flags};
use super::pool::{PoolObject, PoolState};
use super::{Storage, errors};
use crate::conf::storage::{PoolType, capabilities};
use crate::error::Result;
use crate::util::uuid::Uuid;

/// Whether a pool is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Active,
    Inactive,
}

impl Storage {
    /// The pool that a client holds a reference to; `name` is for the error.
    pub(super) fn referred(&self, uuid: Uuid, name: &str) -> Result<Arc<PoolObject>> {
        self.list.by_uuid(uuid).ok_or_else(|| errors::no_referred_pool(uuid, name))
    }

    /// What the pool is that a client holds a reference to.
    pub fn state(&self, uuid: Uuid, name: &str) -> Result<Arc<PoolState>> {
        self.referred(uuid, name).map(|object| object.state())
    }

    pub fn by_uuid(&self, uuid: Uuid) -> Result<Arc<PoolState>> {
        let object = self.list.by_uuid(uuid);
        object.map(|object| object.state()).ok_or_else(|| errors::no_pool(format_args!("uuid '{uuid}'")))
    }

    pub fn by_name(&self, name: &str) -> Result<Arc<PoolState>> {
        self.list.by_name(name).map(|object| object.state())
    }

    /// The active pool whose volumes appear in this directory.
    pub fn by_target_path(&self, path: &str) -> Result<Arc<PoolState>> {
        let clean = crate::conf::storage::clean_path(path);
        let states = self.list.all().into_iter().map(|object| object.state());
        let mut found = states.filter(|state| state.is_active && state.current.path == clean);
        found.next().ok_or_else(|| match *clean == *path {
            true => errors::no_pool(format_args!("target path '{path}'")),
            false => errors::no_pool(format_args!("target path '{path}' ({clean})")),
        })
    }

    /// The pools that the flags let through, by name.
    pub fn list_all(&self, flags: u32) -> Result<Vec<Arc<PoolState>>> {
        let flags = ListFlags::accept(flags)?;
        let states = self.list.all().into_iter().map(|object| object.state());
        Ok(states.filter(|state| fits(state, flags)).collect())
    }

    /// The pools that older clients ask for.
    pub fn of_activity(&self, activity: Activity) -> Vec<Arc<PoolState>> {
        let states = self.list.all().into_iter().map(|object| object.state());
        states.filter(|state| state.is_active == (activity == Activity::Active)).collect()
    }

    pub fn capabilities(&self, flags: u32) -> Result<String> {
        no_flags(flags, "storageConnectGetStoragePoolCapabilities")?;
        Ok(capabilities(|kind| self.is_supported(kind)))
    }
}

/// The description of a pool.
pub fn xml(state: &PoolState, flags: u32) -> Result<String> {
    let flags = XmlFlags::accept(flags)?;
    let pool = match &state.next {
        Some(next) if flags.contains(XmlFlags::INACTIVE) => next,
        _ => &state.current,
    };
    Ok(pool.to_xml())
}

fn fits(state: &PoolState, flags: ListFlags) -> bool {
    let either = |on: ListFlags, off: ListFlags, is_on: bool| {
        let asked = flags & (on | off);
        asked.is_empty() || asked.contains(if is_on { on } else { off })
    };
    let types = flags & ListFlags::from_bits_retain(!(ListFlags::DIR.bits() - 1));
    either(ListFlags::ACTIVE, ListFlags::INACTIVE, state.is_active)
        && either(ListFlags::PERSISTENT, ListFlags::TRANSIENT, state.is_persistent)
        && either(ListFlags::AUTOSTART, ListFlags::NO_AUTOSTART, state.autostart)
        && (types.is_empty() || types.contains(type_flag(state.current.kind)))
}

fn type_flag(kind: PoolType) -> ListFlags {
    match kind {
        PoolType::Dir => ListFlags::DIR,
        PoolType::Fs => ListFlags::FS,
        PoolType::Netfs => ListFlags::NETFS,
        PoolType::Logical => ListFlags::LOGICAL,
        PoolType::Disk => ListFlags::DISK,
        PoolType::Iscsi => ListFlags::ISCSI,
        PoolType::IscsiDirect => ListFlags::ISCSI_DIRECT,
        PoolType::Scsi => ListFlags::SCSI,
        PoolType::Mpath => ListFlags::MPATH,
        PoolType::Rbd => ListFlags::RBD,
        PoolType::Sheepdog => ListFlags::SHEEPDOG,
        PoolType::Gluster => ListFlags::GLUSTER,
        PoolType::Zfs => ListFlags::ZFS,
        PoolType::Vstorage => ListFlags::VSTORAGE,
    }
}
