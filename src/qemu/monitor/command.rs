//! Commands as types, and their form on the wire.

use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::MonitorError;
use super::redact::{self, Secret};

/// How long a command may take, unless its type says otherwise: longer than any healthy QEMU needs, and
/// finite.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// One QMP command: the fields are its arguments, [`Command::Reply`] is what it returns.
pub trait Command: Serialize {
    const NAME: &'static str;
    type Reply: DeserializeOwned;
    const LIMIT: Duration = LIMIT;
    const SECRET: Secret = Secret::Never;
}

/// The reply of a command that returns nothing of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done;

impl<'de> Deserialize<'de> for Done {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(input).map(|_| Self)
    }
}

/// A command as it is sent, and as it may be logged.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) text: String,
    secret: Secret,
}

impl Line {
    /// `arguments` is a JSON object; none if empty.
    pub(super) fn new(name: &str, arguments: &str, id: &str, secret: Secret) -> Self {
        let arguments = match arguments {
            "" | "{}" | "null" => String::new(),
            arguments => format!(r#","arguments":{arguments}"#),
        };
        let text = format!("{{\"execute\":{}{arguments},\"id\":\"{id}\"}}\r\n", Value::from(name));
        Self { text, secret }
    }

    pub(super) fn shown(&self) -> String {
        match self.secret {
            Secret::Never => self.text.trim_ascii_end().to_owned(),
            Secret::Named => redact::line(&self.text),
        }
    }
}

/// Whether the command only asks.
pub(super) fn is_question(name: &str) -> bool {
    name.starts_with("query-") || name == "qom-get"
}

/// The arguments of a typed command.
pub(super) fn arguments(command: &impl Command) -> Result<String, MonitorError> {
    serde_json::to_string(command)
        .map_err(|error| MonitorError::Json { text: String::new(), detail: error.to_string() })
}

/// A user's command, parsed.
#[derive(Debug)]
pub(super) struct Raw(Value);

impl Raw {
    /// QEMU's reply is found by its id, so the id is ours; on anything that is not an object QEMU reports
    /// an error without one.
    pub(super) fn with_id(mut self, id: &str) -> Line {
        if let Value::Object(command) = &mut self.0 {
            command.insert("id".to_owned(), Value::from(id));
        }
        Line { text: format!("{}\r\n", self.0), secret: Secret::Named }
    }
}

/// Reads a user's command; its name is for messages.
pub(super) fn raw(json: &str) -> Result<(String, Raw), MonitorError> {
    let command: Value = serde_json::from_str(json)
        .map_err(|error| MonitorError::Json { text: json.to_owned(), detail: error.to_string() })?;
    let name = command.get("execute").and_then(Value::as_str).unwrap_or("<unknown>").to_owned();
    Ok((name, Raw(command)))
}

/// QEMU's reply as libvirt hands it to users: the same members in the same order, without blanks.
pub(super) fn compact(line: &[u8]) -> Result<String, MonitorError> {
    serde_json::from_slice::<Value>(line)
        .map(|reply| reply.to_string())
        .map_err(|_| MonitorError::Garbage { line: excerpt(line) })
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
struct Reply<T> {
    /// Present is what counts: a property may be null.
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    desc: Option<String>,
}

fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
    T::deserialize(input).map(Some)
}

/// The typed value in a reply, or QEMU's refusal.
pub(super) fn parse_reply<T: DeserializeOwned>(command: &str, line: &[u8]) -> Result<T, MonitorError> {
    let command = command.to_owned();
    match serde_json::from_slice::<Reply<T>>(line) {
        Ok(Reply { error: Some(refusal), .. }) => Err(MonitorError::Command {
            command,
            class: refusal.class,
            text: refusal.desc.unwrap_or_else(|| "unknown QEMU command error".to_owned()),
        }),
        Ok(Reply { value: Some(value), .. }) => Ok(value),
        Ok(Reply { .. }) => Err(MonitorError::Reply { command, detail: "no value".to_owned() }),
        Err(error) => Err(MonitorError::Reply { command, detail: error.to_string() }),
    }
}

/// The beginning of a line, for a message.
pub(super) fn excerpt(line: &[u8]) -> String {
    const MAX: usize = 200;
    String::from_utf8_lossy(line.get(..MAX).unwrap_or(line)).trim_ascii_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{HumanMonitorCommand, QueryStatus, SetPassword};
    use super::*;

    fn line<C: Command>(command: &C) -> Line {
        Line::new(C::NAME, &arguments(command).unwrap(), "libvirt-1", C::SECRET)
    }

    #[test]
    fn a_log_shows_commands_without_their_secrets() {
        let status = line(&QueryStatus {});
        assert_eq!(status.text, "{\"execute\":\"query-status\",\"id\":\"libvirt-1\"}\r\n");
        assert_eq!(status.shown(), status.text.trim_end());
        let password = SetPassword {
            protocol: "vnc".to_owned(),
            password: "sesame".to_owned(),
            ..SetPassword::default()
        };
        let human = HumanMonitorCommand { command_line: "set_password vnc sesame".to_owned() };
        let (_, raw) = raw(r#"{"execute": "object-add", "arguments": {"data": "sesame"}}"#).unwrap();
        for line in [line(&password), line(&human), raw.with_id("libvirt-1")] {
            assert!(line.text.contains("sesame") && !line.shown().contains("sesame"), "{}", line.shown());
        }
    }
}
