//! Guests: what exists, what runs, and what clients may do with it.
//!
//! ```text
//!            define                     start                      process gone
//!  (nothing) ─────► shut off, persistent ────► running, persistent ─────────────► shut off
//!      │                    │                       │  ▲
//!      │ create             │ undefine     undefine │  │ define
//!      │                    ▼                       ▼  │
//!      └──────────────► (nothing) ◄──────────── running, transient
//!                                  process gone
//! ```
//!
//! | file | |
//! |---|---|
//! | `list` | which domains there are; lookups |
//! | `definitions`, `define` | what a domain starts with the next time |
//! | `reads` | answers that need no job |
//! | `start`, `lifecycle`, `teardown` | from nothing to a running guest, what is done with it, and back |
//! | `monitor_events` | what QEMU reports, in order, one task per guest |
//! | `event` | what subscribers hear |

pub mod define;
mod definitions;
pub mod event;
mod filter;
pub mod flags;
pub mod lifecycle;
pub mod list;
mod monitor_events;
pub mod reads;
mod teardown;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::definitions::Definitions;
use self::event::{DomainEvent, DomainRef};
use self::list::{DomainList, Existing};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::drivers::event_bus::{Event, EventBus};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainObject, Limits, State};
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

/// The driver of guests.
#[derive(Debug)]
pub struct Domains {
    pub list: DomainList,
    events: Arc<EventBus>,
    paths: Paths,
    definitions: Definitions,
    limits: Limits,
}

impl Domains {
    pub fn new(paths: Paths, events: Arc<EventBus>) -> Self {
        let definitions = Definitions::new(paths.qemu_config(), paths.qemu_autostart());
        Self { list: DomainList::default(), events, paths, definitions, limits: Limits::default() }
    }

    /// Makes the directories and takes over what is defined.
    pub fn load(&self) -> io::Result<()> {
        self.definitions.prepare()?;
        for found in self.definitions.load() {
            let definition = Arc::new(found.definition);
            let (name, uuid) = (&definition.name, definition.uuid);
            let added = self.list.add((name, uuid), Existing::Start, || {
                let mut state = State::new(&**name, uuid);
                state.inactive = Some(Arc::clone(&definition));
                state.autostart = found.autostart;
                DomainObject::new(state, self.limits)
            });
            if let Err(error) = added {
                tracing::warn!(domain = %name, %error, "skipped a definition");
            }
        }
        Ok(())
    }

    /// What a client's text defines, complete and checked.
    async fn read_definition(&self, xml: &str) -> Result<Domain> {
        let mut definition = Domain::parse(xml, Form::INACTIVE)?;
        if !definition.has_uuid() {
            definition.uuid = Uuid::random().map_err(|error| Error::io("cannot make a uuid", error))?;
        }
        Ok(definition)
    }

    /// Tells subscribers. Called while the state is being replaced, so that events keep the states' order.
    fn publish(&self, state: &State, event: DomainEvent) {
        self.events.publish(Event::Domain { domain: DomainRef::of(state), event });
    }

    fn check_there(&self, state: &State) -> Result<()> {
        match state.gone {
            true => {
                let (uuid, name) = (state.uuid, &state.name);
                Err(Error::no_domain(format!("no domain with matching uuid '{uuid}' ({name})")))
            }
            false => Ok(()),
        }
    }

    /// Where a guest's memory is kept while it is shut off and will go on.
    fn managed_save(&self, name: &str) -> PathBuf {
        self.paths.qemu_state().join("save").join(format!("{name}.save"))
    }

    fn remove_log(&self, name: &str) {
        let log = self.paths.qemu_log().join(format!("{name}.log"));
        if let Err(error) = crate::util::file::remove_if_there(&log) {
            tracing::warn!(domain = name, %error, "cannot remove the log");
        }
    }
}

impl DomainRef {
    pub fn of(state: &State) -> Self {
        Self { uuid: state.uuid, name: Arc::clone(&state.name), id: state.id.unwrap_or(-1) }
    }
}

/// Runs what waits for the disk beside the tasks.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    let unfinished = |_| Err(Error::internal_error("a task ended early"));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(unfinished)
}
