//! The channel of a guest's agent: whether somebody holds it open, and a client's own commands.
//!
//! ```text
//!                 the guest opens the port          a request begins
//!  disconnected ───────────────────────▶ connected ────────────────▶ asked
//!       ▲                                 │   ▲                       │
//!       └── the guest closes it, or ends ─┘   └────── its reply ──────┘
//! ```

use super::Domains;
use super::event::{AgentReason, AgentState, DomainEvent};
use super::flags::no_flags;
use crate::conf::devices::{Channel, ChannelState, ChannelTarget};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::agent::{self, Agent, Happening, Patience, Request};
use crate::qemu::job::{AgentJob, DomainHandle, DomainObject, LiveAgent, State};
use crate::qemu::monitor::{Chardev, EventKind};

impl Domains {
    /// The guest has opened or closed one of its ports.
    pub(super) fn note_port(&self, object: &DomainObject, alias: &str, open: PortChange) {
        let state = object.state();
        let Some(channel) = state.live.as_ref().and_then(|live| port(live, alias)) else { return };
        let is_agents = agent::is_agents(channel);
        let opened = (is_agents && open == PortChange::Opened && !state.has_agent()).then(|| {
            Agent::open(channel, &state.name).inspect_err(|error| {
                tracing::warn!(domain = %state.name, %error, "cannot connect to the guest's agent");
            })
        });
        self.tell(object, |state| {
            if !set_state(state, alias, open) || !is_agents {
                return Vec::new();
            }
            match opened {
                Some(opened) => state.connect_agent(opened),
                None if open == PortChange::Closed => state.disconnect_agent(),
                None => {}
            }
            vec![DomainEvent::AgentLifecycle { state: open.told(), reason: AgentReason::Channel }]
        });
    }

    /// The ports that a guest of the last daemon holds open, as its QEMU says.
    pub(super) fn note_ports(&self, object: &DomainObject, chardevs: &[Chardev]) {
        for (alias, change) in ports(chardevs) {
            self.note_port(object, alias, change);
        }
    }

    /// Passes a command to the agent as it is, and answers what the agent says.
    pub async fn agent_command(
        &self,
        mut domain: DomainHandle,
        command: &str,
        timeout: i32,
        flags: u32,
    ) -> Result<String> {
        no_flags(flags, "qemuDomainQemuAgentCommand")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        tracing::warn!(domain = %state.name, uuid = %state.uuid, "is tainted: custom-ga-command");
        let patience = patience(timeout)?;
        Ok(agent.ask_text(&Request::from_text(command)?, patience).await?)
    }

    /// How long the agent may take for what it is asked from now on.
    pub fn set_agent_timeout(&self, domain: &DomainHandle, timeout: i32, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainAgentSetResponseTimeout")?;
        let patience = patience(timeout)?;
        domain.object().observe(|state| state.agent_patience = patience, |state, ()| self.save_status(state));
        Ok(())
    }
}

/// The agent of a guest, which must run.
pub(super) fn live_agent<'a>(state: &State, job: &'a AgentJob<'_>) -> Result<LiveAgent<'a>> {
    super::reads::running(state)?;
    Ok(job.agent()?)
}

fn patience(timeout: i32) -> Result<Patience> {
    Patience::from_number(timeout).ok_or_else(|| {
        let least = Patience::BLOCK.number();
        Error::invalid_arg(format!("guest agent timeout '{timeout}' is less than the minimum '{least}'"))
    })
}

/// What a guest did with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortChange {
    Opened,
    Closed,
}

impl PortChange {
    pub(super) fn new(open: bool) -> Self {
        if open { Self::Opened } else { Self::Closed }
    }

    fn told(self) -> AgentState {
        match self {
            Self::Opened => AgentState::Connected,
            Self::Closed => AgentState::Disconnected,
        }
    }

    fn state(self) -> ChannelState {
        match self {
            Self::Opened => ChannelState::Connected,
            Self::Closed => ChannelState::Disconnected,
        }
    }
}

/// What QEMU says of the ports of a guest that has just been started; tells what its agent's was found to be.
pub(super) fn first_ports(definition: &mut Domain, chardevs: &[Chardev]) -> Option<DomainEvent> {
    let mut told = None;
    for (alias, change) in ports(chardevs) {
        let mut channels = definition.devices.channels.iter_mut();
        let Some(channel) = channels.find(|channel| is_port(channel, alias)) else { continue };
        note(channel, change);
        if agent::is_agents(channel) {
            let (state, reason) = (change.told(), AgentReason::DomainStarted);
            told = Some(DomainEvent::AgentLifecycle { state, reason });
        }
    }
    told
}

/// What QEMU reports may be what an agent was asked for.
pub(super) fn notice(state: &State, event: &EventKind) {
    match event {
        EventKind::Shutdown { .. } => state.notice(Happening::Shutdown),
        EventKind::Reset { .. } => state.notice(Happening::Reset),
        EventKind::Suspend | EventKind::SuspendDisk => state.notice(Happening::Suspend),
        _ => {}
    }
}

/// The devices behind character devices whose other end QEMU sees.
fn ports(chardevs: &[Chardev]) -> impl Iterator<Item = (&str, PortChange)> {
    chardevs
        .iter()
        .filter_map(|it| Some((it.label.strip_prefix("char")?, PortChange::new(it.frontend_open?))))
}

fn port<'a>(definition: &'a Domain, alias: &str) -> Option<&'a Channel> {
    definition.devices.channels.iter().find(|channel| is_port(channel, alias))
}

fn is_port(channel: &Channel, alias: &str) -> bool {
    matches!(channel.target, ChannelTarget::Virtio { .. }) && channel.info.alias.as_deref() == Some(alias)
}

fn note(channel: &mut Channel, change: PortChange) {
    if let ChannelTarget::Virtio { state, .. } = &mut channel.target {
        *state = Some(change.state());
    }
}

/// False: there is no such port any more.
fn set_state(state: &mut State, alias: &str, change: PortChange) -> bool {
    let Some(live) = state.live.as_mut().map(std::sync::Arc::make_mut) else { return false };
    let channel = live.devices.channels.iter_mut().find(|channel| is_port(channel, alias));
    channel.map(|channel| note(channel, change)).is_some()
}
