//! The kernel's files about the host.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::util::bitmap::{Bitmap, MAX_BITS};

/// Where /proc and /sys are; elsewhere in tests.
#[derive(Debug, Clone)]
pub(super) struct HostFiles {
    root: PathBuf,
}

impl HostFiles {
    pub(super) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn text(&self, path: &str) -> Result<String> {
        let full = self.path(path);
        fs::read_to_string(&full).map_err(|error| Error::io(format_args!("cannot open {path}"), error))
    }

    /// The text of a file that need not be there.
    pub(super) fn text_if_there(&self, path: &str) -> Result<Option<String>> {
        match fs::read_to_string(self.path(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format_args!("cannot open {path}"), error)),
        }
    }

    /// The only thing in a file, if there is such a file.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Result<Option<T>> {
        let Some(text) = self.text_if_there(path)? else { return Ok(None) };
        let text = text.trim();
        let parsed =
            text.parse().map_err(|_| Error::internal_error(format!("Invalid value '{text}' in {path}")));
        parsed.map(Some)
    }

    /// A list of numbers such as `0-3,8`, if there is such a file.
    pub(super) fn list(&self, path: &str) -> Result<Option<Bitmap>> {
        let Some(text) = self.text_if_there(path)? else { return Ok(None) };
        let text = text.trim();
        if text.is_empty() {
            return Ok(Some(Bitmap::new()));
        }
        let parsed = Bitmap::parse(text, MAX_BITS);
        parsed.map(Some).map_err(|error| Error::internal_error(error.to_string()))
    }

    /// The names in a directory, sorted; none where there is no such directory.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>> {
        let entries = match fs::read_dir(self.path(path)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format_args!("cannot open directory '{path}'"), error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Writes into a file that is there.
    pub(super) fn set(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
        io::Write::write_all(&mut file, text.as_bytes())
    }

    pub(super) fn is_there(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}
