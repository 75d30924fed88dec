//! A snapshot's disks beside those of its domain: one for each, in the same order.

use super::{Snapshot, SnapshotDisk};
use crate::conf::devices::{Disk, SnapshotLocation, StorageKind};
use crate::conf::domain::Domain;
use crate::conf::{ConfError, Result};

/// How disks are treated that the description says nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Align {
    pub default: SnapshotLocation,
    /// Whatever the domain says of its disks.
    pub forced: bool,
}

/// Completes the snapshot's disks. `is_regular` tells whether a path is a file on this host.
pub fn align(
    snapshot: &mut Snapshot,
    domain: &Domain,
    how: Align,
    is_regular: impl Fn(&str) -> bool,
) -> Result<()> {
    let Align { default, forced } = how;
    let disks = &domain.devices.disks;
    if snapshot.disks.len() > disks.len() {
        return Err(ConfError::unsupported("too many disk snapshot requests for domain"));
    }
    let mut given: Vec<Option<SnapshotDisk>> = disks.iter().map(|_| None).collect();
    for mut wanted in std::mem::take(&mut snapshot.disks) {
        let named = |disk: &&Disk| *disk.name() == *wanted.name || disk.storage.path() == Some(&*wanted.name);
        let found = disks.iter().zip(&mut given).find(|(disk, _)| named(disk));
        let Some((disk, place)) = found else {
            return Err(ConfError::unsupported(format!("no disk named '{}'", wanted.name)));
        };
        if place.is_some() {
            return Err(ConfError::unsupported(format!("disk '{}' specified twice", wanted.name)));
        }
        choose(&mut wanted, disk, default)?;
        wanted.name = disk.name().into();
        *place = Some(wanted);
    }
    let all = disks.iter().zip(given).map(|(disk, given)| match given {
        Some(given) => given,
        None if disk.storage.is_empty() => SnapshotDisk::new(disk.name(), Some(SnapshotLocation::No)),
        None => {
            let own = own_choice(disk).filter(|_| !forced);
            SnapshotDisk::new(disk.name(), Some(own.unwrap_or(default)))
        }
    });
    snapshot.disks = all.collect();
    name_images(snapshot, disks, is_regular)
}

/// What the domain says of its disk: nobody takes snapshots of what cannot be written.
fn own_choice(disk: &Disk) -> Option<SnapshotLocation> {
    disk.snapshot.or_else(|| disk.readonly.then_some(SnapshotLocation::No))
}

/// An internal snapshot is one of all disks.
fn choose(wanted: &mut SnapshotDisk, disk: &Disk, default: SnapshotLocation) -> Result<()> {
    let uniform = default == SnapshotLocation::Internal;
    let no = Some(SnapshotLocation::No);
    let own = own_choice(disk);
    match wanted.location {
        None => {
            let own = own.filter(|own| !uniform || *own == SnapshotLocation::No);
            wanted.location = Some(own.unwrap_or(default));
        }
        location if uniform && location != Some(default) && !(location == no && own == no) => {
            let sentence = format!("disk '{}' must use snapshot mode '{default}'", wanted.name);
            return Err(ConfError::unsupported(sentence));
        }
        Some(_) => {}
    }
    if let (Some(path), false) = (wanted.storage.path(), wanted.is_external()) {
        return Err(ConfError::unsupported(format!(
            "file '{path}' for disk '{}' requires use of external snapshot mode",
            wanted.name
        )));
    }
    Ok(())
}

/// New images without a name get that of the old one, with the snapshot's as suffix.
fn name_images(snapshot: &mut Snapshot, disks: &[Disk], is_regular: impl Fn(&str) -> bool) -> Result<()> {
    let suffix = snapshot.name.clone().unwrap_or_default();
    let mut named: Vec<(String, Box<str>)> = Vec::new();
    for (wanted, disk) in snapshot.disks.iter_mut().zip(disks) {
        let name = &wanted.name;
        if !wanted.is_external() || !wanted.storage.is_empty() {
            continue;
        }
        let refused = |why: String| Err(ConfError::unsupported(why));
        let kind = wanted.storage.kind();
        if kind != StorageKind::File {
            return refused(format!(
                "cannot generate external snapshot name for disk '{name}' on a '{kind}' device"
            ));
        }
        let Some(path) = disk.storage.path() else {
            return refused(format!(
                "cannot generate external snapshot name for disk '{name}' without source"
            ));
        };
        if !is_regular(path) {
            return refused(format!(
                "source for disk '{name}' is not a regular file; refusing to generate external snapshot name"
            ));
        }
        let stem = match path.rsplit_once('.') {
            Some((stem, end)) if !end.contains('/') => stem,
            _ => path,
        };
        let image = format!("{stem}.{suffix}");
        if let Some((_, other)) = named.iter().find(|(path, _)| *path == image) {
            return refused(format!(
                "cannot generate external snapshot name for disk '{name}': collision with disk '{other}'"
            ));
        }
        wanted.storage.place = crate::conf::devices::Place::File(Some(image.as_str().into()));
        named.push((image, name.clone()));
    }
    Ok(())
}
