//! Files that belong to QEMU's user while a guest runs: given at its start, taken back at its end.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Domains, blocking, way_out};
use crate::conf::devices::Devices;
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{Ending, State};
use crate::qemu::overlay;
use crate::qemu::security::{self, Gift, Owners, Security};
use crate::util::accounts::Ids;
use crate::util::process::Process;

/// What a start has given to its guest; taken back when this is dropped, unless the guest keeps it.
#[derive(Debug, Default)]
pub(super) struct Given(Mutex<Option<Gifts>>);

#[derive(Debug)]
struct Gifts {
    security: Security,
    gifts: Vec<Gift>,
    owners: Owners,
    ids: Option<Ids>,
}

impl Given {
    /// Gives a labelled guest everything that it needs.
    pub(super) fn give(&self, security: &Security, guest: &Domain, owners: Owners) -> Result<()> {
        let gifts = Gifts::give(security, guest, security.of_guest(guest)?, owners)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(gifts);
        Ok(())
    }

    /// The guest runs: whoever takes it down takes its files back.
    pub(super) fn keep(&self) {
        self.take();
    }

    /// The guest does not run: takes all back, and says what would let it; of files that could not be opened,
    /// which one.
    pub(super) async fn fail(self: Arc<Self>, error: Error) -> Error {
        let denied = error.message().contains("Permission denied");
        let looked = blocking(move || {
            let Some(gifts) = self.take() else { return Ok(None) };
            let why = gifts.ids.filter(|_| denied).and_then(|ids| security::explain(&gifts.gifts, ids));
            gifts.take_back();
            Ok(why)
        });
        match looked.await {
            Ok(Some(why)) => error.with_way_out(&why),
            _ => match way_out::of(&error.message()) {
                Some(way) => error.with_way_out(way),
                None => error,
            },
        }
    }

    fn take(&self) -> Option<Gifts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Gifts {
    fn give(security: &Security, guest: &Domain, gifts: Vec<Gift>, owners: Owners) -> Result<Self> {
        let ids = security.runs_as(guest)?;
        security.give(&gifts, owners)?;
        Ok(Self { security: security.clone(), gifts, owners, ids })
    }

    fn take_back(&self) {
        self.security.take_back(&self.gifts, self.owners);
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if let Some(gifts) = self.take() {
            gifts.take_back();
        }
    }
}

impl Domains {
    /// Gives a running guest what the devices of `view` need.
    pub(super) fn give_devices(&self, state: &State, view: &Domain) -> Result<Given> {
        let security = &self.rules.security;
        let gifts = security.of_devices(view, &view.devices)?;
        let gifts = Gifts::give(security, view, gifts, owners_of(state))?;
        Ok(Given(Mutex::new(Some(gifts))))
    }

    /// Takes back what a guest has got for devices that it no longer has.
    pub(super) async fn take_back_devices(&self, state: &State, devices: Devices) {
        let Some(live) = &state.live else { return };
        let (security, live, owners) = (self.rules.security.clone(), Arc::clone(live), owners_of(state));
        let taken = blocking(move || {
            security.take_back(&security.of_devices(&live, &devices)?, owners);
            overlay::remove(&devices.disks);
            Ok(())
        });
        if let Err(error) = taken.await {
            tracing::warn!(domain = %state.name, %error, "a device's files stay with QEMU's user");
        }
    }

    /// What each security driver calls the process of a running guest: the main one nothing.
    pub fn security_labels(&self, state: &State) -> Result<Vec<String>> {
        let Some(live) = &state.live else { return Ok(Vec::new()) };
        let main = String::new();
        if self.rules.security.default_ids().is_none() {
            return Ok(vec![main]);
        }
        let own = match security::label_of(live) {
            Some(label) => label.label.as_deref().unwrap_or_default().to_owned(),
            None => match state.process().map(Process::owner) {
                Some(Ok(ids)) => ids.to_string(),
                Some(Err(error)) => {
                    return Err(Error::io("unable to get uid and gid of the process", error));
                }
                None => String::new(),
            },
        };
        Ok(vec![main, own])
    }

    /// Takes back what a guest had that is gone.
    pub(super) async fn take_back_all(&self, state: &State) {
        let Some(live) = &state.live else { return };
        let (security, live, owners) = (self.rules.security.clone(), Arc::clone(live), owners_of(state));
        let has_left = state.ending == Some(Ending::Migrated);
        let taken = blocking(move || {
            let gifts = security.of_guest(&live)?;
            match has_left {
                true => security.take_back_rest(&gifts, owners),
                false => security.take_back(&gifts, owners),
            }
            overlay::remove(&live.devices.disks);
            Ok(())
        });
        if let Err(error) = taken.await {
            tracing::warn!(domain = %state.name, %error, "a guest's files stay with QEMU's user");
        }
    }
}

fn owners_of(state: &State) -> Owners {
    state.launched.as_ref().map_or(Owners::Forgotten, |launched| launched.owners)
}
