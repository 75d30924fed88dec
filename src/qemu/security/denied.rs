//! Why a user cannot open a file, and what would let him.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::{Gift, Owners};
use crate::util::accounts::{Ids, as_user};

/// Names the first file of a guest's that its user cannot open, what of its path is in his way, and the way out.
/// The kernel decides, so this can be asked only of files that are his by now.
pub fn explain(gifts: &[Gift], ids: Ids) -> Option<String> {
    gifts.iter().find_map(|gift| {
        let path = &gift.path;
        let reads_only = gift.owner == Owners::Forgotten;
        as_user(ids, || in_the_way(path, reads_only)).map(|denied| denied.sentence(ids))
    })
}

/// What keeps somebody from a file.
#[derive(Debug, PartialEq, Eq)]
struct Denied<'a> {
    component: &'a Path,
    right: &'static str,
    letter: char,
}

impl Denied<'_> {
    fn sentence(&self, ids: Ids) -> String {
        let Self { component, right, letter } = self;
        let (component, Ids { user, group }) = (component.display(), ids);
        let kind = if *letter == 'x' { "directory" } else { "file" };
        format!(
            "{kind} '{component}' gives uid {user}, gid {group} no {right} permission: \
             grant it (setfacl -m u:{user}:{letter} '{component}') or keep the file elsewhere"
        )
    }
}

fn in_the_way(path: &Path, reads_only: bool) -> Option<Denied<'_>> {
    let denied = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let mut directories: Vec<&Path> = path.ancestors().skip(1).collect();
    directories.reverse();
    let closed = directories.into_iter().find(|it| std::fs::metadata(it.join(".")).is_err_and(denied));
    if let Some(component) = closed.filter(|it| !it.as_os_str().is_empty()) {
        return Some(Denied { component, right: "search", letter: 'x' });
    }
    let opens = |write: bool| {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        File::options().read(!write).write(write).custom_flags(flags).open(path)
    };
    let [reads, writes] = [false, true].map(|write| opens(write).is_err_and(denied));
    match (reads, writes && !reads_only) {
        (true, _) => Some(Denied { component: path, right: "read", letter: 'r' }),
        (false, true) => Some(Denied { component: path, right: "write", letter: 'w' }),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::After;
    use super::*;

    #[test]
    fn the_component_the_right_and_the_user_are_named() {
        let ids = Ids { user: 64_999, group: 64_998 };
        if Ids::own().user != 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("closed");
        let file = directory.join("file");
        fs::create_dir(&directory).unwrap();
        fs::write(&file, "x").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let gift = |owner| Gift { path: file.clone(), ids, owner, after: After::Stays };
        let explained = |owner| explain(&[gift(owner)], ids);
        mode(root.path(), 0o711);
        mode(&directory, 0o700);
        mode(&file, 0o600);
        let sentence = format!(
            "directory '{0}' gives uid 64999, gid 64998 no search permission: \
             grant it (setfacl -m u:64999:x '{0}') or keep the file elsewhere",
            directory.display()
        );
        assert_eq!(explained(Owners::Remembered), Some(sentence));
        mode(&directory, 0o711);
        assert!(explained(Owners::Remembered).unwrap().contains("no read permission"));
        mode(&file, 0o644);
        assert!(explained(Owners::Remembered).unwrap().contains("no write permission"));
        assert_eq!(explained(Owners::Forgotten), None);
        mode(&file, 0o666);
        assert_eq!(explained(Owners::Remembered), None);
    }
}
