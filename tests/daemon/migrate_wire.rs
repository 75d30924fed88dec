//! Migrations call by call: what the hosts tell each other, what of it is refused, and the protocol of older clients.

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Daemon, Kind, eventually, halting};
use ferrovirt_protocol::remote::{self, TypedParam, TypedParamValue, procedure};

use crate::migrate::{DESTINATION, Hosts, SOURCE, counting, expect_states};
use crate::migrate_failures::Migration;
use crate::takeover::has_upstream;

const LIVE: u32 = 1;

fn domain(wire: &mut Wire, name: &str) -> remote::Domain {
    let args = remote::DomainLookupByNameArgs { name: name.to_owned() };
    wire.call::<procedure::DomainLookupByName>(&args).unwrap().dom
}

/// The first phase: the source's cookie, and what the guest is.
fn begin(daemon: &Daemon, name: &str) -> (String, String) {
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let dom = domain(&mut wire, name);
    let args = remote::DomainMigrateBegin3ParamsArgs { dom, params: Vec::new(), flags: LIVE };
    let begun = wire.call::<procedure::DomainMigrateBegin3Params>(&args).unwrap();
    (String::from_utf8(begun.cookie_out).unwrap(), begun.xml)
}

/// The second, at another daemon.
fn prepare(
    daemon: &Daemon,
    xml: &str,
    cookie: &[u8],
) -> Result<remote::DomainMigratePrepare3ParamsRet, String> {
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let text = |field: &str, value: String| TypedParam {
        field: field.to_owned().into(),
        value: TypedParamValue::String(value),
    };
    let uri = format!("unix://{}", daemon.path("arrival").display());
    let params = vec![text("destination_xml", xml.to_owned()), text("migrate_uri", uri)];
    let args = remote::DomainMigratePrepare3ParamsArgs { params, cookie_in: cookie.to_vec(), flags: LIVE };
    let prepared = wire.call::<procedure::DomainMigratePrepare3Params>(&args);
    prepared.map_err(|error| error.to_string())
}

#[test]
fn a_cookie_that_is_wrong_is_refused_before_anything_is_touched() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    let (cookie, xml) = begin(&hosts.source, "guest");
    assert!(cookie.ends_with('\0') && cookie.len() <= 16_384);
    let changed = |from: &str, to: &str| {
        assert!(cookie.contains(from), "{cookie}");
        cookie.replace(from, to).into_bytes()
    };
    let mut cases = vec![
        (cookie.trim_end_matches('\0').as_bytes().to_vec(), "Migration cookie was not NULL terminated"),
        (changed("<name>guest<", "<name>other<"), "unexpected name other vs guest"),
        (changed("name='lockstate'", "name='telepathy'"), "Unknown migration cookie feature telepathy"),
        (changed("name='lockstate'", "name='statistics'"), "Unsupported migration cookie feature statistics"),
        (changed("</qemu-migration>", ""), "qemu-migration"),
        (changed("<hostname>", "<name>"), ""),
        (
            changed("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"),
            "Attempt to migrate guest to the same host",
        ),
    ];
    if !crate::on_upstream() {
        let long = format!("<!--{}--><qemu-migration>", "x".repeat(16_384));
        cases.push((changed("<qemu-migration>", &long), "at most 16384 are read"));
    }
    for (cookie, sentence) in cases {
        let refusal = prepare(&hosts.destination, &xml, &cookie).unwrap_err();
        assert!(refusal.contains(sentence), "{refusal}");
        assert!(hosts.destination.ok(&["list", "--all", "--name"]).trim().is_empty());
        assert!(hosts.destination.qemu_pids().is_empty());
    }
    let prepared = prepare(&hosts.destination, &xml, cookie.as_bytes()).unwrap();
    let theirs = String::from_utf8(prepared.cookie_out).unwrap();
    assert!(theirs.contains("<cap name='late-block-activate' auto='yes'/>"), "{theirs}");
    eventually("what waited has gone with its client", || {
        hosts.destination.qemu_pids().is_empty().then_some(())
    });
    expect_states(&hosts, "guest", "running", "");
}

#[test]
fn both_cookies_are_libvirts_to_the_byte() {
    if !has_upstream() {
        return;
    }
    let told = |kind: Kind| {
        let hosts =
            Hosts { source: Daemon::start(kind, SOURCE), destination: Daemon::start(kind, DESTINATION) };
        hosts.source.run(&halting("guest"));
        let (first, xml) = begin(&hosts.source, "guest");
        let second = prepare(&hosts.destination, &xml, first.as_bytes()).unwrap().cookie_out;
        // The number of the guest is drawn anew each time.
        let uuid = hosts.source.ok(&["domuuid", "guest"]);
        let alike = |text: String| text.replace(uuid.trim(), "UUID");
        (alike(first), alike(String::from_utf8(second).unwrap()))
    };
    assert_eq!(told(crate::kind()), told(Kind::Upstream));
}

#[test]
fn clients_of_the_second_version_move_a_guest() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    let (mut source, mut destination) =
        (Wire::open(&hosts.source.socket()).unwrap(), Wire::open(&hosts.destination.socket()).unwrap());
    for wire in [&mut source, &mut destination] {
        let args = remote::ConnectSupportsFeatureArgs { feature: 3 };
        assert_eq!(wire.call::<procedure::ConnectSupportsFeature>(&args).unwrap().supported, 1);
    }
    let (dom, flags) = (domain(&mut source, "guest"), u64::from(LIVE));
    let uri = format!("unix://{}", hosts.destination.path("arrival").display());
    let args = remote::DomainMigratePrepare2Args {
        uri_in: Some(uri.clone()),
        flags,
        dname: None,
        resource: 0,
        dom_xml: hosts.source.ok(&["dumpxml", "guest", "--migratable", "--security-info"]),
    };
    let prepared = destination.call::<procedure::DomainMigratePrepare2>(&args).unwrap();
    assert!(prepared.cookie.is_empty() && prepared.uri_out.is_none());
    let args = remote::DomainMigratePerformArgs {
        dom,
        cookie: prepared.cookie,
        uri: uri.clone(),
        flags,
        dname: None,
        resource: 0,
    };
    source.call::<procedure::DomainMigratePerform>(&args).unwrap();
    expect_states(&hosts, "guest", "shut off", "paused");
    let args = remote::DomainMigrateFinish2Args {
        dname: "guest".to_owned(),
        cookie: Vec::new(),
        uri,
        flags,
        retcode: 0,
    };
    let arrived = destination.call::<procedure::DomainMigrateFinish2>(&args).unwrap().ddom;
    assert_eq!(arrived.name, "guest");
    expect_states(&hosts, "guest", "shut off", "running");
}

/// What a guest's QEMU is told of streams.
fn told(daemon: &Daemon) -> serde_json::Value {
    let command = r#"{"execute":"query-migrate-parameters"}"#;
    let told: serde_json::Value =
        serde_json::from_str(&daemon.ok(&["qemu-monitor-command", "penguin", command])).unwrap();
    told["return"].clone()
}

#[test]
fn qemu_is_told_what_a_client_asks_for_and_forgets_it_afterwards() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    let before = told(&hosts.source);
    let to = hosts.destination.uri();
    let through = format!("unix://{}", hosts.destination.path("arrival").display());
    for (options, expected) in [
        (
            "--parallel --parallel-connections 3 --compressed --comp-methods zstd --comp-zstd-level 7",
            &[("multifd-channels", "3"), ("multifd-compression", "\"zstd\""), ("multifd-zstd-level", "7")][..],
        ),
        ("--parallel --comp-methods zlib --comp-zlib-level 2", &[("multifd-zlib-level", "2")]),
        (
            "--auto-converge --auto-converge-initial 30 --auto-converge-increment 15",
            &[("cpu-throttle-initial", "30"), ("cpu-throttle-increment", "15")],
        ),
        (
            "--compressed --comp-methods xbzrle --comp-xbzrle-cache 134217728",
            &[("xbzrle-cache-size", "134217728")],
        ),
        (
            "--postcopy --postcopy-bandwidth 9 --available-switchover-bandwidth 11",
            &[("max-postcopy-bandwidth", "9437184"), ("avail-switchover-bandwidth", "11534336")],
        ),
    ] {
        let options: Vec<_> = options.split(' ').collect();
        let base = ["penguin", &to, "--live", "--bandwidth", "1", "--migrateuri", &through];
        let mut migration = Migration::begin(&hosts.source, &[&base[..], &options].concat());
        eventually("memory is sent", || {
            migration.expect_running();
            let told = hosts.source.virsh(&["domjobinfo", "penguin"]).out;
            told.lines()
                .any(|line| line.starts_with("Memory processed") && !line.contains(" 0.000 B"))
                .then_some(())
        });
        let told_now = told(&hosts.source);
        assert_eq!(told_now["max-bandwidth"], 1 << 20);
        for (name, value) in expected {
            assert_eq!(told_now[name].to_string(), *value, "{name}");
        }
        hosts.source.ok(&["domjobabort", "penguin"]);
        assert!(!migration.wait().0);
        assert_eq!(told(&hosts.source), before, "{options:?}");
    }
}

/// How much memory a guest's QEMU may lock.
fn may_lock(daemon: &Daemon) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.qemu_pid("guest"))).unwrap();
    limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap().to_owned()
}

#[test]
fn pages_are_sent_without_a_copy_where_they_are_sent_side_by_side() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    let before = may_lock(&hosts.source);
    let to = hosts.destination.uri();
    let migrate = |options: &[&str]| {
        let base = ["migrate", "guest", &to, "--live", "--zerocopy"];
        hosts.source.virsh(&[&base[..], options].concat())
    };
    let alone = migrate(&[]).fails();
    assert!(alone.contains("zero-copy is only available for parallel migration"), "{alone}");
    // QEMU has no zero-copy for sockets of one host.
    let through = format!("unix://{}", hosts.destination.path("arrival").display());
    migrate(&["--parallel", "--migrateuri", &through]).fails();
    expect_states(&hosts, "guest", "running", "");
    assert_eq!(may_lock(&hosts.source), before);
    migrate(&["--parallel", "--migrateuri", "tcp://127.0.0.1"]).ok();
    expect_states(&hosts, "guest", "shut off", "running");
}
