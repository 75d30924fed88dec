//! The tables: numbers without gaps, names of functions that libvirt has.

use std::collections::HashSet;

use super::data;
use crate::procedure::{Acl, Entry, Priority, Procedure, Traffic, When, find};
use crate::remote::procedure;
use crate::{admin, keepalive, qemu, remote};

const TABLES: [(&str, &[Entry], usize); 4] = [
    ("remote", remote::ENTRIES, 453),
    ("qemu", qemu::ENTRIES, 7),
    ("admin", admin::ENTRIES, 20),
    ("keepalive", keepalive::ENTRIES, 2),
];

#[test]
fn tables_are_complete_and_in_order() {
    for (program, entries, len) in TABLES {
        assert_eq!(entries.len(), len, "{program}");
        for (entry, number) in entries.iter().zip(1..) {
            assert_eq!(entry.number, number, "{program}: {}", entry.name);
            assert_eq!(find(entries, number).map(|found| found.name), Some(entry.name));
        }
        assert!(find(entries, 0).is_none() && find(entries, len as i32 + 1).is_none());
    }
}

#[test]
fn every_call_names_a_function_of_libvirt() {
    let text = std::fs::read_to_string(data("api.txt")).unwrap();
    let functions: HashSet<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for (program, entries, _) in TABLES {
        for entry in entries.iter().filter(|entry| !entry.is_event) {
            assert!(functions.contains(entry.api), "{program}: {} is '{}'", entry.name, entry.api);
        }
    }
}

#[test]
fn annotations_arrive() {
    let create = find(remote::ENTRIES, 9).unwrap();
    assert_eq!((create.name, create.api), ("domain_create", "virDomainCreate"));
    assert_eq!((create.priority, create.traffic), (Priority::Low, Traffic::Plain));
    assert_eq!(create.acl, [Acl { object: "domain", permission: "start", when: When::Always }]);
    let traffic = |number| find(remote::ENTRIES, number).unwrap().traffic;
    assert_eq!([201, 208, 209, 309].map(traffic), {
        [Traffic::StreamBoth, Traffic::StreamUp, Traffic::StreamDown, Traffic::WithFds]
    });
    assert!(find(remote::ENTRIES, 107).unwrap().is_event);
}

#[test]
fn conditional_checks_look_at_their_argument() {
    let asked = |flags| {
        let args = remote::DomainGetXmlDescArgs { flags, ..remote::DomainGetXmlDescArgs::default() };
        let word = procedure::DomainGetXmlDesc::deciding(&args);
        procedure::DomainGetXmlDesc::ACL.iter().filter(|acl| acl.when.holds(word)).count()
    };
    assert_eq!([0, 1, 2, 8, 9].map(asked), [1, 2, 1, 2, 3]);
    let asked = |source| {
        let args = remote::DomainInterfaceAddressesArgs { source, ..Default::default() };
        let word = procedure::DomainInterfaceAddresses::deciding(&args);
        procedure::DomainInterfaceAddresses::ACL.iter().filter(|acl| acl.when.holds(word)).count()
    };
    assert_eq!([0, 1, 2].map(asked), [1, 2, 1]);
    let save = |flags| When::Clear(3).holds(flags);
    assert_eq!([0, 1, 2, 4].map(save), [true, false, false, true]);
}
