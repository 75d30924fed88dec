//! Devices that are attached to a domain and detached from it: of the running guest, of what it starts with
//! the next time, or of both.
//!
//! ```text
//!  attach ─► definition with the device completed ─► plugged ─► live definition ─► DeviceAdded
//!
//!  detach ─► guest asked ─┬─► gone within the limit ──► what is behind it removed ─► DeviceRemoved
//!                         ├─► refused ────────────────► an error, DeviceRemovalFailed
//!                         └─► neither ────────────────► success; the same when the guest lets go later
//! ```

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::audit::Change;
use super::block_jobs::check_idle;
use super::complete::random_mac;
use super::devices::{self, Handover};
use super::event::{Defined, DomainEvent, Lifecycle};
use super::flags::Impact;
use super::given::Given;
use super::memory_devices;
use super::plug_rules::{check_attach, check_slots, missing, refuse_kind, refuse_twins, refuse_unplugging};
use super::reads::{persistent, running};
use super::start::seconds_since_1970;
use super::{Domains, blocking};
use crate::conf::devices::{ControllerKind, Devices, Raw, refuse_plugging};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::plug;
use crate::conf::xml::Form;
use crate::error::{Error, Origin, Result};
use crate::qemu::alias::assign_new_aliases;
use crate::qemu::block;
use crate::qemu::capabilities::QemuCaps;
use crate::qemu::command::{self, Context, Descriptors, Settings};
use crate::qemu::helpers::{self, Helper};
use crate::qemu::host_devices;
use crate::qemu::hotplug::{self, Opened, PlugError, Step};
use crate::qemu::hugepages;
use crate::qemu::job::{DomainHandle, DomainObject, Job, Launched, Modify, State};
use crate::qemu::memory_lock;
use crate::qemu::monitor::{Monitor, QueryChardev, QueryFdsets, SetLink};
use crate::qemu::overlay;
use crate::qemu::prepare::{self, Place};
use crate::qemu::process::{Files, listen_at};
use crate::qemu::setup;
use crate::qemu::traffic;
use crate::util::audit::Outcome;
use crate::util::file;
use crate::util::uuid::Uuid;

/// How long a client waits for its guest to let go of a device.
pub(super) const UNPLUG_LIMIT: Duration = Duration::from_secs(5);

/// How often an edit is made again in what others define meanwhile.
const EDITS: usize = 5;

/// How a guest answers when it is to let go of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Gone,
    Refused,
}

/// The clients that wait for a guest to let go of a device.
#[derive(Debug, Default)]
pub(super) struct Unplugs {
    waiting: Mutex<HashMap<(Uuid, String), oneshot::Sender<Answer>>>,
}

impl Unplugs {
    pub(super) fn expect(&self, uuid: Uuid, alias: &str) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert((uuid, alias.to_owned()), sender);
        receiver
    }

    /// Whether somebody waited for it.
    fn answer(&self, uuid: Uuid, alias: &str, answer: Answer) -> bool {
        let waiting = self.forget(uuid, alias);
        waiting.is_some_and(|waiting| waiting.send(answer).is_ok())
    }

    pub(super) fn forget(&self, uuid: Uuid, alias: &str) -> Option<oneshot::Sender<Answer>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&(uuid, alias.to_owned()))
    }
}

/// An edited definition, and what it was made from.
pub(super) struct Edited {
    from: Arc<Domain>,
    definition: Arc<Domain>,
}

/// A device that is about to be plugged, and what that takes.
struct Plan {
    /// The running definition with nothing but the device and the buses.
    view: Domain,
    steps: Vec<Step>,
    opened: Opened,
    last_node: u32,
    /// Taken back unless the guest keeps the device.
    given: Given,
    helpers: Vec<Helper>,
}

impl Domains {
    /// `virDomainAttachDeviceFlags`
    pub async fn attach_device(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        xml: &str,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainAttachDeviceLiveAndConfig")?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        let (kind, mut device) = Devices::read_one(xml, Form::INACTIVE)?;
        refuse_kind("attach", kind, impact)?;
        // What is to be the same device in both has the same address.
        for interface in &mut device.interfaces {
            interface.mac.address.get_or_insert(random_mac()?);
        }
        let add = |definition: &mut Domain| {
            check_attach(definition, &device)?;
            refuse_twins(definition, &device)?;
            add_memory(definition, &device);
            plug(&mut definition.devices, device.clone());
            Ok(())
        };
        let inactive = match impact.contains(Impact::CONFIG) {
            true => Some(self.edit(&state, &add).await?),
            false => None,
        };
        if impact.contains(Impact::LIVE) {
            if device.leases.is_empty() {
                self.plug(&job, kind, device.clone()).await?;
            } else {
                let live = running(&state)?;
                refuse_twins(live, &device)?;
                self.set_leases(&job, [&live.devices.leases[..], &device.leases].concat());
            }
        }
        match inactive {
            Some(edited) => {
                self.replace_edited(&object, edited, &add).await?;
                self.tell_updated(&object);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// `virDomainDetachDeviceFlags`
    pub async fn detach_device(self: &Arc<Self>, domain: DomainHandle, xml: &str, flags: u32) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainDetachDeviceLiveAndConfig")?;
        let (kind, device) = Devices::read_one(xml, Form::LIVE)?;
        refuse_kind("detach", kind, impact.on(&domain.object().state()))?;
        let take = |devices: &mut Devices| devices.take_matching(&device);
        let object = Arc::clone(domain.object());
        let impact = self.detach(domain, impact, take, |whose| missing(kind, &device, whose)).await?;
        if impact.contains(Impact::CONFIG) {
            self.tell_updated(&object);
        }
        Ok(())
    }

    /// `virDomainDetachDeviceAlias`
    pub async fn detach_device_alias(
        self: &Arc<Self>,
        domain: DomainHandle,
        alias: &str,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainDetachDeviceAliasLiveAndConfig")?;
        let take = |devices: &mut Devices| devices.take(|info| info.alias.as_deref() == Some(alias));
        let missing = |_| Error::internal_error(format!("no device found with alias {alias}"));
        self.detach(domain, impact, take, missing).await.map(drop)
    }

    async fn detach(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        impact: Impact,
        take: impl Fn(&mut Devices) -> Devices,
        missing: impl Fn(Impact) -> Error,
    ) -> Result<Impact> {
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        check_impact(impact, &state)?;
        let remove = |definition: &mut Domain| {
            let gone = take(&mut definition.devices);
            if gone.infos().next().is_none() && gone.leases.is_empty() {
                return Err(missing(Impact::CONFIG));
            }
            let memory = &mut definition.memory;
            for size_kib in gone.memories.iter().map(|memory| memory.target.size_kib) {
                memory.total_kib = memory.total_kib.saturating_sub(size_kib);
                memory.current_kib = memory.current_kib.saturating_sub(size_kib);
            }
            Ok(())
        };
        let inactive = match impact.contains(Impact::CONFIG) {
            true => Some(self.edit(&state, &remove).await?),
            false => None,
        };
        if impact.contains(Impact::LIVE) {
            let mut devices = running(&state)?.devices.clone();
            let device = take(&mut devices);
            if device.leases.is_empty() {
                let alias = device.infos().find_map(|(_, info)| info.alias.clone());
                let alias = alias.ok_or_else(|| missing(Impact::LIVE))?;
                if device.infos().any(|(_, info)| info.alias.as_ref() != Some(&alias)) {
                    return Err(Error::operation_failed("multiple devices match the description"));
                }
                device.infos().try_for_each(|(kind, _)| refuse_kind("detach", kind, Impact::LIVE))?;
                self.unplug(&job, &device, &alias).await?;
            } else {
                self.set_leases(&job, devices.leases);
            }
        }
        if let Some(edited) = inactive {
            self.replace_edited(&object, edited, &remove).await?;
        }
        Ok(impact)
    }

    /// That the domain starts with something else the next time.
    pub(super) fn tell_updated(&self, object: &DomainObject) {
        self.publish(&object.state(), DomainEvent::Lifecycle(Lifecycle::Defined(Defined::Updated)));
    }

    /// Nobody keeps locks here, so QEMU need not know of them.
    fn set_leases(&self, job: &Job<'_, Modify>, leases: Vec<Raw>) {
        let change = |state: &mut State| {
            if let Some(live) = &mut state.live {
                Arc::make_mut(live).devices.leases = leases;
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
    }

    /// What the domain would start with the next time.
    pub(super) async fn edit(
        &self,
        state: &State,
        edit: &impl Fn(&mut Domain) -> Result<()>,
    ) -> Result<Edited> {
        let from = Arc::clone(persistent(state)?);
        let mut definition = Domain::clone(&from);
        edit(&mut definition)?;
        Ok(Edited { from, definition: Arc::new(self.complete(definition).await?) })
    }

    /// Makes it so, in the file and in the state. Who defines the domain anew meanwhile needs no job; the edit
    /// is then made in what he defined.
    pub(super) async fn replace_edited(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        mut edited: Edited,
        edit: &impl Fn(&mut Domain) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..EDITS {
            let (domains, target) = (Arc::clone(self), Arc::clone(object));
            if blocking(move || domains.replace_unless_changed(&target, edited)).await? {
                return Ok(());
            }
            edited = self.edit(&object.state(), edit).await?;
        }
        let sentence = format!("the definition of domain '{}' changes all the time", object.state().name);
        Err(Error::operation_failed(sentence))
    }

    /// False: somebody else has replaced what was edited.
    fn replace_unless_changed(&self, object: &DomainObject, edited: Edited) -> Result<bool> {
        let Edited { from, definition } = edited;
        let configuration = object.configure();
        if !Arc::ptr_eq(persistent(&configuration.state())?, &from) {
            return Ok(false);
        }
        let name = &definition.name;
        self.definitions.save(&definition).map_err(|error| {
            Error::io(format_args!("cannot save the definition of domain '{name}'"), error)
        })?;
        configuration.update(|state| state.inactive = Some(Arc::clone(&definition)), |_, ()| ());
        Ok(true)
    }

    async fn plug(
        self: &Arc<Self>,
        job: &Job<'_, Modify>,
        kind: &'static str,
        device: Devices,
    ) -> Result<()> {
        let state = job.state();
        let live = running(&state)?;
        let fresh = self.complete_device(live, device).await?;
        match self.plug_whole(job, kind, fresh.clone()).await {
            Ok(fresh) => {
                self.audit_devices(live, &fresh, Change::Attach, Outcome::Success);
                match fresh.memories.is_empty() {
                    true => Ok(()),
                    false => self.refresh_memory(job).await,
                }
            }
            Err(error) => {
                self.audit_devices(live, &fresh, Change::Attach, Outcome::Failure);
                Err(error)
            }
        }
    }

    /// Answers the device as the guest has it.
    async fn plug_whole(
        self: &Arc<Self>,
        job: &Job<'_, Modify>,
        kind: &'static str,
        fresh: Devices,
    ) -> Result<Devices> {
        let guest = job.live()?;
        let monitor = guest.monitor();
        let live = running(guest.state())?;
        let alias = fresh.infos().filter(|(found, _)| *found == kind).last();
        let alias = alias.and_then(|(_, info)| info.alias.clone()).unwrap_or_default();
        let caps = self.caps_of(live).await?;
        let fd_sets = monitor.execute(QueryFdsets {}).await?;
        let fd_sets = fd_sets.iter().map(|set| set.fdset_id + 1).max().unwrap_or(0);
        let overlays = overlay::create(&fresh.disks, &live.name, self.search_path()).await?;
        let (domains, state, files) = (Arc::clone(self), job.state(), guest.files().clone());
        let Plan { mut view, steps, opened, last_node, given, helpers } =
            blocking(move || domains.plan(&state, &files, fresh, &caps, fd_sets)).await?;
        let given = Arc::new(given);
        let run_as = self.rules.security.runs_as(live)?;
        let serving = match helpers::start(helpers, guest.files(), run_as).await {
            Ok(serving) => serving,
            Err(error) => return Err(given.fail(error.into()).await),
        };
        if let Err(error) = traffic::limit_all(&view, self.search_path()).await {
            return Err(given.fail(error.into()).await);
        }
        if let Err(error) = hotplug::plug(monitor, &steps, opened).await {
            remove_memory_files(guest.files(), &view.devices);
            return Err(given.fail(error.into()).await);
        }
        if let Err(error) = settle(monitor, &mut view).await {
            if hotplug::unplug(monitor, &steps).await.is_ok() {
                hotplug::clear_away(monitor, &steps).await;
            }
            return Err(given.fail(error).await);
        }
        let plugged = hotplug::devices(monitor).await;
        given.keep();
        serving.keep(&live.name);
        overlays.keep();
        let known = aliases(&live.devices);
        let fresh = view.devices.take(|info| !info.alias.as_ref().is_some_and(|it| known.contains(it)));
        let alias = name_in_events(&fresh, alias);
        let change = |state: &mut State| {
            if let Some(live) = &mut state.live {
                let live = Arc::make_mut(live);
                add_memory(live, &fresh);
                plug(&mut live.devices, fresh.clone());
            }
            state.launched = state.launched.as_ref().map(|launched| {
                let mut launched = Launched::clone(launched);
                launched.last_node = last_node;
                launched.devices = plugged;
                Arc::new(launched)
            });
        };
        job.update_then(change, |state, ()| {
            self.save_status(state);
            self.publish(state, DomainEvent::DeviceAdded { alias: alias.into() });
        });
        Ok(fresh)
    }

    /// Asks how much memory the guest has, after some came or went.
    async fn refresh_memory(&self, job: &Job<'_, Modify>) -> Result<()> {
        let state = job.state();
        let current_kib = memory_devices::current_kib(job.live()?.monitor(), running(&state)?).await?;
        let change = |state: &mut State| {
            if let Some(live) = &mut state.live {
                Arc::make_mut(live).memory.current_kib = current_kib;
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }

    /// What a device takes in this guest: itself with all that was left out, and the controllers that are
    /// missing for it.
    async fn complete_device(&self, live: &Domain, device: Devices) -> Result<Devices> {
        let (has_balloon, has_panic) = (!device.memballoons.is_empty(), !device.panics.is_empty());
        let has_pci = device.controllers.iter().any(|it| matches!(it.kind, ControllerKind::Pci(_)));
        let known = aliases(&live.devices);
        let mut whole = live.clone();
        let mut device = device;
        check_attach(live, &device)?;
        prepare::align_devices(&mut device.memories)?;
        check_slots(live, &device)?;
        add_memory(&mut whole, &device);
        plug(&mut whole.devices, device);
        let mut whole = self.complete(whole).await?;
        let mut fresh = whole.devices.take(|info| info.alias.as_ref().is_none_or(|it| !known.contains(it)));
        // These have no alias in running guests either.
        if !has_balloon {
            fresh.memballoons.clear();
        }
        if !has_panic {
            fresh.panics.clear();
        }
        if !has_pci && fresh.controllers.iter().any(|it| matches!(it.kind, ControllerKind::Pci(_))) {
            let way_out =
                "define one more controller of type 'pci', on q35 a pcie-root-port, for the next start";
            return Err(Error::internal_error("No more available PCI slots").with_way_out(way_out));
        }
        refuse_plugging(&fresh).map_err(Error::operation_unsupported)?;
        let mut named = live.clone();
        plug(&mut named.devices, fresh);
        assign_new_aliases(&mut named)?;
        Ok(named.devices.take(|info| info.alias.as_ref().is_some_and(|alias| !known.contains(alias))))
    }

    /// Opens and looks at what the device needs of the host.
    fn plan(
        &self,
        state: &State,
        files: &Files,
        fresh: Devices,
        caps: &QemuCaps,
        fd_sets: u32,
    ) -> Result<Plan> {
        let live = running(state)?;
        let without = buses(live);
        let mut view = without.clone();
        allow_locking(state, live, fresh.clone());
        plug(&mut view.devices, fresh);
        let place = Place {
            id: live.id.unwrap_or(-1),
            state_dir: &files.directory,
            channel_dir: &files.channels,
            vnc_listen: "",
            render_node: None,
        };
        host_devices::resolve(&mut view.devices)?;
        host_devices::refuse_taken(&view.devices, [(&*live.name, &live.devices)])?;
        self.refuse_taken(live, &view.devices)?;
        prepare::prepare_devices(&mut view, &place)?;
        self.storage.locate_disks(&mut view)?;
        let mut last_node = state.launched.as_ref().map_or(0, |launched| launched.last_node);
        block::number_images(&mut view, &mut last_node);
        let security = &self.rules.security;
        let reader = security.images_are_of(&view)?;
        let passed = self.associated.of(&view)?;
        for disk in &mut view.devices.disks {
            let detected = block::detect_chain(disk, reader, &passed);
            detected.map_err(|error| devices::explained(error, live, security))?;
        }
        overlay::put_on_top(&mut view.devices.disks, &live.name);
        block::number_images(&mut view, &mut last_node);
        let mut opened = Later::default();
        let mut descriptors = devices::open(&mut view, command::accel_of(live), &passed, &mut opened)?;
        self.keep_bounded(&view);
        if !command::secrets(&view).is_empty() {
            descriptors.secrets = self.storage.seal_secrets(&view, &devices::read_master_key(files)?)?;
        }
        let helpers = helpers::needed(&mut view, &self.helpers_host(files))?;
        devices::make_memory_directory(&view, files, security)?;
        let settings = match view.devices.memories.is_empty() {
            true => Settings::default(),
            false => devices::settings(&view, files, security)?,
        };
        let context = self.context(files, &descriptors, &settings);
        let before = command::devices(&without, caps, &context, fd_sets)?;
        let with = command::devices(&view, caps, &context, fd_sets)?;
        let steps = hotplug::steps(&before, &with)?;
        let given = self.give_devices(state, &view)?;
        Ok(Plan { view, steps, opened: opened.0, last_node, given, helpers })
    }

    fn context<'a>(
        &'a self,
        files: &'a Files,
        descriptors: &'a Descriptors,
        settings: &'a Settings,
    ) -> Context<'a> {
        Context {
            scope: self.paths.scope,
            state_dir: &files.directory,
            memory_dir: &files.memory,
            monitor: -1,
            descriptors,
            sandbox: self.rules.sandbox,
            now_s: 0,
            local_offset_s: 0,
            incoming: None,
            settings,
            inherited_env: &self.inherited_env,
        }
    }

    async fn caps_of(&self, live: &Domain) -> Result<Arc<QemuCaps>> {
        let emulator = live.devices.emulator.as_deref().unwrap_or_default();
        Ok(self.emulators.lookup(emulator.as_ref()).await?)
    }

    /// The steps by which a device would have been plugged that the guest has.
    pub(super) async fn steps_of(&self, live: &Domain, files: &Files, device: &Devices) -> Result<Vec<Step>> {
        let caps = self.caps_of(live).await?;
        let mut without = buses(live);
        let gone = aliases(device);
        without.devices.take(|info| info.alias.as_ref().is_some_and(|alias| gone.contains(alias)));
        let mut view = without.clone();
        plug(&mut view.devices, device.clone());
        let descriptors = Descriptors::placeholders(&view);
        let settings = match view.devices.memories.is_empty() {
            true => Settings::default(),
            false => Settings { hugetlbfs: Some(hugepages::mounted()), ..Settings::default() },
        };
        let context = self.context(files, &descriptors, &settings);
        let before = command::devices(&without, &caps, &context, 0)?;
        let with = command::devices(&view, &caps, &context, 0)?;
        let mut steps = hotplug::steps(&before, &with)?;
        // Its number is not known any more; QEMU closes a set with its last user.
        steps.retain(|step| !matches!(step, Step::FdSet { .. }));
        Ok(steps)
    }

    async fn unplug(self: &Arc<Self>, job: &Job<'_, Modify>, device: &Devices, alias: &str) -> Result<()> {
        let guest = job.live()?;
        let live = running(guest.state())?;
        refuse_unplugging(live, device)?;
        device.disks.iter().try_for_each(|disk| check_idle(guest.state(), disk))?;
        let steps = self.steps_of(live, guest.files(), device).await?;
        // Nothing in the guest holds it.
        if steps.iter().all(|step| step.device().is_none()) {
            return self.clear_device_away(job, &steps, device, alias).await;
        }
        let uuid = live.uuid;
        let mut answer = self.unplugs.expect(uuid, alias);
        if let Err(error) = hotplug::unplug(guest.monitor(), &steps).await {
            self.unplugs.forget(uuid, alias);
            self.audit_devices(live, device, Change::Detach, Outcome::Failure);
            return Err(error.into());
        }
        let answered = match tokio::time::timeout(UNPLUG_LIMIT, &mut answer).await {
            Ok(answered) => answered.ok(),
            Err(_) => {
                self.unplugs.forget(uuid, alias);
                // It may have come at the last moment; nobody else has it then.
                answer.try_recv().ok()
            }
        };
        match answered {
            Some(Answer::Gone) => self.clear_device_away(job, &steps, device, alias).await,
            Some(Answer::Refused) => {
                Err(Error::operation_failed("unplug of device was rejected by the guest"))
            }
            // It may still let go of it.
            None => Ok(()),
        }
    }

    /// Removes what stood behind a device that the guest has let go of.
    async fn clear_device_away(
        &self,
        job: &Job<'_, Modify>,
        steps: &[Step],
        device: &Devices,
        alias: &str,
    ) -> Result<()> {
        let guest = job.live()?;
        hotplug::clear_away(guest.monitor(), steps).await;
        remove_memory_files(guest.files(), device);
        let filesystems = device.filesystems.iter().map(|it| &it.info);
        for info in filesystems.chain(device.interfaces.iter().map(|it| &it.info)) {
            helpers::forget(guest.files(), info.alias.as_deref().unwrap_or_default());
        }
        self.take_back_devices(guest.state(), device.clone()).await;
        let plugged = hotplug::devices(guest.monitor()).await;
        job.update(|state| state.note_devices(plugged));
        self.forget_device(job, alias);
        if !device.memories.is_empty() {
            self.refresh_memory(job).await?;
        }
        Ok(())
    }

    fn forget_device(&self, job: &Job<'_, Modify>, alias: &str) {
        let forget = |state: &mut State| {
            let live = state.live.as_mut()?;
            let before = Arc::clone(live);
            let live = Arc::make_mut(live);
            let gone = live.devices.take(|info| info.alias.as_deref() == Some(alias));
            let sizes = gone.memories.iter().map(|memory| memory.target.size_kib);
            live.memory.total_kib = live.memory.total_kib.saturating_sub(sizes.sum());
            Some((before, gone))
        };
        let gone = job.update_then(forget, |state, _| {
            self.save_status(state);
            self.publish(state, DomainEvent::DeviceRemoved { alias: alias.to_owned() });
        });
        if let Some((before, gone)) = gone {
            self.audit_devices(&before, &gone, Change::Detach, Outcome::Success);
        }
    }

    /// QEMU reports that a guest has let go of a device, or will not.
    pub(super) fn note_unplugged(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        alias: String,
        answer: Answer,
    ) {
        let state = object.state();
        if answer == Answer::Refused {
            self.publish(&state, DomainEvent::DeviceRemovalFailed { alias: alias.clone() });
        }
        if self.unplugs.answer(state.uuid, &alias, answer) || answer == Answer::Refused {
            return;
        }
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        tokio::spawn(async move {
            if let Err(error) = domains.finish_unplugging(object, &alias).await {
                tracing::warn!(alias, %error, "cannot remove what stood behind a device");
            }
        });
    }

    async fn finish_unplugging(&self, object: Arc<DomainObject>, alias: &str) -> Result<()> {
        let mut domain = DomainHandle::new(object);
        let job = domain.begin::<Modify>().await?;
        if hotplug::vcpu::is_vcpu(alias) {
            return self.refresh_vcpus(&job).await;
        }
        let guest = job.live()?;
        let live = running(guest.state())?;
        let device = live.devices.clone().take(|info| info.alias.as_deref() == Some(alias));
        // One that never got as far as the definition: its attach failed, and has cleared away after itself.
        if device.infos().next().is_none() {
            return Ok(());
        }
        // It is gone whether or not it is known what stood behind it.
        let steps = self.steps_of(live, guest.files(), &device).await.unwrap_or_else(|error| {
            tracing::warn!(alias, %error, "what stood behind a device stays");
            Vec::new()
        });
        self.clear_device_away(&job, &steps, &device, alias).await
    }
}

/// A definition has the memory, too, that is plugged in.
/// Before a device of the host gets to the guest's memory, QEMU may lock that. Where the host does not allow it, QEMU
/// says whether it needs it.
fn allow_locking(state: &State, live: &Domain, fresh: Devices) {
    let Some(process) = state.process() else { return };
    let mut with = live.clone();
    plug(&mut with.devices, fresh);
    if let Err(error) = memory_lock::allow(process, &with) {
        tracing::warn!(domain = %state.name, %error, "QEMU may not lock the guest's memory");
    }
}

fn add_memory(definition: &mut Domain, new: &Devices) {
    let memory = &mut definition.memory;
    for size_kib in new.memories.iter().map(|memory| memory.target.size_kib) {
        memory.total_kib = memory.total_kib.saturating_add(size_kib);
        memory.current_kib = memory.current_kib.saturating_add(size_kib);
    }
}

/// Subscribers hear of what stands behind memory, as libvirt names it to them.
fn name_in_events(fresh: &Devices, alias: Box<str>) -> Box<str> {
    if fresh.memories.is_empty() { alias } else { format!("mem{alias}").into() }
}

/// Removes files that QEMU has made for memory and that nobody else has a use for.
fn remove_memory_files(files: &Files, devices: &Devices) {
    for memory in devices.memories.iter().filter(|memory| memory.source.path.is_none()) {
        let path = files.memory.join(memory.info.alias.as_deref().unwrap_or_default());
        if let Err(error) = file::remove_if_there(&path) {
            tracing::warn!(path = %path.display(), %error, "a file of a guest's memory stays");
        }
    }
}

/// What a plugged device needs beyond being there, and what QEMU says about it.
async fn settle(monitor: &Monitor, view: &mut Domain) -> Result<()> {
    for (name, arguments) in setup::commands(view, seconds_since_1970()) {
        monitor.execute_value(name, Some(arguments)).await?;
    }
    for alias in devices::unplugged(view) {
        monitor.execute(SetLink { name: alias.to_owned(), up: false }).await?;
    }
    let terminals = monitor.execute(QueryChardev {}).await?;
    devices::note_terminals(view, &terminals);
    memory_devices::note_places(monitor, &mut view.devices.memories).await?;
    Ok(())
}

/// The definition with nothing but the buses that devices are plugged into.
fn buses(live: &Domain) -> Domain {
    let mut buses = live.clone();
    // What comes later boots only where it says so itself.
    buses.os.boot.clear();
    buses.devices = Devices {
        emulator: live.devices.emulator.clone(),
        controllers: live.devices.controllers.clone(),
        ..Devices::default()
    };
    buses
}

fn aliases(devices: &Devices) -> Vec<Box<str>> {
    devices.infos().filter_map(|(_, info)| info.alias.clone()).collect()
}

/// Whether the domain has what is to be changed.
pub(super) fn check_impact(impact: Impact, state: &State) -> Result<()> {
    if impact.contains(Impact::LIVE) {
        running(state)?;
    }
    if impact.contains(Impact::CONFIG) {
        persistent(state)?;
    }
    Ok(())
}

/// Descriptors that will travel over QMP.
#[derive(Debug, Default)]
struct Later(Opened);

impl Handover for Later {
    fn listen(&mut self, path: &Path) -> Result<RawFd> {
        Ok(self.pass(listen_at(path)?))
    }

    fn pass(&mut self, descriptor: OwnedFd) -> RawFd {
        let number = descriptor.as_raw_fd();
        self.0.0.insert(number, descriptor);
        number
    }
}

impl From<PlugError> for Error {
    fn from(error: PlugError) -> Self {
        match error {
            PlugError::Unsupported(sentence) => {
                Self::operation_unsupported(sentence).from_origin(Origin::QEMU)
            }
            PlugError::Monitor(error) => error.into(),
        }
    }
}
