//! Keeps the logs of running guests bounded.
//!
//! QEMU has its log open and goes on writing to it, so a log that has grown large is copied to `NAME.log.0` and
//! emptied in place; as QEMU appends, its next line is the first of the emptied file. What it writes
//! between the copy and the cut is lost, which only a guest that floods its log comes to feel.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::log;
use crate::util::{fds, file};

/// Between two looks: a guest that writes all the time does not keep the daemon busy.
const PAUSE: Duration = Duration::from_millis(100);

/// What has happened in the directory since the last look.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    These(Vec<PathBuf>),
    /// More than the kernel remembers.
    Any,
}

/// Cuts the logs in a directory whenever one has grown large. Returns only when that cannot go on.
pub async fn keep_bounded(directory: PathBuf) -> io::Result<()> {
    file::make_directory(&directory, 0o755)?;
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, &directory, WatchFlags::MODIFY | WatchFlags::ONLYDIR)?;
    let watch = fds::wait_readable(watch)?;
    // Guests wrote while no daemon looked.
    let mut written = Written::Any;
    loop {
        let place = directory.clone();
        tokio::task::spawn_blocking(move || cut_large(&place, written)).await?;
        tokio::time::sleep(PAUSE).await;
        let mut ready = watch.readable().await?;
        written = read_events(&watch, &directory)?;
        ready.clear_ready();
    }
}

fn read_events(watch: &AsyncFd<OwnedFd>, directory: &Path) -> io::Result<Written> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watch.get_ref(), &mut buffer);
    let (mut paths, mut lost) = (Vec::new(), false);
    loop {
        match reader.next() {
            Ok(event) => match event.file_name() {
                Some(name) => {
                    let path = directory.join(OsStr::from_bytes(name.to_bytes()));
                    if !paths.contains(&path) {
                        paths.push(path);
                    }
                }
                None => lost = true,
            },
            Err(Errno::WOULDBLOCK) if lost => return Ok(Written::Any),
            Err(Errno::WOULDBLOCK) => return Ok(Written::These(paths)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn cut_large(directory: &Path, written: Written) {
    let paths = match written {
        Written::These(paths) => paths,
        Written::Any => {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
        }
    };
    for path in paths.iter().filter(|path| path.extension() == Some(OsStr::new("log"))) {
        if let Err(error) = log::cut_if_large(path) {
            tracing::warn!(path = %path.display(), %error, "cannot cut a log");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_log_that_is_written_to_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.log");
        let kept = directory.path().join("a.log.0");
        let mut qemu = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let large = vec![b'x'; 2 << 20];
        qemu.write_all(&large).unwrap();
        fs::write(directory.path().join("large.txt"), &large).unwrap();
        let bounded = tokio::spawn(keep_bounded(directory.path().to_owned()));
        // First what has grown before, then what grows meanwhile.
        for round in 0..3 {
            let cut = async {
                while fs::metadata(&path).unwrap().len() > 100 || !kept.exists() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), cut).await.unwrap();
            writeln!(qemu, "round {round}").unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("round {round}\n"), "appended at the new end");
            fs::remove_file(&kept).unwrap();
            qemu.write_all(&large).unwrap();
        }
        bounded.abort();
        assert_eq!(fs::metadata(directory.path().join("large.txt")).unwrap().len(), 2 << 20);
    }
}
