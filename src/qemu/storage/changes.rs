//! What has changed in a directory since it was looked at the last time.
//!
//! The kernel tells where it can. A file system that other hosts write to has to be asked: there the directory's own
//! times say whether names have come or gone, and each file is looked at again.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// What changes a file or the names in a directory, or ends the watch.
const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
/// After any of these nothing is known.
const LOST: ReadFlags = ReadFlags::QUEUE_OVERFLOW
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF)
    .union(ReadFlags::UNMOUNT)
    .union(ReadFlags::IGNORED);
/// File systems that others than this kernel write to: NFS, SMB in three versions, Ceph, FUSE, 9p, OCFS2, GFS2, AFS, Lustre.
const SHARED: [u32; 11] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x6573_5546,
    0x0102_1997,
    0x7461_636f,
    0x0116_1970,
    0x5346_414f,
    0x0bd0_0bd0,
];
/// Two changes that are nearer than this may have the same time. What passes is measured with our own steady clock.
const TICK: Duration = Duration::from_secs(2);

/// Which names are to be looked at again.
#[derive(Debug, PartialEq, Eq)]
pub enum Changes {
    /// Whatever there is now.
    Unknown,
    /// The names are those of before, and each file may be another.
    SameNames,
    /// Only these, which may be gone.
    Only(BTreeSet<String>),
}

/// An eye on a directory.
#[derive(Debug)]
pub struct Watch {
    place: Place,
    means: Means,
}

#[derive(Debug)]
enum Means {
    Kernel(OwnedFd),
    Times(Seen),
}

/// The directory's times, which only the host knows that has the file system: its clock is not ours.
#[derive(Debug, Clone, Copy)]
struct Seen {
    stamp: Stamp,
    since: Instant,
    /// Whether it was seen long enough before the directory was read that what changed later shows in it.
    is_settled: bool,
}

/// Which directory it is: one mounted over it is another.
type Place = (u64, u64);

/// When names came or went the last time.
type Stamp = (i64, i64, i64, i64);

impl Watch {
    /// Begins to watch, before the directory is read; none for what cannot be looked at. `before` watched it until
    /// now.
    pub fn begin(directory: &Path, before: Option<Self>) -> Option<Self> {
        let (place, stamp) = look(directory)?;
        let by_kernel = if is_shared(directory) { None } else { by_kernel(directory) };
        let means = by_kernel.map_or_else(|| Means::Times(see(stamp, before)), Means::Kernel);
        Some(Self { place, means })
    }

    /// What has changed since the last time, or since the watch began.
    pub fn take(&mut self, directory: &Path) -> Changes {
        let Some((place, now)) = look(directory) else { return Changes::Unknown };
        if place != self.place {
            return Changes::Unknown;
        }
        match &mut self.means {
            Means::Kernel(queue) => names(queue).map_or(Changes::Unknown, Changes::Only),
            Means::Times(before) if before.is_settled && before.stamp == now => Changes::SameNames,
            Means::Times(_) => Changes::Unknown,
        }
    }
}

/// Which directory it is, and its times.
fn look(directory: &Path) -> Option<(Place, Stamp)> {
    let found = std::fs::metadata(directory).ok()?;
    let stamp = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
    Some(((found.dev(), found.ino()), stamp))
}

fn see(stamp: Stamp, before: Option<Watch>) -> Seen {
    let before = before.and_then(|watch| match watch.means {
        Means::Times(seen) if seen.stamp == stamp => Some(seen.since),
        _ => None,
    });
    let since = before.unwrap_or_else(Instant::now);
    Seen { stamp, since, is_settled: since.elapsed() > TICK }
}

fn is_shared(directory: &Path) -> bool {
    // Only the lower half of the number tells one from another.
    rustix::fs::statfs(directory).map_or(true, |found| SHARED.contains(&(found.f_type as u32)))
}

fn by_kernel(directory: &Path) -> Option<OwnedFd> {
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&queue, directory, WATCHED).ok()?;
    Some(queue)
}

/// The names that the kernel has queued; none if it has lost some.
fn names(queue: &OwnedFd) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut events = inotify::Reader::new(queue, &mut buffer);
    loop {
        match events.next() {
            Err(Errno::AGAIN) => return Some(names),
            Err(Errno::INTR) => {}
            Err(_) => return None,
            Ok(event) if event.events().intersects(LOST) => return None,
            // What has no name in this encoding is no volume.
            Ok(event) => {
                names.extend(event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only<const N: usize>(names: [&str; N]) -> Changes {
        Changes::Only(names.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn what_is_made_written_renamed_and_removed_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("old"), "x").unwrap();
        std::fs::write(path.join("still"), "x").unwrap();
        let mut watch = Watch::begin(path, None).unwrap();
        assert_eq!(watch.take(path), only([]));
        std::fs::write(path.join("new"), "x").unwrap();
        std::fs::write(path.join("old"), "longer").unwrap();
        assert_eq!(watch.take(path), only(["new", "old"]));
        std::fs::rename(path.join("new"), path.join("newer")).unwrap();
        std::fs::remove_file(path.join("old")).unwrap();
        assert_eq!(watch.take(path), only(["new", "newer", "old"]));
        assert_eq!(watch.take(path), only([]));
        let other = directory.path().with_extension("gone");
        std::fs::rename(path, &other).unwrap();
        std::fs::create_dir(path).unwrap();
        assert_eq!(watch.take(path), Changes::Unknown);
        std::fs::remove_dir_all(other).unwrap();
    }

    #[test]
    fn times_tell_only_what_was_seen_for_long_enough() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let watch = |since: Instant, before: Option<Watch>| {
            let (place, stamp) = look(path).unwrap();
            let before = before.or_else(|| {
                let means = Means::Times(Seen { stamp, since, is_settled: false });
                Some(Watch { place, means })
            });
            Watch { place, means: Means::Times(see(stamp, before)) }
        };
        let mut fresh = watch(Instant::now(), None);
        assert_eq!(fresh.take(path), Changes::Unknown);
        let mut again = watch(Instant::now(), Some(fresh));
        assert_eq!(again.take(path), Changes::Unknown, "it may have been changed since it was read");
        // However fresh its own times are: another clock than ours tells them.
        let mut settled = watch(Instant::now().checked_sub(2 * TICK).unwrap(), None);
        assert_eq!(settled.take(path), Changes::SameNames);
        std::fs::write(path.join("new"), "x").unwrap();
        assert_eq!(settled.take(path), Changes::Unknown);
        let mut changed = watch(Instant::now(), Some(settled));
        assert_eq!(changed.take(path), Changes::Unknown);
    }
}
