//! Images of a disk as clients name them: by path, by a path beside the image above, by number (`vda[3]`).

use std::path::{Path, PathBuf};

use crate::conf::devices::{Disk, Place, Storage, StorageFormat};
use crate::error::{Error, Origin, Result};
use crate::qemu::block::{Layers, read, read_header};

/// The position of an image in a disk's chain; without a name the last one. `below` limits the search to what is
/// under that position.
pub(super) fn find(disk: &Disk, layers: &Layers, name: Option<&str>, below: Option<usize>) -> Result<usize> {
    let images = layers.images();
    let first = below.map_or(0, |above| above + 1);
    let number = name.and_then(numbered);
    if let Some((target, _)) = number
        && target != disk.name()
    {
        let sentence = format!("requested target '{target}' does not match target '{}'", disk.name());
        return Err(refused(sentence));
    }
    let found = match (name, number) {
        (None, _) => (images.len() > first).then(|| images.len() - 1),
        (_, Some((_, number))) => layers.position(number).filter(|at| *at >= first),
        (Some(name), None) => (first..images.len()).find(|at| is_named(layers, *at, name)),
    };
    let path = |at: usize| images.get(at).and_then(|layer| layer.storage.path()).unwrap_or("(null)");
    found.ok_or_else(|| {
        let disk = disk.name();
        refused(match (name, number, below) {
            (_, Some((_, number)), _) => {
                format!("could not find backing store index '{number}' in chain for '{disk}'")
            }
            (Some(name), None, Some(above)) => {
                let above = path(above);
                format!("could not find image '{name}' beneath '{above}' in chain for '{disk}'")
            }
            (Some(name), None, None) => format!("could not find image '{name}' in chain for '{disk}'"),
            (None, ..) => format!("could not find base image in chain for '{disk}'"),
        })
    })
}

fn refused(sentence: String) -> Error {
    Error::invalid_arg(sentence).from_origin(Origin::STORAGE)
}

/// `vda[3]`
fn numbered(name: &str) -> Option<(&str, u32)> {
    let (target, number) = name.strip_suffix(']')?.split_once('[')?;
    number.parse().ok().filter(|number| *number != 0).map(|number| (target, number))
}

fn is_named(layers: &Layers, at: usize, name: &str) -> bool {
    let path = |at: usize| layers.images().get(at).and_then(|layer| local(&layer.storage));
    let Some(own) = path(at) else { return false };
    if own == name {
        return true;
    }
    let directory = at.checked_sub(1).and_then(path).and_then(|above| Path::new(above).parent());
    let meant = directory.unwrap_or(Path::new(".")).join(name);
    // Whatever links lead there.
    match (meant.canonicalize(), Path::new(own).canonicalize()) {
        (Ok(meant), Ok(own)) => meant == own,
        _ => false,
    }
}

fn local(storage: &Storage) -> Option<&str> {
    match &storage.place {
        Place::File(path) | Place::Block(path) => path.as_deref(),
        _ => None,
    }
}

/// What an image is to call another in its header: the path. Nothing for what is no file: QEMU knows better.
pub(super) fn backing_name(layers: &Layers, at: usize) -> Option<String> {
    layers.images().get(at).and_then(|layer| local(&layer.storage)).map(str::to_owned)
}

/// What an image above `first` is to call the one at `last`, if all from there on call each other by relative names.
/// Reads headers: call it where that may block.
pub(super) fn relative_name(layers: &Layers, first: usize, last: usize) -> Result<String> {
    let lost = || Error::operation_invalid("can't keep relative backing relationship");
    let mut name = PathBuf::new();
    for at in first..=last {
        let above = at.checked_sub(1).and_then(|above| layers.images().get(above)).ok_or_else(lost)?;
        let own = own_name(&above.storage, above.format.kind).ok_or_else(lost)?;
        name = name.parent().unwrap_or(Path::new("")).join(own);
    }
    Ok(name.to_string_lossy().into_owned())
}

/// What an image's header calls the next one, if that is a relative path.
fn own_name(storage: &Storage, format: StorageFormat) -> Option<String> {
    let header = read_header(local(storage)?).ok()?;
    let name = read(format, &header).backing?.name;
    (!name.starts_with('/') && !name.contains(':')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document};

    fn chain(directory: &Path) -> Disk {
        let text = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
            <source file='DIR/top' index='1'/>\
            <backingStore type='file' index='2'><format type='qcow2'/><source file='DIR/mid'/>\
            <backingStore type='file' index='7'><format type='raw'/><source file='DIR/base'/><backingStore/>\
            </backingStore></backingStore><target dev='vda' bus='virtio'/></disk>";
        for name in ["top", "mid", "base"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        read_document(&text.replace("DIR", directory.to_str().unwrap()), "disk", Form::LIVE).unwrap()
    }

    #[test]
    fn images_are_found_by_path_by_relative_path_and_by_number() {
        let directory = tempfile::tempdir().unwrap();
        let disk = chain(directory.path());
        let layers = Layers::of(&disk);
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        for (name, below, expected) in [
            (None, None, 2),
            (None, Some(0), 2),
            (Some("vda[1]".to_owned()), None, 0),
            (Some("vda[7]".to_owned()), Some(0), 2),
            (Some(at("mid")), None, 1),
            (Some("base".to_owned()), Some(0), 2),
            (
                Some("../".to_owned() + directory.path().file_name().unwrap().to_str().unwrap() + "/mid"),
                None,
                1,
            ),
        ] {
            assert_eq!(find(&disk, &layers, name.as_deref(), below).unwrap(), expected, "{name:?}");
        }
        for (name, below, sentence) in [
            (Some("vda[9]"), None, "could not find backing store index '9' in chain for 'vda'".to_owned()),
            (Some("vda[1]"), Some(0), "could not find backing store index '1' in chain for 'vda'".to_owned()),
            (Some("vdb[2]"), None, "requested target 'vdb' does not match target 'vda'".to_owned()),
            (Some("no"), None, "could not find image 'no' in chain for 'vda'".to_owned()),
            (
                Some("no"),
                Some(0),
                format!("could not find image 'no' beneath '{}' in chain for 'vda'", at("top")),
            ),
            (None, Some(2), "could not find base image in chain for 'vda'".to_owned()),
        ] {
            let error = find(&disk, &layers, name, below).unwrap_err();
            assert_eq!(error.message(), format!("invalid argument: {sentence}"));
        }
    }
}
