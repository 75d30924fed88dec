//! The commands that have a type. Adding one is one entry: name, arguments, reply.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::command::{Command, Done, parse_reply};
use super::graph::BlockGraph;
use super::migration::{DumpFormats, DumpInfo, MigrationCapability, MigrationInfo, MigrationParameters};
use super::redact::Secret;
use super::stats::{BlockDevice, BlockNode, BlockStats, DirtyRate, IoThreadStats, StatsSchema, StatsSource};

macro_rules! commands {
    ($($(#[$doc:meta])* $type:ident = $name:literal { $($field:ident: $kind:ty),* } -> $reply:ty $(, $secret:ident)?;)*) => {
    $(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $type {
            $(
                #[serde(skip_serializing_if = "Absent::absent")]
                pub $field: $kind,
            )*
        }

        impl Command for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
            $(const SECRET: Secret = Secret::$secret;)?
        }
    )*

        /// Takes a line as the reply to each command; how many take it.
        pub(super) fn understood(line: &[u8]) -> usize {
            let understood = [$(parse_reply::<$reply>($name, line).is_ok(),)*];
            understood.into_iter().filter(|is| *is).count()
        }
    };
}

/// Which arguments are left out.
trait Absent {
    fn absent(&self) -> bool {
        false
    }
}

impl<T> Absent for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}

impl Absent for String {}
impl Absent for &str {}
impl Absent for bool {}
impl Absent for i32 {}
impl Absent for u32 {}
impl Absent for u64 {}
impl Absent for Value {}
impl<T> Absent for Vec<T> {}

commands! {
    /// Ends the negotiation; no optional capability is asked for.
    Capabilities = "qmp_capabilities" {} -> Done;

    /// Whether the guest runs, and if not, why.
    QueryStatus = "query-status" {} -> Status;
    Cont = "cont" {} -> Done;
    Stop = "stop" {} -> Done;
    /// Presses the ACPI power button.
    SystemPowerdown = "system_powerdown" {} -> Done;
    SystemReset = "system_reset" {} -> Done;
    /// Ends what the guest's own sleep began.
    SystemWakeup = "system_wakeup" {} -> Done;
    /// Ends an outgoing migration, to wherever it goes.
    MigrateCancel = "migrate_cancel" {} -> Done;
    /// Begins to stream the guest's state out; returns when it has begun.
    Migrate = "migrate" { uri: String, detach: bool, resume: Option<bool> } -> Done;
    /// Begins to take a guest's state in; returns when QEMU listens or reads.
    MigrateIncoming = "migrate-incoming" { uri: String, exit_on_error: Option<bool> } -> Done;
    QueryMigrate = "query-migrate" {} -> MigrationInfo;
    QueryMigrateCapabilities = "query-migrate-capabilities" {} -> Vec<MigrationCapability>;
    MigrateSetCapabilities = "migrate-set-capabilities" { capabilities: Vec<MigrationCapability> } -> Done;
    QueryMigrateParameters = "query-migrate-parameters" {} -> MigrationParameters;
    /// Goes on behind the status named by `state`.
    MigrateContinue = "migrate-continue" { state: &'static str } -> Done;
    /// Has viewers of the screen go to another host.
    ClientMigrateInfo = "client_migrate_info" { protocol: &'static str, hostname: String, port: i32, tls_port: i32, cert_subject: Option<String> } -> Done;
    MigrateStartPostcopy = "migrate-start-postcopy" {} -> Done;
    /// Interrupts a migration in its postcopy phase.
    MigratePause = "migrate-pause" {} -> Done;
    MigrateRecover = "migrate-recover" { uri: String } -> Done;
    /// The guest's memory as a core file; with `detach` it returns when the dump has begun.
    DumpGuestMemory = "dump-guest-memory" { paging: bool, protocol: String, format: Option<String>, detach: Option<bool> } -> Done;
    QueryDump = "query-dump" {} -> DumpInfo;
    QueryDumpGuestMemoryCapability = "query-dump-guest-memory-capability" {} -> DumpFormats;
    InjectNmi = "inject-nmi" {} -> Done;
    /// `hold_time` in milliseconds.
    SendKey = "send-key" { keys: Value, hold_time: Option<u32> } -> Done;
    /// What QEMU itself does when the guest reboots.
    SetAction = "set-action" { reboot: &'static str } -> Done;

    QueryKvm = "query-kvm" {} -> Kvm;
    QueryName = "query-name" {} -> Name;
    QueryPci = "query-pci" {} -> Vec<PciBus>;
    QueryUuid = "query-uuid" {} -> UuidText;
    QueryCpusFast = "query-cpus-fast" {} -> Vec<Cpu>;
    /// Where vCPUs are, or can be plugged.
    QueryHotpluggableCpus = "query-hotpluggable-cpus" {} -> Vec<HotpluggableCpu>;
    QueryChardev = "query-chardev" {} -> Vec<Chardev>;
    QueryBalloon = "query-balloon" {} -> Balloon;
    /// `value` in bytes.
    SetBalloon = "balloon" { value: u64 } -> Done;

    QomList = "qom-list" { path: &'static str } -> Vec<QomItem>;
    QueryMemoryDevices = "query-memory-devices" {} -> Vec<PluggedMemory>;

    /// What the balloon's driver in the guest has told last.
    BalloonStats = "qom-get" { path: String, property: &'static str } -> GuestStats;

    /// Of the frontends, with the images below them.
    QueryBlockstats = "query-blockstats" {} -> Vec<BlockStats>;
    QueryNamedBlockNodes = "query-named-block-nodes" { flat: bool } -> Vec<BlockNode>;
    /// The same nodes, by what is inside their images.
    QueryNodeImages = "query-named-block-nodes" { flat: bool } -> Vec<NodeImages>;
    /// What stands on what.
    QueryBlockGraph = "x-debug-query-block-graph" {} -> BlockGraph;
    QueryIothreads = "query-iothreads" {} -> Vec<IoThreadStats>;
    /// QEMU's own statistics, of each `vcpu` or of the `vm`.
    QueryStats = "query-stats" { target: &'static str } -> Vec<StatsSource>;
    QueryStatsSchemas = "query-stats-schemas" {} -> Vec<StatsSchema>;
    QueryDirtyRate = "query-dirty-rate" {} -> DirtyRate;
    /// What the machine can do.
    QueryCurrentMachine = "query-current-machine" {} -> CurrentMachine;
    /// Timer ticks that the guest missed do not come any more.
    RtcResetReinjection = "rtc-reset-reinjection" {} -> Done;
    CalcDirtyRate = "calc-dirty-rate" { calc_time: u64, mode: &'static str } -> Done;

    QueryBlock = "query-block" {} -> Vec<BlockDevice>;
    BlockResize = "block_resize" { node_name: String, size: u64 } -> Done;
    BlockSetWriteThreshold = "block-set-write-threshold" { node_name: String, write_threshold: u64 } -> Done;
    /// What the guest's processor sees at an address, to a file.
    Memsave = "memsave" { val: u64, size: u64, filename: String } -> Done;
    Pmemsave = "pmemsave" { val: u64, size: u64, filename: String } -> Done;

    /// The bits of CPUID that a vCPU has.
    CpuFeatureWords = "qom-get" { path: String, property: &'static str } -> Vec<FeatureWord>;
    /// What a vCPU was to have and does not, under QEMU's names.
    UnavailableFeatures = "qom-get" { path: String, property: &'static str } -> Vec<String>;
    /// All properties of a CPU model.
    ExpandCpuModel = "query-cpu-model-expansion" { r#type: &'static str, model: Value } -> CpuModelExpansion;

    /// All jobs, not only those on block nodes.
    QueryJobs = "query-jobs" {} -> Vec<JobInfo>;
    /// Forgets one that has concluded.
    JobDismiss = "job-dismiss" { id: String } -> Done;
    /// Has one that is ready end with its result.
    JobComplete = "job-complete" { id: String } -> Done;
    JobCancel = "job-cancel" { id: String } -> Done;
    /// Has one that was begun without `auto-finalize` take effect.
    JobFinalize = "job-finalize" { id: String } -> Done;
    QueryBlockJobs = "query-block-jobs" {} -> Vec<BlockJobInfo>;
    /// Without `force` one that is ready ends in order.
    BlockJobCancel = "block-job-cancel" { device: String, force: bool } -> Done;
    /// Bytes a second; 0: no limit.
    BlockJobSetSpeed = "block-job-set-speed" { device: String, speed: u64 } -> Done;
    BlockStream = "block-stream" { device: String, job_id: String, speed: Option<u64>, base_node: Option<String>, backing_file: Option<String>, auto_finalize: bool, auto_dismiss: bool, backing_mask_protocol: bool } -> Done;
    BlockCommit = "block-commit" { device: String, job_id: String, speed: Option<u64>, top_node: String, base_node: String, backing_file: Option<String>, auto_finalize: bool, auto_dismiss: bool, backing_mask_protocol: bool } -> Done;
    BlockdevMirror = "blockdev-mirror" { job_id: String, device: String, target: String, replaces: Option<String>, speed: Option<u64>, granularity: Option<u32>, buf_size: Option<u64>, sync: &'static str, copy_mode: Option<&'static str>, auto_finalize: bool, auto_dismiss: bool } -> Done;
    /// All of its actions or none.
    Transaction = "transaction" { actions: Vec<Value> } -> Done;

    ObjectAddIothread = "object-add" { qom_type: &'static str, id: String } -> Done;
    ObjectDel = "object-del" { id: String } -> Done;
    QomGetNumber = "qom-get" { path: String, property: &'static str } -> i64;
    QomSetNumber = "qom-set" { path: String, property: &'static str, value: u64 } -> Done;
    /// Has the server of a screen read its certificates again.
    DisplayReload = "display-reload" { r#type: &'static str, tls_certs: bool } -> Done;

    SetLink = "set_link" { name: String, up: bool } -> Done;
    /// The descriptor travels beside the command.
    AddFd = "add-fd" { fdset_id: u64, opaque: String } -> Done;
    RemoveFd = "remove-fd" { fdset_id: u32 } -> Done;
    QueryFdsets = "query-fdsets" {} -> Vec<FdSet>;
    /// The descriptor travels beside the command.
    Getfd = "getfd" { fdname: String } -> Done;
    CloseFd = "closefd" { fdname: String } -> Done;
    /// Serves a screen on a descriptor that QEMU got before.
    AddClient = "add_client" { protocol: String, fdname: String, skipauth: bool } -> Done;

    Screendump = "screendump" { filename: String, device: Option<String>, head: Option<u64>, format: Option<String> } -> Done;
    SetPassword = "set_password" { protocol: String, password: String, connected: Option<String> } -> Done, Named;
    ExpirePassword = "expire_password" { protocol: String, time: String } -> Done;
    HumanMonitorCommand = "human-monitor-command" { command_line: String } -> String, Named;
}

/// QEMU's first line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Greeting {
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    pub qemu: VersionNumber,
    /// What the packager calls it.
    #[serde(default)]
    pub package: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct VersionNumber {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    pub running: bool,
    /// `running`, `paused`, `prelaunch`, `inmigrate`, `shutdown`, `io-error`, `guest-panicked`, …
    pub status: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Kvm {
    pub enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Name {
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UuidText {
    #[serde(rename = "UUID")]
    pub uuid: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    pub cpu_index: u32,
    pub thread_id: u32,
    pub qom_path: String,
    #[serde(default)]
    pub props: BTreeMap<String, Value>,
}

/// A place for vCPUs that come and go together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HotpluggableCpu {
    #[serde(rename = "type")]
    pub kind: String,
    pub vcpus_count: u32,
    pub props: Map<String, Value>,
    /// Absent while nothing is plugged there.
    pub qom_path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdSet {
    pub fdset_id: u32,
    #[serde(default)]
    pub fds: Vec<FdSetEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FdSetEntry {
    /// What it was given with.
    pub opaque: Option<String>,
}

impl FdSet {
    /// Whether it was given with this word.
    pub fn is(&self, opaque: &str) -> bool {
        self.fds.iter().any(|entry| entry.opaque.as_deref() == Some(opaque))
    }
}

/// 32 of a processor's features.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FeatureWord {
    pub cpuid_input_eax: u32,
    pub cpuid_input_ecx: Option<u32>,
    /// `EAX`, …
    pub cpuid_register: String,
    pub features: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CpuModelExpansion {
    pub model: CpuModel,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CpuModel {
    pub name: String,
    #[serde(default)]
    pub props: Map<String, Value>,
}

/// The devices of a PCI bus; what is behind its bridges is left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PciBus {
    pub devices: Vec<PciDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PciDevice {
    pub bus: u8,
    pub slot: u8,
    pub function: u8,
    #[serde(rename = "class_info")]
    pub class: PciClass,
    pub id: PciId,
    /// Empty for one without a name.
    #[serde(default)]
    pub qdev_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PciClass {
    pub class: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PciId {
    pub vendor: u32,
    pub device: u32,
}

/// A character device; a pty's is `pty:/dev/pts/3`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chardev {
    pub label: String,
    pub filename: String,
    #[serde(default)]
    pub frontend_open: Option<bool>,
}

impl Chardev {
    /// The path of the terminal, if it is one.
    pub fn pty(&self) -> Option<&str> {
        self.filename.strip_prefix("pty:")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CurrentMachine {
    /// Whether a guest that sleeps can be woken up.
    pub wakeup_suspend_support: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QomItem {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// Memory that is plugged in, of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PluggedMemory {
    pub data: MemoryPlace,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct MemoryPlace {
    pub id: Option<String>,
    /// Bytes that the guest has of it.
    pub size: u64,
    /// Where it begins in the guest's memory; of virtio devices `memaddr`.
    #[serde(alias = "memaddr")]
    pub addr: u64,
    pub slot: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Balloon {
    /// Bytes.
    pub actual: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestStats {
    /// By name; -1 as an unsigned number for what the driver does not tell.
    pub stats: BTreeMap<String, u64>,
    /// Seconds since the epoch; 0 before the first time.
    pub last_update: u64,
}

/// A job of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    pub id: String,
    /// `created`, `running`, `ready`, `pending`, `concluded`, …
    pub status: String,
    pub current_progress: u64,
    pub total_progress: u64,
    pub error: Option<String>,
}

/// A job on block nodes. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockJobInfo {
    pub device: String,
    pub len: u64,
    pub offset: u64,
    pub speed: u64,
    /// Whether it can end with its result.
    pub ready: Option<bool>,
}

/// What is inside an image beside what the guest sees now.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeImages {
    pub node_name: Option<String>,
    pub image: Inside,
    #[serde(default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

impl NodeImages {
    pub fn snapshot(&self, name: &str) -> Option<&InnerSnapshot> {
        self.image.snapshots.iter().find(|snapshot| snapshot.name == name)
    }

    pub fn bitmap(&self, name: &str) -> Option<&DirtyBitmap> {
        self.dirty_bitmaps.iter().find(|bitmap| bitmap.name.as_deref() == Some(name))
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inside {
    #[serde(default)]
    pub snapshots: Vec<InnerSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InnerSnapshot {
    pub name: String,
    /// Bytes; 0 where the memory is not with it.
    pub vm_state_size: u64,
}

/// Which parts of a disk were written to since it began.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyBitmap {
    pub name: Option<String>,
    /// Bytes.
    pub count: u64,
    pub granularity: u64,
    #[serde(default)]
    pub recording: bool,
    #[serde(default)]
    pub persistent: bool,
    #[serde(default)]
    pub inconsistent: bool,
}
