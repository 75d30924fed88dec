//! Filters and outputs as libvirt's configuration writes them, there and back.

use std::fmt;
use std::path::{Path, PathBuf};

use tracing::Level;
use tracing::level_filters::LevelFilter;

use super::LogError;

/// `level:match`: modules whose path contains `match`, and the least important level they log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    pub name: String,
    pub level: LevelFilter,
}

/// `level:destination`: where lines go, from which level on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub least: LevelFilter,
    pub destination: Destination,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Stderr,
    File(PathBuf),
    Syslog(String),
    Journald,
}

/// libvirt's number of a level.
pub(super) fn level(number: u32) -> Option<LevelFilter> {
    match number {
        1 => Some(LevelFilter::DEBUG),
        2 => Some(LevelFilter::INFO),
        3 => Some(LevelFilter::WARN),
        4 => Some(LevelFilter::ERROR),
        _ => None,
    }
}

fn number(level: LevelFilter) -> u32 {
    match level.into_level() {
        Some(Level::ERROR) | None => 4,
        Some(Level::WARN) => 3,
        Some(Level::INFO) => 2,
        Some(_) => 1,
    }
}

impl Filter {
    fn read(text: &str) -> Result<Self, LogError> {
        let malformed = || LogError::Filter(text.to_owned());
        let (priority, name) = text.split_once(':').ok_or_else(malformed)?;
        let level = priority.parse().ok().and_then(level);
        let level = level.ok_or_else(|| LogError::FilterLevel(priority.to_owned(), text.to_owned()))?;
        // A leading plus once asked libvirt for stack traces.
        let plain = name.strip_prefix('+').unwrap_or(name).trim_matches('*');
        match plain {
            "" => Err(LogError::Match(name.to_owned())),
            plain => Ok(Self { name: plain.to_owned(), level }),
        }
    }

    pub(super) fn read_all(text: &str) -> Result<Vec<Self>, LogError> {
        text.split_ascii_whitespace().map(Self::read).collect()
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:*{}*", number(self.level), self.name)
    }
}

impl Target {
    pub(super) fn stderr(least: LevelFilter) -> Self {
        Self { least, destination: Destination::Stderr }
    }

    fn read(text: &str) -> Result<Self, LogError> {
        let (priority, rest) = text.split_once(':').ok_or_else(|| LogError::Output(text.to_owned()))?;
        let least = priority.parse().ok().and_then(level);
        let least = least.ok_or_else(|| LogError::OutputLevel(priority.to_owned(), text.to_owned()))?;
        let (kind, data) = match rest.split_once(':') {
            Some((kind, data)) => (kind, Some(data)),
            None => (rest, None),
        };
        let destination = match (kind, data) {
            ("stderr", None) => Destination::Stderr,
            ("journald", None) => Destination::Journald,
            ("file", Some(path)) if Path::new(path).is_absolute() => Destination::File(path.into()),
            ("syslog", Some(identity)) if !identity.is_empty() => Destination::Syslog(identity.to_owned()),
            ("stderr" | "journald" | "file" | "syslog", _) => {
                return Err(LogError::Form(text.to_owned(), kind.to_owned()));
            }
            _ => return Err(LogError::Destination(kind.to_owned(), text.to_owned())),
        };
        Ok(Self { least, destination })
    }

    pub(super) fn read_all(text: &str) -> Result<Vec<Self>, LogError> {
        text.split_ascii_whitespace().map(Self::read).collect()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = number(self.least);
        match &self.destination {
            Destination::Stderr => write!(f, "{least}:stderr"),
            Destination::Journald => write!(f, "{least}:journald"),
            Destination::File(path) => write!(f, "{least}:file:{}", path.display()),
            Destination::Syslog(identity) => write!(f, "{least}:syslog:{identity}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_outputs_are_libvirts() {
        let filters = Filter::read_all("1:qemu  4:*rpc* 2:+conf").unwrap();
        let written: Vec<_> = filters.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["1:*qemu*", "4:*rpc*", "2:*conf*"]);
        let text = "3:stderr 1:file:/a:b 1:journald 4:syslog:virt";
        let targets = Target::read_all(text).unwrap();
        assert_eq!(targets[1].destination, Destination::File("/a:b".into()));
        let written: Vec<_> = targets.iter().map(ToString::to_string).collect();
        assert_eq!(written.join(" "), text);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, sentence) in [
            ("qemu", "Malformed format for filter 'qemu'"),
            ("9:qemu", "Invalid priority '9' for filter '9:qemu'"),
            ("1:", "Invalid match string ''"),
            ("1:+", "Invalid match string '+'"),
        ] {
            assert_eq!(Filter::read_all(text).unwrap_err().to_string(), sentence);
        }
        for (text, sentence) in [
            ("stderr", "Malformed format for log output 'stderr'"),
            ("0:stderr", "Invalid log priority '0' for log output '0:stderr'"),
            ("1:paper", "Invalid log destination 'paper' for log output '1:paper'"),
            (
                "1:syslog",
                "Log output '1:syslog' does not meet the format requirements for destination type 'syslog'",
            ),
            (
                "1:file:relative",
                "Log output '1:file:relative' does not meet the format requirements for destination type 'file'",
            ),
        ] {
            assert_eq!(Target::read_all(text).unwrap_err().to_string(), sentence);
        }
    }
}
