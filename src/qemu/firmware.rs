//! The host's firmware images, and the variables of guests that use them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::conf::domain::Domain;
use crate::conf::domain::defaults::Firmware;

/// Where distributions and administrators put descriptors; files of the later directory hide those of the same
/// name in the earlier.
pub const DIRECTORIES: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// Descriptors are some hundred bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The descriptors below `directories`, best first. Those that cannot be understood are left out.
pub fn descriptors<P: AsRef<Path>>(directories: &[P]) -> Vec<Firmware> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if let Some(name) = entry.file_name().to_str().filter(|name| name.ends_with(".json")) {
                files.insert(name.to_owned(), entry.path());
            }
        }
    }
    files.into_values().filter_map(|path| read(&path)).collect()
}

/// A descriptor; an empty file only hides another.
fn read(path: &Path) -> Option<Firmware> {
    let size = fs::metadata(path).ok()?.len();
    if size == 0 || size > MAX_SIZE {
        return None;
    }
    let text = fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(firmware) => Some(firmware),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a firmware descriptor is malformed");
            None
        }
    }
}

/// Why a guest has no variables.
#[derive(Debug, thiserror::Error)]
#[error("Failed to create the firmware variables '{path}' from '{template}'")]
pub struct NvramError {
    path: String,
    template: String,
    pub source: io::Error,
}

/// Makes the file with a guest's firmware variables from its template, unless it is there; answers what it made.
pub fn create_nvram(domain: &Domain) -> Result<Option<PathBuf>, NvramError> {
    let Some(nvram) = domain.os.nvram.as_deref() else { return Ok(None) };
    let (Some(path), Some(template)) = (nvram.place.path.as_deref(), nvram.template.as_deref()) else {
        return Ok(None);
    };
    let copied = copy_new(template, path);
    copied.map_err(|source| NvramError { path: path.to_owned(), template: template.to_owned(), source })
}

/// Removes the file with a guest's firmware variables, where it can be made anew from its template.
pub fn remove_nvram(domain: &Domain) -> io::Result<()> {
    let nvram = domain.os.nvram.as_deref().filter(|nvram| nvram.template.is_some());
    match nvram.and_then(|nvram| nvram.place.path.as_deref()) {
        Some(path) => crate::util::file::remove_if_there(Path::new(path)),
        None => Ok(()),
    }
}

fn copy_new(template: &str, path: &str) -> io::Result<Option<PathBuf>> {
    let mut from = match Path::new(path).try_exists()? {
        true => return Ok(None),
        false => fs::File::open(template)?,
    };
    if let Some(directory) = Path::new(path).parent() {
        fs::create_dir_all(directory)?;
    }
    // A copy that was interrupted must not be taken for the variables.
    let partial = format!("{path}.new");
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    fs::rename(partial, path)?;
    Ok(Some(path.into()))
}
