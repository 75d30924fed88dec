//! Pid files: one line that says which process serves a directory, locked by that process.
//!
//! The lock is an open file description lock on the whole file. It conflicts with the record locks that
//! libvirt's own daemons take on theirs, so the two never serve the same directory, and it ends with the
//! process, however that dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use thiserror::Error;

use super::reason::Reason;

/// Why a pid file could not be had.
#[derive(Debug, Error)]
pub enum PidFileError {
    /// Another process holds it; its number, if it has written one already.
    #[error("{} is held by {}", path.display(), holder(pid))]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("cannot write pid file {}: {}", path.display(), Reason(source))]
    Io { path: PathBuf, source: io::Error },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// A held pid file; removed and released when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Locks `path` and writes this process's number into it.
    pub fn acquire(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        let mut file = loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(failed)?;
            if !lock(&file).map_err(failed)? {
                return Err(PidFileError::Held { path: path.to_owned(), pid: read(path) });
            }
            // A holder that just ended removed the file we opened: what we locked has no name any more.
            if is_same(&file, path).map_err(failed)? {
                break file;
            }
        };
        let written = (|| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        })();
        written.map_err(failed)?;
        Ok(Self { path: path.to_owned(), _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The number in a pid file, if there is one.
pub fn read(path: &Path) -> Option<u32> {
    let content = super::file::read_at_most(path, 64).ok()?;
    std::str::from_utf8(&content).ok()?.trim_ascii().parse().ok()
}

/// Whether we have the lock now; `false` when someone else has it.
fn lock(file: &File) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_learns_the_first_ones_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ferrovirtd.pid");
        std::fs::write(&path, "4000000000000 left over by a crash").unwrap();
        let held = PidFile::acquire(&path).unwrap();
        assert_eq!(read(&path), Some(std::process::id()));
        let error = PidFile::acquire(&path).unwrap_err();
        assert!(matches!(error, PidFileError::Held { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().ends_with(&format!("is held by process {}", std::process::id())));
        drop(held);
        assert!(!path.exists());
        PidFile::acquire(&path).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_says_so() {
        let error = PidFile::acquire(Path::new("/no/such/dir/x.pid")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write pid file /no/such/dir/x.pid: No such file or directory");
    }
}
