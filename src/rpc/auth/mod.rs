//! Who clients are, and how they show it.
//!
//! ```text
//!             none, root on a socket of polkit's
//! accepted ───────────────────────────────────────────────▶ known
//!    │ SASL: init ─▶ start ─▶ step… ─▶ name on the list ──────▲
//!    │ polkit: one question, which the user may have to answer ─┘
//!    └── a refusal: may try again; too often, or not known in time: the connection ends
//! ```
//!
//! Until then a client may only authenticate. Its frames are short, there are few places for such clients, and
//! what the library or the bus has to think about for one keeps nobody else waiting.

pub mod identity;
pub mod polkit;
pub mod sasl;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::identity::PeerProcess;
use self::polkit::Polkit;
use self::sasl::{Asks, Session};
use crate::error::{Error, Origin};
use crate::util::wildcard;

/// How long a client that is not known may do nothing to that end.
pub const SILENCE: Duration = Duration::from_secs(30);
/// How long a client may take until it is known; one with a terminal asks there.
const SASL_PATIENCE: Duration = Duration::from_secs(60);
/// A user may be asked for a password meanwhile.
const POLKIT_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How long the library may take over one step.
const STEP_PATIENCE: Duration = Duration::from_secs(20);
/// Steps of all clients that are with the library at once, of either kind.
const MAX_STEPS_AT_ONCE: usize = 16;
/// Refusals after which a client has to connect again.
const MAX_REFUSALS: u32 = 3;
/// Steps of one client's exchanges together; those that there are need four at most.
const MAX_STEPS: u32 = 32;

/// How a client must show who it is before it may call.
#[derive(Debug, Clone)]
pub enum Authentication {
    None,
    /// By its certificate, before it is served.
    Certificate,
    Sasl(Arc<SaslRules>),
    Polkit(Arc<Polkit>),
}

impl Authentication {
    /// What is asked of the client at this end of a unix socket: root needs nobody's leave.
    pub fn of_local(&self, process: Option<&PeerProcess>) -> Self {
        match (self, process) {
            (Self::Polkit(_), Some(PeerProcess { uid: 0, pid, .. })) => {
                tracing::debug!(pid, "polkit is not asked about root");
                Self::None
            }
            _ => self.clone(),
        }
    }

    /// Whether clients say who they are after they have been accepted.
    pub fn is_pending(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// How long a client may be connected without being known.
    pub fn patience(&self) -> Option<Duration> {
        match self {
            // The handshake has a limit of its own.
            Self::None | Self::Certificate => None,
            Self::Sasl(_) => Some(SASL_PATIENCE),
            Self::Polkit(_) => Some(POLKIT_PATIENCE),
        }
    }
}

/// Who is let in by SASL.
#[derive(Debug)]
pub struct SaslRules {
    /// Patterns of names; `None` lets everybody in.
    allowed: ArcSwapOption<Vec<String>>,
    /// How strong the encryption of plain TCP has to be.
    pub min_strength: u32,
    turns: Arc<Semaphore>,
    turns_to_ask: Arc<Semaphore>,
}

impl SaslRules {
    pub fn new(allowed: Option<Vec<String>>, min_strength: u32) -> Self {
        let allowed = ArcSwapOption::new(allowed.map(Arc::new));
        let turns = || Arc::new(Semaphore::new(MAX_STEPS_AT_ONCE));
        Self { allowed, min_strength, turns: turns(), turns_to_ask: turns() }
    }

    /// From now on lets these in. Who is in stays.
    pub fn allow(&self, allowed: Option<Vec<String>>) {
        self.allowed.store(allowed.map(Arc::new));
    }

    pub fn allows(&self, name: &str) -> bool {
        let allowed = self.allowed.load();
        allowed.as_ref().is_none_or(|list| list.iter().any(|pattern| wildcard::matches(pattern, name)))
    }

    /// Has the library work beside the tasks, for a limited time. `None`: it did not finish.
    /// Steps that wait for another program keep only their like waiting.
    pub async fn beside<T: Send + 'static>(
        &self,
        asks: Asks,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turns = match asks {
            Asks::Nobody => Arc::clone(&self.turns),
            Asks::Another => Arc::clone(&self.turns_to_ask),
        };
        let done = async {
            // The turn lasts as long as the library works, whether or not somebody still waits.
            let turn = turns.acquire_owned().await.ok()?;
            let work = move || {
                let done = work();
                drop(turn);
                done
            };
            tokio::task::spawn_blocking(work).await.ok()
        };
        tokio::time::timeout(STEP_PATIENCE, done).await.ok().flatten()
    }
}

/// How far a client has come.
#[derive(Debug, Default)]
pub struct Login {
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    /// The last thing that came to an end.
    silent_since: Instant,
    refusals: u32,
    steps: u32,
}

impl Default for Progress {
    fn default() -> Self {
        Self { stage: Stage::Nothing, silent_since: Instant::now(), refusals: 0, steps: 0 }
    }
}

#[derive(Debug)]
enum Stage {
    Nothing,
    /// It is the client's turn.
    Waiting(Session),
    /// It is the daemon's.
    Busy,
}

/// A step that does not fit what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfOrder;

impl Login {
    fn update<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Since when nothing has been under way; `None` while something is.
    pub fn silent_since(&self) -> Option<Instant> {
        self.update(|progress| matches!(progress.stage, Stage::Nothing).then_some(progress.silent_since))
    }

    /// The first step of an exchange; none may be under way.
    pub fn begin(&self) -> Result<(), OutOfOrder> {
        self.update(|progress| match progress.stage {
            Stage::Nothing => {
                progress.stage = Stage::Busy;
                Ok(())
            }
            Stage::Waiting(_) | Stage::Busy => Err(OutOfOrder),
        })
    }

    /// The next step: the session to take it with.
    pub fn resume(&self) -> Result<Session, OutOfOrder> {
        self.update(|progress| match std::mem::replace(&mut progress.stage, Stage::Busy) {
            Stage::Waiting(session) if progress.steps < MAX_STEPS => {
                progress.steps += 1;
                Ok(session)
            }
            Stage::Waiting(_) | Stage::Nothing => {
                progress.stage = Stage::Nothing;
                Err(OutOfOrder)
            }
            Stage::Busy => Err(OutOfOrder),
        })
    }

    /// It is the client's turn.
    pub fn wait(&self, session: Session) {
        self.update(|progress| progress.stage = Stage::Waiting(session));
    }

    /// The exchange is over without success; whether the client has had its last try.
    pub fn refuse(&self) -> bool {
        self.update(|progress| {
            if !matches!(progress.stage, Stage::Waiting(_)) {
                progress.stage = Stage::Nothing;
            }
            progress.silent_since = Instant::now();
            progress.refusals += 1;
            progress.refusals >= MAX_REFUSALS
        })
    }
}

/// What a client is told, whatever the reason: that is in the log.
pub fn refusal() -> Error {
    Error::auth_failed("authentication failed").from_origin(Origin::RPC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_an_order_and_an_end() {
        let login = Login::default();
        assert!(login.resume().is_err(), "nothing has begun");
        login.begin().unwrap();
        assert_eq!(login.begin(), Err(OutOfOrder));
        assert!(login.resume().is_err(), "it is the daemon's turn");
        assert!(!login.refuse());
        login.begin().unwrap();
        assert!(!login.refuse());
        login.begin().unwrap();
        assert!(login.refuse(), "that was the third");
    }

    #[test]
    fn names_are_let_in_by_patterns() {
        let rules = |list: Option<&[&str]>| {
            SaslRules::new(list.map(|list| list.iter().map(|&name| name.to_owned()).collect()), 56)
        };
        assert!(rules(None).allows("anybody"));
        assert!(!rules(Some(&[])).allows("anybody"));
        let staff = rules(Some(&["joe@EXAMPLE.COM", "*@STAFF.ORG"]));
        for (name, allowed) in
            [("joe@EXAMPLE.COM", true), ("x@STAFF.ORG", true), ("joe@EXAMPLE.COM.ORG", false)]
        {
            assert_eq!(staff.allows(name), allowed, "{name}");
        }
    }

    #[test]
    fn polkit_is_not_asked_about_root() {
        let asked = Authentication::Polkit(Arc::new(Polkit::default()));
        let process = |uid| PeerProcess { uid, gid: 1, pid: 1, start_time: None, selinux_context: None };
        assert!(!asked.of_local(Some(&process(0))).is_pending());
        assert!(asked.of_local(Some(&process(1))).is_pending());
        assert!(asked.of_local(None).is_pending());
    }
}
