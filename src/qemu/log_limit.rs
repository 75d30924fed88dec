//! Keeps the logs of running guests bounded, and the files that their serial ports and the like write to.
//!
//! QEMU has such a file open and goes on writing to it, so one that has grown large is copied to `NAME.0` and
//! emptied in place; as QEMU appends, its next line is the first of the emptied file. What it writes
//! between the copy and the cut is lost, which only a guest that floods its log comes to feel.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::log;
use crate::util::{fds, file};

/// Between two looks: a guest that writes all the time does not keep the daemon busy.
const PAUSE: Duration = Duration::from_millis(100);

/// What a change in the directory is, or in a file.
const WRITTEN: WatchFlags = WatchFlags::MODIFY;

/// What has been written to since the last look.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    These(Vec<PathBuf>),
    /// More than the kernel remembers.
    Any,
}

/// What becomes of what a guest's serial ports and the like write to files: `stdio_handler`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StdioHandler {
    /// The files are kept bounded, as libvirt's log daemon does.
    #[default]
    Logd,
    /// They grow as they like.
    File,
}

/// Files outside the directory of logs that guests write to.
#[derive(Debug, Default)]
pub struct Files {
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Once somebody looks.
    eye: Option<OwnedFd>,
    files: Vec<Watch>,
}

#[derive(Debug)]
struct Watch {
    /// Of the kernel's, once it watches.
    number: Option<i32>,
    path: PathBuf,
    guest: Arc<str>,
}

impl Watched {
    fn begin(&mut self) {
        let Some(eye) = &self.eye else { return };
        for watch in self.files.iter_mut().filter(|watch| watch.number.is_none()) {
            match inotify::add_watch(eye, &watch.path, WRITTEN) {
                Ok(number) => watch.number = Some(number),
                Err(error) => {
                    tracing::warn!(path = %watch.path.display(), %error, "the file is not kept bounded");
                }
            }
        }
        self.files.retain(|watch| watch.number.is_some());
    }
}

impl Files {
    fn update<R>(&self, change: impl FnOnce(&mut Watched) -> R) -> R {
        change(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this file is bounded, until its guest ends.
    pub fn add(&self, guest: &Arc<str>, path: &Path) {
        // What a link leads to is what is cut. Devices and pipes keep nothing.
        let Ok(path) = path.canonicalize() else { return };
        if path.metadata().is_ok_and(|found| found.is_file()) {
            self.update(|watched| {
                watched.files.retain(|watch| watch.path != path);
                watched.files.push(Watch { number: None, path, guest: Arc::clone(guest) });
                watched.begin();
            });
        }
    }

    /// A guest writes no more.
    pub fn remove_all(&self, guest: &str) {
        self.update(|watched| {
            let gone = watched.files.extract_if(.., |watch| *watch.guest == *guest);
            let numbers: Vec<_> = gone.filter_map(|watch| watch.number).collect();
            for number in numbers {
                // It may have been removed.
                let _ = watched.eye.as_ref().map(|eye| inotify::remove_watch(eye, number));
            }
        });
    }

    fn begin(&self, eye: OwnedFd) {
        self.update(|watched| {
            watched.eye = Some(eye);
            watched.begin();
        });
    }

    fn path(&self, number: i32) -> Option<PathBuf> {
        self.update(|watched| {
            let found = watched.files.iter().find(|watch| watch.number == Some(number));
            found.map(|watch| watch.path.clone())
        })
    }

    fn all(&self) -> Vec<PathBuf> {
        self.update(|watched| watched.files.iter().map(|watch| watch.path.clone()).collect())
    }
}

/// Cuts the logs in a directory, and files of guests, whenever one has grown large. Returns only when that
/// cannot go on.
pub async fn keep_bounded(directory: PathBuf, files: Arc<Files>) -> io::Result<()> {
    file::make_directory(&directory, 0o755)?;
    let eye = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&eye, &directory, WRITTEN | WatchFlags::ONLYDIR)?;
    files.begin(eye.try_clone()?);
    let ready = fds::wait_readable(eye)?;
    // Guests wrote while no daemon looked.
    let mut written = Written::Any;
    loop {
        let (place, others) = (directory.clone(), Arc::clone(&files));
        tokio::task::spawn_blocking(move || cut_large(&place, &others, written)).await?;
        tokio::time::sleep(PAUSE).await;
        let mut guard = ready.readable().await?;
        written = read_events(ready.get_ref(), &directory, &files)?;
        guard.clear_ready();
    }
}

fn read_events(eye: &OwnedFd, directory: &Path, files: &Files) -> io::Result<Written> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(eye, &mut buffer);
    let (mut paths, mut lost) = (Vec::new(), false);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => lost = true,
            Ok(event) => {
                let path = match event.file_name() {
                    Some(name) => {
                        let name = Path::new(OsStr::from_bytes(name.to_bytes()));
                        Some(directory.join(name)).filter(|path| is_log(path))
                    }
                    None => files.path(event.wd()),
                };
                paths.extend(path.filter(|path| !paths.contains(path)));
            }
            Err(Errno::WOULDBLOCK) if lost => return Ok(Written::Any),
            Err(Errno::WOULDBLOCK) => return Ok(Written::These(paths)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_log(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("log"))
}

fn cut_large(directory: &Path, files: &Files, written: Written) {
    let paths = match written {
        Written::These(paths) => paths,
        Written::Any => {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            let logs = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_log(path));
            logs.chain(files.all()).collect()
        }
    };
    for path in paths {
        if let Err(error) = log::cut_if_large(&path) {
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
        let bounded = tokio::spawn(keep_bounded(directory.path().to_owned(), Arc::default()));
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
