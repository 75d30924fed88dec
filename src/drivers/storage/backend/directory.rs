//! Pools whose volumes are the files of a directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::{Found, Storage};
use crate::conf::storage::{Pool, Probed, RefreshAllocation, Sizes, Volume};
use crate::drivers::storage::errors;
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::Result;
use crate::qemu::storage::{self as image, Changes, Watch};

impl Storage {
    pub(super) async fn has_directory(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<bool> {
        let pool = Arc::clone(pool);
        object.blocking(move || Ok(Path::new(&*pool.path).exists())).await
    }

    pub(super) async fn make_directory(object: &PoolObject, pool: &Arc<Pool>) -> Result<()> {
        let pool = Arc::clone(pool);
        object.blocking(move || Ok(image::build_directory(&pool.path, &pool.permissions)?)).await
    }

    /// Removes the pool's own directory, which must be empty. Volumes are never deleted with their pool.
    pub(super) async fn remove_directory(object: &PoolObject, pool: &Pool) -> Result<()> {
        let path = pool.path.clone();
        let remove = move || {
            let what = || format!("failed to remove pool '{path}'");
            std::fs::remove_dir(&*path).map_err(|error| Self::io(what(), error))
        };
        object.blocking(remove).await
    }

    /// Looks at what has changed in the pool's directory since the last time.
    pub(super) async fn look_through_directory(object: &Arc<PoolObject>) -> Result<Found> {
        let (state, pool) = (object.state(), Arc::clone(object));
        object
            .blocking(move || {
                let mut watch = pool.watch.lock().unwrap_or_else(PoisonError::into_inner);
                look(&state.current, &state.volumes, &mut watch)
            })
            .await
    }
}

fn look(pool: &Pool, before: &Volumes, watch: &mut Option<Watch>) -> Result<Found> {
    let path = &pool.path;
    let directory = Path::new(&**path);
    let changes = watch.as_mut().map_or(Changes::Unknown, |watch| watch.take(directory));
    let volumes = match changes {
        Changes::Only(names) => after_changes(pool, before, &names)?,
        Changes::SameNames => read(pool, before, before.keys().map(|name| name.to_string()))?,
        Changes::Unknown => {
            // Before the names are read, so that none is missed.
            *watch = Watch::begin(directory, watch.take());
            let names = image::names(directory).map_err(|error| errors::no_directory(path, error))?;
            read(pool, before, names.into_iter())?
        }
    };
    let room = rustix::fs::statvfs(directory)
        .map_err(|error| Storage::io(format_args!("cannot statvfs path '{path}'"), error.into()))?;
    let capacity = room.f_blocks.saturating_mul(room.f_frsize);
    let available = room.f_bfree.saturating_mul(room.f_frsize);
    let sizes = Sizes { capacity, allocation: capacity.saturating_sub(available), available };
    Ok(Found { volumes, sizes, permissions: Some(image::directory(path)?), free: Vec::new() })
}

/// The volumes of these names. Files that have not changed since the last time are not read again.
fn read(pool: &Pool, before: &Volumes, names: impl Iterator<Item = String>) -> Result<Volumes> {
    let mut volumes = Volumes::new();
    for name in names {
        if let Some(volume) = probe(pool, before, &name)? {
            volumes.insert(name.into(), Arc::new(Record::new(volume)));
        }
    }
    Ok(volumes)
}

/// The volumes of before, with those of the names that have changed as they are now.
fn after_changes(pool: &Pool, before: &Volumes, changed: &BTreeSet<String>) -> Result<Volumes> {
    // What a link leads to and the image below another change elsewhere.
    let is_known = |record: &Record| {
        matches!(record.volume.probed, Probed::File(_))
            && record.volume.backing.is_none()
            && !record.is_busy()
    };
    let (mut volumes, mut asked) = (Volumes::new(), changed.clone());
    for (name, record) in before {
        match is_known(record) && !changed.contains(&**name) {
            true => drop(volumes.insert(Arc::clone(name), Arc::clone(record))),
            false => drop(asked.insert(name.to_string())),
        }
    }
    let asked = asked.into_iter().filter(|name| image::is_name(name));
    volumes.append(&mut read(pool, before, asked)?);
    Ok(volumes)
}

fn probe(pool: &Pool, before: &Volumes, name: &str) -> Result<Option<Volume>> {
    let known = before.get(name).map(|record| &record.volume);
    let mut found = image::probe(&pool.path, name, known)?;
    if let Some(volume) = found.as_mut().filter(|_| pool.refresh == Some(RefreshAllocation::Capacity)) {
        volume.allocation = volume.capacity;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uuid::Uuid;

    fn found(pool: &Pool, before: &Volumes, watch: &mut Option<Watch>) -> Volumes {
        look(pool, before, watch).unwrap().volumes
    }

    #[test]
    fn a_file_that_has_not_changed_is_not_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["a", "b", "c"] {
            std::fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(at("c"), at("link")).unwrap();
        let path = directory.path().display();
        let text = format!("<pool type='dir'><name>p</name><target><path>{path}</path></target></pool>");
        let pool = Pool::parse(&text, Uuid([1; 16])).unwrap();
        let mut watch = None;
        let first = found(&pool, &Volumes::new(), &mut watch);
        std::fs::write(at("b"), "longer").unwrap();
        std::fs::remove_file(at("c")).unwrap();
        std::fs::write(at("d"), "new").unwrap();
        let second = found(&pool, &first, &mut watch);
        let names: Vec<_> = second.iter().map(|(name, it)| (&**name, it.volume.capacity)).collect();
        assert_eq!(names, [("a", 1), ("b", 6), ("d", 3)], "the link leads nowhere now");
        assert!(Arc::ptr_eq(&first["a"], &second["a"]), "it is the very record of before");
        // Without the kernel's word every file is looked at, and found to be the same.
        let third = found(&pool, &second, &mut None);
        assert_eq!(third["a"].volume.target.path, second["a"].volume.target.path);
    }
}
