//! Which lines there are at the moment, and where they go.
//!
//! Two layers of `tracing`, one that writes time and level and one for services that add these themselves.
//! Both ask [`Current`] at every line, so that an administrator can replace it while the daemon runs; what
//! they say of a place in the program is kept until then.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Filter as LayerFilter};
use tracing_subscriber::registry::LookupSpan;

use super::LogError;
use super::datagram::{self, Form, Service};
use super::words::{Destination, Filter, Target};
use crate::util::context;

/// What is logged now.
#[derive(Debug)]
pub(super) struct Current {
    /// What no filter fits.
    pub level: LevelFilter,
    pub filters: Vec<Filter>,
    pub outputs: Vec<Arc<Output>>,
}

#[derive(Debug)]
pub(super) struct Output {
    pub target: Target,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stderr,
    File(Mutex<File>),
    Service(Service),
}

/// Who puts time and level in front of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Ours,
    Theirs,
}

impl Output {
    pub(super) fn open(target: Target) -> Result<Self, LogError> {
        let service = |address: &str, form| {
            let failed = |source| LogError::File { path: address.into(), source };
            Service::new(address.as_ref(), form).map(Sink::Service).map_err(failed)
        };
        let sink = match &target.destination {
            Destination::Stderr => Sink::Stderr,
            Destination::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let failed = |source| LogError::File { path: path.clone(), source };
                Sink::File(Mutex::new(file.map_err(failed)?))
            }
            Destination::Syslog(identity) => {
                service(datagram::SYSLOG, Form::Syslog { identity: identity.clone() })?
            }
            Destination::Journald => service(datagram::JOURNALD, Form::Journald)?,
        };
        Ok(Self { target, sink })
    }

    #[cfg(test)]
    pub(super) fn of_service(least: LevelFilter, service: Service) -> Self {
        Self { target: Target { least, destination: Destination::Journald }, sink: Sink::Service(service) }
    }

    fn style(&self) -> Style {
        match self.sink {
            Sink::Stderr | Sink::File(_) => Style::Ours,
            Sink::Service(_) => Style::Theirs,
        }
    }

    fn write(&self, metadata: (Level, &Head), line: &[u8]) -> io::Result<()> {
        match &self.sink {
            Sink::Stderr => io::stderr().write_all(line),
            Sink::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line),
            Sink::Service(service) => {
                service.send(metadata.0, metadata.1, line);
                Ok(())
            }
        }
    }
}

impl Current {
    /// What an output takes: by the first filter that fits, else by the level; never below its own least one.
    fn takes(&self, output: &Output, metadata: &Metadata<'_>) -> bool {
        let filtered = self.filters.iter().find(|filter| metadata.target().contains(&*filter.name));
        let allowed = filtered.map_or(self.level, |filter| filter.level).min(output.target.least);
        *metadata.level() <= allowed
    }

    fn of_style(&self, style: Style) -> impl Iterator<Item = &Arc<Output>> {
        self.outputs.iter().filter(move |output| output.style() == style)
    }
}

/// What both layers look at.
pub(super) type Shared = Arc<ArcSwap<Current>>;

#[derive(Debug)]
struct Wanted {
    current: Shared,
    style: Style,
}

impl Wanted {
    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        let current = self.current.load();
        current.of_style(self.style).any(|output| current.takes(output, metadata))
    }
}

impl<S> LayerFilter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.is_wanted(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.is_wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let current = self.current.load();
        let most = current.filters.iter().map(|filter| filter.level).chain([current.level]).max();
        let outputs = current.of_style(self.style).map(|output| output.target.least).max();
        Some(most.unwrap_or(current.level).min(outputs.unwrap_or(LevelFilter::OFF)))
    }
}

/// Where a line came from, for services that say so in fields of their own.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub target: String,
    pub place: Option<(String, u32)>,
}

#[derive(Debug)]
struct Writer {
    current: Shared,
    style: Style,
}

/// One line in the making; `tracing-subscriber` writes it in one piece.
#[derive(Debug)]
struct Line {
    outputs: Vec<Arc<Output>>,
    level: Level,
    head: Head,
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { outputs: Vec::new(), level: Level::ERROR, head: Head::default() }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let current = self.current.load();
        let outputs = current.of_style(self.style).filter(|output| current.takes(output, metadata));
        let head = match self.style {
            Style::Ours => Head::default(),
            Style::Theirs => Head {
                target: metadata.target().to_owned(),
                place: metadata.file().map(ToOwned::to_owned).zip(metadata.line()),
            },
        };
        Line { outputs: outputs.map(Arc::clone).collect(), level: *metadata.level(), head }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for output in &self.outputs {
            output.write((self.level, &self.head), line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The layer for all outputs of a style.
pub(super) fn layer<S>(current: &Shared, style: Style) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let writer = Writer { current: Arc::clone(current), style };
    let wanted = Wanted { current: Arc::clone(current), style };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    lines.event_format(OneLine(style)).with_filter(wanted).boxed()
}

/// A line: when, how bad, on whose behalf, where, what.
struct OneLine(Style);

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        about: &FmtContext<'_, S, N>,
        mut line: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if self.0 == Style::Ours {
            SystemTime.format_time(&mut line)?;
            write!(line, " {:>5} ", metadata.level())?;
        }
        if let Some(call) = context::current() {
            write!(line, "{call}: ")?;
        }
        if self.0 == Style::Ours {
            write!(line, "{}: ", metadata.target())?;
        }
        about.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}
