//! Values that nobody but QEMU may see: they travel encrypted with the key that only it and the daemon have.

use super::line::{Line, Props};
use super::{Guest, Result, internal};
use crate::conf::devices::{NetworkProtocol, RemoteSource, StorageAuth};
use crate::conf::domain::Domain;
use crate::conf::secret::UsageType;
use crate::conf::storage::{Encryption, SecretLookup};

/// A value that a guest's QEMU needs, under the name that it has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretNeed {
    pub id: String,
    pub source: SecretSource,
}

/// Where the value comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The host keeps it for clients.
    Kept { lookup: SecretLookup, usage: UsageType },
    /// The definition itself has it.
    Text(String),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kept { lookup, usage } => write!(f, "Kept({lookup:?}, {usage})"),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

/// A value that was encrypted for one QEMU; both in base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sealed {
    pub data: String,
    pub vector: String,
}

/// The values that the devices of `domain` need, a running copy with node numbers.
pub fn secrets(domain: &Domain) -> Vec<SecretNeed> {
    let images = domain.devices.disks.iter().flat_map(super::blockdev::images);
    // Images without a number are refused when the command line is written.
    let of_disks = images.filter_map(|image| image.secrets().ok()).flatten();
    of_disks.chain(domain.devices.hostdevs.iter().filter_map(super::hostdev::secrets)).collect()
}

pub(super) fn of_auth(node: &str, auth: &StorageAuth, remote: Option<&RemoteSource>) -> SecretNeed {
    let is_ceph = remote.is_some_and(|remote| remote.protocol == NetworkProtocol::Rbd);
    let usage = if is_ceph { UsageType::Ceph } else { UsageType::Iscsi };
    let source = SecretSource::Kept { lookup: auth.secret.clone(), usage };
    SecretNeed { id: format!("{node}-auth-secret0"), source }
}

pub(super) fn of_encryption(node: &str, encryption: &Encryption) -> Vec<SecretNeed> {
    let need = |(at, lookup): (usize, &SecretLookup)| SecretNeed {
        id: format!("{node}-encryption-secret{at}"),
        source: SecretSource::Kept { lookup: lookup.clone(), usage: UsageType::Volume },
    };
    encryption.secrets.iter().map(|secret| &secret.lookup).enumerate().map(need).collect()
}

pub(super) fn of_cookies(node: &str, remote: &RemoteSource) -> Option<SecretNeed> {
    if remote.cookies.is_empty() {
        return None;
    }
    let pairs: Vec<String> =
        remote.cookies.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
    let source = SecretSource::Text(pairs.join("; "));
    Some(SecretNeed { id: format!("{node}-httpcookie-secret0"), source })
}

impl Guest<'_> {
    pub(super) fn secret(&self, line: &mut Line<'_>, id: &str) -> Result<()> {
        let Some(sealed) = self.context.descriptors.secrets.get(id) else {
            return internal(format!("no value was found for the secret '{id}'"));
        };
        let props = Props::object("secret", id)
            .set("data", &*sealed.data)
            .set("keyid", "masterKey0")
            .set("iv", &*sealed.vector)
            .set("format", "base64");
        line.object(props);
        Ok(())
    }
}
