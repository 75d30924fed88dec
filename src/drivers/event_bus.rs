//! Who hears what: events go from the drivers to subscribers, in the order in which they were published.
//!
//! The bus holds no queue and never waits. A subscriber takes an event without blocking, into a bounded
//! queue of its own, and deals with a full one itself (the RPC server disconnects that client). Events of
//! one object are published under that object's lock, so their order is the order of its states.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::drivers::domain::event::{DomainEvent, DomainRef, EventId};
use crate::drivers::secret::event::{SecretEvent, SecretEventId, SecretRef};
use crate::drivers::storage::event::{PoolEvent, PoolEventId, PoolRef};
use crate::util::uuid::Uuid;

/// Something that happened to an object of a driver.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Domain { domain: DomainRef, event: DomainEvent },
    Pool { pool: PoolRef, event: PoolEvent },
    Secret { secret: SecretRef, event: SecretEvent },
}

/// Takes events. Called under locks of the publisher: must not block, wait or publish.
pub trait Subscriber: Send + Sync {
    fn deliver(&self, event: &Arc<Event>);
}

/// Which events a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Domain events of one kind, of all domains or of one.
    Domain { domain: Option<Uuid>, id: EventId },
    /// QMP events, of all domains or of one; which names is the subscriber's own matter.
    Monitor { domain: Option<Uuid> },
    /// Events of one kind, of all storage pools or of one.
    Pool { pool: Option<Uuid>, id: PoolEventId },
    /// Events of one kind, of all secrets or of one.
    Secret { secret: Option<Uuid>, id: SecretEventId },
}

impl Filter {
    fn accepts(&self, event: &Event) -> bool {
        let is = |wanted: &Option<Uuid>, uuid: Uuid| wanted.is_none_or(|wanted| wanted == uuid);
        match (self, event) {
            (Self::Domain { domain, id }, Event::Domain { domain: subject, event }) => {
                event.answers(*id) && is(domain, subject.uuid)
            }
            (Self::Monitor { domain }, Event::Domain { domain: subject, event }) => {
                matches!(event, DomainEvent::Monitor { .. }) && is(domain, subject.uuid)
            }
            (Self::Pool { pool, id }, Event::Pool { pool: subject, event }) => {
                event.id() == *id && is(pool, subject.uuid)
            }
            (Self::Secret { secret, id }, Event::Secret { secret: subject, event }) => {
                event.id() == *id && is(secret, subject.uuid)
            }
            _ => false,
        }
    }
}

/// Names a subscription, for ending it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubscriptionId(u64);

struct Subscription {
    id: SubscriptionId,
    filter: Filter,
    subscriber: Arc<dyn Subscriber>,
}

/// All subscriptions. Publishing reads an immutable list; subscribing replaces it.
#[derive(Default)]
pub struct EventBus {
    subscriptions: ArcSwap<Vec<Arc<Subscription>>>,
    change: Mutex<()>,
    last_id: AtomicU64,
}

impl EventBus {
    /// From now on `subscriber` gets what `filter` accepts, until [`EventBus::unsubscribe`].
    pub fn subscribe(&self, filter: Filter, subscriber: Arc<dyn Subscriber>) -> SubscriptionId {
        let id = SubscriptionId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let subscription = Arc::new(Subscription { id, filter, subscriber });
        self.replace(|list| list.push(subscription));
        id
    }

    /// Ends a subscription. A delivery that runs at this moment on another thread may still arrive.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.replace(|list| list.retain(|subscription| subscription.id != id));
    }

    pub fn publish(&self, event: Event) {
        let subscriptions = self.subscriptions.load();
        let mut takers =
            subscriptions.iter().filter(|subscription| subscription.filter.accepts(&event)).peekable();
        if takers.peek().is_none() {
            return;
        }
        let takers: Vec<_> = takers.collect();
        let event = Arc::new(event);
        for subscription in takers {
            subscription.subscriber.deliver(&event);
        }
    }

    /// Whether anybody would get `filter`'s kind at all; saves building events that nobody takes.
    pub fn wants_monitor_events(&self) -> bool {
        let subscriptions = self.subscriptions.load();
        subscriptions.iter().any(|subscription| matches!(subscription.filter, Filter::Monitor { .. }))
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Arc<Subscription>>)) {
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = Vec::clone(&self.subscriptions.load());
        change(&mut list);
        self.subscriptions.store(Arc::new(list));
    }
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus").field("subscriptions", &self.subscriptions.load().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::domain::event::{Lifecycle, Resumed, Started};

    #[derive(Default)]
    struct Inbox(Mutex<Vec<Arc<Event>>>);

    impl Subscriber for Inbox {
        fn deliver(&self, event: &Arc<Event>) {
            self.0.lock().unwrap().push(Arc::clone(event));
        }
    }

    impl Inbox {
        fn kinds(&self) -> Vec<DomainEvent> {
            let inbox = self.0.lock().unwrap();
            inbox
                .iter()
                .filter_map(|event| match &**event {
                    Event::Domain { event, .. } => Some(event.clone()),
                    _ => None,
                })
                .collect()
        }
    }

    fn event(uuid: u8, event: DomainEvent) -> Event {
        Event::Domain { domain: DomainRef { uuid: Uuid([uuid; 16]), name: "x".into(), id: 1 }, event }
    }

    const STARTED: DomainEvent = DomainEvent::Lifecycle(Lifecycle::Started(Started::Booted));
    const RESUMED: DomainEvent = DomainEvent::Lifecycle(Lifecycle::Resumed(Resumed::Unpaused));

    #[test]
    fn a_subscriber_gets_its_kind_in_order_until_it_leaves() {
        let bus = EventBus::default();
        let inbox = Arc::new(Inbox::default());
        let id = bus.subscribe(Filter::Domain { domain: None, id: EventId::Lifecycle }, inbox.clone());
        bus.publish(event(1, STARTED));
        bus.publish(event(1, DomainEvent::Reboot));
        bus.publish(event(2, RESUMED));
        bus.unsubscribe(id);
        bus.publish(event(1, RESUMED));
        assert_eq!(inbox.kinds(), [STARTED, RESUMED]);
    }

    #[test]
    fn one_domain_only() {
        let bus = EventBus::default();
        let inbox = Arc::new(Inbox::default());
        let uuid = Some(Uuid([2; 16]));
        bus.subscribe(Filter::Domain { domain: uuid, id: EventId::Reboot }, inbox.clone());
        bus.publish(event(1, DomainEvent::Reboot));
        assert!(inbox.kinds().is_empty());
        bus.publish(event(2, DomainEvent::Reboot));
        assert_eq!(inbox.kinds(), [DomainEvent::Reboot]);
    }

    #[test]
    fn an_io_error_answers_both_of_its_forms_and_a_monitor_event_only_its_own() {
        let bus = EventBus::default();
        let (old, new, monitor) =
            (Arc::new(Inbox::default()), Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        bus.subscribe(Filter::Domain { domain: None, id: EventId::IoError }, old.clone());
        bus.subscribe(Filter::Domain { domain: None, id: EventId::IoErrorReason }, new.clone());
        bus.subscribe(Filter::Monitor { domain: None }, monitor.clone());
        let error = DomainEvent::IoError {
            source: "/disk".into(),
            alias: "virtio-disk0".into(),
            action: crate::drivers::domain::event::IoErrorAction::Pause,
            reason: "enospc".into(),
        };
        let raw = DomainEvent::Monitor { event: "RESUME".into(), seconds: 1, micros: 2, details: None };
        bus.publish(event(1, error));
        bus.publish(event(1, raw));
        assert_eq!([old.kinds().len(), new.kinds().len(), monitor.kinds().len()], [1, 1, 1]);
    }
}
