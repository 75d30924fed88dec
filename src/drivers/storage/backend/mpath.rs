//! Multipath devices: those that device-mapper has, as the kernel lists them.

use std::path::Path;
use std::sync::Arc;

use super::{Found, Storage, device};
use crate::conf::storage::Sizes;
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::Result;

const BLOCK_DEVICES: &str = "/sys/block";

/// The names of the multipath devices below `block`.
fn names(block: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(block) else { return Vec::new() };
    let named = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("dm-"))?;
        let uuid = std::fs::read_to_string(entry.path().join("dm/uuid")).ok()?;
        uuid.starts_with("mpath-").then_some(name)
    });
    named.collect()
}

impl Storage {
    pub(super) async fn look_for_multipaths(object: &Arc<PoolObject>) -> Result<Found> {
        object.blocking(|| look(Path::new(BLOCK_DEVICES))).await
    }
}

fn look(block: &Path) -> Result<Found> {
    let (mut volumes, mut sizes) = (Volumes::new(), Sizes::default());
    for name in names(block) {
        let path = format!("/dev/{name}");
        let volume = device::volume(&name, &path, &path)?;
        sizes.capacity += volume.capacity;
        sizes.allocation += volume.allocation;
        volumes.insert(name.into(), Arc::new(Record::new(volume)));
    }
    Ok(Found { volumes, sizes, ..Found::default() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_multipath_devices_are_found() {
        let block = tempfile::tempdir().unwrap();
        for (name, uuid) in [("dm-0", "LVM-x"), ("dm-1", "mpath-3600"), ("sda", "mpath-y")] {
            std::fs::create_dir_all(block.path().join(name).join("dm")).unwrap();
            std::fs::write(block.path().join(name).join("dm/uuid"), uuid).unwrap();
        }
        assert_eq!(super::names(block.path()), ["dm-1"]);
    }
}
