//! Images without a format: files that are made, filled, resized and wiped by ourselves.

use std::fs::{File, Permissions as Mode};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::copy;
use super::{Refusal, Result, VolumeError};
use crate::conf::storage::{Permissions, Volume};

/// Of a file that nobody says more about: images hold secrets.
const DEFAULT_MODE: u32 = 0o600;
/// What is written at once where the filesystem cannot make room by itself.
const ZEROES: usize = 1 << 20;

/// Whether a copy shares its blocks with the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reflink {
    Yes,
    No,
}

/// Whether new room is taken from the filesystem at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    Now,
    WhenWritten,
}

/// A raw image to be made.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    pub volume: &'a Volume,
    pub original: Option<&'a Volume>,
    pub reflink: Reflink,
}

/// Makes an empty file that nobody else made, readable by nobody else.
pub fn reserve(path: &str) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(DEFAULT_MODE).open(path);
    file.map_err(|source| VolumeError::system(format!("Failed to create file '{path}'"), source))
}

/// Makes a directory that is a volume.
pub fn make_directory(path: &str, permissions: &Permissions) -> Result<()> {
    let failed = |source| VolumeError::helper(format!("failed to create directory '{path}'"), source);
    std::fs::create_dir(path).map_err(failed)?;
    let set =
        File::open(path).map_err(failed).and_then(|directory| set_permissions(&directory, path, permissions));
    if set.is_err() {
        let _ = std::fs::remove_dir(path);
    }
    set
}

/// Owner and mode as asked for, or as new files have them.
pub fn set_permissions(file: &File, path: &str, permissions: &Permissions) -> Result<()> {
    if permissions.owner.is_some() || permissions.group.is_some() {
        let (owner, group) = (permissions.owner, permissions.group);
        fchown(file, owner, group).map_err(|source| {
            let number = |id: Option<u32>| id.unwrap_or(u32::MAX);
            let what = format!("cannot chown '{path}' to ({}, {})", number(owner), number(group));
            VolumeError::system(what, source)
        })?;
    }
    let mode = permissions.mode.unwrap_or(DEFAULT_MODE);
    file.set_permissions(Mode::from_mode(mode))
        .map_err(|source| VolumeError::system(format!("cannot set mode of '{path}' to {mode:04o}"), source))
}

/// Fills a reserved file.
pub fn build(file: &mut File, what: Build<'_>) -> Result<()> {
    let Build { volume, original, reflink } = what;
    let path = &volume.target.path;
    let failed = |what: String| move |source: io::Error| VolumeError::system(what, source);
    file.set_len(volume.capacity).map_err(failed(format!("cannot extend file '{path}'")))?;
    // A copy that takes less room than the original keeps its holes.
    let is_sparse = original.is_some_and(|original| volume.allocation < original.capacity);
    let mut unfilled = volume.allocation > 0 && !is_sparse;
    if unfilled && reflink == Reflink::No {
        match rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, volume.allocation) {
            Ok(()) => unfilled = false,
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => {}
            Err(error) => {
                let what = format!("cannot allocate {} bytes in file '{path}'", volume.allocation);
                return Err(VolumeError::system(what, error));
            }
        }
    }
    if let Some(original) = original {
        copy_original(file, volume, original, reflink)?;
    }
    if unfilled && reflink == Reflink::No {
        let from = original.map_or(0, |original| original.capacity);
        fill(file, from, volume.allocation).map_err(failed(format!("cannot fill file '{path}'")))?;
    }
    file.sync_data().map_err(failed(format!("cannot sync data to file '{path}'")))
}

fn copy_original(file: &mut File, volume: &Volume, original: &Volume, reflink: Reflink) -> Result<()> {
    let from = &original.target.path;
    let mut source = super::open(from)?;
    if reflink == Reflink::Yes {
        return rustix::fs::ioctl_ficlone(&*file, &source)
            .map_err(|error| VolumeError::system(format!("failed to clone files from '{from}'"), error))
            .and_then(|()| {
                let failed = |source| VolumeError::system(format!("cannot extend file '{from}'"), source);
                file.set_len(volume.capacity).map_err(failed)
            });
    }
    copy::copy(&mut source, file, original.capacity).map_err(|source| {
        let to = &volume.target.path;
        VolumeError::system(format!("failed to copy '{from}' to file '{to}'"), source)
    })
}

/// Writes zeroes where the filesystem does not make room otherwise.
fn fill(file: &mut File, from: u64, to: u64) -> io::Result<()> {
    let zeroes = vec![0; ZEROES];
    file.seek(SeekFrom::Start(from))?;
    let mut left = to.saturating_sub(from);
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(ZEROES).min(ZEROES);
        file.write_all(zeroes.get(..len).unwrap_or_default())?;
        left -= len as u64;
    }
    Ok(())
}

/// Opens an existing volume to change it. A link that somebody else put into the pool is not followed: he
/// may not have the right to write what it leads to.
pub fn open_to_change(path: &str) -> io::Result<File> {
    let found = std::fs::symlink_metadata(path)?;
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    if found.is_symlink() && !ours {
        return Err(io::Error::from(Errno::LOOP));
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    File::options().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path)
}

pub fn resize(path: &str, capacity: u64, allocate: Allocate) -> Result<()> {
    let failed = |what: &str, source| VolumeError::helper(format!("{what} '{path}'"), source);
    let file = open_to_change(path).map_err(|source| failed("Unable to open", source))?;
    if allocate == Allocate::Now {
        let len = file.metadata().map_err(|source| failed("cannot stat file", source))?.len();
        if let Some(more) = capacity.checked_sub(len).filter(|more| *more > 0) {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), len, more)
                .map_err(|source| failed("Failed to pre-allocate space for file", source.into()))?;
        }
    }
    file.set_len(capacity).map_err(|source| failed("Failed to truncate file", source))
}

/// Overwrites a volume with zeroes; holes stay holes.
pub fn wipe(path: &str, allocation: u64) -> Result<()> {
    let failed = |what: &str, source| VolumeError::system(format!("{what} '{path}'"), source);
    let mut file =
        open_to_change(path).map_err(|source| failed("Failed to open storage volume with path", source))?;
    let found =
        file.metadata().map_err(|source| failed("Failed to stat storage volume with path", source))?;
    if found.is_dir() {
        let error = io::Error::from(Errno::ISDIR);
        return Err(failed("Failed to open storage volume with path", error));
    }
    if found.is_file() && found.blocks() < found.len() / 512 {
        let len = found.len();
        let what = |bytes| format!("Failed to truncate volume with path '{path}' to {bytes} bytes");
        file.set_len(0).map_err(|source| VolumeError::system(what(0), source))?;
        return file.set_len(len).map_err(|source| VolumeError::system(what(len), source));
    }
    fill(&mut file, 0, allocation)
        .map_err(|source| failed("Failed to write to storage volume with path", source))?;
    file.sync_data().map_err(|source| failed("cannot sync data to volume with path", source))
}

/// Overwrites so many bytes at both ends of a device: what it is recognised by.
pub fn clear_ends(path: &str, bytes: u64) -> Result<()> {
    let failed = |what: &str, source| VolumeError::system(format!("{what} '{path}'"), source);
    let mut file =
        open_to_change(path).map_err(|source| failed("Failed to open storage volume with path", source))?;
    let cleared = (|| {
        let end = file.seek(SeekFrom::End(0))?;
        fill(&mut file, 0, bytes.min(end))?;
        fill(&mut file, end.saturating_sub(bytes), end)?;
        file.sync_all()
    })();
    cleared.map_err(|source| failed("Failed to write to storage volume with path", source))
}

/// Owner and mode of a device that was just made.
pub fn own_device(path: &str, permissions: &Permissions) -> Result<()> {
    let file = super::open(path)?;
    set_permissions(&file, path, permissions)
}

/// Copies an image without a format onto a device.
pub fn fill_device(path: &str, original: &Volume) -> Result<()> {
    let from = &original.target.path;
    let mut source = super::open(from)?;
    let failed = |source| VolumeError::system(format!("failed to copy '{from}' to file '{path}'"), source);
    let mut device = open_to_change(path).map_err(failed)?;
    // What is a hole there may be anything here.
    copy::copy_all(&mut source, &mut device, original.capacity).map_err(failed)?;
    device.sync_all().map_err(failed)
}

/// Makes a pool's directory and those above it.
pub fn build_directory(path: &str, permissions: &Permissions) -> Result<()> {
    if !path.starts_with('/') {
        return Err(VolumeError::refused(Refusal::InvalidArg, format!("path '{path}' is not absolute")));
    }
    const DEFAULT_POOL_MODE: u32 = 0o711;
    if let Some(parent) = Path::new(path).parent() {
        crate::util::file::make_directory(parent, 0o777).map_err(|source| {
            let source = match source.kind() {
                io::ErrorKind::AlreadyExists => Errno::NOTDIR.into(),
                _ => source,
            };
            VolumeError::system(format!("cannot create path '{}'", parent.display()), source)
        })?;
    }
    let failed = |source| VolumeError::helper(format!("failed to create directory '{path}'"), source);
    let is_new = match std::fs::create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
    };
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    let directory = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let mode = permissions.mode.or(is_new.then_some(DEFAULT_POOL_MODE));
    let Some(mode) = mode else { return chown(&directory, path, permissions) };
    set_permissions(&directory, path, &Permissions { mode: Some(mode), ..permissions.clone() })
}

fn chown(file: &File, path: &str, permissions: &Permissions) -> Result<()> {
    if permissions.owner.is_none() && permissions.group.is_none() {
        return Ok(());
    }
    let failed = |source| VolumeError::system(format!("cannot chown '{path}'"), source);
    fchown(file, permissions.owner, permissions.group).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_another_user_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("precious"), "years of work").unwrap();
        std::os::unix::fs::symlink(at("precious"), at("link")).unwrap();
        open_to_change(&at("link")).unwrap();
        // Only root can make a link of somebody else.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(at("link"), Some(65534), Some(65534)).unwrap();
            let refused = [wipe(&at("link"), 1 << 20), resize(&at("link"), 0, Allocate::WhenWritten)];
            assert!(refused.iter().all(Result::is_err));
            assert_eq!(std::fs::read(at("precious")).unwrap(), b"years of work");
        }
    }

    #[test]
    fn a_sparse_volume_is_wiped_into_a_hole_and_a_full_one_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v").display().to_string();
        let mut file = reserve(&path).unwrap();
        file.write_all(&[7; 8192]).unwrap();
        wipe(&path, 8192).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 8192]);
        file.set_len(1 << 30).unwrap();
        wipe(&path, 8192).unwrap();
        assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (1 << 30, 0));
        assert!(reserve(&path).is_err(), "it is there");
    }
}
