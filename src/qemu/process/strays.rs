//! Guests that run although no file tells of them any more: found by their command lines.
//!
//! Every QEMU of a daemon is told where its master key is, and so which directory below the daemon's own is its.
//! No other process is; but in a container the same path may be of another directory.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Directories;
use crate::util::file;
use crate::util::process::Process;
use crate::util::uuid::Uuid;

/// The number of a process is shorter.
const MAX_PIDFILE: u64 = 32;

/// A guest of whoever uses these directories.
#[derive(Debug, Clone)]
pub struct Stray {
    pub process: Process,
    pub directory: PathBuf,
    /// From the directory's name.
    pub id: i32,
}

/// All guests of whoever uses these directories, whatever is written about them.
pub fn strays(directories: &Directories) -> io::Result<Vec<Stray>> {
    let prefix = directories.state.join("domain-");
    let mut found: BTreeMap<PathBuf, Stray> = BTreeMap::new();
    for process in Process::with_arguments(prefix.as_os_str().as_bytes())? {
        let Some((directory, id)) =
            process.arguments().ok().and_then(|args| place(&args, &directories.state))
        else {
            continue;
        };
        if !sees(&process, &directories.state) {
            continue;
        }
        let stray = Stray { process, directory: directory.clone(), id };
        // A QEMU that cleans up behind itself has a second process, which is the younger one.
        let age = |stray: &Stray| (stray.process.start_time(), stray.process.pid());
        if found.get(&directory).is_none_or(|known| age(&stray) < age(known)) {
            found.insert(directory, stray);
        }
    }
    Ok(found.into_values().collect())
}

/// Whether a path leads the process to the same directory as the daemon.
fn sees(process: &Process, directory: &Path) -> bool {
    let root = Path::new("/proc").join(process.pid().to_string()).join("root");
    let theirs = root.join(directory.strip_prefix("/").unwrap_or(directory));
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(&theirs).is_some_and(|theirs| identity(directory) == Some(theirs))
}

/// The process that runs this guest already, if there is something left of an earlier run.
pub fn twin(directories: &Directories, name: &str, uuid: Uuid) -> io::Result<Option<u32>> {
    let pidfile = directories.runtime.join(format!("{name}.pid"));
    let noted = match file::read_at_most(&pidfile, MAX_PIDFILE) {
        Ok(text) => String::from_utf8_lossy(&text).trim().parse().ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => None,
    };
    let noted = noted.and_then(|pid| Process::find(pid).ok());
    let all = strays(directories)?.into_iter().map(|stray| stray.process).chain(noted);
    let mut twins = all.filter(|process| runs(process, uuid));
    Ok(twins.next().map(|process| process.pid()))
}

/// Whether a process was started for the guest with this uuid.
fn runs(process: &Process, uuid: Uuid) -> bool {
    let uuid = uuid.to_string();
    let of_it = |pair: &[Vec<u8>]| pair[0] == b"-uuid" && pair[1] == uuid.as_bytes();
    process.arguments().is_ok_and(|arguments| arguments.windows(2).any(of_it))
}

/// The guest's directory `domain-ID-NAME`, and the id.
fn place(arguments: &[Vec<u8>], state: &Path) -> Option<(PathBuf, i32)> {
    let keys = arguments.windows(2).filter(|pair| pair[0] == b"-object");
    keys.filter_map(|pair| {
        let object: Value = serde_json::from_slice(&pair[1]).ok()?;
        let file = Path::new(object.get("file")?.as_str()?);
        let directory = file.parent().filter(|directory| directory.parent() == Some(state))?;
        let (id, _name) = directory.file_name()?.to_str()?.strip_prefix("domain-")?.split_once('-')?;
        Some((directory.to_owned(), id.parse().ok()?))
    })
    .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_place_is_where_its_key_is() {
        let state = Path::new("/var/lib/libvirt/qemu");
        let place_of = |words: &[&str]| {
            let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            place(&words, state)
        };
        let key = |file: &str| {
            format!(r#"{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{file}"}}"#)
        };
        let found = Some((state.join("domain-7-a-b"), 7));
        assert_eq!(
            place_of(&["qemu", "-object", &key("/var/lib/libvirt/qemu/domain-7-a-b/master-key.aes")]),
            found
        );
        for other in [
            "/var/lib/libvirt/qemu/domain-7-a/b/key",
            "/elsewhere/domain-7-a/key",
            "/var/lib/libvirt/qemu/domain-x-a/key",
        ] {
            assert_eq!(place_of(&["qemu", "-object", &key(other)]), None, "{other}");
        }
        assert_eq!(place_of(&["sh", "-c", &key("/var/lib/libvirt/qemu/domain-7-a-b/master-key.aes")]), None);
    }
}
