//! Events, as far as a client may see what they are about.
//!
//! An access driver may have to be waited for and the event bus waits for nobody, so the events of such a
//! client pass a queue and a task of its own, in their order. Who falls behind is disconnected, as who does
//! not read.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::mpsc;

use super::about;
use super::admission::Access;
use super::driver::Object;
use crate::drivers::Drivers;
use crate::drivers::event_bus::{Event, Subscriber};
use crate::rpc::outbox::{Ending, Outbox};
use crate::rpc::session::Client;
use crate::util::uuid::Uuid;

/// Events that may wait for the drivers' answers.
const MAX_WAITING: usize = 4096;

/// Guests about which a client has heard before those that are no more are forgotten.
const MANY_SEEN: usize = 1024;

type Waiting = (Arc<dyn Subscriber>, Arc<Event>);

/// What stands between the event bus and one client.
#[derive(Debug)]
pub struct Gate {
    access: Arc<Access>,
    drivers: Arc<Drivers>,
    client: Weak<Client>,
    queue: OnceLock<mpsc::Sender<Waiting>>,
}

impl Gate {
    pub fn new(access: Arc<Access>, drivers: Arc<Drivers>, client: &Arc<Client>) -> Self {
        Self { access, drivers, client: Arc::downgrade(client), queue: OnceLock::new() }
    }

    /// `subscriber`, for what the client may see. `None`: there is no client any more.
    pub fn guard(&self, subscriber: Arc<dyn Subscriber>) -> Option<Arc<dyn Subscriber>> {
        let client = self.client.upgrade()?;
        let begin = || {
            let (queue, waiting) = mpsc::channel(MAX_WAITING);
            let (access, drivers) = (Arc::clone(&self.access), Arc::clone(&self.drivers));
            tokio::spawn(pass(access, drivers, Weak::clone(&self.client), waiting));
            queue
        };
        let queue = self.queue.get_or_init(begin).clone();
        Some(Arc::new(Guarded { subscriber, queue, outbox: Arc::clone(&client.outbox) }))
    }
}

struct Guarded {
    subscriber: Arc<dyn Subscriber>,
    queue: mpsc::Sender<Waiting>,
    outbox: Arc<Outbox>,
}

impl Subscriber for Guarded {
    fn deliver(&self, event: &Arc<Event>) {
        let waiting = (Arc::clone(&self.subscriber), Arc::clone(event));
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(waiting) {
            self.outbox.end(Ending::Unread);
        }
    }
}

async fn pass(
    access: Arc<Access>,
    drivers: Arc<Drivers>,
    client: Weak<Client>,
    mut waiting: mpsc::Receiver<Waiting>,
) {
    // Of a guest that is gone by now nothing is left to look at: its last events go where the others went.
    let mut seen: HashMap<Uuid, bool> = HashMap::new();
    let mut many = MANY_SEEN;
    while let Some((subscriber, event)) = waiting.recv().await {
        let object = match &*event {
            Event::Domain { domain, .. } => about::reported(&drivers, domain),
            Event::Pool { pool, .. } => Object::StoragePool(pool.clone()),
            Event::Secret { secret, .. } => Object::Secret(secret.clone()),
        };
        let Some(client) = client.upgrade() else { return };
        let mut shown = access.allows(&client.who(), &object, "getattr").await;
        match object {
            Object::Domain { uuid, definition: None, .. } => {
                shown |= seen.get(&uuid).is_some_and(|shown| *shown)
            }
            Object::Domain { uuid, .. } => {
                seen.insert(uuid, shown);
            }
            _ => {}
        }
        if seen.len() > many {
            seen.retain(|uuid, _| drivers.domains.list.by_uuid(*uuid).is_ok());
            many = MANY_SEEN.max(2 * seen.len());
        }
        if shown {
            subscriber.deliver(&event);
        }
    }
}
