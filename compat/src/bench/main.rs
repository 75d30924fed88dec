//! What calls and guests cost, beside the floor (an echo server, QEMU alone) and beside libvirt's own daemon.
//!
//! One raw-wire client measures everything, so that the daemons are compared and not their clients.
//!
//! ```text
//! ferrovirt-bench [--quick] [--only ours|upstream]
//! ```
//!
//! The daemons take turns, three rounds long, so that what else the machine does falls on both; the table has the
//! medians. `--quick` is one short round. `UPDATE=1` writes the table to `BENCH.md`.
//!
//! The daemon is the `ferrovirtd` beside this program. libvirt's is measured where libvirtd and virtlogd are installed
//! and this runs as root.

#![allow(clippy::expect_used, clippy::panic, reason = "a measurement that fails says where and ends")]

mod calls;
mod display;
mod floor;
mod guests;
mod host;
mod reaper;
mod report;
mod scale;
mod storage;
mod table;
mod timing;

use std::process::ExitCode;

use ferrovirt_compat::{Daemon, Kind, upstream_is_here};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use table::Side;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Calls behind a percentile.
    pub calls: usize,
    /// Repetitions of what takes milliseconds.
    pub rounds: usize,
    /// Definitions of the largest host.
    pub definitions: usize,
}

/// Once with everything, then what is short.
const FULL: &[Effort] = &[
    Effort { calls: 5000, rounds: 9, definitions: 10_000 },
    Effort { calls: 2000, rounds: 5, definitions: 1000 },
    Effort { calls: 2000, rounds: 5, definitions: 1000 },
];
const QUICK: &[Effort] = &[Effort { calls: 500, rounds: 3, definitions: 1000 }];

/// Room for a thousand connections and the requests on them.
const CONFIG: &str = "max_clients = 5000\nmax_anonymous_clients = 5000\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = if arguments.iter().any(|a| a == "--quick") { QUICK } else { FULL };
    let only = arguments.iter().skip_while(|a| *a != "--only").nth(1).map(String::as_str);
    if arguments.iter().any(|a| a == "--help") {
        eprintln!("ferrovirt-bench [--quick] [--only ours|upstream]");
        return ExitCode::from(2);
    }
    raise_file_limit();
    reaper::start();

    let mut sides = Vec::new();
    if only != Some("upstream") {
        sides.push((Side::Ours, Kind::built()));
    }
    if only != Some("ours") && upstream_is_here() {
        sides.push((Side::Upstream, Kind::Upstream));
    }
    let mut table = table::Table::default();
    for effort in rounds {
        for (side, kind) in &sides {
            eprintln!("measuring {side:?}");
            measure(*kind, *effort, &mut |row, value| table.put(row, *side, value));
        }
        eprintln!("measuring the floor");
        floor::measure(*effort, &mut |row, value| table.put(row, Side::Floor, value));
    }
    let text = table.text();
    print!("{text}");
    if std::env::var_os("UPDATE").is_some() {
        report::write(rounds.len(), &text);
    }
    ExitCode::SUCCESS
}

fn measure(kind: Kind, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    {
        let daemon = Daemon::start(kind, CONFIG);
        put("idle", scale::resident_mib(&daemon));
        calls::measure(&daemon, effort, put);
        guests::measure(&daemon, effort, put);
        storage::measure(&daemon, effort, put);
        display::measure(&daemon, effort, put);
        host::measure(&daemon, put);
    }
    host::come_back(kind, effort.rounds.min(5), put);
    scale::connections(kind, put);
    scale::measure(kind, effort, put);
}

/// Every connection of a test is two descriptors of this process or the daemon's.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Refused at most when a thousand connections would not fit anyway, and then they say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
