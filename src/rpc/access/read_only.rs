//! What a read-only connection may do: look and not touch.
//!
//! What touches follows from the access annotations of the interface; the few calls where libvirt decides
//! otherwise stand in a table.

use ferrovirt_protocol::procedure::{Acl, Entry, When};

use crate::error::{Error, Origin, Result};
use crate::rpc::session::Client;

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

/// What a call without a handler answers.
pub fn unsupported(entry: &Entry) -> Error {
    Error::no_support(entry.api).from_origin(origin(entry.api))
}

/// The part of libvirt's public API a function belongs to.
pub fn origin(api: &str) -> Origin {
    /// The first word that the name contains decides.
    const WORDS: &[(&str, Origin)] = &[
        ("DomainQemu", Origin::NONE),
        ("Snapshot", Origin::DOMAIN_SNAPSHOT),
        ("Checkpoint", Origin::DOMAIN_CHECKPOINT),
        ("virDomain", Origin::DOMAIN),
        ("Storage", Origin::STORAGE),
        ("NWFilter", Origin::NWFILTER),
        ("Network", Origin::NETWORK),
        ("NodeDevice", Origin::NODEDEV),
        ("virNodeListDevices", Origin::NODEDEV),
        ("virNodeNumOfDevices", Origin::NODEDEV),
        ("Interface", Origin::INTERFACE),
        ("Secret", Origin::SECRET),
    ];
    WORDS.iter().find(|(word, _)| api.contains(word)).map_or(Origin::DOMAIN, |&(_, origin)| origin)
}

#[cfg(test)]
mod tests {
    use ferrovirt_protocol::{qemu, remote};

    use super::*;

    fn entry(name: &str) -> &'static Entry {
        let mut all = remote::ENTRIES.iter().chain(qemu::ENTRIES);
        all.find(|entry| entry.name == name).unwrap_or_else(|| panic!("no call {name}"))
    }

    #[test]
    fn what_a_read_only_client_may_call() {
        for (name, reading) in [
            ("connect_get_lib_version", true),
            ("connect_list_all_domains", true),
            ("connect_domain_event_callback_register_any", true),
            ("domain_get_xml_desc", true),
            ("domain_get_vcpus_flags", true),
            ("storage_pool_list_all_volumes", true),
            ("network_list_all_ports", true),
            ("connect_find_storage_pool_sources", false),
            ("domain_create", false),
            ("domain_get_guest_info", false),
            ("domain_screenshot", false),
            ("domain_monitor_command", false),
            ("connect_domain_monitor_event_register", false),
        ] {
            assert_eq!(is_reading(entry(name)), reading, "{name}");
        }
        for name in ALLOWED {
            assert!(is_reading(entry(name)), "{name}");
        }
        for name in REFUSED {
            assert!(!is_reading(entry(name)), "{name}");
        }
    }

    #[test]
    fn functions_belong_to_the_part_that_libvirt_reports() {
        for (api, part) in [
            ("virDomainCreate", Origin::DOMAIN),
            ("virConnectListAllDomains", Origin::DOMAIN),
            ("virNodeGetInfo", Origin::DOMAIN),
            ("virDomainInterfaceAddresses", Origin::DOMAIN),
            ("virDomainRevertToSnapshot", Origin::DOMAIN_SNAPSHOT),
            ("virDomainCheckpointDelete", Origin::DOMAIN_CHECKPOINT),
            ("virDomainQemuMonitorCommand", Origin::NONE),
            ("virConnectDomainQemuMonitorEventRegister", Origin::NONE),
            ("virConnectNumOfStoragePools", Origin::STORAGE),
            ("virStorageVolWipe", Origin::STORAGE),
            ("virNetworkPortCreateXML", Origin::NETWORK),
            ("virNWFilterUndefine", Origin::NWFILTER),
            ("virNodeNumOfDevices", Origin::NODEDEV),
            ("virNodeDeviceReset", Origin::NODEDEV),
            ("virInterfaceCreate", Origin::INTERFACE),
            ("virSecretGetValue", Origin::SECRET),
        ] {
            assert_eq!(origin(api), part, "{api}");
        }
    }
}
