//! Whether a guest can leave this host at all, and whether its disks survive that.

use std::path::Path;

use super::request::{MigrateFlags, Request};
use crate::conf::devices::{Disk, Place, ShmemRole};
use crate::conf::domain::{Domain, FeaturePolicy, TimerName};
use crate::drivers::domain::block_jobs::check_all_idle;
use crate::error::{Error, Result};
use crate::qemu::job::State;
use crate::qemu::run_state::{Paused, RunState};

/// Refuses what cannot be migrated; `blockers` is what QEMU itself says.
pub(super) fn check(state: &State, request: &Request, blockers: &[String]) -> Result<()> {
    if !request.has(MigrateFlags::OFFLINE) {
        check_guest(state, request, blockers)?;
    }
    let Some(definition) = state.definition() else { return Ok(()) };
    if !request.flags.intersects(MigrateFlags::UNSAFE | MigrateFlags::OFFLINE) {
        check_disks(definition, request)?;
    }
    check_targets(definition, request)
}

fn check_guest(state: &State, request: &Request, blockers: &[String]) -> Result<()> {
    let invalid = |sentence: &'static str| Err(Error::operation_invalid(sentence));
    // What is known of them would stay behind.
    if !state.snapshots.is_empty() {
        let count = state.snapshots.len();
        return Err(Error::operation_invalid(format!("cannot migrate domain with {count} snapshots")));
    }
    if !blockers.is_empty() {
        let reasons = blockers.join("; ");
        return Err(Error::operation_invalid(format!("cannot migrate domain: {reasons}")));
    }
    if request.has(MigrateFlags::ABORT_ON_ERROR) && state.run == RunState::Paused(Paused::IoError) {
        return invalid("cannot migrate domain with I/O error");
    }
    if state.autodestroy {
        return invalid("domain is marked for auto destroy");
    }
    let Some(live) = &state.live else { return Ok(()) };
    check_all_idle(state)?;
    if has_invariant_tsc(live) && !has_tsc_frequency(live) {
        return invalid("domain has 'invtsc' CPU feature but TSC frequency is not specified");
    }
    if let Some(shared) = live.devices.shmems.iter().find(|shmem| shmem.role != Some(ShmemRole::Master)) {
        return Err(Error::operation_invalid(format!(
            "shmem device '{}' cannot be migrated, only shmem with role='{}' can be migrated",
            shared.name,
            ShmemRole::Master
        )));
    }
    if live.devices.disks.iter().any(|disk| disk.transient.is_some()) {
        return invalid("migration with transient disk is not supported");
    }
    Ok(())
}

fn has_invariant_tsc(live: &Domain) -> bool {
    let on = |policy| matches!(policy, FeaturePolicy::Require | FeaturePolicy::Force);
    let mut features = live.cpu.iter().flat_map(|cpu| &cpu.rest.features);
    features.any(|feature| &*feature.name == "invtsc" && on(feature.policy))
}

fn has_tsc_frequency(live: &Domain) -> bool {
    let timers = &live.clock.timers;
    timers.iter().any(|timer| timer.name == TimerName::Tsc && timer.frequency_hz.is_some_and(|it| it > 0))
}

/// The disks whose contents go along, in the order of the definition.
pub(super) fn copied<'a>(definition: &'a Domain, request: &Request) -> Vec<&'a Disk> {
    if !request.flags.copies_disks() {
        return Vec::new();
    }
    let named = request.disks();
    let is_copied = |disk: &&Disk| match &named {
        Some(named) => disk.target.dev.as_deref().is_some_and(|target| named.contains(&target)),
        None => !disk.shareable && !disk.readonly && !is_empty(disk),
    };
    definition.devices.disks.iter().filter(is_copied).collect()
}

fn check_targets(definition: &Domain, request: &Request) -> Result<()> {
    let named = request.disks().unwrap_or_default();
    let zeroes = request.disks_with_zeroes();
    if !request.flags.copies_disks() {
        for (given, name) in [
            (!named.is_empty(), "VIR_MIGRATE_PARAM_MIGRATE_DISKS"),
            (!zeroes.is_empty(), "VIR_MIGRATE_PARAM_MIGRATE_DISKS_DETECT_ZEROES"),
        ] {
            if given {
                return Err(Error::operation_unsupported(format!(
                    "use of '{name}' requires use of 'VIR_MIGRATE_NON_SHARED_DISK' or 'VIR_MIGRATE_NON_SHARED_INC' flag"
                )));
            }
        }
    }
    let is_there =
        |target: &str| definition.devices.disks.iter().any(|disk| disk.target.dev.as_deref() == Some(target));
    match named.into_iter().chain(zeroes).find(|target| !is_there(target)) {
        Some(missing) => Err(Error::invalid_arg(format!("disk target {missing} not found"))),
        None => Ok(()),
    }
}

fn is_empty(disk: &Disk) -> bool {
    matches!(disk.storage.place, Place::File(None) | Place::Block(None) | Place::Dir(None))
}

fn check_disks(definition: &Domain, request: &Request) -> Result<()> {
    let copied = copied(definition, request);
    for disk in &definition.devices.disks {
        let goes_along = copied.iter().any(|it| std::ptr::eq(*it, disk));
        if is_empty(disk) || disk.readonly || goes_along {
            continue;
        }
        let is_local = match &disk.storage.place {
            Place::File(Some(path)) => !is_shared(Path::new(&**path)),
            Place::Nvme(_) => true,
            _ => false,
        };
        if is_local {
            return Err(Error::migrate_unsafe("Migration without shared storage is unsafe"));
        }
    }
    Ok(())
}

/// Whether other hosts see the same file: what it lies on is a network's or a cluster's file system. QEMU drops the
/// host's cache of it at the end, so any cache mode will do.
fn is_shared(path: &Path) -> bool {
    const SHARED: [i64; 11] = [
        0x6969,      // NFS
        0x0116_1970, // GFS2
        0x7461_636f, // OCFS2
        0x5346_414f, // AFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB 2
        0x00c3_6400, // Ceph
        0x4750_4653, // GPFS
        0x5162_6d6e, // Quobyte
        0x6163_6673, // ACFS
    ];
    let existing = path.ancestors().find(|path| path.exists());
    let found = existing.and_then(|path| rustix::fs::statfs(path).ok());
    found.is_some_and(|found| SHARED.contains(&found.f_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;
    use crate::drivers::params::Params;

    fn state(devices: &str) -> State {
        let text = format!(
            "<domain type='qemu'><name>x</name><os><type>hvm</type></os>\
             <cpu mode='custom'><model>qemu64</model><feature name='invtsc' policy='disable'/></cpu>\
             <devices>{devices}</devices></domain>"
        );
        let mut state = State::new("x", crate::util::uuid::Uuid([1; 16]));
        state.live = Some(std::sync::Arc::new(Domain::parse(&text, Form::INACTIVE).unwrap()));
        state
    }

    fn request(flags: MigrateFlags, disks: &[&str]) -> Request {
        let params = disks.iter().map(|disk| ("migrate_disks".into(), (*disk).into())).collect();
        Request::accept(Params(params), flags.bits(), "f").unwrap()
    }

    #[test]
    fn a_disk_on_this_host_alone_stays_unless_it_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let disk = |target: &str, more: &str| {
            let path = directory.path().join(target).display().to_string();
            format!(
                "<disk type='file'><source file='{path}'/><target dev='{target}' bus='virtio'/>{more}</disk>"
            )
        };
        let both = state(&format!("{}{}", disk("vda", ""), disk("vdb", "<readonly/>")));
        let check =
            |state: &State, request: Request| check(state, &request, &[]).map_err(|error| error.message());
        let unsafe_ = Err("Unsafe migration: Migration without shared storage is unsafe".to_owned());
        assert_eq!(check(&both, request(MigrateFlags::LIVE, &[])), unsafe_);
        assert_eq!(check(&both, request(MigrateFlags::UNSAFE, &[])), Ok(()));
        assert_eq!(check(&both, request(MigrateFlags::NON_SHARED_DISK, &[])), Ok(()));
        assert_eq!(check(&both, request(MigrateFlags::NON_SHARED_DISK, &["vdb"])), unsafe_);
        let missing = request(MigrateFlags::NON_SHARED_DISK | MigrateFlags::UNSAFE, &["vdz"]);
        assert_eq!(check(&both, missing), Err("invalid argument: disk target vdz not found".to_owned()));
        let without = check(&both, request(MigrateFlags::UNSAFE, &["vda"])).unwrap_err();
        assert!(without.contains("requires use of 'VIR_MIGRATE_NON_SHARED_DISK'"), "{without}");
        let readonly = state(&disk("vda", "<readonly/>"));
        assert_eq!(check(&readonly, request(MigrateFlags::LIVE, &[])), Ok(()));
    }

    #[test]
    fn what_qemu_or_the_definition_forbids_is_refused() {
        let check = |state: &State, blockers: &[&str]| {
            let blockers: Vec<_> = blockers.iter().map(|text| (*text).to_owned()).collect();
            super::check(state, &request(MigrateFlags::UNSAFE, &[]), &blockers)
                .map_err(|error| error.message())
        };
        let mut state = state("");
        assert_eq!(check(&state, &[]), Ok(()));
        let refused = |sentence: &str| Err(format!("Requested operation is not valid: {sentence}"));
        assert_eq!(check(&state, &["a", "b"]), refused("cannot migrate domain: a; b"));
        let text = "<domainsnapshot><name>s</name></domainsnapshot>";
        let snapshot =
            crate::conf::snapshot::Snapshot::parse(text, crate::conf::snapshot::Purpose::Offline).unwrap();
        std::sync::Arc::make_mut(&mut state.snapshots).insert(std::sync::Arc::new(snapshot));
        assert_eq!(check(&state, &[]), refused("cannot migrate domain with 1 snapshots"));
        state.snapshots = std::sync::Arc::default();
        state.autodestroy = true;
        assert_eq!(check(&state, &[]), refused("domain is marked for auto destroy"));
        let shared = super::tests::state("<shmem name='s' role='peer'><model type='ivshmem-plain'/></shmem>");
        let sentence = "shmem device 's' cannot be migrated, only shmem with role='master' can be migrated";
        assert_eq!(check(&shared, &[]), refused(sentence));
    }
}
