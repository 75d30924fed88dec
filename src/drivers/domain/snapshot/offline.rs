//! Snapshots of domains that are off: `qemu-img` does to their images what QEMU would.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::SnapshotCreateFlags;
use crate::conf::devices::{
    Backing, Disk, DiskDevice, Layer, LayerFormat, SnapshotLocation, Storage, StorageFormat,
};
use crate::conf::domain::Domain;
use crate::conf::moments::Moment;
use crate::conf::snapshot::{Snapshot, SnapshotDisk};
use crate::drivers::domain::Domains;
use crate::drivers::domain::reads::{definition, persistent};
use crate::error::{Error, Result};
use crate::qemu::job::{self, AsyncJob, State};
use crate::qemu::storage::QemuImg;

/// Images are large and disks slow.
const LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Domains {
    pub(super) async fn qemu_img(&self, arguments: &[&str]) -> Result<()> {
        let tools = QemuImg::new(OsString::from(self.search_path()));
        tools.tool("qemu-img", arguments, LIMIT).await?;
        Ok(())
    }

    /// Inside the images; all of them or none.
    pub(super) async fn snapshot_files_inside(&self, state: &State, snapshot: &Snapshot) -> Result<()> {
        let own = definition(state)?;
        let disks = own.devices.disks.iter().zip(&snapshot.disks);
        let mut made: Vec<&str> = Vec::new();
        for (disk, _) in disks.filter(|(disk, wanted)| is_inside(disk, wanted)) {
            let done = match disk.storage.path() {
                Some(path) => self.qemu_img(&["snapshot", "-c", snapshot.name(), path]).await.map(|()| path),
                None => Err(Error::operation_invalid(format!(
                    "can't manipulate inactive snapshots of disk '{}'",
                    disk.name()
                ))),
            };
            match done {
                Ok(path) => made.push(path),
                Err(error) => {
                    for path in made {
                        // The first error is the one that the user needs.
                        let _ = self.qemu_img(&["snapshot", "-d", snapshot.name(), path]).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Goes back to it, or removes it (`-a`, `-d`); answers whether all images did.
    pub(super) async fn apply_inside(&self, own: &Domain, snapshot: &Snapshot, how: &str) -> bool {
        let mut all = true;
        let disks = own.devices.disks.iter().zip(&snapshot.disks);
        for (disk, _) in disks.filter(|(disk, wanted)| is_inside(disk, wanted)) {
            let Some(path) = disk.storage.path() else { continue };
            if let Err(error) = self.qemu_img(&["snapshot", how, snapshot.name(), path]).await {
                tracing::warn!(path, %error, "qemu-img snapshot {how} failed");
                all = false;
            }
        }
        all
    }

    /// New images on the old ones, and a definition that has them.
    pub(super) async fn snapshot_files_outside(
        self: &Arc<Self>,
        job: &AsyncJob<job::Snapshot>,
        snapshot: &Snapshot,
        flags: SnapshotCreateFlags,
    ) -> Result<()> {
        let state = job.state();
        let reused = flags.contains(SnapshotCreateFlags::REUSE_EXT);
        let made = match reused {
            true => Vec::new(),
            false => self.make_overlays(persistent(&state)?, &snapshot.disks).await?,
        };
        let disks = snapshot.disks.clone();
        let edit = move |definition: &mut Domain| {
            put_on_overlays(definition, &disks, reused);
            true
        };
        let saved = self.amend_definition(job.object(), edit).await;
        if saved.is_err() {
            remove(made).await;
        }
        saved
    }

    /// Makes the images that disks are to stand on; all or none.
    pub(super) async fn make_overlays(&self, own: &Domain, wanted: &[SnapshotDisk]) -> Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        for wanted in wanted.iter().filter(|disk| disk.is_external()) {
            let disk = own.devices.disks.iter().find(|disk| *disk.name() == *wanted.name);
            let (Some(disk), Some(path)) = (disk, wanted.storage.path()) else { continue };
            let format = wanted.format.unwrap_or(StorageFormat::Qcow2);
            let below = disk.storage.path().unwrap_or_default().replace(',', ",,");
            let options = format!("backing_fmt={},backing_file={below}", disk.format());
            let is_new = !std::path::Path::new(path).exists();
            if is_new {
                made.push(PathBuf::from(path));
            }
            if let Err(error) = self.qemu_img(&["create", "-f", format.as_str(), "-o", &options, path]).await
            {
                remove(made).await;
                return Err(error);
            }
        }
        Ok(made)
    }
}

/// Images that nobody needs any more; one that stays is told of in the log.
pub(in crate::drivers::domain) async fn remove(paths: Vec<PathBuf>) {
    for path in paths {
        if let Err(error) = tokio::fs::remove_file(&path).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove an image");
        }
    }
}

fn is_inside(disk: &Disk, wanted: &SnapshotDisk) -> bool {
    disk.device == DiskDevice::Disk
        && wanted.location == Some(SnapshotLocation::Internal)
        && disk.format() == StorageFormat::Qcow2
}

/// The image that a snapshot's disk stands on from then on.
pub(super) fn overlay(wanted: &SnapshotDisk) -> Layer {
    let kind = wanted.format.unwrap_or(StorageFormat::Qcow2);
    let storage = Storage { backing: None, index: None, ..wanted.storage.clone() };
    Layer { format: LayerFormat { kind, metadata_cache: wanted.metadata_cache.clone() }, storage }
}

/// Has the disks of a definition stand on new images. What is below is said where it was said before.
pub(super) fn put_on_overlays(definition: &mut Domain, wanted: &[SnapshotDisk], reused: bool) {
    for wanted in wanted.iter().filter(|disk| disk.is_external()) {
        let disks = definition.devices.disks.iter_mut();
        for disk in disks.filter(|disk| *disk.name() == *wanted.name) {
            let says = !reused && disk.storage.layer().is_some();
            put_on(disk, overlay(wanted), says);
        }
    }
}

/// Has a disk of a definition stand on another image; `says`: and that on the one it stood on.
pub(in crate::drivers::domain) fn put_on(disk: &mut Disk, overlay: Layer, says: bool) {
    let kind = disk.format();
    let metadata_cache = disk.driver.metadata_cache.take();
    let below = std::mem::replace(&mut disk.storage, overlay.storage);
    disk.driver.format = Some(overlay.format.kind);
    disk.driver.metadata_cache = overlay.format.metadata_cache;
    if says {
        let format = LayerFormat { kind, metadata_cache };
        disk.storage.backing = Some(Box::new(Backing::Layer(Layer { format, storage: below })));
    }
}
