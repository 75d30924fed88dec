//! Making a snapshot: what is asked for, completed and checked, before anything is done.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use super::{SnapshotCreateFlags, Snapshots};
use crate::conf::devices::{Disk, DiskDevice, Place, SnapshotLocation, StorageFormat, StorageKind};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{Align, KeptDomain, Purpose, Snapshot, SnapshotDisk, SnapshotState, align};
use crate::conf::xml::Form;
use crate::drivers::domain::block_jobs::{check_idle, check_supported};
use crate::drivers::domain::flags::CallFlags;
use crate::drivers::domain::reads::definition;
use crate::drivers::domain::start::seconds_since_1970;
use crate::drivers::domain::{Domains, blocking};
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{self, AsyncJob, DomainHandle, JobSubject, State};
use crate::qemu::run_state::RunState;

impl Domains {
    /// `virDomainSnapshotCreateXML`; answers the snapshot's name.
    pub async fn snapshot_create(
        self: &Arc<Self>,
        domain: DomainHandle,
        xml: &str,
        flags: u32,
    ) -> Result<String> {
        let flags = SnapshotCreateFlags::accept(flags)?;
        check_flags(flags)?;
        let state = domain.state();
        if !state.is_persistent() && flags.contains(SnapshotCreateFlags::HALT) {
            return Err(Error::operation_invalid("cannot halt after transient domain snapshot"));
        }
        let redefines = flags.contains(SnapshotCreateFlags::REDEFINE);
        let purpose = match state.is_active() {
            _ if redefines => Purpose::Redefine,
            true if !flags.contains(SnapshotCreateFlags::DISK_ONLY) => Purpose::Online,
            _ => Purpose::Offline,
        };
        let mut snapshot = Snapshot::parse(xml, purpose)?;
        if !redefines {
            let now = seconds_since_1970();
            snapshot.creation_time = Some(now);
            snapshot.name.get_or_insert_with(|| now.to_string().into());
        }
        check_snapshot(&state, &snapshot, flags)?;
        let name = snapshot.name().to_owned();
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<job::Snapshot>().await?;
        job.describe(flags.bits(), JobSubject::None);
        self.save_status(&job.state());
        let made = match redefines {
            true => self.redefine_snapshot(&job, snapshot, flags).await,
            false => self.make_snapshot(&mut job, snapshot, flags).await,
        };
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        made.map(|()| name)
    }

    async fn redefine_snapshot(
        self: &Arc<Self>,
        job: &AsyncJob<job::Snapshot>,
        mut snapshot: Snapshot,
        flags: SnapshotCreateFlags,
    ) -> Result<()> {
        let state = job.state();
        check_parent(&state.snapshots, &snapshot)?;
        let other = state.snapshots.get(snapshot.name());
        check_redefined(&state, &snapshot, other.map(|other| &**other), flags)?;
        let external = snapshot.state == Some(SnapshotState::DiskSnapshot) || snapshot.is_external();
        let default = if external { SnapshotLocation::External } else { SnapshotLocation::Internal };
        let kept = snapshot.domain.clone().or_else(|| other.and_then(|other| other.domain.clone()));
        let Some(KeptDomain(kept)) = kept else {
            return Err(Error::internal_error("missing domain in snapshot"));
        };
        align(&mut snapshot, &kept, Align { default, forced: false }, is_regular)?;
        snapshot.active = None;
        let object = Arc::clone(job.object());
        match flags.contains(SnapshotCreateFlags::CURRENT) {
            true => {
                let current = Some(snapshot.name().into());
                let mut changed = self.without_revert_disks(&state, snapshot.name());
                changed.push(snapshot);
                self.keep_snapshots(&object, changed, current).await
            }
            false => self.keep_changed(&object, vec![snapshot]).await,
        }
    }

    /// The current snapshot, which is about to be that no more, without what it stands on.
    fn without_revert_disks(&self, state: &State, but: &str) -> Vec<Snapshot> {
        let current = state.snapshots.current().filter(|it| it.name() != but && !it.revert_disks.is_empty());
        current.map(|it| Snapshot { revert_disks: Vec::new(), ..Snapshot::clone(it) }).into_iter().collect()
    }

    async fn make_snapshot(
        self: &Arc<Self>,
        job: &mut AsyncJob<job::Snapshot>,
        snapshot: Snapshot,
        flags: SnapshotCreateFlags,
    ) -> Result<()> {
        let (domains, state) = (Arc::clone(self), job.state());
        let Prepared { mut snapshot, flags, has_manual } =
            blocking(move || domains.prepare_snapshot(&state, snapshot, flags)).await?;
        let state = job.state();
        let metadata = !flags.contains(SnapshotCreateFlags::NO_METADATA);
        if metadata {
            if state.snapshots.get(snapshot.name()).is_some() {
                let sentence = format!("domain moment {} already exists", snapshot.name());
                return Err(Error::operation_failed(sentence));
            }
            snapshot.set_parent(state.snapshots.current().map(|it| it.name()));
        }
        let external = flags.contains(SnapshotCreateFlags::DISK_ONLY)
            || snapshot.memory_location() == Some(SnapshotLocation::External);
        match (state.is_active(), external) {
            (true, true) => self.snapshot_outside(job, &mut snapshot, flags, has_manual).await?,
            (true, false) => self.snapshot_inside(job, &mut snapshot, flags).await?,
            (false, true) => self.snapshot_files_outside(job, &snapshot, flags).await?,
            (false, false) => self.snapshot_files_inside(&state, &snapshot).await?,
        }
        if !metadata {
            return Ok(());
        }
        let object = Arc::clone(job.object());
        let current = Some(snapshot.name().into());
        let mut changed = self.without_revert_disks(&state, snapshot.name());
        changed.push(snapshot);
        self.keep_snapshots(&object, changed, current).await
    }

    /// Completes what a client wants by what the domain is. Looks at files.
    fn prepare_snapshot(
        &self,
        state: &State,
        mut snapshot: Snapshot,
        mut flags: SnapshotCreateFlags,
    ) -> Result<Prepared> {
        let (active, own) = (state.is_active(), definition(state)?);
        let then = Domain::parse(&own.to_xml(Form::SECURE), Form::INACTIVE)?;
        let default = complete(state, &mut snapshot, flags)?;
        align(&mut snapshot, &then, Align { default, forced: false }, is_regular)?;
        snapshot.domain = Some(KeptDomain(Arc::new(then)));
        if active && let Some(inactive) = &state.inactive {
            snapshot.inactive = Some(KeptDomain(Arc::clone(inactive)));
        }
        let reused = flags.contains(SnapshotCreateFlags::REUSE_EXT);
        for (wanted, disk) in snapshot.disks.iter_mut().zip(&own.devices.disks) {
            if wanted.location != Some(SnapshotLocation::No) {
                check_idle(state, disk)?;
            }
            self.check_snapshot_disk(snapshot.state, wanted, disk, (active, reused))?;
        }
        check_together(&snapshot, own, active)?;
        if !active && snapshot.disks.iter().any(SnapshotDisk::is_external) {
            flags |= SnapshotCreateFlags::DISK_ONLY;
        }
        let manual = |disk: &SnapshotDisk| disk.location == Some(SnapshotLocation::Manual);
        let has_manual = snapshot.disks.iter().any(manual);
        Ok(Prepared { snapshot, flags, has_manual })
    }

    fn check_snapshot_disk(
        &self,
        state: Option<SnapshotState>,
        wanted: &mut SnapshotDisk,
        disk: &Disk,
        (active, reused): (bool, bool),
    ) -> Result<()> {
        match wanted.location {
            Some(SnapshotLocation::Internal) => {
                let name = &wanted.name;
                if active && state == Some(SnapshotState::DiskSnapshot) {
                    return Err(Error::config_unsupported(format!(
                        "active qemu domains require external disk snapshots; disk {name} requested internal"
                    )));
                }
                if !active {
                    check_local(disk, "internal")?;
                }
                match disk.driver.format {
                    Some(format) if format != StorageFormat::Qcow2 => Err(Error::config_unsupported(
                        format!("internal snapshot for disk {name} unsupported for storage type {format}"),
                    )),
                    _ => Ok(()),
                }
            }
            Some(SnapshotLocation::External) => {
                self.storage.locate_image(&mut wanted.storage)?;
                check_overlay(wanted, disk, (active, reused))
            }
            _ => Ok(()),
        }
    }
}

/// A snapshot that can be made.
struct Prepared {
    snapshot: Snapshot,
    flags: SnapshotCreateFlags,
    /// The client sees to some disks.
    has_manual: bool,
}

fn check_flags(flags: SnapshotCreateFlags) -> Result<()> {
    let in_words = |sentence: &str| Error::invalid_arg(sentence.to_owned()).from_origin(Origin::QEMU);
    if flags.contains(SnapshotCreateFlags::QUIESCE) && !flags.contains(SnapshotCreateFlags::DISK_ONLY) {
        return Err(in_words(
            "Flag 'VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY' is required by flag \
             'VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE'",
        ));
    }
    if flags.contains(SnapshotCreateFlags::LIVE | SnapshotCreateFlags::REDEFINE) {
        return Err(in_words(
            "Flags 'VIR_DOMAIN_SNAPSHOT_CREATE_LIVE' and 'VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE' are mutually \
             exclusive",
        ));
    }
    Ok(())
}

fn check_snapshot(state: &State, snapshot: &Snapshot, flags: SnapshotCreateFlags) -> Result<()> {
    let name = snapshot.name();
    if !flags.contains(SnapshotCreateFlags::NO_METADATA) {
        for (bad, how) in [(name.contains('/'), "contain '/'"), (name.starts_with('.'), "start with '.'")] {
            if bad {
                let sentence = format!("invalid snapshot name '{name}': name can't {how}");
                return Err(Error::xml_detail(sentence));
            }
        }
    }
    if flags.contains(SnapshotCreateFlags::LIVE)
        && (!state.is_active() || snapshot.memory_location() != Some(SnapshotLocation::External))
    {
        let sentence = "live snapshot creation is supported only during full system snapshots";
        return Err(Error::operation_unsupported(sentence));
    }
    let what = match flags.contains(SnapshotCreateFlags::REDEFINE) {
        true => snapshot.state,
        false => Some(state_of(state)),
    };
    match what {
        Some(SnapshotState::PmSuspended) => {
            let sentence = "qemu doesn't support taking snapshots of PMSUSPENDED guests";
            Err(Error::operation_unsupported(sentence))
        }
        Some(state @ SnapshotState::Blocked) => {
            Err(Error::internal_error(format!("Invalid domain state {state}")))
        }
        _ => Ok(()),
    }
}

/// What the domain does, in a snapshot's words.
fn state_of(state: &State) -> SnapshotState {
    match state.run {
        RunState::Running(_) => SnapshotState::Running,
        RunState::Paused(_) => SnapshotState::Paused,
        RunState::Shutdown(_) => SnapshotState::Shutdown,
        RunState::Shutoff(_) => SnapshotState::Shutoff,
        RunState::Crashed(_) => SnapshotState::Crashed,
        RunState::PmSuspended(_) => SnapshotState::PmSuspended,
        RunState::Blocked(_) => SnapshotState::Blocked,
    }
}

/// Chooses where memory and state go; answers where disks go that the client says nothing of.
fn complete(state: &State, snapshot: &mut Snapshot, flags: SnapshotCreateFlags) -> Result<SnapshotLocation> {
    let (active, disk_only) = (state.is_active(), flags.contains(SnapshotCreateFlags::DISK_ONLY));
    let external = disk_only
        || snapshot.memory_location() == Some(SnapshotLocation::External)
        || (!active && snapshot.disks.iter().any(SnapshotDisk::is_external));
    snapshot.state = Some(match (disk_only, active) {
        (true, true) => SnapshotState::DiskSnapshot,
        (true, false) => SnapshotState::Shutoff,
        (false, _) => state_of(state),
    });
    if external {
        if disk_only {
            snapshot.set_memory(SnapshotLocation::No);
        }
        return Ok(SnapshotLocation::External);
    }
    if active && snapshot.memory_location() == Some(SnapshotLocation::No) {
        let sentence = "internal snapshot of a running VM must include the memory state";
        return Err(Error::operation_unsupported(sentence));
    }
    let off = snapshot.state == Some(SnapshotState::Shutoff);
    snapshot.set_memory(if off { SnapshotLocation::No } else { SnapshotLocation::Internal });
    Ok(SnapshotLocation::Internal)
}

pub(super) fn is_regular(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file())
}

/// A disk of a domain that is off has its images on this host, or `qemu-img` does not find them.
fn check_local(disk: &Disk, how: &str) -> Result<()> {
    match &disk.storage.place {
        Place::File(_) | Place::Block(_) => Ok(()),
        Place::Network(remote) => Err(Error::internal_error(format!(
            "{how} inactive snapshots are not supported on 'network' disks using '{}' protocol",
            remote.protocol
        ))),
        _ => Err(Error::internal_error(format!(
            "{how} inactive snapshots are not supported on '{}' disks",
            disk.storage.kind()
        ))),
    }
}

/// Whether a disk can stand on a new image of this description.
pub(super) fn check_overlay(
    wanted: &mut SnapshotDisk,
    disk: &Disk,
    (active, reused): (bool, bool),
) -> Result<()> {
    let name = &wanted.name;
    let format = *wanted.format.get_or_insert(StorageFormat::Qcow2);
    if !matches!(format, StorageFormat::Qcow2 | StorageFormat::Qed) {
        let sentence = format!("external snapshot format for disk {name} is unsupported: {format}");
        return Err(Error::config_unsupported(sentence));
    }
    if active {
        if disk.device == DiskDevice::Lun {
            let sentence = "external active snapshots are not supported on scsi passthrough devices";
            return Err(Error::config_unsupported(sentence));
        }
        check_supported(disk)?;
    } else {
        check_local(disk, "external")?;
    }
    let kind = wanted.storage.kind();
    let fits = match kind {
        StorageKind::File | StorageKind::Block => true,
        kind => active && kind == StorageKind::Network,
    };
    if !fits {
        let when = if active { "active" } else { "inactive" };
        let sentence = format!("external {when} snapshots are not supported on '{kind}' disks");
        return Err(Error::internal_error(sentence));
    }
    if disk.shareable && !disk.readonly {
        let sentence =
            format!("shared access for disk '{}' requires use of supported storage format", disk.name());
        return Err(Error::config_unsupported(sentence));
    }
    match wanted.storage.path() {
        Some(path) => check_image_file(Path::new(path), &wanted.name, kind, reused),
        None => Ok(()),
    }
}

fn check_image_file(path: &Path, name: &str, kind: StorageKind, reused: bool) -> Result<()> {
    let shown = path.display();
    let is_block = kind == StorageKind::Block;
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() != is_block => {
            Err(Error::config_unsupported(format!(
                "mismatch between configured type for snapshot disk '{name}' and the type of existing file '{shown}'"
            )))
        }
        Ok(found) if !reused && !is_block && found.len() > 0 => Err(Error::config_unsupported(format!(
            "external snapshot file for disk {name} already exists and is not a block device: {shown}"
        ))),
        Ok(_) => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format_args!("unable to stat for disk {name}: {shown}"), error))
        }
        Err(error) if reused => {
            Err(Error::io(format_args!("missing existing file for disk {name}: {shown}"), error))
        }
        Err(_) if is_block => {
            Err(Error::operation_unsupported(format!("block device snapshot target '{shown}' doesn't exist")))
        }
        Err(_) => Ok(()),
    }
}

/// What does not go together.
fn check_together(snapshot: &Snapshot, own: &Domain, active: bool) -> Result<()> {
    let unsupported = |sentence: &'static str| Err(Error::config_unsupported(sentence));
    let has = |location| snapshot.disks.iter().any(|disk| disk.location == Some(location));
    let internal = has(SnapshotLocation::Internal);
    let external = has(SnapshotLocation::External);
    let memory = snapshot.memory_location();
    if !internal && !external && memory == Some(SnapshotLocation::No) {
        return unsupported("nothing selected for snapshot");
    }
    let left_out =
        snapshot.disks.iter().zip(&own.devices.disks).any(|(wanted, disk)| match wanted.location {
            Some(SnapshotLocation::Manual) => true,
            Some(SnapshotLocation::No) => !disk.storage.is_empty() && !disk.readonly,
            _ => false,
        });
    let memory_inside = memory == Some(SnapshotLocation::Internal);
    if (memory_inside && !internal) || (internal && left_out) {
        return unsupported(
            "internal and full system snapshots require all disks to be selected for snapshot",
        );
    }
    if snapshot.state == Some(SnapshotState::DiskSnapshot) && !external {
        return unsupported("disk-only snapshots require at least one disk to be selected for snapshot");
    }
    let memory_outside = memory == Some(SnapshotLocation::External);
    if ((internal || memory_inside) && external) || (memory_outside && internal) {
        return unsupported("mixing internal and external targets for a snapshot is not yet supported");
    }
    if active && internal && own.os.nvram.is_some() {
        return Err(Error::operation_unsupported(
            "internal snapshots of a VM with pflash based firmware require QCOW2 nvram format",
        ));
    }
    Ok(())
}

/// Parents must be there, and nobody may be above himself.
fn check_parent(snapshots: &Snapshots, snapshot: &Snapshot) -> Result<()> {
    let name = snapshot.name();
    let Some(parent) = snapshot.parent() else { return Ok(()) };
    if parent == name {
        return Err(Error::invalid_arg(format!("cannot set moment {name} as its own parent")));
    }
    if snapshots.get(parent).is_none() {
        return Err(Error::invalid_arg(format!("parent {parent} for moment {name} not found")));
    }
    match snapshots.is_below(parent, name) {
        true => Err(Error::invalid_arg(format!("parent {parent} would create cycle to {name}"))),
        false => Ok(()),
    }
}

fn check_redefined(
    state: &State,
    snapshot: &Snapshot,
    other: Option<&Snapshot>,
    flags: SnapshotCreateFlags,
) -> Result<()> {
    let name = snapshot.name();
    let is_disks = |snapshot: &Snapshot| snapshot.state == Some(SnapshotState::DiskSnapshot);
    if flags.contains(SnapshotCreateFlags::DISK_ONLY) && !is_disks(snapshot) {
        let sentence = format!("disk-only flag for snapshot {name} requires disk-snapshot state");
        return Err(Error::invalid_arg(sentence));
    }
    if snapshot.domain.as_ref().is_some_and(|domain| domain.0.uuid != state.uuid) {
        let sentence = format!("definition for snapshot {name} must use uuid {}", state.uuid);
        return Err(Error::invalid_arg(sentence));
    }
    let Some(other) = other else { return Ok(()) };
    if other.is_online() != snapshot.is_online() {
        return Err(Error::invalid_arg(format!(
            "cannot change between online and offline snapshot state in snapshot {name}"
        )));
    }
    if is_disks(other) != is_disks(snapshot) {
        return Err(Error::invalid_arg(format!(
            "cannot change between disk only and full system in snapshot {name}"
        )));
    }
    Ok(())
}
