//! Log lines: libvirt's levels, filters and outputs on top of `tracing`.
//!
//! `level:match` filters raise or lower the level of modules whose path contains `match`; an output is
//! `level:stderr` or `level:file:PATH`. The first filter that fits counts.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogConfig;
use crate::util::reason::Reason;

#[derive(Debug, Error)]
pub enum LogError {
    #[error("malformed log filter '{0}', expected level:match")]
    Filter(String),
    #[error("malformed log output '{0}', expected level:stderr or level:file:PATH")]
    Output(String),
    #[error("cannot write log file {}: {}", path.display(), Reason(source))]
    File { path: PathBuf, source: io::Error },
    #[error("logging is already set up")]
    Twice,
}

/// Where lines go that say why a line was logged nowhere: outputs that exist only elsewhere.
const ELSEWHERE: &[&str] = &["journald", "syslog"];

/// Sets logging up for the whole process. Answers remarks that are worth a line of their own.
pub fn start(config: &LogConfig) -> Result<Vec<String>, LogError> {
    let level = level(config.level).unwrap_or(LevelFilter::WARN);
    let filters = filters(&config.filters)?;
    let mut remarks = Vec::new();
    let mut layers = Vec::new();
    for output in config.outputs.split_ascii_whitespace() {
        match self::output(output)? {
            Output::Stderr(least) => layers.push(layer(io::stderr, filters.clone(), level, least)),
            Output::File(least, path) => {
                let file = OpenOptions::new().create(true).append(true).open(&path);
                let file = file.map_err(|source| LogError::File { path, source })?;
                layers.push(layer(Mutex::new(file), filters.clone(), level, least));
            }
            Output::Elsewhere => {
                remarks.push(format!("log output '{output}' is not supported, using stderr"))
            }
        }
    }
    if layers.is_empty() {
        layers.push(layer(io::stderr, filters, level, LevelFilter::TRACE));
    }
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| LogError::Twice)?;
    Ok(remarks)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Output {
    Stderr(LevelFilter),
    File(LevelFilter, PathBuf),
    Elsewhere,
}

fn output(text: &str) -> Result<Output, LogError> {
    let malformed = || LogError::Output(text.to_owned());
    let (number, rest) = text.split_once(':').ok_or_else(malformed)?;
    let least = number.parse().ok().and_then(level).ok_or_else(malformed)?;
    match rest.split_once(':').unwrap_or((rest, "")) {
        ("stderr", "") => Ok(Output::Stderr(least)),
        ("file", path) if path.starts_with('/') => Ok(Output::File(least, path.into())),
        (kind, _) if ELSEWHERE.contains(&kind) => Ok(Output::Elsewhere),
        _ => Err(malformed()),
    }
}

/// Modules and the least important level they log.
type Filters = Vec<(String, LevelFilter)>;

fn filters(text: &str) -> Result<Filters, LogError> {
    let filter = |text: &str| {
        let (number, name) = text.split_once(':')?;
        let name = name.trim_matches('*');
        Some((name.to_owned(), number.parse().ok().and_then(level)?)).filter(|(name, _)| !name.is_empty())
    };
    let parts = text.split_ascii_whitespace();
    parts.map(|part| filter(part).ok_or_else(|| LogError::Filter(part.to_owned()))).collect()
}

fn level(number: u32) -> Option<LevelFilter> {
    match number {
        1 => Some(LevelFilter::DEBUG),
        2 => Some(LevelFilter::INFO),
        3 => Some(LevelFilter::WARN),
        4 => Some(LevelFilter::ERROR),
        _ => None,
    }
}

fn layer<S, W>(
    writer: W,
    filters: Filters,
    level: LevelFilter,
    least: LevelFilter,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let most = filters.iter().map(|&(_, level)| level).chain([level]).max().unwrap_or(level).min(least);
    let wanted = move |metadata: &Metadata<'_>| {
        let filtered = filters.iter().find(|(name, _)| metadata.target().contains(name.as_str()));
        let allowed = filtered.map_or(level, |&(_, level)| level).min(least);
        *metadata.level() <= allowed
    };
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .with_filter(FilterFn::new(wanted).with_max_level_hint(most))
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_outputs_are_libvirts() {
        let parsed = filters("1:qemu  4:*rpc*").unwrap();
        assert_eq!(parsed, [("qemu".to_owned(), LevelFilter::DEBUG), ("rpc".to_owned(), LevelFilter::ERROR)]);
        for malformed in ["qemu", "9:qemu", "1:", "x:y"] {
            assert!(filters(malformed).is_err(), "{malformed}");
        }
        assert_eq!(output("3:stderr").unwrap(), Output::Stderr(LevelFilter::WARN));
        assert_eq!(output("1:file:/a:b").unwrap(), Output::File(LevelFilter::DEBUG, "/a:b".into()));
        assert_eq!(output("1:journald").unwrap(), Output::Elsewhere);
        for malformed in ["stderr", "0:stderr", "1:file:relative", "1:paper"] {
            assert!(output(malformed).is_err(), "{malformed}");
        }
    }
}
