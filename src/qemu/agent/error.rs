//! Why an agent did not do what it was asked. The texts are libvirt's, without the code's short form.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::util::reason::Reason;

/// libvirt's code is `VIR_ERR_INTERNAL_ERROR` unless a variant says otherwise.
#[derive(Debug, Clone, Error)]
pub enum AgentError {
    /// The guest's vCPUs stand still, and so does its agent. libvirt's code: `VIR_ERR_OPERATION_INVALID`.
    #[error("domain is not running")]
    NotRunning,
    /// The guest has no channel for an agent. libvirt's code: `VIR_ERR_ARGUMENT_UNSUPPORTED`.
    #[error("QEMU guest agent is not configured")]
    NotConfigured,
    /// No agent holds the channel open. libvirt's code: `VIR_ERR_AGENT_UNRESPONSIVE`.
    #[error("QEMU guest agent is not connected")]
    NotConnected,
    /// The channel's socket could not be opened. libvirt's code: `VIR_ERR_AGENT_UNRESPONSIVE`.
    #[error("QEMU guest agent is not available due to an error")]
    Unavailable,
    /// The agent left before it got to know what was wanted of it. libvirt's code:
    /// `VIR_ERR_AGENT_UNRESPONSIVE`.
    #[error("Guest agent disappeared while executing command")]
    Left,
    /// The agent left with the command. libvirt's code: `VIR_ERR_AGENT_COMMAND_TIMEOUT`.
    #[error("Guest agent disappeared while executing command")]
    Disappeared,
    /// libvirt's code: `VIR_ERR_AGENT_UNRESPONSIVE`.
    #[error("guest agent didn't respond to synchronization within '{seconds}' seconds")]
    Silent { seconds: u64 },
    /// libvirt's code: `VIR_ERR_AGENT_COMMAND_TIMEOUT`.
    #[error("guest agent didn't respond to command within '{seconds}' seconds")]
    Timeout { seconds: u64 },
    /// The agent refused. libvirt's code: `VIR_ERR_AGENT_COMMAND_FAILED`.
    #[error("unable to execute QEMU agent command '{command}': {text}")]
    Refused { command: String, class: String, text: String },
    #[error("failed to parse JSON: {detail} in '{line}'")]
    Garbage { line: String, detail: String },
    #[error("Unknown JSON reply '{line}'")]
    Unknown { line: String },
    #[error("malformed return value of agent command '{command}'")]
    Malformed { command: String, detail: String },
    /// Something that a reply must have is not there; the sentence says what.
    #[error("{0}")]
    Missing(String),
    #[error("No complete agent response found in {limit} bytes")]
    TooLarge { limit: usize },
    /// libvirt's code: `VIR_ERR_AGENT_UNSYNCED`.
    #[error("none found in {limit} bytes")]
    Unsynced { limit: usize },
    #[error("failed to connect to agent socket: {}", Reason(source))]
    Connect { source: Arc<io::Error> },
    #[error("Unable to read from agent: {}", Reason(source))]
    Read { source: Arc<io::Error> },
    #[error("Unable to write to agent: {}", Reason(source))]
    Write { source: Arc<io::Error> },
    /// A client's command that is not JSON.
    #[error("failed to parse JSON: {detail}")]
    Json { detail: String },
}

impl AgentError {
    /// Whether this agent does not know the command, or was told not to run it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "CommandNotFound" || class == "CommandDisabled")
    }
}
