//! What the fuzzers in `fuzz/` run, on every build: over the committed seeds, and for a while over changes of them.
//!
//! The changes are always the same ones, as many as there is time for. An input that brings a target down is kept in
//! a file that the failure names; mended, it becomes a seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

use ferrovirt::qemu::capabilities::{QemuCaps, probe};
use ferrovirt::{conf, config, qemu, rpc};
use tempfile::TempDir;

/// How long each target is tried.
const WHILE: Duration = Duration::from_secs(2);
/// Longer inputs find nothing that shorter ones do not, and take their time.
const MAX_INPUT: usize = 16 * 1024;

thread_local! {
    /// Tasks swallow panics; what a target starts runs on the thread of its test.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: PathBuf) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Numbers that are always the same (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap()
    }
}

/// What readers of numbers, names and paths stumble over.
const HOSTILE: [&[u8]; 18] = [
    b"",
    b"0",
    b"-1",
    b"65536",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551615",
    b"1e308",
    b"../../x",
    b"\n",
    b"\0",
    b"\"",
    b"'",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xc3\xa4&lt;\xef\xbf\xbf",
];

/// One to four changes of one of `seeds`.
fn changed(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        let end = (at + 1 + chance.below(24)).min(input.len());
        let hostile = HOSTILE[chance.below(HOSTILE.len())];
        match chance.below(7) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => drop(input.splice(at..end, hostile.iter().copied())),
            3 => drop(input.splice(at..at, hostile.iter().copied())),
            4 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                let until = (from + chance.below(400)).min(other.len());
                input.splice(at..end, other[from..until].iter().copied());
            }
            5 => input.extend_from_within(at..end),
            _ => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << chance.below(8)),
        }
    }
    input.truncate(MAX_INPUT);
    input
}

fn try_one(target: &str, input: &[u8], run: &impl Fn(&[u8])) {
    let before = PANICS.get();
    let done = panic::catch_unwind(AssertUnwindSafe(|| run(input)));
    if done.is_err() || PANICS.get() != before {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}.input"));
        fs::write(&kept, input).unwrap();
        panic!("{target} does not stand {}: {:?}", kept.display(), String::from_utf8_lossy(input));
    }
}

/// Runs a target over its seeds, over `more` of them, and over what they become.
fn endure_with(target: &str, more: Vec<Vec<u8>>, run: impl Fn(&[u8])) {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            usual(info);
        }));
    });
    let mut seeds = files(here().join("fuzz/seeds").join(target));
    seeds.extend(more);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds.iter().for_each(|seed| try_one(target, seed, &run));
    let (mut chance, begun) = (Chance(1), Instant::now());
    while begun.elapsed() < WHILE {
        try_one(target, &changed(&seeds, &mut chance), &run);
    }
}

fn endure(target: &str, run: impl Fn(&[u8])) {
    endure_with(target, Vec::new(), run);
}

fn text(run: impl Fn(&str)) -> impl Fn(&[u8]) {
    move |input| run(&String::from_utf8_lossy(input))
}

#[test]
fn agents_answers() {
    endure("agent", qemu::fuzz::agent);
}

#[test]
fn arguments_of_every_call() {
    let root = TempDir::new().unwrap();
    let world = rpc::fuzz::World::new(root.path()).unwrap();
    // Every call about every kind of object that is there, and with nothing behind it.
    let every = (0..0x6000_u16).filter(|pick| pick & 0x0fff < 0x0200);
    let every = every.map(|pick| [&pick.to_be_bytes()[..], &[0; 8]].concat());
    endure_with("arguments", every.collect(), |input| world.call(input));
}

#[test]
fn configuration_files() {
    let run = |input: &str| {
        let _refused_or_accepted = config::fuzz::config(input);
        let _refused_or_accepted = rpc::fuzz::policy(input);
    };
    endure("config", text(run));
}

#[test]
fn cookies_of_other_hosts() {
    endure("cookie", |input| drop(qemu::fuzz::cookie(input)));
}

#[test]
fn definitions_of_guests() {
    static CAPS: LazyLock<QemuCaps> = LazyLock::new(|| {
        let answers = |name: &str| {
            let path = here().join("tests/data/capabilities").join(name);
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
        };
        let (kvm, tcg) = ("qemu-10.0.2-x86_64-kvm.json", "qemu-10.0.2-x86_64-tcg.json");
        let binary = "/usr/bin/qemu-system-x86_64".into();
        probe::assemble(binary, &answers(kvm), Some(&answers(tcg))).unwrap()
    });
    let guests = fs::read_dir(here().join("tests/data/domain")).unwrap();
    let guests = guests.filter_map(|entry| fs::read(entry.unwrap().path().join("input.xml")).ok());
    let run = |input: &str| drop(qemu::fuzz::definition(input, &CAPS));
    endure_with("definition", guests.collect(), text(run));
}

#[test]
fn bytes_of_clients() {
    let root = TempDir::new().unwrap();
    let world = rpc::fuzz::World::new(root.path()).unwrap();
    endure("frame", |input| world.bytes(input));
}

#[test]
fn headers_of_images() {
    endure("header", qemu::fuzz::header);
}

#[test]
fn saved_guests() {
    endure("image", |input| drop(qemu::fuzz::image(input)));
}

#[test]
fn what_qemu_says() {
    endure("qmp", qemu::fuzz::qmp);
}

#[test]
fn status_files() {
    endure("status", text(|input| drop(qemu::fuzz::status(input))));
}

#[test]
fn texts_of_every_other_object() {
    endure("xml", text(|input| drop(conf::fuzz::xml(input))));
}
