//! From a definition to a running guest.
//!
//! ```text
//!  copy the definition ─► ports, names ─► directories, descriptors ─► command line ─► QEMU, stopped (-S)
//!       ─► attached: the domain is active ─► threads, terminals asked ─► status saved ─► vCPUs go
//! ```
//!
//! Everything up to the last step is undone when a later one fails or somebody destroys the domain meanwhile: QEMU is
//! killed, its files are removed, ports and id are given back, a domain that existed only for this start is gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::event::{DomainEvent, Lifecycle, Resumed, Started as StartedDetail, Suspended};
use super::flags::{CallFlags, CreateFlags, StartFlags};
use super::given::Given;
use super::list::{Added, Existing};
use super::{Domains, agent, blocking, devices, pins, tunables, vcpus};
use crate::conf::devices::BalloonModel;
use crate::conf::domain::{Cpu, Domain};
use crate::drivers::ClientId;
use crate::error::{Error, Origin, Result};
use crate::qemu::capabilities::{CpuArguments, QemuCaps};
use crate::qemu::command::{self, CommandLine, Context};
use crate::qemu::helpers::{self, Helper, Serving};
use crate::qemu::hotplug::{self, vcpu};
use crate::qemu::job::{
    AsyncJob, AsyncOp, DomainHandle, DomainObject, Ending, Launched, Machine, Start, Starting, State,
};
use crate::qemu::memory_lock;
use crate::qemu::monitor::{
    Chardev, Cont, IoThreadStats, Monitor, MonitorError, QueryChardev, QueryCpusFast, QueryIothreads,
    SetBalloon, SetLink,
};
use crate::qemu::overlay::{self, Overlays};
use crate::qemu::process::{self, Files, Launch, Prepared, Spawned, Started};
use crate::qemu::run_state::{Paused, RunState, Running, Shutoff};
use crate::qemu::secret::MasterKey;
use crate::qemu::setup;
use crate::qemu::traffic;
use crate::util::local_time;

/// How long QEMU may take until it answers, how much longer for each GiB of memory it has to prepare, and for each
/// encrypted image: its key is made slow to find on purpose, by the measure of an idle processor.
const START_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT_PER_GIB: Duration = Duration::from_secs(1);
const START_LIMIT_PER_KEY: Duration = Duration::from_secs(30);

fn encrypted_images(definition: &Domain) -> u32 {
    let images = definition.devices.disks.iter().flat_map(|disk| {
        std::iter::once(&disk.storage).chain(disk.storage.layers().map(|layer| &layer.storage))
    });
    u32::try_from(images.filter(|image| image.encryption.is_some()).count()).unwrap_or(u32::MAX)
}

/// How a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// With its firmware.
    Boot,
    /// The same, and its vCPUs wait for somebody to let them go.
    BootPaused,
    /// With a state that is to be streamed into a QEMU that waits for it; it stands still for this reason.
    Incoming(Paused),
    /// With a state that its own QEMU is told to load, or with none; it stands still for this reason, and nobody
    /// hears of it yet.
    Loaded(Paused),
}

/// What becomes of the firmware's variables that an earlier run has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variables {
    Kept,
    /// They begin anew from their template.
    Reset,
}

impl Variables {
    pub(super) fn reset_if(reset: bool) -> Self {
        if reset { Self::Reset } else { Self::Kept }
    }

    /// Removes them if they are to begin anew.
    fn begin(self, definition: &Domain) -> Result<()> {
        match self {
            Self::Kept => Ok(()),
            Self::Reset => crate::qemu::firmware::remove_nvram(definition)
                .map_err(|error| Error::io("cannot reset the firmware's variables", error)),
        }
    }
}

/// What is to run, and how.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub definition: &'a Domain,
    /// The connection that the guest is to end with.
    pub owner: Option<ClientId>,
    pub beginning: Beginning,
    /// The CPU that the guest had where it comes from, to the last feature.
    pub exact_cpu: Option<Box<Cpu>>,
    pub variables: Variables,
}

impl Domains {
    /// Starts a domain that is there.
    pub async fn start(
        self: &Arc<Self>,
        domain: DomainHandle,
        flags: u32,
        client: ClientId,
    ) -> Result<Arc<State>> {
        let flags = StartFlags::accept(flags)?;
        let mut job = domain.begin_async::<Start>().await?;
        let state = job.state();
        if state.is_active() {
            return Err(Error::operation_invalid("domain is already running"));
        }
        let definition = state.inactive.clone().ok_or_else(|| gone(&state))?;
        let owner = flags.contains(StartFlags::AUTODESTROY).then_some(client);
        if self.has_managed_save(&state) && !flags.contains(StartFlags::FORCE_BOOT) {
            let restored = self.start_from_kept(&mut job, flags, owner).await;
            self.forget_unused(job.object());
            return restored.map(|()| job.state());
        }
        // A later start must not restore it over disks that this one has written to. If there will be none, it stays.
        self.refuse_twin(&definition)?;
        self.remove_managed_save(&state)?;
        let variables = Variables::reset_if(flags.contains(StartFlags::RESET_NVRAM));
        let beginning =
            if flags.contains(StartFlags::PAUSED) { Beginning::BootPaused } else { Beginning::Boot };
        let plan = Plan { definition: &definition, owner, beginning, exact_cpu: None, variables };
        if let Err(error) = self.run(&mut job, plan).await {
            self.audit_failed_start(&definition);
            // It may have been undefined meanwhile.
            self.forget_unused(job.object());
            return Err(error);
        }
        Ok(job.state())
    }

    /// Starts a domain that comes with the call and goes with its process, unless it is defined as well.
    pub async fn create(self: &Arc<Self>, xml: &str, flags: u32, client: ClientId) -> Result<Arc<State>> {
        let flags = CreateFlags::accept(flags)?;
        if flags.contains(CreateFlags::VALIDATE) {
            self.check_names(xml).await?;
        }
        let definition = Arc::new(self.read_definition(xml).await?);
        let (name, uuid) = (&*definition.name, definition.uuid);
        let Added { object, .. } = self
            .list
            .add((name, uuid), Existing::Start, || DomainObject::new(State::new(name, uuid), self.limits))?;
        let started = async {
            let mut job = DomainHandle::new(Arc::clone(&object)).begin_async::<Start>().await?;
            if job.state().is_active() {
                let sentence = format!("domain '{name}' is already active");
                return Err(Error::operation_invalid(sentence).from_origin(Origin::DOMAIN));
            }
            let beginning =
                if flags.contains(CreateFlags::PAUSED) { Beginning::BootPaused } else { Beginning::Boot };
            let owner = flags.contains(CreateFlags::AUTODESTROY).then_some(client);
            let variables = Variables::reset_if(flags.contains(CreateFlags::RESET_NVRAM));
            let plan = Plan { definition: &definition, owner, beginning, exact_cpu: None, variables };
            self.run(&mut job, plan).await.inspect_err(|_| self.audit_failed_start(&definition))?;
            Ok(job.state())
        };
        let started = started.await;
        if started.is_err() {
            self.forget_unused(&object);
        }
        started
    }

    /// Takes a domain off the list that neither runs nor is defined.
    pub(super) fn forget_unused(&self, object: &DomainObject) {
        let unused = |state: &mut State| {
            state.gone = !state.is_active() && !state.is_persistent();
            state.gone
        };
        object.observe(unused, |_, gone| {
            if *gone {
                self.list.remove(object);
            }
        });
    }

    /// The phases of a start, and what undoes them. A guest whose state is to come is active when this returns,
    /// and its QEMU waits.
    pub(super) async fn run<O: AsyncOp>(
        self: &Arc<Self>,
        job: &mut AsyncJob<O>,
        plan: Plan<'_>,
    ) -> Result<()> {
        let (definition, beginning) = (plan.definition, plan.beginning);
        let attempt = Attempt::new(self, job.object(), plan);
        let given = Arc::clone(&attempt.given);
        let brought_up = async {
            let (mut attempt, started) = self.launch(attempt, definition).await?;
            match self.bring_up(job, &mut attempt, &started, beginning).await {
                Ok(()) => {
                    self.hand_over(job, attempt, started);
                    Ok(())
                }
                Err(error) => {
                    let error = match job.state().ending {
                        Some(Ending::Destroyed) => canceled(&definition.name),
                        _ => error.into_error(&started).await,
                    };
                    started.abandon().await;
                    drop(attempt);
                    Err(error)
                }
            }
        };
        match brought_up.await {
            Ok(()) => Ok(()),
            Err(error) => Err(given.fail(error).await),
        }
    }

    /// Everything before QEMU answers.
    async fn launch(self: &Arc<Self>, attempt: Attempt, definition: &Domain) -> Result<(Attempt, Started)> {
        let emulator = definition.devices.emulator.as_deref().unwrap_or_default();
        let starting = Arc::clone(&attempt.starting);
        let ready = async {
            Ok::<_, Error>((self.emulators.lookup(emulator.as_ref()).await?, self.turns.next().await))
        };
        let (caps, turn) = tokio::select! {
            ready = ready => ready?,
            () = starting.canceled() => return Err(canceled(&definition.name)),
        };
        let begin = async {
            let mut attempt = attempt;
            let disks = &definition.devices.disks;
            attempt.overlays = overlay::create(disks, &definition.name, self.search_path()).await?;
            let (mut attempt, prepared, launch, helpers) = blocking(move || attempt.assemble(&caps)).await?;
            attempt.helpers = helpers::start(helpers, prepared.files(), launch.run_as).await?;
            traffic::limit_all(&attempt.definition, attempt.domains.search_path()).await?;
            let spawned = prepared.spawn(launch).await?;
            let noted = blocking(move || {
                attempt.note(&spawned)?;
                Ok((attempt, spawned))
            });
            let (attempt, spawned) = noted.await?;
            let process = spawned.process().clone();
            let answered = tokio::select! {
                answered = spawned.answer() => answered.map_err(Error::from),
                () = starting.canceled() => Err(canceled(&definition.name)),
            };
            if answered.is_err() {
                process::gone(&process).await;
            }
            Ok((attempt, answered?))
        };
        turn.hold(Box::pin(begin)).await
    }

    /// From a QEMU that answers to a guest that runs.
    async fn bring_up<O: AsyncOp>(
        &self,
        job: &mut AsyncJob<O>,
        attempt: &mut Attempt,
        started: &Started,
        beginning: Beginning,
    ) -> Result<(), Failure> {
        self.attach(job, attempt, started)?;
        vcpus::plug_at_start(&started.monitor, &attempt.definition).await?;
        let answers = Answers::ask(&started.monitor, &attempt.definition).await?;
        answers.place_threads(&attempt.definition, started.running().process.pid())?;
        self.refresh(&mut attempt.definition, &attempt.cpu_arguments, &started.monitor, &answers.boot_cpu)
            .await?;
        for (name, arguments) in setup::commands(&attempt.definition, seconds_since_1970()) {
            started.monitor.execute_value(name, Some(arguments)).await?;
        }
        let plugged = hotplug::devices(&started.monitor).await;
        devices::note_terminals(&mut attempt.definition, &answers.terminals);
        let agent_event = agent::first_ports(&mut attempt.definition, &answers.terminals);
        job.update_then(
            |state| {
                state.live = Some(Arc::new(attempt.definition.clone()));
                state.vcpu_threads = answers.vcpu_threads;
                state.note_devices(plugged);
            },
            |state, ()| agent_event.into_iter().for_each(|event| self.publish(state, event)),
        );
        self.write_status(&job.state()).map_err(Error::from)?;
        let started_event = DomainEvent::Lifecycle(Lifecycle::Started(StartedDetail::Booted));
        let (run, events) = match beginning {
            Beginning::Boot => {
                started.monitor.execute(Cont {}).await?;
                let resumed = DomainEvent::Lifecycle(Lifecycle::Resumed(Resumed::Unpaused));
                (RunState::Running(Running::Booted), vec![resumed, started_event])
            }
            Beginning::BootPaused => {
                let suspended = DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::Paused));
                (RunState::Paused(Paused::User), vec![started_event, suspended])
            }
            Beginning::Incoming(reason) | Beginning::Loaded(reason) => (RunState::Paused(reason), Vec::new()),
        };
        job.update_then(
            |state| state.run = run,
            |state, ()| {
                self.save_status(state);
                events.into_iter().for_each(|event| self.publish(state, event));
            },
        );
        Ok(())
    }
}

impl Domains {
    pub(super) fn helpers_host<'a>(&'a self, files: &'a Files) -> helpers::Host<'a> {
        helpers::Host {
            files,
            tpm_states: self.tpm_states(),
            search_path: self.search_path(),
            tpm_user: self.rules.tpm,
        }
    }

    /// The domain is active from here on, and whoever wants to can end it.
    fn attach<O: AsyncOp>(&self, job: &AsyncJob<O>, attempt: &Attempt, started: &Started) -> Result<()> {
        let machine = Machine::new(started.running());
        let live = Arc::new(attempt.definition.clone());
        let attached = job.update(|state| {
            if state.gone {
                return Err(gone(state));
            }
            if attempt.starting.is_canceled() {
                return Err(canceled(&state.name));
            }
            state.id = Some(attempt.id);
            state.live = Some(live);
            state.launched = attempt.launched.clone();
            state.autodestroy = attempt.owner.is_some();
            state.run = RunState::Paused(Paused::StartingUp);
            state.attach(machine);
            Ok(())
        });
        self.list.bind_id(attempt.id, job.object());
        if let Some(owner) = attempt.owner {
            self.owners.own(owner, attempt.definition.uuid);
        }
        attached
    }

    /// From now on the process is its own, and the event task follows it.
    fn hand_over<O: AsyncOp>(self: &Arc<Self>, job: &AsyncJob<O>, attempt: Attempt, mut started: Started) {
        let process = started.running().process;
        tracing::info!(domain = %job.state().name, pid = process.pid(), "started");
        if let Some(events) = started.events.take() {
            self.follow(job.object(), process, events);
        }
        started.keep();
        attempt.keep();
    }
}

/// What a start has taken of the host, and what the domain has become by it; taken back when this is dropped.
struct Attempt {
    domains: Arc<Domains>,
    object: Arc<DomainObject>,
    starting: Arc<Starting>,
    id: i32,
    /// The connection that the guest is to end with.
    owner: Option<ClientId>,
    beginning: Beginning,
    exact_cpu: Option<Box<Cpu>>,
    variables: Variables,
    definition: Domain,
    /// What decides which CPU the guest gets.
    cpu_arguments: CpuArguments,
    launched: Option<Arc<Launched>>,
    helpers: Serving,
    given: Arc<Given>,
    overlays: Overlays,
    kept: bool,
}

impl Attempt {
    fn new(domains: &Arc<Domains>, object: &Arc<DomainObject>, plan: Plan<'_>) -> Self {
        let Plan { definition, owner, beginning, exact_cpu, variables } = plan;
        let starting = Arc::new(Starting::default());
        object.observe(|state| state.starting = Some(Arc::clone(&starting)), |_, ()| ());
        let id = domains.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut definition = definition.clone();
        definition.id = Some(id);
        let (domains, object) = (Arc::clone(domains), Arc::clone(object));
        let cpu_arguments = CpuArguments::default();
        Self {
            domains,
            object,
            starting,
            id,
            owner,
            beginning,
            exact_cpu,
            variables,
            definition,
            cpu_arguments,
            launched: None,
            helpers: Serving::default(),
            given: Arc::default(),
            overlays: Overlays::default(),
            kept: false,
        }
    }

    /// Completes the definition for this run, opens what QEMU inherits and writes the command line.
    fn assemble(mut self, caps: &QemuCaps) -> Result<(Self, Prepared, Launch, Vec<Helper>)> {
        let definition = &mut self.definition;
        self.domains.refuse_twin(definition)?;
        let rules = &self.domains.rules;
        let security = &rules.security;
        security.confine(definition)?;
        self.domains.audit_confinement(definition);
        let run_as = security.runs_as(definition)?;
        let mut prepared = Prepared::new(&self.domains.directories, self.id, &definition.name)?;
        for directory in [&prepared.files().directory, &prepared.files().channels] {
            security.hand_over(definition, directory)?;
        }
        let defined_cpu = definition.cpu.clone();
        let accel = command::accel_of(definition);
        if let Some(exact) = self.exact_cpu.take() {
            definition.cpu = Some(exact);
        } else if let Some(cpu) = &mut definition.cpu {
            self.domains.emulators.complete_cpu(cpu, caps, accel)?;
        }
        self.domains.storage.locate_disks(definition)?;
        self.variables.begin(definition)?;
        let passed = self.domains.associated.of(definition)?;
        let ports = &self.domains.ports;
        let last_node = devices::prepare(definition, self.id, prepared.files(), ports, security, &passed)?;
        self.domains.refuse_taken(definition, &definition.devices)?;
        let owners = security.owners();
        let (capabilities, devices) = (caps.flags, Arc::default());
        let launched = Launched { capabilities, last_node, defined_cpu, owners, devices };
        self.launched = Some(Arc::new(launched));
        let key = devices::write_master_key(prepared.files())?;
        security.hand_over(definition, &prepared.files().directory.join(MasterKey::FILE))?;
        let helpers = helpers::needed(definition, &self.domains.helpers_host(prepared.files()))?;
        let mut descriptors = devices::open(definition, accel, &passed, &mut prepared)?;
        self.domains.keep_bounded(definition);
        descriptors.secrets = self.domains.storage.seal_secrets(definition, &key)?;
        let settings = devices::settings(definition, prepared.files(), security)?;
        self.given.give(security, definition, owners)?;
        let now_s = seconds_since_1970();
        let local_offset_s = local_time::offset_s(now_s);
        definition.clock.offset.begin(local_offset_s);
        let context = Context {
            scope: self.domains.paths.scope,
            state_dir: &prepared.files().directory,
            memory_dir: &prepared.files().memory,
            monitor: prepared.monitor_fd(),
            descriptors: &descriptors,
            sandbox: rules.sandbox,
            now_s,
            local_offset_s,
            incoming: matches!(self.beginning, Beginning::Incoming(_)).then_some("defer"),
            settings: &settings,
            inherited_env: &self.domains.inherited_env,
        };
        tunables::refuse_unkept(definition)?;
        let CommandLine { program, args, env } = command::build(definition, caps, &context)?;
        self.cpu_arguments = CpuArguments::of(&args);
        let gib = u32::try_from(definition.memory.total_kib >> 20).unwrap_or(u32::MAX);
        let launch = Launch {
            program: program.into(),
            args,
            env,
            versions: versions(caps),
            taints: Vec::new(),
            limit: START_LIMIT
                + START_LIMIT_PER_GIB * gib
                + START_LIMIT_PER_KEY * encrypted_images(definition),
            run_as,
            may_lock: memory_lock::needed(definition),
        };
        Ok((self, prepared, launch, helpers))
    }

    /// Writes the process down, so that a next daemon ends it should this one die before the guest runs.
    fn note(&self, spawned: &Spawned) -> Result<()> {
        let mut state = State::new(&*self.definition.name, self.definition.uuid);
        state.id = Some(self.id);
        state.live = Some(Arc::new(self.definition.clone()));
        state.launched = self.launched.clone();
        state.autodestroy = self.owner.is_some();
        state.run = RunState::Paused(Paused::StartingUp);
        Ok(self.domains.write_status_of(&state, spawned.process(), spawned.files())?)
    }

    fn keep(mut self) {
        std::mem::take(&mut self.helpers).keep(&self.definition.name);
        self.given.keep();
        std::mem::take(&mut self.overlays).keep();
        self.kept = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.kept {
            self.domains.list.release_id(self.id);
            self.domains.remove_status(&self.definition.name);
            self.domains.ports.release(self.definition.uuid);
            self.domains.written.remove_all(&self.definition.name);
            self.domains.owners.release(self.definition.uuid);
            let canceled =
                |state: &State| state.ending == Some(Ending::Destroyed) || self.starting.is_canceled();
            let detach = |state: &mut State| {
                state.detach(if canceled(state) { Shutoff::Destroyed } else { Shutoff::Failed });
            };
            self.object.observe(detach, |_, ()| ());
        }
    }
}

/// Why a guest whose QEMU answered did not come up. A monitor that fails may only be the consequence of a
/// QEMU that died and said why.
pub(super) enum Failure {
    Monitor(MonitorError),
    Other(Error),
}

impl From<MonitorError> for Failure {
    fn from(error: MonitorError) -> Self {
        Self::Monitor(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    async fn into_error(self, started: &Started) -> Error {
        match self {
            Self::Monitor(error) => started.explain(error).await.into(),
            Self::Other(error) => error,
        }
    }
}

/// What only the started QEMU knows.
struct Answers {
    /// Where QEMU keeps the first vCPU.
    boot_cpu: String,
    vcpu_threads: Arc<[u32]>,
    iothreads: Vec<IoThreadStats>,
    terminals: Vec<Chardev>,
}

impl Answers {
    /// One conversation: all questions leave in one write.
    async fn ask(monitor: &Monitor, definition: &Domain) -> Result<Self, MonitorError> {
        let cpus = monitor.submit(QueryCpusFast {});
        let terminals = monitor.submit(QueryChardev {});
        let has_iothreads = !definition.iothreads.threads.is_empty();
        let iothreads = has_iothreads.then(|| monitor.submit(QueryIothreads {}));
        let memory = &definition.memory;
        let balloon = definition.devices.memballoons.iter().any(|it| it.model != BalloonModel::None);
        let ballooned = (balloon && memory.current_kib < memory.total_kib)
            .then(|| monitor.submit(SetBalloon { value: memory.current_kib * 1024 }));
        let unplugged: Vec<_> = devices::unplugged(definition)
            .map(|alias| monitor.submit(SetLink { name: alias.to_owned(), up: false }))
            .collect();
        let mut cpus = cpus.reply().await?;
        cpus.sort_unstable_by_key(|cpu| cpu.cpu_index);
        let answers = Self {
            boot_cpu: cpus.first().map(|cpu| cpu.qom_path.clone()).unwrap_or_default(),
            vcpu_threads: vcpu::threads(vcpu::told(&cpus)).into(),
            iothreads: match iothreads {
                Some(iothreads) => iothreads.reply().await?,
                None => Vec::new(),
            },
            terminals: terminals.reply().await?,
        };
        if let Some(ballooned) = ballooned {
            ballooned.reply().await?;
        }
        for link in unplugged {
            link.reply().await?;
        }
        Ok(answers)
    }
}

impl Answers {
    /// Where its definition pins them.
    fn place_threads(&self, definition: &Domain, qemu: u32) -> Result<()> {
        let iothreads = self
            .iothreads
            .iter()
            .filter_map(|thread| Some((thread.id.strip_prefix("iothread")?.parse().ok()?, thread.thread_id)));
        pins::place(definition, qemu, &self.vcpu_threads, iothreads)
    }
}

/// Somebody destroyed a domain that was about to run.
fn canceled(name: &str) -> Error {
    Error::operation_aborted(format!("domain '{name}' was destroyed while it was starting"))
}

fn gone(state: &State) -> Error {
    Error::no_domain(format!("no domain with matching uuid '{}' ({})", state.uuid, state.name))
}

/// Who is involved, for the guest's log.
fn versions(caps: &QemuCaps) -> String {
    let (major, minor, micro) = (caps.version / 1_000_000, caps.version / 1000 % 1000, caps.version % 1000);
    let system = rustix::system::uname();
    format!(
        "ferrovirt version: {}, qemu version: {major}.{minor}.{micro}{}, kernel: {}, hostname: {}",
        env!("CARGO_PKG_VERSION"),
        caps.package,
        system.release().to_string_lossy(),
        system.nodename().to_string_lossy(),
    )
}

pub(super) fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
