//! Targets of iSCSI, through `iscsiadm`.
//!
//! A target that wants a password is not logged in to: `iscsiadm` takes one on its command line only, where
//! every user of the host could read it.

use std::sync::Arc;

use super::{Found, Storage, only_host, scsi};
use crate::conf::storage::{Device, Host, Pool, Source};
use crate::drivers::storage::errors;
use crate::drivers::storage::pool::PoolObject;
use crate::error::{Error, Result};

const PORT: i32 = 3260;

fn portal(source: &Source) -> Result<String> {
    let Host { name, port } = only_host(source)?;
    let port = if *port == 0 { PORT } else { *port };
    Ok(match name.contains(':') {
        true => format!("[{name}]:{port},1"),
        false => format!("{name}:{port},1"),
    })
}

fn target(pool: &Pool) -> Result<&str> {
    match &*pool.source.devices {
        [device] => Ok(&device.path),
        _ => Err(errors::ours(Error::internal_error("missing source device"))),
    }
}

/// The session in "tcp: [1] 192.168.122.170:3260,1 iqn.target (non-flash)" of a target.
fn session<'a>(said: &'a str, target: &str) -> Option<&'a str> {
    said.lines().find_map(|line| {
        let mut words = line.strip_prefix("tcp:")?.split_whitespace();
        let number = words.next()?.strip_prefix('[')?.strip_suffix(']')?;
        (words.nth(1)? == target).then_some(number)
    })
}

impl Storage {
    /// The number of the session with the pool's target, if there is one.
    pub(super) async fn session(&self, pool: &Pool) -> Result<Option<String>> {
        only_host(&pool.source)?;
        let target = target(pool)?;
        // Fails where there is no session at all.
        let said = self.ask("iscsiadm", &["--mode", "session"]).await.unwrap_or_default();
        Ok(session(&said, target).map(str::to_owned))
    }

    pub(super) async fn log_in(&self, pool: &Pool) -> Result<()> {
        if self.session(pool).await?.is_some() {
            return Ok(());
        }
        let refused = |sentence| Err(errors::ours(Error::config_unsupported(sentence)));
        if pool.source.auth.is_some() {
            return refused(
                "iscsi pools with a password are not supported: iscsiadm takes it on its command line only",
            );
        }
        if pool.source.initiator.is_some() {
            return refused("iscsi pools with an initiator of their own are not supported");
        }
        let (portal, target) = (portal(&pool.source)?, target(pool)?);
        let node = ["--mode", "node", "--portal", &portal, "--targetname", target];
        self.ask("iscsiadm", &[&node[..], &["--op", "new"]].concat()).await?;
        self.ask("iscsiadm", &[&node[..], &["--login"]].concat()).await.map(drop)
    }

    pub(super) async fn log_out(&self, pool: &Pool) -> Result<()> {
        if self.session(pool).await?.is_none() {
            return Ok(());
        }
        let (portal, target) = (portal(&pool.source)?, target(pool)?);
        let args = ["--mode", "node", "--portal", &portal, "--targetname", target, "--logout"];
        self.ask("iscsiadm", &args).await.map(drop)
    }

    pub(super) async fn look_through_session(&self, object: &Arc<PoolObject>, pool: &Pool) -> Result<Found> {
        let none = || errors::ours(Error::internal_error("cannot find iscsiadm session"));
        let session = self.session(pool).await?.ok_or_else(none)?;
        self.ask("iscsiadm", &["--mode", "session", "-r", &session, "-R"]).await?;
        self.settle().await;
        let directory = pool.path.clone();
        object.blocking(move || scsi::look(host(&session)?, &directory)).await
    }

    pub(super) async fn targets_of(&self, wanted: &Source) -> Result<Vec<Source>> {
        let host = only_host(wanted)?;
        let portal = portal(wanted)?;
        let args =
            ["--mode", "discovery", "--type", "sendtargets", "--portal", &portal, "--op", "nonpersistent"];
        let said = self.ask("iscsiadm", &args).await?;
        // "192.168.122.170:3260,1 iqn.target"
        let targets = said.lines().filter_map(|line| line.split_whitespace().nth(1));
        let source = |target: &str| Source {
            hosts: vec![Host {
                name: host.name.clone(),
                port: if host.port == 0 { PORT } else { host.port },
            }],
            devices: vec![Device { path: target.into(), part_separator: None, free: Vec::new() }],
            initiator: wanted.initiator.clone(),
            ..Source::default()
        };
        Ok(targets.map(source).collect())
    }
}

/// The number of the adapter that the kernel made for a session.
fn host(session: &str) -> Result<u32> {
    let path = format!("/sys/class/iscsi_session/session{session}/device");
    let entries = std::fs::read_dir(&path).map_err(|error| errors::no_directory(&path, error))?;
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let number = names.find_map(|name| name.strip_prefix("target")?.split(':').next()?.parse().ok());
    number.ok_or_else(|| {
        let sentence = format!("Failed to get host number for iSCSI session with path '{path}'");
        errors::ours(Error::internal_error(sentence))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_by_its_target() {
        let said = "tcp: [1] 192.168.122.170:3260,1 demo-tgt-b\ntcp: [2] 192.168.122.170:3260,1 demo-tgt-a (non-flash)\n";
        assert_eq!(session(said, "demo-tgt-a"), Some("2"));
        assert_eq!(session(said, "demo-tgt"), None);
        assert_eq!(session("iscsiadm: No active sessions.\n", "demo-tgt-a"), None);
    }
}
