//! What a domain is, as one immutable value.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tokio::sync::watch;

use super::kinds::{Operation, Phase};
use super::statistics::JobStatistics;
use crate::conf::checkpoint::Checkpoint;
use crate::conf::domain::{Cpu, Domain};
use crate::conf::moments::Moments;
use crate::conf::snapshot::Snapshot;
use crate::qemu::agent::{self, Agent, AgentError, Happening, Patience};
use crate::qemu::block_jobs::{BlockJobs, Overlays, RunningBackup};
use crate::qemu::capabilities::CapSet;
use crate::qemu::monitor::MigrationStatus;
use crate::qemu::process::{Files, Running};
use crate::qemu::run_state::{Paused, RunState, Running as RunningReason, Shutoff};
use crate::qemu::security::Owners;
use crate::qemu::stats::Told;
use crate::qemu::status::JobRecord;
use crate::util::process::Process;
use crate::util::uuid::Uuid;

/// Everything about a domain that changes. Cheap to clone: writers replace it as a whole, readers keep the
/// one they took.
#[derive(Debug, Clone)]
pub struct State {
    pub name: Arc<str>,
    pub uuid: Uuid,
    /// What it starts with the next time. None: transient, it exists only as long as it runs.
    pub inactive: Option<Arc<Domain>>,
    /// What it runs with. None: it does not run.
    pub live: Option<Arc<Domain>>,
    /// While it runs.
    pub id: Option<i32>,
    pub run: RunState,
    /// Starts with the host.
    pub autostart: bool,
    /// Why the next STOP that QEMU reports happens; set by who asks for it.
    pub pausing: Paused,
    /// Why the next RESUME that QEMU reports happens.
    pub resuming: RunningReason,
    /// What its end will mean; set by who causes it.
    pub ending: Option<Ending>,
    /// When the guest powers off, it is reset and goes on: a reboot through the power button.
    pub reboots: bool,
    /// Powered off and about to be reset; to clients it runs on.
    pub restarting: bool,
    /// What it was started with.
    pub launched: Option<Arc<Launched>>,
    /// The threads of its vCPUs, by index.
    pub vcpu_threads: Arc<[u32]>,
    /// The async operation under way that the next daemon would have to end. A start shows by itself.
    pub operation: Option<Underway>,
    /// What an earlier daemon had under way, until it is seen to: should this one die before, the next one sees to it.
    pub interrupted: Option<Arc<JobRecord>>,
    /// States that it can go back to.
    pub snapshots: Arc<Moments<Snapshot>>,
    /// Moments since which it is noted what it writes.
    pub checkpoints: Arc<Moments<Checkpoint>>,
    /// The backup that is being made.
    pub backup: Option<Arc<RunningBackup>>,
    /// What QEMU works on disks' images.
    pub block_jobs: Arc<BlockJobs>,
    /// What its disks are about to stand on.
    pub overlays: Option<Arc<Overlays>>,
    /// How the last async operation that was reported on went.
    pub completed: Option<Arc<JobStatistics>>,
    /// How fast it may leave, in bytes a second, where somebody has said it; whether it runs or not.
    pub migration_speed: Option<u64>,
    /// It ends with the connection that started it.
    pub autodestroy: bool,
    /// A start that has no process yet.
    pub starting: Option<Arc<Starting>>,
    /// No longer in the list: whoever still holds a handle begins no job on it.
    pub gone: bool,
    /// How long the guest's agent may take.
    pub agent_patience: Patience,
    agent: Line,
    machine: Option<Arc<Machine>>,
}

/// To the guest's agent.
#[derive(Debug, Clone, Default)]
enum Line {
    #[default]
    Down,
    /// The agent is there and its socket cannot be opened.
    Broken,
    Up(Arc<Agent>),
}

/// An async operation, as it is written down and as clients see it.
#[derive(Debug, Clone)]
pub struct Underway {
    pub operation: Operation,
    /// How far it is, if it is parked.
    pub phase: Option<Phase>,
    /// The flag word of the call that began it.
    pub flags: u32,
    /// What it writes, where that is a file that a client named.
    pub file: Option<Arc<str>>,
    /// It merges images of a snapshot.
    pub deletes_snapshot: bool,
    pub statistics: Arc<JobStatistics>,
    /// A client wants it to end.
    pub abort: Arc<AbortWish>,
}

impl Underway {
    pub fn new(operation: Operation) -> Self {
        let statistics = Arc::new(JobStatistics::new(operation.into()));
        Self {
            operation,
            phase: None,
            flags: 0,
            file: None,
            deletes_snapshot: false,
            statistics,
            abort: Arc::default(),
        }
    }

    /// What of it is written down.
    pub fn recorded(&self) -> (Operation, Option<Phase>, u32, u64) {
        (self.operation, self.phase, self.flags, self.statistics.started_ms)
    }

    pub fn note(&mut self, note: impl FnOnce(&mut JobStatistics)) {
        note(Arc::make_mut(&mut self.statistics));
    }
}

/// Somebody's wish that an operation ends.
#[derive(Debug, Default)]
pub struct AbortWish {
    wanted: watch::Sender<bool>,
}

impl AbortWish {
    pub fn want(&self) {
        self.wanted.send_replace(true);
    }

    pub fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Returns when it is wanted.
    pub async fn wanted(&self) {
        // The sender lives as long as self.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }
}

/// Why a guest's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off.
    Shutdown,
    /// A client ended it.
    Destroyed,
    /// The guest panicked, and is to end then.
    Crashed,
    /// Its memory went to a file.
    Saved,
    /// It went to another host.
    Migrated,
    /// A snapshot was made, or it goes back to one.
    FromSnapshot,
    /// The daemon could not go on with it.
    Failed,
}

/// What stays the same as long as a guest runs and is in no definition.
#[derive(Debug, Clone)]
pub struct Launched {
    /// What its QEMU can do; the binary may be another one by now.
    pub capabilities: CapSet,
    /// The highest number that a block node has got.
    pub last_node: u32,
    /// The CPU as it was defined, where the live definition has a more exact one.
    pub defined_cpu: Option<Box<Cpu>>,
    /// Whether it is noted whose its files were.
    pub owners: Owners,
    /// The devices that its QEMU had last, by alias. Nothing where nobody asked.
    pub devices: Arc<[String]>,
}

impl State {
    /// Notes which devices QEMU has now.
    pub fn note_devices(&mut self, devices: Arc<[String]>) {
        self.launched = self
            .launched
            .as_ref()
            .map(|launched| Arc::new(Launched { devices, ..Launched::clone(launched) }));
    }

    /// Notes which number a block node got last.
    pub fn note_last_node(&mut self, last_node: u32) {
        self.launched = self
            .launched
            .as_ref()
            .map(|launched| Arc::new(Launched { last_node, ..Launched::clone(launched) }));
    }

    /// A domain that does not run.
    pub fn new(name: impl Into<Arc<str>>, uuid: Uuid) -> Self {
        Self {
            name: name.into(),
            uuid,
            inactive: None,
            live: None,
            id: None,
            run: RunState::Shutoff(Shutoff::Unknown),
            autostart: false,
            pausing: Paused::Unknown,
            resuming: RunningReason::Unknown,
            ending: None,
            reboots: false,
            restarting: false,
            launched: None,
            vcpu_threads: Arc::new([]),
            operation: None,
            interrupted: None,
            snapshots: Arc::default(),
            checkpoints: Arc::default(),
            backup: None,
            block_jobs: Arc::default(),
            overlays: None,
            completed: None,
            migration_speed: None,
            autodestroy: false,
            starting: None,
            gone: false,
            agent_patience: Patience::BLOCK,
            agent: Line::Down,
            machine: None,
        }
    }

    pub fn is_active(&self) -> bool {
        self.live.is_some()
    }

    pub fn is_persistent(&self) -> bool {
        self.inactive.is_some()
    }

    /// What it is: the live definition while it runs, the inactive one otherwise.
    pub fn definition(&self) -> Option<&Arc<Domain>> {
        self.live.as_ref().or(self.inactive.as_ref())
    }

    /// QEMU's process, for reading what the kernel says about it.
    pub fn process(&self) -> Option<&Process> {
        self.machine.as_ref().map(|machine| &machine.running.process)
    }

    /// What its QEMU told of itself last.
    pub fn told(&self) -> Option<&Arc<Told>> {
        self.machine.as_ref().map(|machine| &machine.told)
    }

    /// Its QEMU runs, and there is no way to ask it anything any more.
    pub fn is_deaf(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.running.monitor.progress().borrow().lost)
    }

    /// How far a stream of its state is, by QEMU's last report.
    pub fn reported_migration(&self) -> Option<MigrationStatus> {
        self.machine.as_ref().and_then(|machine| machine.running.monitor.progress().borrow().migration)
    }

    /// The files that exist as long as it runs.
    pub fn files(&self) -> Option<&Files> {
        self.machine.as_ref().map(|machine| &machine.running.files)
    }

    /// The guest has a process and a monitor from now on.
    pub fn attach(&mut self, machine: Machine) {
        self.starting = None;
        self.machine = Some(Arc::new(machine));
    }

    /// The process is gone: the domain is shut off, and whoever waits for its end goes on.
    pub fn detach(&mut self, reason: Shutoff) {
        self.live = None;
        self.id = None;
        self.run = RunState::Shutoff(reason);
        self.pausing = Paused::Unknown;
        self.resuming = RunningReason::Unknown;
        self.ending = None;
        self.reboots = false;
        self.restarting = false;
        self.launched = None;
        self.vcpu_threads = Arc::new([]);
        self.operation = None;
        self.interrupted = None;
        self.block_jobs = Arc::default();
        self.overlays = None;
        self.backup = None;
        self.autodestroy = false;
        self.starting = None;
        self.disconnect_agent();
        if let Some(machine) = self.machine.take() {
            machine.ended.send_replace(true);
        }
    }

    /// An agent holds its channel open from now on.
    pub fn connect_agent(&mut self, opened: Result<Agent, AgentError>) {
        self.disconnect_agent();
        self.agent = opened.map_or(Line::Broken, |agent| Line::Up(Arc::new(agent)));
    }

    /// No agent holds its channel open any more: who waits for one goes on without.
    pub fn disconnect_agent(&mut self) {
        if let Line::Up(agent) = std::mem::take(&mut self.agent) {
            agent.leave();
        }
    }

    /// Whether there is an agent that can be asked something.
    pub fn has_agent(&self) -> bool {
        matches!(&self.agent, Line::Up(agent) if !agent.has_left())
    }

    /// Who waits for an agent may wait for this instead.
    pub fn notice(&self, happening: Happening) {
        if let Line::Up(agent) = &self.agent {
            agent.notice(happening);
        }
    }

    /// The agent, or why there is none to be asked.
    pub(super) fn agent(&self) -> Result<&Arc<Agent>, AgentError> {
        let configured = self.live.as_ref().is_some_and(|live| agent::channel(live).is_some());
        match &self.agent {
            _ if !matches!(self.run, RunState::Running(_)) => Err(AgentError::NotRunning),
            Line::Broken => Err(AgentError::Unavailable),
            Line::Up(agent) if !agent.has_left() => Ok(agent),
            _ if configured => Err(AgentError::NotConnected),
            _ => Err(AgentError::NotConfigured),
        }
    }

    pub(super) fn begin(&mut self, operation: Operation) {
        self.operation = (operation != Operation::Start).then(|| Underway::new(operation));
        if self.operation.is_some() {
            self.interrupted = None;
        }
    }

    pub(super) fn machine(&self) -> Option<&Arc<Machine>> {
        self.machine.as_ref()
    }
}

/// A running guest, from the daemon's side.
#[derive(Debug)]
pub struct Machine {
    pub(super) running: Running,
    told: Arc<Told>,
    ended: watch::Sender<bool>,
    /// How many callers are about to end it.
    pub(super) stoppers: AtomicU32,
}

impl Machine {
    pub fn new(running: Running) -> Self {
        Self { running, told: Arc::default(), ended: watch::Sender::new(false), stoppers: AtomicU32::new(0) }
    }

    /// Returns when the domain no longer has this process.
    pub(super) async fn ended(&self) {
        // The sender lives as long as self.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// A start before it has a process to show: it can be called off.
#[derive(Debug, Default)]
pub struct Starting {
    canceled: watch::Sender<bool>,
}

impl Starting {
    pub(super) fn cancel(&self) {
        self.canceled.send_replace(true);
    }

    pub fn is_canceled(&self) -> bool {
        *self.canceled.borrow()
    }

    /// Returns when it has been called off.
    pub async fn canceled(&self) {
        // The sender lives as long as self.
        let _ = self.canceled.subscribe().wait_for(|canceled| *canceled).await;
    }
}
