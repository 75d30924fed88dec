//! Disks behind one SCSI adapter, as the kernel lists them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Found, Storage, device};
use crate::conf::storage::{Pool, Sizes};
use crate::drivers::storage::errors;
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::{Error, Result};

const DEVICES: &str = "/sys/bus/scsi/devices";
/// Types of SCSI devices that hold volumes: disks, and what is only read.
const TYPES: [&str; 2] = ["0", "5"];

/// A disk of an adapter.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    bus: u32,
    target: u32,
    lun: u32,
    block: String,
}

/// The number of the host adapter that the pool is about.
pub(super) fn host(pool: &Pool) -> Result<u32> {
    let name = pool.source.adapter.as_deref().and_then(|adapter| adapter.attribute("name"));
    let number = name.map(|name| name.strip_prefix("scsi_").unwrap_or(name)).and_then(|name| {
        let number: u32 = name.strip_prefix("host")?.parse().ok()?;
        Path::new("/sys/class/scsi_host").join(name).exists().then_some(number)
    });
    number.ok_or_else(|| {
        let sentence = match name {
            Some(name) => format!("Couldn't find SCSI adapter '{name}' on this host"),
            None => "only adapters that are named 'scsi_hostN' are supported".to_owned(),
        };
        errors::ours(Error::config_unsupported(sentence))
    })
}

/// The units of a host adapter below `devices`.
fn units(devices: &Path, host: u32) -> Vec<Unit> {
    let Ok(entries) = std::fs::read_dir(devices) else { return Vec::new() };
    let unit = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        let numbers = name.split(':').map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>()?;
        let [of, bus, target, lun] = *numbers else { return None };
        let kind = std::fs::read_to_string(path.join("type")).ok()?;
        if of != host || !TYPES.contains(&kind.trim()) {
            return None;
        }
        let block = std::fs::read_dir(path.join("block")).ok()?.flatten().next()?;
        Some(Unit { bus, target, lun, block: block.file_name().into_string().ok()? })
    };
    let mut units: Vec<_> = entries.flatten().filter_map(|entry| unit(entry.path())).collect();
    units.sort();
    units
}

/// The name in `directory` that leads to `device`, which stays the same when the host starts again.
fn stable_path(directory: &Path, device: &str) -> Option<String> {
    if directory == Path::new("/dev") {
        return Some(device.to_owned());
    }
    let device = std::fs::canonicalize(device).ok()?;
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let mut leading =
        entries.filter(|entry| std::fs::canonicalize(entry.path()).is_ok_and(|it| it == device));
    leading.next().map(|entry| entry.path().display().to_string())
}

/// The disks of a host adapter as volumes.
pub(super) fn look(host: u32, directory: &str) -> Result<Found> {
    let (mut volumes, mut sizes) = (Volumes::new(), Sizes::default());
    for unit in units(Path::new(DEVICES), host) {
        let device = format!("/dev/{}", unit.block);
        let Some(path) = stable_path(Path::new(directory), &device) else { continue };
        let name = format!("unit:{}:{}:{}", unit.bus, unit.target, unit.lun);
        let volume = device::volume(&name, &path, &path)?;
        sizes.capacity += volume.capacity;
        sizes.allocation += volume.allocation;
        volumes.insert(name.into(), Arc::new(Record::new(volume)));
    }
    Ok(Found { volumes, sizes, ..Found::default() })
}

impl Storage {
    pub(super) async fn look_through_adapter(object: &Arc<PoolObject>, pool: &Pool) -> Result<Found> {
        let (host, directory) = (host(pool)?, pool.path.clone());
        object
            .blocking(move || {
                let scan = format!("/sys/class/scsi_host/host{host}/scan");
                let scanned = std::fs::write(&scan, "- - -");
                scanned.map_err(|error| {
                    Self::io(format_args!("Could not open '{scan}' to trigger host scan"), error)
                })?;
                look(host, &directory)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disks_of_one_adapter_are_found() {
        let devices = tempfile::tempdir().unwrap();
        for (name, kind, block) in [
            ("2:0:0:1", "0\n", "sdb"),
            ("2:0:0:0", "0\n", "sda"),
            ("3:0:0:0", "0\n", "sdc"),
            ("2:0:1:0", "1\n", "st0"),
        ] {
            let path = devices.path().join(name);
            std::fs::create_dir_all(path.join("block").join(block)).unwrap();
            std::fs::write(path.join("type"), kind).unwrap();
        }
        std::fs::create_dir(devices.path().join("host2")).unwrap();
        let found: Vec<_> = units(devices.path(), 2).into_iter().map(|unit| (unit.lun, unit.block)).collect();
        assert_eq!(found, [(0, "sda".to_owned()), (1, "sdb".to_owned())]);
    }
}
