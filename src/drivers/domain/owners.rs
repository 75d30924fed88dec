//! Guests that end with the connection that started them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Domains;
use crate::drivers::ClientId;
use crate::qemu::job::Ending;
use crate::qemu::process::How;
use crate::util::uuid::Uuid;

#[derive(Debug, Default)]
pub(super) struct Owners {
    by_guest: Mutex<HashMap<Uuid, ClientId>>,
}

impl Owners {
    pub(super) fn own(&self, client: ClientId, guest: Uuid) {
        self.guests().insert(guest, client);
    }

    pub(super) fn release(&self, guest: Uuid) {
        self.guests().remove(&guest);
    }

    /// The guests of a client, which has none from now on.
    fn take(&self, client: ClientId) -> Vec<Uuid> {
        let mut guests = self.guests();
        guests.extract_if(|_, owner| *owner == client).map(|(guest, _)| guest).collect()
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<Uuid, ClientId>> {
        self.by_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Domains {
    /// A connection has ended: so do the guests that were started to end with it.
    pub fn client_closed(self: &Arc<Self>, client: ClientId) {
        self.thaw_for(client);
        self.associated.forget(client);
        self.migrations_abandoned(client);
        for guest in self.owners.take(client) {
            let Ok(mut domain) = self.list.by_uuid(guest) else { continue };
            tracing::info!(domain = %domain.state().name, "its owner has disconnected");
            tokio::spawn(async move {
                if let Err(error) = domain.stop(How::Forced, Ending::Destroyed).await {
                    tracing::warn!(domain = %domain.state().name, %error, "cannot end the guest");
                }
            });
        }
    }
}
