//! `compat/SUPPORTED.md` is what the routes say. `UPDATE=1 cargo test --test supported` rewrites it.

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

#[test]
fn the_page_is_what_the_routes_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat/SUPPORTED.md");
    let page = printed();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "compat/SUPPORTED.md is stale: UPDATE=1 cargo test --test supported");
}
