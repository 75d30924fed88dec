//! What subscribers hear about a secret, with libvirt's numbers.

use std::sync::Arc;

use crate::util::uuid::Uuid;

/// The secret an event or an answer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    pub uuid: Uuid,
    /// `virSecretUsageType`
    pub usage: i32,
    pub usage_id: Arc<str>,
}

/// `virSecretEventID`: what a client registers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretEventId {
    Lifecycle = 0,
    ValueChanged = 1,
}

impl SecretEventId {
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Lifecycle, Self::ValueChanged].into_iter().find(|id| *id as i32 == number)
    }
}

/// `virSecretEventLifecycleType`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretLifecycle {
    Defined = 0,
    Undefined = 1,
}

/// What happened to a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretEvent {
    Lifecycle(SecretLifecycle),
    ValueChanged,
}

impl SecretEvent {
    pub fn id(self) -> SecretEventId {
        match self {
            Self::Lifecycle(_) => SecretEventId::Lifecycle,
            Self::ValueChanged => SecretEventId::ValueChanged,
        }
    }
}
