//! Which volumes a pool has, and how much room.

use std::sync::Arc;

use super::Storage;
use super::backend::Found;
use super::pool::{PoolObject, Volumes};
use crate::error::Result;

impl Storage {
    /// With the turn: finds out what there is.
    pub(super) async fn look_again(&self, object: &Arc<PoolObject>) -> Result<()> {
        let before = Arc::clone(&object.state().volumes);
        let Found { volumes, sizes, permissions, free } = self.look(object).await?;
        object.update(
            |state| {
                state.volumes = Arc::new(merge(volumes, &before, &state.volumes));
                let pool = Arc::make_mut(&mut state.current);
                pool.sizes = sizes;
                if let Some(permissions) = permissions {
                    pool.permissions = permissions;
                }
                if let [device] = &mut *pool.source.devices {
                    device.free = free;
                }
            },
            |_, ()| (),
        );
        Ok(())
    }
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
    use super::super::pool::Record;
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
