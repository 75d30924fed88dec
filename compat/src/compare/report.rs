//! What a run prints: a row for each scenario, and the page with every accepted difference.

use std::fmt::Write as _;

use crate::judge::{Judged, Verdict};

/// Lines of a difference that the page shows.
const SHOWN: usize = 8;

pub(crate) fn row(one: &Judged) -> String {
    let count = |verdict| one.count(verdict);
    format!(
        "| {} | {} | {} | {} | {} |",
        one.name,
        one.questions.len(),
        count(Verdict::Same),
        count(Verdict::Accepted),
        count(Verdict::Different)
    )
}

/// What nobody accepted.
pub(crate) fn unexpected(one: &Judged) -> String {
    let mut text = String::new();
    for question in one.questions.iter().filter(|question| question.verdict == Verdict::Different) {
        let _ = writeln!(text, "  {}", question.asked);
        for change in &question.changes {
            let _ = writeln!(text, "    {change}");
        }
    }
    text
}

pub(crate) fn page(judged: &[Judged]) -> String {
    let total = |verdict| judged.iter().map(|one| one.count(verdict)).sum::<usize>();
    let asked: usize = judged.iter().map(|one| one.questions.len()).sum();
    let mut text = String::from(
        "# Beside libvirt's own daemon\n\n\
         Printed by `make compat`: the same virsh 11.3 and the same libvirt-python on libvirtd 11.3 and on ferrovirtd, \
         the answers compared: exit status, output, errors, events in order, XML. \
         Identities, paths and moments are left out of it.\n\n\
         | scenario | questions | same | accepted | different |\n| --- | --: | --: | --: | --: |\n",
    );
    for one in judged {
        let _ = writeln!(text, "{}", row(one));
    }
    let _ = writeln!(
        text,
        "| **all** | {asked} | {} | {} | {} |",
        total(Verdict::Same),
        total(Verdict::Accepted),
        total(Verdict::Different)
    );
    text.push_str(&all_accepted(judged));
    text
}

/// Every accepted difference, by scenario.
pub(crate) fn all_accepted<'a>(judged: impl IntoIterator<Item = &'a Judged>) -> String {
    let mut text =
        String::from("\n## Accepted differences\n\nlibvirtd's lines are marked `-`, ferrovirtd's `+`.\n");
    for one in judged.into_iter().filter(|one| one.count(Verdict::Accepted) > 0) {
        let _ = write!(text, "\n### {}\n", one.name);
        accepted(one, &mut text);
    }
    text
}

/// By reason, in the order of the scenario.
fn accepted(one: &Judged, text: &mut String) {
    let questions = || one.questions.iter().filter(|question| question.verdict == Verdict::Accepted);
    let mut reasons: Vec<&str> = Vec::new();
    for question in questions() {
        if !reasons.contains(&&*question.reason) {
            reasons.push(&question.reason);
        }
    }
    for reason in reasons {
        let _ = write!(text, "\n{reason}:\n\n```diff\n");
        for question in questions().filter(|question| question.reason == reason) {
            let _ = writeln!(text, "  {}", question.asked);
            for change in question.changes.iter().take(SHOWN) {
                let _ = writeln!(text, "{change}");
            }
            if question.changes.len() > SHOWN {
                let _ = writeln!(text, "  … {} lines more", question.changes.len() - SHOWN);
            }
        }
        text.push_str("```\n");
    }
}
