//! Power off, reboot and sleep through the guest's agent.
//!
//! ```text
//!  flags        first        and if that fails
//!  none         the agent,   the power button
//!               if there is one
//!  agent        the agent    that is the answer
//!  button       the button   that is the answer
//!  both         the agent    the power button
//! ```

use serde_json::{Value, json};

use super::Domains;
use super::agent::live_agent;
use super::flags::{RebootFlags, ShutdownFlags, no_flags};
use crate::conf::domain::{LifecycleAction, Pm};
use crate::conf::xml::YesNo;
use crate::error::{Error, Result};
use crate::qemu::agent::{Happening, Patience, Request};
use crate::qemu::job::{DomainHandle, Query};
use crate::qemu::monitor::QueryCurrentMachine;

/// Which ways a client leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ways {
    Agent,
    AgentThenButton,
    Button,
}

impl Ways {
    fn new(agent: bool, button: bool, has_agent: bool) -> Self {
        match (agent, button) {
            (true, false) => Self::Agent,
            (true, true) => Self::AgentThenButton,
            (false, false) if has_agent => Self::AgentThenButton,
            (false, _) => Self::Button,
        }
    }
}

/// How the agent is to end the guest's system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Powerdown,
    Reboot,
}

impl Domains {
    /// False: it is the power button's turn.
    pub(super) async fn shut_down_by_agent(
        &self,
        domain: &mut DomainHandle,
        flags: ShutdownFlags,
    ) -> Result<bool> {
        let state = domain.state();
        let restarts = [LifecycleAction::Restart, LifecycleAction::RenameRestart];
        let reboots = state.live.as_ref().is_some_and(|live| restarts.contains(&live.on_poweroff));
        let ways = Ways::new(
            flags.contains(ShutdownFlags::GUEST_AGENT),
            flags.contains(ShutdownFlags::ACPI_POWER_BTN),
            state.has_agent(),
        );
        let done = self.by_agent(domain, ways, if reboots { Mode::Reboot } else { Mode::Powerdown }).await?;
        // It may have ended while the agent was waited for.
        Ok(done || (ways == Ways::AgentThenButton && state.is_active() && !domain.state().is_active()))
    }

    /// False: it is the power button's turn.
    pub(super) async fn reboot_by_agent(
        &self,
        domain: &mut DomainHandle,
        flags: RebootFlags,
    ) -> Result<bool> {
        let state = domain.state();
        let ends = [LifecycleAction::Destroy, LifecycleAction::Preserve];
        let ends = state.live.as_ref().is_some_and(|live| ends.contains(&live.on_reboot));
        let ways = Ways::new(
            flags.contains(RebootFlags::GUEST_AGENT),
            flags.contains(RebootFlags::ACPI_POWER_BTN),
            state.has_agent(),
        );
        self.by_agent(domain, ways, if ends { Mode::Powerdown } else { Mode::Reboot }).await
    }

    async fn by_agent(&self, domain: &mut DomainHandle, ways: Ways, mode: Mode) -> Result<bool> {
        if ways == Ways::Button {
            return Ok(false);
        }
        match (self.end_by_agent(domain, mode).await, ways) {
            (Err(error), Ways::AgentThenButton) => {
                tracing::info!(domain = %domain.state().name, %error, "presses the power button instead");
                Ok(false)
            }
            (ended, _) => ended.map(|()| true),
        }
    }

    async fn end_by_agent(&self, domain: &mut DomainHandle, mode: Mode) -> Result<()> {
        let object = domain.object().clone();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&object.state(), &job)?;
        // What the guest does now is its own doing: a power off is one.
        object.observe(|state| state.reboots = false, |state, ()| self.save_status(state));
        let (mode, happening) = match mode {
            Mode::Powerdown => ("powerdown", Happening::Shutdown),
            Mode::Reboot => ("reboot", Happening::Reset),
        };
        let request = Request::new("guest-shutdown", json!({ "mode": mode })).awaits(happening);
        Ok(agent.tell(&request, Some(Patience::SHUTDOWN)).await?)
    }

    /// Lets the guest's system put itself to sleep.
    pub async fn pm_suspend(
        &self,
        mut domain: DomainHandle,
        target: u32,
        duration: u64,
        flags: u32,
    ) -> Result<()> {
        no_flags(flags, "qemuDomainPMSuspendForDuration")?;
        if duration != 0 {
            return Err(Error::argument_unsupported(
                "Duration not supported. Use 0 for \
                 now",
            ));
        }
        let target = Sleep::from_number(target)?;
        // A guest without an agent is refused as such, whatever its machine can do.
        let state = domain.state();
        live_agent(&state, &domain.begin_agent().await?)?;
        let wakes = {
            let job = domain.begin::<Query>().await?;
            let machine = job.live()?.monitor().execute(QueryCurrentMachine {}).await?;
            machine.wakeup_suspend_support
        };
        if !wakes {
            return Err(Error::operation_unsupported("Domain does not have suspend support"));
        }
        if let Some(live) = &state.live {
            target.check(&live.pm)?;
        }
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        let request = Request::new(target.command(), Value::Null).awaits(Happening::Suspend);
        Ok(agent.tell(&request, None).await?)
    }
}

/// `virNodeSuspendTarget`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Memory,
    Disk,
    Hybrid,
}

impl Sleep {
    fn from_number(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Self::Memory),
            1 => Ok(Self::Disk),
            2 => Ok(Self::Hybrid),
            other => Err(Error::invalid_arg(format!("Unknown suspend target: {other}"))),
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Memory => "guest-suspend-ram",
            Self::Disk => "guest-suspend-disk",
            Self::Hybrid => "guest-suspend-hybrid",
        }
    }

    /// The guest's firmware must offer it.
    fn check(self, pm: &Pm) -> Result<()> {
        match self {
            Self::Memory | Self::Hybrid if pm.suspend_to_mem == Some(YesNo::No) => {
                Err(Error::internal_error("S3 state is disabled for this domain"))
            }
            Self::Disk if pm.suspend_to_disk == Some(YesNo::No) => {
                Err(Error::internal_error("S4 state is disabled for this domain"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_the_agent_decide_who_is_asked_first() {
        for (agent, button, has_agent, ways) in [
            (false, false, true, Ways::AgentThenButton),
            (false, false, false, Ways::Button),
            (true, false, false, Ways::Agent),
            (true, false, true, Ways::Agent),
            (false, true, true, Ways::Button),
            (true, true, false, Ways::AgentThenButton),
            (true, true, true, Ways::AgentThenButton),
        ] {
            assert_eq!(Ways::new(agent, button, has_agent), ways, "{agent} {button} {has_agent}");
        }
    }
}
