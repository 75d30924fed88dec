//! Commands for an agent, and what is made of its replies.

use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::AgentError;

/// How long a command may take whose client sets no limit.
const LONGEST: Duration = Duration::from_secs(300);
/// The same for one that moves data of the guest's disks.
const LONGEST_WORK: Duration = Duration::from_secs(3600);

/// What QEMU tells of a guest that does what its agent was asked for. It may come instead of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    Shutdown,
    Reset,
    Suspend,
}

/// How long a client lets an agent take, as clients say it: seconds, or one of two negative numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience(i32);

impl Patience {
    /// As long as it takes; see [`Request`] for what that comes to.
    pub const BLOCK: Self = Self(-2);
    /// What a guest may take to power off.
    pub const SHUTDOWN: Self = Self(60);
    /// Five seconds.
    const DEFAULT: i32 = -1;
    const USUAL: u64 = 5;

    /// None for a number without meaning.
    pub fn from_number(number: i32) -> Option<Self> {
        (number >= Self::BLOCK.0).then_some(Self(number))
    }

    pub fn number(self) -> i32 {
        self.0
    }

    fn seconds(self) -> Option<u64> {
        match self.0 {
            Self::DEFAULT => Some(Self::USUAL),
            number => u64::try_from(number).ok(),
        }
    }

    /// For an answer that costs an agent nothing.
    pub(super) fn for_sync(self) -> Duration {
        Duration::from_secs(self.seconds().unwrap_or(Self::USUAL).min(Self::USUAL))
    }
}

/// A command and its arguments.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) name: String,
    pub(super) line: String,
    pub(super) awaits: Option<Happening>,
    longest: Duration,
}

impl Request {
    /// `arguments` as a JSON object; null for none.
    pub fn new(name: &str, arguments: Value) -> Self {
        let line = match arguments {
            Value::Null => json!({ "execute": name }),
            arguments => json!({ "execute": name, "arguments": arguments }),
        };
        Self { name: name.to_owned(), line: format!("{line}\n"), awaits: None, longest: LONGEST }
    }

    /// A client's own.
    pub fn from_text(text: &str) -> Result<Self, AgentError> {
        let json = |error: serde_json::Error| AgentError::Json { detail: error.to_string() };
        let command: Value = serde_json::from_str(text).map_err(json)?;
        let name = command.get("execute").and_then(Value::as_str).unwrap_or("<unknown>").to_owned();
        Ok(Self { name, line: format!("{command}\n"), awaits: None, longest: LONGEST_WORK })
    }

    /// The command may end with this instead of a reply.
    pub fn awaits(mut self, happening: Happening) -> Self {
        self.awaits = Some(happening);
        self
    }

    /// The command moves data.
    pub fn works(mut self) -> Self {
        self.longest = LONGEST_WORK;
        self
    }

    pub(super) fn limit(&self, patience: Patience) -> Duration {
        patience.seconds().map_or(self.longest, Duration::from_secs)
    }

    /// What the agent returned, from the line that it wrote.
    pub(super) fn returned<R: DeserializeOwned>(&self, line: &[u8]) -> Result<R, AgentError> {
        let malformed = |error: serde_json::Error| AgentError::Malformed {
            command: self.name.clone(),
            detail: error.to_string(),
        };
        self.refusal(line)?;
        serde_json::from_slice(line).map(|Returned { value }| value).map_err(malformed)
    }

    /// Its whole reply as libvirt hands it to users: the same members in the same order, without blanks.
    pub(super) fn text(&self, line: &[u8]) -> Result<String, AgentError> {
        self.refusal(line)?;
        let garbage = |error: serde_json::Error| garbage(line, &error);
        serde_json::from_slice(line).map(|reply: Value| reply.to_string()).map_err(garbage)
    }

    fn refusal(&self, line: &[u8]) -> Result<(), AgentError> {
        let Ok(Refused { error }) = serde_json::from_slice(line) else { return Ok(()) };
        let text = error.desc.unwrap_or_else(|| explain(&error.class).to_owned());
        Err(AgentError::Refused { command: self.name.clone(), class: error.class, text })
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "R: DeserializeOwned"))]
struct Returned<R> {
    #[serde(rename = "return")]
    value: R,
}

#[derive(Deserialize)]
struct Refused {
    error: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    desc: Option<String>,
}

/// What a line of an agent is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Reply,
    /// A greeting or an event, which agents may send and nobody needs.
    Aside,
}

impl Said {
    pub(super) fn of(line: &[u8]) -> Result<Self, AgentError> {
        let Head { reply, error, aside, greeting } =
            serde_json::from_slice(line).map_err(|error| garbage(line, &error))?;
        match (reply.is_some() || error.is_some(), aside.is_some() || greeting.is_some()) {
            (_, true) => Ok(Self::Aside),
            (true, false) => Ok(Self::Reply),
            (false, false) => Err(AgentError::Unknown { line: excerpt(line) }),
        }
    }
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "return", default, deserialize_with = "present")]
    reply: Option<()>,
    #[serde(default, deserialize_with = "present")]
    error: Option<()>,
    #[serde(rename = "event", default, deserialize_with = "present")]
    aside: Option<()>,
    #[serde(rename = "QMP", default, deserialize_with = "present")]
    greeting: Option<()>,
}

fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<()>, D::Error> {
    IgnoredAny::deserialize(input).map(|_| Some(()))
}

/// The reply of a command that returns nothing of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Done;

impl<'de> Deserialize<'de> for Done {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(input).map(|_| Self)
    }
}

fn garbage(line: &[u8], error: &serde_json::Error) -> AgentError {
    AgentError::Garbage { line: excerpt(line), detail: error.to_string() }
}

/// The beginning of what an agent said, for a message.
fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 200;
    String::from_utf8_lossy(line.get(..SHOWN).unwrap_or(line)).trim_end().to_owned()
}

/// The class of an error that comes without a description.
fn explain(class: &str) -> &str {
    match class {
        "BufferOverrun" => "Buffer overrun",
        "CommandDisabled" => "The command has been disabled for this instance",
        "CommandNotFound" => "The command has not been found",
        "FdNotFound" => "File descriptor not found",
        "InvalidParameter" => "Invalid parameter",
        "InvalidParameterType" => "Invalid parameter type",
        "InvalidParameterValue" => "Invalid parameter value",
        "OpenFileFailed" => "Cannot open file",
        "QgaCommandFailed" => "Guest agent command failed",
        "QMPBadInputObjectMember" => "Bad QMP input object member",
        "QMPExtraInputObjectMember" => "Unexpected extra object member",
        "UndefinedError" => "An undefined error has occurred",
        "Unsupported" => "this feature or command is not currently supported",
        "" => "unknown QEMU command error",
        other => other,
    }
}
