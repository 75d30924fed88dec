//! Checks that come before a definition is complete, because completing builds on them.

use crate::conf::domain::{Clock, TickPolicy, TimerName, Vcpus};
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, Result};

/// Settings that a timer does not have.
pub(in crate::conf::domain) fn timers(clock: &Clock) -> Result<()> {
    for timer in &clock.timers {
        let name = timer.name;
        let refuse = |what: &str| {
            Err(ConfError::unsupported(format!("timer {name} doesn't support setting of timer {what}")))
        };
        let paravirtual = matches!(name, TimerName::Kvmclock | TimerName::Hypervclock);
        if paravirtual && timer.tickpolicy.is_some() {
            return refuse("tickpolicy");
        }
        let catchup = timer.catchup;
        let catches_up =
            [catchup.threshold, catchup.slew, catchup.limit].iter().flatten().any(|value| *value != 0);
        if catches_up && timer.tickpolicy != Some(TickPolicy::Catchup) {
            let message = "setting of timer catchup policies is only supported with tickpolicy='catchup'";
            return Err(ConfError::xml(message));
        }
        if name != TimerName::Tsc && timer.frequency_hz.is_some_and(|frequency| frequency != 0) {
            return refuse("frequency");
        }
        if name != TimerName::Tsc && timer.mode.is_some() {
            return refuse("mode");
        }
        if !matches!(name, TimerName::Platform | TimerName::Rtc) && timer.track.is_some() {
            return refuse("track");
        }
    }
    Ok(())
}

/// CPU 0 is there from the start, and the order of the others makes sense.
pub(in crate::conf::domain) fn vcpus(vcpus: &Vcpus) -> Result<()> {
    let unsupported = |message: &str| Err(ConfError::unsupported(message).by_qemu_driver());
    let find = |id: u32| vcpus.individual.iter().rev().find(|vcpu| vcpu.id == id);
    if vcpus.individual.is_empty() {
        return Ok(());
    }
    let first = find(0);
    if first.is_none_or(|vcpu| vcpu.enabled == YesNo::No) {
        return unsupported("vcpu 0 can't be offline");
    }
    if first.is_some_and(|vcpu| vcpu.hotpluggable == Some(YesNo::Yes)) {
        return unsupported("vcpu0 can't be hotpluggable");
    }
    let order = |id: u32| find(id).and_then(|vcpu| vcpu.order).unwrap_or(0);
    if order(0) > 1 {
        return unsupported("vcpu0 must be enabled first");
    }
    let mut previous = 0;
    for id in 1..vcpus.max {
        let vcpu = find(id);
        if vcpu.is_some_and(|vcpu| vcpu.enabled == YesNo::Yes) && (order(id) != 0) != (order(0) != 0) {
            return unsupported("all vcpus must have either set or unset order");
        }
        if vcpu.is_some_and(|vcpu| vcpu.hotpluggable == Some(YesNo::No)) {
            if find(previous).is_some_and(|vcpu| vcpu.hotpluggable == Some(YesNo::Yes)) {
                return unsupported(
                    "online non-hotpluggable vcpus need to be ordered prior to hotpluggable vcpus",
                );
            }
            if order(previous) > order(id) {
                return unsupported("online non-hotpluggable vcpus must be ordered in ascending order");
            }
        }
        previous = id;
    }
    Ok(())
}
