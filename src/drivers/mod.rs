//! What the API means: objects, lookups, jobs begun, events published.

pub mod capabilities;
pub mod domain;
mod errors;
pub mod event_bus;
pub(crate) mod flags;
pub mod node;
pub mod params;
pub mod secret;
pub mod storage;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::config::qemu::QemuConfig;
use crate::config::secrets::SecretsConfig;
use crate::drivers::capabilities::HostCapabilities;
use crate::drivers::domain::{Domains, Rules};
use crate::drivers::event_bus::EventBus;
use crate::drivers::node::Node;
use crate::drivers::secret::Secrets;
use crate::drivers::storage::Storage;
use crate::error::Result;
use crate::qemu::capabilities::Emulators;
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

/// A connection, as far as anything below `rpc` knows of it: the owner of guests that go when it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Everything that calls act on. Built once by `main`; each call carries it.
#[derive(Debug)]
pub struct Drivers {
    pub paths: Paths,
    pub events: Arc<EventBus>,
    pub node: Node,
    pub emulators: Emulators,
    pub capabilities: HostCapabilities,
    pub secrets: Arc<Secrets>,
    pub storage: Arc<Storage>,
    pub domains: Arc<Domains>,
}

impl Drivers {
    /// `search_path` is $PATH, where the QEMU binaries are; `host_uuid` is what the host is called, if not what its
    /// firmware says.
    pub fn new(
        paths: Paths,
        search_path: OsString,
        config: &QemuConfig,
        kept: &SecretsConfig,
        host_uuid: Option<Uuid>,
    ) -> Result<Self> {
        let node = Node::new(Path::new("/"));
        let emulators = Emulators::new(&paths.qemu_cache(), search_path.clone());
        let rules = Rules::new(config, &paths);
        let security = &rules.security;
        let capabilities = HostCapabilities::new(node.clone(), emulators.clone(), security, host_uuid)?;
        let events = Arc::new(EventBus::default());
        let secrets = Secrets::new(&paths, Arc::clone(&events), kept.keeping, kept.key.as_deref());
        let secrets = Arc::new(secrets);
        let storage = Storage::new(&paths, Arc::clone(&events), Arc::clone(&secrets), search_path.clone());
        let storage = Arc::new(storage);
        let domains = Domains::new(
            paths.clone(),
            Arc::clone(&events),
            emulators.clone(),
            Arc::clone(&storage),
            &search_path,
            (rules, capabilities.uuid()),
        );
        let domains = Arc::new(domains);
        Ok(Self { paths, events, node, emulators, capabilities, secrets, storage, domains })
    }
}
