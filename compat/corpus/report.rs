//! What is printed.

use std::collections::BTreeMap;

use crate::run::{Comparison, Outcome, Verdict};

/// Counts by verdict, and the first case that is not the same.
#[derive(Debug, Default)]
struct Row {
    counts: [usize; Verdict::ALL.len()],
    first: Option<String>,
}

impl Row {
    fn add(&mut self, case: &str, outcome: &Outcome) {
        self.counts[outcome.verdict as usize] += 1;
        if outcome.verdict != Verdict::Same {
            self.first.get_or_insert_with(|| format!("{case}: {}", outcome.reason()));
        }
    }

    fn print(&self, name: &str) {
        let total: usize = self.counts.iter().sum();
        let counts: Vec<String> = self.counts.iter().map(|count| format!("{count:>9}")).collect();
        let percent = 100 * self.counts[0] / total.max(1);
        let first = self.first.as_deref().unwrap_or_default();
        println!("  {name:<16}{} {percent:>4}%  {first}", counts.join(""));
    }
}

pub(crate) fn figures(outcomes: &[(String, Vec<Outcome>)]) {
    for comparison in Comparison::ALL {
        let mut areas: BTreeMap<&str, Row> = BTreeMap::new();
        let (mut all, mut latest) = (Row::default(), Row::default());
        for (case, outcome) in outcomes.iter().flat_map(|(case, all)| all.iter().map(move |one| (case, one)))
        {
            if outcome.comparison != comparison {
                continue;
            }
            let area = case.split(['-', '.']).next().unwrap_or_default();
            areas.entry(area).or_default().add(case, outcome);
            all.add(case, outcome);
            if case.contains("-latest") {
                latest.add(case, outcome);
            }
        }
        let heads: Vec<String> = Verdict::ALL.iter().map(|it| format!("{:>9}", it.name())).collect();
        println!("\n{}\n  {:<16}{}", comparison.title(), "area", heads.join(""));
        for (area, row) in areas {
            row.print(area);
        }
        (all.first, latest.first) = (None, None);
        all.print("ALL");
        latest.print("ALL, latest QEMU");
    }
}

/// Everything about a few cases.
pub(crate) fn in_full(outcomes: &[(String, Vec<Outcome>)]) {
    for (case, all) in outcomes {
        for outcome in all {
            println!("{case} {}: {}", outcome.comparison.name(), outcome.verdict.name());
            for (theirs, ours) in &outcome.differences {
                println!("  upstream {theirs}\n  ours     {ours}");
            }
        }
    }
}
