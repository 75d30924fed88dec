//! What becomes of a pool as a whole: create, start, build, destroy, delete, refresh.

use std::sync::Arc;

use super::Storage;
use super::define::{Assign, assign, read};
use super::errors;
use super::event::{PoolEvent, PoolLifecycle};
use super::flags::{BuildFlags, CallFlags, CreateFlags, no_flags};
use super::list::Added;
use super::pool::{PoolObject, PoolState};
use crate::conf::storage::Pool;
use crate::error::Result;
use crate::util::uuid::Uuid;

impl Storage {
    /// Starts a pool that is gone when it is destroyed, unless it is defined as well.
    pub async fn create(self: &Arc<Self>, xml: &str, flags: u32) -> Result<Arc<PoolState>> {
        no_flags(flags & !CreateFlags::all().bits(), "storagePoolCreateXML")?;
        let flags = CreateFlags::from_bits_retain(flags);
        let pool = read(xml)?;
        Self::require_backend(pool.kind)?;
        let object = match self.list.add(&pool)? {
            Added::New(object) | Added::Known(object) => object,
        };
        let _turn = object.turn().await?;
        let state = object.state();
        if state.is_active {
            return Err(errors::invalid(format!("pool is already active as '{}'", state.current.name)));
        }
        object.update(|state| assign(state, pool, Assign::Start), |_, ()| ());
        if let Err(error) = self.activate(&object, flags).await {
            self.deactivate(&object, None);
            return Err(error);
        }
        Ok(object.state())
    }

    pub async fn start(self: &Arc<Self>, uuid: Uuid, name: &str, flags: u32) -> Result<()> {
        let flags = CreateFlags::accept(flags)?;
        let object = self.referred(uuid, name)?;
        self.start_object(&object, flags).await
    }

    pub(super) async fn start_object(
        self: &Arc<Self>,
        object: &Arc<PoolObject>,
        flags: CreateFlags,
    ) -> Result<()> {
        let _turn = object.turn().await?;
        object.state().require_inactive("already")?;
        self.activate(object, flags).await
    }

    /// With the turn: builds if asked to, starts, finds out what is there.
    async fn activate(self: &Arc<Self>, object: &Arc<PoolObject>, flags: CreateFlags) -> Result<()> {
        let pool = Arc::clone(&object.state().current);
        if !flags.is_empty() {
            let overwrite = flags.contains(CreateFlags::BUILD_OVERWRITE).then_some(BuildFlags::OVERWRITE);
            let keep = flags.contains(CreateFlags::BUILD_NO_OVERWRITE).then_some(BuildFlags::NO_OVERWRITE);
            self.build_source(object, &pool, overwrite.or(keep).unwrap_or(BuildFlags::empty())).await?;
        }
        self.start_source(object, &pool).await?;
        let (storage, saved) = (Arc::clone(self), Arc::clone(&pool));
        let save = move || {
            let what = || format!("cannot save the state of pool '{}'", saved.name);
            storage.files.save_state(&saved).map_err(|error| Self::io(what(), error))
        };
        let refreshed = match object.blocking(save).await {
            Ok(()) => self.look_again(object).await,
            Err(error) => Err(error),
        };
        if let Err(error) = refreshed {
            self.remove_state(object, &pool).await;
            self.stop_after_failure(object, &pool).await;
            return Err(error);
        }
        object.update(
            |state| state.is_active = true,
            |state, ()| self.publish(state, PoolEvent::Lifecycle(PoolLifecycle::Started)),
        );
        tracing::info!(pool = %pool.name, "started");
        Ok(())
    }

    /// Nothing needs it any more; what is left of it is looked at by the next daemon.
    pub(super) async fn remove_state(self: &Arc<Self>, object: &PoolObject, pool: &Arc<Pool>) {
        let (storage, pool) = (Arc::clone(self), Arc::clone(pool));
        let remove = move || {
            storage.files.remove_state(&pool.name);
            Ok(())
        };
        if let Err(error) = object.blocking(remove).await {
            tracing::warn!(%error, "cannot remove the state of a pool");
        }
    }

    async fn stop_after_failure(&self, object: &PoolObject, pool: &Arc<Pool>) {
        if let Err(error) = self.stop_source(object, pool).await {
            tracing::warn!(pool = %pool.name, %error, "cannot stop what a failed pool stands on");
        }
    }

    /// The pool is active no more: what was defined takes over, or nothing is left of it.
    pub(super) fn deactivate(&self, object: &PoolObject, event: Option<PoolLifecycle>) {
        let gone = object.update(
            |state| {
                state.is_active = false;
                state.volumes = Arc::default();
                state.gone = !state.is_persistent;
                if state.is_persistent
                    && let Some(next) = state.next.take()
                {
                    state.current = next;
                }
                state.gone
            },
            |state, _| {
                if let Some(event) = event {
                    self.publish(state, PoolEvent::Lifecycle(event));
                }
            },
        );
        if gone {
            self.list.remove(object);
        }
    }

    pub async fn build(self: &Arc<Self>, uuid: Uuid, name: &str, flags: u32) -> Result<()> {
        let object = self.referred(uuid, name)?;
        let _turn = object.turn().await?;
        object.state().require_inactive("already")?;
        let flags = BuildFlags::accept(flags)?;
        let pool = Arc::clone(&object.state().current);
        self.build_source(&object, &pool, flags).await?;
        let created = |state: &PoolState, (): &()| {
            self.publish(state, PoolEvent::Lifecycle(PoolLifecycle::Created));
        };
        object.update(|_| (), created);
        Ok(())
    }

    pub async fn destroy(self: &Arc<Self>, uuid: Uuid, name: &str) -> Result<()> {
        let object = self.referred(uuid, name)?;
        let _turn = object.turn().await?;
        let state = object.state();
        state.require_active()?;
        state.require_idle()?;
        // A pool that stays mounted stays active, for the next daemon too.
        self.stop_source(&object, &state.current).await?;
        self.remove_state(&object, &state.current).await;
        self.deactivate(&object, Some(PoolLifecycle::Stopped));
        tracing::info!(pool = %state.current.name, "destroyed");
        Ok(())
    }

    /// Removes what the pool stands on.
    pub async fn delete(self: &Arc<Self>, uuid: Uuid, name: &str, flags: u32) -> Result<()> {
        let object = self.referred(uuid, name)?;
        let _turn = object.turn().await?;
        let state = object.state();
        state.require_inactive("still")?;
        state.require_idle()?;
        self.delete_source(&object, &state.current, flags).await?;
        let deleted = |state: &PoolState, (): &()| {
            self.publish(state, PoolEvent::Lifecycle(PoolLifecycle::Deleted));
        };
        object.update(|_| (), deleted);
        Ok(())
    }

    pub async fn refresh(self: &Arc<Self>, uuid: Uuid, name: &str, flags: u32) -> Result<()> {
        no_flags(flags, "storagePoolRefresh")?;
        let object = self.referred(uuid, name)?;
        self.refresh_object(&object).await
    }

    /// Work on volumes goes on meanwhile.
    pub(super) async fn refresh_object(self: &Arc<Self>, object: &Arc<PoolObject>) -> Result<()> {
        let _turn = object.turn().await?;
        let state = object.state();
        state.require_active()?;
        if let Err(error) = self.look_again(object).await {
            self.remove_state(object, &state.current).await;
            self.stop_after_failure(object, &state.current).await;
            self.deactivate(object, Some(PoolLifecycle::Stopped));
            return Err(error);
        }
        object.update(|_| (), |state, ()| self.publish(state, PoolEvent::Refresh));
        Ok(())
    }
}
