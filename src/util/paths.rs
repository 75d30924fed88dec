//! Where the daemon keeps what: libvirt's directories, below a private root where one is given.
//!
//! | | system | session | `--root DIR` |
//! |---|---|---|---|
//! | config | /etc/libvirt | $XDG_CONFIG_HOME/libvirt | DIR/etc/libvirt |
//! | state | /var/lib/libvirt | $XDG_CONFIG_HOME/libvirt | DIR/var/lib/libvirt |
//! | runtime | /run/libvirt | $XDG_RUNTIME_DIR/libvirt | DIR/run/libvirt |
//! | log | /var/log/libvirt | $XDG_CACHE_HOME/libvirt | DIR/var/log/libvirt |
//! | cache | /var/cache/libvirt | $XDG_CACHE_HOME/libvirt | DIR/var/cache/libvirt |
//! | pki | /etc/pki | /etc/pki | DIR/etc/pki |
//! | sasl | /etc/sasl2 | /etc/sasl2 | DIR/etc/sasl2 |

use std::path::{Path, PathBuf};

/// Which of the two connections a daemon serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `qemu:///system`
    System,
    /// `qemu:///session`
    Session,
}

/// The daemon's directories. The drivers below them (`qemu`, `storage`, …) add their own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub scope: Scope,
    pub config: PathBuf,
    pub state: PathBuf,
    pub runtime: PathBuf,
    pub log: PathBuf,
    pub cache: PathBuf,
    /// Certificates of the host.
    pub pki: PathBuf,
    /// Configuration of SASL.
    pub sasl: PathBuf,
    /// The directory of the daemon's own pid file: /run, or the runtime directory of a session.
    pub pidfile: PathBuf,
    /// Lock files of terminals, shared with every other program of the host.
    pub locks: PathBuf,
}

impl Paths {
    /// The system daemon's, with everything moved below `root` (`/` for the real ones).
    pub fn system(root: &Path) -> Self {
        let below = |path: &str| root.join(path);
        Self {
            scope: Scope::System,
            config: below("etc/libvirt"),
            state: below("var/lib/libvirt"),
            runtime: below("run/libvirt"),
            log: below("var/log/libvirt"),
            cache: below("var/cache/libvirt"),
            pki: below("etc/pki"),
            sasl: below("etc/sasl2"),
            pidfile: below("run"),
            locks: below("var/lock"),
        }
    }

    /// A user's, from the three XDG base directories.
    pub fn session(config_home: &Path, cache_home: &Path, runtime_dir: &Path) -> Self {
        Self {
            scope: Scope::Session,
            config: config_home.join("libvirt"),
            state: config_home.join("libvirt"),
            runtime: runtime_dir.join("libvirt"),
            log: cache_home.join("libvirt"),
            cache: cache_home.join("libvirt"),
            pki: "/etc/pki".into(),
            sasl: "/etc/sasl2".into(),
            pidfile: runtime_dir.join("libvirt"),
            locks: "/var/lock".into(),
        }
    }

    /// Persistent guest definitions: `NAME.xml`.
    pub fn qemu_config(&self) -> PathBuf {
        self.config.join("qemu")
    }

    /// Links to the definitions that start with the host.
    pub fn qemu_autostart(&self) -> PathBuf {
        self.qemu_config().join("autostart")
    }

    /// Status files and pid files of running guests.
    pub fn qemu_runtime(&self) -> PathBuf {
        match self.scope {
            Scope::System => self.runtime.join("qemu"),
            Scope::Session => self.runtime.join("qemu/run"),
        }
    }

    /// Per-guest directories `domain-ID-NAME` with sockets and keys live below this one.
    pub fn qemu_state(&self) -> PathBuf {
        self.state.join("qemu")
    }

    /// One log file per guest: `NAME.log`.
    pub fn qemu_log(&self) -> PathBuf {
        self.log.join("qemu")
    }

    /// Results of probing QEMU binaries.
    pub fn qemu_cache(&self) -> PathBuf {
        self.cache.join("qemu")
    }
}
