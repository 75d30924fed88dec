//! When the host booted, and whether something is the first of its kind since.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Where the C library keeps who is logged in, and when the host booted.
const RECORDS: &str = "/run/utmp";
const RECORD_LEN: usize = 384;
const RECORD_OF_BOOT: i16 = 2;
const SECONDS_AT: usize = 340;

/// Seconds from 1970 to the boot, as libvirt knows them: from the login records, or else from the clock, by
/// which they may be one more or less at another moment.
pub fn time() -> io::Result<u64> {
    const MAX_RECORDS: u64 = 1 << 20;
    let recorded = file::read_at_most(Path::new(RECORDS), MAX_RECORDS).ok().and_then(|it| recorded_boot(&it));
    if let Some(seconds) = recorded {
        return Ok(seconds);
    }
    let text = std::fs::read_to_string("/proc/uptime")?;
    let uptime: Option<f64> = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    let uptime = uptime.ok_or(io::ErrorKind::InvalidData)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
    Ok((now as f64 - uptime).round() as u64)
}

fn recorded_boot(records: &[u8]) -> Option<u64> {
    let is_boot = |record: &&[u8]| record.starts_with(&RECORD_OF_BOOT.to_ne_bytes());
    let record = records.chunks_exact(RECORD_LEN).find(is_boot)?;
    let seconds = record.get(SECONDS_AT..SECONDS_AT + 4)?.try_into().ok()?;
    u64::try_from(i32::from_ne_bytes(seconds)).ok().filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_is_among_the_login_records_or_on_the_clock() {
        let mut records = vec![0; 2 * RECORD_LEN];
        assert_eq!(recorded_boot(&records), None);
        records[RECORD_LEN..RECORD_LEN + 2].copy_from_slice(&RECORD_OF_BOOT.to_ne_bytes());
        records[RECORD_LEN + SECONDS_AT..RECORD_LEN + SECONDS_AT + 4]
            .copy_from_slice(&1_700_000_000_i32.to_ne_bytes());
        assert_eq!(recorded_boot(&records), Some(1_700_000_000));
        assert!(time().unwrap() > 1_000_000_000);
    }

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
