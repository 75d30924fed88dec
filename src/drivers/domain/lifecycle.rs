//! What clients do with a running guest as a whole.

use super::Domains;
use super::flags::{CallFlags, DestroyFlags, RebootFlags, ShutdownFlags, no_flags};
use crate::conf::domain::LifecycleAction;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Ending, Job, Modify, Suspend};
use crate::qemu::monitor::{Cont, InjectNmi, Stop, SystemPowerdown, SystemReset, SystemWakeup};
use crate::qemu::process::How;
use crate::qemu::run_state::{Crashed, Paused, RunState, Running};

impl Domains {
    /// Stops the vCPUs. A guest whose vCPUs stand still already is left as it is.
    pub async fn suspend(&self, mut domain: DomainHandle) -> Result<()> {
        let object = domain.object().clone();
        let job = domain.begin::<Suspend>().await?;
        let live = job.live()?;
        match live.state().run {
            RunState::PmSuspended(_) => return Err(invalid("domain is pmsuspended")),
            RunState::Paused(_) => return Ok(()),
            _ => job.update(|state| state.pausing = Paused::User),
        }
        let stopped = live.monitor().execute(Stop {}).await;
        live.monitor().events_handled().await;
        match stopped {
            Ok(_) => self.note_stop(&object),
            Err(_) => job.update(|state| state.pausing = Paused::Unknown),
        }
        Ok(stopped.map(drop)?)
    }

    /// Lets the vCPUs go on.
    pub async fn resume(&self, mut domain: DomainHandle) -> Result<()> {
        let object = domain.object().clone();
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        match live.state().run {
            RunState::PmSuspended(_) => return Err(invalid("domain is pmsuspended")),
            RunState::Running(_) => return Err(invalid("domain is already running")),
            // It may run on the other side. Who waited while that was found out has not seen it refused.
            RunState::Paused(Paused::Postcopy | Paused::PostcopyFailed) => {
                return Err(invalid("domain is in post-copy migration"));
            }
            RunState::Paused(_) | RunState::Crashed(Crashed::Panicked) => {}
            _ => return Ok(()),
        }
        job.update(|state| state.resuming = Running::Unpaused);
        let resumed = live.monitor().execute(Cont {}).await;
        live.monitor().events_handled().await;
        match resumed {
            Ok(_) => self.note_resume(&object),
            Err(_) => job.update(|state| state.resuming = Running::Unknown),
        }
        Ok(resumed.map(drop)?)
    }

    /// Presses the guest's reset button.
    pub async fn reset(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainReset")?;
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        live.monitor().execute(SystemReset {}).await?;
        job.update(|state| {
            state.reboots = false;
            if let RunState::Crashed(_) = state.run {
                state.run = RunState::Paused(Paused::Crashed);
            }
        });
        Ok(())
    }

    /// Asks the guest to power off. Returns when it has been asked.
    pub async fn shutdown(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = ShutdownFlags::accept(flags)?;
        if self.shut_down_by_agent(&mut domain, flags).await? {
            return Ok(());
        }
        let object = domain.object().clone();
        let job = domain.begin::<Modify>().await?;
        match object.state().run {
            RunState::Running(_) => press_power_button(self, &job, AfterPowerOff::Ends).await,
            _ => Err(invalid("domain is not running")),
        }
    }

    /// Asks the guest to power off, and starts it again when it has.
    pub async fn reboot(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = RebootFlags::accept(flags)?;
        if self.reboot_by_agent(&mut domain, flags).await? {
            return Ok(());
        }
        let job = domain.begin::<Modify>().await?;
        let ends = [LifecycleAction::Destroy, LifecycleAction::Preserve];
        let restarts = job.live()?.state().live.as_ref().is_none_or(|live| !ends.contains(&live.on_reboot));
        let after = if restarts { AfterPowerOff::Restarts } else { AfterPowerOff::Ends };
        press_power_button(self, &job, after).await
    }

    /// Sends the guest's processors an interrupt that they cannot mask.
    pub async fn inject_nmi(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainInjectNMI")?;
        let job = domain.begin::<Modify>().await?;
        job.live()?.monitor().execute(InjectNmi {}).await?;
        Ok(())
    }

    /// Wakes a guest that sleeps.
    pub async fn wake_up(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainPMWakeup")?;
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        live.monitor().execute(SystemWakeup {}).await?;
        live.monitor().events_handled().await;
        Ok(())
    }

    /// Ends the guest's process now.
    pub async fn destroy(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = DestroyFlags::accept(flags)?;
        let how = if flags.contains(DestroyFlags::GRACEFUL) { How::Graceful } else { How::Forced };
        domain.stop(how, Ending::Destroyed).await?;
        if flags.contains(DestroyFlags::REMOVE_LOGS) {
            self.remove_logs(&domain.state().name);
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterPowerOff {
    Ends,
    Restarts,
}

async fn press_power_button(domains: &Domains, job: &Job<'_, Modify>, after: AfterPowerOff) -> Result<()> {
    let live = job.live()?;
    // Before the button: the guest may be off before the reply is here.
    let rebooting = after == AfterPowerOff::Restarts;
    job.update_then(|state| state.reboots = rebooting, |state, ()| domains.save_status(state));
    live.monitor().execute(SystemPowerdown {}).await?;
    Ok(())
}

fn invalid(sentence: &'static str) -> Error {
    Error::operation_invalid(sentence)
}
