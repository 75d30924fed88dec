//! Guests that move between this daemon and libvirt's own, in both directions; `FERROVIRT_EXCHANGES` says how often.

use ferrovirt_compat::{Kind, halting};

use crate::migrate::{Hosts, counting, expect_states, next_count};
use crate::migrate_soak::from_environment;
use crate::takeover::has_upstream;

const OURS: Kind = Kind::Ours(env!("CARGO_BIN_EXE_ferrovirtd"));

#[test]
fn a_counting_guest_goes_to_libvirts_daemon_and_comes_back() {
    if !has_upstream() {
        return;
    }
    let hosts = Hosts::of(OURS, Kind::Upstream);
    hosts.source.create(&counting());
    let mut counted = next_count(&mut hosts.source.console("penguin"));
    // The guest counts from 1 when it begins: never smaller means never begun again.
    let rounds = from_environment("FERROVIRT_EXCHANGES", 1);
    for options in (0..rounds).flat_map(|_| [&["--live"][..], &["--live", "--p2p"]]) {
        hosts.migrate("penguin", options).ok();
        let there = next_count(&mut hosts.destination.console("penguin"));
        assert!(there > counted, "{options:?}: counted to {counted}, and now {there}");
        hosts.migrate_back("penguin", options).ok();
        counted = next_count(&mut hosts.source.console("penguin"));
        assert!(counted > there, "{options:?} back: counted to {there}, and now {counted}");
        println!("{options:?}: there at {there}, back at {counted}");
    }
}

#[test]
fn definitions_and_names_survive_the_way_to_libvirts_daemon_and_back() {
    if !has_upstream() {
        return;
    }
    let hosts = Hosts::of(OURS, Kind::Upstream);
    hosts.source.run(&halting("guest"));
    let xml = |daemon: &ferrovirt_compat::Daemon| daemon.ok(&["dumpxml", "guest", "--inactive"]);
    let defined = xml(&hosts.source);
    for p2p in [&[][..], &["--p2p"]] {
        let options = [&["--live", "--persistent", "--undefinesource"], p2p].concat();
        hosts.migrate("guest", &options).ok();
        expect_states(&hosts, "guest", "", "running");
        assert_eq!(xml(&hosts.destination), defined);
        hosts.migrate_back("guest", &options).ok();
        expect_states(&hosts, "guest", "running", "");
        assert_eq!(xml(&hosts.source), defined);
    }
    let to = hosts.destination.uri();
    hosts.source.ok(&["migrate", "guest", &to, "--live", "--p2p", "--tunnelled"]);
    let to = hosts.source.uri();
    hosts.destination.ok(&["migrate", "guest", &to, "--live", "--p2p", "--tunnelled"]);
    expect_states(&hosts, "guest", "running", "");
    hosts.source.ok(&["destroy", "guest"]);
    hosts.migrate("guest", &["--offline", "--persistent"]).ok();
    assert_eq!(xml(&hosts.destination), defined);
}
