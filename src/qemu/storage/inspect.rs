//! What a file in a pool is. All of it waits for the disk: call it where that may block.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::image::{self, Facts, HEADER_LEN};
use super::{Refusal, Result, VolumeError};
use crate::conf::devices::StorageFormat;
use crate::conf::storage::{
    Encryption, Moment, Permissions, Probed, Role, Target, Timestamps, Volume, VolumeType,
};
use crate::qemu::block;

/// The sizes and the target of a file, as far as its inode tells them.
struct Found {
    probed: Probed,
    capacity: u64,
    allocation: u64,
    physical: u64,
    permissions: Permissions,
    timestamps: Timestamps,
}

/// The volume that the file `name` in `directory` is; none for what cannot be one. `before` is what it was
/// the last time: a file that has not changed since is not read again.
pub fn probe(directory: &str, name: &str, before: Option<&Volume>) -> Result<Option<Volume>> {
    let path = format!("{directory}/{name}");
    if let Some(volume) = before.and_then(|before| still(before, &path)) {
        return Ok(Some(volume));
    }
    let mut file = match open(&path) {
        Ok(file) => file,
        Err(VolumeError::System { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
                || [Errno::LOOP, Errno::NXIO, Errno::PERM]
                    .map(|it| Some(it.raw_os_error()))
                    .contains(&source.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(VolumeError::Refused { .. }) => return Ok(None),
        Err(other) => return Err(other),
    };
    let found = look(&file, &path)?;
    let is_directory = file.metadata().is_ok_and(|it| it.is_dir());
    let mut volume = Volume {
        name: name.into(),
        key: path.as_str().into(),
        kind: if is_directory { VolumeType::Dir } else { VolumeType::File },
        capacity: found.capacity,
        allocation: found.allocation,
        has_allocation: false,
        probed: found.probed,
        physical: found.physical,
        role: Role::Whole,
        extents: Vec::new(),
        target: Target {
            path: path.into(),
            format: Some(if is_directory { StorageFormat::Dir } else { StorageFormat::Raw }),
            permissions: found.permissions,
            timestamps: Some(found.timestamps),
            ..Target::default()
        },
        backing: None,
    };
    if !is_directory {
        let header = read_header(&mut file, &volume.target.path)?;
        apply(&mut volume, Facts::of(&header));
    }
    Ok(Some(volume))
}

/// A device that is a volume; its content is the guest's own affair.
pub fn probe_device(name: &str, key: &str, path: &str) -> Result<Volume> {
    let found = look(&open(path)?, path)?;
    Ok(Volume {
        name: name.into(),
        key: key.into(),
        kind: VolumeType::Block,
        capacity: found.capacity,
        allocation: found.allocation,
        has_allocation: false,
        probed: found.probed,
        physical: found.physical,
        role: Role::Whole,
        extents: Vec::new(),
        target: Target {
            path: path.into(),
            permissions: found.permissions,
            timestamps: Some(found.timestamps),
            ..Target::default()
        },
        backing: None,
    })
}

/// The volume of before, if nothing was written to its file since: the change time moves with every write, whatever
/// the writer does to the others.
fn still(before: &Volume, path: &str) -> Option<Volume> {
    let Probed::File(_) = before.probed else { return None };
    let metadata = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let (times, now) = (before.target.timestamps?, timestamps(&metadata));
    let is_same = before.probed == Probed::File(metadata.ino())
        && (times.changed, times.modified) == (now.changed, now.modified)
        && before.physical == metadata.size();
    is_same.then(|| {
        let mut volume = before.clone();
        volume.target.timestamps = Some(now);
        volume.allocation = metadata.blocks().saturating_mul(512);
        refresh_backing(&mut volume);
        volume
    })
}

fn apply(volume: &mut Volume, facts: Facts) {
    volume.target.format = Some(facts.format);
    if let Some(capacity) = facts.capacity.filter(|capacity| *capacity > 0) {
        volume.capacity = capacity;
    }
    if let Some(format) = facts.encryption {
        volume.target.encryption = Some(Box::new(Encryption::found(format)));
        volume.capacity = volume.capacity.saturating_sub(facts.payload);
    }
    volume.target.cluster_size = facts.cluster_size;
    volume.target.compat = facts.features.is_some().then(|| "1.1".into());
    volume.target.features = facts.features;
    volume.backing = facts.backing.map(|backing| below(&backing, &volume.target.path));
    refresh_backing(volume);
}

/// The image below, as the upper one names it.
fn below(backing: &block::Backing, image: &str) -> Target {
    let name = backing.name.strip_prefix("file:").unwrap_or(&backing.name);
    let is_protocol = name.split('/').next().is_some_and(|start| start.contains(':'));
    let directory = Path::new(image).parent().unwrap_or(Path::new("/"));
    let path = match is_protocol {
        true => backing.name.clone(),
        false => directory.join(name).display().to_string(),
    };
    let guessed = || match is_protocol {
        true => StorageFormat::Raw,
        false => open(&path)
            .and_then(|mut file| read_header(&mut file, &path))
            .map_or(StorageFormat::Raw, |header| block::probe(&header)),
    };
    let format = backing.format.unwrap_or_else(guessed);
    Target { path: path.into(), format: Some(format), ..Target::default() }
}

/// Owner and times of the image below; what is not there keeps none.
fn refresh_backing(volume: &mut Volume) {
    let Some(backing) = &mut volume.backing else { return };
    let path = backing.path.to_string();
    if let Ok(found) = open(&path).and_then(|file| look(&file, &path)) {
        backing.permissions = found.permissions;
        backing.timestamps = Some(found.timestamps);
    }
}

/// Takes over what changed of a file since its volume was made or probed.
pub fn update(volume: &mut Volume) -> Result<()> {
    let path = volume.target.path.to_string();
    let mut file = open(&path)?;
    let found = look(&file, &path)?;
    volume.allocation = found.allocation;
    volume.physical = found.physical;
    volume.target.permissions = found.permissions;
    volume.target.timestamps = Some(found.timestamps);
    match volume.target.format {
        Some(format) if !file.metadata().is_ok_and(|it| it.is_dir()) => {
            let header = read_header(&mut file, &path)?;
            volume.capacity = match volume.target.encryption {
                Some(_) if format == StorageFormat::Raw => {
                    found.capacity.saturating_sub(Facts::of(&header).payload)
                }
                _ => image::capacity(format, &header).unwrap_or(found.capacity),
            };
        }
        _ => volume.capacity = found.capacity,
    }
    refresh_backing(volume);
    Ok(())
}

/// Opens what may be a volume; pipes and sockets may not, and are not waited for.
pub fn open(path: &str) -> Result<File> {
    let cannot_stat = |source| VolumeError::system(format!("cannot stat file '{path}'"), source);
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let sentence = format!("no storage vol with matching path '{path}'");
            return Err(VolumeError::refused(Refusal::NoVolume, sentence));
        }
        found => found.map_err(cannot_stat)?,
    };
    let kind = found.file_type();
    if kind.is_fifo() || kind.is_socket() {
        let what = if kind.is_fifo() { "FIFO" } else { "socket" };
        return Err(VolumeError::refused(Refusal::Internal, format!("Volume path '{path}' is a {what}")));
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = file.map_err(|source| VolumeError::system(format!("cannot open volume '{path}'"), source))?;
    // The name may stand for something else than a moment ago, or be a link.
    let kind = file.metadata().map_err(cannot_stat)?.file_type();
    match kind.is_file() || kind.is_dir() || kind.is_block_device() {
        true => Ok(file),
        false => Err(VolumeError::refused(Refusal::Internal, format!("unexpected type for file '{path}'"))),
    }
}

fn look(file: &File, path: &str) -> Result<Found> {
    let cannot_stat = |source| VolumeError::system(format!("cannot stat file '{path}'"), source);
    let metadata = file.metadata().map_err(cannot_stat)?;
    let kind = metadata.file_type();
    let (capacity, allocation) = if kind.is_file() {
        (metadata.size(), metadata.blocks().saturating_mul(512))
    } else if kind.is_block_device() {
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0));
        let end = end.map_err(|error| cannot_stat(error.into()))?;
        (end, end)
    } else {
        (0, 0)
    };
    let is_link = std::fs::symlink_metadata(path).map_or(true, |it| it.ino() != metadata.ino());
    Ok(Found {
        probed: if is_link || !kind.is_file() { Probed::Link } else { Probed::File(metadata.ino()) },
        capacity,
        allocation,
        physical: capacity,
        permissions: Permissions {
            mode: Some(metadata.mode() & 0o777),
            owner: Some(metadata.uid()),
            group: Some(metadata.gid()),
            label: label(file),
        },
        timestamps: timestamps(&metadata),
    })
}

fn timestamps(metadata: &std::fs::Metadata) -> Timestamps {
    let nanos = |nanos: i64| u32::try_from(nanos).unwrap_or(0);
    Timestamps {
        accessed: Moment(metadata.atime(), nanos(metadata.atime_nsec())),
        modified: Moment(metadata.mtime(), nanos(metadata.mtime_nsec())),
        changed: Moment(metadata.ctime(), nanos(metadata.ctime_nsec())),
    }
}

/// The SELinux label, where there are such.
fn label(file: &File) -> Option<Box<str>> {
    let mut value = [0; 1024];
    let len = rustix::fs::fgetxattr(file, "security.selinux", &mut value[..]).ok()?;
    let text = value.get(..len)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(Into::into)
}

fn read_header(file: &mut File, path: &str) -> Result<Vec<u8>> {
    use std::io::Seek;
    let cannot = |source| VolumeError::system(format!("cannot read header '{path}'"), source);
    let mut header = Vec::with_capacity(HEADER_LEN);
    file.rewind().map_err(cannot)?;
    file.take(HEADER_LEN as u64).read_to_end(&mut header).map_err(cannot)?;
    Ok(header)
}

/// The names in a directory that volumes can have: no control characters, no other encodings.
pub fn names(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        match std::str::from_utf8(name.as_bytes()) {
            Ok(text) if is_name(text) => names.push(text.to_owned()),
            _ => {
                tracing::warn!(path = %PathBuf::from(directory).join(&name).display(), "not a name for a volume")
            }
        }
    }
    Ok(names)
}

/// Whether a file of this name can be a volume.
pub fn is_name(name: &str) -> bool {
    !name.chars().any(|char| char.is_ascii_control())
}

/// What a directory is as a pool's target.
pub fn directory(path: &str) -> Result<Permissions> {
    let flags = OFlags::DIRECTORY | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = file.map_err(|source| VolumeError::system(format!("cannot open path '{path}'"), source))?;
    look(&file, path).map(|found| found.permissions)
}
