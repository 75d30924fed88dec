//! Where snapshots and checkpoints are kept: a directory for each domain, a file for each moment. The same files as
//! libvirt's, in the same places.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::util::file::{self, Durability};

const HEADER: &str = "\
<!--
This file is written by the daemon; what you change here is overwritten.
Use 'virsh snapshot-edit' or another client instead.
-->

";

/// As large as a definition may be, twice: a snapshot has two.
const MAX_FILE: u64 = 20 * 1024 * 1024;

/// Those of one kind.
#[derive(Debug, Clone)]
pub(super) struct MomentFiles {
    directory: PathBuf,
}

impl MomentFiles {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn of(&self, domain: &str) -> PathBuf {
        self.directory.join(domain)
    }

    pub(super) fn save(&self, domain: &str, name: &str, text: &str) -> io::Result<()> {
        file::make_directory(&self.of(domain), 0o700)?;
        let path = self.of(domain).join(format!("{name}.xml"));
        file::replace(&path, format!("{HEADER}{text}").as_bytes(), 0o600, Durability::PowerCut)
    }

    pub(super) fn remove(&self, domain: &str, name: &str) -> io::Result<()> {
        file::remove_if_there(&self.of(domain).join(format!("{name}.xml")))
    }

    /// All of a domain that is no more.
    pub(super) fn remove_all(&self, domain: &str) -> io::Result<()> {
        file::remove_tree_if_there(&self.of(domain))
    }

    pub(super) fn rename(&self, old: &str, new: &str) -> io::Result<()> {
        match fs::rename(self.of(old), self.of(new)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }

    /// The texts of all moments, by domain. What cannot be read is logged and left alone.
    pub(super) fn load(&self) -> Vec<(String, Vec<String>)> {
        let directories = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let with_name =
            directories.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
        with_name
            .map(|(domain, path)| (domain, texts(&path)))
            .filter(|(_, texts)| !texts.is_empty())
            .collect()
    }
}

fn texts(directory: &std::path::Path) -> Vec<String> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|it| it == "xml"));
    let read = |path: PathBuf| {
        let content = file::read_at_most(&path, MAX_FILE);
        let text = content.and_then(|content| String::from_utf8(content).map_err(io::Error::other));
        text.inspect_err(|error| tracing::error!(path = %path.display(), %error, "skipped a file")).ok()
    };
    files.filter_map(read).collect()
}
