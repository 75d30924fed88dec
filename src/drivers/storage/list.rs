//! Which pools there are, by name and by uuid.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::errors;
use super::pool::PoolObject;
use crate::conf::storage::Pool;
use crate::error::{Error, Result};
use crate::util::uuid::Uuid;

#[derive(Debug, Default)]
struct Tables {
    by_name: BTreeMap<Box<str>, Arc<PoolObject>>,
    by_uuid: HashMap<Uuid, Arc<PoolObject>>,
}

#[derive(Debug, Default)]
pub(super) struct PoolList {
    tables: RwLock<Tables>,
}

/// The pool that a definition belongs to.
pub(super) enum Added {
    New(Arc<PoolObject>),
    Known(Arc<PoolObject>),
}

impl PoolList {
    pub(super) fn by_uuid(&self, uuid: Uuid) -> Option<Arc<PoolObject>> {
        self.read().by_uuid.get(&uuid).map(Arc::clone)
    }

    pub(super) fn by_name(&self, name: &str) -> Result<Arc<PoolObject>> {
        let found = self.read().by_name.get(name).map(Arc::clone);
        found.ok_or_else(|| errors::no_pool(format_args!("name '{name}'")))
    }

    /// All pools, by name.
    pub(super) fn all(&self) -> Vec<Arc<PoolObject>> {
        self.read().by_name.values().map(Arc::clone).collect()
    }

    /// Finds the pool of this name and uuid, or adds it. Names, uuids and sources belong to one pool.
    pub(super) fn add(&self, pool: &Pool) -> Result<Added> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let failed = |sentence| Err(errors::ours(Error::operation_failed(sentence)));
        for other in tables.by_name.values() {
            let other = other.state();
            if other.current.conflicts_with(pool) {
                return failed(format!("Storage source conflict with pool: '{}'", other.current.name));
            }
        }
        let uuid = pool.uuid;
        if let Some(known) = tables.by_uuid.get(&uuid) {
            let name = known.state().current.name.clone();
            return match name == pool.name {
                true => Ok(Added::Known(Arc::clone(known))),
                false => failed(format!("pool '{name}' is already defined with uuid {uuid}")),
            };
        }
        if let Some(known) = tables.by_name.get(&pool.name) {
            let uuid = known.state().current.uuid;
            return failed(format!("pool '{}' already exists with uuid {uuid}", pool.name));
        }
        let object = Arc::new(PoolObject::new(pool.clone()));
        tables.by_name.insert(pool.name.clone(), Arc::clone(&object));
        tables.by_uuid.insert(uuid, Arc::clone(&object));
        Ok(Added::New(object))
    }

    pub(super) fn remove(&self, object: &PoolObject) {
        let state = object.state();
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let uuid = state.current.uuid;
        if tables.by_uuid.get(&uuid).is_some_and(|listed| std::ptr::eq(&**listed, object)) {
            tables.by_uuid.remove(&uuid);
            tables.by_name.remove(&state.current.name);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }
}
