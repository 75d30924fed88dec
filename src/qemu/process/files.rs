//! The files of one running guest: a directory for its monitor and keys, one for its channels, a pid file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{StartError, monitor_path};
use crate::qemu::hugepages;
use crate::util::paths::Paths;
use crate::util::{file, unix};

/// How much of a guest's name goes into the names of its directories: socket paths are short.
const SHORT_NAME_CHARS: usize = 20;

/// Where running guests have their files.
#[derive(Debug, Clone)]
pub struct Directories {
    /// `domain-ID-NAME` directories.
    pub state: PathBuf,
    /// Pid files; sockets of channels in `channel/ID-NAME`.
    pub runtime: PathBuf,
    pub log: PathBuf,
}

impl Directories {
    pub fn new(paths: &Paths) -> Self {
        Self { state: paths.qemu_state(), runtime: paths.qemu_runtime(), log: paths.qemu_log() }
    }
}

/// `ID-NAME` with a name of at most 20 characters.
pub fn short_name(id: i32, name: &str) -> String {
    format!("{id}-{}", name.chars().take(SHORT_NAME_CHARS).collect::<String>())
}

/// The files that exist as long as a guest runs. Dropping this removes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `STATE/domain-ID-NAME`
    pub directory: PathBuf,
    /// `RUNTIME/channel/ID-NAME`
    pub channels: PathBuf,
    /// `STATE/ram/ID-NAME`, made only for guests whose memory is in files.
    pub memory: PathBuf,
    /// `RUNTIME/NAME.pid`
    pub pidfile: PathBuf,
    /// Where the guest's log is.
    pub logs: PathBuf,
    /// The socket of its monitor: in the first of the directories, unless somebody else started it.
    pub monitor: PathBuf,
    pub language: Language,
}

/// What is spoken at a guest's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    #[default]
    Qmp,
    /// The words of QEMU's monitor for humans: somebody else started this guest.
    Human,
}

impl Files {
    pub fn new(directories: &Directories, id: i32, name: &str) -> Self {
        Self::of(directories, &short_name(id, name), name)
    }

    /// Removes those of a guest of which there is nothing but its directory; its name is perhaps not all there.
    pub fn remove_left_in(directories: &Directories, directory: &Path) -> io::Result<()> {
        let name = directory.file_name().and_then(OsStr::to_str);
        let short = name.and_then(|name| name.strip_prefix("domain-")).and_then(|short| {
            let (_, name) = short.split_once('-')?;
            Some((short, name))
        });
        short.map_or(Ok(()), |(short, name)| Self::of(directories, short, name).remove_directories())
    }

    fn of(directories: &Directories, short: &str, name: &str) -> Self {
        let directory = directories.state.join(format!("domain-{short}"));
        Self {
            monitor: monitor_path(&directory),
            language: Language::Qmp,
            directory,
            channels: directories.runtime.join("channel").join(short),
            memory: directories.state.join("ram").join(short),
            pidfile: directories.runtime.join(format!("{name}.pid")),
            logs: directories.log.clone(),
        }
    }

    pub fn monitor(&self) -> PathBuf {
        self.monitor.clone()
    }

    /// Removes them, once the process is gone. Tries all; answers the first failure.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_directories().and(file::remove_if_there(&self.pidfile))
    }

    /// The same without what has only the guest's name, and may be that of a later run.
    fn remove_directories(&self) -> io::Result<()> {
        let own = [&self.directory, &self.channels, &self.memory].into_iter().cloned();
        let pages = self.memory.file_name().into_iter().flat_map(|short| {
            hugepages::mounted().into_iter().map(move |mounted| mounted.guest_directory(short))
        });
        own.chain(pages).map(|path| file::remove_tree_if_there(&path)).fold(Ok(()), io::Result::and)
    }
}

/// A guest's files and descriptors before it is started; removed when this is dropped.
#[derive(Debug)]
pub struct Prepared {
    pub(super) name: String,
    pub(super) files: Guard,
    pub(super) passed: Vec<OwnedFd>,
    monitor: i32,
}

/// Removes the files when dropped, unless they were taken.
#[derive(Debug)]
pub(super) struct Guard(Option<Files>);

impl Guard {
    pub(super) fn files(&self) -> &Files {
        #[expect(clippy::expect_used, reason = "taken by `take` and `drop` only, which end the guard")]
        self.0.as_ref().expect("a guard holds its files")
    }

    pub(super) fn take(mut self) -> Files {
        #[expect(clippy::expect_used, reason = "taken here and in `drop` only, which end the guard")]
        self.0.take().expect("a guard holds its files")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(files) = self.0.take()
            && let Err(error) = files.remove()
        {
            tracing::warn!("cannot remove the files of a guest that did not start: {error}");
        }
    }
}

impl Prepared {
    /// Makes the directories and the monitor's listening socket. What an earlier guest left under the same
    /// names is removed.
    pub fn new(directories: &Directories, id: i32, name: &str) -> Result<Self, StartError> {
        let files = Files::new(directories, id, name);
        files.remove().map_err(|error| StartError::file(&files.directory, error))?;
        let guard = Guard(Some(files.clone()));
        for (directory, mode) in [
            (&files.directory, 0o750),
            (&files.channels, 0o750),
            (&files.logs, 0o755),
            (&directories.runtime, 0o755),
        ] {
            file::make_directory(directory, mode).map_err(|error| StartError::file(directory, error))?;
        }
        let mut prepared = Self { name: name.to_owned(), files: guard, passed: Vec::new(), monitor: -1 };
        prepared.monitor = prepared.listen(&files.monitor())?;
        Ok(prepared)
    }

    pub fn files(&self) -> &Files {
        self.files.files()
    }

    /// The number of the monitor's listening socket in QEMU:
    /// `-chardev socket,id=charmonitor,fd=NUMBER,server=on,wait=off`.
    pub fn monitor_fd(&self) -> i32 {
        self.monitor
    }

    /// Makes a listening unix socket that QEMU inherits; answers its number there. Made by the daemon, it is
    /// there before QEMU is, and QEMU needs no right to its directory.
    pub fn listen(&mut self, path: &Path) -> Result<i32, StartError> {
        Ok(self.pass(listen_at(path)?))
    }

    /// Lets QEMU inherit a descriptor; answers its number there.
    pub fn pass(&mut self, descriptor: OwnedFd) -> i32 {
        let number = descriptor.as_raw_fd();
        self.passed.push(descriptor);
        number
    }
}

/// A listening unix socket for QEMU, whose user may connect to it.
pub fn listen_at(path: &Path) -> Result<OwnedFd, StartError> {
    let made = (|| {
        remove_socket(path)?;
        let listener = unix::listen(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o775))?;
        Ok(listener)
    })();
    made.map(Into::into).map_err(|error| StartError::file(path, error))
}

/// Only a socket may be in the way: a path that a client gave may be that of a disk.
fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(rustix::io::Errno::EXIST.into()),
        _ => file::remove_if_there(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(root: &Path) -> Directories {
        Directories::new(&Paths::system(root))
    }

    #[test]
    fn names_are_shortened_by_characters() {
        assert_eq!(short_name(1, "a-rather-long-guest-name"), "1-a-rather-long-guest-");
        assert_eq!(short_name(7, "äöüäöüäöüäöüäöüäöüäöüäöü"), "7-äöüäöüäöüäöüäöüäöüäö");
    }

    #[test]
    fn a_socket_takes_the_place_of_a_socket_and_of_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let mut prepared = Prepared::new(&directories(root.path()), 1, "guest").unwrap();
        let (socket, disk) = (root.path().join("socket"), root.path().join("disk"));
        prepared.listen(&socket).unwrap();
        prepared.listen(&socket).unwrap();
        std::fs::write(&disk, "years of work").unwrap();
        let error = prepared.listen(&disk).unwrap_err();
        assert!(error.to_string().starts_with("cannot create '"), "{error}");
        assert_eq!(std::fs::read_to_string(&disk).unwrap(), "years of work");
    }

    #[test]
    fn what_is_prepared_and_not_started_goes_away() {
        let root = tempfile::tempdir().unwrap();
        let directories = directories(root.path());
        let prepared = Prepared::new(&directories, 1, "guest").unwrap();
        let files = prepared.files().clone();
        assert!(files.monitor().exists() && files.channels.exists());
        // A left-over of the same name is in nobody's way.
        drop(Prepared::new(&directories, 1, "guest").unwrap());
        drop(prepared);
        assert!(!files.directory.exists() && !files.channels.exists());
    }
}
