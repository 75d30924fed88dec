//! Definitions on disk: `NAME.xml` per persistent domain, a link in `autostart/` for those that start with
//! the host. The same files as libvirt's, in the same places.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::util::file::{self, Durability};

const HEADER: &str = "\
<!--
This file is written by the daemon; what you change here is overwritten.
Use 'virsh edit' or another client instead.
-->

";

/// More than any definition: libvirt's own limit on a file it parses.
const MAX_FILE: u64 = 10 * 1024 * 1024;

/// The two directories.
#[derive(Debug, Clone)]
pub(super) struct Definitions {
    config: PathBuf,
    autostart: PathBuf,
}

/// One definition as found at start.
#[derive(Debug)]
pub(super) struct Found {
    pub definition: Domain,
    pub autostart: bool,
    /// The file's name.
    pub file: Box<OsStr>,
}

impl Definitions {
    pub(super) fn new(config: PathBuf, autostart: PathBuf) -> Self {
        Self { config, autostart }
    }

    /// Makes the directories.
    pub(super) fn prepare(&self) -> io::Result<()> {
        file::make_directory(&self.config, 0o700)?;
        file::make_directory(&self.autostart, 0o755)
    }

    pub(super) fn save(&self, definition: &Domain) -> io::Result<()> {
        let text = format!("{HEADER}{}", definition.to_xml(Form::SECURE));
        file::replace(&self.file(&definition.name), text.as_bytes(), 0o600, Durability::PowerCut)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        file::remove_if_there(&self.link(name))?;
        file::remove_if_there(&self.link_once(name))?;
        file::remove_if_there(&self.file(name))
    }

    /// Whether the domain starts with the host the next time.
    pub(super) fn starts_once(&self, name: &str) -> bool {
        self.link_once(name).is_symlink()
    }

    pub(super) fn set_autostart_once(&self, name: &str, on: bool) -> io::Result<()> {
        let link = self.link_once(name);
        file::remove_if_there(&link)?;
        match on {
            true => symlink(self.file(name), &link),
            false => Ok(()),
        }
    }

    pub(super) fn set_autostart(&self, name: &str, on: bool) -> io::Result<()> {
        let link = self.link(name);
        file::remove_if_there(&link)?;
        match on {
            true => symlink(self.file(name), &link),
            false => Ok(()),
        }
    }

    /// Reads all definitions, on all processors. A file that cannot be read or is no definition is logged
    /// and left alone.
    pub(super) fn load(&self) -> io::Result<Vec<Found>> {
        let files = names(&self.config)?;
        let linked: HashSet<_> = names(&self.autostart)?.into_iter().collect();
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = files.len().div_ceil(workers).max(1);
        let found = std::thread::scope(|scope| {
            let read_share = |share: &[Box<OsStr>]| -> Vec<Found> {
                share
                    .iter()
                    .filter_map(|name| self.read(name, linked.contains(name) && self.is_linked(name)))
                    .collect()
            };
            let threads: Vec<_> =
                files.chunks(share).map(|share| scope.spawn(move || read_share(share))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
        });
        Ok(found)
    }

    /// The same file as it is now; `None` if it is there no more.
    pub(super) fn read_again(&self, found: &Found) -> Option<Found> {
        let is_there = |directory: &Path| directory.join(&*found.file).symlink_metadata().is_ok();
        let linked = is_there(&self.autostart) && self.is_linked(&found.file);
        is_there(&self.config).then(|| self.read(&found.file, linked))?
    }

    /// Whether the link of that name leads to the definition of that name: only then it means anything.
    fn is_linked(&self, name: &OsStr) -> bool {
        let link = self.autostart.join(name);
        let same_file = || {
            let (link, file) = (link.metadata().ok()?, self.config.join(name).metadata().ok()?);
            Some((link.dev(), link.ino()) == (file.dev(), file.ino()))
        };
        let works = link.is_symlink() && same_file() == Some(true);
        if !works {
            tracing::warn!(path = %link.display(), "ignored a link that does not lead to the definition of its name");
        }
        works
    }

    fn read(&self, name: &OsStr, autostart: bool) -> Option<Found> {
        let path = self.config.join(name);
        let read = || -> Result<Domain, String> {
            let text = file::read_at_most(&path, MAX_FILE).map_err(|error| error.to_string())?;
            let text = String::from_utf8(text).map_err(|error| error.to_string())?;
            Domain::parse(&text, Form::INACTIVE).map_err(|error| error.to_string())
        };
        match read() {
            Ok(definition) => {
                // As in libvirt the content counts; what is changed later lands under the domain's own name.
                if self.file(&definition.name) != path {
                    let (path, domain) = (path.display(), &definition.name);
                    tracing::warn!(%path, %domain, "a definition's file does not have its domain's name");
                }
                Some(Found { definition, autostart, file: name.into() })
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "skipped a definition");
                None
            }
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.config.join(format!("{name}.xml"))
    }

    fn link(&self, name: &str) -> PathBuf {
        self.autostart.join(format!("{name}.xml"))
    }

    fn link_once(&self, name: &str) -> PathBuf {
        self.autostart.join(format!("{name}.xml.once"))
    }
}

/// The `.xml` names in a directory, sorted, so that a start is like the last one.
fn names(directory: &Path) -> io::Result<Vec<Box<OsStr>>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_boxed_os_str()));
    let mut names: Vec<Box<OsStr>> = entries.collect::<io::Result<_>>()?;
    names.retain(|name| Path::new(name).extension() == Some(OsStr::new("xml")));
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str) -> Domain {
        let text = format!(
            "<domain type='kvm'><name>{name}</name><uuid>8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1</uuid>\
             <memory>1024</memory><os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
        );
        Domain::parse(&text, Form::INACTIVE).unwrap()
    }

    #[test]
    fn what_is_saved_is_found_again_and_what_is_broken_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let files = Definitions::new(root.path().join("qemu"), root.path().join("qemu/autostart"));
        files.prepare().unwrap();
        for name in ["b", "a", "c"] {
            files.save(&definition(name)).unwrap();
        }
        files.set_autostart("b", true).unwrap();
        files.set_autostart("c", true).unwrap();
        files.set_autostart("c", false).unwrap();
        files.remove("a").unwrap();
        fs::write(root.path().join("qemu/torn.xml"), "<domain type='kvm'><na").unwrap();
        fs::write(root.path().join("qemu/b.xml.new"), "a write that a crash cut short").unwrap();

        let found = files.load().unwrap();
        let found: Vec<_> = found.iter().map(|it| (&*it.definition.name, it.autostart)).collect();
        assert_eq!(found, [("b", true), ("c", false)]);
        assert!(root.path().join("qemu/torn.xml").exists());
        assert_eq!(found.len(), 2);
    }
}
