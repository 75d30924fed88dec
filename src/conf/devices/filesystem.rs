//! `<filesystem>`: directories of the host in the guest.

use super::info::{DeviceInfo, VirtioOptions};
use super::raw::Raw;
use crate::conf::xml::{Element, OnOff, Part, Value, Writer, xml, xml_enum};
use crate::conf::{ConfError, ErrorKind, Result};

xml! {
    pub struct Filesystem {
        attr kind: FilesystemType = "type", or FilesystemType::Mount;
        attr access_mode: Option<AccessMode> = "accessmode";
        attr model: Option<FilesystemModel> = "model";
        attr multidevs: Option<Multidevs> = "multidevs";
        attr fmode: Option<FileMode> = "fmode";
        attr dmode: Option<FileMode> = "dmode";
        group driver: FilesystemDriver = "driver";
        group binary: FilesystemBinary = "binary";
        child idmap: Option<Box<FilesystemIdmap>> = "idmap";
        child source: Option<FilesystemSource> = "source";
        child_attr target: Option<Box<str>> = "target" / "dir";
        flag readonly: bool = "readonly";
        flat info: DeviceInfo;
        child space_hard_limit: Option<Box<Raw>> = "space_hard_limit";
        child space_soft_limit: Option<Box<Raw>> = "space_soft_limit";
        /// The socket of the process that serves a running guest's.
        skip socket: Option<Box<str>>;
    }
}

xml_enum! {
    pub enum FilesystemType {
        Mount = "mount",
        Block = "block",
        File = "file",
        Template = "template",
        Ram = "ram",
        Bind = "bind",
        Volume = "volume",
    }
}

xml_enum! {
    pub enum AccessMode {
        Passthrough = "passthrough",
        Mapped = "mapped",
        Squash = "squash",
    }
}

xml_enum! {
    pub enum FilesystemModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

xml_enum! {
    /// What becomes of files that another file system below the directory numbers alike.
    pub enum Multidevs {
        Default = "default",
        Remap = "remap",
        Forbid = "forbid",
        Warn = "warn",
    }
}

/// Permissions in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Value for FileMode {
    const EXPECTED: &'static str = " Expected non-negative integer value";

    fn parse(text: &str) -> Option<Self> {
        u32::from_str_radix(text.trim_start(), 8).ok().map(Self)
    }

    fn print(&self, out: &mut String) {
        use std::fmt::Write as _;
        let _ = write!(out, "{:04o}", self.0);
    }
}

xml! {
    #[derive(Default)]
    pub struct FilesystemDriver {
        attr kind: Option<FilesystemDriverType> = "type";
        attr format: Option<Box<str>> = "format";
        attr wrpolicy: Option<WritePolicy> = "wrpolicy";
        attr queue: Option<u64> = "queue";
        flat virtio: VirtioOptions;
    }
}

xml_enum! {
    pub enum FilesystemDriverType {
        Path = "path",
        Handle = "handle",
        Loop = "loop",
        Nbd = "nbd",
        Ploop = "ploop",
        Virtiofs = "virtiofs",
        Mtp = "mtp",
    }
}

xml_enum! {
    pub enum WritePolicy {
        Immediate = "immediate",
    }
}

xml! {
    /// The program that serves a virtiofs, and how.
    #[derive(Default)]
    pub struct FilesystemBinary {
        attr path: Option<Box<str>> = "path";
        attr xattr: Option<OnOff> = "xattr";
        child_attr cache: Option<CacheMode> = "cache" / "mode";
        child_attr sandbox: Option<SandboxMode> = "sandbox" / "mode";
        group lock: FilesystemLock = "lock";
        child_attr thread_pool: Option<i32> = "thread_pool" / "size";
        child_attr openfiles: Option<u64> = "openfiles" / "max";
    }
}

xml_enum! {
    pub enum CacheMode {
        None = "none",
        Always = "always",
    }
}

xml_enum! {
    pub enum SandboxMode {
        Namespace = "namespace",
        Chroot = "chroot",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct FilesystemLock {
        attr posix: Option<OnOff> = "posix";
        attr flock: Option<OnOff> = "flock";
    }
}

xml! {
    pub struct FilesystemIdmap {
        child uids: Vec<FilesystemIds> = "uid";
        child gids: Vec<FilesystemIds> = "gid";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct FilesystemIds {
        attr start: u32 = "start";
        attr target: u32 = "target";
        attr count: u32 = "count";
    }
}

/// The attributes depend on the type, of which only some can run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesystemSource {
    pub dir: Option<Box<str>>,
    /// Of a server that somebody else runs.
    pub socket: Option<Box<str>>,
    pub others: Vec<(Box<str>, Box<str>)>,
}

impl Part for FilesystemSource {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut source = Self::default();
        for (name, value) in element.attributes() {
            match name {
                "dir" => source.dir = Some(value.into()),
                "socket" => source.socket = Some(value.into()),
                "dev" | "file" | "name" | "usage" | "units" | "pool" | "volume" => {
                    source.others.push((name.into(), value.into()));
                }
                _ => {}
            }
        }
        Ok(source)
    }

    fn write_attributes(&self, out: &mut Writer) {
        match (&self.socket, &self.dir) {
            (Some(socket), _) => out.attribute("socket", socket),
            (None, Some(dir)) => out.attribute("dir", dir),
            (None, None) => {}
        }
        for (name, value) in &self.others {
            out.attribute(name, value);
        }
    }
}

impl Filesystem {
    pub fn is_virtiofs(&self) -> bool {
        self.driver.kind == Some(FilesystemDriverType::Virtiofs)
    }

    /// Refuses what reading alone does not.
    pub fn validate(&self) -> Result<()> {
        for (name, mode) in [("fmode", self.fmode), ("dmode", self.dmode)] {
            if let Some(FileMode(mode)) = mode.filter(|mode| mode.0 > 0o777) {
                return Err(ConfError::xml(format!("invalid {name}: '0{mode:o}'")));
            }
        }
        let has_source = self.source.is_some() || self.kind == FilesystemType::Ram;
        if !has_source {
            return Err(ConfError::new(ErrorKind::NoSource, self.target.as_deref().unwrap_or_default()));
        }
        let names_target =
            self.target.is_some() || self.source.as_ref().is_some_and(|it| it.socket.is_some());
        if !names_target {
            let dir = self.source.as_ref().and_then(|source| source.dir.as_deref()).unwrap_or_default();
            return Err(ConfError::new(ErrorKind::NoTarget, dir));
        }
        Ok(())
    }
}
