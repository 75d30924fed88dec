//! Descriptors that clients have handed over for a guest's images: kept by their name until their client leaves.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::flags::{CallFlags, FdAssociateFlags};
use super::{Domains, State};
use crate::conf::devices::Storage;
use crate::conf::domain::Domain;
use crate::drivers::ClientId;
use crate::error::{Error, Result};
use crate::qemu::block::{Group, Passed};
use crate::util::uuid::Uuid;

/// More names than a guest has images.
const MAX_GROUPS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Associated {
    by_guest: Mutex<HashMap<Uuid, HashMap<Box<str>, Owned>>>,
}

#[derive(Debug)]
struct Owned {
    client: ClientId,
    group: Arc<Group>,
}

impl Associated {
    /// A group that has this name already makes way.
    fn keep(&self, guest: Uuid, name: &str, owned: Owned) -> Result<()> {
        let mut guests = self.guests();
        let groups = guests.entry(guest).or_default();
        if groups.len() >= MAX_GROUPS && !groups.contains_key(name) {
            let sentence = format!("a domain has at most {MAX_GROUPS} groups of file descriptors");
            return Err(Error::operation_failed(sentence));
        }
        groups.insert(name.into(), owned);
        Ok(())
    }

    /// What the images of this definition name; refused where something is not there.
    pub(super) fn of(&self, definition: &Domain) -> Result<Passed> {
        let guests = self.guests();
        let groups = guests.get(&definition.uuid);
        let images = definition.devices.disks.iter().flat_map(|disk| {
            std::iter::once(&disk.storage).chain(disk.storage.layers().map(|layer| &layer.storage))
        });
        let names = images.filter_map(|image: &Storage| image.fdgroup.as_ref());
        let found = names.map(|name| match groups.and_then(|groups| groups.get(name)) {
            Some(owned) => Ok((name.clone(), Arc::clone(&owned.group))),
            None => Err(not_associated(name)),
        });
        found.collect()
    }

    /// A client has left; what its guests have open stays with them.
    pub(super) fn forget(&self, client: ClientId) {
        self.guests().retain(|_, groups| {
            groups.retain(|_, owned| owned.client != client);
            !groups.is_empty()
        });
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<Uuid, HashMap<Box<str>, Owned>>> {
        self.by_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn not_associated(name: &str) -> Error {
    Error::invalid_arg(format!("file descriptor group '{name}' was not associated with the domain"))
}

impl Domains {
    /// Keeps descriptors for the guest's next start, or the next disk that it gets.
    pub fn associate(
        &self,
        guest: &State,
        client: ClientId,
        (name, files): (&str, Vec<OwnedFd>),
        flags: u32,
    ) -> Result<()> {
        if files.is_empty() {
            return Err(Error::invalid_arg("nfds in virDomainFDAssociate must not be zero"));
        }
        // Who labels files could put the label of what was handed over back; nothing here labels any.
        let writable = FdAssociateFlags::accept(flags)?.contains(FdAssociateFlags::SECLABEL_WRITABLE);
        let group = Arc::new(Group { files, writable });
        self.associated.keep(guest.uuid, name, Owned { client, group })
    }
}
