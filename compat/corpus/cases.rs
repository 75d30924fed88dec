//! Which cases there are: the calls in upstream's test program, in order, with the settings made between them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a case is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Success,
    /// The definition is refused.
    DefineFails,
    /// There is no command line for it.
    StartFails,
}

/// One call of the test program.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Between the name and the ending of the files with what is expected: `.x86_64-latest`.
    pub(crate) suffix: String,
    /// `latest` or `7.2.0`.
    pub(crate) version: String,
    /// `+amdsev`, or nothing.
    pub(crate) variant: String,
    pub(crate) expect: Expect,
    /// Settings of the daemon and variables of its environment that differ from the usual.
    pub(crate) settings: BTreeMap<String, String>,
    /// Where an incoming migration comes from.
    pub(crate) incoming: Option<String>,
}

impl Case {
    pub(crate) fn id(&self) -> String {
        format!("{}{}{}", self.name, self.suffix, self.variant)
    }
}

/// The x86_64 cases.
pub(crate) fn read(tests: &Path) -> Vec<Case> {
    let text = fs::read_to_string(tests.join("qemuxmlconftest.c")).expect("the test program is there");
    let start = text.find("DO_TEST_CAPS_ARCH_LATEST_FULL(\"nonexistent-file\"").expect("the first case");
    let mut settings = BTreeMap::new();
    let mut cases: Vec<Case> = Vec::new();
    for statement in statements(&text[start..]) {
        if statement.starts_with("DO_TEST") {
            let case = case(&statement, &settings).filter(|case| tests_have_input(tests, case));
            // A few cases are run again under conditions that make no difference.
            cases.extend(case.filter(|case| cases.iter().all(|known| known.id() != case.id())));
        } else if let Some((names, value)) = setting(&statement) {
            settings.extend(names.into_iter().map(|name| (name, value.clone())));
        }
    }
    cases
}

fn tests_have_input(tests: &Path, case: &Case) -> bool {
    tests.join(format!("qemuxmlconfdata/{}.xml", case.name)).exists()
}

/// C statements without comments and preprocessor lines.
fn statements(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("/*") {
        plain.push_str(&rest[..at]);
        rest = rest[at..].split_once("*/").map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    let lines: Vec<&str> = plain.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    lines.join(" ").split(';').map(|statement| statement.trim().to_owned()).collect()
}

/// The names that a statement sets, and the value.
fn setting(statement: &str) -> Option<(Vec<String>, String)> {
    let inside = |prefix: &str| statement.strip_prefix(prefix)?.strip_suffix(')');
    let bare = |word: &str| word.trim().trim_start_matches("driver.config->").trim_matches('"').to_owned();
    if let Some(name) = inside("VIR_FREE(").or(inside("g_unsetenv(")) {
        return Some((vec![bare(name)], String::new()));
    }
    if let Some(pair) = inside("g_setenv(") {
        let mut words = pair.split(',').map(bare);
        return Some((vec![words.next()?], words.next()?));
    }
    let mut names: Vec<String> = statement.strip_prefix("driver.config->")?.split(" = ").map(bare).collect();
    let value = names.pop()?;
    Some((names, value.trim_start_matches("g_strdup(\"").trim_end_matches("\")").to_owned()))
}

fn case(statement: &str, settings: &BTreeMap<String, String>) -> Option<Case> {
    let (kind, arguments) = statement.split_once('(')?;
    let words: Vec<String> = arguments
        .trim_end_matches(')')
        .split(',')
        .map(|word| word.trim().trim_matches('"').to_owned())
        .collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).cloned()
    };
    let elsewhere = kind.contains("PPC64") || kind.contains("GIC");
    let named = kind.contains("ARCH").then(|| words.get(1).cloned()).flatten();
    let arch = named.or(after("ARG_CAPS_ARCH")).unwrap_or_else(|| "x86_64".to_owned());
    if elsewhere || arch != "x86_64" {
        return None;
    }
    let version = match kind {
        "DO_TEST_FULL" => after("ARG_CAPS_VER")?,
        _ if kind.contains("ARCH_VER") => words.get(2)?.clone(),
        _ if kind.contains("_VER") => words.get(1)?.clone(),
        _ => "latest".to_owned(),
    };
    let suffix = match kind {
        "DO_TEST_FULL" => words.get(1)?.clone(),
        _ if kind.contains("ABI_UPDATE") => ".x86_64-latest.abi-update".to_owned(),
        _ => format!(".x86_64-{version}"),
    };
    let flags = after("ARG_FLAGS").unwrap_or_default();
    let expect = if kind.ends_with("PARSE_ERROR") || flags.contains("FLAG_EXPECT_PARSE_ERROR") {
        Expect::DefineFails
    } else if kind.ends_with("FAILURE") || flags.contains("FLAG_EXPECT_FAILURE") {
        Expect::StartFails
    } else {
        Expect::Success
    };
    let name = words.first()?.clone();
    let variant = after("ARG_CAPS_VARIANT").unwrap_or_default();
    let incoming = after("ARG_MIGRATE_FROM");
    Some(Case { name, suffix, version, variant, expect, settings: settings.clone(), incoming })
}
