//! What a job is for, as values for the slots and as types for the guards.

/// What a normal job is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Query,
    Modify,
    Suspend,
    Abort,
    MigrationOp,
    MigrationSafe,
    Destroy,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Modify,
        Self::Suspend,
        Self::Abort,
        Self::MigrationOp,
        Self::MigrationSafe,
        Self::Destroy,
    ];

    /// As it stands in log lines and status files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Modify => "modify",
            Self::Suspend => "suspend",
            Self::Abort => "abort",
            Self::MigrationOp => "migration operation",
            Self::MigrationSafe => "modify migration safe",
            Self::Destroy => "destroy",
        }
    }
}

/// The normal jobs that an async operation lets through. Destroy always gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed(u8);

impl Allowed {
    pub const DESTROY_ONLY: Self = Self::of(&[]);
    /// Reading, aborting and destroying.
    pub const USUAL: Self = Self::of(&[Kind::Query, Kind::Abort]);

    pub const fn of(kinds: &[Kind]) -> Self {
        let mut bits = 1 << Kind::Destroy as u8;
        let mut at = 0;
        while at < kinds.len() {
            bits |= 1 << kinds[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    pub const fn and(self, kinds: &[Kind]) -> Self {
        Self(self.0 | Self::of(kinds).0)
    }

    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
}

/// A long operation that spans several normal jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Start,
    Save,
    Dump,
    Snapshot,
    Backup,
    MigrationOut,
    MigrationIn,
}

impl Operation {
    pub const ALL: [Self; 7] = [
        Self::Start,
        Self::Save,
        Self::Dump,
        Self::Snapshot,
        Self::Backup,
        Self::MigrationOut,
        Self::MigrationIn,
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// As it stands in log lines and status files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Save => "save",
            Self::Dump => "dump",
            Self::Snapshot => "snapshot",
            Self::Backup => "backup",
            Self::MigrationOut => "migration out",
            Self::MigrationIn => "migration in",
        }
    }
}

/// How far a parked operation has come; named as in status files (`begin3`, `perform3_done`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Phase(pub &'static str);

mod sealed {
    pub trait Sealed {}
}

/// A kind of normal job as a type: `handle.begin::<Modify>()`.
pub trait Beginnable: sealed::Sealed + Send + Sync + 'static {
    const KIND: Kind;
}

/// Kinds that may change a domain's state.
pub trait Writes: Beginnable {}

/// An async operation as a type: `handle.begin_async::<Start>()`.
pub trait AsyncOp: sealed::Sealed + Send + Sync + 'static {
    const OPERATION: Operation;
    /// What gets through from the beginning; the owner may change it on the way.
    const ALLOWED: Allowed;
}

macro_rules! normal {
    ($($(#[$doc:meta])* $name:ident $(: $writes:ident)?),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl sealed::Sealed for $name {}

        impl Beginnable for $name {
            const KIND: Kind = Kind::$name;
        }

        $(impl $writes for $name {})?
    )*};
}

normal!(
    /// Asks the monitor, changes nothing.
    Query,
    /// Changes the domain.
    Modify: Writes,
    /// Stops or continues the vCPUs.
    Suspend: Writes,
    /// Cancels the async operation.
    Abort,
    /// Steers an outgoing migration.
    MigrationOp: Writes,
    /// Changes that a migration does not mind.
    MigrationSafe: Writes,
    /// Ends the guest; no operation can keep it out.
    Destroy: Writes
);

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $allowed:expr),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl sealed::Sealed for $name {}

        impl AsyncOp for $name {
            const OPERATION: Operation = Operation::$name;
            const ALLOWED: Allowed = $allowed;
        }
    )*};
}

operations!(
    /// From nothing to a running guest.
    Start: Allowed::DESTROY_ONLY,
    /// Into a file, to be restored later.
    Save: Allowed::USUAL,
    /// Memory into a file; the guest may run on.
    Dump: Allowed::USUAL.and(&[Kind::Suspend, Kind::MigrationOp]),
    /// Disks, memory or both at one point in time.
    Snapshot: Allowed::USUAL,
    /// Disk contents out to files or an NBD server, for as long as the client reads.
    Backup: Allowed::USUAL.and(&[Kind::Suspend, Kind::Modify]),
    /// To another host.
    MigrationOut: Allowed::DESTROY_ONLY,
    /// From another host.
    MigrationIn: Allowed::DESTROY_ONLY
);
