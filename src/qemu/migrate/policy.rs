//! What an administrator has decided about guests that leave and guests that come.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::util::uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where guests are waited for, unless a client says it.
    pub address: Option<String>,
    /// What this host is called by those who send guests here.
    pub host: Option<String>,
    pub first_port: u16,
    pub last_port: u16,
    /// No guest leaves or comes in the clear.
    pub force_tls: bool,
    pub tls: TlsKeys,
    /// For everything of QEMU's that has no keys of its own.
    pub default_tls: TlsKeys,
    /// Seconds after which a silent daemon is asked for a sign of life; -1: never.
    pub keepalive_interval: i32,
    /// How often it is asked.
    pub keepalive_count: u32,
}

/// Where certificates are and what is made of them; what is absent was not decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsKeys {
    pub directory: Option<PathBuf>,
    /// Whether who connects has to have a certificate.
    pub verify: Option<bool>,
    /// The passphrase of the keys.
    pub secret: Option<Uuid>,
}

/// The same, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub directory: PathBuf,
    pub verify: bool,
    pub secret: Option<Uuid>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            address: None,
            host: None,
            first_port: 49152,
            last_port: 49215,
            force_tls: false,
            tls: TlsKeys::default(),
            default_tls: TlsKeys::default(),
            keepalive_interval: 5,
            keepalive_count: 5,
        }
    }
}

impl Policy {
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first_port..=self.last_port
    }

    /// The keys of encrypted streams; `pki` is the directory with the host's own.
    pub fn keys(&self, pki: &Path) -> Keys {
        let Self { tls, default_tls, .. } = self;
        let usual = pki.join("libvirt-migrate");
        let directory = match (&tls.directory, &default_tls.directory) {
            (Some(directory), _) => directory.clone(),
            (None, _) if usual.exists() => usual,
            (None, Some(directory)) => directory.clone(),
            (None, None) => pki.join("qemu"),
        };
        // A passphrase belongs to the keys of its directory.
        let of_default = default_tls.secret.filter(|_| tls.directory.is_none());
        Keys {
            directory,
            verify: tls.verify.or(default_tls.verify).unwrap_or(true),
            secret: tls.secret.or(of_default),
        }
    }
}

/// What is nobody else's address but a host's own.
pub fn is_loopback(host: &str) -> bool {
    host.parse::<Ipv4Addr>().is_ok_and(|it| it.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|it| it.is_loopback())
        || host.starts_with("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_the_most_particular_place_that_there_is() {
        let pki = tempfile::tempdir().unwrap();
        let pki = pki.path();
        let mut policy = Policy::default();
        assert_eq!(policy.keys(pki), Keys { directory: pki.join("qemu"), verify: true, secret: None });
        policy.default_tls =
            TlsKeys { directory: Some("/d".into()), verify: Some(false), secret: Some(Uuid([1; 16])) };
        let shared = Keys { directory: "/d".into(), verify: false, secret: Some(Uuid([1; 16])) };
        assert_eq!(policy.keys(pki), shared);
        std::fs::create_dir(pki.join("libvirt-migrate")).unwrap();
        assert_eq!(policy.keys(pki).directory, pki.join("libvirt-migrate"));
        policy.tls = TlsKeys { directory: Some("/m".into()), verify: Some(true), secret: None };
        assert_eq!(policy.keys(pki), Keys { directory: "/m".into(), verify: true, secret: None });
    }
}
