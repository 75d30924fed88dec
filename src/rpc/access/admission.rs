//! The one place where a call meets the access drivers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ferrovirt_protocol::procedure::{Acl, Entry};

use super::about::Found;
use super::driver::{AccessDriver, Object, Who};
use crate::conf::domain::Domain;
use crate::error::{Error, Origin, Result};

/// The access drivers of a server; all of them must agree.
#[derive(Debug)]
pub struct Access {
    drivers: Vec<Arc<dyn AccessDriver>>,
}

impl Access {
    /// `None`: everybody who is connected may do everything.
    pub fn new(drivers: Vec<Arc<dyn AccessDriver>>) -> Option<Arc<Self>> {
        if drivers.is_empty() { None } else { Some(Arc::new(Self { drivers })) }
    }

    /// Whether all drivers allow it. `None`: one of them could not be asked.
    async fn decide(&self, who: &Who, object: &Object, permission: &'static str) -> Option<bool> {
        for driver in &self.drivers {
            let name = driver.name();
            match driver.allows(who, object, permission).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::debug!(driver = name, who = %who.identity, %object, permission, "refused");
                    return Some(false);
                }
                Err(error) => {
                    tracing::error!(driver = name, who = %who.identity, %object, permission, %error, "cannot decide, so refused");
                    return None;
                }
            }
        }
        Some(true)
    }

    pub async fn allows(&self, who: &Who, object: &Object, permission: &'static str) -> bool {
        self.decide(who, object, permission).await.unwrap_or(false)
    }

    /// Has each driver read its rules again.
    pub fn reload(&self) {
        for driver in &self.drivers {
            if let Err(error) = driver.reload() {
                tracing::error!(driver = driver.name(), %error, "the access rules of before stay in force");
            }
        }
    }
}

/// One call's questions to the access drivers.
#[derive(Clone)]
pub struct Asking {
    access: Arc<Access>,
    who: Arc<Who>,
    /// A list was cut down to what the client may see.
    filtered: Arc<AtomicBool>,
    /// A driver could not be asked. The rest of the call is refused without asking: a list would wait for
    /// each of its objects.
    has_failed: Arc<AtomicBool>,
    /// What the call was said to be about.
    judged: Arc<OnceLock<Vec<Object>>>,
}

impl Asking {
    pub fn new(access: Arc<Access>, who: Arc<Who>) -> Self {
        Self { access, who, filtered: Arc::default(), has_failed: Arc::default(), judged: Arc::default() }
    }

    /// All checks of a call's annotations whose conditions hold for the argument that decides them; `objects` are
    /// looked for only where there is a check about them.
    pub async fn admit(&self, call: &Entry, deciding: u32, objects: Found<'_>) -> Result<()> {
        let asked = call.acl.iter().filter(|check| check.when.holds(deciding));
        let (connect, others): (Vec<_>, Vec<_>) = asked.partition(|check| check.object == "connect");
        for check in connect {
            self.require(&Object::Connect, check).await?;
        }
        if others.is_empty() {
            return Ok(());
        }
        let objects = objects.await?;
        let objects = self.judged.get_or_init(|| objects);
        for check in others {
            let mut subjects = Vec::from_iter(objects);
            subjects.retain(|object| object.class() == check.object);
            if subjects.is_empty() {
                return Err(denied());
            }
            for object in subjects {
                self.require(object, check).await?;
            }
        }
        Ok(())
    }

    /// Refuses what has been read a second time and is not what was judged by.
    pub fn require_judged(&self, read: &Domain) -> Result<()> {
        let is_it =
            |object: &Object| matches!(object, Object::Domain { definition: Some(it), .. } if **it == *read);
        if self.judged.get().is_some_and(|objects| objects.iter().any(is_it)) {
            Ok(())
        } else {
            Err(denied())
        }
    }

    /// Refuses to send a list that nobody has cut down: what a new call forgets is not shown.
    pub fn require_filtered(&self, call: &Entry) -> Result<()> {
        let lists = call.acl.iter().any(|check| check.permission.starts_with("search_"));
        // Events are filtered as they come.
        if lists && !call.name.contains("_event_") && !self.filtered.load(Ordering::Relaxed) {
            tracing::error!(api = call.api, "a list that is not filtered is not sent");
            return Err(denied());
        }
        Ok(())
    }

    /// Those of `all` whose object the client may see.
    pub async fn visible<T>(
        &self,
        all: Vec<T>,
        permission: &'static str,
        object: impl Fn(&T) -> Object,
    ) -> Vec<T> {
        self.filtered.store(true, Ordering::Relaxed);
        let mut seen = Vec::with_capacity(all.len());
        for item in all {
            if self.allows(&object(&item), permission).await {
                seen.push(item);
            }
        }
        seen
    }

    async fn allows(&self, object: &Object, permission: &'static str) -> bool {
        if self.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        let decided = self.access.decide(&self.who, object, permission).await;
        self.has_failed.store(decided.is_none(), Ordering::Relaxed);
        decided.unwrap_or(false)
    }

    async fn require(&self, object: &Object, check: &Acl) -> Result<()> {
        match self.allows(object, check.permission).await {
            true => Ok(()),
            false => {
                let (who, permission) = (&*self.who.identity, check.permission);
                tracing::warn!(%who, %object, permission, "access denied");
                Err(denied())
            }
        }
    }
}

/// libvirt's answer: it says neither what was missing nor who said so.
fn denied() -> Error {
    Error::access_denied("'QEMU' denied access").from_origin(Origin::ACCESS)
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("who", &self.who).finish_non_exhaustive()
    }
}
