//! Secrets: passphrases that disks are opened with. Values are cleared from memory when they are dropped,
//! never logged, and given back to nobody if they are private.

mod cipher;
pub mod event;
mod files;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use self::event::{SecretEvent, SecretLifecycle, SecretRef};
use self::files::Files;
use crate::conf::secret::{Kept, Secret, Shown, UsageType};
use crate::conf::{self};
use crate::drivers::event_bus::{Event, EventBus};
use crate::error::{Code, Error, Origin, Result};
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

bitflags::bitflags! {
    /// `virConnectListAllSecretsFlags`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct ListFlags: u32 {
        const EPHEMERAL = 1;
        const NO_EPHEMERAL = 1 << 1;
        const PRIVATE = 1 << 2;
        const NO_PRIVATE = 1 << 3;
    }
}

/// A passphrase. Its bytes are cleared when it is dropped, and no log shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(…)")
    }
}

/// How values lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keeping {
    #[default]
    Encrypted,
    /// As a libvirt before 12.1 can read them.
    Plain,
}

#[derive(Debug)]
struct Entry {
    definition: Arc<Secret>,
    value: Option<Value>,
}

/// The driver of secrets. Changes come one after the other, beside the tasks; readers wait for no disk.
#[derive(Debug)]
pub struct Secrets {
    writing: Mutex<()>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    files: Files,
    events: Arc<EventBus>,
}

impl Secrets {
    /// `key` is what values are encrypted with, unless it is the daemon's own.
    pub fn new(paths: &Paths, events: Arc<EventBus>, keeping: Keeping, key: Option<&Path>) -> Self {
        let files = Files::new(paths, keeping, key);
        Self { writing: Mutex::default(), entries: Mutex::default(), files, events }
    }

    pub fn load(&self) -> Result<()> {
        let loaded = self.files.prepare().and_then(|()| self.files.load());
        let loaded = loaded.map_err(|error| ours(Error::io("cannot read secrets", error)))?;
        let mut entries = self.lock();
        for (definition, value) in loaded {
            entries.insert(definition.uuid, Entry { definition: Arc::new(definition), value });
        }
        Ok(())
    }

    pub async fn define(self: &Arc<Self>, xml: &str, flags: u32) -> Result<Arc<Secret>> {
        /// `VIR_SECRET_DEFINE_VALIDATE`
        const VALIDATE: u32 = 1;
        no_flags(flags & !VALIDATE, "secretDefineXML")?;
        let fresh = Uuid::of_new().map_err(|error| ours(Error::io("Failed to generate UUID", error)))?;
        let secret = Arc::new(Secret::parse(xml, fresh).map_err(refused)?);
        self.change(move |secrets| secrets.define_read(secret)).await
    }

    fn define_read(&self, secret: Arc<Secret>) -> Result<Arc<Secret>> {
        let value = {
            let entries = self.lock();
            check_unique(&entries, &secret)?;
            entries.get(&secret.uuid).and_then(|entry| entry.value.clone())
        };
        let saved = match secret.kept {
            Kept::OnDisk => value
                .as_ref()
                .map_or(Ok(()), |value| self.files.save_value(secret.uuid, value))
                .and_then(|()| self.files.save(&secret)),
            Kept::InMemory => self.files.remove(secret.uuid),
        };
        saved
            .map_err(|error| ours(Error::io(format_args!("cannot save secret '{}'", secret.uuid), error)))?;
        self.lock().insert(secret.uuid, Entry { definition: Arc::clone(&secret), value });
        self.publish(&secret, SecretEvent::Lifecycle(SecretLifecycle::Defined));
        Ok(secret)
    }

    pub async fn undefine(self: &Arc<Self>, uuid: Uuid) -> Result<()> {
        self.change(move |secrets| {
            let definition = secrets.by_uuid(uuid)?;
            secrets
                .files
                .remove(uuid)
                .map_err(|error| ours(Error::io(format_args!("cannot remove secret '{uuid}'"), error)))?;
            secrets.lock().remove(&uuid);
            secrets.publish(&definition, SecretEvent::Lifecycle(SecretLifecycle::Undefined));
            Ok(())
        })
        .await
    }

    pub async fn set_value(self: &Arc<Self>, uuid: Uuid, value: Value, flags: u32) -> Result<()> {
        no_flags(flags, "secretSetValue")?;
        self.change(move |secrets| {
            let definition = secrets.by_uuid(uuid)?;
            if definition.kept == Kept::OnDisk {
                secrets.files.save_value(uuid, &value).map_err(|error| {
                    ours(Error::io(format_args!("cannot save the value of secret '{uuid}'"), error))
                })?;
            }
            secrets.lock().get_mut(&uuid).ok_or_else(|| missing(uuid))?.value = Some(value);
            secrets.publish(&definition, SecretEvent::ValueChanged);
            Ok(())
        })
        .await
    }

    /// Makes a change that waits for the disk, when those before it are made.
    async fn change<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let secrets = Arc::clone(self);
        let work = move || {
            let _one_at_a_time = secrets.writing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&secrets)
        };
        let unfinished = |_| Err(ours(Error::internal_error("a task ended early")));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(unfinished)
    }

    /// The value, for a client.
    pub fn value(&self, uuid: Uuid, flags: u32) -> Result<Value> {
        no_flags(flags, "secretGetValue")?;
        let entries = self.lock();
        let entry = find(&entries, uuid)?;
        if entry.definition.shown == Shown::ToNobody {
            return Err(ours(Error::new(Code::INVALID_SECRET, "secret is private")));
        }
        entry.value.clone().ok_or_else(|| no_value(uuid))
    }

    /// The value, for what the daemon itself does with it.
    pub fn value_for_us(&self, uuid: Uuid) -> Result<Value> {
        let entries = self.lock();
        find(&entries, uuid)?.value.clone().ok_or_else(|| no_value(uuid))
    }

    /// The passphrase of a volume.
    pub fn volume_value(&self, path: &str) -> Result<Value> {
        self.value_for_us(self.by_usage(UsageType::Volume.number(), path)?.uuid)
    }

    pub fn by_uuid(&self, uuid: Uuid) -> Result<Arc<Secret>> {
        find(&self.lock(), uuid).map(|entry| Arc::clone(&entry.definition))
    }

    pub fn by_usage(&self, usage: i32, usage_id: &str) -> Result<Arc<Secret>> {
        let entries = self.lock();
        let mut all = entries.values().map(|entry| &entry.definition);
        let found = all.find(|it| {
            it.usage != UsageType::None && it.usage.number() == usage && *it.usage_id == *usage_id
        });
        let none = || ours(Error::no_secret(format!("no secret with matching usage '{usage_id}'")));
        found.map(Arc::clone).ok_or_else(none)
    }

    pub fn list_all(&self, flags: u32) -> Result<Vec<Arc<Secret>>> {
        no_flags(flags & !ListFlags::all().bits(), "secretConnectListAllSecrets")?;
        let flags = ListFlags::from_bits_retain(flags);
        let either = |on: ListFlags, off: ListFlags, is_on: bool| {
            let asked = flags & (on | off);
            asked.is_empty() || asked.contains(if is_on { on } else { off })
        };
        let entries = self.lock();
        let all = entries.values().map(|entry| &entry.definition);
        let fitting = all.filter(|it| {
            either(ListFlags::EPHEMERAL, ListFlags::NO_EPHEMERAL, it.kept == Kept::InMemory)
                && either(ListFlags::PRIVATE, ListFlags::NO_PRIVATE, it.shown == Shown::ToNobody)
        });
        Ok(fitting.map(Arc::clone).collect())
    }

    pub fn xml(&self, uuid: Uuid, flags: u32) -> Result<String> {
        no_flags(flags, "secretGetXMLDesc")?;
        self.by_uuid(uuid).map(|secret| secret.to_xml())
    }

    fn publish(&self, secret: &Secret, event: SecretEvent) {
        self.events.publish(Event::Secret { secret: reference(secret), event });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A secret as clients know it.
pub fn reference(secret: &Secret) -> SecretRef {
    SecretRef { uuid: secret.uuid, usage: secret.usage.number(), usage_id: Arc::from(&*secret.usage_id) }
}

fn find(entries: &BTreeMap<Uuid, Entry>, uuid: Uuid) -> Result<&Entry> {
    entries.get(&uuid).ok_or_else(|| missing(uuid))
}

/// A use has one secret, and a secret keeps its use and its privacy.
fn check_unique(entries: &BTreeMap<Uuid, Entry>, secret: &Secret) -> Result<()> {
    let refused = |sentence: String| Err(ours(Error::internal_error(sentence)));
    let (uuid, usage_id) = (secret.uuid, &secret.usage_id);
    if let Some(known) = entries.get(&uuid).map(|entry| &entry.definition) {
        if known.usage != secret.usage || known.usage_id != *usage_id {
            let usage_id = &known.usage_id;
            return refused(format!("a secret with UUID {uuid} is already defined for use with {usage_id}"));
        }
        if known.shown == Shown::ToNobody && secret.shown != Shown::ToNobody {
            return refused("cannot change private flag on existing secret".to_owned());
        }
        return Ok(());
    }
    let same_use = |it: &&Entry| {
        let it = &it.definition;
        it.usage != UsageType::None && it.usage == secret.usage && it.usage_id == *usage_id
    };
    match entries.values().find(same_use) {
        None => Ok(()),
        Some(other) => {
            let uuid = other.definition.uuid;
            refused(format!("a secret with UUID {uuid} already defined for use with {usage_id}"))
        }
    }
}

fn ours(error: Error) -> Error {
    error.from_origin(Origin::SECRET)
}

fn refused(error: conf::ConfError) -> Error {
    let is_ours = error.origin == conf::Origin::Domain;
    let built = Error::from(error);
    if is_ours { ours(built) } else { built }
}

fn missing(uuid: Uuid) -> Error {
    ours(Error::no_secret(format!("no secret with matching uuid '{uuid}'")))
}

fn no_value(uuid: Uuid) -> Error {
    ours(Error::no_secret(format!("secret '{uuid}' does not have a value")))
}

fn no_flags(bits: u32, function: &'static str) -> Result<()> {
    match bits {
        0 => Ok(()),
        unknown => Err(ours(Error::unsupported_flags(unknown, function))),
    }
}
