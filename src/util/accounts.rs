//! Users and groups of the host, by name and by number, and doing something as one of them.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::str::FromStr;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, setfsgid, setfsuid};
use rustix::process::{getegid, geteuid};
use thiserror::Error;

/// A user's and a group's number; `+64055:+107` as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ids {
    pub user: u32,
    pub group: u32,
}

/// A name that nobody has. The texts are libvirt's, its code is `VIR_ERR_INVALID_ARG`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnknownId {
    #[error("Failed to parse user '{0}'")]
    User(String),
    #[error("Failed to parse group '{0}'")]
    Group(String),
    #[error("Failed to parse uid and gid from '{0}'")]
    Label(String),
}

/// A user's number. `+7` is a number and nothing else; `7` may be a name.
pub fn user_id(name: &str) -> Result<u32, UnknownId> {
    let by_name = || User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    number_or(name, by_name).ok_or_else(|| UnknownId::User(name.trim_start_matches('+').to_owned()))
}

/// A group's number.
pub fn group_id(name: &str) -> Result<u32, UnknownId> {
    let by_name = || Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    number_or(name, by_name).ok_or_else(|| UnknownId::Group(name.trim_start_matches('+').to_owned()))
}

fn number_or(name: &str, by_name: impl FnOnce() -> Option<u32>) -> Option<u32> {
    match name.strip_prefix('+') {
        Some(number) => number.parse().ok(),
        None => by_name().or_else(|| name.parse().ok()),
    }
}

impl Ids {
    /// Those of this process.
    pub fn own() -> Self {
        Self { user: geteuid().as_raw(), group: getegid().as_raw() }
    }

    /// Every group that a process of this user's is in: his own first one as well, through which Debian's
    /// `libvirt-qemu` reaches `/dev/kvm`.
    pub fn groups(self) -> Vec<u32> {
        let user = User::from_uid(Uid::from_raw(self.user)).ok().flatten();
        let listed = user.and_then(|user| getgrouplist(&CString::new(user.name).ok()?, user.gid).ok());
        let mut groups: Vec<u32> = listed.unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        if !groups.contains(&self.group) {
            groups.push(self.group);
        }
        groups
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}:+{}", self.user, self.group)
    }
}

impl FromStr for Ids {
    type Err = UnknownId;

    fn from_str(label: &str) -> Result<Self, UnknownId> {
        let (user, group) = label.split_once(':').ok_or_else(|| UnknownId::Label(label.to_owned()))?;
        Ok(Self { user: user_id(user)?, group: group_id(group)? })
    }
}

/// Does something with files as a user whom the kernel grants what it grants him, and no more. Only this thread
/// becomes him, so nothing in `work` may wait for another.
pub fn as_user<R>(ids: Ids, work: impl FnOnce() -> R) -> R {
    /// Becomes who it was again, also when `work` panics.
    struct Back {
        before: Ids,
        groups: Vec<rustix::process::Gid>,
    }

    impl Drop for Back {
        fn drop(&mut self) {
            setfsuid(Uid::from_raw(self.before.user));
            setfsgid(Gid::from_raw(self.before.group));
            // It was in them a moment ago, and may be in any as the root it is again.
            let _ = rustix::thread::set_thread_groups(&self.groups);
        }
    }

    let own = Ids::own();
    if ids == own || own.user != 0 {
        return work();
    }
    let groups = rustix::process::getgroups().unwrap_or_default();
    let _back = Back { before: own, groups };
    let theirs: Vec<_> = ids.groups().into_iter().map(rustix::process::Gid::from_raw).collect();
    // Should this fail, the user has fewer rights here than a process of his would have.
    let _ = rustix::thread::set_thread_groups(&theirs);
    setfsgid(Gid::from_raw(ids.group));
    setfsuid(Uid::from_raw(ids.user));
    work()
}

/// Does something with files as this daemon, and again as a user if it may not: where a server of files takes root for
/// nobody, he may.
pub fn or_as_user<R>(user: Option<Ids>, work: impl Fn() -> io::Result<R>) -> io::Result<R> {
    match (work(), user) {
        (Err(error), Some(ids)) if error.kind() == io::ErrorKind::PermissionDenied => as_user(ids, work),
        (done, _) => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn names_and_numbers_are_ids() {
        assert_eq!("root:root".parse(), Ok(Ids { user: 0, group: 0 }));
        assert_eq!("+64055:+107".parse(), Ok(Ids { user: 64055, group: 107 }));
        assert_eq!("4000000:0".parse(), Ok(Ids { user: 4_000_000, group: 0 }));
        assert_eq!(Ids { user: 7, group: 8 }.to_string(), "+7:+8");
        for (label, error) in [
            ("root", "Failed to parse uid and gid from 'root'"),
            ("+x:+1", "Failed to parse user 'x'"),
            ("no-such-user:0", "Failed to parse user 'no-such-user'"),
            ("0:no-such-group", "Failed to parse group 'no-such-group'"),
            ("+4294967296:0", "Failed to parse user '4294967296'"),
        ] {
            assert_eq!(label.parse::<Ids>().unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_user_without_a_name_is_in_one_group() {
        assert_eq!(Ids { user: 4_000_000, group: 4_000_001 }.groups(), [4_000_001]);
        let root = Ids { user: 0, group: 4_000_001 }.groups();
        assert!(
            root.contains(&4_000_001) && root.contains(&0),
            "its own first group, whichever it is run in"
        );
    }

    #[test]
    fn another_user_sees_what_he_may_see() {
        if !geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let other = Ids { user: 64_999, group: 64_998 };
        let read = as_user(other, || fs::read(&file));
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(fs::read(&file).unwrap(), b"x", "and is nobody else afterwards");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let made = directory.path().join("made");
        as_user(other, || fs::write(&made, "y")).unwrap();
        let made = fs::metadata(&made).unwrap();
        assert_eq!((made.uid(), made.gid()), (64_999, 64_998));
    }
}
