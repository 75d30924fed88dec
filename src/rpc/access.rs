//! May this client make this call?
//!
//! A read-only connection may look and not touch. What touches follows from the access annotations of
//! the interface; the few calls where libvirt decides otherwise stand in a table. The finer checks of an
//! access driver belong behind [`check`] as well: it sees every call.

use ferrovirt_protocol::procedure::{Acl, Entry, When};

use super::session::Client;
use crate::error::{Error, Origin, Result};

/// Permissions that a read-only connection has.
const READING: &[&str] = &[
    "getattr",
    "read",
    "search_domains",
    "search_interfaces",
    "search_networks",
    "search_node_devices",
    "search_nwfilter_bindings",
    "search_nwfilters",
    "search_ports",
    "search_secrets",
    "search_storage_pools",
    "search_storage_vols",
];

/// Refused although the annotations only read.
const REFUSED: &[&str] = &["domain_set_scheduler_parameters", "node_get_sev_info", "secret_get_value"];

/// Allowed although the annotations write.
const ALLOWED: &[&str] =
    &["connect_set_identity", "domain_migrate_get_compression_cache", "domain_migrate_get_max_downtime"];

/// Whether a read-only connection may make this call, as far as that does not depend on its arguments.
pub fn is_reading(entry: &Entry) -> bool {
    let reads = |acl: &Acl| acl.when != When::Always || READING.contains(&acl.permission);
    ALLOWED.contains(&entry.name) || (entry.acl.iter().all(reads) && !REFUSED.contains(&entry.name))
}

/// The checks that need no arguments: every call passes here before its handler runs.
pub fn check(client: &Client, entry: &Entry, reading: bool) -> Result<()> {
    match client.is_read_only() && !reading {
        true => Err(refusal(entry)),
        false => Ok(()),
    }
}

/// What a read-only connection is told; handlers use it where flags make a call write.
pub fn refusal(entry: &Entry) -> Error {
    Error::operation_denied(format!("read only access prevents {}", entry.api)).from_origin(origin(entry.api))
}

/// What a call without a handler answers. Nobody is asked to authenticate in a way that is not offered.
pub fn unsupported(entry: &Entry) -> Error {
    match entry.name.starts_with("auth_") {
        true => Error::auth_failed("authentication failed").from_origin(Origin::RPC),
        false => Error::no_support(entry.api).from_origin(origin(entry.api)),
    }
}

/// The part of libvirt's public API a function belongs to.
pub fn origin(api: &str) -> Origin {
    const PARTS: &[(&str, Origin)] = &[
        ("virDomainSnapshot", Origin::DOMAIN_SNAPSHOT),
        ("virDomainListAllSnapshots", Origin::DOMAIN_SNAPSHOT),
        ("virDomainCheckpoint", Origin::DOMAIN_CHECKPOINT),
        ("virDomainListAllCheckpoints", Origin::DOMAIN_CHECKPOINT),
        ("virDomainQemu", Origin::NONE),
        ("virConnectDomainQemu", Origin::NONE),
        ("virDomain", Origin::DOMAIN),
    ];
    const OBJECTS: &[(&str, Origin)] = &[
        ("Storage", Origin::STORAGE),
        ("NWFilter", Origin::NWFILTER),
        ("Network", Origin::NETWORK),
        ("NodeDevice", Origin::NODEDEV),
        ("Interface", Origin::INTERFACE),
        ("Secret", Origin::SECRET),
    ];
    let starting = PARTS.iter().find(|(prefix, _)| api.starts_with(prefix));
    let naming = || OBJECTS.iter().find(|(object, _)| api.contains(object));
    starting.or_else(naming).map_or(Origin::DOMAIN, |&(_, origin)| origin)
}
