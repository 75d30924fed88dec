//! Devices changed where they are: the medium in a drive, a card's link, who may look at a screen.
//!
//! ```text
//!  tray opened ─► old medium out ─► its images closed ─► new images opened ─► new medium in ─► tray closed
//! ```

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::block_jobs::check_idle;
use super::flags::{CallFlags, Impact, UpdateFlags};
use super::hotplug::check_impact;
use super::reads::running;
use super::start::seconds_since_1970;
use super::update_rules::{check_compatible, check_disk, check_vnc, complete_interface};
use super::{Domains, blocking, memory_devices};
use crate::conf::devices::{
    Devices, Disk, DiskDevice, Graphics, Interface, InterfaceSource, IoTune, LinkState, StorageFormat, Vnc,
};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::drivers::domain::audit::Exchange;
use crate::error::{Error, Result};
use crate::qemu::block;
use crate::qemu::hotplug::{self, Opened, Step};
use crate::qemu::job::{DomainHandle, Job, Modify, State};
use crate::qemu::monitor::{Monitor, SetLink};
use crate::qemu::network;
use crate::qemu::setup;
use crate::util::audit::Outcome;

impl Domains {
    /// `virDomainUpdateDeviceFlags`
    pub async fn update_device(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        xml: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = UpdateFlags::accept(flags)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = Impact::from_bits_truncate(flags.bits()).on(&state);
        check_impact(impact, &state)?;
        let (kind, device) = Devices::read_one(xml, Form::INACTIVE)?;
        let (_, wanted) = Devices::read_one(xml, Form::LIVE)?;
        let change = |definition: &mut Domain| replace(&mut definition.devices, kind, device.clone());
        let inactive = match impact.contains(Impact::CONFIG) {
            true => Some(self.edit(&state, &change).await?),
            false => None,
        };
        if impact.contains(Impact::LIVE) {
            if let Some(disk) = wanted.disks.into_iter().next() {
                self.update_disk(&job, disk, flags).await?;
            } else if let Some(card) = wanted.interfaces.into_iter().next() {
                self.update_interface(&job, card).await?;
            } else if let Some(screen) = wanted.graphics.into_iter().next() {
                self.update_graphics(&job, screen).await?;
            } else if let Some(memory) = wanted.memories.first() {
                self.update_memory(&job, memory).await?;
            } else {
                let sentence = format!("live update of device '{kind}' is not supported");
                return Err(Error::config_unsupported(sentence));
            }
        }
        if let Some(edited) = inactive {
            self.replace_edited(&object, edited, &change).await?;
            self.tell_updated(&object);
        }
        Ok(())
    }

    async fn update_disk(
        self: &Arc<Self>,
        job: &Job<'_, Modify>,
        new: Disk,
        flags: UpdateFlags,
    ) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        let dev = new.target.dev.clone();
        let old = live.devices.disks.iter().find(|disk| disk.target.dev == dev);
        let old = old.ok_or_else(|| Error::internal_error(format!("disk '{}' not found", new.name())))?;
        check_compatible(live, Some(&old.info), &new.info)?;
        check_disk(old, &new)?;
        let (startup_policy, snapshot) = (new.storage.startup_policy, new.snapshot);
        let mut changed = old.clone();
        let mut last_node = None;
        if new.storage.place != old.storage.place && new.storage.volume == old.storage.volume {
            if !old.device.is_removable() {
                return Err(Error::config_unsupported("disk source can be changed only in removable drives"));
            }
            check_idle(guest.state(), old)?;
            changed.storage = new.storage;
            changed.driver.format = match changed.storage.is_empty() {
                true => None,
                false => Some(new.driver.format.unwrap_or(StorageFormat::Raw)),
            };
            let number = guest.state().launched.as_ref().map_or(0, |launched| launched.last_node);
            let domains = Arc::clone(self);
            let (whole, number) = {
                let mut view = Domain::clone(live);
                view.devices.disks = vec![changed];
                blocking(move || domains.look_at_medium(view, number)).await?
            };
            changed = whole;
            last_node = Some(number);
            let only = |disk: &Disk| Devices { disks: vec![disk.clone()], ..Devices::default() };
            let out = images(self.steps_of(live, guest.files(), &only(old)).await?);
            let into = images(self.steps_of(live, guest.files(), &only(&changed)).await?);
            let (domains, state) = (Arc::clone(self), job.state());
            let mut view = Domain::clone(live);
            view.devices = only(&changed);
            let given = Arc::new(blocking(move || domains.give_devices(&state, &view)).await?);
            let exchanged = change_medium(guest.monitor(), &changed, (&out, &into), flags).await;
            let images = (Some(&old.storage), Some(&changed.storage));
            self.audit_image(live, Exchange::Medium, images, Outcome::of(&exchanged));
            if let Err(error) = exchanged {
                return Err(given.fail(error).await);
            }
            given.keep();
            self.take_back_devices(guest.state(), only(old)).await;
        }
        changed.storage.startup_policy = startup_policy;
        changed.snapshot = snapshot;
        let change = |state: &mut State| {
            let disks = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.disks);
            if let Some(disk) = disks.and_then(|disks| disks.iter_mut().find(|disk| disk.target.dev == dev)) {
                *disk = changed;
            }
            last_node.into_iter().for_each(|last_node| state.note_last_node(last_node));
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }

    /// The one disk of a definition with all its images, numbered from `last_node` on.
    fn look_at_medium(&self, mut view: Domain, mut last_node: u32) -> Result<(Disk, u32)> {
        self.storage.locate_disks(&mut view)?;
        block::number_images(&mut view, &mut last_node);
        let security = &self.rules.security;
        let reader = security.images_are_of(&view)?;
        let passed = self.associated.of(&view)?;
        for disk in view.devices.disks.iter_mut().filter(|disk| !disk.storage.is_empty()) {
            block::detect_chain(disk, reader, &passed)?;
        }
        block::number_images(&mut view, &mut last_node);
        let disk = view.devices.disks.pop().ok_or_else(|| Error::internal_error("no disk to change"))?;
        Ok((disk, last_node))
    }

    async fn update_interface(self: &Arc<Self>, job: &Job<'_, Modify>, new: Interface) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        let mut devices = live.devices.clone();
        let old = matching_card(&mut devices, &new)?;
        check_compatible(live, Some(&old.info), &new.info)?;
        let new = complete_interface(&old, new)?;
        network::refuse_unsupported(&new)?;
        let is_up = |link: Option<LinkState>| link != Some(LinkState::Down);
        let Some(alias) = old.info.alias.clone() else {
            return Err(Error::operation_failed("can't change link state: device alias not found"));
        };
        if old.bandwidth != new.bandwidth {
            self.limit_live(job, &old, new.bandwidth).await?;
        }
        let (name, was, will) = (live.name.clone(), old.clone(), new.clone());
        blocking(move || rewire(&name, &was, &will)).await?;
        if is_up(old.link) != is_up(new.link) {
            guest.monitor().execute(SetLink { name: alias.to_string(), up: is_up(new.link) }).await?;
        }
        let change = |state: &mut State| {
            let cards = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.interfaces);
            let is_it = |card: &&mut Interface| card.info.alias.as_ref() == Some(&alias);
            if let Some(card) = cards.and_then(|cards| cards.iter_mut().find(is_it)) {
                *card = new;
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }

    async fn update_graphics(&self, job: &Job<'_, Modify>, new: Graphics) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        let kind = new.kind();
        if live.devices.graphics.iter().all(|screen| screen.kind() != kind) {
            return Err(Error::device_missing(format!(
                "cannot find existing graphics device to modify of type '{kind}'"
            )));
        }
        let old = live.devices.graphics.iter().find_map(vnc);
        let (Some(old), Some(new)) = (old, vnc(&new)) else {
            return Err(Error::internal_error(format!("unable to change config on '{kind}' graphics type")));
        };
        check_vnc(old, new)?;
        let auth = new.auth.clone();
        for (name, arguments) in setup::vnc_password(new, seconds_since_1970()) {
            guest.monitor().execute_value(name, Some(arguments)).await?;
        }
        let change = |state: &mut State| {
            let screens = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.graphics);
            for screen in screens.into_iter().flatten() {
                if let Graphics::Vnc(vnc) = screen {
                    vnc.auth.clone_from(&auth);
                }
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }
}

/// Changes what the host's end of a card is connected to.
fn rewire(guest: &str, old: &Interface, new: &Interface) -> Result<()> {
    let (Some(name), InterfaceSource::Bridge { bridge }) = (new.target.dev.as_deref(), &new.source) else {
        return Ok(());
    };
    let moves = old.source != new.source;
    if moves {
        if !Path::new("/sys/class/net").join(&**bridge).exists() {
            return Err(Error::operation_failed(format!(
                "cannot add domain {guest} device {name} to nonexistent bridge {bridge}"
            )));
        }
        network::move_to_bridge(name, bridge)?;
    }
    if old.is_isolated() != new.is_isolated() || (moves && new.is_isolated()) {
        network::isolate(name, new.is_isolated())?;
    }
    if old.coalesce != new.coalesce {
        network::coalesce(name, new.coalesce.rx_max_frames)?;
    }
    Ok(())
}

/// Puts a device where the one was that it describes.
fn replace(devices: &mut Devices, kind: &str, new: Devices) -> Result<()> {
    if let Some(disk) = new.disks.into_iter().next() {
        let old = devices.disks.iter_mut().find(|old| old.target.dev == disk.target.dev);
        let missing = || Error::invalid_arg(format!("target {} doesn't exist.", disk.name()));
        let old = old.ok_or_else(missing)?;
        *old = disk;
    } else if let Some(card) = new.interfaces.into_iter().next() {
        let at = matching_card(&mut devices.clone(), &card)?;
        if let Some(old) = devices.interfaces.iter_mut().find(|old| **old == at) {
            *old = card;
        }
    } else if let Some(screen) = new.graphics.into_iter().next() {
        let kind = screen.kind();
        let old = devices.graphics.iter_mut().find(|old| old.kind() == kind);
        *old.ok_or_else(|| {
            Error::invalid_arg(format!("cannot find existing graphics type '{kind}' device to modify"))
        })? = screen;
    } else if let Some(memory) = new.memories.into_iter().next() {
        let old = devices.memories.iter_mut().find(|old| memory_devices::is_it(old, &memory));
        *old.ok_or_else(|| Error::invalid_arg("memory not found"))? = memory;
    } else {
        return Err(Error::operation_unsupported(format!(
            "persistent update of device '{kind}' is not supported"
        )));
    }
    Ok(())
}

fn matching_card(devices: &mut Devices, wanted: &Interface) -> Result<Interface> {
    let described = Devices { interfaces: vec![wanted.clone()], ..Devices::default() };
    let mut found = devices.take_matching(&described).interfaces;
    let mac = wanted.mac.address.map_or("(<null>)".to_owned(), |mac| mac.to_string());
    match (found.pop(), found.is_empty()) {
        (Some(card), true) => Ok(card),
        (Some(_), false) if wanted.mac.address.is_some() => {
            Err(Error::operation_failed(format!("multiple devices matching MAC address {mac} found")))
        }
        (Some(_), false) => Err(Error::operation_failed("multiple matching devices found")),
        (None, _) => {
            let alias = wanted.info.alias.as_deref().unwrap_or("(<null>)");
            Err(Error::device_missing(format!(
                "no device found at address '(<null>)' matching MAC address '{mac}' and alias '{alias}'"
            )))
        }
    }
}

fn vnc(screen: &Graphics) -> Option<&Vnc> {
    match screen {
        Graphics::Vnc(vnc) => Some(vnc),
        _ => None,
    }
}

/// The images of a disk, lowest first.
fn images(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|step| matches!(step, Step::Blockdev(_))).collect()
}

/// Changes what is in a drive; on failure it has what it had.
async fn change_medium(
    monitor: &Monitor,
    disk: &Disk,
    (out, into): (&[Step], &[Step]),
    flags: UpdateFlags,
) -> Result<()> {
    let id = setup::qom_id(disk)
        .ok_or_else(|| Error::internal_error(format!("QEMU has no drive '{}'", disk.name())))?;
    hotplug::plug(monitor, into, Opened::default()).await?;
    if let Err(error) = exchange(monitor, disk, &id, (out, into), flags).await {
        hotplug::clear_away(monitor, into).await;
        return Err(error);
    }
    hotplug::clear_away(monitor, out).await;
    Ok(())
}

async fn exchange(
    monitor: &Monitor,
    disk: &Disk,
    id: &str,
    (out, into): (&[Step], &[Step]),
    flags: UpdateFlags,
) -> Result<()> {
    let tell = |name: &'static str| monitor.execute_value(name, Some(json!({ "id": id })));
    if disk.device == DiskDevice::Cdrom {
        let force = flags.contains(UpdateFlags::FORCE);
        monitor.execute_value("blockdev-open-tray", Some(json!({ "id": id, "force": force }))).await?;
    }
    tell("blockdev-remove-medium").await?;
    if let Err(error) = insert(monitor, id, into).await {
        if let Err(again) = insert(monitor, id, out).await {
            tracing::warn!(disk = disk.name(), error = %again, "the drive stays without its medium");
        }
        tell("blockdev-close-tray").await?;
        return Err(error);
    }
    if !into.is_empty() && *disk.iotune != IoTune::default() {
        let limits = setup::throttle(id.to_owned(), &disk.iotune);
        monitor.execute_value("block_set_io_throttle", Some(limits)).await?;
    }
    tell("blockdev-close-tray").await?;
    Ok(())
}

/// Puts the image on top of those into a drive.
async fn insert(monitor: &Monitor, id: &str, images: &[Step]) -> Result<()> {
    if let Some(Step::Blockdev(top)) = images.last() {
        let insert = json!({ "id": id, "node-name": top.get("node-name") });
        monitor.execute_value("blockdev-insert-medium", Some(insert)).await?;
    }
    Ok(())
}
