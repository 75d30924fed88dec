//! Pools that are filesystems: mounted for as long as they are active, made and looked for on demand.

use std::sync::Arc;

use super::device::Purpose;
use super::{ANSWER, BUILD, Storage, only_host};
use crate::conf::storage::{Host, Pool, PoolType, Source};
use crate::drivers::storage::errors;
use crate::drivers::storage::flags::BuildFlags;
use crate::drivers::storage::pool::PoolObject;
use crate::error::{Error, Result};

/// What no filesystem of volumes needs.
const SAFE: &str = "nodev,nosuid,noexec";

/// What is mounted.
fn source(pool: &Pool) -> Result<String> {
    let unsupported = |sentence: &'static str| Err(errors::ours(Error::config_unsupported(sentence)));
    match pool.kind {
        PoolType::Netfs => {
            let [host] = &*pool.source.hosts else {
                return unsupported("expected exactly 1 host for the storage pool");
            };
            let directory = pool.source.directory.as_deref().unwrap_or_default();
            Ok(match pool.source.format {
                Some("cifs") => format!("//{}/{directory}", host.name),
                _ => format!("{}:{directory}", host.name),
            })
        }
        _ => match &*pool.source.devices {
            [device] => Ok(device.path.to_string()),
            _ => unsupported("expected exactly 1 device for the storage pool"),
        },
    }
}

/// Whether the table of mounts has it. Blanks stand there as octal numbers.
fn is_in_table(table: &str, source: &str, target: &str) -> bool {
    let escaped = |text: &str| text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    let (source, target) = (escaped(source), escaped(target));
    table.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(&source) && words.next() == Some(&target)
    })
}

fn is_mounted(pool: &Pool) -> Result<bool> {
    let source = source(pool)?;
    let table = std::fs::read_to_string("/proc/mounts")
        .map_err(|error| Storage::io("cannot read mount list '/proc/mounts'", error))?;
    // A device is often named by a link to it.
    let real = std::fs::canonicalize(&source).map(|path| path.display().to_string());
    let is = |source: &str| is_in_table(&table, source, &pool.path);
    Ok(is(&source) || real.is_ok_and(|real| is(&real)))
}

impl Storage {
    pub(super) async fn is_mounted(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<bool> {
        let pool = Arc::clone(pool);
        object.blocking(move || is_mounted(&pool)).await
    }

    pub(super) async fn mount(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<()> {
        if self.is_mounted(object, pool).await? {
            return Ok(());
        }
        let format = pool.source.format.unwrap_or("auto");
        let mut options = vec![SAFE.to_owned()];
        match (pool.kind, format) {
            (PoolType::Netfs, "glusterfs") => options.push("direct-io-mode=1".to_owned()),
            (PoolType::Netfs, "cifs") => options.push("guest".to_owned()),
            _ => {
                let version = pool.source.protocol_version.as_ref().filter(|_| pool.kind == PoolType::Netfs);
                options.extend(version.map(|version| format!("nfsvers={version}")));
            }
        }
        options.extend(pool.mount_options.iter().map(|option| option.to_string()));
        let options = options.join(",");
        let source = source(pool)?;
        // `mount` alone finds out which network filesystem it is, `-t auto` does not.
        let kind: &[&str] = match (pool.kind, format) {
            (PoolType::Netfs, "auto") => &[],
            _ => &["-t", format],
        };
        let args = [&["-o", &options], kind, &["--", &source, &pool.path]].concat();
        self.tools.tool("mount", &args, ANSWER).await?;
        Ok(())
    }

    pub(super) async fn unmount(&self, object: &PoolObject, pool: &Arc<Pool>) -> Result<()> {
        if !self.is_mounted(object, pool).await? {
            return Ok(());
        }
        self.tools.tool("umount", &["--", &pool.path], ANSWER).await?;
        Ok(())
    }

    /// Makes a filesystem on the pool's device.
    pub(super) async fn format(
        &self,
        object: &PoolObject,
        pool: &Arc<Pool>,
        flags: BuildFlags,
    ) -> Result<()> {
        let name = &pool.name;
        let Some(device) = pool.source.devices.first().map(|device| device.path.clone()) else {
            let sentence = format!("No source device specified when formatting pool '{name}'");
            return Err(errors::invalid(sentence));
        };
        if !Self::device_exists(object, &device).await? {
            let sentence = format!("Source device does not exist when formatting pool '{name}'");
            return Err(errors::invalid(sentence));
        }
        let format = pool.source.format.unwrap_or("auto");
        if !flags.contains(BuildFlags::OVERWRITE) {
            self.check_device(&device, format, Purpose::Overwrite).await?;
        }
        let force: &[&str] = match format {
            "xfs" => &["-f"],
            "ext2" | "ext3" | "ext4" => &["-F"],
            "vfat" => &["-I"],
            _ => &[],
        };
        self.tools.tool("mkfs", &[&["-t", format], force, &[&device]].concat(), BUILD).await?;
        Ok(())
    }

    /// What an NFS server exports.
    pub(super) async fn exports_of(&self, wanted: &Source) -> Result<Vec<Source>> {
        let host = only_host(wanted)?;
        let args = ["--no-headers", "--exports", "--", &host.name];
        let Ok(exports) = self.tools.tool("showmount", &args, ANSWER).await else {
            let sentence = format!("no storage pools were found on host '{}'", host.name);
            return Err(errors::ours(Error::operation_failed(sentence)));
        };
        let sources: Vec<_> = exported(&String::from_utf8_lossy(&exports))
            .map(|path| Source {
                hosts: vec![Host { name: host.name.clone(), port: 0 }],
                directory: Some(path.into()),
                format: Some("nfs"),
                ..Source::default()
            })
            .collect();
        Ok(sources)
    }
}

/// The paths in what `showmount` prints: each stands before those who may have it, and may hold blanks.
fn exported(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (path, clients) = line.trim_end().rsplit_once(' ')?;
        let path = path.trim_end();
        (path.starts_with('/') && path.len() > 1 && !clients.is_empty()).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_with_blanks_in_their_names() {
        let table = "/dev/sda1 / ext4 rw 0 0\nhost:/a\\040b /mnt/x\\040y nfs rw 0 0\n";
        assert!(is_in_table(table, "host:/a b", "/mnt/x y"));
        assert!(!is_in_table(table, "host:/a", "/mnt/x y"));
        assert!(!is_in_table(table, "/dev/sda1", "/mnt"));
    }

    #[test]
    fn exports_are_the_paths_before_their_clients() {
        let text = "/tmp   *\n/A dir demo1.foo.bar,demo2.foo.bar\nnonsense\n";
        assert_eq!(exported(text).collect::<Vec<_>>(), ["/tmp", "/A dir"]);
    }
}
