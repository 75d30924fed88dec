//! Asking guests' monitors without waiting for those that do not answer.
//!
//! Every question runs as a task of its own, which ends with the guest's answer or with the guest. Who asks
//! waits as long as answers come in; guests that are still silent then are reported by what they told last.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::drivers::domain::reads::running;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, Query, State};
use crate::qemu::stats::{self, Account, Subjects, Told};

/// How long nobody may answer before the rest is taken for silent.
const PATIENCE: Duration = Duration::from_millis(150);

/// The same while a guest is among them that has never told anything: there is nothing to put in its place.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// The same for a guest that is asked alone: its client waits for nothing else, and has to be refused otherwise. As
/// long as for a guest's job.
const ONLY_PATIENCE: Duration = Duration::from_secs(30);

/// Whether to wait for other calls that use a guest's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drivers::domain) enum Busy {
    Wait,
    Skip,
}

/// One question under way.
struct Question {
    told: Arc<Told>,
    number: u64,
    is_first: bool,
}

/// Asks all guests at once; the answers are in their [`Told`]. Returns when all have answered or the rest is
/// silent.
pub(in crate::drivers::domain) async fn ask(questions: Vec<(Arc<DomainObject>, Subjects)>, busy: Busy) {
    ask_within(questions, busy, FIRST_PATIENCE).await;
}

async fn ask_within(questions: Vec<(Arc<DomainObject>, Subjects)>, busy: Busy, first_patience: Duration) {
    let (answered, mut answers) = mpsc::channel(questions.len().max(1));
    let mut open: Vec<Option<Question>> = Vec::with_capacity(questions.len());
    for (object, subjects) in questions {
        let state = object.state();
        let Some(told) = state.told().filter(|_| !subjects.is_empty()) else { continue };
        let handle = DomainHandle::new(Arc::clone(&object));
        if told.is_silent() || (busy == Busy::Skip && handle.occupied().is_some()) {
            continue;
        }
        let is_first = busy == Busy::Wait && !told.has_told() && !is_stopped(&state);
        let question = Question { told: Arc::clone(told), number: told.begin_question(), is_first };
        let (number, told, at) = (question.number, Arc::clone(told), open.len());
        let answered = answered.clone();
        tokio::spawn(async move {
            told.learn(number, ask_one(handle, &told, subjects).await);
            // Whoever asked may have gone.
            let _ = answered.send(at).await;
        });
        open.push(Some(question));
    }
    drop(answered);
    loop {
        let patience = match open.iter().flatten().any(|question| question.is_first) {
            true => first_patience,
            false => PATIENCE,
        };
        match tokio::time::timeout(patience, answers.recv()).await {
            Ok(Some(at)) => drop(open.get_mut(at).and_then(Option::take)),
            Ok(None) => return,
            Err(_) => break,
        }
    }
    open.iter().flatten().for_each(|question| question.told.give_up(question.number));
}

/// Asks one guest. Its last answer will do; but one that has never answered is an error.
pub(in crate::drivers::domain) async fn ask_for(
    object: &Arc<DomainObject>,
    subjects: Subjects,
) -> Result<Arc<Account>> {
    ask_within(vec![(Arc::clone(object), subjects)], Busy::Wait, ONLY_PATIENCE).await;
    let state = object.state();
    running(&state)?;
    let told = state.told().filter(|told| told.has_told());
    told.map(|told| told.account())
        .ok_or_else(|| Error::operation_timeout("the guest's monitor does not answer"))
}

async fn ask_one(mut domain: DomainHandle, told: &Arc<Told>, subjects: Subjects) -> Option<Account> {
    let job = domain.begin::<Query>().await.ok()?;
    let live = job.live().ok()?;
    // The guest may have been started anew since.
    live.state().told().filter(|current| Arc::ptr_eq(current, told))?;
    match stats::ask(&live, subjects, &told.account()).await {
        Ok(account) => Some(account),
        Err(error) => {
            tracing::debug!(domain = %live.state().name, %error, "the guest tells nothing");
            None
        }
    }
}

/// Whether somebody has stopped the process, so that waiting for it is vain.
fn is_stopped(state: &State) -> bool {
    let Some(process) = state.process() else { return true };
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['T', 't']))
}
