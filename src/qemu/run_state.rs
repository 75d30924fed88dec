//! What a guest is doing and why, with libvirt's numbers (for clients) and names (for status files).
//!
//! ```text
//!  shutoff ──start──► paused (starting up) ──cont──► running ◄──► paused
//!     ▲                                                │  │
//!     └──── process gone ◄── shutdown ◄── guest off ───┘  └── panic ──► crashed
//! ```

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $number:literal $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant = $number,)* }

        impl $name {
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    )*};
}

reasons!(
    Running {
        Unknown = 0 "unknown",
        Booted = 1 "booted",
        Migrated = 2 "migrated",
        Restored = 3 "restored",
        FromSnapshot = 4 "from snapshot",
        Unpaused = 5 "unpaused",
        MigrationCanceled = 6 "migration canceled",
        SaveCanceled = 7 "save canceled",
        Wakeup = 8 "wakeup",
        Crashed = 9 "crashed",
        Postcopy = 10 "post-copy",
        PostcopyFailed = 11 "post-copy failed",
    }
    Blocked { Unknown = 0 "unknown", }
    Paused {
        Unknown = 0 "unknown",
        User = 1 "user",
        Migration = 2 "migration",
        Save = 3 "save",
        Dump = 4 "dump",
        IoError = 5 "ioerror",
        Watchdog = 6 "watchdog",
        FromSnapshot = 7 "from snapshot",
        ShuttingDown = 8 "shutdown",
        Snapshot = 9 "snapshot",
        Crashed = 10 "panicked",
        StartingUp = 11 "starting up",
        Postcopy = 12 "post-copy",
        PostcopyFailed = 13 "post-copy failed",
        ApiError = 14 "api error",
    }
    Shutdown { Unknown = 0 "unknown", User = 1 "user", }
    Shutoff {
        Unknown = 0 "unknown",
        Shutdown = 1 "shutdown",
        Destroyed = 2 "destroyed",
        Crashed = 3 "crashed",
        Migrated = 4 "migrated",
        Saved = 5 "saved",
        Failed = 6 "failed",
        FromSnapshot = 7 "from snapshot",
        Daemon = 8 "daemon",
    }
    Crashed { Unknown = 0 "unknown", Panicked = 1 "panicked", }
    PmSuspended { Unknown = 0 "unknown", }
);

/// `virDomainState` with the reason that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running(Running),
    Blocked(Blocked),
    Paused(Paused),
    /// The guest has powered off; its process is about to end.
    Shutdown(Shutdown),
    Shutoff(Shutoff),
    Crashed(Crashed),
    PmSuspended(PmSuspended),
}

impl RunState {
    /// State and reason as clients get them.
    pub fn numbers(self) -> (i32, i32) {
        match self {
            Self::Running(reason) => (1, reason as i32),
            Self::Blocked(reason) => (2, reason as i32),
            Self::Paused(reason) => (3, reason as i32),
            Self::Shutdown(reason) => (4, reason as i32),
            Self::Shutoff(reason) => (5, reason as i32),
            Self::Crashed(reason) => (6, reason as i32),
            Self::PmSuspended(reason) => (7, reason as i32),
        }
    }

    /// State and reason as they stand in status files.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Running(reason) => ("running", reason.name()),
            Self::Blocked(reason) => ("blocked", reason.name()),
            Self::Paused(reason) => ("paused", reason.name()),
            Self::Shutdown(reason) => ("shutdown", reason.name()),
            Self::Shutoff(reason) => ("shutoff", reason.name()),
            Self::Crashed(reason) => ("crashed", reason.name()),
            Self::PmSuspended(reason) => ("pmsuspended", reason.name()),
        }
    }

    pub fn from_names(state: &str, reason: &str) -> Option<Self> {
        Some(match state {
            "running" => Self::Running(Running::from_name(reason)?),
            "blocked" => Self::Blocked(Blocked::from_name(reason)?),
            "paused" => Self::Paused(Paused::from_name(reason)?),
            "shutdown" => Self::Shutdown(Shutdown::from_name(reason)?),
            "shutoff" => Self::Shutoff(Shutoff::from_name(reason)?),
            "crashed" => Self::Crashed(Crashed::from_name(reason)?),
            "pmsuspended" => Self::PmSuspended(PmSuspended::from_name(reason)?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_of_a_few() {
        for (state, numbers, names) in [
            (RunState::Running(Running::Booted), (1, 1), ("running", "booted")),
            (RunState::Paused(Paused::StartingUp), (3, 11), ("paused", "starting up")),
            (RunState::Paused(Paused::Crashed), (3, 10), ("paused", "panicked")),
            (RunState::Shutoff(Shutoff::Daemon), (5, 8), ("shutoff", "daemon")),
            (RunState::Crashed(Crashed::Panicked), (6, 1), ("crashed", "panicked")),
        ] {
            assert_eq!((state.numbers(), state.names()), (numbers, names));
            assert_eq!(RunState::from_names(names.0, names.1), Some(state));
        }
        assert_eq!(RunState::from_names("running", "panicked"), None);
        assert_eq!(RunState::from_names("nostate", "unknown"), None);
    }
}
