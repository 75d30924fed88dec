//! Log lines: libvirt's levels, filters and outputs on top of `tracing`.
//!
//! `level:match` filters raise or lower the level of modules whose path contains `match`; an output is
//! `level:stderr`, `level:file:PATH`, `level:syslog:NAME` or `level:journald`. The first filter that fits
//! counts. Both can be replaced while the daemon runs.

mod datagram;
mod lines;
mod words;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::lines::{Current, Output, Shared, Style};
use self::words::{Filter, Target};
use crate::config::LogConfig;
use crate::util::reason::Reason;

#[derive(Debug, Error)]
pub enum LogError {
    #[error("Malformed format for filter '{0}'")]
    Filter(String),
    #[error("Invalid priority '{0}' for filter '{1}'")]
    FilterLevel(String, String),
    #[error("Invalid match string '{0}'")]
    Match(String),
    #[error("Malformed format for log output '{0}'")]
    Output(String),
    #[error("Invalid log priority '{0}' for log output '{1}'")]
    OutputLevel(String, String),
    #[error("Invalid log destination '{0}' for log output '{1}'")]
    Destination(String, String),
    #[error("Log output '{0}' does not meet the format requirements for destination type '{1}'")]
    Form(String, String),
    #[error("cannot write log file {}: {}", path.display(), Reason(source))]
    File { path: PathBuf, source: io::Error },
    #[error("logging is already set up")]
    Twice,
}

/// What is logged and where to, to be asked and changed. The default one leads nowhere.
#[derive(Debug, Clone)]
pub struct Logging {
    current: Shared,
}

impl Default for Logging {
    fn default() -> Self {
        let nothing = Current { level: LevelFilter::WARN, filters: Vec::new(), outputs: Vec::new() };
        Self { current: Arc::new(ArcSwap::from_pointee(nothing)) }
    }
}

/// Sets logging up for the whole process.
pub fn start(config: &LogConfig) -> Result<Logging, LogError> {
    let current = Current::new(config)?;
    let logging = Logging { current: Arc::new(ArcSwap::from_pointee(current)) };
    let layers = [Style::Ours, Style::Theirs].map(|style| lines::layer(&logging.current, style));
    let subscriber = tracing_subscriber::registry().with(Vec::from(layers));
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(logging)
}

impl Current {
    fn new(config: &LogConfig) -> Result<Self, LogError> {
        let level = words::level(config.level).unwrap_or(LevelFilter::WARN);
        let filters = Filter::read_all(&config.filters)?;
        Ok(Self { level, filters, outputs: open(&config.outputs, level)? })
    }
}

/// Standard error where nothing else is asked for.
fn open(outputs: &str, level: LevelFilter) -> Result<Vec<Arc<Output>>, LogError> {
    let mut targets = Target::read_all(outputs)?;
    if targets.is_empty() {
        targets.push(Target::stderr(level));
    }
    targets.into_iter().map(|target| Output::open(target).map(Arc::new)).collect()
}

impl Logging {
    /// The filters, as configuration has them.
    pub fn filters(&self) -> Vec<String> {
        self.current.load().filters.iter().map(ToString::to_string).collect()
    }

    /// The outputs, as configuration has them.
    pub fn outputs(&self) -> Vec<String> {
        self.current.load().outputs.iter().map(|output| output.target.to_string()).collect()
    }

    /// Replaces all filters, or none if there is a mistake.
    pub fn set_filters(&self, filters: &str) -> Result<(), LogError> {
        let filters = Filter::read_all(filters)?;
        self.replace(|now| Current { level: now.level, filters, outputs: now.outputs.clone() });
        Ok(())
    }

    /// Replaces all outputs, or none if there is a mistake or one cannot be opened.
    pub fn set_outputs(&self, outputs: &str) -> Result<(), LogError> {
        let outputs = open(outputs, self.current.load().level)?;
        self.replace(|now| Current { level: now.level, filters: now.filters.clone(), outputs });
        Ok(())
    }

    /// Replaces all of it as a configuration says, or nothing if there is a mistake.
    pub fn configure(&self, config: &LogConfig) -> Result<(), LogError> {
        let next = Current::new(config)?;
        self.replace(move |_| next);
        Ok(())
    }

    fn replace(&self, next: impl FnOnce(&Current) -> Current) {
        let next = next(&self.current.load());
        self.current.store(Arc::new(next));
        tracing::callsite::rebuild_interest_cache();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_changes_while_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = |name| std::fs::read_to_string(path(name)).unwrap_or_default();
        let logging = Logging::default();
        logging.set_outputs(&format!("1:file:{}", path("a").display())).unwrap();
        let layers = [Style::Ours, Style::Theirs].map(|style| lines::layer(&logging.current, style));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Vec::from(layers)), || {
            let say = |what| tracing::debug!("{what}");
            say("one");
            logging.set_filters("1:logging").unwrap();
            say("two");
            assert_eq!(logging.filters(), ["1:*logging*"]);
            let outputs = format!("3:file:{} 1:file:{}", path("a").display(), path("b").display());
            logging.set_outputs(&outputs).unwrap();
            say("three");
            assert!(logging.set_filters("1:rpc 9:qemu").is_err());
            assert!(logging.set_outputs("1:file:/nowhere/at/all").is_err());
            assert_eq!(logging.outputs().join(" "), outputs);
            logging.set_filters("").unwrap();
            say("four");
        });
        let has = |name, what| text(name).contains(what);
        assert!(!has("a", "one") && has("a", "two") && !has("a", "three"), "{}", text("a"));
        assert!(!has("b", "two") && has("b", "three") && !has("b", "four"), "{}", text("b"));
    }
}
