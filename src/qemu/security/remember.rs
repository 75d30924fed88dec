//! Who owned a file before guests did, written beside it in libvirt's form: its daemon gives back what ours
//! noted, and the other way round.
//!
//! | attribute `trusted.libvirt.security.…` | |
//! |---|---|
//! | `dac` | the owner before the first guest, `+0:+107` |
//! | `ref_dac` | how many guests use the file |
//! | `timestamp_dac` | when the host booted: notes of an earlier boot are of guests that are gone |

use std::path::Path;

use super::SecurityError;
use crate::util::accounts::Ids;
use crate::util::xattr;

const OWNER: &str = "trusted.libvirt.security.dac";
const COUNT: &str = "trusted.libvirt.security.ref_dac";
const BOOT: &str = "trusted.libvirt.security.timestamp_dac";

/// The clock of one daemon and that of the next tell the time of the boot with this much difference.
const CLOCK_SLACK_S: u64 = 2;

/// What a file's notes say when a guest lets go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recalled {
    /// Others use it still.
    InUse,
    Owner(Ids),
    /// Nothing is noted.
    Nothing,
}

/// Notes that one more guest uses a file of `owner`; answers how many that makes, nothing where the file system
/// keeps no notes.
pub(super) fn remember(path: &Path, owner: Ids, boot: u64) -> Result<Option<u32>, SecurityError> {
    let count = match valid_count(path, boot) {
        Ok(Notes::Unsupported) => return Ok(None),
        Ok(Notes::None) => 1,
        Ok(Notes::Count(count)) => count.saturating_add(1),
        Err(error) => return Err(error),
    };
    if count == 1 {
        set(path, OWNER, &owner.to_string())?;
        set(path, BOOT, &boot.to_string())?;
    }
    set(path, COUNT, &count.to_string())?;
    Ok(Some(count))
}

/// Notes that one guest less uses a file.
pub(super) fn recall(path: &Path, boot: u64) -> Result<Recalled, SecurityError> {
    let count = match valid_count(path, boot)? {
        Notes::Unsupported | Notes::None => return Ok(Recalled::Nothing),
        Notes::Count(count) => count.saturating_sub(1),
    };
    if count > 0 {
        set(path, COUNT, &count.to_string())?;
        return Ok(Recalled::InUse);
    }
    let owner = get(path, OWNER)?;
    forget(path)?;
    match owner {
        Some(owner) => Ok(Recalled::Owner(owner.parse()?)),
        None => Ok(Recalled::Nothing),
    }
}

fn forget(path: &Path) -> Result<(), SecurityError> {
    [COUNT, OWNER, BOOT].into_iter().try_for_each(|name| {
        xattr::remove(path, name).map_err(|source| {
            SecurityError::system(format!("Unable to remove XATTR {name} on {}", path.display()), source)
        })
    })
}

enum Notes {
    Unsupported,
    None,
    Count(u32),
}

/// The count of guests that use a file; notes of an earlier boot are wiped.
fn valid_count(path: &Path, boot: u64) -> Result<Notes, SecurityError> {
    let text = match xattr::get(path, COUNT) {
        Err(error) if xattr::is_unsupported(&error) => return Ok(Notes::Unsupported),
        found => found.map_err(|source| unreadable(path, COUNT, source))?,
    };
    let Some(text) = text else { return Ok(Notes::None) };
    let noted = get(path, BOOT)?.and_then(|noted| noted.parse::<u64>().ok());
    if noted.is_none_or(|noted| noted.abs_diff(boot) > CLOCK_SLACK_S) {
        tracing::warn!(path = %path.display(), "the owner noted for a file is of an earlier boot");
        forget(path)?;
        return Ok(Notes::None);
    }
    text.parse()
        .map(Notes::Count)
        .map_err(|_| SecurityError::Malformed(format!("malformed refcount {text} on {}", path.display())))
}

fn get(path: &Path, name: &str) -> Result<Option<String>, SecurityError> {
    xattr::get(path, name).map_err(|source| unreadable(path, name, source))
}

fn unreadable(path: &Path, name: &str, source: std::io::Error) -> SecurityError {
    SecurityError::system(format!("Unable to get XATTR {name} on {}", path.display()), source)
}

fn set(path: &Path, name: &str, value: &str) -> Result<(), SecurityError> {
    xattr::set(path, name, value).map_err(|source| {
        SecurityError::system(format!("Unable to set XATTR {name} on {}", path.display()), source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Ids = Ids { user: 7, group: 8 };
    const SECOND: Ids = Ids { user: 9, group: 9 };

    /// A file that can have notes, if this process may write any.
    fn file() -> Option<tempfile::NamedTempFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        match xattr::set(file.path(), OWNER, "x") {
            Ok(()) => xattr::remove(file.path(), OWNER).unwrap(),
            Err(_) => return None,
        }
        Some(file)
    }

    #[test]
    fn the_first_owner_is_given_back_by_the_last_guest() {
        let Some(file) = file() else { return };
        let path = file.path();
        assert_eq!(recall(path, 100).unwrap(), Recalled::Nothing);
        assert_eq!(remember(path, FIRST, 100).unwrap(), Some(1));
        assert_eq!(remember(path, SECOND, 101).unwrap(), Some(2));
        let notes = [OWNER, COUNT, BOOT].map(|name| xattr::get(path, name).unwrap().unwrap());
        assert_eq!(notes, ["+7:+8", "2", "100"]);
        assert_eq!(recall(path, 100).unwrap(), Recalled::InUse);
        assert_eq!(recall(path, 100).unwrap(), Recalled::Owner(FIRST));
        assert_eq!([OWNER, COUNT, BOOT].map(|name| xattr::get(path, name).unwrap()), [None, None, None]);
    }

    #[test]
    fn notes_of_an_earlier_boot_do_not_count() {
        let Some(file) = file() else { return };
        let path = file.path();
        remember(path, FIRST, 100).unwrap();
        assert_eq!(remember(path, SECOND, 200).unwrap(), Some(1));
        assert_eq!(recall(path, 200).unwrap(), Recalled::Owner(SECOND));
        remember(path, FIRST, 100).unwrap();
        assert_eq!(recall(path, 200).unwrap(), Recalled::Nothing);
        xattr::set(path, COUNT, "many").unwrap();
        xattr::set(path, BOOT, "200").unwrap();
        let error = remember(path, FIRST, 200).unwrap_err().to_string();
        assert_eq!(error, format!("malformed refcount many on {}", path.display()));
    }
}
