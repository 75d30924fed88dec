//! Whether something is the first of its kind since the host booted.

use std::io;
use std::path::Path;

use super::file::{self, Durability};

/// More than a boot's id, which is a uuid and a line end.
const MAX_STAMP: u64 = 64;

/// True for the first caller with this stamp since the host booted. A runtime directory is empty after a boot,
/// unless it lies on a disk: then the stamp is of another boot. libvirt's own stamp is empty.
pub fn is_first_since(stamp: &Path) -> io::Result<bool> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    match file::read_at_most(stamp, MAX_STAMP) {
        Ok(noted) if noted.is_empty() || noted == boot => return Ok(false),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    file::replace(stamp, &boot, 0o600, Durability::Crash)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_of_one_boot() {
        let root = tempfile::tempdir().unwrap();
        let stamp = root.path().join("stamp");
        assert!(is_first_since(&stamp).unwrap());
        assert!(!is_first_since(&stamp).unwrap());
        std::fs::write(&stamp, "another boot's").unwrap();
        assert!(is_first_since(&stamp).unwrap());
        std::fs::write(&stamp, "").unwrap();
        assert!(!is_first_since(&stamp).unwrap(), "libvirt's own");
    }
}
