//! Files that change hands together: all of them, or none.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::lock::Locks;
use super::remember::{self, Recalled};
use super::{Owners, SecurityError};
use crate::util::accounts::Ids;

/// A file that a guest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gift {
    pub path: PathBuf,
    pub ids: Ids,
    /// Its owner is noted, if the guest's owners are at all: others may use it, and do not lose it.
    pub owner: Owners,
    pub after: After,
}

/// What becomes of a file when its guest is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    GivenBack,
    /// As [`After::GivenBack`], unless the guest went on to another host that has the file, too.
    FollowsGuest,
    /// Others may use it whom nobody knows of.
    Stays,
}

/// Gives files away. Should one of them stay where it is, so do all.
pub(super) fn give(gifts: &[Gift], owners: Owners, boot: u64) -> Result<(), SecurityError> {
    let noted = Noted::of(gifts, owners)?;
    for (at, gift) in gifts.iter().enumerate() {
        if let Err(error) = give_one(gift, noted.includes(gift), boot) {
            for given in gifts.iter().take(at).rev() {
                take_back_one(given, noted.includes(given), boot);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Gives files back to whom they belonged, as far as that is possible, but for those that `is_elsewhere` says are in
/// use on another host. That they were in use here is forgotten.
pub(super) fn take_back(gifts: &[Gift], owners: Owners, boot: u64, is_elsewhere: impl Fn(&Path) -> bool) {
    let noted = match Noted::of(gifts, owners) {
        Ok(noted) => noted,
        Err(error) => {
            tracing::warn!(%error, "files stay with the user of a guest that is gone");
            return;
        }
    };
    for gift in gifts.iter().filter(|gift| gift.after != After::Stays) {
        let owners = noted.includes(gift);
        if gift.after != After::FollowsGuest || !is_elsewhere(&gift.path) {
            take_back_one(gift, owners, boot);
        } else if owners == Owners::Remembered
            && let Err(error) = remember::recall(&gift.path, boot)
        {
            tracing::warn!(path = %gift.path.display(), %error, "the note of a file's owner stays");
        }
    }
}

/// The files whose owners are noted while they change.
struct Noted {
    locks: Option<Locks>,
}

impl Noted {
    fn of(gifts: &[Gift], owners: Owners) -> Result<Self, SecurityError> {
        let noted = || gifts.iter().filter(|gift| gift.owner == Owners::Remembered).map(|gift| &*gift.path);
        let locks = match owners {
            Owners::Remembered => Some(Locks::take(noted())?),
            Owners::Forgotten => None,
        };
        Ok(Self { locks })
    }

    fn includes(&self, gift: &Gift) -> Owners {
        let is_locked = self.locks.as_ref().is_some_and(|locks| locks.has(&gift.path));
        match gift.owner == Owners::Remembered && is_locked {
            true => Owners::Remembered,
            false => Owners::Forgotten,
        }
    }
}

fn give_one(gift: &Gift, owners: Owners, boot: u64) -> Result<(), SecurityError> {
    let path = &gift.path;
    let found = stat(path)?;
    let owner = Ids { user: found.uid(), group: found.gid() };
    if owners == Owners::Remembered
        && remember::remember(path, owner, boot)?.is_some_and(|guests| guests > 1)
        && owner != gift.ids
    {
        // Another guest would lose it.
        remember::recall(path, boot)?;
        return Err(SecurityError::InUse { path: path.clone() });
    }
    let changed = change_owner(path, &found, gift.ids);
    if changed.is_err() && owners == Owners::Remembered {
        remember::recall(path, boot)?;
    }
    changed
}

fn take_back_one(gift: &Gift, owners: Owners, boot: u64) {
    let path = &gift.path;
    if !path.exists() {
        return;
    }
    let given_back = (|| {
        let owner = match owners {
            Owners::Remembered => match remember::recall(path, boot)? {
                Recalled::InUse => return Ok(()),
                Recalled::Owner(owner) => owner,
                Recalled::Nothing => NOBODY_NOTED,
            },
            Owners::Forgotten => NOBODY_NOTED,
        };
        change_owner(path, &stat(path)?, owner)
    })();
    if let Err(error) = given_back {
        tracing::warn!(path = %path.display(), %error, "a file stays with the user of a guest that is gone");
    }
}

/// Whose a file is afterwards when nobody knows whose it was.
const NOBODY_NOTED: Ids = Ids { user: 0, group: 0 };

fn stat(path: &Path) -> Result<Metadata, SecurityError> {
    std::fs::metadata(path)
        .map_err(|source| SecurityError::system(format!("unable to stat: {}", path.display()), source))
}

/// Changes a file's owner. Where that is not possible the file stays whose it is: QEMU may have access all the
/// same, on a server that grants root nothing, or through the file's group.
fn change_owner(path: &Path, found: &Metadata, ids: Ids) -> Result<(), SecurityError> {
    if (found.uid(), found.gid()) == (ids.user, ids.group) {
        return Ok(());
    }
    let Err(error) = std::os::unix::fs::chown(path, Some(ids.user), Some(ids.group)) else { return Ok(()) };
    if is_impossible(&error) {
        tracing::info!(path = %path.display(), %ids, %error, "a file keeps its owner");
        return Ok(());
    }
    let Ids { user, group } = ids;
    let sentence = format!("unable to set user and group to '{user}:{group}' on '{}'", path.display());
    Err(SecurityError::system(sentence, error))
}

fn is_impossible(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::ROFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ids = Ids { user: 64_999, group: 64_998 };
    const OTHER: Ids = Ids { user: 64_997, group: 64_997 };
    const BOOT: u64 = 1_700_000_000;

    fn gift(path: &Path, ids: Ids) -> Gift {
        Gift { path: path.to_owned(), ids, owner: Owners::Remembered, after: After::GivenBack }
    }

    fn owner(path: &Path) -> Ids {
        let found = std::fs::metadata(path).unwrap();
        Ids { user: found.uid(), group: found.gid() }
    }

    /// Two files of user 1; nothing where this process cannot give files away.
    fn files() -> Option<(tempfile::TempDir, [PathBuf; 2])> {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| directory.path().join(name));
        for path in &paths {
            std::fs::write(path, "x").unwrap();
            std::os::unix::fs::chown(path, Some(1), Some(1)).ok()?;
        }
        Some((directory, paths))
    }

    #[test]
    fn files_go_to_the_guest_and_back() {
        let Some((_directory, [one, two])) = files() else { return };
        let gifts = [gift(&one, GUEST), Gift { after: After::Stays, ..gift(&two, GUEST) }];
        give(&gifts, Owners::Remembered, BOOT).unwrap();
        assert_eq!((owner(&one), owner(&two)), (GUEST, GUEST));
        take_back(&gifts, Owners::Remembered, BOOT, |_| false);
        assert_eq!((owner(&one), owner(&two)), (Ids { user: 1, group: 1 }, GUEST));
        give(&gifts, Owners::Forgotten, BOOT).unwrap();
        take_back(&gifts, Owners::Forgotten, BOOT, |_| false);
        assert_eq!(owner(&one), NOBODY_NOTED);
    }

    #[test]
    fn what_the_guest_uses_on_another_host_stays_its_own() {
        let Some((_directory, [one, two])) = files() else { return };
        let image = Gift { after: After::FollowsGuest, ..gift(&one, GUEST) };
        let gifts = [image, gift(&two, GUEST)];
        give(&gifts, Owners::Remembered, BOOT).unwrap();
        take_back(&gifts, Owners::Remembered, BOOT, |_| true);
        assert_eq!((owner(&one), owner(&two)), (GUEST, Ids { user: 1, group: 1 }));
        // Nothing is noted any more.
        assert_eq!(remember::recall(&one, BOOT).unwrap(), Recalled::Nothing);
        give(&gifts, Owners::Remembered, BOOT).unwrap();
        take_back(&gifts, Owners::Remembered, BOOT, |_| false);
        assert_eq!(owner(&one), GUEST);
    }

    #[test]
    fn all_change_hands_or_none() {
        let Some((directory, [one, two])) = files() else { return };
        give(&[gift(&two, OTHER)], Owners::Remembered, BOOT).unwrap();
        let error = give(&[gift(&one, GUEST), gift(&two, GUEST)], Owners::Remembered, BOOT).unwrap_err();
        let sentence =
            format!("Setting different DAC user or group on {} which is already in use", two.display());
        assert_eq!(error.to_string(), sentence);
        assert_eq!((owner(&one), owner(&two)), (Ids { user: 1, group: 1 }, OTHER));
        let missing = directory.path().join("missing");
        let error = give(&[gift(&one, GUEST), gift(&missing, GUEST)], Owners::Remembered, BOOT).unwrap_err();
        assert!(error.to_string().starts_with("unable to stat: /"), "{error}");
        assert_eq!(owner(&one), Ids { user: 1, group: 1 });
        // What the other guest has noted still holds.
        take_back(&[gift(&two, OTHER)], Owners::Remembered, BOOT, |_| false);
        assert_eq!(owner(&two), Ids { user: 1, group: 1 });
    }

    #[test]
    fn guests_of_one_user_share_a_file() {
        let Some((_directory, [one, _])) = files() else { return };
        let gifts = [gift(&one, GUEST)];
        give(&gifts, Owners::Remembered, BOOT).unwrap();
        give(&gifts, Owners::Remembered, BOOT).unwrap();
        take_back(&gifts, Owners::Remembered, BOOT, |_| false);
        assert_eq!(owner(&one), GUEST);
        take_back(&gifts, Owners::Remembered, BOOT, |_| false);
        assert_eq!(owner(&one), Ids { user: 1, group: 1 });
    }
}
