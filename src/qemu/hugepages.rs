//! Where the host has huge pages for guests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A file system of pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hugetlbfs {
    pub page_kib: u64,
    pub mount: PathBuf,
}

impl Hugetlbfs {
    /// Where the guest that is called `ID-NAME` has its pages.
    pub fn guest_directory(&self, name: &OsStr) -> PathBuf {
        self.mount.join("libvirt/qemu").join(name)
    }
}

/// The mounted ones: first those of the size that the host takes by default.
pub fn mounted() -> Vec<Hugetlbfs> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    parse(&read("/proc/mounts"), &read("/proc/meminfo"))
}

fn parse(mounts: &str, meminfo: &str) -> Vec<Hugetlbfs> {
    let size = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    let default_kib: u64 = size.and_then(|size| size.split_whitespace().next()?.parse().ok()).unwrap_or(2048);
    let mut found: Vec<Hugetlbfs> = mounts.lines().filter_map(|line| one(line, default_kib)).collect();
    found.sort_by_key(|mounted| mounted.page_kib != default_kib);
    found
}

fn one(line: &str, default_kib: u64) -> Option<Hugetlbfs> {
    let mut fields = line.split(' ');
    let (_, mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if kind != "hugetlbfs" {
        return None;
    }
    let given = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
    let page_kib = given.and_then(kib).unwrap_or(default_kib);
    Some(Hugetlbfs { page_kib, mount: Path::new(&unescaped(mount)).to_owned() })
}

/// `2M` as 2048.
fn kib(text: &str) -> Option<u64> {
    let split = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    match unit {
        "" => Some(number >> 10),
        "K" | "k" => Some(number),
        "M" => number.checked_mul(1 << 10),
        "G" => number.checked_mul(1 << 20),
        _ => None,
    }
}

/// The kernel writes blanks in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_size_comes_first() {
        let mounts = "sys /sys sysfs rw 0 0\n\
            huge /mnt/a\\040b hugetlbfs rw,relatime,pagesize=1024M 0 0\n\
            hugetlbfs /dev/hugepages hugetlbfs rw,relatime 0 0\n";
        let found = parse(mounts, "MemTotal: 1 kB\nHugepagesize:       2048 kB\n");
        let pages = |page_kib, mount: &str| Hugetlbfs { page_kib, mount: mount.into() };
        assert_eq!(found, [pages(2048, "/dev/hugepages"), pages(1 << 20, "/mnt/a b")]);
        assert_eq!(found[0].guest_directory("1-x".as_ref()), Path::new("/dev/hugepages/libvirt/qemu/1-x"));
        assert_eq!(parse("x /y tmpfs rw 0 0\nbroken\n", ""), []);
    }
}
