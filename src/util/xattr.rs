//! Extended attributes of files: short texts that travel with a file and not in it.

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

/// Longer ones are nobody's that we know.
const MAX_VALUE: usize = 4096;

/// The text of an attribute, if the file has it.
pub fn get(path: &Path, name: &str) -> io::Result<Option<String>> {
    let mut value = vec![0; MAX_VALUE];
    match getxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            let text = String::from_utf8(value);
            text.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub fn set(path: &Path, name: &str, value: &str) -> io::Result<()> {
    Ok(setxattr(path, name, value.as_bytes(), XattrFlags::empty())?)
}

/// Takes an attribute away; one that is not there is no error.
pub fn remove(path: &Path, name: &str) -> io::Result<()> {
    match removexattr(path, name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether it failed because the file system keeps no such attributes.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTSUP | Errno::NOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_until_it_is_taken_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = "user.ferrovirt";
        match set(file.path(), name, "x:y") {
            Err(error) if is_unsupported(&error) => return,
            set => set.unwrap(),
        }
        assert_eq!(get(file.path(), name).unwrap().as_deref(), Some("x:y"));
        remove(file.path(), name).unwrap();
        remove(file.path(), name).unwrap();
        assert_eq!(get(file.path(), name).unwrap(), None);
        assert_eq!(get(Path::new("/nonexistent"), name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
