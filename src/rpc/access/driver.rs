//! What an access driver is asked, and what it answers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use crate::conf::domain::Domain;
use crate::drivers::secret::event::SecretRef;
use crate::drivers::storage::VolumeRef;
use crate::drivers::storage::event::PoolRef;
use crate::rpc::auth::identity::Identity;
use crate::util::accounts::Ids;
use crate::util::uuid::Uuid;

/// Who asks, and the groups of the user that it is.
#[derive(Debug)]
pub struct Who {
    pub identity: Arc<Identity>,
    groups: OnceLock<Vec<u32>>,
}

impl Who {
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, groups: OnceLock::new() }
    }

    /// Looked up once, and only for rules that name groups.
    pub fn groups(&self) -> &[u32] {
        self.groups.get_or_init(|| match (self.identity.uid, self.identity.gid) {
            (Some(user), Some(group)) => Ids { user, group }.groups(),
            _ => Vec::new(),
        })
    }

    #[cfg(test)]
    pub(super) fn with_groups(identity: Identity, groups: &[u32]) -> Self {
        Self { identity: Arc::new(identity), groups: groups.to_vec().into() }
    }
}

/// What a call is about.
#[derive(Debug, Clone)]
pub enum Object {
    /// The host and the daemon as a whole.
    Connect,
    Domain {
        name: Arc<str>,
        uuid: Uuid,
        /// What is known of it beyond its name.
        definition: Option<Arc<Domain>>,
    },
    StoragePool(PoolRef),
    StorageVol {
        volume: VolumeRef,
        /// The number of its pool.
        pool: Uuid,
    },
    Secret(SecretRef),
}

impl Object {
    /// Of a guest, its number.
    pub fn domain_uuid(&self) -> Option<Uuid> {
        match self {
            Self::Domain { uuid, .. } => Some(*uuid),
            _ => None,
        }
    }

    /// The class, as the annotations of the interface have it.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Domain { .. } => "domain",
            Self::StoragePool(_) => "storage_pool",
            Self::StorageVol { .. } => "storage_vol",
            Self::Secret(_) => "secret",
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("the connection"),
            Self::Domain { name, uuid, .. } => write!(f, "domain '{name}' ({uuid})"),
            Self::StoragePool(pool) => write!(f, "pool '{}' ({})", pool.name, pool.uuid),
            Self::StorageVol { volume, .. } => {
                write!(f, "volume '{}' of pool '{}'", volume.name, volume.pool)
            }
            Self::Secret(secret) => write!(f, "secret {}", secret.uuid),
        }
    }
}

/// Why a driver could not answer; the client is refused.
pub type Unanswered = Box<dyn std::error::Error + Send + Sync>;

/// An answer that may have to be waited for.
pub type Verdict<'a> = Pin<Box<dyn Future<Output = Result<bool, Unanswered>> + Send + 'a>>;

/// Decides who may do what.
pub trait AccessDriver: fmt::Debug + Send + Sync {
    /// As `access_drivers` names it.
    fn name(&self) -> &'static str;

    fn allows<'a>(&'a self, who: &'a Who, object: &'a Object, permission: &'static str) -> Verdict<'a>;

    /// Takes over what its administrator has changed; who is in charge until then stays so if it is wrong.
    fn reload(&self) -> Result<(), Unanswered> {
        Ok(())
    }
}
