//! What the API means: objects, lookups, jobs begun, events published.

pub mod domain;
mod errors;
pub mod event_bus;
pub mod node;

use crate::drivers::event_bus::EventBus;
use crate::util::paths::Paths;

/// A connection, as far as anything below `rpc` knows of it: the owner of guests that go when it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Everything that calls act on. Built once by `main`; each call carries it.
#[derive(Debug)]
pub struct Drivers {
    pub paths: Paths,
    pub events: EventBus,
}

impl Drivers {
    pub fn new(paths: Paths) -> Self {
        Self { paths, events: EventBus::default() }
    }
}
