//! What becomes of a guest when it powers off, reboots or crashes, changed by a client.

use std::sync::Arc;

use super::flags::Impact;
use super::reads::{persistent, running};
use super::{Domains, blocking};
use crate::conf::domain::{Domain, LifecycleAction};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, Modify};
use crate::qemu::monitor::SetAction;

/// `virDomainLifecycle`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Poweroff,
    Reboot,
    Crash,
}

/// One action on one occasion.
#[derive(Debug, Clone, Copy)]
struct Change {
    occasion: Occasion,
    action: LifecycleAction,
}

impl Change {
    /// By libvirt's numbers, which its client library has checked.
    fn new(occasion: u32, action: u32) -> Result<Self> {
        use LifecycleAction::*;
        let occasions = [Occasion::Poweroff, Occasion::Reboot, Occasion::Crash];
        let actions = [Destroy, Restart, RenameRestart, Preserve, CoredumpDestroy, CoredumpRestart];
        let at = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let unknown = |what, number| Error::invalid_arg(format!("unsupported lifecycle {what}: {number}"));
        Ok(Self {
            occasion: *occasions.get(at(occasion)).ok_or_else(|| unknown("type", occasion))?,
            action: *actions.get(at(action)).ok_or_else(|| unknown("action", action))?,
        })
    }

    fn apply(self, definition: &mut Domain) -> Result<()> {
        match self.occasion {
            Occasion::Poweroff => definition.on_poweroff = self.action,
            Occasion::Reboot => definition.on_reboot = self.action,
            Occasion::Crash => definition.on_crash = self.action,
        }
        Ok(definition.check_actions()?)
    }

    /// What QEMU is to do by itself from now on, if that changes.
    fn of_qemu(self, live: &Domain) -> Option<SetAction> {
        let reboot = match self.action {
            LifecycleAction::Destroy => "shutdown",
            LifecycleAction::Restart => "reset",
            _ => return None,
        };
        let changes = self.occasion == Occasion::Reboot && live.on_reboot != self.action;
        changes.then_some(SetAction { reboot })
    }
}

impl Domains {
    /// Changes it for the running guest, for the next start, or for both.
    pub async fn set_lifecycle_action(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        (occasion, action): (u32, u32),
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetLifecycleAction")?;
        let change = Change::new(occasion, action)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = object.state();
        self.check_there(&state)?;
        let impact = impact.on(&state);
        // Both are refused or both are changed.
        let mut qemu = None;
        if impact.contains(Impact::LIVE) {
            let live = running(&state)?;
            change.apply(&mut Domain::clone(live))?;
            qemu = change.of_qemu(live);
        }
        if impact.contains(Impact::CONFIG) {
            change.apply(&mut Domain::clone(persistent(&state)?))?;
        }
        if let Some(action) = qemu {
            job.live()?.monitor().execute(action).await?;
        }
        let domains = Arc::clone(self);
        blocking(move || domains.keep_lifecycle_action(&object, change, impact)).await
    }

    fn keep_lifecycle_action(&self, object: &DomainObject, change: Change, impact: Impact) -> Result<()> {
        let configuration = object.configure();
        let mut inactive = None;
        if impact.contains(Impact::CONFIG) {
            let state = configuration.state();
            let mut definition = Domain::clone(persistent(&state)?);
            change.apply(&mut definition)?;
            self.definitions.save(&definition).map_err(|error| {
                Error::io(format_args!("cannot save the definition of domain '{}'", state.name), error)
            })?;
            inactive = Some(Arc::new(definition));
        }
        configuration.update(
            |state| {
                if let Some(live) = state.live.as_mut().filter(|_| impact.contains(Impact::LIVE)) {
                    change.apply(Arc::make_mut(live))?;
                }
                state.inactive = inactive.or(state.inactive.take());
                Ok(())
            },
            |state, _| self.save_status(state),
        )
    }
}
