//! One pool: its state as an immutable snapshot, and whose turn it is to change it.
//!
//! Readers take the snapshot and wait for nobody. Changes of the pool as a whole (start, destroy, refresh)
//! come one after the other. Volumes are made and copied beside them: each is marked while that lasts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{MutexGuard, OwnedSemaphorePermit, Semaphore};

use super::errors;
use super::event::PoolRef;
use crate::conf::storage::{Pool, Volume};
use crate::error::{Error, Result};
use crate::qemu::storage::Watch;

/// How long a call waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls that wait for the disk of one pool at a time: a dead server takes no more threads than these.
const WORKERS: usize = 4;
/// Volumes of one pool that are filled or wiped at a time. More of them finish no sooner.
const COPIERS: usize = 4;

/// A volume as the pool keeps it.
#[derive(Debug, Clone)]
pub struct Record {
    pub volume: Volume,
    /// It is being made; its file is not whole.
    pub building: bool,
    /// Copies, streams and the like that work with it.
    pub uses: u32,
}

impl Record {
    pub(super) fn new(volume: Volume) -> Self {
        Self { volume, building: false, uses: 0 }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.building || self.uses > 0
    }
}

pub type Volumes = BTreeMap<Arc<str>, Arc<Record>>;

/// What a pool is at one moment.
#[derive(Debug, Clone)]
pub struct PoolState {
    /// What it is now, or will be if it is started.
    pub current: Arc<Pool>,
    /// What it will be when it has been destroyed.
    pub next: Option<Arc<Pool>>,
    pub is_active: bool,
    pub is_persistent: bool,
    pub autostart: bool,
    /// Off the list: nothing can be done with it any more.
    pub gone: bool,
    pub volumes: Arc<Volumes>,
}

impl PoolState {
    pub fn reference(&self) -> PoolRef {
        PoolRef { uuid: self.current.uuid, name: Arc::from(&*self.current.name) }
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<Record>> {
        self.volumes.get(name)
    }

    /// Refuses what needs volumes.
    pub fn require_active(&self) -> Result<()> {
        match self.is_active {
            true => Ok(()),
            false => Err(errors::not_active(&self.current.name)),
        }
    }

    pub(super) fn require_inactive(&self, still: &str) -> Result<()> {
        match self.is_active {
            false => Ok(()),
            true => Err(errors::invalid(format!("storage pool '{}' is {still} active", self.current.name))),
        }
    }

    pub(super) fn require_idle(&self) -> Result<()> {
        match self.volumes.values().any(|record| record.is_busy()) {
            false => Ok(()),
            true => {
                let sentence = format!("pool '{}' has asynchronous jobs running.", self.current.name);
                Err(errors::ours(Error::internal_error(sentence)))
            }
        }
    }

    pub(super) fn change_volumes<R>(&mut self, change: impl FnOnce(&mut Volumes) -> R) -> R {
        change(Arc::make_mut(&mut self.volumes))
    }

    /// Notes that files have taken so many bytes more, or fewer.
    pub(super) fn grow(&mut self, more: i64) {
        let sizes = &mut Arc::make_mut(&mut self.current).sizes;
        sizes.allocation = sizes.allocation.saturating_add_signed(more);
        sizes.available = sizes.available.saturating_add_signed(more.saturating_neg());
    }
}

#[derive(Debug)]
pub struct PoolObject {
    state: ArcSwap<PoolState>,
    writing: Mutex<()>,
    turn: tokio::sync::Mutex<()>,
    workers: Arc<Semaphore>,
    copiers: Arc<Semaphore>,
    /// On the pool's directory, if it has one. Taken by whoever looks through it, which happens in turn.
    pub(super) watch: Mutex<Option<Watch>>,
}

impl PoolObject {
    pub(super) fn new(pool: Pool) -> Self {
        let state = PoolState {
            current: Arc::new(pool),
            next: None,
            is_active: false,
            is_persistent: false,
            autostart: false,
            gone: false,
            volumes: Arc::default(),
        };
        Self {
            state: ArcSwap::from_pointee(state),
            writing: Mutex::new(()),
            turn: tokio::sync::Mutex::new(()),
            workers: Arc::new(Semaphore::new(WORKERS)),
            copiers: Arc::new(Semaphore::new(COPIERS)),
            watch: Mutex::new(None),
        }
    }

    pub fn state(&self) -> Arc<PoolState> {
        self.state.load_full()
    }

    /// Changes the state; `then` runs before anybody else does, so that events have the states' order.
    pub(super) fn update<R>(
        &self,
        change: impl FnOnce(&mut PoolState) -> R,
        then: impl FnOnce(&PoolState, &R),
    ) -> R {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = PoolState::clone(&self.state.load());
        let result = change(&mut next);
        let next = Arc::new(next);
        self.state.store(Arc::clone(&next));
        then(&next, &result);
        result
    }

    /// Waits for the right to change the pool as a whole.
    pub(super) async fn turn(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = tokio::time::timeout(PATIENCE, self.turn.lock()).await.map_err(|_| self.stuck())?;
        let state = self.state();
        match state.gone {
            true => Err(errors::no_referred_pool(state.current.uuid, &state.current.name)),
            false => Ok(turn),
        }
    }

    /// Runs what waits for the pool's disk, beside the tasks and beside the other pools.
    pub(super) async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let worker = tokio::time::timeout(PATIENCE, Arc::clone(&self.workers).acquire_owned()).await;
        let Ok(Ok(worker)) = worker else { return Err(self.stuck()) };
        beside(worker, work).await
    }

    /// Runs what fills a volume, which lasts. Those who only look at the pool do not wait for it.
    pub(super) async fn copying<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let Ok(copier) = Arc::clone(&self.copiers).acquire_owned().await else { return Err(self.stuck()) };
        beside(copier, work).await
    }

    fn stuck(&self) -> Error {
        let name = &self.state().current.name;
        errors::ours(Error::operation_timeout(format!("storage pool '{name}' does not answer")))
    }
}

async fn beside<R: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let work = move || {
        let result = work();
        drop(permit);
        result
    };
    let unfinished = |_| Err(errors::ours(Error::internal_error("a task ended early")));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(unfinished)
}

/// Marks a volume as being worked with, until it is dropped.
#[derive(Debug)]
pub struct Use {
    object: Arc<PoolObject>,
    name: Arc<str>,
    /// There is nothing left to unmark.
    is_over: bool,
}

impl Use {
    /// Begins to work with a volume that `check` finds fit.
    pub(super) fn begin(
        object: &Arc<PoolObject>,
        name: &str,
        check: impl FnOnce(&Record) -> Result<()>,
    ) -> Result<(Self, Volume)> {
        let name: Arc<str> = name.into();
        let volume = object.update(
            |state| -> Result<Volume> {
                state.require_active()?;
                let missing = || errors::no_volume(format_args!("name '{name}'"));
                state.change_volumes(|volumes| {
                    let record = Arc::make_mut(volumes.get_mut(&name).ok_or_else(missing)?);
                    check(record)?;
                    record.uses += 1;
                    Ok(record.volume.clone())
                })
            },
            |_, _| (),
        )?;
        Ok((Self { object: Arc::clone(object), name, is_over: false }, volume))
    }

    /// The volume is gone, and so many bytes with it.
    pub(super) fn end_with_volume(mut self, bytes: i64) {
        self.is_over = true;
        self.object.update(
            |state| {
                if state.change_volumes(|volumes| volumes.remove(&self.name)).is_some() {
                    state.grow(bytes.saturating_neg());
                }
            },
            |_, ()| (),
        );
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let end = |volumes: &mut Volumes| {
            if let Some(record) = volumes.get_mut(&self.name) {
                let record = Arc::make_mut(record);
                record.uses = record.uses.saturating_sub(1);
            }
        };
        self.object.update(|state| state.change_volumes(end), |_, ()| ());
    }
}

/// Refuses volumes that are not whole.
pub(super) fn whole(record: &Record) -> Result<()> {
    match record.building {
        false => Ok(()),
        true => Err(errors::invalid(format!("volume '{}' is still being allocated.", record.volume.name))),
    }
}

/// Refuses volumes that somebody works with.
pub(super) fn free(record: &Record) -> Result<()> {
    match record.uses {
        0 => whole(record),
        _ => Err(errors::invalid(format!("volume '{}' is still in use.", record.volume.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::storage::{Capacity, PoolType};
    use crate::util::uuid::Uuid;

    fn record() -> Record {
        let text = "<volume><name>a</name><capacity>1</capacity></volume>";
        Record::new(Volume::parse(text, PoolType::Dir, Capacity::Needed).unwrap())
    }

    #[tokio::test]
    async fn copies_keep_nobody_from_looking_at_the_pool() {
        let text = "<pool type='dir'><name>p</name><target><path>/p</path></target></pool>";
        let object = Arc::new(PoolObject::new(Pool::parse(text, Uuid([1; 16])).unwrap()));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let copies: Vec<_> = (0..COPIERS)
            .map(|_| {
                let (object, ended) = (Arc::clone(&object), Arc::clone(&ended));
                let wait = move || Ok(ended.lock().unwrap().recv().is_err());
                tokio::spawn(async move { object.copying(wait).await })
            })
            .collect();
        while object.copiers.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(object.blocking(|| Ok(7)).await.unwrap(), 7);
        drop(end);
        for copy in copies {
            assert!(copy.await.unwrap().unwrap());
        }
    }

    #[test]
    fn a_volume_is_deleted_once_and_by_nobody_while_it_is_worked_with() {
        let text = "<pool type='dir'><name>p</name><target><path>/p</path></target></pool>";
        let object = Arc::new(PoolObject::new(Pool::parse(text, Uuid([1; 16])).unwrap()));
        let add = |uses| {
            let record = Arc::new(Record { uses, ..record() });
            object.update(|state| drop(state.change_volumes(|it| it.insert("a".into(), record))), |_, ()| ());
        };
        object.update(|state| state.is_active = true, |_, ()| ());
        add(0);
        let (deleting, _) = Use::begin(&object, "a", free).unwrap();
        assert!(Use::begin(&object, "a", free).is_err());
        deleting.end_with_volume(0);
        assert!(object.state().volume("a").is_none());
        // Another of the same name is not unmarked by those who worked with the one before it.
        add(0);
        let (deleting, _) = Use::begin(&object, "a", free).unwrap();
        deleting.end_with_volume(0);
        add(1);
        assert!(Use::begin(&object, "a", free).is_err());
    }
}
