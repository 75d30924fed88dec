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

/// Whether a call may wait for a guest. libvirt keeps workers free for high ones.
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
    /// Asked only when the named flag is set in the call's `flags` (`!` in front: only when it is not).
    pub when: Option<&'static str>,
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
pub trait Kind {
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
    type Kind: Kind;
    type Args: Encode + Decode + Send + 'static;
    type Ret: Encode + Decode + Send + 'static;
}

/// A message that the daemon sends on its own.
pub trait Event: 'static {
    const PROGRAM: Program;
    const NUMBER: i32;
    const NAME: &'static str;
    type Message: Encode + Decode + Send + 'static;
}

/// A procedure's facts as a value, for tables over all of them (unknown or unsupported calls, `SUPPORTED.md`).
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub number: i32,
    pub name: &'static str,
    pub api: &'static str,
    pub priority: Priority,
    pub acl: &'static [Acl],
    pub traffic: Traffic,
    /// Sent by the daemon, never called.
    pub is_event: bool,
}
