//! Going back to a snapshot.
//!
//! ```text
//!  guest ended ─┬─ it ran then ─► QEMU anew, standing still ─► state loaded ─► [new images over the old] ─► goes on
//!               └─ it was off ──► images put back, or new ones over them ─► [started]
//! ```
//!
//! What the domain was is gone with the first step: that is what the client wants.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::create::{check_overlay, is_regular};
use super::offline::{put_on_overlays, remove};
use super::{SnapshotRevertFlags, find, is_internal};
use crate::conf::devices::{Disk, Place, SnapshotLocation};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{Align, KeptDomain, Snapshot, SnapshotState, align};
use crate::drivers::domain::Domains;
use crate::drivers::domain::block_jobs::check_all_idle;
use crate::drivers::domain::event::{Defined, DomainEvent, Lifecycle, Started, Suspended};
use crate::drivers::domain::flags::{CallFlags, SaveFlags};
use crate::drivers::domain::reads::running;
use crate::drivers::domain::restore::{From, Wishes, load};
use crate::drivers::domain::save::{cache, settings};
use crate::drivers::domain::start::{Beginning, Plan, Variables, seconds_since_1970};
use crate::error::{Code, Error, Origin, Result};
use crate::qemu::block::Nodes;
use crate::qemu::block_jobs::{self, RunError};
use crate::qemu::job::{self, AsyncJob, DomainHandle, DomainObject, Ending, JobSubject, State};
use crate::qemu::monitor::{NodeImages, QueryNodeImages};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::save_file::Packer;

impl Domains {
    /// `virDomainRevertToSnapshot`
    pub async fn snapshot_revert(
        self: &Arc<Self>,
        domain: DomainHandle,
        name: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = SnapshotRevertFlags::accept(flags)?;
        if flags.contains(SnapshotRevertFlags::RUNNING | SnapshotRevertFlags::PAUSED) {
            let sentence = "Flags 'VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING' and 'VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED' \
                            are mutually exclusive";
            return Err(Error::invalid_arg(sentence).from_origin(Origin::DOMAIN));
        }
        check_all_idle(&domain.state())?;
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<job::Snapshot>().await?;
        job.describe(flags.bits(), JobSubject::None);
        let reverted = self.revert(&mut job, name, flags).await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        // A transient one that did not come back.
        self.forget_unused(&object);
        reverted
    }

    async fn revert(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        name: &str,
        flags: SnapshotRevertFlags,
    ) -> Result<()> {
        let state = job.state();
        let snapshot = Arc::clone(find(&state, name)?);
        let KeptDomain(then) = self.check_revert(&state, &snapshot, flags)?;
        let renamed = |definition: &Domain| Domain { name: state.name.as_ref().into(), ..definition.clone() };
        let config = renamed(&then);
        let inactive = snapshot.inactive.as_ref().map_or_else(|| config.clone(), |it| renamed(&it.0));
        match snapshot.state {
            Some(SnapshotState::Running | SnapshotState::Paused) => {
                Box::pin(self.revert_to_running(job, &snapshot, (config, inactive), flags)).await
            }
            Some(SnapshotState::PmSuspended) => Err(Error::operation_unsupported(
                "qemu doesn't support reversion of snapshot taken in PMSUSPENDED state",
            )),
            Some(SnapshotState::Blocked) | None => {
                let state = snapshot.state.map_or("no state", SnapshotState::as_str);
                let sentence = format!("Invalid target domain state '{state}'. Refusing snapshot reversion");
                Err(Error::internal_error(sentence))
            }
            Some(_) => Box::pin(self.revert_to_off(job, &snapshot, inactive, flags)).await,
        }
    }

    fn check_revert(
        &self,
        state: &State,
        snapshot: &Snapshot,
        flags: SnapshotRevertFlags,
    ) -> Result<KeptDomain> {
        let risky = |sentence: String| Error::new(Code::SNAPSHOT_REVERT_RISKY, sentence);
        let runs = flags.intersects(SnapshotRevertFlags::RUNNING | SnapshotRevertFlags::PAUSED);
        if !state.is_persistent() && !snapshot.is_online() && !runs {
            let sentence = "transient domain needs to request run or pause to revert to inactive snapshot";
            return Err(Error::operation_invalid(sentence));
        }
        let Some(then) = snapshot.domain.clone() else {
            let (name, domain) = (snapshot.name(), &state.name);
            return Err(risky(format!("snapshot '{name}' lacks domain '{domain}' rollback info")));
        };
        let forced = flags.contains(SnapshotRevertFlags::FORCE);
        if !forced && self.has_managed_save(state) && !snapshot.is_online() {
            return Err(risky(
                "snapshot without memory state, removal of existing managed saved state strongly recommended to \
                 avoid corruption"
                    .to_owned(),
            ));
        }
        let is_file = |disk: &&Disk| !matches!(disk.storage.place, Place::File(_));
        if snapshot.is_external()
            && let Some(disk) = then.0.devices.disks.iter().find(is_file)
        {
            return Err(Error::operation_unsupported(format!(
                "source disk for '{}' is not a regular file, reverting to snapshot is not supported",
                disk.name()
            )));
        }
        Ok(then)
    }

    async fn end_for_revert(&self, job: &mut AsyncJob<job::Snapshot>) -> Result<()> {
        match job.state().is_active() {
            true => Ok(job.stop(How::Patient, Ending::FromSnapshot).await?),
            false => Ok(()),
        }
    }

    async fn revert_to_running(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
        (config, inactive): (Domain, Domain),
        flags: SnapshotRevertFlags,
    ) -> Result<()> {
        let before = job.state();
        // Whatever can be refused is refused while the guest still runs.
        let overlays = match snapshot.is_external() {
            true => Some(self.overlays_for_revert(&config).await?),
            false => None,
        };
        let memory = match snapshot.memory_file() {
            Some(file) => Some(self.look_into(Path::new(file)).await?),
            None => None,
        };
        let packer = match &memory {
            Some(image) => Packer::find(image.prologue.format, self.search_path(), "snapshot")?,
            None => None,
        };
        self.end_for_revert(job).await?;
        let own = snapshot.cookie.as_ref().and_then(|cookie| cookie.cpu.clone());
        let plan = Plan {
            definition: &config,
            owner: None,
            beginning: match &memory {
                Some(_) => Beginning::Incoming(Paused::StartingUp),
                None => Beginning::Loaded(Paused::StartingUp),
            },
            exact_cpu: match &memory {
                Some(image) => image.prologue.cookie()?.and_then(|cookie| cookie.cpu).or(own),
                None => own,
            },
            variables: Variables::reset_if(flags.contains(SnapshotRevertFlags::RESET_NVRAM)),
        };
        self.run(job, plan).await?;
        // The definition of the snapshot's time is there before its images change.
        self.redefine_reverted(job.object(), inactive).await?;
        let brought = async {
            if let Some(image) = &memory {
                let wishes = Wishes {
                    settings: settings(image.prologue.format, None, SaveFlags::empty())?,
                    cache: cache(false),
                    runs: false,
                    paused: true,
                    owner: None,
                    variables: Variables::Kept,
                    from: From::Client,
                };
                load(job, image, &wishes, packer.as_ref()).await?;
            } else if is_internal(snapshot) {
                load_inside(job, snapshot).await?;
            }
            self.settle_reverted(job, snapshot, overlays, &before, flags).await
        };
        let brought = brought.await;
        if brought.is_err()
            && let Err(error) = job.stop(How::Forced, Ending::Failed).await
            && job.state().is_active()
        {
            tracing::error!(domain = %job.state().name, %error, "cannot end a guest that did not go back");
        }
        brought
    }

    /// From a loaded state to a guest that goes on, or stands still as it did.
    async fn settle_reverted(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
        overlays: Option<Snapshot>,
        before: &State,
        flags: SnapshotRevertFlags,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        job.nested().await?.live()?.monitor().events_handled().await;
        self.tell(&object, |state| {
            state.run = RunState::Paused(Paused::FromSnapshot);
            vec![DomainEvent::Lifecycle(Lifecycle::Started(Started::FromSnapshot))]
        });
        let mut changed = Vec::new();
        if let Some(overlays) = overlays {
            self.put_disks_on_overlays(job, &overlays.disks, false).await?;
            changed = self.finish_external_revert(before, snapshot, overlays).await;
        }
        let stays =
            snapshot.state == Some(SnapshotState::Paused) || flags.contains(SnapshotRevertFlags::PAUSED);
        if stays && !flags.contains(SnapshotRevertFlags::RUNNING) {
            let suspended = DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::FromSnapshot));
            self.tell(&object, |_| vec![suspended]);
        } else {
            self.let_go(job, Running::FromSnapshot).await?;
        }
        self.keep_snapshots(&object, changed, Some(snapshot.name().into())).await?;
        self.tell_reverted(&object);
        Ok(())
    }

    async fn revert_to_off(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: &Arc<Snapshot>,
        mut inactive: Domain,
        flags: SnapshotRevertFlags,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        let before = job.state();
        let overlays = match snapshot.is_external() {
            true => Some(self.overlays_for_revert(&inactive).await?),
            false => None,
        };
        self.end_for_revert(job).await?;
        let mut changed = Vec::new();
        if let Some(overlays) = overlays {
            let made = self.make_overlays(&inactive, &overlays.disks).await?;
            put_on_overlays(&mut inactive, &overlays.disks, false);
            if let Err(error) = self.redefine_reverted(&object, inactive.clone()).await {
                remove(made).await;
                return Err(error);
            }
            changed = self.finish_external_revert(&before, snapshot, overlays).await;
        } else {
            let then =
                snapshot.domain.as_ref().map_or_else(|| Arc::new(inactive.clone()), |it| Arc::clone(&it.0));
            if !self.apply_inside(&then, snapshot, "-a").await {
                let sentence = format!("not all images have snapshot '{}'", snapshot.name());
                return Err(Error::internal_error(sentence));
            }
            self.redefine_reverted(&object, inactive.clone()).await?;
        }
        let paused = flags.contains(SnapshotRevertFlags::PAUSED);
        if paused || flags.contains(SnapshotRevertFlags::RUNNING) {
            let beginning = Beginning::Loaded(Paused::StartingUp);
            let variables = Variables::reset_if(flags.contains(SnapshotRevertFlags::RESET_NVRAM));
            let plan = Plan { definition: &inactive, owner: None, beginning, exact_cpu: None, variables };
            self.run(job, plan).await?;
            let started = DomainEvent::Lifecycle(Lifecycle::Started(Started::FromSnapshot));
            if paused {
                let suspended = DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::FromSnapshot));
                self.tell(&object, |state| {
                    state.run = RunState::Paused(Paused::FromSnapshot);
                    vec![started, suspended]
                });
            } else {
                // It resumes before it is told as started, as any guest that boots.
                self.let_go(job, Running::Booted).await?;
                self.tell(&object, |_| vec![started]);
            }
        }
        self.keep_snapshots(&object, changed, Some(snapshot.name().into())).await?;
        self.tell_reverted(&object);
        Ok(())
    }

    /// New images for every disk of a definition.
    async fn overlays_for_revert(&self, definition: &Domain) -> Result<Snapshot> {
        let now = seconds_since_1970();
        let text = format!("<domainsnapshot><name>{now}</name></domainsnapshot>");
        let mut overlays = Snapshot::parse(&text, crate::conf::snapshot::Purpose::Offline)?;
        let how = Align { default: SnapshotLocation::External, forced: true };
        align(&mut overlays, definition, how, is_regular)?;
        for (wanted, disk) in overlays.disks.iter_mut().zip(&definition.devices.disks) {
            if wanted.is_external() {
                check_overlay(wanted, disk, (false, false))?;
            }
        }
        Ok(overlays)
    }

    /// What was written since the current snapshot is gone; the disks of the other one are those it stands on now.
    async fn finish_external_revert(
        &self,
        before: &State,
        snapshot: &Arc<Snapshot>,
        overlays: Snapshot,
    ) -> Vec<Snapshot> {
        let mut changed = Vec::new();
        let mut reverted = Snapshot::clone(snapshot);
        if let Some(current) = before.snapshots.current() {
            let own = if current.revert_disks.is_empty() { &current.disks } else { &current.revert_disks };
            let images = own.iter().filter(|disk| disk.is_external()).filter_map(|disk| disk.storage.path());
            remove(images.map(Into::into).collect()).await;
            if current.name() == snapshot.name() {
                reverted.revert_disks.clear();
            } else {
                changed.push(Snapshot { revert_disks: Vec::new(), ..Snapshot::clone(current) });
            }
        }
        match before.snapshots.is_leaf(snapshot.name()) {
            true => reverted.disks = overlays.disks,
            false => reverted.revert_disks = overlays.disks,
        }
        changed.push(reverted);
        changed
    }

    async fn redefine_reverted(self: &Arc<Self>, object: &Arc<DomainObject>, inactive: Domain) -> Result<()> {
        self.amend_definition(object, move |definition| {
            *definition = inactive;
            true
        })
        .await
    }

    fn tell_reverted(&self, object: &DomainObject) {
        let defined = DomainEvent::Lifecycle(Lifecycle::Defined(Defined::FromSnapshot));
        if object.state().is_persistent() {
            object.observe(|_| (), |state, ()| self.publish(state, defined));
        }
    }
}

/// Loads disks and memory from inside the images.
async fn load_inside(job: &mut AsyncJob<job::Snapshot>, snapshot: &Snapshot) -> Result<()> {
    let nested = job.nested().await?;
    let live = nested.live()?;
    let name = snapshot.name();
    let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
    let mut devices: Vec<String> = Vec::new();
    let mut vmstate: Value = Value::Null;
    for disk in &running(live.state())?.devices.disks {
        let node = Nodes::of(&disk.storage, disk.format()).map(|nodes| nodes.top);
        let found = nodes.iter().find(|it| it.node_name == node && node.is_some());
        let inside = found.and_then(|found| NodeImages::snapshot(found, name));
        let wanted = snapshot.disks.iter().find(|it| *it.name == *disk.name());
        let (Some(inside), Some(node)) = (inside, node) else {
            if wanted.is_some_and(|it| it.location == Some(SnapshotLocation::Internal)) {
                let disk = disk.name();
                let sentence = format!("image of disk '{disk}' does not have internal snapshot '{name}'");
                return Err(Error::operation_failed(sentence));
            }
            continue;
        };
        if inside.vm_state_size > 0 {
            if !vmstate.is_null() {
                let sentence =
                    format!("two disks images contain vm state section for internal snapshot '{name}'");
                return Err(Error::operation_failed(sentence));
            }
            vmstate = node.clone().into();
        }
        devices.push(node);
    }
    if vmstate.is_null() {
        return Err(Error::operation_failed(format!(
            "missing vmstate section when reverting active internal snapshot '{name}'"
        )));
    }
    let arguments = json!({ "tag": name, "vmstate": vmstate, "devices": devices });
    let id = format!("internal-snapshot-load-{name}");
    block_jobs::run(live.monitor(), &id, "snapshot-load", arguments).await.map_err(|error| match error {
        RunError::Monitor(error) => error.into(),
        RunError::Failed(why) => {
            Error::operation_failed(format!("load of internal snapshot '{name}' job failed: {why}"))
        }
    })
}
