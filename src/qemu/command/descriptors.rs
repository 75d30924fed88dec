//! Files and sockets that QEMU gets as open descriptors.
//!
//! [`needs`] lists what must be opened before; the result is handed to [`super::build`] by alias, because
//! a descriptor keeps its number on the way to QEMU.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use super::Result;
use super::blockdev::images;
use super::interface::vdpa_name;
use super::secret::{Sealed, secrets};
use super::tpm;
use crate::conf::devices::{
    Card, CharBackend, CharSource, ConsoleType, DeviceInfo, HostdevSource, InterfaceKind, InterfaceSource,
    RngBackend, SourceMode, TpmBackend,
};
use crate::conf::domain::Domain;
use crate::conf::xml::{OnOff, YesNo};

/// Something to open for a device. Names are what [`Descriptors`] knows it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// A listening socket at `path`.
    ListenUnix { name: String, path: String },
    /// A file to write to: cut to nothing unless `append`.
    File { name: String, path: String, append: bool },
    /// A device of the host, to read and to write.
    Device { name: String, path: String },
    /// Where a command to the host's TPM is taken back.
    TpmCancel { name: String, device: String },
    /// An image that a client has handed over: its node, the group of its descriptors.
    Image { node: String, group: String },
    /// A network device with so many queues; `bridge` takes it, where there is one.
    Tap { alias: String, queues: u32 },
    /// The kernel's end of a vsock; an address is to be found where `cid` is none.
    Vsock { alias: String, cid: Option<u32> },
}

/// What stands behind a name of [`Need`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened(pub RawFd);

/// Open descriptors by the name of their need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptors {
    pub chardevs: BTreeMap<String, Opened>,
    pub interfaces: BTreeMap<String, InterfaceDescriptors>,
    pub vsocks: BTreeMap<String, VsockDescriptor>,
    pub images: BTreeMap<String, ImageDescriptors>,
    /// Values by the name of the object that has them.
    pub secrets: BTreeMap<String, Sealed>,
}

/// A way into a guest, and the address that is reserved for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VsockDescriptor {
    pub descriptor: RawFd,
    pub cid: u32,
}

/// One image's, and whether QEMU may write to it in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDescriptors {
    pub descriptors: Vec<RawFd>,
    pub writable: bool,
}

/// One network device's: a pair of queues each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceDescriptors {
    pub tap: Vec<RawFd>,
    pub vhost: Vec<RawFd>,
}

impl Descriptors {
    pub(super) fn chardev(&self, name: &str) -> Result<RawFd> {
        match self.chardevs.get(name) {
            Some(Opened(descriptor)) => Ok(*descriptor),
            None => super::internal(format!("no descriptor was opened for '{name}'")),
        }
    }
}

impl Descriptors {
    /// Something in the place of each, for arguments of which only the names count.
    pub fn placeholders(domain: &Domain) -> Self {
        let mut all = Self::default();
        all.secrets.extend(secrets(domain).into_iter().map(|need| (need.id, Sealed::default())));
        for need in &needs(domain) {
            match need {
                Need::ListenUnix { name, .. }
                | Need::File { name, .. }
                | Need::Device { name, .. }
                | Need::TpmCancel { name, .. } => {
                    all.chardevs.insert(name.clone(), Opened(-1));
                }
                Need::Image { node, .. } => {
                    let opened = ImageDescriptors { descriptors: vec![-1], writable: false };
                    all.images.insert(node.clone(), opened);
                }
                Need::Vsock { alias, cid } => {
                    let opened = VsockDescriptor { descriptor: -1, cid: cid.unwrap_or(3) };
                    all.vsocks.insert(alias.clone(), opened);
                }
                Need::Tap { alias, queues } => {
                    let tap = vec![-1; (*queues).min(MAX_QUEUES) as usize];
                    all.interfaces.insert(alias.clone(), InterfaceDescriptors { tap, vhost: Vec::new() });
                }
            }
        }
        all
    }
}

/// The kernel gives a tap device no more queues.
const MAX_QUEUES: u32 = 256;

/// The name of a character device's main descriptor.
pub(super) fn source_name(alias: &str) -> String {
    format!("{alias}-source")
}

/// The name of the file that gets a copy of what the guest writes.
pub(super) fn log_name(alias: &str) -> String {
    format!("{alias}-log")
}

/// What must be opened for `domain`, a running copy with aliases, in the order of the command line.
pub fn needs(domain: &Domain) -> Vec<Need> {
    let devices = &domain.devices;
    let mut list = Vec::new();
    for image in devices.disks.iter().flat_map(images) {
        if let (Some(group), Ok(node)) = (&image.storage.fdgroup, image.storage_name()) {
            list.push(Need::Image { node, group: group.to_string() });
        }
    }
    for interface in &devices.interfaces {
        if let InterfaceSource::Vdpa(path) = &interface.source {
            list.push(Need::Device { name: vdpa_name(&alias(&interface.info)), path: path.to_string() });
        }
        if has_tap(interface.kind) {
            let queues = interface.model.driver.queues.max(1);
            list.push(Need::Tap { alias: alias(&interface.info), queues });
        }
    }
    let serials = devices.serials.iter().map(|device| (&device.source, &device.info));
    let parallels = devices.parallels.iter().map(|device| (&device.source, &device.info));
    let channels = devices.channels.iter().map(|device| (&device.source, &device.info));
    let consoles = devices
        .consoles
        .iter()
        .filter(|console| console.target.kind == Some(ConsoleType::Virtio))
        .map(|device| (&device.source, &device.info));
    let rngs = devices.rngs.iter().filter_map(|rng| match &rng.backend {
        RngBackend::Egd(source) => Some((source, &rng.info)),
        _ => None,
    });
    for (source, info) in serials.chain(parallels).chain(channels).chain(consoles).chain(rngs) {
        chardev_needs(&mut list, source, &alias(info));
    }
    let redirdevs = devices.redirdevs.iter().map(|device| (&device.source, &device.info));
    let smartcards = devices.smartcards.iter().filter_map(|device| match &device.card {
        Card::Passthrough(source) => Some((source, &device.info)),
        _ => None,
    });
    for (source, info) in redirdevs.chain(smartcards) {
        chardev_needs(&mut list, source, &alias(info));
    }
    for hostdev in &devices.hostdevs {
        if matches!(hostdev.source, HostdevSource::VhostScsi(_)) {
            list.push(Need::Device { name: alias(&hostdev.info), path: "/dev/vhost-scsi".to_owned() });
        }
    }
    for tpm in &devices.tpms {
        if let TpmBackend::Passthrough(host) = &tpm.backend {
            let (alias, path) = (alias(&tpm.info), host.device.as_deref().unwrap_or_default().to_owned());
            list.push(Need::Device { name: tpm::device_name(&alias), path: path.clone() });
            list.push(Need::TpmCancel { name: tpm::cancel_name(&alias), device: path });
        }
    }
    for vsock in &devices.vsocks {
        let cid = vsock.cid.address.filter(|_| vsock.cid.auto != Some(YesNo::Yes));
        list.push(Need::Vsock { alias: alias(&vsock.info), cid });
    }
    list
}

fn has_tap(kind: InterfaceKind) -> bool {
    matches!(
        kind,
        InterfaceKind::Bridge | InterfaceKind::Ethernet | InterfaceKind::Network | InterfaceKind::Direct
    )
}

fn alias(info: &DeviceInfo) -> String {
    info.alias.as_deref().unwrap_or_default().to_owned()
}

fn chardev_needs(list: &mut Vec<Need>, source: &CharSource, alias: &str) {
    match &source.backend {
        CharBackend::File(file) => list.push(Need::File {
            name: source_name(alias),
            path: file.path.as_deref().unwrap_or_default().to_owned(),
            append: file.append == Some(OnOff::On),
        }),
        CharBackend::Unix(unix) if unix.mode == SourceMode::Bind => list.push(Need::ListenUnix {
            name: source_name(alias),
            path: unix.path.as_deref().unwrap_or_default().to_owned(),
        }),
        _ => {}
    }
    if let Some(log) = &source.log {
        list.push(Need::File {
            name: log_name(alias),
            path: log.file.as_deref().unwrap_or_default().to_owned(),
            append: log.append != Some(OnOff::Off),
        });
    }
}
