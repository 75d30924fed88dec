//! Every x86_64 case of upstream's own test data, run through our reader, defaults, writer and command line.
//!
//! ```text
//!   qemuxmlconftest.c ─cases─► name, capabilities, settings ─┐
//!   caps_*.replies ──replies─► Answers ─assemble─► QemuCaps ─┼─run─► Outcome ─expected─► report, exit status
//!   qemuxmlconfdata/NAME.xml ────────────────────────────────┘
//! ```
//!
//! `ferrovirt-corpus SOURCE [NAME…]` prints how many cases come out as upstream's: the definition as printed,
//! QEMU's arguments, the refusals. With names it prints every difference of those cases instead.
//! `compat/expected.toml` lists what is known to differ; a case that does worse than listed is a failure, and
//! `UPDATE=1` writes the list again.

#![expect(
    clippy::expect_used,
    reason = "a tool for developers: data that is not as upstream ships it ends it"
)]

mod args;
mod cases;
mod expected;
mod replies;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(source) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: ferrovirt-corpus SOURCE-OF-LIBVIRT [CASE…]");
        return ExitCode::from(2);
    };
    let names: Vec<String> = arguments.collect();
    let tests = source.join("tests");
    let mut cases = cases::read(&tests);
    if !names.is_empty() {
        cases.retain(|case| names.contains(&case.name));
    }
    // A panic is an outcome like any other; its text is in the report.
    std::panic::set_hook(Box::new(|_| {}));
    let mut runner = run::Runner::new(&tests);
    let outcomes = cases.iter().map(|case| (case.id(), runner.run(case))).collect::<Vec<_>>();
    if !names.is_empty() {
        report::in_full(&outcomes);
        return ExitCode::SUCCESS;
    }
    report::figures(&outcomes);
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/expected.toml"));
    if std::env::var_os("UPDATE").is_some() {
        expected::write(&path, &outcomes);
        return ExitCode::SUCCESS;
    }
    let worse = expected::read(&path).worse(&outcomes);
    for line in &worse {
        println!("worse: {line}");
    }
    if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
