//! Images on this host: what lies below them, and the numbers of their block nodes.
//!
//! ```text
//!   number_images ─► detect_chain (per disk) ─► number_images
//!   what the definition names       what the images name
//! ```

mod chain;
mod layers;
mod passed;
mod probe;

pub use chain::{StorageError, detect_chain, read_header};
pub use layers::{Layers, as_defined};
pub use passed::{Group, Passed};
pub use probe::{Backing, Header, capacity, probe, read};

use crate::conf::devices::{Backing as Below, Disk, HostdevSource, Storage, StorageFormat};
use crate::conf::domain::Domain;
use crate::conf::storage::{Encryption, EncryptionFormat};
use crate::conf::xml::OnOff;

/// The names of an image's block nodes in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// The one that shows what the guest sees.
    pub top: String,
    /// The one that shows the file as it is.
    pub storage: String,
}

impl Nodes {
    /// Nothing before the guest was started.
    pub fn of(image: &Storage, format: StorageFormat) -> Option<Self> {
        let number = image.index?;
        let by_qemu = |it: &&Encryption| it.format == EncryptionFormat::Luks && !it.is_by_librbd();
        let is_luks = image.encryption.as_deref().as_ref().is_some_and(by_qemu);
        let kind = match image.slice {
            _ if format != StorageFormat::Raw || is_luks || image.fdgroup.is_some() => "format",
            Some(_) => "slice-sto",
            None => "storage",
        };
        Some(Self { top: format!("libvirt-{number}-{kind}"), storage: format!("libvirt-{number}-storage") })
    }
}

/// The node that the disk's device reads and writes.
pub fn device_node(disk: &Disk) -> Option<String> {
    match disk.driver.copy_on_read {
        Some(OnOff::On) => Some(format!("libvirt-CoR-{}", disk.name())),
        _ => Nodes::of(&disk.storage, disk.format()).map(|nodes| nodes.top),
    }
}

/// Gives block node numbers to the images that have none: the last disk first, each chain from its top.
/// `last` is the highest number ever used by the guest; it grows.
pub fn number_images(domain: &mut Domain, last: &mut u32) {
    for disk in domain.devices.disks.iter_mut().rev() {
        number_disk(disk, last);
    }
    for hostdev in &mut domain.devices.hostdevs {
        if let HostdevSource::Scsi(scsi) = &mut hostdev.source
            && scsi.index.is_none()
        {
            *last += 1;
            scsi.index = Some(*last);
        }
    }
}

/// As [`number_images`], for one disk.
pub fn number_disk(disk: &mut Disk, last: &mut u32) {
    let mut here: Option<&mut Storage> = Some(&mut disk.storage);
    while let Some(storage) = here {
        if storage.index.is_none() {
            *last += 1;
            storage.index = Some(*last);
        }
        here = match storage.backing.as_deref_mut() {
            Some(Below::Layer(layer)) => Some(&mut layer.storage),
            Some(Below::End) | None => None,
        };
    }
    for filter in disk.throttle_filters.0.iter_mut().filter(|filter| filter.node.is_none()) {
        *last += 1;
        filter.node = Some(format!("libvirt-{last}-filter").into());
    }
}
