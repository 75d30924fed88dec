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
//! | `rename` | a domain under another name |
//! | `metadata` | what clients keep with a domain |
//! | `migrate` | to and from other hosts |
//! | `keyboard` | keys that clients press |
//! | `messages` | what is unusual in a guest |
//! | `reads` | answers that need no job |
//! | `usage` | what a domain uses of the host: processors, memory, images |
//! | `tunables` | how much of the host a domain may use |
//! | `stats` | all numbers about many domains at once |
//! | `complete` | from a client's text to a definition that can run |
//! | `agent`, `agent_…` | what is asked of the agent inside a guest |
//! | `adopt`, `status`, `strays` | guests that outlive the daemon |
//! | `attach`, `native` | guests that others started, and command lines of QEMU |
//! | `block_jobs` | long work on the images of running guests |
//! | `save`, `restore`, `managed_save` | a guest's state into a file, and back |
//! | `core_dump` | what is kept of a guest for whoever looks into it |
//! | `checkpoint`, `backup` | what guests write since a moment, and copies of what they have |
//! | `snapshot` | states of a domain that it can go back to |
//! | `start`, `lifecycle`, `lifecycle_action`, `teardown` | from nothing to a running guest, what is done with it, and back |
//! | `monitor_events` | what QEMU reports, in order, one task per guest |
//! | `given` | files that belong to QEMU's user while a guest runs |
//! | `devices`, `ports`, `console`, `graphics`, `screenshot` | what guests have of the host, and what clients have of guests |
//! | `job_info`, `job_abort` | how far a long operation is, how the last one went, and ending one |
//! | `hotplug`, `plug_rules`, `memory_devices`, `refresh` | what changes in a guest while it runs, and what QEMU made of it |
//! | `owners`, `associated` | guests, and descriptors for guests, that end with a connection |
//! | `event` | what subscribers hear |

mod adopt;
pub mod agent;
mod agent_filesystems;
pub mod agent_guest;
mod agent_info;
mod agent_power;
pub mod agent_vcpus;
mod associated;
mod attach;
mod audit;
pub mod backup;
pub mod block_jobs;
pub mod checkpoint;
mod complete;
pub mod console;
mod core_dump;
pub mod define;
mod definitions;
mod devices;
pub mod event;
mod filter;
pub mod flags;
mod formats;
mod given;
pub mod graphics;
pub mod hotplug;
mod image_sizes;
pub mod iothreads;
mod job_abort;
pub mod job_info;
pub mod keyboard;
pub mod lifecycle;
mod lifecycle_action;
pub mod list;
mod managed_save;
mod memory;
mod memory_devices;
mod messages;
pub mod metadata;
pub mod migrate;
#[cfg(test)]
mod mistakes_tests;
mod moment_files;
pub mod monitor_command;
mod monitor_events;
mod native;
mod owners;
mod perf;
pub mod pins;
mod plug_rules;
mod ports;
pub mod reads;
mod refresh;
mod remains;
mod rename;
mod reports;
mod restore;
mod save;
pub mod screenshot;
pub mod snapshot;
mod start;
pub mod stats;
mod status;
mod strays;
mod teardown;
pub mod tunables;
mod turns;
mod update;
mod update_rules;
pub mod usage;
mod vcpus;
mod way_out;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, OnceLock};

use self::agent_filesystems::Frozen;
use self::associated::Associated;
pub use self::complete::parse;
use self::console::Consoles;
use self::definitions::{Definitions, Found};
use self::event::{Defined, DomainEvent, DomainRef, Lifecycle};
use self::list::{Added, DomainList, Existing};
use self::migrate::Migrations;
use self::moment_files::MomentFiles;
use self::owners::Owners;
use self::ports::Ports;
use self::turns::Turns;
use crate::conf::domain::Domain;
use crate::config::qemu::QemuConfig;
use crate::drivers::event_bus::{Event, EventBus};
use crate::drivers::storage::Storage;
use crate::error::{Error, Result};
use crate::qemu::capabilities::Emulators;
use crate::qemu::command::Sandbox;
use crate::qemu::job::{DomainObject, Limits, State};
use crate::qemu::log_limit::{self, StdioHandler};
use crate::qemu::migrate::Policy;
use crate::qemu::process::Directories;
use crate::qemu::save_image::Saving;
use crate::qemu::security::{self, Security};
use crate::util::accounts::{Ids, group_id, user_id};
use crate::util::audit::Audit;
use crate::util::file;
use crate::util::paths::{Paths, Scope};
use crate::util::uuid::Uuid;

/// The driver of guests.
#[derive(Debug)]
pub struct Domains {
    pub list: DomainList,
    events: Arc<EventBus>,
    paths: Paths,
    definitions: Definitions,
    snapshot_files: MomentFiles,
    checkpoint_files: MomentFiles,
    limits: Limits,
    audit: OnceLock<Audit>,
    emulators: Emulators,
    storage: Arc<Storage>,
    directories: Directories,
    /// Variables of the daemon's own environment that every guest gets.
    inherited_env: Vec<(String, String)>,
    last_id: AtomicI32,
    turns: Turns,
    ports: Ports,
    owners: Owners,
    associated: Associated,
    frozen: Frozen,
    unplugs: hotplug::Unplugs,
    /// What serial ports and the like write to.
    pub written: Arc<log_limit::Files>,
    consoles: Arc<Consoles>,
    image_sizes: Arc<image_sizes::ImageSizes>,
    migrations: Migrations,
    /// What this host is called.
    host_uuid: Uuid,
    rules: Rules,
}

/// What an administrator has decided for all guests.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub security: Security,
    pub sandbox: Sandbox,
    /// Whom emulated TPMs run as, if not as this daemon's user.
    pub tpm: Option<Ids>,
    pub migration: Policy,
    /// How guests' states are written unless a client says otherwise.
    pub saving: Saving,
    pub stdio: StdioHandler,
}

impl Rules {
    pub fn new(config: &QemuConfig, paths: &Paths) -> Self {
        if paths.scope == Scope::Session {
            let (migration, saving) = (config.migration.clone(), config.saving.clone());
            return Self {
                sandbox: config.sandbox,
                migration,
                saving,
                stdio: config.stdio,
                ..Self::default()
            };
        }
        Self {
            security: Security::system(config.security.clone(), &paths.qemu_state()),
            sandbox: config.sandbox,
            tpm: Some(tpm_ids(config, paths)),
            migration: config.migration.clone(),
            saving: config.saving.clone(),
            stdio: config.stdio,
        }
    }
}

/// The TPM software's usual user, where the host has one.
fn tpm_ids(config: &QemuConfig, paths: &Paths) -> Ids {
    const USUAL: &str = "tss";
    let own = Ids::own();
    let usual = Ids { user: user_id(USUAL).unwrap_or(own.user), group: group_id(USUAL).unwrap_or(own.group) };
    let usual = security::usable(usual, &paths.state);
    let Ids { user, group } = usual;
    Ids { user: config.swtpm_user.unwrap_or(user), group: config.swtpm_group.unwrap_or(group) }
}

impl Domains {
    /// `search_path` is $PATH, for guests and what they start.
    pub fn new(
        paths: Paths,
        events: Arc<EventBus>,
        emulators: Emulators,
        storage: Arc<Storage>,
        search_path: &OsStr,
        (rules, host_uuid): (Rules, Uuid),
    ) -> Self {
        Self {
            list: DomainList::default(),
            events,
            definitions: Definitions::new(paths.qemu_config(), paths.qemu_autostart()),
            snapshot_files: MomentFiles::new(paths.qemu_state().join("snapshot")),
            checkpoint_files: MomentFiles::new(paths.qemu_state().join("checkpoint")),
            limits: Limits::default(),
            audit: OnceLock::new(),
            emulators,
            storage,
            directories: Directories::new(&paths),
            inherited_env: vec![("PATH".to_owned(), search_path.to_string_lossy().into_owned())],
            consoles: Arc::new(Consoles::new(paths.locks.clone())),
            paths,
            last_id: AtomicI32::new(0),
            turns: Turns::default(),
            ports: Ports::default(),
            owners: Owners::default(),
            associated: Associated::default(),
            frozen: Frozen::default(),
            unplugs: hotplug::Unplugs::default(),
            written: Arc::default(),
            image_sizes: Arc::default(),
            migrations: Migrations::default(),
            host_uuid,
            rules,
        }
    }

    /// Takes over what is defined and what runs. When this returns every domain is there; the guests'
    /// monitors follow on their own, and so do the guests that start with the host.
    pub async fn load(self: &Arc<Self>) -> Result<()> {
        let domains = Arc::clone(self);
        let inherited = blocking(move || {
            // What runs comes first: a definition that contradicts it must not keep it off the list.
            let runtime = &domains.directories.runtime;
            domains.prepare_directories()?;
            let inherited = domains
                .inherit()
                .map_err(|error| Error::io(format_args!("cannot use '{}'", runtime.display()), error))?;
            domains.drop_half_saved();
            domains.load_definitions().map_err(|error| {
                Error::io(format_args!("cannot use '{}'", domains.paths.qemu_config().display()), error)
            })?;
            domains.load_snapshots();
            domains.load_checkpoints();
            Ok(inherited)
        });
        self.adopt_all(inherited.await?).await;
        tokio::spawn(Arc::clone(self).start_marked());
        Ok(())
    }

    /// The directories in which guests have theirs belong to QEMU's user.
    fn prepare_directories(&self) -> Result<()> {
        let (runtime, state) = (&self.directories.runtime, &self.directories.state);
        let ours = [runtime.clone()];
        let theirs = [state.clone(), state.join("nvram"), state.join("ram"), runtime.join("channel")];
        for directory in ours.iter().chain(&theirs) {
            file::make_directory(directory, 0o755)
                .map_err(|error| Error::io(format_args!("cannot use '{}'", directory.display()), error))?;
        }
        theirs.iter().try_for_each(|directory| Ok(self.rules.security.share(directory)?))
    }

    fn load_definitions(&self) -> io::Result<()> {
        self.definitions.prepare()?;
        for found in self.definitions.load()? {
            let definition = Arc::new(found.definition);
            let (name, uuid) = (&definition.name, definition.uuid);
            let fresh = || DomainObject::new(State::new(&**name, uuid), self.limits);
            let object = match self.list.add((name, uuid), Existing::Redefine, fresh) {
                Ok(added) => added.object,
                Err(error) => {
                    tracing::error!(domain = %name, %error, "skipped a definition");
                    continue;
                }
            };
            let defined = |state: &mut State| {
                state.inactive = Some(Arc::clone(&definition));
                state.autostart = found.autostart;
            };
            object.configure().update(defined, |_, ()| ());
        }
        Ok(())
    }

    /// Reads the definitions again: what an administrator put there or changed by hand counts from now on. What is
    /// defined stays so without its file, as in libvirt.
    pub async fn reload(self: &Arc<Self>) -> Result<()> {
        let domains = Arc::clone(self);
        blocking(move || {
            let found = domains.definitions.load();
            for found in found.map_err(|error| {
                Error::io(format_args!("cannot use '{}'", domains.paths.qemu_config().display()), error)
            })? {
                domains.reload_one(&found);
            }
            Ok(())
        })
        .await
    }

    fn reload_one(&self, found: &Found) {
        let Domain { name, uuid, .. } = &found.definition;
        let fresh = || DomainObject::new(State::new(&**name, *uuid), self.limits);
        let Added { object, is_new } = match self.list.add((name, *uuid), Existing::Redefine, fresh) {
            Ok(added) => added,
            Err(error) => {
                tracing::error!(domain = %name, %error, "skipped a definition");
                return;
            }
        };
        let configuration = object.configure();
        // A client may have changed or removed the definition since the directory was read.
        let again = self
            .definitions
            .read_again(found)
            .filter(|it| it.definition.uuid == *uuid && it.definition.name == *name);
        match again {
            Some(again) if !configuration.state().gone => {
                let detail = if is_new { Defined::Added } else { Defined::Updated };
                let redefine = |state: &mut State| {
                    state.inactive = Some(Arc::new(again.definition));
                    state.autostart = again.autostart;
                };
                configuration.update(redefine, |state, ()| {
                    self.publish(state, DomainEvent::Lifecycle(Lifecycle::Defined(detail)));
                });
            }
            _ => {
                drop(configuration);
                self.forget_unused(&object);
            }
        }
    }

    /// Tells subscribers. Called while the state is being replaced, so that events keep the states' order.
    fn publish(&self, state: &State, event: DomainEvent) {
        if let DomainEvent::Lifecycle(Lifecycle::Started(why)) = event {
            self.audit_start(state, why);
        }
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

    /// Where guests' TPMs are kept, by uuid.
    fn tpm_states(&self) -> PathBuf {
        self.paths.state.join("swtpm")
    }

    /// Where programs are looked for.
    fn search_path(&self) -> &str {
        self.inherited_env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path)
    }

    /// Where a guest's memory is kept while it is shut off and will go on.
    fn managed_save(&self, name: &str) -> PathBuf {
        self.paths.qemu_state().join("save").join(format!("{name}.save"))
    }

    /// Removes a guest's log and the older parts of it.
    fn remove_logs(&self, name: &str) {
        let directory = self.paths.qemu_log();
        let prefix = format!("{name}.log");
        let is_log = |file: &OsStr| {
            let rest = file.to_str().and_then(|file| file.strip_prefix(&prefix));
            let part = |rest: &str| rest.strip_prefix('.').is_some_and(|part| part.parse::<u32>().is_ok());
            rest.is_some_and(|rest| rest.is_empty() || part(rest))
        };
        let files = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        for file in files.filter(|file| is_log(&file.file_name())) {
            if let Err(error) = crate::util::file::remove_if_there(&file.path()) {
                tracing::warn!(domain = name, %error, "cannot remove a log");
            }
        }
    }
}

impl DomainRef {
    pub fn of(state: &State) -> Self {
        Self { uuid: state.uuid, name: Arc::clone(&state.name), id: state.id.unwrap_or(-1) }
    }
}

/// Runs what waits for the disk beside the tasks.
pub(super) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let unfinished = |_| Err(Error::internal_error("a task ended early"));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(unfinished)
}
