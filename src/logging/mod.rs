//! Log lines: libvirt's levels, filters and outputs on top of `tracing`.
//!
//! `level:match` filters raise or lower the level of modules whose path contains `match`; an output is
//! `level:stderr`, `level:file:PATH`, `level:syslog:NAME` or `level:journald`. The first filter that fits counts.

mod datagram;

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use self::datagram::{Form, Service};
use crate::config::LogConfig;
use crate::util::reason::Reason;

#[derive(Debug, Error)]
pub enum LogError {
    #[error("malformed log filter '{0}', expected level:match")]
    Filter(String),
    #[error(
        "malformed log output '{0}', expected level:stderr, level:file:PATH, level:syslog:NAME or level:journald"
    )]
    Output(String),
    #[error("cannot write log file {}: {}", path.display(), Reason(source))]
    File { path: PathBuf, source: io::Error },
    #[error("logging is already set up")]
    Twice,
}

/// Sets logging up for the whole process.
pub fn start(config: &LogConfig) -> Result<(), LogError> {
    let level = level(config.level).unwrap_or(LevelFilter::WARN);
    let filters = filters(&config.filters)?;
    let mut layers = Vec::new();
    for output in config.outputs.split_ascii_whitespace() {
        match self::output(output)? {
            Output::Stderr(least) => layers.push(layer(io::stderr, filters.clone(), level, least)),
            Output::File(least, path) => {
                let file = OpenOptions::new().create(true).append(true).open(&path);
                let file = file.map_err(|source| LogError::File { path, source })?;
                layers.push(layer(Mutex::new(file), filters.clone(), level, least));
            }
            Output::Service(least, address, form) => {
                let service = Service::new(&address, form);
                let service = service.map_err(|source| LogError::File { path: address, source })?;
                layers.push(plain_layer(service, filters.clone(), level, least));
            }
        }
    }
    if layers.is_empty() {
        layers.push(layer(io::stderr, filters, level, LevelFilter::TRACE));
    }
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| LogError::Twice)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Output {
    Stderr(LevelFilter),
    File(LevelFilter, PathBuf),
    Service(LevelFilter, PathBuf, Form),
}

fn output(text: &str) -> Result<Output, LogError> {
    let malformed = || LogError::Output(text.to_owned());
    let (number, rest) = text.split_once(':').ok_or_else(malformed)?;
    let least = number.parse().ok().and_then(level).ok_or_else(malformed)?;
    match rest.split_once(':').unwrap_or((rest, "")) {
        ("stderr", "") => Ok(Output::Stderr(least)),
        ("file", path) if path.starts_with('/') => Ok(Output::File(least, path.into())),
        ("syslog", identity) if !identity.is_empty() => {
            let form = Form::Syslog { identity: identity.to_owned() };
            Ok(Output::Service(least, datagram::SYSLOG.into(), form))
        }
        ("journald", "") => Ok(Output::Service(least, datagram::JOURNALD.into(), Form::Journald)),
        _ => Err(malformed()),
    }
}

/// Modules and the least important level they log.
type Filters = Vec<(String, LevelFilter)>;

fn filters(text: &str) -> Result<Filters, LogError> {
    let filter = |text: &str| {
        let (number, name) = text.split_once(':')?;
        // A leading plus once asked libvirt for stack traces.
        let name = name.trim_start_matches('+').trim_matches('*');
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

/// Lines with time and level.
fn layer<S, W>(
    writer: W,
    filters: Filters,
    level: LevelFilter,
    least: LevelFilter,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    lines.with_filter(wanted(filters, level, least)).boxed()
}

/// Lines for a service that adds time and level itself.
fn plain_layer<S>(
    service: Service,
    filters: Filters,
    level: LevelFilter,
    least: LevelFilter,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(service).with_ansi(false);
    let lines = lines.without_time().with_level(false).with_target(false);
    lines.with_filter(wanted(filters, level, least)).boxed()
}

/// What an output takes: by the first filter that fits, else by the level; never below its own least one.
fn wanted(
    filters: Filters,
    level: LevelFilter,
    least: LevelFilter,
) -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    let most = filters.iter().map(|&(_, level)| level).chain([level]).max().unwrap_or(level).min(least);
    let wanted = move |metadata: &Metadata<'_>| {
        let filtered = filters.iter().find(|(name, _)| metadata.target().contains(name.as_str()));
        let allowed = filtered.map_or(level, |&(_, level)| level).min(least);
        *metadata.level() <= allowed
    };
    FilterFn::new(wanted).with_max_level_hint(most)
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
        let journald =
            Output::Service(LevelFilter::DEBUG, "/run/systemd/journal/socket".into(), Form::Journald);
        assert_eq!(output("1:journald").unwrap(), journald);
        let form = Form::Syslog { identity: "virt".to_owned() };
        assert_eq!(
            output("4:syslog:virt").unwrap(),
            Output::Service(LevelFilter::ERROR, "/dev/log".into(), form)
        );
        for malformed in ["stderr", "0:stderr", "1:file:relative", "1:paper", "1:syslog", "1:journald:x"] {
            assert!(output(malformed).is_err(), "{malformed}");
        }
    }
}
