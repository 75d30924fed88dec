//! Nobody else changes the owners of these files meanwhile: the lock that libvirt's daemons take, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use super::SecurityError;

/// Where in a file the lock lies; QEMU's own lie elsewhere.
const OFFSET: libc::off_t = 1;
const LENGTH: libc::off_t = 1;

/// Whoever holds it only changes owners.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// The files that are locked, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Locks(Vec<(PathBuf, File)>);

impl Locks {
    /// Locks `paths`, which may come several times, always in the same order. Files that are not there, directories,
    /// sockets and files of file systems that let nobody lock are left out.
    pub(super) fn take<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Self, SecurityError> {
        let mut paths: Vec<&Path> = paths.collect();
        paths.sort_unstable();
        paths.dedup();
        let mut locks = Self::default();
        for path in paths {
            if let Some(file) = open(path)? {
                wait(&file, path)?;
                locks.0.push((path.to_owned(), file));
            }
        }
        Ok(locks)
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.iter().any(|(locked, _)| locked == path)
    }
}

fn open(path: &Path) -> Result<Option<File>, SecurityError> {
    let Ok(found) = std::fs::metadata(path) else { return Ok(None) };
    if found.is_dir() || found.file_type().is_socket() {
        return Ok(None);
    }
    // A serial port without a cable, or a pipe, must not keep anybody waiting.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem || is_shared(path) => Ok(None),
        Err(source) => Err(SecurityError::system(format!("unable to open {}", path.display()), source)),
    }
}

fn wait(file: &File, path: &Path) -> Result<(), SecurityError> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: OFFSET,
        l_len: LENGTH,
        l_pid: 0,
    };
    let begin = Instant::now();
    loop {
        // Of the open file, not of the process: threads of this one exclude each other, too.
        let source = match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) if begin.elapsed() < LIMIT => {
                pause();
                continue;
            }
            Err(error) => error.into(),
        };
        let sentence = format!("unable to lock {} for metadata change", path.display());
        return Err(SecurityError::system(sentence, source));
    }
}

/// The kernel tells nobody of the end of a lock but who waits for it without a limit.
fn pause() {
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut [], Some(&pause));
}

/// Whether other hosts may have the file, too; their servers may grant root nothing.
pub(super) fn is_shared(path: &Path) -> bool {
    /// NFS, SMB, CIFS, SMB2, AFS, Ceph, GFS2, OCFS2, FUSE (GlusterFS and others), GPFS, ACFS.
    const SHARED: [u32; 11] = [
        0x6969,
        0x517B,
        0xFF53_4D42,
        0xFE53_4D42,
        0x6B41_4653,
        0x00C3_6400,
        0x0116_1970,
        0x7461_636F,
        0x6573_5546,
        0x4750_4653,
        0x6163_6673,
    ];
    rustix::fs::statfs(path).is_ok_and(|found| SHARED.contains(&(found.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_locked_for_everybody_else() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        std::fs::write(&one, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let missing = directory.path().join("missing");
        let paths = [&*one, &*other, &*one, &*missing, directory.path()];
        let locks = Locks::take(paths.into_iter()).unwrap();
        assert!(locks.has(&one) && locks.has(&other) && !locks.has(&missing) && !locks.has(directory.path()));
        let (says, hears) = std::sync::mpsc::channel();
        let second = one.clone();
        let waiter = std::thread::spawn(move || {
            let taken = Locks::take([&*second].into_iter()).unwrap();
            says.send(taken.has(&second)).unwrap();
        });
        assert!(hears.recv_timeout(Duration::from_millis(20)).is_err(), "it is locked");
        drop(locks);
        assert!(hears.recv_timeout(LIMIT).unwrap());
        waiter.join().unwrap();
    }
}
