//! Which perf events are counted for a guest.
//!
//! They are kept for libvirt's sake: counting needs the kernel's counters, which this daemon does not open.

use std::sync::Arc;

use super::Domains;
use super::flags::Impact;
use super::hotplug::check_impact;
use crate::conf::domain::{Domain, PerfEvent, PerfEventName};
use crate::conf::xml::YesNo;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, Modify, State};

/// Switches by event.
type Switches = Vec<(PerfEventName, YesNo)>;

fn read(params: &Params) -> Result<Switches> {
    let known: Vec<_> = PerfEventName::ALL.iter().map(|name| (name.as_str(), ParamType::Boolean)).collect();
    params.validate(&known)?;
    let switch = |name: &PerfEventName| {
        let on = *params.boolean(name.as_str())?;
        Some((*name, if on { YesNo::Yes } else { YesNo::No }))
    };
    Ok(PerfEventName::ALL.iter().filter_map(switch).collect())
}

fn note(definition: &mut Domain, switches: &Switches) {
    for (name, enabled) in switches {
        definition.perf.retain(|event| event.name != *name);
        definition.perf.push(PerfEvent { name: *name, enabled: *enabled });
    }
    let place = |event: &PerfEvent| PerfEventName::ALL.iter().position(|name| *name == event.name);
    definition.perf.sort_by_key(place);
}

impl Domains {
    /// Switches events on and off: for the next start, and off for the guest that runs.
    pub async fn set_perf_events(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        params: Params,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetPerfEvents")?;
        let switches = read(&params)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        if impact.contains(Impact::LIVE) {
            if let Some((name, _)) = switches.iter().find(|(_, enabled)| *enabled == YesNo::Yes) {
                let sentence = format!("unable to open host cpu perf event for {}", name.as_str());
                return Err(Error::system_error(sentence).from_origin(Origin::PERF));
            }
            let change = |state: &mut State| {
                if let Some(live) = &mut state.live {
                    note(Arc::make_mut(live), &switches);
                }
            };
            job.update_then(change, |state, ()| self.save_status(state));
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                note(definition, &switches);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }
}
