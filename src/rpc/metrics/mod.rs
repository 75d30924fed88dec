//! How the daemon and its guests are doing, for Prometheus: `GET /metrics`, and `GET /healthz`.
//!
//! Off unless `metrics_listen` says where. Whoever reaches that place reads names and numbers of all guests, and
//! changes nothing. A scrape never waits for a guest: who is busy or silent is told of by what is known.
//!
//! ```text
//!   router ─► meter of the call (counters) ─┐
//!   servers, guests ────────────────────────┴─► exposition (text) ─► http ─► whoever scrapes
//! ```

mod exposition;
mod guests;
pub mod http;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ferrovirt_protocol::procedure::Entry;

use self::exposition::{Exposition, Kind};
use super::server::Server;
use crate::drivers::Drivers;

/// Upper bounds of the histogram of durations, with how the text names them.
const BOUNDS: [(Duration, &str); 6] = [
    (Duration::from_micros(100), "0.0001"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_secs(1), "1"),
    (Duration::from_secs(10), "10"),
];

/// What is counted of one call of the API.
#[derive(Debug, Default)]
pub struct Meter {
    answered: AtomicU64,
    failed: AtomicU64,
    /// How many took no longer than each of [`BOUNDS`] and longer than the one before.
    within: [AtomicU64; BOUNDS.len()],
    nanoseconds: AtomicU64,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    Failed,
}

impl Meter {
    pub fn count(&self, outcome: Outcome, took: Duration) {
        let outcomes = match outcome {
            Outcome::Answered => &self.answered,
            Outcome::Failed => &self.failed,
        };
        outcomes.fetch_add(1, Ordering::Relaxed);
        let bound = BOUNDS.iter().position(|(bound, _)| took <= *bound);
        if let Some(counter) = bound.and_then(|at| self.within.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn read(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Answered => self.answered.load(Ordering::Relaxed),
            Outcome::Failed => self.failed.load(Ordering::Relaxed),
        }
    }
}

/// Where the numbers come from.
#[derive(Debug)]
pub struct Metrics {
    drivers: Arc<Drivers>,
    /// They may end before the last scrape does.
    servers: Vec<Weak<Server>>,
}

impl Metrics {
    pub fn new<'a>(drivers: Arc<Drivers>, servers: impl IntoIterator<Item = &'a Arc<Server>>) -> Arc<Self> {
        Arc::new(Self { drivers, servers: servers.into_iter().map(Arc::downgrade).collect() })
    }

    /// All numbers, in Prometheus' text form.
    pub async fn text(&self) -> String {
        let servers: Vec<Arc<Server>> = self.servers.iter().filter_map(Weak::upgrade).collect();
        let mut text = Exposition::default();
        clients(&mut text, &servers);
        calls(&mut text, &servers);
        guests::write(&mut text, &self.drivers).await;
        text.finish()
    }
}

fn clients(text: &mut Exposition, servers: &[Arc<Server>]) {
    text.family("ferrovirt_clients", Kind::Gauge, "Connected clients.");
    for server in servers {
        text.sample(&[("server", server.name)], server.clients().len());
    }
    text.family("ferrovirt_calls_running", Kind::Gauge, "Calls that wait for something.");
    for server in servers {
        text.sample(&[("server", server.name)], server.running_calls());
    }
}

/// One function of the API may have several procedures, older and newer ones.
fn labels(entry: &Entry, more: Option<(&'static str, &'static str)>) -> Vec<(&'static str, &'static str)> {
    [("api", entry.api), ("procedure", entry.name)].into_iter().chain(more).collect()
}

/// Of calls that were never made nothing is told.
fn calls(text: &mut Exposition, servers: &[Arc<Server>]) {
    let meters = || {
        let all = servers.iter().flat_map(|server| server.router().meters());
        all.filter(|(_, meter)| meter.read(Outcome::Answered) + meter.read(Outcome::Failed) > 0)
    };
    text.family("ferrovirt_calls_total", Kind::Counter, "Calls by API function and outcome.");
    for (entry, meter) in meters() {
        for (name, outcome) in [("ok", Outcome::Answered), ("error", Outcome::Failed)] {
            text.sample(&labels(entry, Some(("outcome", name))), meter.read(outcome));
        }
    }
    let name = "ferrovirt_call_duration_seconds";
    text.family(name, Kind::Histogram, "How long calls took until their answer.");
    for (entry, meter) in meters() {
        let mut within = 0;
        for ((_, bound), counter) in BOUNDS.iter().zip(&meter.within) {
            within += counter.load(Ordering::Relaxed);
            text.part("_bucket", &labels(entry, Some(("le", bound))), within);
        }
        // Counters go on meanwhile; a histogram has to fit together.
        let all = (meter.read(Outcome::Answered) + meter.read(Outcome::Failed)).max(within);
        text.part("_bucket", &labels(entry, Some(("le", "+Inf"))), all);
        text.part("_sum", &labels(entry, None), meter.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9);
        text.part("_count", &labels(entry, None), all);
    }
}
