//! What the generator says about a procedure: one type each, with its facts as constants.

use crate::xdr::{Decode, Encode};

/// An RPC program: one interface, numbered and versioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Program {
    pub number: u32,
    pub version: u32,
    /// As it stands in log lines: `remote`, `qemu`, `admin`, `keepalive`.
    pub name: &'static str,
}

/// Whether a call may wait for a guest. A high one never does, so libvirt keeps a few workers for those
/// alone: they answer while every other worker waits for a guest that hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Low,
    High,
}

/// One access check: the object's class, the permission, and when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acl {
    /// `domain`, `connect`, `storage_pool`, … as in libvirt's access driver.
    pub object: &'static str,
    /// `getattr`, `read`, `write`, `start`, …
    pub permission: &'static str,
    pub when: When,
}

/// When a check is asked, decided by one argument of the call (its `flags`, for nearly all).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// All these bits are set.
    Set(u32),
    /// None of these bits is set.
    Clear(u32),
    Equals(u32),
}

impl When {
    /// `word` is what [`Procedure::deciding`] answers.
    pub fn holds(self, word: u32) -> bool {
        match self {
            Self::Always => true,
            Self::Set(mask) => word & mask == mask,
            Self::Clear(mask) => word & mask == 0,
            Self::Equals(value) => word == value,
        }
    }
}

/// What travels beside arguments and reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Plain,
    /// A stream of data from the daemon to the client follows.
    StreamDown,
    /// A stream of data from the client to the daemon follows.
    StreamUp,
    /// Data both ways (console, channel).
    StreamBoth,
    /// Descriptors may come with the call or the reply.
    WithFds,
}

/// The traffic of a procedure as a type, so that a router can refuse the wrong kind of handler.
pub trait Kind: 'static {
    const TRAFFIC: Traffic;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl Kind for $name {
            const TRAFFIC: Traffic = Traffic::$name;
        }
    )*};
}

kinds!(
    /// Arguments and a reply, nothing else.
    Plain,
    /// The daemon sends data.
    StreamDown,
    /// The client sends data.
    StreamUp,
    /// Both send data.
    StreamBoth,
    /// Descriptors travel along.
    WithFds
);

/// An object that a call's arguments name, and that its access checks are about.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    Domain(&'a crate::remote::Domain),
    StoragePool(&'a crate::remote::StoragePool),
    StorageVol(&'a crate::remote::StorageVol),
    Secret(&'a crate::remote::Secret),
}

/// Finds a call's subject in its arguments.
pub type FindSubject<Args> = for<'a> fn(&'a Args) -> Subject<'a>;

/// A call a client may make.
pub trait Procedure: 'static {
    const PROGRAM: Program;
    const NUMBER: i32;
    /// As in the `.x` text, without the program's prefix: `domain_create`.
    const NAME: &'static str;
    /// The function of libvirt's API behind it: `virDomainCreate`.
    const API: &'static str;
    const PRIORITY: Priority;
    /// All must hold.
    const ACL: &'static [Acl];
    /// Where the arguments name what the checks are about. `None` where only a look into a definition, a file
    /// or a list tells.
    const SUBJECT: Option<FindSubject<Self::Args>> = None;
    /// Its arguments or its reply are wiped from memory after the call.
    const IS_SECRET: bool = false;
    type Kind: Kind;
    type Args: Encode + Decode + Send + Sync + 'static;
    type Ret: Encode + Decode + Send + Sync + 'static;

    /// The argument that decides which conditional checks of [`Self::ACL`] are asked.
    fn deciding(_: &Self::Args) -> u32 {
        0
    }
}

/// A message that the daemon sends on its own.
pub trait Event: 'static {
    const PROGRAM: Program;
    const NUMBER: i32;
    const NAME: &'static str;
    type Message: Encode + Decode + Send + Sync + 'static;
}

/// A procedure's facts as a value, for tables over all of them (unknown or unsupported calls, `SUPPORTED.md`).
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub number: i32,
    pub name: &'static str,
    /// Empty for events.
    pub api: &'static str,
    pub priority: Priority,
    pub acl: &'static [Acl],
    pub traffic: Traffic,
    pub is_secret: bool,
    /// Sent by the daemon, never called.
    pub is_event: bool,
}

impl Entry {
    pub const fn call<P: Procedure>() -> Self {
        Self {
            number: P::NUMBER,
            name: P::NAME,
            api: P::API,
            priority: P::PRIORITY,
            acl: P::ACL,
            traffic: P::Kind::TRAFFIC,
            is_secret: P::IS_SECRET,
            is_event: false,
        }
    }

    pub const fn event<E: Event>() -> Self {
        Self {
            number: E::NUMBER,
            name: E::NAME,
            api: "",
            priority: Priority::Low,
            acl: &[],
            traffic: Traffic::Plain,
            is_secret: false,
            is_event: true,
        }
    }
}

/// The entry of a number in a table sorted by it.
pub fn find(entries: &'static [Entry], number: i32) -> Option<&'static Entry> {
    entries.binary_search_by_key(&number, |entry| entry.number).ok().and_then(|index| entries.get(index))
}
