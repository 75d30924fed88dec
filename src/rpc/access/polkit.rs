//! The access driver `polkit`: the host's rules for the actions `org.libvirt.api.OBJECT.PERMISSION`.
//!
//! polkit judges processes of this host, so clients that come over the network are refused.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::{AccessDriver, Object, Verdict, Who};
use crate::rpc::auth::identity::{Identity, PeerProcess};
use crate::rpc::auth::polkit::Polkit;

#[derive(Debug)]
pub struct PolkitDriver {
    polkit: Arc<Polkit>,
}

impl PolkitDriver {
    pub fn new(polkit: Arc<Polkit>) -> Self {
        Self { polkit }
    }
}

impl AccessDriver for PolkitDriver {
    fn name(&self) -> &'static str {
        "polkit"
    }

    fn allows<'a>(&'a self, who: &'a Who, object: &'a Object, permission: &'static str) -> Verdict<'a> {
        Box::pin(async move {
            let process = process(&who.identity).ok_or("No process ID available")?;
            let details = details(object);
            let details = details.iter().map(|(name, value)| (*name, value.as_str()));
            let details: HashMap<&str, &str> = details.collect();
            Ok(self.polkit.allows(&process, &action(object, permission), details).await?)
        })
    }
}

/// The client's process, where it is one of this host.
fn process(identity: &Identity) -> Option<PeerProcess> {
    Some(PeerProcess {
        uid: identity.uid?,
        gid: identity.gid?,
        pid: identity.pid?,
        start_time: identity.start_time,
        selinux_context: identity.selinux_context.clone(),
    })
}

fn action(object: &Object, permission: &str) -> String {
    format!("org.libvirt.api.{}.{permission}", object.class()).replace('_', "-")
}

/// What rules may look at, by libvirt's names.
fn details(object: &Object) -> Vec<(&'static str, String)> {
    /// What uses a secret, by the number of its kind.
    const USAGES: [&str; 6] = [
        "",
        "secret_usage_volume",
        "secret_usage_ceph",
        "secret_usage_target",
        "secret_usage_name",
        "secret_usage_name",
    ];
    let mut details = vec![("connect_driver", "QEMU".to_owned())];
    match object {
        Object::Connect => {}
        Object::Domain { name, uuid, .. } => {
            details.push(("domain_name", name.to_string()));
            details.push(("domain_uuid", uuid.to_string()));
        }
        Object::StoragePool(pool) => {
            details.push(("pool_name", pool.name.to_string()));
            details.push(("pool_uuid", pool.uuid.to_string()));
        }
        Object::StorageVol { volume, pool } => {
            details.push(("pool_name", volume.pool.clone()));
            details.push(("pool_uuid", pool.to_string()));
            details.push(("vol_name", volume.name.clone()));
            details.push(("vol_key", volume.key.clone()));
        }
        Object::Secret(secret) => {
            details.push(("secret_uuid", secret.uuid.to_string()));
            let usage = usize::try_from(secret.usage).ok().and_then(|number| USAGES.get(number));
            if let Some(usage) = usage.filter(|usage| !usage.is_empty()) {
                details.push((usage, secret.usage_id.to_string()));
            }
        }
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::secret::event::SecretRef;
    use crate::drivers::storage::VolumeRef;
    use crate::util::uuid::Uuid;

    #[test]
    fn actions_and_details_have_libvirts_names() {
        let uuid = Uuid([9; 16]);
        let text = "09090909-0909-0909-0909-090909090909";
        let guest = Object::Domain { name: "web".into(), uuid, definition: None };
        let volume = VolumeRef { pool: "p".into(), name: "v".into(), key: "/v".into() };
        let secret = Object::Secret(SecretRef { uuid, usage: 3, usage_id: "iqn".into() });
        for (object, permission, name, said) in [
            (Object::Connect, "search_domains", "connect.search-domains", vec![]),
            (guest, "read_secure", "domain.read-secure", vec![("domain_name", "web"), ("domain_uuid", text)]),
            (
                Object::StorageVol { volume, pool: uuid },
                "data_read",
                "storage-vol.data-read",
                vec![("pool_name", "p"), ("pool_uuid", text), ("vol_name", "v"), ("vol_key", "/v")],
            ),
            (
                secret,
                "getattr",
                "secret.getattr",
                vec![("secret_uuid", text), ("secret_usage_target", "iqn")],
            ),
        ] {
            assert_eq!(action(&object, permission), format!("org.libvirt.api.{name}"));
            let found = details(&object);
            let found: Vec<_> = found.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let driver = [("connect_driver", "QEMU")].into_iter();
            assert_eq!(found, driver.chain(said).collect::<Vec<_>>());
        }
    }
}
