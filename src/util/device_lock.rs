//! Lock files of terminals, as the Filesystem Hierarchy Standard has them: `/var/lock/LCK.._pts_3` with the number of
//! the process that has the terminal open, ten characters wide, and the end of a line. Other programs that talk to
//! terminals, libvirt's own daemon among them, keep away from one whose file names a process that lives.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use thiserror::Error;

use super::pidfile;
use super::reason::Reason;

/// Why a terminal is not ours.
#[derive(Debug, Error)]
pub enum DeviceLockError {
    #[error("Requested device '{device}' is locked by lock file '{}' held by process {pid}", path.display())]
    Held { device: Box<str>, path: PathBuf, pid: u32 },
    #[error("Couldn't create lock file for device '{device}' in path '{}': {}", path.display(), Reason(source))]
    Io { device: Box<str>, path: PathBuf, source: io::Error },
}

/// A terminal that this process has; given back when dropped.
#[derive(Debug)]
pub struct DeviceLock {
    path: PathBuf,
}

impl DeviceLock {
    /// Takes a device; a file that a dead process left is replaced. `None` where nobody could have one: the host has
    /// no such directory, or this user may not write there.
    pub fn take(directory: &Path, device: &str) -> Result<Option<Self>, DeviceLockError> {
        let path = directory.join(name(device));
        if let Some(pid) = pidfile::read(&path).filter(|pid| lives(*pid)) {
            return Err(DeviceLockError::Held { device: device.into(), path, pid });
        }
        let written = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => write(&path),
        };
        match written {
            Ok(()) => Ok(Some(Self { path })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && !rustix::process::geteuid().is_root() =>
            {
                Ok(None)
            }
            Err(source) => Err(DeviceLockError::Io { device: device.into(), path, source }),
        }
    }
}

impl Drop for DeviceLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock file of a terminal stays behind");
        }
    }
}

fn name(device: &str) -> String {
    let name = device.strip_prefix("/dev").unwrap_or(device);
    format!("LCK..{}", name.replace('/', "_"))
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    writeln!(file, "{:>10}", std::process::id()).inspect_err(|_| {
        // Half a number would be somebody else's.
        let _ = fs::remove_file(path);
    })
}

fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // Another user's process is one as well.
    pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_locked_by_one_process_that_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("LCK.._pts_3");
        let lock = DeviceLock::take(directory.path(), "/dev/pts/3").unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{:>10}\n", std::process::id()));
        let error = DeviceLock::take(directory.path(), "/dev/pts/3").unwrap_err().to_string();
        let held = format!("held by process {}", std::process::id());
        assert!(error.ends_with(&held) && error.contains("'/dev/pts/3' is locked by lock file"), "{error}");
        drop(lock);
        assert!(!path.exists());
        // Above every process: whoever it was is gone.
        for stale in [" 999999999\n", "", "nobody\n"] {
            fs::write(&path, stale).unwrap();
            drop(DeviceLock::take(directory.path(), "/dev/pts/3").unwrap().unwrap());
        }
        assert!(DeviceLock::take(Path::new("/nonexistent"), "/dev/pts/3").unwrap().is_none());
        assert!(matches!(
            DeviceLock::take(Path::new("/proc"), "/dev/pts/3"),
            Ok(None) | Err(DeviceLockError::Io { .. })
        ));
    }
}
