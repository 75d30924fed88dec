//! The pace of a disk.

use std::sync::Arc;

use super::one;
use crate::conf::devices::{Disk, IoTune};
use crate::conf::domain::Domain;
use crate::drivers::domain::Domains;
use crate::drivers::domain::event::DomainEvent;
use crate::drivers::domain::flags::Impact;
use crate::drivers::domain::reads::{persistent, running};
use crate::drivers::domain::usage::disk_named;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Live, Modify};
use crate::qemu::monitor::{BlockSetIoThrottle, BurstLengths, QueryBlock};

/// One limit: its name to clients and its place in the definition.
type Field = (&'static str, fn(&mut IoTune) -> &mut Option<u64>);

const GROUP: &str = "group_name";

/// In libvirt's order; the group's name comes behind the thirteenth.
const FIELDS: [Field; 19] = [
    ("total_bytes_sec", |tune| &mut tune.total_bytes_sec),
    ("read_bytes_sec", |tune| &mut tune.read_bytes_sec),
    ("write_bytes_sec", |tune| &mut tune.write_bytes_sec),
    ("total_iops_sec", |tune| &mut tune.total_iops_sec),
    ("read_iops_sec", |tune| &mut tune.read_iops_sec),
    ("write_iops_sec", |tune| &mut tune.write_iops_sec),
    ("total_bytes_sec_max", |tune| &mut tune.total_bytes_sec_max),
    ("read_bytes_sec_max", |tune| &mut tune.read_bytes_sec_max),
    ("write_bytes_sec_max", |tune| &mut tune.write_bytes_sec_max),
    ("total_iops_sec_max", |tune| &mut tune.total_iops_sec_max),
    ("read_iops_sec_max", |tune| &mut tune.read_iops_sec_max),
    ("write_iops_sec_max", |tune| &mut tune.write_iops_sec_max),
    ("size_iops_sec", |tune| &mut tune.size_iops_sec),
    ("total_bytes_sec_max_length", |tune| &mut tune.total_bytes_sec_max_length),
    ("read_bytes_sec_max_length", |tune| &mut tune.read_bytes_sec_max_length),
    ("write_bytes_sec_max_length", |tune| &mut tune.write_bytes_sec_max_length),
    ("total_iops_sec_max_length", |tune| &mut tune.total_iops_sec_max_length),
    ("read_iops_sec_max_length", |tune| &mut tune.read_iops_sec_max_length),
    ("write_iops_sec_max_length", |tune| &mut tune.write_iops_sec_max_length),
];
const BEFORE_GROUP: usize = 13;

/// Limits that come together: whoever sets one of a family sets all, absent ones to nothing.
const FAMILIES: [&str; 6] = [
    "_bytes_sec",
    "_iops_sec",
    "_bytes_sec_max",
    "_iops_sec_max",
    "_bytes_sec_max_length",
    "_iops_sec_max_length",
];

pub(super) fn known() -> Vec<(&'static str, ParamType)> {
    FIELDS.iter().map(|(name, _)| (*name, ParamType::Ullong)).chain([(GROUP, ParamType::Text)]).collect()
}

fn read(tune: &IoTune) -> Params {
    let mut tune = tune.clone();
    let mut params = Params::default();
    for (at, (name, field)) in FIELDS.iter().enumerate() {
        if at == BEFORE_GROUP {
            params.push(GROUP, tune.group_name.as_deref().unwrap_or_default());
        }
        let value = field(&mut tune).unwrap_or(0);
        params.push(*name, value);
    }
    params
}

fn is_of(name: &str, family: &str) -> bool {
    ["total", "read", "write"].iter().any(|side| name.strip_prefix(side) == Some(family))
}

/// What `old` becomes by what a client gives; 0 takes a limit away.
pub(super) fn changed(old: &IoTune, params: &Params) -> Result<IoTune> {
    let mut tune = old.clone();
    for (name, field) in FIELDS {
        let family = FAMILIES.iter().find(|family| is_of(name, family));
        let is_given = |name: &str| params.get(name).is_some();
        let touches = match family {
            Some(family) => FIELDS.iter().any(|(other, _)| is_of(other, family) && is_given(other)),
            None => is_given(name),
        };
        if touches {
            *field(&mut tune) = params.ullong(name).copied().filter(|value| *value > 0);
        }
    }
    keep_lengths(old, &mut tune);
    if let Some(group) = params.text(GROUP) {
        tune.group_name = Some(group.as_str()).filter(|group| !group.is_empty()).map(Box::from);
    }
    for family in ["bytes_sec", "iops_sec", "bytes_sec_max", "iops_sec_max"] {
        let mut given = |side: &str| {
            let name = format!("{side}_{family}");
            let field = FIELDS.iter().find(|(field, _)| *field == name);
            field.is_some_and(|(_, field)| field(&mut tune).is_some())
        };
        if given("total") && (given("read") || given("write")) {
            return Err(Error::invalid_arg(format!(
                "total and read/write of {family} cannot be set at the same time"
            )));
        }
    }
    Ok(tune)
}

/// How long a burst may last is at least a second where there is anything to burst to.
fn keep_lengths(old: &IoTune, tune: &mut IoTune) {
    for (before, pace, most, length) in [
        (
            old.total_bytes_sec_max_length,
            tune.total_bytes_sec,
            tune.total_bytes_sec_max,
            &mut tune.total_bytes_sec_max_length,
        ),
        (
            old.read_bytes_sec_max_length,
            tune.read_bytes_sec,
            tune.read_bytes_sec_max,
            &mut tune.read_bytes_sec_max_length,
        ),
        (
            old.write_bytes_sec_max_length,
            tune.write_bytes_sec,
            tune.write_bytes_sec_max,
            &mut tune.write_bytes_sec_max_length,
        ),
        (
            old.total_iops_sec_max_length,
            tune.total_iops_sec,
            tune.total_iops_sec_max,
            &mut tune.total_iops_sec_max_length,
        ),
        (
            old.read_iops_sec_max_length,
            tune.read_iops_sec,
            tune.read_iops_sec_max,
            &mut tune.read_iops_sec_max_length,
        ),
        (
            old.write_iops_sec_max_length,
            tune.write_iops_sec,
            tune.write_iops_sec_max,
            &mut tune.write_iops_sec_max_length,
        ),
    ] {
        if before.is_some() && length.is_none() && (pace.is_some() || most.is_some()) {
            *length = Some(1);
        }
    }
}

/// What subscribers hear of a change.
pub(super) fn tunable(subject: (&'static str, &str), params: &Params) -> Params {
    let mut told = Params::default();
    told.push(subject.0, subject.1);
    for (name, value) in &params.0 {
        told.push(format!("blkdeviotune.{name}"), value.clone());
    }
    told
}

fn source_needed(disk: &Disk, name: &str) -> Result<()> {
    match disk.storage.is_empty() {
        true => Err(Error::invalid_arg(format!("disk '{name}' does not currently have a source assigned"))),
        false => Ok(()),
    }
}

fn find<'a>(definition: &'a Domain, name: &str, sentence: impl Fn() -> String) -> Result<&'a Disk> {
    disk_named(definition, name).ok_or_else(|| Error::invalid_arg(sentence()))
}

/// QEMU's command for a pace, of a device by its path.
fn command(id: String, tune: &IoTune) -> BlockSetIoThrottle {
    let value = |value: Option<u64>| value.unwrap_or(0);
    BlockSetIoThrottle {
        id,
        bps: value(tune.total_bytes_sec),
        bps_rd: value(tune.read_bytes_sec),
        bps_wr: value(tune.write_bytes_sec),
        iops: value(tune.total_iops_sec),
        iops_rd: value(tune.read_iops_sec),
        iops_wr: value(tune.write_iops_sec),
        bps_max: value(tune.total_bytes_sec_max),
        bps_rd_max: value(tune.read_bytes_sec_max),
        bps_wr_max: value(tune.write_bytes_sec_max),
        iops_max: value(tune.total_iops_sec_max),
        iops_rd_max: value(tune.read_iops_sec_max),
        iops_wr_max: value(tune.write_iops_sec_max),
        iops_size: value(tune.size_iops_sec),
        lengths: BurstLengths {
            bps_max_length: tune.total_bytes_sec_max_length,
            bps_rd_max_length: tune.read_bytes_sec_max_length,
            bps_wr_max_length: tune.write_bytes_sec_max_length,
            iops_max_length: tune.total_iops_sec_max_length,
            iops_rd_max_length: tune.read_iops_sec_max_length,
            iops_wr_max_length: tune.write_iops_sec_max_length,
        },
        group: tune.group_name.as_deref().map(str::to_owned),
    }
}

/// Where QEMU has the drive.
async fn drive(live: &Live<'_>, disk: &Disk) -> Result<String> {
    let alias = disk.info.alias.as_deref().unwrap_or_default();
    let drives = live.monitor().execute(QueryBlock {}).await?;
    let drive = drives.into_iter().find(|drive| drive.is(alias)).and_then(|drive| drive.qdev);
    drive.ok_or_else(|| Error::internal_error(format!("QEMU has no drive '{alias}'")))
}

impl Domains {
    /// How fast a disk may be.
    pub fn throttle(&self, domain: &DomainHandle, name: &str, flags: u32) -> Result<Params> {
        let state = domain.state();
        let unknown = |what| move || format!("disk '{name}' {what}");
        let disk = match one(&state, flags, "qemuDomainGetBlockIoTune")? {
            Impact::LIVE => {
                let disk = find(running(&state)?, name, unknown("not found in domain"))?;
                source_needed(disk, name)?;
                disk
            }
            _ => find(persistent(&state)?, name, unknown("was not found in the domain config"))?,
        };
        Ok(read(&disk.iotune))
    }

    /// Changes how fast a disk may be: of the guest that runs, of its next start, or of both.
    pub async fn set_throttle(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        name: String,
        params: Params,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetBlockIoTune")?;
        params.validate(&known())?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = object.state();
        let impact = impact.on(&state);
        let missing = || format!("missing persistent configuration for disk '{name}'");
        if impact.contains(Impact::CONFIG) {
            changed(&find(persistent(&state)?, &name, missing)?.iotune, &params)?;
        }
        if impact.contains(Impact::LIVE) {
            let live = job.live()?;
            let disk = find(running(live.state())?, &name, || format!("disk '{name}' not found in domain"))?;
            let tune = changed(&disk.iotune, &params)?;
            // An empty drive has no pace; what is put in later gets it.
            if !disk.storage.is_empty() {
                live.monitor().execute(command(drive(&live, disk).await?, &tune)).await?;
            }
            let dev = disk.target.dev.clone();
            let told = tunable(("blkdeviotune.disk", &name), &params);
            job.update_then(
                |state| {
                    let disks = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.disks);
                    let disk = disks.and_then(|disks| disks.iter_mut().find(|disk| disk.target.dev == dev));
                    if let Some(disk) = disk {
                        *disk.iotune = tune;
                    }
                },
                |state, ()| {
                    self.save_status(state);
                    self.publish(state, DomainEvent::Tunable { params: told });
                },
            );
        }
        if impact.contains(Impact::CONFIG) {
            let edit = move |definition: &mut Domain| {
                let disks = &mut definition.devices.disks;
                let is_it = |disk: &&mut Disk| {
                    disk.target.dev.as_deref() == Some(&*name) || disk.storage.path() == Some(&*name)
                };
                if let Some(disk) = disks.iter_mut().find(is_it) {
                    *disk.iotune = changed(&disk.iotune, &params)?;
                }
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::params::ParamValue;

    #[test]
    fn a_family_of_limits_is_set_together_and_the_rest_stays() {
        let old = IoTune { read_bytes_sec: Some(5), read_iops_sec: Some(7), ..IoTune::default() };
        let given = |params: &[(&str, u64)]| {
            Params(
                params
                    .iter()
                    .map(|(name, value)| ((*name).to_owned().into(), ParamValue::Ullong(*value)))
                    .collect(),
            )
        };
        let new = changed(&old, &given(&[("total_bytes_sec", 9)])).unwrap();
        assert_eq!(new, IoTune { total_bytes_sec: Some(9), read_iops_sec: Some(7), ..IoTune::default() });
        assert_eq!(
            changed(&old, &given(&[("read_iops_sec", 0), ("size_iops_sec", 3)])).unwrap().read_iops_sec,
            None
        );
        let error = changed(&old, &given(&[("total_iops_sec", 1), ("write_iops_sec", 1)])).unwrap_err();
        assert_eq!(
            error.message(),
            "invalid argument: total and read/write of iops_sec cannot be set at the same time"
        );
        let bursts = IoTune {
            read_bytes_sec: Some(5),
            read_bytes_sec_max_length: Some(3),
            total_iops_sec_max_length: Some(4),
            ..IoTune::default()
        };
        let new =
            changed(&bursts, &given(&[("total_bytes_sec_max_length", 0), ("write_iops_sec_max_length", 0)]));
        let kept =
            IoTune { read_bytes_sec: Some(5), read_bytes_sec_max_length: Some(1), ..IoTune::default() };
        assert_eq!(new.unwrap(), kept);
        let names: Vec<_> = read(&old).0.into_iter().map(|(name, _)| name).collect();
        assert_eq!((names.len(), &*names[13]), (20, "group_name"));
    }
}
