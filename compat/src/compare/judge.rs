//! Two lists of answers, side by side.

use crate::diff;
use crate::expected::Expected;
use crate::play::Answer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Accepted,
    Different,
}

/// One question.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) asked: String,
    pub(crate) verdict: Verdict,
    pub(crate) reason: String,
    /// `-` upstream's, `+` ours.
    pub(crate) changes: Vec<String>,
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) name: String,
    pub(crate) questions: Vec<Question>,
}

impl Judged {
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.questions.iter().filter(|question| question.verdict == verdict).count()
    }

    pub(crate) fn different(&self) -> usize {
        self.count(Verdict::Different)
    }
}

pub(crate) fn judge(name: &str, upstream: &[Answer], ours: &[Answer], expected: &mut Expected) -> Judged {
    let mut questions: Vec<Question> = Vec::new();
    let mut rest = ours.iter();
    for theirs in upstream {
        // A step that one of them alone could not finish is an answer of its own.
        let ours = rest.clone().find(|answer| answer.asked == theirs.asked);
        let changes = match ours {
            Some(_) => {
                let ours = rest.by_ref().find(|answer| answer.asked == theirs.asked);
                ours.map_or_else(Vec::new, |ours| changes(theirs, ours))
            }
            None => vec![format!("- {}", theirs.err), "+ not asked".to_owned()],
        };
        let said = ours.map_or("", |ours| &ours.err);
        questions.push(question(name, theirs, changes, said, expected));
    }
    Judged { name: name.to_owned(), questions }
}

fn question(
    name: &str,
    theirs: &Answer,
    changes: Vec<String>,
    said: &str,
    expected: &mut Expected,
) -> Question {
    let asked = theirs.asked.clone();
    if changes.is_empty() {
        return Question { asked, verdict: Verdict::Same, reason: String::new(), changes };
    }
    match expected.reason(name, &asked, said) {
        Some(reason) => {
            let reason = reason.to_owned();
            Question { asked, verdict: Verdict::Accepted, reason, changes }
        }
        None => Question { asked, verdict: Verdict::Different, reason: String::new(), changes },
    }
}

fn changes(upstream: &Answer, ours: &Answer) -> Vec<String> {
    let mut changes = Vec::new();
    if upstream.code != ours.code {
        changes.push(format!("- exit status {:?}", upstream.code));
        changes.push(format!("+ exit status {:?}", ours.code));
    }
    changes.extend(diff::lines(&upstream.err, &ours.err));
    changes.extend(diff::lines(&upstream.out, &ours.out));
    changes
}
