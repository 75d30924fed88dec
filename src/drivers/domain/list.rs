//! Which domains there are: by name, by uuid, and by id while they run.
//!
//! Looking one up is the only way to a [`DomainHandle`]. Locks are held for the length of a map operation;
//! the domains behind them are read without locks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, DomainObject};
use crate::util::uuid::Uuid;

/// What a call that adds a domain does when there is one of that name and uuid already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Changes it, running or not.
    Redefine,
    /// Starts it, so it must be persistent and not running.
    Start,
}

/// The domain that a definition belongs to, and whether it was there before.
#[derive(Debug)]
pub struct Added {
    pub object: Arc<DomainObject>,
    pub is_new: bool,
}

#[derive(Debug, Default)]
struct Tables {
    by_name: BTreeMap<Arc<str>, Arc<DomainObject>>,
    by_uuid: HashMap<Uuid, Arc<DomainObject>>,
    by_id: BTreeMap<i32, Arc<DomainObject>>,
}

#[derive(Debug, Default)]
pub struct DomainList {
    tables: RwLock<Tables>,
}

impl DomainList {
    /// The domain that a client holds a reference to; `name` is for the error.
    pub fn referred(&self, uuid: Uuid, name: &str) -> Result<DomainHandle> {
        let object = self.read().by_uuid.get(&uuid).map(Arc::clone);
        object.map(DomainHandle::new).ok_or_else(|| missing(format!("uuid '{uuid}' ({name})")))
    }

    pub fn by_uuid(&self, uuid: Uuid) -> Result<DomainHandle> {
        let object = self.read().by_uuid.get(&uuid).map(Arc::clone);
        object.map(DomainHandle::new).ok_or_else(|| missing(format!("uuid '{uuid}'")))
    }

    pub fn by_name(&self, name: &str) -> Result<DomainHandle> {
        let object = self.read().by_name.get(name).map(Arc::clone);
        object.map(DomainHandle::new).ok_or_else(|| missing(format!("name '{name}'")))
    }

    pub fn by_id(&self, id: i32) -> Result<DomainHandle> {
        let object = self.read().by_id.get(&id).map(Arc::clone);
        object.map(DomainHandle::new).ok_or_else(|| missing(format!("id {id}")))
    }

    /// All domains, by name.
    pub fn all(&self) -> Vec<Arc<DomainObject>> {
        self.read().by_name.values().map(Arc::clone).collect()
    }

    /// Finds the domain of this name and uuid, or adds what `make` makes. A name or uuid that belongs to
    /// another domain is refused.
    pub fn add(
        &self,
        (name, uuid): (&str, Uuid),
        existing: Existing,
        make: impl FnOnce() -> DomainObject,
    ) -> Result<Added> {
        let mut tables = self.write();
        if let Some(object) = tables.by_uuid.get(&uuid) {
            let state = object.state();
            if *state.name != *name {
                return Err(taken(format!("domain '{}' is already defined with uuid {uuid}", state.name)));
            }
            if existing == Existing::Start && state.is_active() {
                return Err(busy(format!("domain '{name}' is already active")));
            }
            if existing == Existing::Start && !state.is_persistent() {
                return Err(busy(format!("domain '{name}' is already being started")));
            }
            return Ok(Added { object: Arc::clone(object), is_new: false });
        }
        if let Some(object) = tables.by_name.get(name) {
            let other = object.state().uuid;
            return Err(taken(format!("domain '{name}' already exists with uuid {other}")));
        }
        let object = Arc::new(make());
        tables.by_name.insert(Arc::clone(&object.state().name), Arc::clone(&object));
        tables.by_uuid.insert(uuid, Arc::clone(&object));
        Ok(Added { object, is_new: true })
    }

    /// From now on `name` finds the domain too, which is being renamed.
    pub fn claim(&self, name: &str, object: &Arc<DomainObject>) -> Result<()> {
        let invalid = |sentence| Err(Error::operation_invalid(sentence).from_origin(Origin::DOMAIN));
        let mut tables = self.write();
        match tables.by_name.get(name) {
            Some(other) if Arc::ptr_eq(other, object) => invalid("Can't rename domain to itself".to_owned()),
            Some(_) => invalid(format!("domain with name '{name}' already exists")),
            None => {
                tables.by_name.insert(name.into(), Arc::clone(object));
                Ok(())
            }
        }
    }

    /// Nothing is found by `name` any more.
    pub fn release_name(&self, name: &str) {
        self.write().by_name.remove(name);
    }

    /// From now on `id` finds the domain.
    pub fn bind_id(&self, id: i32, object: &Arc<DomainObject>) {
        self.write().by_id.insert(id, Arc::clone(object));
    }

    pub fn release_id(&self, id: i32) {
        self.write().by_id.remove(&id);
    }

    /// Takes a domain off the list. Handles that calls still hold stay valid and begin no more jobs, once
    /// its state says that it is gone. A later domain of the same uuid stays.
    pub fn remove(&self, object: &DomainObject) {
        let state = object.state();
        let mut tables = self.write();
        if tables.by_uuid.get(&state.uuid).is_some_and(|listed| std::ptr::eq(&**listed, object)) {
            tables.by_uuid.remove(&state.uuid);
            tables.by_name.remove(&state.name);
            if let Some(id) = state.id {
                tables.by_id.remove(&id);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(what: String) -> Error {
    Error::no_domain(format!("no domain with matching {what}"))
}

fn taken(sentence: String) -> Error {
    Error::operation_failed(sentence).from_origin(Origin::DOMAIN)
}

fn busy(sentence: String) -> Error {
    Error::operation_invalid(sentence).from_origin(Origin::DOMAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::job::{Limits, State};

    fn uuid(byte: u8) -> Uuid {
        Uuid([byte; 16])
    }

    fn add(list: &DomainList, name: &str, byte: u8, existing: Existing) -> Result<Added> {
        list.add((name, uuid(byte)), existing, || {
            DomainObject::new(State::new(name, uuid(byte)), Limits::default())
        })
    }

    #[test]
    fn a_domain_is_found_by_all_its_names_until_it_is_removed() {
        let list = DomainList::default();
        let object = add(&list, "a", 1, Existing::Redefine).unwrap().object;
        list.bind_id(7, &object);
        for found in [list.by_name("a"), list.by_uuid(uuid(1)), list.by_id(7), list.referred(uuid(1), "a")] {
            assert!(Arc::ptr_eq(found.unwrap().object(), &object));
        }
        list.release_id(7);
        list.remove(&DomainObject::new(State::new("a", uuid(1)), Limits::default()));
        assert!(list.by_name("a").is_ok(), "another domain that had these names");
        list.remove(&object);
        assert_eq!(
            list.referred(uuid(1), "a").unwrap_err().message(),
            "Domain not found: no domain with matching uuid '01010101-0101-0101-0101-010101010101' (a)"
        );
        assert!(list.by_name("a").is_err() && list.by_id(7).is_err() && list.all().is_empty());
    }

    #[test]
    fn names_and_uuids_belong_to_one_domain() {
        let list = DomainList::default();
        assert!(add(&list, "a", 1, Existing::Redefine).unwrap().is_new);
        assert!(!add(&list, "a", 1, Existing::Redefine).unwrap().is_new);
        let refused = |name, byte, existing| add(&list, name, byte, existing).unwrap_err().message();
        assert_eq!(
            refused("b", 1, Existing::Redefine),
            "operation failed: domain 'a' is already defined with uuid 01010101-0101-0101-0101-010101010101"
        );
        assert_eq!(
            refused("a", 2, Existing::Redefine),
            "operation failed: domain 'a' already exists with uuid 01010101-0101-0101-0101-010101010101"
        );
        assert_eq!(
            refused("a", 1, Existing::Start),
            "Requested operation is not valid: domain 'a' is already being started"
        );
    }
}
