//! How large images are: from the files themselves, remembered for as long as the file system says the same of them.
//!
//! A file may lie where nobody answers any more. Workers look into one directory each; one that gets no further for
//! [`PATIENCE`] makes its directory a silent one. Nobody else goes there before it is back, nobody waits for it, and
//! the images in there are as large as they were.
//!
//! ```text
//!   look ──► directories, but the silent ones ──► a worker for each, WORKERS at once ──► known ──► of
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::usage::BlockInfo;
use crate::conf::devices::StorageFormat;
use crate::error::{Error, Result};
use crate::qemu::block;

/// How long a worker may be busy with one image before its directory is silent.
const PATIENCE: Duration = Duration::from_millis(150);

/// How long it may be busy with one that was never seen, whose size nobody knows, before others are told without it.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// The same for who asks for this one alone, and has to be refused otherwise.
const ONLY_PATIENCE: Duration = Duration::from_secs(30);

/// How many directories are looked into at once, by all calls; those that hang count.
const WORKERS: usize = 16;

/// More images than these are not remembered.
const MOST: usize = 100_000;

/// How much of an image tells its capacity.
const HEADER: u64 = 4096;

/// An image: where it is, and what it is read as.
pub(super) type Image = (String, StorageFormat);

#[derive(Debug)]
pub(super) struct ImageSizes {
    known: Mutex<HashMap<Image, Known>>,
    /// Which directory each worker is in, and since when it is busy with the same image.
    busy: Mutex<HashMap<u64, (PathBuf, Instant)>>,
    last_worker: AtomicU64,
    workers: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// None of what can change without one, such as a block device.
    stamp: Option<Stamp>,
    /// The number of the error where there is no size.
    size: std::result::Result<BlockInfo, i32>,
}

/// What changes with a file's content or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        Self {
            file: (about.dev(), about.ino()),
            size: (about.len(), about.blocks()),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

impl Default for ImageSizes {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            busy: Mutex::default(),
            last_worker: AtomicU64::new(0),
            workers: Arc::new(Semaphore::new(WORKERS)),
        }
    }
}

impl ImageSizes {
    /// How large an image was when it was last looked at; None of what was never seen or is not there.
    pub(super) fn of(&self, image: &Image) -> Option<BlockInfo> {
        lock(&self.known).get(image).and_then(|known| known.size.ok())
    }

    /// How large an image is now; as it was, if nobody answers.
    pub(super) async fn measure(self: &Arc<Self>, path: &str, format: StorageFormat) -> Result<BlockInfo> {
        let image = (path.to_owned(), format);
        self.look_within(vec![image.clone()], ONLY_PATIENCE).await;
        let known = lock(&self.known).get(&image).copied();
        let known = known.ok_or_else(|| Error::operation_timeout(format!("'{path}' does not answer")))?;
        known.size.map_err(|number| {
            Error::io(format_args!("cannot stat file '{path}'"), io::Error::from_raw_os_error(number))
        })
    }

    /// Looks at images again. Returns when all have been seen, or when nothing more comes.
    pub(super) async fn look(self: &Arc<Self>, images: Vec<Image>) {
        self.look_within(images, FIRST_PATIENCE).await;
    }

    async fn look_within(self: &Arc<Self>, images: Vec<Image>, first_patience: Duration) {
        let silent = self.silent();
        let mut patience = PATIENCE;
        let mut directories: HashMap<PathBuf, Vec<Image>> = HashMap::new();
        for image in images {
            let directory = Path::new(&image.0).parent().unwrap_or(Path::new("/"));
            if !silent.contains(directory) {
                if !lock(&self.known).contains_key(&image) {
                    patience = first_patience;
                }
                directories.entry(directory.to_owned()).or_default().push(image);
            }
        }
        let seen = Arc::new(AtomicU64::new(0));
        let mut looks = JoinSet::new();
        for (directory, images) in directories {
            let (sizes, seen) = (Arc::clone(self), Arc::clone(&seen));
            looks.spawn(async move {
                let Ok(permit) = Arc::clone(&sizes.workers).acquire_owned().await else { return };
                let work = move || {
                    sizes.work(&directory, images, &seen);
                    drop(permit);
                };
                if let Err(error) = tokio::task::spawn_blocking(work).await {
                    tracing::error!(%error, "looking at images ended early");
                }
            });
        }
        let mut seen_before = 0;
        loop {
            match tokio::time::timeout(patience, looks.join_next()).await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => match seen.load(Ordering::Relaxed) {
                    now if now == seen_before => return,
                    now => seen_before = now,
                },
            }
        }
    }

    fn silent(&self) -> HashSet<PathBuf> {
        let busy = lock(&self.busy);
        let silent = busy.values().filter(|(_, since)| since.elapsed() > PATIENCE);
        silent.map(|(directory, _)| directory.clone()).collect()
    }

    fn work(&self, directory: &Path, images: Vec<Image>, seen: &AtomicU64) {
        let worker = self.last_worker.fetch_add(1, Ordering::Relaxed);
        for image in images {
            lock(&self.busy).insert(worker, (directory.to_owned(), Instant::now()));
            self.see(image);
            seen.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.busy).remove(&worker);
    }

    fn see(&self, image: Image) {
        let before = lock(&self.known).get(&image).copied();
        let now = Known::of(&image, before).unwrap_or_else(|error| Known {
            stamp: None,
            size: Err(error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())),
        });
        let mut known = lock(&self.known);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(image, now);
    }
}

impl Known {
    fn of((path, format): &Image, before: Option<Self>) -> io::Result<Self> {
        let about = std::fs::metadata(path)?;
        let kind = about.file_type();
        let stamp = kind.is_file().then(|| Stamp::of(&about));
        if let Some(before) = before.filter(|before| stamp.is_some() && before.stamp == stamp) {
            return Ok(before);
        }
        // Opening a pipe would wait for its writer.
        if !kind.is_file() && !kind.is_block_device() {
            return Ok(Self { stamp, size: Ok(BlockInfo { capacity: 0, allocation: 0, physical: 0 }) });
        }
        let mut file = File::open(path)?;
        let (allocation, physical) = match stamp {
            Some(_) => (about.blocks() * 512, about.len()),
            None => {
                let size = file.seek(SeekFrom::End(0))?;
                file.rewind()?;
                (size, size)
            }
        };
        let mut header = Vec::new();
        file.take(HEADER).read_to_end(&mut header)?;
        let capacity = block::capacity(*format, &header).unwrap_or(physical);
        Ok(Self { stamp, size: Ok(BlockInfo { capacity, allocation, physical }) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &Path) -> Image {
        (path.to_str().unwrap().to_owned(), StorageFormat::Raw)
    }

    #[tokio::test]
    async fn a_file_is_measured_again_when_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let sizes = Arc::new(ImageSizes::default());
        let refused = sizes.measure(path.to_str().unwrap(), StorageFormat::Raw).await.unwrap_err();
        assert!(refused.to_string().contains("No such file"), "{refused}");
        std::fs::write(&path, [0; 100]).unwrap();
        assert_eq!(sizes.of(&image(&path)), None);
        sizes.look(vec![image(&path)]).await;
        assert_eq!(sizes.of(&image(&path)).unwrap().capacity, 100);
        std::fs::write(&path, [0; 200]).unwrap();
        assert_eq!(sizes.measure(path.to_str().unwrap(), StorageFormat::Raw).await.unwrap().physical, 200);
        std::fs::remove_file(&path).unwrap();
        sizes.look(vec![image(&path)]).await;
        assert_eq!(sizes.of(&image(&path)), None);
    }

    #[tokio::test]
    async fn a_directory_that_does_not_answer_is_left_alone_and_its_images_are_as_they_were() {
        let [dead, well] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [hanging, other] = [dead.path(), well.path()].map(|directory| directory.join("disk"));
        std::fs::write(&hanging, [0; 100]).unwrap();
        std::fs::write(&other, [0; 100]).unwrap();
        let sizes = Arc::new(ImageSizes::default());
        sizes.look(vec![image(&hanging), image(&other)]).await;
        std::fs::write(&hanging, [0; 200]).unwrap();
        std::fs::write(&other, [0; 200]).unwrap();
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        lock(&sizes.busy).insert(u64::MAX, (dead.path().to_owned(), long_ago));
        sizes.look(vec![image(&hanging), image(&other)]).await;
        assert_eq!(sizes.of(&image(&hanging)).unwrap().capacity, 100);
        assert_eq!(sizes.of(&image(&other)).unwrap().capacity, 200);
        // Its worker is back.
        lock(&sizes.busy).remove(&u64::MAX);
        sizes.look(vec![image(&hanging)]).await;
        assert_eq!(sizes.of(&image(&hanging)).unwrap().capacity, 200);
        assert!(lock(&sizes.busy).is_empty());
    }

    #[tokio::test]
    async fn a_pipe_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let size = Arc::new(ImageSizes::default()).measure(path.to_str().unwrap(), StorageFormat::Raw).await;
        assert_eq!(size.unwrap().physical, 0);
    }
}
