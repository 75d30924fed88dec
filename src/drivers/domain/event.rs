//! What subscribers hear about a domain, with libvirt's numbers.

use std::sync::Arc;

use crate::drivers::params::Params;
use crate::qemu::job::JobStatistics;
use crate::util::uuid::Uuid;

/// The domain an event is about, as it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRef {
    pub uuid: Uuid,
    pub name: Arc<str>,
    /// -1 while it does not run, as clients see it.
    pub id: i32,
}

/// An enum whose variants carry libvirt's numbers.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant = $number,)* }

        impl $name {
            pub fn number(self) -> i32 {
                self as i32
            }

            pub fn from_number(number: i32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered!(
    /// `virDomainEventID`: what a client registers for.
    EventId {
        Lifecycle = 0,
        Reboot = 1,
        RtcChange = 2,
        Watchdog = 3,
        IoError = 4,
        Graphics = 5,
        IoErrorReason = 6,
        ControlError = 7,
        BlockJob = 8,
        DiskChange = 9,
        TrayChange = 10,
        PmWakeup = 11,
        PmSuspend = 12,
        BalloonChange = 13,
        PmSuspendDisk = 14,
        DeviceRemoved = 15,
        BlockJob2 = 16,
        Tunable = 17,
        AgentLifecycle = 18,
        DeviceAdded = 19,
        MigrationIteration = 20,
        JobCompleted = 21,
        DeviceRemovalFailed = 22,
        MetadataChange = 23,
        BlockThreshold = 24,
        MemoryFailure = 25,
        MemoryDeviceSizeChange = 26,
        NicMacChange = 27,
    }
);

numbered!(Defined { Added = 0, Updated = 1, Renamed = 2, FromSnapshot = 3, });
numbered!(Undefined { Removed = 0, Renamed = 1, });
numbered!(Started { Booted = 0, Migrated = 1, Restored = 2, FromSnapshot = 3, Wakeup = 4, });
numbered!(Suspended {
    Paused = 0,
    Migrated = 1,
    IoError = 2,
    Watchdog = 3,
    Restored = 4,
    FromSnapshot = 5,
    ApiError = 6,
    Postcopy = 7,
    PostcopyFailed = 8,
});
numbered!(Resumed { Unpaused = 0, Migrated = 1, FromSnapshot = 2, Postcopy = 3, PostcopyFailed = 4, });
numbered!(Stopped {
    Shutdown = 0,
    Destroyed = 1,
    Crashed = 2,
    Migrated = 3,
    Saved = 4,
    Failed = 5,
    FromSnapshot = 6,
});
numbered!(Shutdown { Finished = 0, Guest = 1, Host = 2, });
numbered!(PmSuspended { Memory = 0, Disk = 1, });
numbered!(Crashed { Panicked = 0, Crashloaded = 1, });

/// `virDomainEventType` with its detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    Defined(Defined),
    Undefined(Undefined),
    Started(Started),
    Suspended(Suspended),
    Resumed(Resumed),
    Stopped(Stopped),
    Shutdown(Shutdown),
    PmSuspended(PmSuspended),
    Crashed(Crashed),
}

impl Lifecycle {
    /// Event and detail as they stand on the wire.
    pub fn numbers(self) -> (i32, i32) {
        match self {
            Self::Defined(detail) => (0, detail.number()),
            Self::Undefined(detail) => (1, detail.number()),
            Self::Started(detail) => (2, detail.number()),
            Self::Suspended(detail) => (3, detail.number()),
            Self::Resumed(detail) => (4, detail.number()),
            Self::Stopped(detail) => (5, detail.number()),
            Self::Shutdown(detail) => (6, detail.number()),
            Self::PmSuspended(detail) => (7, detail.number()),
            Self::Crashed(detail) => (8, detail.number()),
        }
    }
}

numbered!(
    /// `virDomainEventWatchdogAction`
    WatchdogAction { None = 0, Pause = 1, Reset = 2, Poweroff = 3, Shutdown = 4, Debug = 5, InjectNmi = 6, }
);
numbered!(
    /// `virDomainEventIOErrorAction`
    IoErrorAction { None = 0, Pause = 1, Report = 2, }
);
numbered!(
    /// `virDomainEventGraphicsPhase`
    GraphicsPhase { Connect = 0, Initialize = 1, Disconnect = 2, }
);
numbered!(
    /// `virDomainEventDiskChangeReason`
    DiskChangeReason { MissingOnStart = 0, DropMissingOnStart = 1, }
);
numbered!(
    /// `virDomainEventTrayChangeReason`
    TrayChange { Open = 0, Close = 1, }
);
numbered!(
    /// `virConnectDomainEventAgentLifecycleState`
    AgentState { Connected = 1, Disconnected = 2, }
);
numbered!(
    /// `virConnectDomainEventAgentLifecycleReason`
    AgentReason { Unknown = 0, DomainStarted = 1, Channel = 2, }
);
numbered!(
    /// `virDomainMetadataType`
    MetadataKind { Description = 0, Title = 1, Element = 2, }
);
numbered!(
    /// `virDomainBlockJobType`
    BlockJobKind { Unknown = 0, Pull = 1, Copy = 2, Commit = 3, ActiveCommit = 4, Backup = 5, }
);
numbered!(
    /// `virConnectDomainEventBlockJobStatus`
    BlockJobStatus { Completed = 0, Failed = 1, Canceled = 2, Ready = 3, }
);
numbered!(
    /// `virDomainEventMemoryFailureRecipientType`
    MemoryFailureRecipient { Hypervisor = 0, Guest = 1, }
);
numbered!(
    /// `virDomainEventMemoryFailureActionType`
    MemoryFailureAction { Ignore = 0, Inject = 1, Fatal = 2, Reset = 3, }
);

/// One end of a display connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphicsAddress {
    /// `virDomainEventGraphicsAddressType`: 0 IPv4, 1 IPv6, 2 unix.
    pub family: i32,
    pub node: String,
    pub service: String,
}

/// What happened to a domain.
#[derive(Debug, Clone, PartialEq)]
pub enum DomainEvent {
    Lifecycle(Lifecycle),
    Reboot,
    RtcChange {
        offset_s: i64,
    },
    Watchdog(WatchdogAction),
    /// Answers both forms that clients register for, with and without the reason.
    IoError {
        source: String,
        alias: String,
        action: IoErrorAction,
        reason: String,
    },
    Graphics {
        phase: GraphicsPhase,
        local: GraphicsAddress,
        remote: GraphicsAddress,
        auth_scheme: String,
        /// Pairs of kind and name (`x509dname`, `saslUsername`).
        subject: Vec<(String, String)>,
    },
    ControlError,
    /// Answers both forms: by the source's path, and by the target's name.
    BlockJob {
        /// Of an image on this host; the older form is about those only.
        path: Option<String>,
        target: String,
        kind: BlockJobKind,
        status: BlockJobStatus,
    },
    DiskChange {
        old_source: Option<String>,
        new_source: Option<String>,
        alias: String,
        reason: DiskChangeReason,
    },
    TrayChange {
        alias: String,
        change: TrayChange,
    },
    PmWakeup,
    PmSuspend,
    PmSuspendDisk,
    BalloonChange {
        actual_kib: u64,
    },
    DeviceRemoved {
        alias: String,
    },
    DeviceAdded {
        alias: String,
    },
    DeviceRemovalFailed {
        alias: String,
    },
    AgentLifecycle {
        state: AgentState,
        reason: AgentReason,
    },
    MigrationIteration {
        iteration: i32,
    },
    /// How a long operation went that has come to its end.
    JobCompleted {
        statistics: Arc<JobStatistics>,
    },
    MetadataChange {
        kind: MetadataKind,
        uri: Option<String>,
    },
    BlockThreshold {
        device: String,
        path: Option<String>,
        threshold: u64,
        excess: u64,
    },
    MemoryFailure {
        recipient: MemoryFailureRecipient,
        action: MemoryFailureAction,
        flags: u32,
    },
    MemoryDeviceSizeChange {
        alias: String,
        size_kib: u64,
    },
    /// What was changed of what a running guest may use.
    Tunable {
        params: Params,
    },
    NicMacChange {
        alias: String,
        old: String,
        new: String,
    },
    /// A QMP event as it came, for those who registered with the `qemu` program.
    Monitor {
        event: String,
        seconds: i64,
        micros: u32,
        /// The event's `data`, as JSON text.
        details: Option<String>,
    },
}

impl DomainEvent {
    /// Whether a client that registered for `id` hears this.
    pub fn answers(&self, id: EventId) -> bool {
        self.ids().contains(&id)
    }

    /// What clients call this kind; two for those that exist in an older and a newer form.
    pub fn ids(&self) -> &'static [EventId] {
        match self {
            Self::Lifecycle(_) => &[EventId::Lifecycle],
            Self::Reboot => &[EventId::Reboot],
            Self::RtcChange { .. } => &[EventId::RtcChange],
            Self::Watchdog(_) => &[EventId::Watchdog],
            Self::IoError { .. } => &[EventId::IoError, EventId::IoErrorReason],
            Self::Graphics { .. } => &[EventId::Graphics],
            Self::ControlError => &[EventId::ControlError],
            Self::BlockJob { path: None, .. } => &[EventId::BlockJob2],
            Self::BlockJob { .. } => &[EventId::BlockJob, EventId::BlockJob2],
            Self::DiskChange { .. } => &[EventId::DiskChange],
            Self::TrayChange { .. } => &[EventId::TrayChange],
            Self::PmWakeup => &[EventId::PmWakeup],
            Self::PmSuspend => &[EventId::PmSuspend],
            Self::PmSuspendDisk => &[EventId::PmSuspendDisk],
            Self::BalloonChange { .. } => &[EventId::BalloonChange],
            Self::DeviceRemoved { .. } => &[EventId::DeviceRemoved],
            Self::DeviceAdded { .. } => &[EventId::DeviceAdded],
            Self::DeviceRemovalFailed { .. } => &[EventId::DeviceRemovalFailed],
            Self::AgentLifecycle { .. } => &[EventId::AgentLifecycle],
            Self::MigrationIteration { .. } => &[EventId::MigrationIteration],
            Self::JobCompleted { .. } => &[EventId::JobCompleted],
            Self::MetadataChange { .. } => &[EventId::MetadataChange],
            Self::BlockThreshold { .. } => &[EventId::BlockThreshold],
            Self::MemoryFailure { .. } => &[EventId::MemoryFailure],
            Self::MemoryDeviceSizeChange { .. } => &[EventId::MemoryDeviceSizeChange],
            Self::Tunable { .. } => &[EventId::Tunable],
            Self::NicMacChange { .. } => &[EventId::NicMacChange],
            Self::Monitor { .. } => &[],
        }
    }
}
