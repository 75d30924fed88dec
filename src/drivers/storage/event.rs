//! What subscribers hear about a pool, with libvirt's numbers.

use std::sync::Arc;

use crate::util::uuid::Uuid;

/// The pool an event or an answer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRef {
    pub uuid: Uuid,
    pub name: Arc<str>,
}

/// `virStoragePoolEventID`: what a client registers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEventId {
    Lifecycle = 0,
    Refresh = 1,
}

impl PoolEventId {
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Lifecycle, Self::Refresh].into_iter().find(|id| *id as i32 == number)
    }
}

/// `virStoragePoolEventLifecycleType`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolLifecycle {
    Defined = 0,
    Undefined = 1,
    Started = 2,
    Stopped = 3,
    Created = 4,
    Deleted = 5,
}

/// What happened to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEvent {
    Lifecycle(PoolLifecycle),
    Refresh,
}

impl PoolEvent {
    pub fn id(self) -> PoolEventId {
        match self {
            Self::Lifecycle(_) => PoolEventId::Lifecycle,
            Self::Refresh => PoolEventId::Refresh,
        }
    }
}
