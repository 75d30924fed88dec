//! A guest's file systems: what is mounted, and holding them still while their disks are copied.
//!
//! ```text
//!           freeze                       thaw
//!  writable ──────▶ frozen for a client ──────▶ writable
//!                    │      │
//!                    │      └── its connection is lost ──▶ thawed by us
//!                    └── its client says goodbye ──▶ frozen until somebody thaws
//! ```
//!
//! A client that closes its connection in order (`virsh domfsfreeze` does) means the guest to stay frozen. One
//! that is cut off will not come back to thaw it, and a guest that cannot write is as good as hung.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::Domains;
use super::agent::live_agent;
use super::flags::no_flags;
use super::reads::running;
use crate::drivers::ClientId;
use crate::error::{Error, Result};
use crate::qemu::agent::guest::Filesystem;
use crate::qemu::agent::{Done, Request};
use crate::qemu::job::{DomainHandle, DomainObject};
use crate::util::uuid::Uuid;

/// Which guests are frozen for which client.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    by_guest: Mutex<HashMap<Uuid, ClientId>>,
}

impl Frozen {
    pub(super) fn release(&self, guest: Uuid) {
        self.guests().remove(&guest);
    }

    /// A guest refused, or had nothing to freeze: whom it was frozen for before still has it.
    fn give_back(&self, guest: Uuid, before: Option<ClientId>) {
        let mut guests = self.guests();
        match before {
            Some(before) => drop(guests.insert(guest, before)),
            None => drop(guests.remove(&guest)),
        }
    }

    fn take(&self, client: ClientId) -> Vec<Uuid> {
        let mut guests = self.guests();
        guests.extract_if(|_, owner| *owner == client).map(|(guest, _)| guest).collect()
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<Uuid, ClientId>> {
        self.by_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mounted file system and the targets of the disks that it lies on, as far as the definition has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub filesystem: Filesystem,
    pub targets: Vec<String>,
}

impl Domains {
    /// Lets nothing be written to some file systems, or to all; answers how many.
    pub async fn freeze(
        &self,
        mut domain: DomainHandle,
        mountpoints: &[String],
        flags: u32,
        client: ClientId,
    ) -> Result<i32> {
        no_flags(flags, "qemuDomainFSFreeze")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        // Before it is so: what is frozen when the call fails is thawed as well.
        let before = self.frozen.guests().insert(state.uuid, client);
        let request = match mountpoints {
            [] => Request::new("guest-fsfreeze-freeze", Value::Null),
            _ => Request::new("guest-fsfreeze-freeze-list", json!({ "mountpoints": mountpoints })),
        };
        let frozen = agent.ask(&request.works()).await;
        if matches!(frozen, Ok(0) | Err(crate::qemu::agent::AgentError::Refused { .. })) {
            self.frozen.give_back(state.uuid, before);
        }
        Ok(frozen?)
    }

    /// Lets all file systems be written to again; answers how many were not.
    pub async fn thaw(&self, mut domain: DomainHandle, mountpoints: &[String], flags: u32) -> Result<i32> {
        no_flags(flags, "qemuDomainFSThaw")?;
        if !mountpoints.is_empty() {
            return Err(Error::argument_unsupported("specifying mountpoints is not supported"));
        }
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let thawed = live_agent(&state, &job)?.ask(&thaw_request()).await?;
        self.frozen.release(state.uuid);
        Ok(thawed)
    }

    /// Lets nothing be written while a snapshot is made; answers how many file systems were frozen for it.
    pub(super) async fn quiesce(&self, object: &Arc<DomainObject>) -> Result<i32> {
        let mut domain = DomainHandle::new(Arc::clone(object));
        let state = domain.state();
        let job = domain.begin_agent().await?;
        Ok(live_agent(&state, &job)?.ask(&Request::new("guest-fsfreeze-freeze", Value::Null).works()).await?)
    }

    /// Ends what [`Self::quiesce`] began.
    pub(super) async fn unquiesce(&self, object: &Arc<DomainObject>) -> Result<()> {
        let mut domain = DomainHandle::new(Arc::clone(object));
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let _: i32 = live_agent(&state, &job)?.ask(&thaw_request()).await?;
        Ok(())
    }

    /// A client closes its connection in order: what it has frozen stays so.
    pub fn client_says_goodbye(&self, client: ClientId) {
        drop(self.frozen.take(client));
    }

    /// A connection is lost: what was frozen for it is thawed.
    pub(super) fn thaw_for(self: &Arc<Self>, client: ClientId) {
        for guest in self.frozen.take(client) {
            let Ok(mut domain) = self.list.by_uuid(guest) else { continue };
            let state = domain.state();
            tracing::warn!(domain = %state.name, "who froze its file systems has disconnected; thawing them");
            tokio::spawn(async move {
                let thawed = async {
                    let job = domain.begin_agent().await?;
                    let thawed: i32 = live_agent(&state, &job)?.ask(&thaw_request()).await?;
                    Ok::<_, Error>(thawed)
                };
                if let Err(error) = thawed.await {
                    tracing::error!(domain = %state.name, %error, "cannot thaw its file systems");
                }
            });
        }
    }

    /// Tells the disks below which blocks nobody uses.
    pub async fn trim(
        &self,
        mut domain: DomainHandle,
        mountpoint: Option<&str>,
        minimum: u64,
        flags: u32,
    ) -> Result<()> {
        no_flags(flags, "qemuDomainFSTrim")?;
        if mountpoint.is_some() {
            let sentence = "Specifying mount point is not supported for \
                            now";
            return Err(Error::argument_unsupported(sentence));
        }
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let request = Request::new("guest-fstrim", json!({ "minimum": minimum })).works();
        let Done = live_agent(&state, &job)?.ask(&request).await?;
        Ok(())
    }

    /// What is mounted, in order.
    pub async fn filesystems(&self, mut domain: DomainHandle, flags: u32) -> Result<Vec<Mounted>> {
        no_flags(flags, "qemuDomainGetFSInfo")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let found = Filesystem::all(&live_agent(&state, &job)?).await?;
        let live = running(&state)?;
        let mounted = found.into_iter().map(|filesystem| {
            let disks = filesystem.disks.iter().filter_map(|disk| disk.find(live));
            let targets = disks.filter_map(|disk| disk.target.dev.as_deref()).map(str::to_owned).collect();
            Mounted { filesystem, targets }
        });
        Ok(mounted.collect())
    }
}

fn thaw_request() -> Request {
    Request::new("guest-fsfreeze-thaw", Value::Null).works()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_freeze_leaves_the_guest_to_whom_it_was_frozen_for() {
        let (frozen, guest, first, second) = (Frozen::default(), Uuid([7; 16]), ClientId(1), ClientId(2));
        frozen.guests().insert(guest, first);
        let before = frozen.guests().insert(guest, second);
        frozen.give_back(guest, before);
        assert_eq!(frozen.take(second), []);
        assert_eq!(frozen.take(first), [guest]);
        let before = frozen.guests().insert(guest, second);
        frozen.give_back(guest, before);
        assert_eq!(frozen.take(second), []);
    }
}
