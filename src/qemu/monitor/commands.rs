//! The commands that have a type. Adding one is one entry: name, arguments, reply.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::{Command, Done};
use super::redact::Secret;

macro_rules! commands {
    ($($(#[$doc:meta])* $type:ident = $name:literal { $($field:ident: $kind:ty),* } -> $reply:ty $(, $secret:ident)?;)*) => {$(
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
    )*};
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
impl Absent for bool {}
impl Absent for i64 {}
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
    SystemWakeup = "system_wakeup" {} -> Done;
    Quit = "quit" {} -> Done;
    /// What the guest's shutdown, reboot, panic and watchdog lead to.
    SetAction = "set-action" { shutdown: Option<String>, reboot: Option<String>, panic: Option<String>, watchdog: Option<String> } -> Done;
    InjectNmi = "inject-nmi" {} -> Done;

    QueryName = "query-name" {} -> Name;
    QueryUuid = "query-uuid" {} -> UuidText;
    QueryCpusFast = "query-cpus-fast" {} -> Vec<Cpu>;
    QueryIothreads = "query-iothreads" {} -> Vec<Iothread>;
    QueryChardev = "query-chardev" {} -> Vec<Chardev>;
    QueryBalloon = "query-balloon" {} -> Balloon;
    /// `value` in bytes.
    SetBalloon = "balloon" { value: u64 } -> Done;
    QueryBlock = "query-block" {} -> Vec<Value>;
    QueryBlockstats = "query-blockstats" { query_nodes: Option<bool> } -> Vec<Value>;
    QueryNamedBlockNodes = "query-named-block-nodes" { flat: Option<bool> } -> Vec<Value>;
    QueryMigrate = "query-migrate" {} -> Value;
    QueryVnc = "query-vnc" {} -> Value;
    QueryRxFilter = "query-rx-filter" { name: Option<String> } -> Value;

    QomList = "qom-list" { path: String } -> Vec<Property>;
    QomGet = "qom-get" { path: String, property: String } -> Value;
    QomSet = "qom-set" { path: String, property: String, value: Value } -> Done;

    DeviceDel = "device_del" { id: String } -> Done;
    ObjectDel = "object-del" { id: String } -> Done;
    NetdevDel = "netdev_del" { id: String } -> Done;
    BlockdevDel = "blockdev-del" { node_name: String } -> Done;
    ChardevRemove = "chardev-remove" { id: String } -> Done;
    SetLink = "set_link" { name: String, up: bool } -> Done;
    /// The descriptor travels beside the command.
    Getfd = "getfd" { fdname: String } -> Done;
    Closefd = "closefd" { fdname: String } -> Done;
    AddFd = "add-fd" { fdset_id: Option<u64>, opaque: Option<String> } -> FdInfo;
    RemoveFd = "remove-fd" { fdset_id: u64, fd: Option<i64> } -> Done;

    Screendump = "screendump" { filename: String, device: Option<String>, head: Option<u64>, format: Option<String> } -> Done;
    SendKey = "send-key" { keys: Vec<Key>, hold_time: Option<u64> } -> Done;
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

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Iothread {
    pub id: String,
    pub thread_id: u32,
}

/// A character device; a pty's is `pty:/dev/pts/3`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chardev {
    pub label: String,
    pub filename: String,
    #[serde(default)]
    pub frontend_open: bool,
}

impl Chardev {
    /// The path of the terminal, if it is one.
    pub fn pty(&self) -> Option<&str> {
        self.filename.strip_prefix("pty:")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Balloon {
    /// Bytes.
    pub actual: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Property {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub description: Option<String>,
    pub default_value: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdInfo {
    pub fdset_id: u64,
    pub fd: i64,
}

/// One key, by number or by QEMU's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum Key {
    Number(u32),
    Qcode(String),
}
