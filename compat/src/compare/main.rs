//! Where ferrovirtd stands beside libvirt's own daemon: the same commands on both, and every difference in what they
//! answer.
//!
//! ```text
//!   scenarios/*.virsh ─scenario─► steps ──┐            ┌─► answers of libvirt ─normalise─┐
//!   python/*.py ──────────────────────────┴─play, each ┴─► answers of ours ────normalise─┴─judge─► REPORT.md
//!                                                       expected-virsh.toml ───────────────┘
//! ```
//!
//! `ferrovirt-compat clients [NAME…]` has other clients, old and new, do the same on both: `clients.rs`.
//!
//! `ferrovirt-compat [SCENARIO…]` plays all scenarios, or those named, and fails on a difference that nobody accepted
//! and on an accepted one that is gone. `compat/REPORT.md` is what a whole run prints; `UPDATE=1` writes it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a tool for developers: it says where it failed and ends"
)]

mod clients;
mod diff;
mod expected;
mod judge;
mod normalise;
mod play;
mod report;
mod scenario;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use ferrovirt_compat::{Kind, upstream_is_here};

use expected::Expected;
use judge::Judged;
use play::Answer;
use scenario::Scenario;

const COMPAT: &str = env!("CARGO_MANIFEST_DIR");

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.iter().any(|name| name.starts_with('-')) {
        eprintln!("usage: ferrovirt-compat [SCENARIO…] | clients [NAME…]");
        return ExitCode::from(2);
    }
    if !upstream_is_here() {
        eprintln!("libvirt's own daemon is not here (scripts/deps upstream), or this does not run as root");
        return ExitCode::FAILURE;
    }
    if let Some(("clients", names)) = names.split_first().map(|(first, rest)| (&**first, rest)) {
        return clients::compare(Path::new(COMPAT), names);
    }
    let mut scenarios = scenario::all(Path::new(COMPAT));
    if !names.is_empty() {
        scenarios.retain(|scenario| names.contains(&scenario.name));
    }
    let mut expected = Expected::read(&Path::new(COMPAT).join("expected-virsh.toml"));
    let mut judged = Vec::new();
    for scenario in &scenarios {
        let one = compare(scenario, &mut expected);
        println!("{}", report::row(&one));
        print!("{}", report::unexpected(&one));
        judged.push(one);
    }
    let different: usize = judged.iter().map(Judged::different).sum();
    let gone = expected.unused(|section| judged.iter().any(|one| one.name == section), names.is_empty());
    for entry in &gone {
        println!("no longer differs, strike it out of expected-virsh.toml: {entry}");
    }
    let fresh = !names.is_empty() || is_fresh(&report::page(&judged));
    if different == 0 && gone.is_empty() && fresh { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays it on both daemons at once, and looks at what they answered.
fn compare(scenario: &Scenario, expected: &mut Expected) -> Judged {
    let ours = Kind::built();
    let (upstream, ours): (Vec<Answer>, Vec<Answer>) = thread::scope(|scope| {
        let upstream = scope.spawn(|| play::play(Kind::Upstream, scenario));
        let ours = scope.spawn(|| play::play(ours, scenario));
        (upstream.join().expect("libvirt's daemon plays it"), ours.join().expect("ours plays it"))
    });
    judge::judge(&scenario.name, &upstream, &ours, expected)
}

/// Whether the committed page is what this run prints; writes it if asked to.
fn is_fresh(page: &str) -> bool {
    let path = Path::new(COMPAT).join("REPORT.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, page).expect("the page can be written");
        return true;
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    let changes = diff::lines(&before, page);
    for line in &changes {
        println!("REPORT.md: {line}");
    }
    if !changes.is_empty() {
        println!("compat/REPORT.md is not what this run prints; UPDATE=1 writes it");
    }
    changes.is_empty()
}
