//! What a client wants to hear, and how it hears it.
//!
//! A registration subscribes a [`Relay`] to the event bus: it turns each event into the message of that
//! registration and appends it to the client's outbox. There are two forms: the older messages name only
//! the event, the newer ones carry the callback id that the registration answered with.

mod relay;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use relay::{Form, Pattern};

use self::relay::Relay;
use super::access::events::Gate;
use super::outbox::Outbox;
use crate::drivers::Drivers;
use crate::drivers::domain::event::EventId;
use crate::drivers::event_bus::{Filter, Subscriber, SubscriptionId};
use crate::drivers::secret::event::SecretEventId;
use crate::drivers::storage::event::PoolEventId;
use crate::error::{Error, Origin, Result};
use crate::util::uuid::Uuid;

/// Registrations one client may have.
const MAX_REGISTRATIONS: usize = 4096;

/// What a registration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Domain(EventId),
    Monitor,
    Pool,
    Secret,
}

#[derive(Debug)]
struct Registration {
    callback_id: i32,
    subject: Subject,
    filter: Filter,
    subscription: SubscriptionId,
}

#[derive(Debug, Default)]
struct State {
    next_id: i32,
    registrations: Vec<Registration>,
    ended: bool,
}

/// All registrations of one client. Callback ids count up from 0 on each connection.
#[derive(Debug)]
pub struct Subscriptions {
    outbox: Arc<Outbox>,
    /// Where access drivers decide what the client may see.
    gate: OnceLock<Gate>,
    state: Mutex<State>,
}

impl Subscriptions {
    pub fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, gate: OnceLock::new(), state: Mutex::default() }
    }

    /// Said once, before there are registrations: from now on events pass `gate`.
    pub fn guard(&self, gate: Gate) {
        // A second one would be a mistake of the one caller, and changes nothing.
        let _ = self.gate.set(gate);
    }

    /// Events of one kind, of all domains or of one. Answers the callback id.
    pub fn register(
        &self,
        drivers: &Drivers,
        id: EventId,
        domain: Option<Uuid>,
        form: fn(i32) -> Form,
    ) -> Result<i32> {
        self.add(drivers, Subject::Domain(id), Filter::Domain { domain, id }, |callback_id| {
            Relay::domain(Arc::clone(&self.outbox), id, form(callback_id))
        })
    }

    /// QMP events whose name fits. Answers the callback id.
    pub fn register_monitor(&self, drivers: &Drivers, domain: Option<Uuid>, pattern: Pattern) -> Result<i32> {
        self.add(drivers, Subject::Monitor, Filter::Monitor { domain }, |callback_id| {
            Relay::monitor(Arc::clone(&self.outbox), pattern, callback_id)
        })
    }

    /// Ends the oldest registration of an event: the older forms know no callback ids.
    pub fn deregister_event(&self, drivers: &Drivers, id: EventId) -> Result<()> {
        let found = |registration: &Registration| registration.subject == Subject::Domain(id);
        self.take(drivers, found, || format!("domain event {} not registered", id.number()))
    }

    pub fn deregister(&self, drivers: &Drivers, callback_id: i32) -> Result<()> {
        let found = |registration: &Registration| {
            registration.callback_id == callback_id && matches!(registration.subject, Subject::Domain(_))
        };
        self.take(drivers, found, || format!("domain event callback {callback_id} not registered"))
    }

    pub fn deregister_monitor(&self, drivers: &Drivers, callback_id: i32) -> Result<()> {
        let found = |registration: &Registration| {
            registration.callback_id == callback_id && registration.subject == Subject::Monitor
        };
        self.take(drivers, found, || format!("qemu monitor event callback {callback_id} not registered"))
    }

    /// Events of one kind, of all storage pools or of one. Answers the callback id.
    pub fn register_pool(&self, drivers: &Drivers, id: PoolEventId, pool: Option<Uuid>) -> Result<i32> {
        let relay = |callback_id| Relay::object(Arc::clone(&self.outbox), callback_id);
        self.add(drivers, Subject::Pool, Filter::Pool { pool, id }, relay)
    }

    pub fn deregister_pool(&self, drivers: &Drivers, callback_id: i32) -> Result<()> {
        let found = |it: &Registration| it.callback_id == callback_id && it.subject == Subject::Pool;
        self.take(drivers, found, || format!("storage pool event callback {callback_id} not registered"))
    }

    /// Events of one kind, of all secrets or of one. Answers the callback id.
    pub fn register_secret(&self, drivers: &Drivers, id: SecretEventId, secret: Option<Uuid>) -> Result<i32> {
        let relay = |callback_id| Relay::object(Arc::clone(&self.outbox), callback_id);
        self.add(drivers, Subject::Secret, Filter::Secret { secret, id }, relay)
    }

    pub fn deregister_secret(&self, drivers: &Drivers, callback_id: i32) -> Result<()> {
        let found = |it: &Registration| it.callback_id == callback_id && it.subject == Subject::Secret;
        self.take(drivers, found, || format!("secret event callback {callback_id} not registered"))
    }

    /// How many registrations of an event are left.
    pub fn count(&self, id: EventId) -> usize {
        let state = self.lock();
        state.registrations.iter().filter(|registration| registration.subject == Subject::Domain(id)).count()
    }

    /// The client is gone.
    pub(super) fn end_all(&self, drivers: &Drivers) {
        let mut state = self.lock();
        state.ended = true;
        for registration in state.registrations.drain(..) {
            drivers.events.unsubscribe(registration.subscription);
        }
    }

    fn add(
        &self,
        drivers: &Drivers,
        subject: Subject,
        filter: Filter,
        relay: impl FnOnce(i32) -> Relay,
    ) -> Result<i32> {
        let mut state = self.lock();
        if state.ended || state.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Error::internal_error("too many event callbacks").from_origin(Origin::RPC));
        }
        // Clients share one registration among their own callbacks, so a second one is a mistake.
        let tracked = |registration: &Registration| registration.filter == filter;
        if subject != Subject::Monitor && state.registrations.iter().any(tracked) {
            return Err(Error::invalid_arg("event callback already tracked").from_origin(Origin::NONE));
        }
        let callback_id = state.next_id;
        state.next_id = state.next_id.wrapping_add(1) & i32::MAX;
        let relay: Arc<dyn Subscriber> = Arc::new(relay(callback_id));
        let subscriber = match self.gate.get() {
            None => relay,
            Some(gate) => gate.guard(relay).ok_or_else(|| Error::internal_error("the client is gone"))?,
        };
        let subscription = drivers.events.subscribe(filter.clone(), subscriber);
        state.registrations.push(Registration { callback_id, subject, filter, subscription });
        Ok(callback_id)
    }

    fn take(
        &self,
        drivers: &Drivers,
        found: impl FnMut(&Registration) -> bool,
        missing: impl FnOnce() -> String,
    ) -> Result<()> {
        let mut state = self.lock();
        let place = state.registrations.iter().position(found);
        let place = place.ok_or_else(|| Error::internal_error(missing()).from_origin(Origin::RPC))?;
        let registration = state.registrations.remove(place);
        drivers.events.unsubscribe(registration.subscription);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
