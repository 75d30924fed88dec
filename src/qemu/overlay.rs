//! Images that take what a guest writes and go with it, above the images of its transient disks.
//!
//! ```text
//!  definition: disk ──► base           running: disk ──► base.TRANSIENT-NAME ──► base (only read)
//! ```
//!
//! QEMU never writes to what lies below, so guests may share it, whether they ask for that or not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::helpers;
use crate::conf::devices::{Backing, Disk, Layer, LayerFormat, Place, Storage, StorageFormat};
use crate::util::file;
use crate::util::process::{Command, ProcessError};

/// An overlay has no data.
const LIMIT: Duration = Duration::from_secs(60);
const MAX_OUTPUT: usize = 64 * 1024;

#[derive(Debug, Error)]
pub enum OverlayError {
    /// `VIR_ERR_SYSTEM_ERROR`
    #[error("Failed to delete overlay file '{}' for transient disk '{disk}'", path.display())]
    InTheWay { path: PathBuf, disk: String, source: io::Error },
    #[error("Cannot find 'qemu-img' in path: No such file or directory")]
    Missing,
    #[error("cannot create overlay file '{}' for transient disk '{disk}': {words}", path.display())]
    Failed { path: PathBuf, disk: String, words: String },
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Images on their way; removed when this is dropped, unless their guest keeps them.
#[derive(Debug, Default)]
pub struct Overlays(Vec<PathBuf>);

impl Overlays {
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| remove_file(path));
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = file::remove_if_there(path) {
        tracing::warn!(path = %path.display(), %error, "the overlay of a transient disk stays");
    }
}

/// Makes an empty image above each transient disk of a guest.
pub async fn create(disks: &[Disk], guest: &str, search_path: &str) -> Result<Overlays, OverlayError> {
    let mut overlays = Overlays::default();
    for disk in disks.iter().filter(|disk| disk.transient.is_some()) {
        let Some((base, path)) = paths(disk, guest) else { continue };
        let name = disk.name().to_owned();
        if let Err(source) = file::remove_if_there(&path) {
            return Err(OverlayError::InTheWay { path, disk: name, source });
        }
        let program = helpers::find("qemu-img", search_path).ok_or(OverlayError::Missing)?;
        let command =
            Command::new(program).args(["create", "-q", "-f", "qcow2", "-F", disk.format().as_str()]);
        let made = command.args(["-b", base]).arg(&path).capture(LIMIT, MAX_OUTPUT).await?;
        overlays.0.push(path.clone());
        if !made.exit.success() {
            let words = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(OverlayError::Failed { path, disk: name, words });
        }
    }
    Ok(overlays)
}

/// Puts those images on top in the definition of a guest that starts with them.
pub fn put_on_top(disks: &mut [Disk], guest: &str) {
    for disk in disks.iter_mut().filter(|disk| disk.transient.is_some() && !disk.has_overlay()) {
        let Some((_, path)) = paths(disk, guest) else { continue };
        let overlay = Storage::new(Place::File(Some(path.display().to_string().into())));
        let base = std::mem::replace(&mut disk.storage, overlay);
        disk.storage.seclabels.clone_from(&base.seclabels);
        let metadata_cache = disk.driver.metadata_cache.take();
        let format = LayerFormat { kind: disk.format(), metadata_cache };
        disk.storage.backing = Some(Box::new(Backing::Layer(Layer { format, storage: base })));
        disk.storage.backing_detected = true;
        disk.driver.format = Some(StorageFormat::Qcow2);
    }
}

/// Removes the images of disks that a guest had.
pub fn remove(disks: &[Disk]) {
    let overlays = disks.iter().filter(|disk| disk.has_overlay());
    overlays.filter_map(|disk| disk.storage.path()).for_each(|path| remove_file(Path::new(path)));
}

/// A disk's image, and the one above it.
fn paths<'a>(disk: &'a Disk, guest: &str) -> Option<(&'a str, PathBuf)> {
    let base = disk.storage.path()?;
    Some((base, format!("{base}{}{guest}", Disk::OVERLAY).into()))
}
