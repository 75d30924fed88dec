//! Watchdogs.

use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::{WatchdogAction, WatchdogModel};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let watchdogs = &guest.domain.devices.watchdogs;
    for watchdog in watchdogs.iter().filter(|watchdog| watchdog.model != WatchdogModel::Itco) {
        let props = Props::driver(watchdog.model.as_str()).set("id", guest.alias(&watchdog.info)?);
        line.device(guest.at(props, &watchdog.info)?);
    }
    // That one is on the board and only has to be let loose.
    if watchdogs.iter().any(|watchdog| watchdog.model == WatchdogModel::Itco) {
        line.option("-global", "ICH9-LPC.noreboot=off");
    }
    if let Some(watchdog) = watchdogs.last() {
        let action = match watchdog.action {
            // The daemon dumps the guest itself, once QEMU has stopped it.
            WatchdogAction::Dump => WatchdogAction::Pause,
            action => action,
        };
        line.option("-watchdog-action", action.as_str());
    }
    Ok(())
}
