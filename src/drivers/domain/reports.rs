//! What QEMU reports of a guest's images and memory, and nobody here has to do anything about.

use super::Domains;
use super::event::{DomainEvent, MemoryFailureAction, MemoryFailureRecipient};
use crate::conf::domain::Domain;
use crate::qemu::block::Nodes;
use crate::qemu::job::DomainObject;
use crate::qemu::monitor::MemoryFailureFlags;

impl Domains {
    /// The guest has written beyond the place that a client named: told of the disk and of its image by number.
    pub(super) fn note_threshold(&self, object: &DomainObject, node: &str, threshold: u64, excess: u64) {
        self.tell(object, |state| {
            let found = state.live.as_ref().and_then(|live| image_of(live, node));
            let names = found.as_ref().map_or(&[][..], |image| &image.names);
            let event = |device: &String| DomainEvent::BlockThreshold {
                device: device.clone(),
                path: found.as_ref().and_then(|image| image.path.clone()),
                threshold,
                excess,
            };
            names.iter().map(event).collect()
        });
    }

    pub(super) fn note_memory_failure(
        &self,
        object: &DomainObject,
        recipient: &str,
        action: &str,
        flags: MemoryFailureFlags,
    ) {
        let recipient = match recipient {
            "hypervisor" => MemoryFailureRecipient::Hypervisor,
            "guest" => MemoryFailureRecipient::Guest,
            _ => return,
        };
        let action = match action {
            "ignore" => MemoryFailureAction::Ignore,
            "inject" => MemoryFailureAction::Inject,
            "fatal" => MemoryFailureAction::Fatal,
            "reset" => MemoryFailureAction::Reset,
            _ => return,
        };
        // `virDomainMemoryFailureFlags`
        let flags = u32::from(flags.action_required) | u32::from(flags.recursive) << 1;
        self.tell(object, |_| vec![DomainEvent::MemoryFailure { recipient, action, flags }]);
    }
}

/// The image that a block node shows.
struct Image {
    /// What clients call it.
    names: Vec<String>,
    path: Option<String>,
}

fn image_of(live: &Domain, node: &str) -> Option<Image> {
    live.devices.disks.iter().find_map(|disk| {
        let below = disk.storage.layers().map(|layer| (&layer.storage, layer.format.kind));
        let mut images = std::iter::once((&disk.storage, disk.format())).chain(below);
        let (image, _) = images.find(|(image, format)| {
            Nodes::of(image, *format).is_some_and(|nodes| nodes.storage == node || nodes.top == node)
        })?;
        let is_top = std::ptr::eq(image, &disk.storage);
        let plain = is_top.then(|| disk.name().to_owned());
        let numbered = image.index.map(|index| format!("{}[{index}]", disk.name()));
        let path = image.path().map(str::to_owned);
        Some(Image { names: plain.into_iter().chain(numbered).collect(), path })
    })
}
