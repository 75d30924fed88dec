//! What a running QEMU tells of itself, and what it told last.
//!
//! A dashboard asks every few seconds, of guests that may have stopped answering. So every answer is kept:
//!
//! ```text
//!            ask                    answers
//!   known ─────────► asking ────────────────────────────► known, and newer
//!                      │                                    ▲
//!                      └── patience ends ──► silent ────────┘ answers after all
//!                                              └─ further questions are answered from what is known, at once
//! ```
//!
//! All commands of one question leave in one write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use serde_json::Value;

use super::block;
use super::job::Live;
use super::monitor::{
    BalloonStats, BlockCounters, BlockNode, BlockStats, Command, DirtyRate, GuestStats, IoThreadStats,
    Monitor, MonitorError, Pending, QueryBlockstats, QueryCpusFast, QueryDirtyRate, QueryIothreads,
    QueryNamedBlockNodes, QueryStats, QueryStatsSchemas, StatsSchema, StatsSource, is_device,
};
use crate::conf::devices::{BalloonModel, Place, Storage};
use crate::conf::domain::Domain;

bitflags::bitflags! {
    /// What can be asked of a guest's monitor.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Subjects: u32 {
        const BALLOON = 1;
        const BLOCK = 1 << 1;
        const VCPUS = 1 << 2;
        const VM = 1 << 3;
        const IOTHREADS = 1 << 4;
        const DIRTY_RATE = 1 << 5;
    }
}

/// What a guest told, by subject. Nothing where it was not asked or had no answer.
#[derive(Debug, Clone, Default)]
pub struct Account {
    pub balloon: Option<Arc<GuestStats>>,
    pub block: Option<Arc<BlockAccount>>,
    /// By the host thread of the vCPU.
    pub vcpus: Option<Arc<HashMap<u32, Vec<Custom>>>>,
    pub vm: Option<Arc<Vec<Custom>>>,
    pub iothreads: Option<Arc<Vec<IoThreadStats>>>,
    pub dirty_rate: Option<Arc<DirtyRate>>,
    /// [`Monitor::changes`] when what stays the same between changes was asked.
    asked_at: Option<u64>,
    /// Whether `block` was asked since then, and `dirty_rate`.
    are_nodes_known: bool,
    is_rate_known: bool,
    meanings: Option<Arc<Meanings>>,
    /// The threads of vCPUs by their path in QEMU.
    vcpu_paths: Arc<HashMap<String, u32>>,
}

impl Account {
    /// What is still of use when something may have changed what does not change by itself.
    fn after_changes(&self, changes: u64) -> Self {
        Self { asked_at: Some(changes), are_nodes_known: false, is_rate_known: false, ..self.clone() }
    }

    /// The block nodes, as far as they are what they were.
    fn nodes(&self) -> Option<&BlockAccount> {
        self.block.as_deref().filter(|_| self.are_nodes_known)
    }
}

/// One of QEMU's own statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custom {
    /// With the suffix that says what kind of number it is.
    pub name: Arc<str>,
    pub value: CustomValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustomValue {
    Number(u64),
    Truth(bool),
}

/// What block devices and nodes count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockAccount {
    frontends: Vec<(String, BlockCounters)>,
    nodes: HashMap<String, NodeAccount>,
}

/// Bytes, of one block node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeAccount {
    pub highest_write: u64,
    pub capacity: u64,
    /// None: what the file system has set aside for the file.
    pub physical: Option<u64>,
    pub write_threshold: u64,
}

impl BlockAccount {
    /// The counters of the device with this alias.
    pub fn frontend(&self, alias: &str) -> Option<&BlockCounters> {
        self.frontends.iter().find(|(qdev, _)| is_device(qdev, alias)).map(|(_, counters)| counters)
    }

    pub fn node(&self, name: &str) -> Option<&NodeAccount> {
        self.nodes.get(name)
    }

    /// What devices count now, of nodes that are what they were.
    fn again(&self, devices: &[BlockStats]) -> Self {
        let unchanged = |(name, node): (&String, &NodeAccount)| {
            (name.clone(), NodeAccount { highest_write: 0, physical: None, ..*node })
        };
        let mut account = Self { frontends: Vec::new(), nodes: self.nodes.iter().map(unchanged).collect() };
        devices.iter().for_each(|device| account.take(device));
        account
    }

    /// Whether the next answer can be made from this one: all images are files whose nodes are known.
    fn knows_nodes(&self, definition: &Domain) -> bool {
        let is_known = |image: &Storage, format| {
            let is_file = matches!(image.place, Place::File(Some(_))) && image.data_store.is_none();
            image.is_empty()
                || (is_file
                    && block::Nodes::of(image, format).is_some_and(|it| self.nodes.contains_key(&it.top)))
        };
        definition.devices.disks.iter().all(|disk| {
            let mut layers = disk.storage.layers();
            is_known(&disk.storage, disk.format())
                && layers.all(|layer| is_known(&layer.storage, layer.format.kind))
        })
    }

    fn of(devices: &[BlockStats], nodes: Vec<BlockNode>) -> Self {
        let mut account = Self::default();
        devices.iter().for_each(|device| account.take(device));
        for node in nodes {
            let Some(name) = node.node_name else { continue };
            let entry = account.nodes.entry(name).or_default();
            entry.capacity = node.image.virtual_size;
            entry.physical = Some(node.image.actual_size.unwrap_or(entry.capacity));
            entry.write_threshold = node.write_threshold;
        }
        account
    }

    fn take(&mut self, stats: &BlockStats) {
        if let Some(name) = &stats.node_name {
            let highest = stats.parent.as_ref().map_or(0, |below| below.stats.wr_highest_offset);
            self.nodes.entry(name.clone()).or_default().highest_write = highest;
        }
        if let Some(qdev) = &stats.qdev {
            self.frontends.push((qdev.clone(), stats.stats));
        }
        [&stats.parent, &stats.backing].into_iter().flatten().for_each(|below| self.take(below));
    }
}

/// How QEMU's own statistics are to be read: target and name, then suffix and whether it is a truth.
#[derive(Debug, Default)]
struct Meanings(HashMap<(&'static str, String), (Arc<str>, bool)>);

const VCPU: &str = "vcpu";
const VM: &str = "vm";

impl Meanings {
    fn of(schemas: Vec<StatsSchema>) -> Self {
        let mut meanings = HashMap::new();
        for schema in schemas {
            let Some(target) = [VCPU, VM].into_iter().find(|target| *target == schema.target) else {
                continue;
            };
            for stat in schema.stats {
                let suffix = match stat.kind.as_str() {
                    "cumulative" => "sum",
                    "instant" => "cur",
                    "peak" => "max",
                    _ => continue,
                };
                let name = Arc::from(format!("{}.{suffix}", stat.name));
                meanings.insert((target, stat.name), (name, stat.unit.as_deref() == Some("boolean")));
            }
        }
        Self(meanings)
    }

    fn read(&self, target: &'static str, source: StatsSource) -> Vec<Custom> {
        let stats = source.stats.into_iter().filter_map(|stat| {
            let (name, is_truth) = self.0.get(&(target, stat.name))?;
            let value = match stat.value {
                Value::Bool(truth) if *is_truth => CustomValue::Truth(truth),
                value if !is_truth => CustomValue::Number(value.as_u64()?),
                _ => return None,
            };
            Some(Custom { name: Arc::clone(name), value })
        });
        stats.collect()
    }
}

/// What the daemon keeps of a guest's answers as long as that runs.
#[derive(Debug, Default)]
pub struct Told {
    account: ArcSwap<Account>,
    asked: AtomicU64,
    answered: AtomicU64,
    given_up: AtomicU64,
    has_told: AtomicBool,
}

impl Told {
    pub fn account(&self) -> Arc<Account> {
        self.account.load_full()
    }

    /// Whether the guest has ever answered.
    pub fn has_told(&self) -> bool {
        self.has_told.load(Ordering::Acquire)
    }

    /// Whether somebody's patience has ended, and no answer has come since.
    pub fn is_silent(&self) -> bool {
        self.given_up.load(Ordering::Acquire) > self.answered.load(Ordering::Acquire)
    }

    /// The number of a question that is about to be put; every one must be followed by [`Told::learn`].
    pub fn begin_question(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub fn give_up(&self, question: u64) {
        self.given_up.fetch_max(question, Ordering::AcqRel);
    }

    /// The guest has answered, or never will.
    pub fn learn(&self, question: u64, account: Option<Account>) {
        if let Some(account) = account {
            self.account.store(Arc::new(account));
            self.has_told.store(true, Ordering::Release);
        }
        self.answered.fetch_max(question, Ordering::AcqRel);
    }
}

/// A command that was sent only if its subject is wanted.
struct Sent<C>(Option<Pending<C>>);

impl<C: Command> Sent<C> {
    fn when(wanted: bool, monitor: &Monitor, command: impl FnOnce() -> C) -> Self {
        Self(wanted.then(|| monitor.submit(command())))
    }

    /// Nothing if it was not sent or QEMU does not know; an error if QEMU is not there to ask.
    async fn answer(self) -> Result<Option<C::Reply>, MonitorError> {
        let Some(pending) = self.0 else { return Ok(None) };
        match pending.reply().await {
            Ok(reply) => Ok(Some(reply)),
            Err(MonitorError::Command { .. } | MonitorError::Reply { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The alias of the guest's balloon, if it has one.
pub fn balloon_alias(definition: &Domain) -> Option<&str> {
    let balloon = definition.devices.memballoons.first()?;
    if balloon.model == BalloonModel::None { None } else { balloon.info.alias.as_deref() }
}

/// Asks a guest, and puts what it answers in the place of what was known.
pub async fn ask(live: &Live<'_>, wanted: Subjects, known: &Account) -> Result<Account, MonitorError> {
    let state = live.state();
    let Some(definition) = &state.live else { return Err(MonitorError::Closed) };
    let is_known = |thread: &u32| known.vcpu_paths.values().any(|known| known == thread);
    let vcpus_known = state.vcpu_threads.iter().filter(|thread| **thread != 0).all(is_known);
    let changes = live.monitor().changes();
    let known = match known.asked_at == Some(changes) {
        true => known.clone(),
        false => known.after_changes(changes),
    };
    Question::put(live.monitor(), definition, wanted, &known, vcpus_known).answers(wanted, known).await
}

/// All commands of one question, under way.
struct Question {
    balloon: Sent<BalloonStats>,
    devices: Sent<QueryBlockstats>,
    nodes: Sent<QueryNamedBlockNodes>,
    meanings: Sent<QueryStatsSchemas>,
    cpus: Sent<QueryCpusFast>,
    vcpus: Sent<QueryStats>,
    vm: Sent<QueryStats>,
    iothreads: Sent<QueryIothreads>,
    dirty_rate: Sent<QueryDirtyRate>,
}

impl Question {
    /// Sends only what is wanted, and what a guest like this can answer.
    fn put(
        monitor: &Monitor,
        definition: &Domain,
        wanted: Subjects,
        known: &Account,
        vcpus_known: bool,
    ) -> Self {
        let is_wanted = |subject| wanted.contains(subject);
        let block = is_wanted(Subjects::BLOCK) && !definition.devices.disks.is_empty();
        let nodes = block && !known.nodes().is_some_and(|account| account.knows_nodes(definition));
        let iothreads = is_wanted(Subjects::IOTHREADS) && !definition.iothreads.threads.is_empty();
        let meanings = wanted.intersects(Subjects::VCPUS | Subjects::VM) && known.meanings.is_none();
        let balloon = balloon_alias(definition).filter(|_| is_wanted(Subjects::BALLOON));
        let balloon_path = balloon.map(|alias| format!("/machine/peripheral/{alias}"));
        Self {
            balloon: Sent(
                balloon_path.map(|path| monitor.submit(BalloonStats { path, property: "guest-stats" })),
            ),
            devices: Sent::when(block, monitor, || QueryBlockstats {}),
            nodes: Sent::when(nodes, monitor, || QueryNamedBlockNodes { flat: true }),
            meanings: Sent::when(meanings, monitor, || QueryStatsSchemas {}),
            cpus: Sent::when(is_wanted(Subjects::VCPUS) && !vcpus_known, monitor, || QueryCpusFast {}),
            vcpus: Sent::when(is_wanted(Subjects::VCPUS), monitor, || QueryStats { target: VCPU }),
            vm: Sent::when(is_wanted(Subjects::VM), monitor, || QueryStats { target: VM }),
            iothreads: Sent::when(iothreads, monitor, || QueryIothreads {}),
            dirty_rate: Sent::when(is_wanted(Subjects::DIRTY_RATE) && !known.is_rate_known, monitor, || {
                QueryDirtyRate {}
            }),
        }
    }

    async fn answers(self, wanted: Subjects, known: Account) -> Result<Account, MonitorError> {
        let mut next = known;
        let asks_rate = self.dirty_rate.0.is_some();
        let balloon = self.balloon.answer().await?;
        let devices = self.devices.answer().await?;
        let nodes = self.nodes.answer().await?;
        if let Some(schemas) = self.meanings.answer().await? {
            next.meanings = Some(Arc::new(Meanings::of(schemas)));
        }
        if let Some(cpus) = self.cpus.answer().await? {
            next.vcpu_paths = Arc::new(cpus.into_iter().map(|cpu| (cpu.qom_path, cpu.thread_id)).collect());
        }
        let vcpus = self.vcpus.answer().await?;
        let vm = self.vm.answer().await?;
        let iothreads = self.iothreads.answer().await?;
        let dirty_rate = self.dirty_rate.answer().await?;

        let meanings = next.meanings.clone().unwrap_or_default();
        if wanted.contains(Subjects::BALLOON) {
            next.balloon = balloon.map(Arc::new);
        }
        if wanted.contains(Subjects::BLOCK) {
            let account = match (devices, nodes) {
                (Some(devices), Some(nodes)) => Some(BlockAccount::of(&devices, nodes)),
                (Some(devices), None) => next.nodes().map(|known| known.again(&devices)),
                (None, _) => None,
            };
            next.are_nodes_known = account.is_some();
            next.block = account.map(Arc::new);
        }
        if wanted.contains(Subjects::VCPUS) {
            let thread = |source: &StatsSource| next.vcpu_paths.get(source.qom_path.as_deref()?).copied();
            let read = |source| Some((thread(&source)?, meanings.read(VCPU, source)));
            next.vcpus = vcpus.map(|sources| Arc::new(sources.into_iter().filter_map(read).collect()));
        }
        if wanted.contains(Subjects::VM) {
            let only = vm.and_then(|mut sources| sources.pop().filter(|_| sources.is_empty()));
            next.vm = only.map(|source| Arc::new(meanings.read(VM, source)));
        }
        if wanted.contains(Subjects::IOTHREADS) {
            next.iothreads = iothreads.map(Arc::new);
        }
        if asks_rate {
            // A measurement ends without a word.
            next.is_rate_known = dirty_rate.as_ref().is_some_and(|rate| rate.status != "measuring");
            next.dirty_rate = dirty_rate.map(Arc::new);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(json: &str) -> T {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_chain_of_images_is_counted_by_node_and_by_device() {
        const COUNTERS: &str = r#""rd_bytes": 1, "wr_bytes": 2, "rd_operations": 3, "wr_operations": 4"#;
        let storage = |number, highest| {
            format!(
                r#"{{"node-name": "libvirt-{number}-storage", "stats": {{{COUNTERS}, "wr_highest_offset": {highest}}}}}"#
            )
        };
        let devices: Vec<BlockStats> = parse(&format!(
            r#"[{{"device": "", "qdev": "/machine/peripheral/disk1/virtio-backend", "node-name": "libvirt-2-format",
                "stats": {{{COUNTERS}}}, "parent": {},
                "backing": {{"node-name": "libvirt-1-format", "stats": {{{COUNTERS}}}, "parent": {}}}}},
               {{"device": "", "qdev": "disk10", "stats": {{{COUNTERS}}}}}]"#,
            storage(2, 512),
            storage(1, 256)
        ));
        let nodes = parse(
            r#"[{"node-name": "libvirt-2-format", "write_threshold": 7, "image": {"virtual-size": 100, "actual-size": 10}},
                {"node-name": "libvirt-1-format", "image": {"virtual-size": 50}}]"#,
        );
        let account = BlockAccount::of(&devices, nodes);
        assert_eq!(account.frontend("disk1").unwrap().wr_operations, 4);
        assert!(account.frontend("disk10").is_some() && account.frontend("disk").is_none());
        let node = |name| *account.node(name).unwrap();
        assert_eq!(
            node("libvirt-2-format"),
            NodeAccount { highest_write: 512, capacity: 100, physical: Some(10), write_threshold: 7 }
        );
        assert_eq!(
            (node("libvirt-1-format").highest_write, node("libvirt-1-format").physical),
            (256, Some(50))
        );
        assert_eq!(node("libvirt-2-storage").highest_write, 0);
    }

    #[test]
    fn a_guest_is_silent_from_the_end_of_patience_to_its_next_answer() {
        let told = Told::default();
        let (first, second) = (told.begin_question(), told.begin_question());
        told.give_up(first);
        assert!(told.is_silent() && !told.has_told());
        told.learn(first, Some(Account::default()));
        assert!(!told.is_silent() && told.has_told());
        told.learn(second, None);
        told.give_up(second); // too late
        assert!(!told.is_silent());
    }

    #[test]
    fn statistics_have_the_suffix_that_their_schema_says() {
        let meanings = Meanings::of(parse(
            r#"[{"provider": "kvm", "target": "vcpu", "stats": [{"name": "exits", "type": "cumulative"},
                 {"name": "blocking", "type": "instant", "unit": "boolean"}, {"name": "hist", "type": "log2-histogram"}]},
                {"provider": "kvm", "target": "vm", "stats": [{"name": "exits", "type": "peak"}]}]"#,
        ));
        let source = || {
            parse(
                r#"{"stats": [{"name": "exits", "value": 3}, {"name": "blocking", "value": true},
                    {"name": "hist", "value": [0]}, {"name": "new", "value": 1}]}"#,
            )
        };
        let custom = |name: &str, value| Custom { name: name.into(), value };
        assert_eq!(
            meanings.read(VCPU, source()),
            [custom("exits.sum", CustomValue::Number(3)), custom("blocking.cur", CustomValue::Truth(true))]
        );
        assert_eq!(meanings.read(VM, source()), [custom("exits.max", CustomValue::Number(3))]);
    }
}
