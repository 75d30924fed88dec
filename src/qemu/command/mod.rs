//! QEMU's command line as a pure function of a guest's running definition, the binary's capabilities and
//! what was decided before.
//!
//! Names, properties and order are the guest's ABI: a guest that moves between this daemon and libvirt
//! must find the same machine, so the arguments are libvirt's, checked against its logs over the whole
//! corpus of `tests/data/domain`.
//!
//! ```text
//!   definition ─prepare─► running copy ─┐
//!   QemuCaps ───────────────────────────┼─build─► CommandLine ─► qemu/process
//!   Context (descriptors, paths) ───────┘
//! ```
//!
//! # How to add a device
//!
//! One file with `pub(super) fn build(guest: &Guest<'_>, line: &mut Line) -> Result<()>` and one line in
//! [`STEPS`], where libvirt has it in its order. Tests come with the definition in the corpus.

mod address;
mod audio;
mod balloon;
mod blockdev;
mod boot;
mod chardev;
mod clock;
mod controller;
mod cpu;
mod crypto;
mod descriptors;
mod disk;
mod filesystem;
mod graphics;
mod hostdev;
mod input;
mod interface;
mod iommu;
mod launch_security;
mod line;
mod machine;
mod memory;
mod memory_device;
mod numa;
mod panic;
mod pstore;
mod redirection;
mod remote;
mod rng;
mod secret;
mod serial;
mod shmem;
mod smartcard;
mod smbios;
mod sound;
mod spice;
#[cfg(test)]
pub(crate) mod tests;
mod tpm;
mod video;
mod vsock;
mod watchdog;

pub(crate) use address::{has_builtin_ide, is_q35};
pub use blockdev::throttle_limits;
pub(crate) use cpu::libvirt_feature;
pub use descriptors::{
    Descriptors, ImageDescriptors, InterfaceDescriptors, Need, Opened, VsockDescriptor, needs,
};
pub use line::Props;
pub use memory::is_in_files as has_memory_in_files;
pub use secret::{Sealed, SecretNeed, SecretSource, secrets};

use std::os::fd::RawFd;
use std::path::Path;

use thiserror::Error;

use crate::conf::domain::{Domain, Placement};
use crate::qemu::capabilities::{Accel, Cap, QemuCaps};
use crate::qemu::hugepages::Hugetlbfs;
use crate::util::bitmap::Bitmap;
use crate::util::paths::Scope;

use line::Line;

/// Why there is no command line for a guest. The texts are libvirt's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    #[error("{0}")]
    Unsupported(String),
    /// `VIR_ERR_INVALID_ARG`
    #[error("{0}")]
    InvalidArg(String),
    /// `VIR_ERR_OPERATION_FAILED`
    #[error("{0}")]
    Failed(String),
    /// `VIR_ERR_INTERNAL_ERROR`: the definition was not completed before.
    #[error("{0}")]
    Internal(String),
}

pub(super) type Result<T, E = CommandError> = std::result::Result<T, E>;

/// What the command line needs and the definition does not say.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    pub scope: Scope,
    /// The guest's own directory, `domain-ID-NAME`.
    pub state_dir: &'a Path,
    /// Where memory is that is in files, `ram/ID-NAME`.
    pub memory_dir: &'a Path,
    /// A listening socket for QMP.
    pub monitor: RawFd,
    pub descriptors: &'a Descriptors,
    pub sandbox: Sandbox,
    /// Seconds since 1970, from which a clock with an offset starts.
    pub now_s: i64,
    /// Offset of the host's local time from UTC.
    pub local_offset_s: i64,
    /// Where an incoming migration comes from, such as `defer`.
    pub incoming: Option<&'a str>,
    /// Variables of the daemon's own environment that every guest gets, such as `PATH`.
    pub settings: &'a Settings,
    pub inherited_env: &'a [(String, String)],
}

/// What the daemon's configuration says of all guests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// SPICE screens without a password of their own have this one.
    pub spice_password: Option<String>,
    /// Where the certificates of encrypted SPICE screens are; screens are encrypted where there are any.
    pub spice_tls_dir: Option<String>,
    /// Users of SPICE and VNC screens prove who they are, by the configuration in this directory.
    pub spice_sasl_dir: Option<String>,
    pub vnc_sasl_dir: Option<String>,
    /// Where the certificates of encrypted VNC screens are, and whether clients need one as well.
    pub vnc_tls_dir: Option<String>,
    pub vnc_tls_verify: bool,
    /// Where the certificates are that servers of disks are shown.
    pub nbd_tls_dir: Option<String>,
    /// Streams over TCP are encrypted unless they say otherwise, with the certificates in this directory.
    pub chardev_tls: bool,
    pub chardev_tls_dir: Option<String>,
    /// Where the host has huge pages, those of the default size first; nothing where nobody looked.
    pub hugetlbfs: Option<Vec<Hugetlbfs>>,
    /// The NUMA nodes of the host; nothing where nobody looked.
    pub numa_nodes: Option<Vec<HostNode>>,
    /// The host's NUMA nodes for guests that leave the choice to it; nothing where nobody chooses.
    pub placement_advice: Option<Bitmap>,
    /// Guests' memory is in core dumps unless a definition says otherwise.
    pub dump_guest_core: bool,
}

/// A NUMA node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    pub id: usize,
    pub cpus: Bitmap,
}

impl Settings {
    /// What holds where nothing is configured.
    pub const NONE: Self = Self {
        spice_password: None,
        spice_tls_dir: None,
        spice_sasl_dir: None,
        vnc_sasl_dir: None,
        vnc_tls_dir: None,
        vnc_tls_verify: false,
        nbd_tls_dir: None,
        chardev_tls: false,
        chardev_tls_dir: None,
        hugetlbfs: None,
        numa_nodes: None,
        placement_advice: None,
        dump_guest_core: false,
    };
}

/// Whether QEMU gives up system calls that it does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sandbox {
    #[default]
    On,
    Off,
}

/// What to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub program: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// What every step sees.
pub(crate) struct Guest<'a> {
    pub(super) domain: &'a Domain,
    pub(super) caps: &'a QemuCaps,
    pub(super) context: &'a Context<'a>,
    /// Place in the boot order by alias, for guests that name kinds of devices instead.
    pub(super) boot: boot::BootOrder,
}

impl Guest<'_> {
    pub(super) fn accel(&self) -> Accel {
        accel_of(self.domain)
    }

    /// Whether the binary can do it, unless the definition says otherwise.
    pub(super) fn supports(&self, cap: Cap) -> bool {
        let names = |list: &[Box<str>]| list.iter().any(|name| **name == *cap.as_str());
        match self.domain.qemu.0.as_deref() {
            Some(extras) if names(&extras.capabilities_removed) => false,
            Some(extras) if names(&extras.capabilities_added) => true,
            _ => self.caps.supports(cap),
        }
    }

    pub(super) fn machine(&self) -> &str {
        self.domain.os.os_type.machine.as_deref().unwrap_or_default()
    }
}

/// How a guest of this type is executed.
pub fn accel_of(domain: &Domain) -> Accel {
    match domain.virt_type {
        crate::conf::domain::VirtType::Kvm => Accel::Kvm,
        _ => Accel::Tcg,
    }
}

type Step = fn(&Guest<'_>, &mut Line) -> Result<()>;

/// The parts of the command line, in libvirt's order.
const STEPS: &[Step] = &[
    machine::name,
    machine::deprecation,
    machine::stopped,
    machine::master_key,
    boot::flash,
    machine::machine,
    machine::accel,
    machine::tseg,
    cpu::build,
    boot::firmware,
    memory::build,
    cpu::topology,
    memory::iothreads,
    blockdev::throttle_groups,
    numa::build,
    machine::uuid,
    smbios::build,
    smbios::firmware_config,
    machine::generation_id,
    machine::display,
    machine::monitor,
    clock::build,
    machine::power_management,
    boot::build,
    iommu::build,
    controller::global,
    controller::build,
    memory_device::build,
    controller::hubs,
    controller::ccid,
    disk::build,
    filesystem::build,
    interface::build,
    smartcard::build,
    serial::serials,
    serial::parallels,
    serial::channels,
    serial::consoles,
    tpm::build,
    input::build,
    audio::build,
    graphics::build,
    video::build,
    sound::build,
    watchdog::build,
    redirection::build,
    interface::cards_of_host,
    hostdev::build,
    machine::incoming,
    balloon::build,
    rng::build,
    machine::vmcoreinfo,
    launch_security::build,
    machine::extra_arguments,
    machine::sandbox,
    panic::build,
    shmem::build,
    vsock::build,
    crypto::build,
    pstore::build,
    machine::teardown,
    machine::message_format,
];

/// The command line of `domain`: a running copy with aliases, addresses, ports and node numbers.
pub fn build(domain: &Domain, caps: &QemuCaps, context: &Context<'_>) -> Result<CommandLine> {
    refuse_unsupported(domain)?;
    let memory = domain.numatune.as_deref().and_then(|numatune| numatune.memory.as_ref());
    let is_automatic = memory.is_some_and(|memory| memory.placement == Some(Placement::Auto))
        || domain.vcpus.placement == Placement::Auto;
    if is_automatic && context.settings.placement_advice.is_none() {
        return unsupported("numad is not available on this host");
    }
    let guest = Guest { domain, caps, context, boot: boot::BootOrder::of(domain) };
    let mut line = Line::new(domain.qemu.0.as_deref());
    machine::environment(&guest, &mut line);
    for step in STEPS {
        step(&guest, &mut line)?;
    }
    let program = domain.devices.emulator.as_deref().unwrap_or_default().to_owned();
    Ok(CommandLine { program, args: line.args, env: line.env })
}

/// The parts of the command line that are devices which can come later.
const PLUGGABLE: &[Step] = &[
    controller::build,
    memory_device::build,
    disk::build,
    filesystem::build,
    interface::build,
    serial::serials,
    serial::parallels,
    serial::channels,
    serial::consoles,
    input::build,
    watchdog::build,
    redirection::build,
    interface::cards_of_host,
    hostdev::build,
    rng::build,
    shmem::build,
    vsock::build,
];

/// The arguments of the devices of `domain` alone. Sets of descriptors are numbered from `fd_sets`.
pub fn devices(domain: &Domain, caps: &QemuCaps, context: &Context<'_>, fd_sets: u32) -> Result<Vec<String>> {
    let guest = Guest { domain, caps, context, boot: boot::BootOrder::of(domain) };
    let mut line = Line::new(domain.qemu.0.as_deref());
    line.fd_sets = fd_sets;
    for step in PLUGGABLE {
        step(&guest, &mut line)?;
    }
    Ok(line.args)
}

/// Parts of a definition that are kept but cannot be started.
fn refuse_unsupported(domain: &Domain) -> Result<()> {
    if let Some(kind) = domain.devices.unsupported().next() {
        return unsupported(format!("device type '{kind}' is not supported"));
    }
    Ok(())
}

fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(CommandError::Unsupported(message.into()))
}

fn internal<T>(message: impl Into<String>) -> Result<T> {
    Err(CommandError::Internal(message.into()))
}
