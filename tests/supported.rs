//! Files that are printed from the interface and the routes: `compat/SUPPORTED.md`, and polkit's actions.
//! `UPDATE=1 cargo test --test supported` rewrites them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use ferrovirt::logging::Logging;
use ferrovirt::rpc::administration::Administration;
use ferrovirt::rpc::routes;
use ferrovirt_protocol::procedure::Entry;
use ferrovirt_protocol::{admin, qemu, remote};

const HEAD: &str = "# Supported calls

Printed from the routes; a test fails when it is stale. A call that is not routed answers `VIR_ERR_NO_SUPPORT` with its name.
";

fn printed() -> String {
    let mut page = HEAD.to_owned();
    let routers = [
        routes::hypervisor().unwrap(),
        routes::administration(&Administration::new(Logging::default(), None)).unwrap(),
    ];
    let routed: BTreeSet<(u32, i32)> = routers
        .iter()
        .flat_map(|router| router.supported())
        .map(|(program, entry)| (program.number, entry.number))
        .collect();
    for (program, entries) in
        [(remote::PROGRAM, remote::ENTRIES), (qemu::PROGRAM, qemu::ENTRIES), (admin::PROGRAM, admin::ENTRIES)]
    {
        let calls = || entries.iter().filter(|entry| !entry.is_event);
        let (supported, missing): (Vec<&Entry>, Vec<&Entry>) =
            calls().partition(|entry| routed.contains(&(program.number, entry.number)));
        write!(page, "\n## {}: {} of {}\n", program.name, supported.len(), calls().count()).unwrap();
        for (title, entries) in [("Supported", supported), ("Not yet", missing)] {
            write!(page, "\n{title}:\n\n").unwrap();
            for entry in entries {
                writeln!(page, "- {} `{}` ({})", entry.number, entry.api, entry.name).unwrap();
            }
        }
    }
    page
}

/// Fails when a file is not what it should be; rewrites it where that is asked for.
fn committed(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{file} is stale: UPDATE=1 cargo test --test supported");
}

#[test]
fn the_page_is_what_the_routes_say() {
    committed("compat/SUPPORTED.md", &printed());
}

const ACTIONS_HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
    "http://www.freedesktop.org/standards/PolicyKit/1.0/policyconfig.dtd">
<!-- What the access driver polkit asks about: libvirt's names and defaults. Printed from the interface; a test
     fails when it is stale. -->
<policyconfig>
  <vendor>ferrovirt</vendor>
"#;

/// Without a rule of the host's, whoever is let in may look and not touch.
fn actions() -> String {
    let checks = remote::ENTRIES.iter().chain(qemu::ENTRIES).flat_map(|entry| entry.acl);
    let actions: BTreeSet<_> = checks.map(|check| (check.object, check.permission)).collect();
    let mut page = ACTIONS_HEAD.to_owned();
    for (object, permission) in actions {
        let looks = matches!(permission, "getattr" | "read")
            || object == "connect" && permission.starts_with("search_");
        let (default, words) = (if looks { "yes" } else { "no" }, permission.replace('_', "-"));
        let class = object.replace('_', "-");
        writeln!(
            page,
            "  <action id=\"org.libvirt.api.{class}.{words}\">\n    \
                 <description>Permission {words} of libvirt's class {class}</description>\n    \
                 <message>This needs the permission {words} of libvirt's class {class}</message>\n    \
                 <defaults>\n      <allow_any>{default}</allow_any>\n      \
                 <allow_inactive>{default}</allow_inactive>\n      \
                 <allow_active>{default}</allow_active>\n    </defaults>\n  </action>"
        )
        .unwrap();
    }
    page + "</policyconfig>\n"
}

#[test]
fn polkit_knows_the_action_of_every_permission() {
    committed("packaging/polkit/ferrovirt-api.policy", &actions());
}
