//! The list of what is known to differ, and why: `compat/expected.toml`.
//!
//! One table for each comparison, one line for each case: `"CASE" = "VERDICT: reason"`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::run::{Comparison, Outcome, Verdict};

/// By comparison and case.
#[derive(Debug, Default)]
pub(crate) struct Expected(BTreeMap<(Comparison, String), (Verdict, String)>);

pub(crate) fn read(path: &Path) -> Expected {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut expected = Expected::default();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = Comparison::ALL.into_iter().find(|comparison| comparison.name() == name);
            continue;
        }
        let Some((case, rest)) = line.strip_prefix('"').and_then(|line| line.split_once("\" = \"")) else {
            continue;
        };
        let (word, reason) = rest.trim_end_matches('"').split_once(": ").unwrap_or((rest, ""));
        let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.name() == word);
        let (Some(table), Some(verdict)) = (table, verdict) else {
            // Whatever it was to say, the case is then expected to be the same.
            println!("{}: not understood: {line}", path.display());
            continue;
        };
        expected.0.insert((table, case.to_owned()), (verdict, reason.to_owned()));
    }
    expected
}

impl Expected {
    /// What came out worse than listed.
    pub(crate) fn worse(&self, outcomes: &[(String, Vec<Outcome>)]) -> Vec<String> {
        let mut worse = Vec::new();
        for (case, outcome) in outcomes.iter().flat_map(|(case, all)| all.iter().map(move |one| (case, one)))
        {
            let known = self.0.get(&(outcome.comparison, case.clone()));
            let known = known.map_or(Verdict::Same, |(verdict, _)| *verdict);
            if outcome.verdict > known {
                let (name, difference) = (outcome.comparison.name(), outcome.reason());
                worse.push(format!("{case} {name}: {}: {difference}", outcome.verdict.name()));
            }
        }
        worse
    }
}

/// Lists what differs now; reasons that were written by hand stay as long as the verdict does.
pub(crate) fn write(path: &Path, outcomes: &[(String, Vec<Outcome>)]) {
    let before = read(path);
    let mut text = String::from(
        "# Where `make compat-corpus` is known not to come out as upstream's test data has it, and why: the refusal, or\n\
         # the first difference (upstream | ours), until somebody writes a better reason. `UPDATE=1` writes it again.\n",
    );
    for comparison in Comparison::ALL {
        let _ = write!(text, "\n[{}]\n", comparison.name());
        let mut lines = BTreeMap::new();
        for (case, all) in outcomes {
            for outcome in all.iter().filter(|it| it.comparison == comparison && it.verdict != Verdict::Same)
            {
                let by_hand = before.0.get(&(comparison, case.clone()));
                let by_hand = by_hand.filter(|(verdict, reason)| {
                    *verdict == outcome.verdict && reason.starts_with("because ")
                });
                let reason = by_hand.map_or_else(|| outcome.reason(), |(_, reason)| reason.clone());
                let reason = reason.replace('\\', "/").replace('"', "'");
                lines.insert(case, format!("\"{case}\" = \"{}: {reason}\"\n", outcome.verdict.name()));
            }
        }
        text.extend(lines.into_values());
    }
    fs::write(path, text).expect("the list can be written");
}
