//! Following an image down to the last one it stands on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use thiserror::Error;

use super::Passed;
use super::probe::{self, HEADER_LEN};
use crate::conf::devices::{Backing, Disk, DiskDevice, Layer, LayerFormat, Place, Storage, StorageFormat};
use crate::util::accounts::{Ids, as_user};
use crate::util::reason::Reason;

/// Chains are not longer than this.
const MAX_DEPTH: usize = 200;

/// Why a disk's images cannot be used. The texts are libvirt's.
#[derive(Debug, Error)]
pub enum StorageError {
    /// `VIR_ERR_SYSTEM_ERROR`, from the storage driver.
    #[error("Cannot access storage file '{path}'{}: {}", Credentials(credentials), Reason(source))]
    Missing { path: String, credentials: Option<(u32, u32)>, source: io::Error },
    /// `VIR_ERR_SYSTEM_ERROR`, from the storage driver.
    #[error(
        "Cannot access backing file '{path}' of storage file '{top}'{}: {}",
        Credentials(credentials),
        Reason(source)
    )]
    MissingBacking { path: String, top: String, credentials: Option<(u32, u32)>, source: io::Error },
    /// `VIR_ERR_OPERATION_INVALID`, from the storage driver.
    #[error(
        "format of backing image '{backing}' of image '{image}' was not specified in the image metadata \
         (See https://libvirt.org/kbase/backing_chains.html for troubleshooting)"
    )]
    UnknownFormat { backing: String, image: String },
    /// `VIR_ERR_INTERNAL_ERROR`, from the storage driver.
    #[error("backing store for {path} is self-referential or too deeply nested")]
    TooDeep { path: String },
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    #[error("{message}")]
    Unsupported { message: String },
}

struct Credentials<'a>(&'a Option<(u32, u32)>);

impl std::fmt::Display for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((user, group)) => write!(f, " (as uid:{user}, gid:{group})"),
            None => Ok(()),
        }
    }
}

impl StorageError {
    /// Whether somebody may not see an image that may be there.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Missing { source, .. } | Self::MissingBacking { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}

/// Who looks at the images: this daemon, and whether QEMU's user finds them, too.
#[derive(Debug, Clone, Copy)]
struct Reader<'a>(Ids, &'a Passed);

/// Checks that the images of `disk` are there, also for `user` where QEMU is not to run as this daemon's, and adds
/// those that they name themselves. Reads files: call it where that may block.
pub fn detect_chain(disk: &mut Disk, user: Option<Ids>, passed: &Passed) -> Result<(), StorageError> {
    let reader = Reader(user.unwrap_or_else(Ids::own), passed);
    let format = disk.format();
    let top = match &disk.storage.place {
        Place::File(Some(path)) | Place::Block(Some(path)) => path.to_string(),
        _ => return Ok(()),
    };
    if !format.has_backing() {
        if disk.storage.backing.is_none() {
            end_chain(&mut disk.storage);
        }
        if disk.storage.fdgroup.is_none() {
            std::fs::metadata(&top).map_err(|source| missing(&top, &top, None, source))?;
        }
        disk.storage.is_host_cdrom = disk.device == DiskDevice::Cdrom && is_cdrom_drive(&disk.storage.place);
        return Ok(());
    }
    let mut image = (&mut disk.storage, format);
    let mut depth = 1;
    // What the definition names must be there; it may also say that the chain ends.
    while matches!(image.0.backing.as_deref(), Some(Backing::Layer(_))) {
        if let Some(path) = local_path(&image.0.place).filter(|_| image.0.fdgroup.is_none()) {
            reader.find(path).map_err(|source| missing(path, &top, reader.credentials(), source))?;
        }
        depth += 1;
        image = match image.0.backing.as_deref_mut() {
            Some(Backing::Layer(layer)) => (&mut layer.storage, layer.format.kind),
            _ => return Ok(()),
        };
    }
    while image.0.backing.is_none() {
        if depth > MAX_DEPTH {
            let path = image.0.path().unwrap_or_default().to_owned();
            return Err(StorageError::TooDeep { path });
        }
        image = match descend(image.0, image.1, &top, reader)? {
            Some(next) => next,
            None => return Ok(()),
        };
        depth += 1;
    }
    Ok(())
}

/// Puts below `storage` what its header names; the answer is the new image, or nothing at the end.
fn descend<'a>(
    storage: &'a mut Storage,
    format: StorageFormat,
    top: &str,
    reader: Reader<'_>,
) -> Result<Option<(&'a mut Storage, StorageFormat)>, StorageError> {
    let Some(path) = local_path(&storage.place).map(str::to_owned) else { return Ok(None) };
    if !format.has_backing() {
        if storage.fdgroup.is_none() {
            reader.find(&path).map_err(|source| missing(&path, top, reader.credentials(), source))?;
        }
        end_chain(storage);
        return Ok(None);
    }
    let found = match &storage.fdgroup {
        Some(group) => reader.passed(group),
        None => reader.header(&path),
    };
    let found = found.map_err(|source| missing(&path, top, reader.credentials(), source))?;
    let header = probe::read(format, &found);
    if header.has_data_file {
        let message = format!("image '{path}' keeps its data in another file, which is not supported");
        return Err(StorageError::Unsupported { message });
    }
    let Some(backing) = header.backing else {
        end_chain(storage);
        return Ok(None);
    };
    let place = place_of(&backing.name, &path)?;
    let kind = match backing.format {
        Some(kind) => kind,
        None => guess_format((&place, &backing.name), &path, top, reader)?,
    };
    let layer = Layer { format: LayerFormat { kind, metadata_cache: None }, storage: Storage::new(place) };
    storage.backing = Some(Box::new(Backing::Layer(layer)));
    storage.backing_detected = true;
    Ok(match storage.backing.as_deref_mut() {
        Some(Backing::Layer(layer)) => Some((&mut layer.storage, layer.format.kind)),
        _ => None,
    })
}

/// An image whose format nobody tells is taken for what it looks like, unless it then names a further one:
/// a guest could have written that name.
fn guess_format(
    (place, name): (&Place, &str),
    image: &str,
    top: &str,
    reader: Reader<'_>,
) -> Result<StorageFormat, StorageError> {
    let Some(path) = local_path(place) else { return Ok(StorageFormat::Raw) };
    let header = reader.header(path).map_err(|source| missing(path, top, reader.credentials(), source))?;
    let format = probe::probe(&header);
    if probe::read(format, &header).backing.is_some() {
        return Err(StorageError::UnknownFormat { backing: name.to_owned(), image: image.to_owned() });
    }
    Ok(format)
}

fn end_chain(storage: &mut Storage) {
    storage.backing = Some(Box::new(Backing::End));
    storage.backing_detected = true;
}

fn local_path(place: &Place) -> Option<&str> {
    match place {
        Place::File(path) | Place::Block(path) => path.as_deref(),
        _ => None,
    }
}

/// Whether QEMU must speak to a drive of the host, whose medium can change.
fn is_cdrom_drive(place: &Place) -> bool {
    const SCSI_CDROM_MAJOR: u32 = 11;
    let Place::Block(Some(path)) = place else { return false };
    std::fs::metadata(&**path).is_ok_and(|found| rustix::fs::major(found.rdev()) == SCSI_CDROM_MAJOR)
}

impl Reader<'_> {
    fn credentials(self) -> Option<(u32, u32)> {
        Some((self.0.user, self.0.group))
    }

    /// Whether the user finds an image: he need not be able to read it before it is given to him.
    fn find(self, path: &str) -> io::Result<()> {
        as_user(self.0, || std::fs::metadata(path).map(drop))
    }

    fn passed(self, group: &str) -> io::Result<Vec<u8>> {
        self.1.get(group).map_or_else(|| Err(io::ErrorKind::NotFound.into()), |group| group.header())
    }

    /// On a server that grants root nothing, only the user can read it.
    fn header(self, path: &str) -> io::Result<Vec<u8>> {
        self.find(path)?;
        match read_header(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                as_user(self.0, || read_header(path))
            }
            header => header,
        }
    }
}

/// The first bytes of an image, as many as say what it is.
pub fn read_header(path: &str) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    // A pipe that nobody writes to is an empty image, not a start that waits for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    file.take(HEADER_LEN as u64).read_to_end(&mut header)?;
    Ok(header)
}

fn missing(path: &str, top: &str, credentials: Option<(u32, u32)>, source: io::Error) -> StorageError {
    match path == top {
        true => StorageError::Missing { path: path.to_owned(), credentials, source },
        false => {
            StorageError::MissingBacking { path: path.to_owned(), top: top.to_owned(), credentials, source }
        }
    }
}

/// The file that a backing file's name stands for, seen from the image above it.
fn place_of(name: &str, image: &str) -> Result<Place, StorageError> {
    let unsupported = || {
        let message = format!("backing file '{name}' of image '{image}' is not a file of this host");
        StorageError::Unsupported { message }
    };
    let path = match name.strip_prefix("json:") {
        Some(json) => json_path(json).ok_or_else(unsupported)?,
        None => {
            let name = name.strip_prefix("file:").unwrap_or(name);
            // A colon before the first slash makes it a protocol.
            let is_protocol = name.split('/').next().is_some_and(|start| start.contains(':'));
            if is_protocol {
                return Err(unsupported());
            }
            name.to_owned()
        }
    };
    let path = match (Path::new(&path).is_absolute(), Path::new(image).parent()) {
        (false, Some(directory)) => directory.join(&path).display().to_string(),
        _ => path,
    };
    let is_block = std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
    Ok(match is_block {
        true => Place::Block(Some(path.into())),
        false => Place::File(Some(path.into())),
    })
}

/// The path in QEMU's JSON notation, flat or nested.
fn json_path(json: &str) -> Option<String> {
    let mut value: serde_json::Value = serde_json::from_str(json).ok()?;
    while let Some(inner) = value.get_mut("file") {
        if inner.is_string() {
            return None;
        }
        value = inner.take();
    }
    let driver = value.get("driver").or(value.get("file.driver"));
    let is_file = driver.is_none_or(|driver| matches!(driver.as_str(), Some("file" | "host_device")));
    let path = value.get("filename").or(value.get("file.filename"))?.as_str()?;
    is_file.then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document, write_document};

    /// A qcow2 image of no size that stands on `backing`.
    fn image(path: &Path, backing: &str, format: Option<&str>) {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
        bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
        if let Some(format) = format {
            bytes.extend(0xE279_2ACAu32.to_be_bytes());
            bytes.extend(u32::try_from(format.len()).unwrap().to_be_bytes());
            bytes.extend(format.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend([0; 8]);
        if !backing.is_empty() {
            let offset = u64::try_from(bytes.len()).unwrap();
            bytes[8..16].copy_from_slice(&offset.to_be_bytes());
            bytes[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
            bytes.extend(backing.as_bytes());
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn disk(format: &str, path: &Path, below: &str) -> Disk {
        let path = path.display();
        let text = format!(
            "<disk><driver name='qemu' type='{format}'/><source file='{path}'/>{below}<target dev='vda'/></disk>"
        );
        read_document(&text, "disk", Form::INACTIVE).unwrap()
    }

    fn chain_of(disk: &Disk) -> Vec<(String, &'static str)> {
        let directory = Path::new(disk.storage.path().unwrap()).parent().unwrap().to_owned();
        let layers = disk.storage.layers();
        layers
            .map(|layer| {
                let path = Path::new(layer.storage.path().unwrap());
                let path = path.strip_prefix(&directory).unwrap().display().to_string();
                (path, layer.format.kind.as_str())
            })
            .collect()
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        image(&at("top"), "mid", Some("qcow2"));
        let json = format!(
            r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#,
            at("base").display()
        );
        image(&at("mid"), &json, Some("raw"));
        image(&at("base"), "/etc/shadow", Some("qcow2"));
        let mut detected = disk("qcow2", &at("top"), "");
        detect_chain(&mut detected, None, &Passed::new()).unwrap();
        // What a guest wrote to a raw image is not believed.
        assert_eq!(chain_of(&detected), [("mid".to_owned(), "qcow2"), ("base".to_owned(), "raw")]);
        let inactive = write_document(&detected, "disk", Form::INACTIVE);
        assert!(!inactive.contains("backingStore"), "{inactive}");
        let live = write_document(&detected, "disk", Form::LIVE);
        assert!(live.contains("<backingStore/>"), "{live}");

        let mut ended = disk("qcow2", &at("top"), "<backingStore/>");
        detect_chain(&mut ended, None, &Passed::new()).unwrap();
        assert_eq!(chain_of(&ended), []);
        let mut raw = disk("raw", &at("top"), "");
        detect_chain(&mut raw, None, &Passed::new()).unwrap();
        assert_eq!(chain_of(&raw), []);
    }

    #[test]
    fn a_broken_chain_is_refused_in_libvirts_words() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let refusal = |mut disk: Disk| detect_chain(&mut disk, None, &Passed::new()).unwrap_err().to_string();
        let (here, Ids { user, group }) = (directory.path().display(), Ids::own());
        assert_eq!(
            refusal(disk("raw", &at("none"), "")),
            format!("Cannot access storage file '{here}/none': No such file or directory")
        );
        image(&at("orphan"), "none", Some("qcow2"));
        assert_eq!(
            refusal(disk("qcow2", &at("orphan"), "")),
            format!(
                "Cannot access backing file '{here}/none' of storage file '{here}/orphan' \
                 (as uid:{user}, gid:{group}): No such file or directory"
            )
        );
        image(&at("loop"), "loop", Some("qcow2"));
        let message = refusal(disk("qcow2", &at("loop"), ""));
        assert_eq!(
            message,
            format!("backing store for {here}/loop is self-referential or too deeply nested")
        );
        image(&at("vague"), "orphan", None);
        let message = refusal(disk("qcow2", &at("vague"), ""));
        assert!(
            message.starts_with(&format!("format of backing image 'orphan' of image '{here}/vague' was not")),
            "{message}"
        );
        image(&at("remote"), "nbd://host/export", Some("raw"));
        let message = refusal(disk("qcow2", &at("remote"), ""));
        assert!(message.contains("is not a file of this host"), "{message}");
    }
}
