//! Backups: what a guest's disks have at one moment, while it goes on writing.
//!
//! ```text
//!  push:  new images ─► QEMU writes them ─────────────────────────────► all written, or one failed ─► over
//!  pull:  scratch images, disks served as they were ─► clients read ─► somebody ends it ───────────► over
//! ```
//!
//! The operation is parked while QEMU works; whoever sees its last job end takes it up again and ends it.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Domains;
use super::block_jobs::image::{Added, Origin, standing_on};
use super::block_jobs::{check_idle, check_supported, disk_of};
use super::checkpoint::{self, Planned, add_action, bitmaps, check_bitmap, remove_action};
use super::flags::CallFlags;
use super::reads::running;
use super::snapshot::offline;
use super::start::seconds_since_1970;
use crate::conf::backup::{Backup, BackupDisk, BackupMode, BackupServer, BackupState, ServerTransport};
use crate::conf::checkpoint::Checkpoint;
use crate::conf::devices::{Backing, Devices, Disk, LayerFormat, Storage, StorageFormat, StorageKind};
use crate::conf::xml::YesNo;
use crate::drivers::flags::{flag_words, no_flags};
use crate::error::{Error, Result};
use crate::qemu::block::{Layers, number_disk};
use crate::qemu::block_jobs::{BlockJob, Phase as JobPhase, RunningBackup, Store, Work};
use crate::qemu::hotplug;
use crate::qemu::job::{
    self, AsyncJob, DomainHandle, DomainObject, JobStatistics, JobStatus, JobSubject, Live, Phase, State,
    Traffic,
};
use crate::qemu::monitor::{BlockJobCancel, JobInfo, NodeImages, QueryJobs, QueryNodeImages, Transaction};

flag_words!(
    /// `virDomainBackupBeginFlags`
    BackupFlags of "qemuBackupBegin" {
        REUSE_EXTERNAL = 1,
    }
);

/// Between a backup's beginning and its end.
const UNDER_WAY: Phase = Phase("none");

/// One disk's part, before it begins.
struct Part {
    target: Box<str>,
    name: String,
    job: BlockJob,
    added: Added,
    /// Of the image that is written.
    node: String,
    actions: Vec<Value>,
    bitmap: Option<String>,
}

/// `virDomainBackupGetXMLDesc`
pub fn xml(state: &State, flags: u32) -> Result<String> {
    no_flags(flags, "qemuBackupGetXMLDesc")?;
    match &state.backup {
        Some(running) => Ok(running.backup.to_xml()),
        None => Err(Error::no_domain_backup("no domain backup job present")),
    }
}

impl Domains {
    /// `virDomainBackupBegin`
    pub async fn backup_begin(
        self: &Arc<Self>,
        domain: DomainHandle,
        xml: &str,
        checkpoint: Option<&str>,
        flags: u32,
    ) -> Result<()> {
        let flags = BackupFlags::accept(flags)?;
        let backup = Backup::parse(xml)?;
        let checkpoint = checkpoint.map(Checkpoint::parse).transpose()?;
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<job::Backup>().await?;
        job.describe(flags.bits(), JobSubject::Backup);
        job.note(|statistics| statistics.status = JobStatus::Active);
        let begun = self.begin_backup(&mut job, backup, checkpoint, flags).await;
        // One that failed late has parts that end, too.
        match object.state().backup {
            Some(_) => job.park(UNDER_WAY),
            None => drop(job),
        }
        object.observe(|_| (), |state, ()| self.save_status(state));
        // It may have been a small disk.
        self.end_backup_if_done(&object).await;
        begun
    }

    async fn begin_backup(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Backup>,
        mut backup: Backup,
        checkpoint: Option<Checkpoint>,
        flags: BackupFlags,
    ) -> Result<()> {
        let object = Arc::clone(job.object());
        let state = job.state();
        if !state.is_active() {
            return Err(Error::operation_unsupported("cannot perform disk backup for inactive domain"));
        }
        let planned = checkpoint.map(|checkpoint| checkpoint::plan(&state, checkpoint)).transpose()?;
        let suffix = match planned.as_ref().and_then(|planned| planned.checkpoint.name.clone()) {
            Some(name) => name.to_string(),
            None => seconds_since_1970().to_string(),
        };
        backup.align(running(&state)?, &suffix)?;
        complete_server(&mut backup)?;
        if backup.wanted().next().is_none() {
            return Err(Error::config_unsupported("no disks selected for backup"));
        }
        let reused = flags.contains(BackupFlags::REUSE_EXTERNAL);
        let flags = flags.bits();
        let nested = job.nested().await?;
        let live = nested.live()?;
        let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
        let mut last_node = state.launched.as_ref().map_or(0, |launched| launched.last_node);
        let mut parts: Vec<Part> = Vec::new();
        let pull = backup.mode == BackupMode::Pull;
        for wanted in backup.disks.iter_mut().filter(|disk| disk.store.is_some()) {
            match self.prepare_part(&live, wanted, (&nodes, &mut last_node), (pull, flags)).await {
                Ok(part) => parts.push(part),
                Err(error) => return Err(give_up(&live, parts, error).await),
            }
        }
        let mut actions = planned.as_ref().map(|planned| planned.actions.clone()).unwrap_or_default();
        for part in &mut parts {
            actions.append(&mut part.actions);
            self.note_block_job(&object, &part.name, part.job.clone(), None, Some(last_node));
        }
        if let Err(error) = start(&live, &backup, actions).await {
            let forget = |state: &mut State| {
                let jobs = Arc::make_mut(&mut state.block_jobs);
                parts.iter().for_each(|part| drop(jobs.remove(&*part.name)));
            };
            object.observe(forget, |state, ()| self.save_status(state));
            return Err(give_up(&live, parts, error).await);
        }
        self.note_backup(&object, backup, &parts, reused);
        let kept = match planned {
            Some(Planned { checkpoint, .. }) => self.keep_made(&object, &live, checkpoint).await,
            None => Ok(()),
        };
        let begun = match kept {
            Ok(()) if pull => export(&live, &object.state(), &parts).await,
            kept => kept,
        };
        for part in parts {
            part.added.keep();
        }
        if begun.is_err() {
            self.cancel_backup(&object, &live).await?;
        }
        begun
    }

    fn note_backup(&self, object: &DomainObject, mut backup: Backup, parts: &[Part], reused: bool) {
        for disk in backup.disks.iter_mut().filter(|disk| disk.store.is_some()) {
            disk.state = Some(BackupState::Running);
        }
        let note = |state: &mut State| {
            let jobs = Arc::make_mut(&mut state.block_jobs);
            for part in parts {
                if let Some(job) = jobs.get_mut(&*part.name) {
                    job.phase = JobPhase::Running;
                }
            }
            state.backup = Some(Arc::new(RunningBackup { backup, reused, ended: (0, 0), error: None }));
        };
        object.observe(note, |state, ()| self.save_status(state));
    }

    async fn prepare_part(
        self: &Arc<Self>,
        live: &Live<'_>,
        wanted: &mut BackupDisk,
        (nodes, last_node): (&[NodeImages], &mut u32),
        (pull, flags): (bool, u32),
    ) -> Result<Part> {
        let reused = is_reused(flags);
        let disk = disk_of(running(live.state())?, &wanted.name)?;
        check_supported(disk)?;
        check_idle(live.state(), disk)?;
        let kind = *wanted.format.get_or_insert(StorageFormat::Qcow2);
        if pull && kind != StorageFormat::Qcow2 {
            let sentence = format!("pull mode backup for disk '{}' requires qcow2 driver", wanted.name);
            return Err(Error::config_unsupported(sentence));
        }
        let own = Layers::of(disk);
        let top = own.nodes(0).map(|nodes| nodes.top).unwrap_or_default();
        let since = wanted.incremental.clone();
        let stands = pull || (since.is_some() && kind.has_backing());
        let (alone, below) = store_of(wanted, disk, kind, last_node);
        check_free(wanted, reused)?;
        let whole = match stands {
            true => {
                let mut layers = Layers::of(&alone);
                layers.stand_on(own);
                standing_on(disk, layers)
            }
            false => alone.clone(),
        };
        let node = Layers::of(&alone).nodes(0).map(|nodes| nodes.top).unwrap_or_default();
        let name = format!("backup-{}-{top}", disk.name());
        let mut actions = Vec::new();
        let mut bitmap = None;
        if let Some(since) = since.as_deref() {
            let marks = match wanted.export_bitmap.as_deref() {
                Some(name) => name.to_owned(),
                None => format!("backup-{}", disk.name()),
            };
            let target = if pull { &node } else { &top };
            actions = merge(live.state(), nodes, (disk, since), (target, &marks))?;
            if pull {
                wanted.export_bitmap.get_or_insert_with(|| marks.as_str().into());
            }
            bitmap = Some(marks);
        }
        let sync = match (pull, &bitmap) {
            (true, _) => "none",
            (false, Some(_)) => "incremental",
            (false, None) => "full",
        };
        let mut data = json!({ "device": top, "job-id": name, "target": node, "sync": sync,
            "auto-finalize": true, "auto-dismiss": false });
        if let (Some(bitmap), false, Some(data)) = (&bitmap, pull, data.as_object_mut()) {
            data.insert("bitmap".to_owned(), bitmap.as_str().into());
        }
        actions.push(json!({ "type": "blockdev-backup", "data": data }));
        let origin = match reused {
            true => Origin::Existing,
            false => Origin::New(below.filter(|_| stands)),
        };
        let added = self.add_images(live, disk, &whole, origin).await?;
        let store = Store { format: kind, storage: Storage { backing: None, ..alone.storage } };
        let kept = bitmap.as_deref().filter(|_| !pull).map(Into::into);
        let work = Work::Backup { store: Box::new(store), bitmap: kept };
        let job = BlockJob { disk: disk.name().into(), work, phase: JobPhase::New, flags };
        Ok(Part { target: disk.name().into(), name, job, added, node, actions, bitmap })
    }

    /// Ends what is under way of a backup; its end follows.
    pub(super) async fn cancel_backup(&self, object: &DomainObject, live: &Live<'_>) -> Result<()> {
        let state = object.state();
        let Some(running) = &state.backup else { return Ok(()) };
        let is_running = |name: &str| {
            running.backup.disks.iter().any(|it| *it.name == *name && it.state == Some(BackupState::Running))
        };
        let jobs = state.block_jobs.iter().filter(|(_, job)| matches!(job.work, Work::Backup { .. }));
        for (name, job) in jobs.filter(|(_, job)| is_running(&job.disk)) {
            let mark = |state: &mut State| {
                if let Some(job) = Arc::make_mut(&mut state.block_jobs).get_mut(name) {
                    job.phase = JobPhase::Aborting;
                }
                set_state(state, &job.disk, BackupState::Cancelling);
            };
            object.observe(mark, |state, ()| self.save_status(state));
            // One that has just ended of itself is seen to by whoever hears of that.
            let _ = live.monitor().execute(BlockJobCancel { device: name.to_string(), force: true }).await;
        }
        Ok(())
    }

    /// One disk's part is over.
    pub(super) async fn end_of_backup(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        (name, job): (&str, &BlockJob),
        (phase, told): (JobPhase, Option<&JobInfo>),
    ) {
        let state = object.state();
        let pull = state.backup.as_ref().is_none_or(|running| running.backup.mode == BackupMode::Pull);
        if pull {
            // One for all disks; the first who ends ends it.
            let _ = live.monitor().execute_value("nbd-server-stop", None).await;
        }
        if let Err(error) = self.close_store(object, live, job).await {
            tracing::warn!(domain = %state.name, %error, "the image of a backup stays open");
        }
        let (done, total) = told.map_or((0, 0), |told| (told.current_progress, told.total_progress));
        let change = |state: &mut State| {
            Arc::make_mut(&mut state.block_jobs).remove(name);
            let ended = match phase {
                JobPhase::Completed => BackupState::Complete,
                JobPhase::Canceled => BackupState::Cancelled,
                _ => BackupState::Failed,
            };
            set_state(state, &job.disk, ended);
            if let Some(running) = &mut state.backup {
                let running = Arc::make_mut(running);
                running.ended.0 += done;
                running.ended.1 += total;
                running.error = running.error.take().or_else(|| told.and_then(|told| told.error.clone()));
            }
        };
        object.observe(change, |state, ()| self.save_status(state));
        let state = object.state();
        let has = |wanted: BackupState| {
            state
                .backup
                .as_ref()
                .is_some_and(|it| it.backup.disks.iter().any(|disk| disk.state == Some(wanted)))
        };
        if has(BackupState::Running) && (has(BackupState::Failed) || has(BackupState::Cancelled)) {
            if let Err(error) = self.cancel_backup(object, live).await {
                tracing::warn!(domain = %state.name, %error, "a backup goes on that has failed");
            }
        } else {
            self.end_backup_if_done(object).await;
        }
    }

    async fn close_store(&self, object: &DomainObject, live: &Live<'_>, job: &BlockJob) -> Result<()> {
        let Work::Backup { store, bitmap } = &job.work else { return Ok(()) };
        let state = object.state();
        let disk = disk_of(running(&state)?, &job.disk)?;
        let alone = standing_on(disk, alone(store.format, &store.storage));
        let steps = self.image_steps(live, &alone).await?;
        hotplug::clear_away(live.monitor(), &steps).await;
        let devices = Devices { disks: vec![alone], ..Devices::default() };
        self.take_back_devices(&state, devices).await;
        if state.backup.is_none() && !is_reused(job.flags) {
            // It was begun under another daemon, and nobody else knows of it.
            offline::remove(file_of(&store.storage).into_iter().collect()).await;
        }
        if let (Some(bitmap), Some(nodes)) = (bitmap, Layers::of(disk).nodes(0)) {
            live.monitor().execute(Transaction { actions: vec![remove_action(&nodes.top, bitmap)] }).await?;
        }
        Ok(())
    }

    /// The operation ends with its last part.
    async fn end_backup_if_done(&self, object: &Arc<DomainObject>) {
        let state = object.state();
        let Some(running) = state.backup.clone() else { return };
        let states = || running.backup.disks.iter().filter_map(|disk| disk.state);
        if states().any(|state| matches!(state, BackupState::Running | BackupState::Cancelling)) {
            return;
        }
        // Who began it is about to park it, and will look himself.
        let Ok(job) = DomainHandle::new(Arc::clone(object)).resume::<job::Backup>(UNDER_WAY) else { return };
        let push = running.backup.mode == BackupMode::Push;
        let status = match () {
            () if states().any(|state| state == BackupState::Failed) => JobStatus::Failed,
            () if push && states().any(|state| state == BackupState::Cancelled) => JobStatus::Canceled,
            () => JobStatus::Completed,
        };
        if !push || status != JobStatus::Completed {
            remove_images(&running).await;
        }
        let error = running.error.clone();
        let finish = |state: &mut State| {
            state.backup = None;
            let Some(underway) = &state.operation else { return };
            let mut statistics = underway.statistics.completed();
            note_progress(&mut statistics, push, running.ended);
            statistics.status = status;
            statistics.error = error;
            state.completed = Some(Arc::new(statistics));
        };
        job.update(finish);
        self.publish_completed(&job);
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
    }

    /// A guest has ended in the middle of it.
    pub(super) async fn drop_backup(&self, state: &State) {
        if let Some(running) = &state.backup {
            remove_images(running).await;
        }
    }
}

/// How far a backup is.
pub(super) async fn progress(live: &Live<'_>) -> Result<impl Fn(&mut JobStatistics) + use<>> {
    let state = live.state();
    let push = state.backup.as_ref().is_some_and(|running| running.backup.mode == BackupMode::Push);
    let mut sum = state.backup.as_ref().map_or((0, 0), |running| running.ended);
    for told in live.monitor().execute(QueryJobs {}).await? {
        let known = state.block_jobs.get(&*told.id);
        if known.is_some_and(|job| matches!(job.work, Work::Backup { .. })) {
            sum.0 += told.current_progress;
            sum.1 += told.total_progress;
        }
    }
    Ok(move |statistics: &mut JobStatistics| note_progress(statistics, push, sum))
}

fn note_progress(statistics: &mut JobStatistics, push: bool, (done, total): (u64, u64)) {
    match push {
        true => {
            let remaining = total.saturating_sub(done);
            statistics.disk = Traffic { total, processed: done, remaining, rate: 0 };
        }
        false => statistics.scratch = (done, total),
    }
}

fn set_state(state: &mut State, disk: &str, to: BackupState) {
    let Some(running) = &mut state.backup else { return };
    for found in Arc::make_mut(running).backup.disks.iter_mut().filter(|it| *it.name == *disk) {
        found.state = Some(to);
    }
}

/// Images that we have made and nobody needs.
async fn remove_images(running: &RunningBackup) {
    if running.reused {
        return;
    }
    offline::remove(running.backup.wanted().filter_map(|disk| file_of(disk.store.as_ref()?)).collect()).await;
}

fn is_reused(flags: u32) -> bool {
    BackupFlags::from_bits_retain(flags).contains(BackupFlags::REUSE_EXTERNAL)
}

fn file_of(store: &Storage) -> Option<PathBuf> {
    store.path().filter(|_| store.kind() == StorageKind::File).map(PathBuf::from)
}

fn complete_server(backup: &mut Backup) -> Result<()> {
    if backup.mode != BackupMode::Pull {
        return Ok(());
    }
    let server = backup.server.get_or_insert_with(|| BackupServer {
        transport: ServerTransport::Tcp,
        tls: None,
        name: Some("localhost".into()),
        port: None,
        socket: None,
        fdgroup: None,
    });
    if server.transport == ServerTransport::Tcp && server.port.is_none_or(|port| port == 0) {
        return Err(Error::operation_unsupported("<domainbackup> must specify TCP port for\x20now"));
    }
    if server.tls == Some(YesNo::Yes) {
        return Err(Error::operation_invalid("backup TLS directory not configured"));
    }
    match server.transport {
        ServerTransport::Fd => {
            Err(Error::operation_unsupported("backups through given descriptors are not supported"))
        }
        _ => Ok(()),
    }
}

/// The image that is written, numbered, as if the disk stood on it alone; and the image below it by name.
fn store_of(
    wanted: &mut BackupDisk,
    disk: &Disk,
    kind: StorageFormat,
    last_node: &mut u32,
) -> (Disk, Option<crate::conf::devices::Layer>) {
    let store = wanted.store.clone().unwrap_or_default();
    let mut numbered = standing_on(disk, alone(kind, &store));
    number_disk(&mut numbered, last_node);
    if let Some(store) = &mut wanted.store {
        store.index = numbered.storage.index;
    }
    (numbered, Layers::of(disk).images().first().cloned())
}

fn alone(kind: StorageFormat, store: &Storage) -> Layers {
    let storage = Storage { backing: Some(Box::new(Backing::End)), ..store.clone() };
    Layers::from_top(LayerFormat { kind, metadata_cache: None }, storage)
}

fn check_free(wanted: &BackupDisk, reused: bool) -> Result<()> {
    let store = wanted.store.as_ref().filter(|store| !reused && store.kind() == StorageKind::File);
    match store.and_then(Storage::path).filter(|path| std::path::Path::new(path).exists()) {
        Some(path) => {
            let sentence = format!("store '{path}' for backup of '{}' exists", wanted.name);
            Err(Error::invalid_arg(sentence))
        }
        None => Ok(()),
    }
}

/// What was written since a checkpoint, in one bitmap.
fn merge(
    state: &State,
    nodes: &[NodeImages],
    (disk, since): (&Disk, &str),
    (target, marks): (&str, &str),
) -> Result<Vec<Value>> {
    if state.checkpoints.get(since).is_none() {
        return Err(Error::no_domain_checkpoint(format!(
            "Checkpoint '{since}' for incremental backup of disk '{}' not found",
            disk.name()
        )));
    }
    check_bitmap(nodes, disk, since)?;
    let found = bitmaps(nodes, disk, since);
    let granularity =
        found.first().and_then(|(_, _, node)| node.bitmap(since)).map(|bitmap| bitmap.granularity);
    let sources: Vec<_> = found.iter().map(|(_, node, _)| json!({ "node": node, "name": since })).collect();
    let mut new = json!({ "persistent": false, "disabled": true });
    if let (Some(granularity), Some(new)) = (granularity, new.as_object_mut()) {
        new.insert("granularity".to_owned(), granularity.into());
    }
    let merge = json!({ "type": "block-dirty-bitmap-merge",
        "data": { "node": target, "target": marks, "bitmaps": sources } });
    Ok(vec![add_action(target, marks, new), merge])
}

async fn give_up(live: &Live<'_>, parts: Vec<Part>, mut error: Error) -> Error {
    for Part { added, .. } in parts.into_iter().rev() {
        error = added.give_up(live, error).await;
    }
    error
}

/// Has QEMU serve, and all disks be backed up from the same moment on.
async fn start(live: &Live<'_>, backup: &Backup, actions: Vec<Value>) -> Result<()> {
    if let Some(server) = &backup.server {
        let (kind, data) = match server.transport {
            ServerTransport::Unix => ("unix", json!({ "path": server.socket })),
            _ => {
                let port = server.port.unwrap_or(0).to_string();
                ("inet", json!({ "host": server.name.as_deref().unwrap_or("localhost"), "port": port }))
            }
        };
        let arguments = json!({ "addr": { "type": kind, "data": data } });
        live.monitor().execute_value("nbd-server-start", Some(arguments)).await?;
    }
    let started = live.monitor().execute(Transaction { actions }).await;
    if started.is_err() && backup.server.is_some() {
        // The first error is the one that the user needs.
        let _ = live.monitor().execute_value("nbd-server-stop", None).await;
    }
    Ok(started.map(drop)?)
}

async fn export(live: &Live<'_>, state: &State, parts: &[Part]) -> Result<()> {
    for Part { target, node, bitmap, .. } in parts {
        let disks = state.backup.iter().flat_map(|running| &running.backup.disks);
        let named = disks.filter(|disk| disk.name == *target).find_map(|disk| disk.export_name.as_deref());
        let mut export = json!({ "type": "nbd", "id": format!("libvirt-nbd-{node}"), "node-name": node,
            "writable": false, "name": named.unwrap_or(target) });
        if let (Some(bitmap), Some(export)) = (bitmap, export.as_object_mut()) {
            export.insert("bitmaps".to_owned(), json!([bitmap]));
        }
        live.monitor().execute_value("block-export-add", Some(export)).await?;
    }
    Ok(())
}
