//! Which pools there are to start: define, undefine, autostart, and what was there before this daemon.

use std::sync::Arc;
use std::time::Duration;

use super::Storage;
use super::errors;
use super::event::{PoolEvent, PoolLifecycle};
use super::flags::{CallFlags, DefineFlags};
use super::list::Added;
use super::pool::{PoolObject, PoolState};
use crate::conf::storage::Pool;
use crate::error::{Code, Error, Result};
use crate::util::uuid::Uuid;

/// How long the start of the daemon waits for one pool.
const PATIENCE: Duration = Duration::from_secs(10);

impl Storage {
    /// Takes over what is defined and what is active, and starts what starts with the host.
    pub async fn load(self: &Arc<Self>) -> Result<()> {
        let storage = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || storage.load_files()).await;
        let ended = |_| errors::ours(Error::internal_error("a task ended early"));
        let is_first =
            loaded.map_err(ended)?.map_err(|error| Self::io("cannot read storage pools", error))?;
        for object in self.list.all() {
            let (storage, pool) = (Arc::clone(self), Arc::clone(&object));
            let taken_up = tokio::spawn(async move { storage.take_up(&pool, is_first).await });
            if tokio::time::timeout(PATIENCE, taken_up).await.is_err() {
                // Its server is gone, perhaps; the other pools and the guests do not wait for it.
                tracing::warn!(pool = %object.state().current.name, "the pool does not answer yet");
            }
        }
        Ok(())
    }

    /// Reads the definitions again: what an administrator put there or changed by hand counts from now on, and what
    /// starts with the host is started. What is defined stays so without its file, as in libvirt.
    pub async fn reload(self: &Arc<Self>) -> Result<()> {
        let storage = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || storage.load_definitions()).await;
        let ended = |_| errors::ours(Error::internal_error("a task ended early"));
        read.map_err(ended)?.map_err(|error| Self::io("cannot read storage pools", error))?;
        for object in self.list.all() {
            let state = object.state();
            if state.is_active || !state.autostart {
                continue;
            }
            if let Err(error) = self.start_object(&object, super::flags::CreateFlags::empty()).await {
                tracing::error!(pool = %state.current.name, %error, "cannot start a pool");
            }
        }
        Ok(())
    }

    async fn take_up(self: &Arc<Self>, object: &Arc<PoolObject>, is_first: bool) {
        let state = object.state();
        if state.is_active {
            self.readopt(object).await;
        } else if state.autostart
            && is_first
            && let Err(error) = self.start_object(object, super::flags::CreateFlags::empty()).await
        {
            tracing::error!(pool = %state.current.name, %error, "cannot start a pool with the host");
        }
    }

    fn load_files(&self) -> std::io::Result<bool> {
        self.files.prepare()?;
        for pool in self.files.states()? {
            match self.list.add(&pool) {
                Ok(Added::New(object)) => object.update(|state| state.is_active = true, |_, ()| ()),
                Ok(Added::Known(_)) => {}
                Err(error) => tracing::error!(pool = %pool.name, %error, "skipped an active pool"),
            }
        }
        self.load_definitions()?;
        self.files.is_first_start()
    }

    fn load_definitions(&self) -> std::io::Result<()> {
        for (pool, autostart) in self.files.definitions()? {
            match self.list.add(&pool) {
                Ok(Added::New(object) | Added::Known(object)) => object.update(
                    |state| {
                        state.is_persistent = true;
                        state.autostart = autostart;
                        assign(state, pool, Assign::Define);
                    },
                    |_, ()| (),
                ),
                Err(error) => tracing::error!(pool = %pool.name, %error, "skipped a pool"),
            }
        }
        Ok(())
    }

    /// An earlier daemon left this pool active.
    async fn readopt(self: &Arc<Self>, object: &Arc<PoolObject>) {
        // Others may want something of it by then.
        let Ok(_turn) = object.turn().await else { return };
        let state = object.state();
        let refreshed = match self.is_there(object, &state.current).await {
            Ok(true) => self.look_again(object).await,
            Ok(false) => Err(errors::not_active(&state.current.name)),
            Err(error) => Err(error),
        };
        if let Err(error) = refreshed {
            tracing::warn!(pool = %state.current.name, %error, "the pool is not active any more");
            self.remove_state(object, &state.current).await;
            self.deactivate(object, None);
        }
    }

    /// Adds a persistent pool, or changes what an existing one is the next time.
    pub async fn define(self: &Arc<Self>, xml: &str, flags: u32) -> Result<Arc<PoolState>> {
        DefineFlags::accept(flags)?;
        let pool = read(xml)?;
        if pool.name.contains('\n') {
            let error = Error::new(Code::XML_DETAIL, "invalid char in name: \n");
            return Err(errors::ours(error));
        }
        Self::require_backend(pool.kind)?;
        let (object, is_new) = match self.list.add(&pool)? {
            Added::New(object) => (object, true),
            Added::Known(object) => (object, false),
        };
        let _turn = object.turn().await?;
        let (storage, saved) = (Arc::clone(self), pool.clone());
        let save = move || {
            let what = format!("cannot save the definition of pool '{}'", saved.name);
            storage.files.save(&saved).map_err(|error| Self::io(what, error))
        };
        if let Err(error) = object.blocking(save).await {
            if is_new {
                self.forget(&object);
            }
            return Err(error);
        }
        object.update(
            |state| {
                state.is_persistent = true;
                assign(state, pool, Assign::Define);
            },
            |state, ()| self.publish(state, PoolEvent::Lifecycle(PoolLifecycle::Defined)),
        );
        Ok(object.state())
    }

    pub async fn undefine(self: &Arc<Self>, uuid: Uuid, name: &str) -> Result<()> {
        let object = self.referred(uuid, name)?;
        let _turn = object.turn().await?;
        let state = object.state();
        state.require_inactive("still")?;
        state.require_idle()?;
        let name = state.current.name.clone();
        let storage = Arc::clone(self);
        let remove = move || {
            let what = || format!("cannot remove config for {name}");
            storage.files.remove(&name).map_err(|error| Self::io(what(), error))
        };
        object.blocking(remove).await?;
        object.update(
            |state| state.gone = true,
            |state, ()| self.publish(state, PoolEvent::Lifecycle(PoolLifecycle::Undefined)),
        );
        self.list.remove(&object);
        Ok(())
    }

    pub async fn set_autostart(self: &Arc<Self>, uuid: Uuid, name: &str, on: bool) -> Result<()> {
        let object = self.referred(uuid, name)?;
        let _turn = object.turn().await?;
        let state = object.state();
        if !state.is_persistent {
            return Err(errors::ours(Error::internal_error("pool has no config file")));
        }
        if state.autostart == on {
            return Ok(());
        }
        let (storage, name) = (Arc::clone(self), state.current.name.clone());
        let link = move || {
            let what = || format!("cannot change the autostart link of pool '{name}'");
            storage.files.set_autostart(&name, on).map_err(|error| Self::io(what(), error))
        };
        object.blocking(link).await?;
        object.update(|state| state.autostart = on, |_, ()| ());
        Ok(())
    }

    /// Takes a pool off the list that nothing is left of.
    pub(super) fn forget(&self, object: &PoolObject) {
        object.update(|state| state.gone = true, |_, ()| ());
        self.list.remove(object);
    }
}

/// Reads a client's definition.
pub(super) fn read(xml: &str) -> Result<Pool> {
    let fresh = Uuid::of_new().map_err(|error| Storage::io("unable to generate uuid", error))?;
    Pool::parse(xml, fresh).map_err(errors::refused)
}

/// What a new definition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assign {
    Define,
    /// To be active until it is destroyed; what was defined comes back then.
    Start,
}

pub(super) fn assign(state: &mut PoolState, pool: Pool, purpose: Assign) {
    let pool = Arc::new(pool);
    if state.is_active {
        state.next = Some(pool);
        return;
    }
    let defined = std::mem::replace(&mut state.current, pool);
    if purpose == Assign::Start && state.is_persistent && state.next.is_none() {
        state.next = Some(defined);
    }
}
