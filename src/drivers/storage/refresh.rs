//! Which volumes a pool has, and how much room.

use std::path::Path;
use std::sync::Arc;

use super::Storage;
use super::pool::{PoolObject, Record, Volumes};
use crate::conf::storage::{Permissions, Pool, RefreshAllocation, Sizes};
use crate::error::Result;
use crate::qemu::storage as image;

/// What was found on disk.
struct Found {
    volumes: Volumes,
    sizes: Sizes,
    permissions: Permissions,
}

/// Reads the pool's directory. Files that have not changed since the last time are not read again.
pub(super) async fn refresh(object: &Arc<PoolObject>) -> Result<()> {
    let state = object.state();
    let (pool, before) = (Arc::clone(&state.current), Arc::clone(&state.volumes));
    let found = object.blocking(move || look(&pool, &before).map(|found| (found, before)));
    let (Found { volumes, sizes, permissions }, before) = found.await?;
    object.update(
        |state| {
            state.volumes = Arc::new(merge(volumes, &before, &state.volumes));
            let pool = Arc::make_mut(&mut state.current);
            pool.sizes = sizes;
            pool.permissions = permissions;
        },
        |_, ()| (),
    );
    Ok(())
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
    Ok(Found { volumes, sizes, permissions: image::directory(path)? })
}

/// What was found, without what was deleted while it was looked for, and with what was made or is worked with.
fn merge(mut found: Volumes, before: &Volumes, now: &Volumes) -> Volumes {
    found.retain(|name, _| now.contains_key(name) || !before.contains_key(name));
    for (name, record) in now {
        match found.get_mut(name) {
            Some(_) if record.building => drop(found.insert(Arc::clone(name), Arc::clone(record))),
            Some(fresh) => Arc::make_mut(fresh).uses = record.uses,
            None if record.building || record.uses > 0 || !before.contains_key(name) => {
                found.insert(Arc::clone(name), Arc::clone(record));
            }
            None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::storage::{Capacity, PoolType, Volume};

    fn record(name: &str, capacity: u64) -> Record {
        let text = format!("<volume><name>{name}</name><capacity>{capacity}</capacity></volume>");
        Record::new(Volume::parse(&text, PoolType::Dir, Capacity::Needed).unwrap())
    }

    fn volumes<const N: usize>(records: [Record; N]) -> Volumes {
        records.into_iter().map(|record| (Arc::from(&*record.volume.name), Arc::new(record))).collect()
    }

    #[test]
    fn a_refresh_takes_nothing_from_those_who_work_meanwhile() {
        let building = Record { building: true, ..record("building", 1) };
        let used = Record { uses: 2, ..record("used", 1) };
        let before = volumes([record("vanished", 1), record("deleted", 1), record("used", 1)]);
        let now = volumes([record("vanished", 1), building, used, record("made", 1)]);
        let found =
            volumes([record("building", 7), record("used", 7), record("deleted", 7), record("new", 7)]);
        let merged = merge(found, &before, &now);
        let seen: Vec<_> =
            merged.values().map(|it| (&*it.volume.name, it.volume.capacity, it.building, it.uses)).collect();
        assert_eq!(
            seen,
            [("building", 1, true, 0), ("made", 1, false, 0), ("new", 7, false, 0), ("used", 7, false, 2)]
        );
    }
}
