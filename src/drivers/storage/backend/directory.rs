//! Pools whose volumes are the files of a directory.

use std::path::Path;
use std::sync::Arc;

use super::{Found, Storage};
use crate::conf::storage::{Pool, RefreshAllocation, Sizes};
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::Result;
use crate::qemu::storage as image;

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

    /// Reads the pool's directory. Files that have not changed since the last time are not read again.
    pub(super) async fn look_through_directory(object: &Arc<PoolObject>) -> Result<Found> {
        let state = object.state();
        object.blocking(move || look(&state.current, &state.volumes)).await
    }
}

fn look(pool: &Pool, before: &Volumes) -> Result<Found> {
    let path = &pool.path;
    let names = image::names(Path::new(&**path))
        .map_err(|error| Storage::io(format_args!("cannot open directory '{path}'"), error))?;
    let mut volumes = Volumes::new();
    for name in names {
        let known = before.get(&*name).map(|record| &record.volume);
        let Some(mut volume) = image::probe(path, &name, known)? else { continue };
        if pool.refresh == Some(RefreshAllocation::Capacity) {
            volume.allocation = volume.capacity;
        }
        volumes.insert(name.into(), Arc::new(Record::new(volume)));
    }
    let room = rustix::fs::statvfs(&**path)
        .map_err(|error| Storage::io(format_args!("cannot statvfs path '{path}'"), error.into()))?;
    let capacity = room.f_blocks.saturating_mul(room.f_frsize);
    let available = room.f_bfree.saturating_mul(room.f_frsize);
    let sizes = Sizes { capacity, allocation: capacity.saturating_sub(available), available };
    Ok(Found { volumes, sizes, permissions: Some(image::directory(path)?), free: Vec::new() })
}
