//! Reads the source as text and holds it to the rules of ARCHITECTURE.md that no lint knows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. A floor imports floors below it.
const FLOORS: [&str; 5] = ["util", "conf", "qemu", "drivers", "rpc"];

/// Beside the floors: who may import them.
const SHARED: [(&str, &[&str]); 3] =
    [("error", &["drivers", "rpc"]), ("config", &["drivers", "rpc"]), ("logging", &["rpc"])];

/// The only files with `unsafe` in them; each block says why it is sound.
const UNSAFE: [&str; 7] = [
    "src/util/process.rs",
    "src/util/fds.rs",
    "src/util/host_cpu.rs",
    "src/util/tap.rs",
    "src/util/vsock.rs",
    "src/rpc/auth/sasl.rs",
    "compat/clients/rust/src/main.rs",
];

const MOST_LINES: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project: its path from the root, its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_generated(&self) -> bool {
        self.path.contains("/generated/")
            || self.path.contains("/testdata/")
            || self.path.contains("/golden/")
    }
}

fn sources(below: &str, extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(below)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", "corpus", "artifacts"].contains(&&*name) && !name.starts_with('.') {
                    open.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
            {
                let text =
                    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust() -> Vec<Source> {
    sources("", &["rs"])
}

#[track_caller]
fn none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

/// The line without what a comment says.
fn code(line: &str) -> &str {
    match line.find("//") {
        // Not the slashes of a URL in a string.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    }
}

/// The modules of this crate that a line names: `crate::util::…`, `use crate::{conf, util}`.
fn modules_named(line: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, start) in line.match_indices("crate::") {
        let rest = &line[at + start.len()..];
        // `$crate::` in a macro and `some_crate::` are other things, the former the same module tree.
        let list = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap_or(list));
        let items: Vec<&str> = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
        for item in items {
            let name =
                item.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            names.push(name);
        }
    }
    names
}

#[test]
fn a_floor_imports_only_floors_below_it() {
    let mut breaches = Vec::new();
    for source in sources("src", &["rs"]) {
        let inside = source.path.trim_start_matches("src/");
        let Some(floor) =
            inside.split(['/', '.']).next().and_then(|top| FLOORS.iter().position(|f| *f == top))
        else {
            continue;
        };
        for (number, line) in source.text.lines().enumerate() {
            for name in modules_named(code(line)) {
                let allowed = match FLOORS.iter().position(|f| *f == name) {
                    Some(named) => named <= floor,
                    None => SHARED.iter().all(|(shared, by)| *shared != name || by.contains(&FLOORS[floor])),
                };
                if !allowed {
                    breaches.push(format!(
                        "{}:{}: {} imports {name}",
                        source.path,
                        number + 1,
                        FLOORS[floor]
                    ));
                }
            }
            let is_client = source.path.starts_with("src/drivers/domain/migrate/");
            if code(line).contains("ferrovirt_protocol") && FLOORS[floor] != "rpc" && !is_client {
                breaches.push(format!("{}:{}: wire types reach {}", source.path, number + 1, FLOORS[floor]));
            }
        }
    }
    none("imports that go up", &breaches);
}

#[test]
fn files_are_short_enough_to_read() {
    let long: Vec<String> = rust()
        .iter()
        .filter(|source| !source.is_generated())
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(source, lines)| format!("{}: {lines} lines", source.path))
        .collect();
    none("files over the limit", &long);
}

#[test]
fn a_file_opens_with_what_it_is() {
    let silent: Vec<String> = rust()
        .into_iter()
        .filter(|source| !source.is_generated())
        .filter(|source| !source.text.trim_start_matches("#![no_main]").trim_start().starts_with("//!"))
        .map(|source| source.path)
        .collect();
    none("files without a first line that says what they are", &silent);
}

#[test]
fn nothing_is_left_for_later() {
    // In pieces, or this file would find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("HA", "CK:"),
        concat!("for", " now"),
        concat!("#[ig", "nore"),
        concat!("todo", "!("),
    ];
    let mut found = Vec::new();
    for source in sources("", &["rs", "sh", "py", "md", "toml", "x"]) {
        for (number, line) in source.text.lines().enumerate() {
            for word in words {
                if line.contains(word) {
                    found.push(format!("{}:{}: {word}", source.path, number + 1));
                }
            }
        }
    }
    none("loose ends", &found);
}

#[test]
fn tests_wait_for_conditions() {
    let pause = concat!("sle", "ep(");
    let found: Vec<String> = sources("tests", &["rs", "py"])
        .into_iter()
        .chain(sources("compat", &["rs", "py"]))
        .flat_map(|source| {
            let lines = source.text.lines().enumerate().filter(|(_, line)| code(line).contains(pause));
            lines.map(|(number, _)| format!("{}:{}", source.path, number + 1)).collect::<Vec<_>>()
        })
        .collect();
    none("fixed pauses", &found);
}

#[test]
fn unsafe_stays_in_its_files_and_says_why() {
    let mut breaches = Vec::new();
    for source in rust() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let line = code(line);
            if !(line.contains(concat!("unsa", "fe {")) || line.contains(concat!("unsa", "fe fn"))) {
                continue;
            }
            if !UNSAFE.contains(&&*source.path) {
                breaches.push(format!("{}:{}: not one of {UNSAFE:?}", source.path, number + 1));
            } else if !lines[number.saturating_sub(6)..=number].iter().any(|line| line.contains("SAFETY")) {
                breaches.push(format!("{}:{}: no SAFETY sentence above", source.path, number + 1));
            }
        }
    }
    none("unsafe code", &breaches);
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let mut silent = Vec::new();
    for source in sources("", &["toml"]).iter().filter(|source| source.path.ends_with("Cargo.toml")) {
        let (mut within, mut reason) = (false, false);
        for line in source.text.lines() {
            if line.starts_with('[') {
                within = line.contains("dependencies]") && !line.contains("workspace");
                reason = false;
            } else if line.starts_with('#') {
                reason = true;
            } else if line.trim().is_empty() {
                reason = false;
            } else if within && !reason && !line.contains("path =") && line.contains('=') {
                silent.push(format!("{}: {line}", source.path));
            }
        }
    }
    none("dependencies without a sentence above them", &silent);
}

/// `[text](target)` and `` `path/with/slash` `` of the documents lead somewhere.
#[test]
fn documents_name_files_that_exist() {
    let mut broken = Vec::new();
    for source in sources("", &["md"]).iter().filter(|source| !source.path.contains('/')) {
        let links = source.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let quoted = source.text.split('`').skip(1).step_by(2).filter(|word| {
            let looks_like_path = word.contains('/') && !word.contains([' ', ':', '<', '{', '*', '$', '(']);
            looks_like_path && !word.starts_with(['/', '~', '.'])
        });
        for target in links.chain(quoted).collect::<BTreeSet<_>>() {
            let target = target.split('#').next().unwrap_or_default();
            if target.starts_with("http") || target.is_empty() {
                continue;
            }
            // Modules may be named as such.
            let module = root().join("src").join(format!("{target}.rs"));
            if ![root().join(target), root().join("src").join(target), module]
                .iter()
                .any(|path| path.exists())
            {
                broken.push(format!("{}: {target}", source.path));
            }
        }
    }
    none("dead ends", &broken);
}

/// What is promised is enforced: every test that the page names is there.
#[test]
fn promises_name_tests_that_exist() {
    let page = fs::read_to_string(root().join("SPEC.md")).expect("the page of promises is there");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let names =
        |(_, tests): (&str, &str)| tests.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let promised: BTreeSet<String> = rows.flat_map(names).collect();
    assert!(promised.len() > 20, "the page is not read as it is written");
    let code: String = rust().into_iter().map(|source| source.text).collect();
    let missing: Vec<String> =
        promised.into_iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    none("promised tests that are gone", &missing);
}

#[test]
fn the_readme_names_targets_that_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("the Makefile is there");
    let readme = fs::read_to_string(root().join("README.md")).expect("the README is there");
    let missing: Vec<String> = readme
        .split("make ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
        .filter(|target| {
            readme.contains(&format!("`make {target}")) || readme.contains(&format!("    make {target}"))
        })
        .filter(|target| !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))))
        .map(str::to_owned)
        .collect();
    none("targets that the Makefile lacks", &missing);
}

#[test]
fn the_architecture_fits_a_sitting() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    assert!(text.lines().count() < 250, "{} lines", text.lines().count());
}
