//! Pools on disk: `NAME.xml` per persistent pool, a link in `autostart/` for those that start with the
//! host, a state file per active pool. The same files as libvirt's, in the same places.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::conf::storage::Pool;
use crate::util::boot;
use crate::util::file::{self, Durability};
use crate::util::paths::{Paths, Scope};
use crate::util::uuid::Uuid;

/// More than any definition: libvirt's own limit on a file it parses.
const MAX_FILE: u64 = 10 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Files {
    config: PathBuf,
    autostart: PathBuf,
    state: PathBuf,
}

impl Files {
    pub(super) fn new(paths: &Paths) -> Self {
        let config = paths.config.join("storage");
        let state = match paths.scope {
            Scope::System => paths.runtime.join("storage"),
            Scope::Session => paths.runtime.join("storage/run"),
        };
        Self { autostart: config.join("autostart"), config, state }
    }

    pub(super) fn prepare(&self) -> io::Result<()> {
        file::make_directory(&self.config, 0o755)?;
        file::make_directory(&self.state, 0o755)
    }

    pub(super) fn save(&self, pool: &Pool) -> io::Result<()> {
        file::make_directory(&self.config, 0o755)?;
        let text = format!("{}{}", header(&pool.name, pool.uuid), pool.to_xml());
        file::replace(&named(&self.config, &pool.name), text.as_bytes(), 0o600, Durability::PowerCut)
    }

    /// Removes the definition and its autostart link.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        file::remove_if_there(&named(&self.config, name))?;
        file::remove_if_there(&named(&self.autostart, name))
    }

    pub(super) fn set_autostart(&self, name: &str, on: bool) -> io::Result<()> {
        let link = named(&self.autostart, name);
        file::remove_if_there(&link)?;
        if !on {
            return Ok(());
        }
        file::make_directory(&self.autostart, 0o755)?;
        symlink(named(&self.config, name), &link)
    }

    pub(super) fn save_state(&self, pool: &Pool) -> io::Result<()> {
        let text = format!("{}{}", header(&pool.name, pool.uuid), pool.to_state());
        file::replace(&named(&self.state, &pool.name), text.as_bytes(), 0o600, Durability::Crash)
    }

    pub(super) fn remove_state(&self, name: &str) {
        let path = named(&self.state, name);
        if let Err(error) = file::remove_if_there(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the state of a pool");
        }
    }

    /// Definitions, and whether each starts with the host.
    pub(super) fn definitions(&self) -> io::Result<Vec<(Pool, bool)>> {
        let found = read_all(&self.config, Pool::parse)?.into_iter();
        let linked = |name: &str| fs::symlink_metadata(named(&self.autostart, name)).is_ok();
        Ok(found.map(|pool| (linked(&pool.name), pool)).map(|(linked, pool)| (pool, linked)).collect())
    }

    /// Pools that were active when the last daemon ended.
    pub(super) fn states(&self) -> io::Result<Vec<Pool>> {
        read_all(&self.state, Pool::parse_state)
    }

    /// Whether this daemon is the first since the host started: only that one starts what starts with it.
    pub(super) fn is_first_start(&self) -> io::Result<bool> {
        boot::is_first_since(&self.state.join("autostarted"))
    }
}

fn named(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.xml"))
}

fn header(name: &str, uuid: Uuid) -> String {
    // A name may hold what ends a comment.
    let safe = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-' | '+');
    let name = match name.chars().all(safe) && !name.contains("--") {
        true => name.to_owned(),
        false => uuid.to_string(),
    };
    format!(
        "<!--\nThis file is written by the daemon; what you change here is overwritten.\n\
         Use 'virsh pool-edit {name}' or another client instead.\n-->\n\n"
    )
}

/// Reads what can be read; the rest is logged and left alone.
fn read_all(
    directory: &Path,
    parse: fn(&str, Uuid) -> Result<Pool, crate::conf::ConfError>,
) -> io::Result<Vec<Pool>> {
    let mut pools = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pools),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let read = || -> Result<Pool, String> {
            let text = file::read_at_most(&path, MAX_FILE).map_err(|error| error.to_string())?;
            let text = String::from_utf8(text).map_err(|error| error.to_string())?;
            let fresh = Uuid::random().map_err(|error| error.to_string())?;
            let pool = parse(&text, fresh).map_err(|error| error.to_string())?;
            match path.file_stem().is_some_and(|stem| *stem == *pool.name) {
                true => Ok(pool),
                false => Err(format!("the file does not match pool name '{}'", pool.name)),
            }
        };
        match read() {
            Ok(pool) => pools.push(pool),
            Err(error) => tracing::warn!(path = %path.display(), error, "skipped a pool"),
        }
    }
    pools.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_found_again_and_what_is_broken_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(&Paths::system(root.path()));
        files.prepare().unwrap();
        let pool = |name: &str| {
            let text =
                format!("<pool type='dir'><name>{name}</name><target><path>/pool</path></target></pool>");
            Pool::parse(&text, Uuid([7; 16])).unwrap()
        };
        for name in ["b", "a--&gt;&lt;x&gt;"] {
            files.save(&pool(name)).unwrap();
        }
        files.set_autostart("b", true).unwrap();
        files.save_state(&pool("b")).unwrap();
        let config = root.path().join("etc/libvirt/storage");
        fs::write(config.join("torn.xml"), "<pool type='dir'><na").unwrap();
        fs::copy(config.join("b.xml"), config.join("other.xml")).unwrap();
        let found = files.definitions().unwrap();
        let found: Vec<_> = found.iter().map(|(pool, autostart)| (&*pool.name, *autostart)).collect();
        assert_eq!(found, [("a--><x>", false), ("b", true)]);
        assert_eq!(files.states().unwrap(), [pool("b")]);
        assert!(files.is_first_start().unwrap() && !files.is_first_start().unwrap());
        files.remove("b").unwrap();
        files.remove_state("b");
        assert!(files.states().unwrap().is_empty() && files.definitions().unwrap().len() == 1);
    }
}
