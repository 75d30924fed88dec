//! Limits that disks of a guest share, by the name of their group.

use std::sync::Arc;

use serde_json::json;

use super::throttle::{changed, known, tunable};
use crate::conf::devices::IoTune;
use crate::conf::domain::{Domain, ThrottleGroup};
use crate::drivers::domain::Domains;
use crate::drivers::domain::event::DomainEvent;
use crate::drivers::domain::flags::Impact;
use crate::drivers::domain::hotplug::check_impact;
use crate::drivers::domain::reads::{persistent, running};
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::command::throttle_limits;
use crate::qemu::job::{DomainHandle, State};
use crate::qemu::job::{Job, Modify};

/// What a group is called in QEMU.
fn object(name: &str) -> String {
    format!("throttle-{name}")
}

fn group<'a>(definition: &'a Domain, name: &str) -> Option<&'a ThrottleGroup> {
    definition.throttle_groups.iter().find(|group| group.name() == name)
}

/// Puts a group into a definition, in the place of the one of its name.
fn put(definition: &mut Domain, new: ThrottleGroup) {
    match definition.throttle_groups.iter_mut().find(|group| group.name() == new.name()) {
        Some(group) => *group = new,
        None => definition.throttle_groups.push(new),
    }
}

/// What a group becomes in a definition.
fn wanted(definition: &Domain, name: &str, params: &Params) -> Result<ThrottleGroup> {
    let old = group(definition, name).map(|group| group.0.clone()).unwrap_or_default();
    Ok(ThrottleGroup(IoTune { group_name: Some(name.into()), ..changed(&old, params)? }))
}

fn check_unused(definition: &Domain, name: &str) -> Result<()> {
    let uses = |disk: &&crate::conf::devices::Disk| {
        disk.throttle_filters.0.iter().any(|filter| *filter.group == *name)
    };
    match definition.devices.disks.iter().find(uses) {
        Some(disk) => Err(Error::invalid_arg(format!(
            "throttle group '{name}' is still being used by disk {}",
            disk.name()
        ))),
        None => Ok(()),
    }
}

impl Domains {
    /// `virDomainSetThrottleGroup`
    pub async fn set_throttle_group(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        name: String,
        params: Params,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetThrottleGroup")?;
        params.validate(&known())?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        if impact.contains(Impact::CONFIG) {
            wanted(persistent(&state)?, &name, &params)?;
        }
        if impact.contains(Impact::LIVE) {
            self.set_group_live(&job, &name, &params).await?;
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                let new = wanted(definition, &name, &params)?;
                put(definition, new);
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    async fn set_group_live(&self, job: &Job<'_, Modify>, name: &str, params: &Params) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        let new = wanted(live, name, params)?;
        let limits = throttle_limits(&new.0);
        let (command, arguments) = match group(live, name) {
            Some(_) => ("qom-set", json!({ "property": "limits", "path": object(name), "value": limits })),
            None => {
                ("object-add", json!({ "qom-type": "throttle-group", "id": object(name), "limits": limits }))
            }
        };
        guest.monitor().execute_value(command, Some(arguments)).await?;
        let told = tunable(("blkdeviotune.group_name", name), params);
        let change = |state: &mut State| {
            if let Some(live) = &mut state.live {
                put(Arc::make_mut(live), new);
            }
        };
        job.update_then(change, |state, ()| {
            self.save_status(state);
            self.publish(state, DomainEvent::Tunable { params: told });
        });
        Ok(())
    }

    /// `virDomainDelThrottleGroup`
    pub async fn remove_throttle_group(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        name: String,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainDelThrottleGroup")?;
        let domain_object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        let live = impact.contains(Impact::LIVE).then(|| running(&state)).transpose()?;
        let inactive = impact.contains(Impact::CONFIG).then(|| persistent(&state)).transpose()?;
        for definition in live.into_iter().chain(inactive) {
            check_unused(definition, &name)?;
        }
        let remove = |definition: &mut Domain, name: &str| {
            definition.throttle_groups.retain(|group| group.name() != name);
        };
        if live.is_some() {
            let id = json!({ "id": object(&name) });
            job.live()?.monitor().execute_value("object-del", Some(id)).await?;
            let change = |state: &mut State| {
                if let Some(live) = &mut state.live {
                    remove(Arc::make_mut(live), &name);
                }
            };
            job.update_then(change, |state, ()| self.save_status(state));
        }
        if inactive.is_some() {
            let edit = move |definition: &mut Domain| {
                remove(definition, &name);
                Ok(())
            };
            self.edit_inactive(&domain_object, edit).await?;
        }
        Ok(())
    }
}
