//! Files that are never seen half-written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a written file has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: definitions, and whatever else a user calls saved. Costs a disk flush.
    PowerCut,
    /// The death of the daemon: files about processes that a power cut ends too.
    Crash,
}

/// Replaces the content of `path`: whoever opens it sees the old content or the new, nothing between.
///
/// The new content grows in `path` plus `.new`. Calls for the same path must not overlap. The directory is
/// not synced: after a power cut the old content may be back, whole.
pub fn replace(path: &Path, content: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let growing = growing(path);
    let written = (|| {
        // A left-over of a crash may have another mode.
        remove_if_there(&growing)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&growing)?;
        file.write_all(content)?;
        if durability == Durability::PowerCut {
            file.sync_data()?;
        }
        fs::rename(&growing, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&growing);
    }
    written
}

/// The name under which [`replace`] writes; one may be left over from a crash.
pub fn growing(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes a file; one that is not there is no error.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; one that is not there is no error. Links are not followed.
pub fn remove_tree_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory and what is missing above it; one that is there already stays as it is.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Reads a whole file of at most `max` bytes; a longer one fails with [`io::ErrorKind::FileTooLarge`].
pub fn read_at_most(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut content = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn content_and_mode_are_replaced_and_nothing_stays_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.xml");
        fs::write(growing(&path), "left over").unwrap();
        for (content, mode, durability) in
            [("one", 0o644, Durability::PowerCut), ("second", 0o600, Durability::Crash)]
        {
            replace(&path, content.as_bytes(), mode, durability).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("is-a-directory");
        fs::create_dir(&path).unwrap();
        replace(&path, b"x", 0o600, Durability::Crash).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        make_directory(&path, 0o700).unwrap();
        make_directory(&path, 0o700).unwrap();
        remove_tree_if_there(&directory.path().join("a")).unwrap();
        remove_tree_if_there(&path).unwrap();
        remove_if_there(&path).unwrap();
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        assert_eq!(read_at_most(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
