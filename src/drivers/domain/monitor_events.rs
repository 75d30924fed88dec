//! What QEMU reports, one task per running guest, in the order in which it came.
//!
//! ```text
//!  start ──hands over──► watch ──► STOP, RESUME, SHUTDOWN, … (state changes, subscribers hear)
//!                          │
//!                          └──► end of the monitor or of the process ──► take_down
//! ```
//!
//! The task takes no job for what QEMU only reports. What needs the monitor (a reboot after power off) runs
//! beside it, so that a guest that answers nothing does not keep its own end from being seen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Domains;
use super::agent::{self, PortChange};
use super::event::{
    Crashed as CrashedDetail, DomainEvent, GraphicsAddress, GraphicsPhase, IoErrorAction, Lifecycle,
    PmSuspended as PmSuspendedDetail, Resumed, Shutdown as ShutdownDetail, Started, Suspended, TrayChange,
    WatchdogAction,
};
use super::hotplug::Answer;
use super::memory_devices;
use super::migrate::request::MigrateFlags;
use super::status::recorded_alike;
use crate::conf::devices::{Disk, Place, Storage, WatchdogAction as WatchdogChoice};
use crate::conf::domain::{Domain, LifecycleAction};
use crate::error::Error;
use crate::qemu::job::{
    DomainHandle, DomainObject, Ending, JobStatistics, JobStatus, Modify, Operation, State,
};
use crate::qemu::monitor::{Cont, Event, EventKind, MonitorError, MonitorEvent, SystemReset, VncClient};
use crate::qemu::run_state::{Crashed, Paused, PmSuspended, RunState, Running, Shutdown, Shutoff};
use crate::util::process::{Process, Signal};

/// How long a QEMU may live on that has closed its monitor, until it is asked to go.
const LAST_BREATH: Duration = Duration::from_secs(2);

impl Domains {
    /// Has a guest followed until its process is gone and the domain is down, whatever happens on the way: who
    /// waits for its end must not wait for ever.
    pub(super) fn follow(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        process: Process,
        events: mpsc::Receiver<MonitorEvent>,
    ) {
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        tokio::spawn(async move {
            let watch = Arc::clone(&domains).watch(Arc::clone(&object), process.clone(), events);
            if tokio::spawn(watch).await.is_err() {
                domains.see_off(object, process).await;
            }
        });
    }

    /// What is left to do for a guest whose task has failed: its end is still seen.
    async fn see_off(self: Arc<Self>, object: Arc<DomainObject>, process: Process) {
        let name = Arc::clone(&object.state().name);
        tracing::error!(domain = %name, "a mistake in the daemon; of this guest only the end will be seen");
        if let Err(error) = process.exited().await {
            tracing::error!(domain = %name, %error, "cannot wait for QEMU");
        }
        let is_its = |state: &State| state.process().is_some_and(|it| it.is(&process));
        if is_its(&object.state()) {
            let (domains, down) = (Arc::clone(&self), Arc::clone(&object));
            // It may fail at the same thing once more.
            let _ = tokio::spawn(async move { domains.take_down(&down).await }).await;
        }
        let detach = |state: &mut State| {
            if is_its(state) {
                state.detach(Shutoff::Failed);
            }
        };
        object.observe(detach, |_, ()| ());
        self.forget_unused(&object);
    }

    /// Follows a guest until its process is gone and the domain is down.
    async fn watch(
        self: Arc<Self>,
        object: Arc<DomainObject>,
        process: Process,
        mut events: mpsc::Receiver<MonitorEvent>,
    ) {
        let end = loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(MonitorEvent::Guest(event)) => self.take(&object, &event),
                    Some(MonitorEvent::Fence(_passed)) => {}
                    Some(MonitorEvent::End(reason)) => break reason,
                    None => break MonitorError::Closed,
                },
                _ = process.exited() => break MonitorError::Closed,
            }
        };
        // What it said before it died, if its death was seen first.
        while let Ok(event) = events.try_recv() {
            if let MonitorEvent::Guest(event) = event {
                self.take(&object, &event);
            }
        }
        drop(events);
        self.outlive(&object, &process, &end).await;
        self.take_down(&object).await;
    }

    /// Returns when the process is gone.
    async fn outlive(&self, object: &DomainObject, process: &Process, reason: &MonitorError) {
        let name = Arc::clone(&object.state().name);
        if !matches!(reason, MonitorError::Eof { .. } | MonitorError::Closed) {
            // The guest runs on; nothing can be asked of it any more.
            tracing::error!(domain = %name, error = %reason, "lost the monitor");
            self.tell(object, |_| vec![DomainEvent::ControlError]);
        } else if let Ok(None) = process.exited_within(LAST_BREATH).await {
            // It may be writing out what it has buffered, so it is asked and not killed; who is in a hurry destroys it.
            tracing::warn!(domain = %name, "QEMU closed its monitor and stays; asking it to go");
            end(&object.state());
        }
        if let Err(error) = process.exited().await {
            tracing::error!(domain = %name, %error, "cannot wait for QEMU");
        }
    }

    /// Changes the state; whatever events that makes are published before the next change.
    pub(super) fn tell(&self, object: &DomainObject, change: impl FnOnce(&mut State) -> Vec<DomainEvent>) {
        let change = |state: &mut State| {
            let before = state.clone();
            let events = change(state);
            (events, recorded_alike(&before, state))
        };
        object.observe(change, |state, (events, alike)| {
            for event in events {
                self.publish(state, event.clone());
            }
            if !alike {
                self.save_status(state);
            }
        });
    }

    /// A mistake of ours over one event must not leave the guest without anybody who sees its end.
    fn take(self: &Arc<Self>, object: &Arc<DomainObject>, event: &Event) {
        let handled = catch_unwind(AssertUnwindSafe(|| self.handle(object, event)));
        if handled.is_err() {
            let name = Arc::clone(&object.state().name);
            tracing::error!(domain = %name, event = event.name, "a mistake in the daemon; going on without the event");
        }
    }

    fn handle(self: &Arc<Self>, object: &Arc<DomainObject>, event: &Event) {
        tracing::debug!(domain = %object.state().name, event = event.name, "QEMU reports");
        if self.events.wants_monitor_events() {
            let monitor_event = DomainEvent::Monitor {
                event: event.name.clone(),
                seconds: event.timestamp.seconds,
                micros: u32::try_from(event.timestamp.microseconds).unwrap_or(0),
                details: event.data(),
            };
            self.publish(&object.state(), monitor_event);
        }
        let kind = event.kind();
        agent::notice(&object.state(), &kind);
        match kind {
            EventKind::Stop => self.note_stop(object),
            EventKind::Resume => self.note_resume(object),
            EventKind::Shutdown { guest, .. } => self.note_shutdown(object, guest),
            EventKind::Reset { .. } => self.note_reset(object),
            EventKind::GuestPanicked { .. } => self.note_panic(object),
            EventKind::Suspend => self.note_sleep(object, DomainEvent::PmSuspend, PmSuspendedDetail::Memory),
            EventKind::SuspendDisk => {
                self.note_sleep(object, DomainEvent::PmSuspendDisk, PmSuspendedDetail::Disk);
            }
            EventKind::Wakeup => self.note_wakeup(object),
            EventKind::Watchdog { action } => self.note_watchdog(object, &action),
            other => self.note_detail(object, other),
        }
    }

    /// Events that tell of a device or a clock, not of the guest as a whole.
    fn note_detail(self: &Arc<Self>, object: &Arc<DomainObject>, kind: EventKind) {
        match kind {
            EventKind::RtcChange { offset } => {
                self.note_clock(object, offset);
            }
            EventKind::BlockIoError { qom_path, node_name, action, nospace, reason, .. } => {
                let disk = Failed { node_name, qom_path };
                let reason = match (nospace, reason) {
                    (Some(true), _) => "enospc",
                    (_, Some(_)) => "message",
                    _ => "",
                };
                self.note_io_error(object, &disk, &action, reason);
            }
            EventKind::DeviceTrayMoved { id, tray_open, .. } => {
                let change = if tray_open { TrayChange::Open } else { TrayChange::Close };
                let alias = id.unwrap_or_default();
                self.tell(object, |_| vec![DomainEvent::TrayChange { alias, change }]);
            }
            EventKind::DeviceDeleted { device: Some(alias), .. } => {
                self.note_unplugged(object, alias, Answer::Gone);
            }
            EventKind::DeviceUnplugGuestError { device: Some(alias), .. } => {
                self.note_unplugged(object, alias, Answer::Refused);
            }
            EventKind::VserportChange { id, open } => self.note_port(object, &id, PortChange::new(open)),
            EventKind::JobStatusChange { id, status } => self.note_job_status(object, &id, &status),
            EventKind::Migration { status } => self.note_migration(object, status),
            EventKind::MigrationPass { pass } => self.note_pass(object, pass),
            EventKind::BalloonChange { actual } => self.note_balloon(object, actual / 1024),
            EventKind::BlockWriteThreshold { node_name, amount_exceeded, write_threshold } => {
                self.note_threshold(object, &node_name, write_threshold, amount_exceeded);
            }
            EventKind::MemoryFailure { recipient, action, flags } => {
                self.note_memory_failure(object, &recipient, &action, flags);
            }
            EventKind::MemoryDeviceSizeChange { id: Some(alias), size } => {
                self.note_memory_device(object, alias, size);
            }
            EventKind::VncConnected(client) => self.note_graphics(object, GraphicsPhase::Connect, client),
            EventKind::VncInitialized(client) => {
                self.note_graphics(object, GraphicsPhase::Initialize, client);
            }
            EventKind::VncDisconnected(client) => {
                self.note_graphics(object, GraphicsPhase::Disconnect, client);
            }
            _ => {}
        }
    }

    /// The vCPUs stand still. Told by QEMU and by whoever stopped them; whoever comes first changes the state.
    pub(super) fn note_stop(&self, object: &DomainObject) {
        self.tell(object, |state| {
            // While a guest is between power off and reset, that it stands still is nobody's business.
            if !matches!(state.run, RunState::Running(_)) || state.restarting {
                return Vec::new();
            }
            let mut reason = std::mem::replace(&mut state.pausing, Paused::Unknown);
            if let Some(underway) = &mut state.operation {
                underway.note(JobStatistics::note_stop);
                if underway.operation == Operation::MigrationOut {
                    let postcopy = underway.statistics.status == JobStatus::Postcopy;
                    reason = if postcopy { Paused::Postcopy } else { Paused::Migration };
                }
            }
            state.run = RunState::Paused(reason);
            vec![DomainEvent::Lifecycle(Lifecycle::Suspended(suspended(reason)))]
        });
    }

    /// A guest that was stopped for an operation cannot be let go on.
    pub(super) fn note_left_paused(&self, object: &DomainObject) {
        self.tell(object, |state| {
            if let RunState::Paused(reason) = &mut state.run {
                *reason = Paused::ApiError;
            }
            vec![DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::ApiError))]
        });
    }

    /// A migration goes through the guest's memory once more.
    fn note_pass(&self, object: &DomainObject, pass: u64) {
        self.tell(object, |state| {
            let iteration = i32::try_from(pass).unwrap_or(i32::MAX);
            let event = DomainEvent::MigrationIteration { iteration };
            state.operation.iter().map(|_| event.clone()).collect()
        });
    }

    /// The vCPUs go on.
    pub(super) fn note_resume(&self, object: &DomainObject) {
        self.tell(object, |state| {
            if matches!(state.run, RunState::Running(_)) || !state.is_active() {
                return Vec::new();
            }
            let reason = match std::mem::replace(&mut state.resuming, Running::Unknown) {
                Running::Unknown => Running::Unpaused,
                known => known,
            };
            state.run = RunState::Running(reason);
            vec![DomainEvent::Lifecycle(Lifecycle::Resumed(resumed(reason)))]
        });
    }

    /// The guest has powered off; QEMU waits to be told what now.
    pub(super) fn note_shutdown(self: &Arc<Self>, object: &Arc<DomainObject>, guest: Option<bool>) {
        // A QEMU that answers SIGTERM by reporting it again is not signaled for ever. One that is ended when all is
        // done did not power off.
        let known = |state: &State| {
            matches!(state.run, RunState::Shutdown(_))
                || matches!(
                    state.ending,
                    Some(Ending::Saved | Ending::Migrated | Ending::FromSnapshot | Ending::Failed)
                )
                || (state.ending == Some(Ending::Crashed) && state.operation.is_some())
                || state.restarting
        };
        if known(&object.state()) {
            let signaled = |state: &State| matches!(state.ending, Some(Ending::Saved | Ending::FromSnapshot));
            if guest == Some(false) && signaled(&object.state()) {
                // Clients of libvirt are told of the signal that follows a save.
                self.tell(object, |_| {
                    vec![DomainEvent::Lifecycle(Lifecycle::Shutdown(ShutdownDetail::Host))]
                });
            }
            return;
        }
        self.tell(object, |state| {
            let restart = LifecycleAction::Restart;
            let restarts = state.live.as_ref().is_some_and(|live| live.on_poweroff == restart);
            state.restarting = state.ending.is_none() && (state.reboots || restarts);
            if state.restarting {
                return Vec::new();
            }
            state.run = RunState::Shutdown(Shutdown::Unknown);
            state.ending.get_or_insert(Ending::Shutdown);
            let detail = match guest {
                Some(true) => ShutdownDetail::Guest,
                Some(false) => ShutdownDetail::Host,
                None => ShutdownDetail::Finished,
            };
            vec![DomainEvent::Lifecycle(Lifecycle::Shutdown(detail))]
        });
        self.end_or_restart(object);
    }

    pub(super) fn end_or_restart(self: &Arc<Self>, object: &Arc<DomainObject>) {
        let state = object.state();
        if state.restarting {
            let (domains, domain) = (Arc::clone(self), DomainHandle::new(Arc::clone(object)));
            tokio::spawn(async move { domains.restart(domain).await });
        } else {
            end(&state);
        }
    }

    /// A reboot without the guest's help: it is off, so it is reset and goes on.
    async fn restart(self: Arc<Self>, mut domain: DomainHandle) {
        let object = Arc::clone(domain.object());
        let restarted = async {
            let job = domain.begin::<Modify>().await?;
            let live = job.live()?;
            live.monitor().execute(SystemReset {}).await?;
            let crashed = matches!(live.state().run, RunState::Crashed(_));
            job.update(|state| state.resuming = if crashed { Running::Crashed } else { Running::Booted });
            live.monitor().execute(Cont {}).await?;
            live.monitor().events_handled().await;
            Ok::<(), Error>(())
        };
        let result = restarted.await;
        object.observe(
            |state| {
                state.restarting = false;
                state.reboots = false;
            },
            |_, ()| (),
        );
        match result {
            Ok(()) => self.note_resume(&object),
            // Its own end came before.
            Err(_) if !object.state().is_active() => {}
            Err(error) => {
                tracing::error!(domain = %object.state().name, %error, "cannot restart the guest; it shuts down");
                self.tell(&object, |state| {
                    state.run = RunState::Shutdown(Shutdown::Unknown);
                    state.ending.get_or_insert(Ending::Shutdown);
                    vec![DomainEvent::Lifecycle(Lifecycle::Shutdown(ShutdownDetail::Finished))]
                });
                // As after any power off: what it has buffered is not thrown away.
                end(&object.state());
            }
        }
    }

    fn note_reset(&self, object: &DomainObject) {
        self.tell(object, |state| {
            if state.run == RunState::Paused(Paused::StartingUp) {
                return Vec::new();
            }
            state.reboots = false;
            vec![DomainEvent::Reboot]
        });
    }

    pub(super) fn note_panic(self: &Arc<Self>, object: &Arc<DomainObject>) {
        self.tell(object, |state| {
            state.run = RunState::Crashed(Crashed::Panicked);
            vec![DomainEvent::Lifecycle(Lifecycle::Crashed(CrashedDetail::Panicked))]
        });
        self.after_panic(object);
    }

    /// What the definition says is to become of a guest that panicked.
    pub(super) fn after_panic(self: &Arc<Self>, object: &Arc<DomainObject>) {
        let state = object.state();
        match state.live.as_ref().map(|live| &live.on_crash) {
            Some(LifecycleAction::Destroy) => self.end_crashed(object),
            Some(LifecycleAction::Restart) => self.restart_crashed(object),
            Some(action @ (LifecycleAction::CoredumpDestroy | LifecycleAction::CoredumpRestart)) => {
                let (domains, object, action) = (Arc::clone(self), Arc::clone(object), *action);
                tokio::spawn(async move {
                    match domains.dump_core(DomainHandle::new(Arc::clone(&object))).await {
                        Ok(()) if action == LifecycleAction::CoredumpDestroy => domains.end_crashed(&object),
                        Ok(()) => domains.restart_crashed(&object),
                        // It stays as it is, for whoever wants to look at it.
                        Err(error) => {
                            tracing::error!(domain = %object.state().name, %error, "cannot dump the guest's memory");
                        }
                    }
                });
            }
            _ => {}
        }
    }

    fn end_crashed(&self, object: &DomainObject) {
        object.observe(|state| state.ending = state.ending.or(Some(Ending::Crashed)), |_, ()| ());
        end(&object.state());
    }

    fn restart_crashed(self: &Arc<Self>, object: &Arc<DomainObject>) {
        object.observe(|state| state.restarting = true, |_, ()| ());
        self.end_or_restart(object);
    }

    fn note_sleep(&self, object: &DomainObject, told: DomainEvent, detail: PmSuspendedDetail) {
        self.tell(object, |state| {
            let mut events = vec![told];
            if matches!(state.run, RunState::Running(_)) {
                state.run = RunState::PmSuspended(PmSuspended::Unknown);
                events.push(DomainEvent::Lifecycle(Lifecycle::PmSuspended(detail)));
            }
            events
        });
    }

    fn note_wakeup(&self, object: &DomainObject) {
        self.tell(object, |state| {
            let mut events = vec![DomainEvent::PmWakeup];
            if matches!(state.run, RunState::PmSuspended(_)) {
                state.run = RunState::Running(Running::Wakeup);
                events.push(DomainEvent::Lifecycle(Lifecycle::Started(Started::Wakeup)));
            }
            events
        });
    }

    fn note_watchdog(self: &Arc<Self>, object: &Arc<DomainObject>, action: &str) {
        let action = match action {
            "pause" => WatchdogAction::Pause,
            "reset" => WatchdogAction::Reset,
            "poweroff" => WatchdogAction::Poweroff,
            "shutdown" => WatchdogAction::Shutdown,
            "debug" => WatchdogAction::Debug,
            "inject-nmi" => WatchdogAction::InjectNmi,
            _ => WatchdogAction::None,
        };
        self.tell(object, |state| {
            let mut events = vec![DomainEvent::Watchdog(action)];
            if action == WatchdogAction::Pause && matches!(state.run, RunState::Running(_)) {
                state.run = RunState::Paused(Paused::Watchdog);
                events.push(DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::Watchdog)));
            }
            events
        });
        let state = object.state();
        let first = state.live.as_ref().and_then(|live| live.devices.watchdogs.first());
        // What QEMU knows as a pause.
        if first.is_some_and(|watchdog| watchdog.action == WatchdogChoice::Dump) {
            tokio::spawn(Arc::clone(self).dump_after_watchdog(DomainHandle::new(Arc::clone(object))));
        }
    }

    fn note_io_error(&self, object: &DomainObject, failed: &Failed, action: &str, reason: &str) {
        let action = match action {
            "stop" => IoErrorAction::Pause,
            "report" => IoErrorAction::Report,
            _ => IoErrorAction::None,
        };
        self.tell(object, |state| {
            let disk = state.live.as_ref().and_then(|live| failed.find(live));
            let alias = disk.and_then(|disk| disk.info.alias.as_deref()).unwrap_or_default().to_owned();
            let source =
                disk.and_then(|disk| source_path(&disk.storage.place)).unwrap_or_default().to_owned();
            let mut events = vec![DomainEvent::IoError { source, alias, action, reason: reason.to_owned() }];
            if action == IoErrorAction::Pause && matches!(state.run, RunState::Running(_)) {
                state.run = RunState::Paused(Paused::IoError);
                if let Some(underway) = &state.operation
                    && underway.operation == Operation::MigrationOut
                    && underway.flags & MigrateFlags::ABORT_ON_ERROR.bits() != 0
                {
                    underway.abort.want();
                }
                events.push(DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::IoError)));
            }
            events
        });
    }

    /// The guest set its clock: `offset_s` seconds from what it was started with.
    fn note_clock(&self, object: &DomainObject, by_s: i64) {
        self.tell(object, |state| {
            let live = state.live.as_mut().map(Arc::make_mut);
            let offset_s = live.map_or(by_s, |live| live.clock.offset.moved(by_s));
            vec![DomainEvent::RtcChange { offset_s }]
        });
    }

    fn note_balloon(&self, object: &DomainObject, actual_kib: u64) {
        self.tell(object, |state| {
            if let Some(live) = &mut state.live {
                let taken_kib = memory_devices::taken_kib(live);
                Arc::make_mut(live).memory.current_kib = actual_kib.saturating_add(taken_kib);
            }
            vec![DomainEvent::BalloonChange { actual_kib }]
        });
    }

    fn note_graphics(&self, object: &DomainObject, phase: GraphicsPhase, client: VncClient) {
        let VncClient { server, client } = client;
        let subject = [("x509dname", client.x509_dname), ("saslUsername", client.sasl_username)]
            .into_iter()
            .filter_map(|(kind, name)| Some((kind.to_owned(), name?)))
            .collect();
        let address = |host, service, family: &str| GraphicsAddress {
            family: match family {
                "ipv4" => 0,
                "ipv6" => 1,
                _ => 2,
            },
            node: host,
            service,
        };
        let event = DomainEvent::Graphics {
            phase,
            local: address(server.host, server.service, &server.family),
            remote: address(client.host, client.service, &client.family),
            auth_scheme: server.auth.unwrap_or_default(),
            subject,
        };
        self.tell(object, |_| vec![event]);
    }
}

/// QEMU is to write what it has buffered and go; the end of its process is seen by [`Domains::watch`].
fn end(state: &State) {
    let Some(process) = state.process() else { return };
    if let Err(error) = process.signal(Signal::TERM) {
        tracing::error!(domain = %state.name, %error, "cannot end QEMU");
    }
}

/// What a pause is as an event's detail.
fn suspended(reason: Paused) -> Suspended {
    match reason {
        Paused::Migration => Suspended::Migrated,
        Paused::FromSnapshot => Suspended::FromSnapshot,
        Paused::Postcopy => Suspended::Postcopy,
        Paused::PostcopyFailed => Suspended::PostcopyFailed,
        Paused::ApiError => Suspended::ApiError,
        _ => Suspended::Paused,
    }
}

/// What going on is as an event's detail.
fn resumed(reason: Running) -> Resumed {
    match reason {
        Running::Restored | Running::FromSnapshot => Resumed::FromSnapshot,
        Running::Migrated | Running::MigrationCanceled => Resumed::Migrated,
        Running::Postcopy => Resumed::Postcopy,
        Running::PostcopyFailed => Resumed::PostcopyFailed,
        _ => Resumed::Unpaused,
    }
}

/// What QEMU calls a disk that failed.
struct Failed {
    node_name: Option<String>,
    qom_path: Option<String>,
}

impl Failed {
    fn find<'a>(&self, domain: &'a Domain) -> Option<&'a Disk> {
        domain.devices.disks.iter().find(|disk| self.is_in(&disk.storage) || self.is_device(disk))
    }

    /// Block nodes are named `libvirt-INDEX-…` by the layer's number in the chain.
    fn is_in(&self, storage: &Storage) -> bool {
        let index =
            self.node_name.as_deref().and_then(|name| name.strip_prefix("libvirt-")?.split('-').next());
        index.and_then(|index| index.parse().ok()).is_some_and(|index: u32| storage.index == Some(index))
    }

    fn is_device(&self, disk: &Disk) -> bool {
        let alias = disk.info.alias.as_deref();
        let mut parts = self.qom_path.as_deref().unwrap_or_default().split('/');
        alias.is_some_and(|alias| parts.any(|part| part == alias))
    }
}

fn source_path(place: &Place) -> Option<&str> {
    match place {
        Place::File(path) | Place::Block(path) | Place::Dir(path) => path.as_deref(),
        _ => None,
    }
}
