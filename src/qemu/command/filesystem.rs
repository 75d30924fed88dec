//! Directories of the host.

use super::address::Generation;
use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, unsupported};
use crate::conf::devices::{
    Filesystem, FilesystemDriverType, FilesystemModel, FilesystemType, Multidevs, WritePolicy,
};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for filesystem in &guest.domain.devices.filesystems {
        match filesystem.driver.kind {
            None | Some(FilesystemDriverType::Path | FilesystemDriverType::Handle) => {
                plan9(guest, line, filesystem)?;
            }
            Some(FilesystemDriverType::Virtiofs) => virtiofs(guest, line, filesystem)?,
            Some(FilesystemDriverType::Mtp) => {
                let source = filesystem.source.as_ref().and_then(|source| source.dir.as_deref());
                let props = Props::driver("usb-mtp")
                    .set("id", guest.alias(&filesystem.info)?)
                    .set("rootdir", source.unwrap_or_default())
                    .maybe("desc", filesystem.target.as_deref())
                    .set("readonly", filesystem.readonly);
                line.device(guest.at(props, &filesystem.info)?);
            }
            Some(kind) => return unsupported(format!("Filesystem driver type not supported: {kind}")),
        }
    }
    Ok(())
}

/// QEMU itself serves it.
fn plan9(guest: &Guest<'_>, line: &mut Line<'_>, filesystem: &Filesystem) -> Result<()> {
    if filesystem.kind != FilesystemType::Mount {
        return unsupported("only supports mount filesystem type");
    }
    let alias = guest.alias(&filesystem.info)?;
    let mut text = if filesystem.driver.kind == Some(FilesystemDriverType::Handle) {
        "handle".to_owned()
    } else {
        let model = filesystem.access_mode.map_or("passthrough", |mode| match mode {
            crate::conf::devices::AccessMode::Squash => "none",
            other => other.as_str(),
        });
        format!("local,security_model={model}")
    };
    if let Some(multidevs) = filesystem.multidevs.filter(|word| *word != Multidevs::Default) {
        text.push_str(&format!(",multidevs={multidevs}"));
    }
    for (name, mode) in [("fmode", filesystem.fmode), ("dmode", filesystem.dmode)] {
        if let Some(mode) = mode.filter(|mode| mode.0 != 0) {
            text.push_str(&format!(",{name}={:04o}", mode.0));
        }
    }
    if filesystem.driver.wrpolicy == Some(WritePolicy::Immediate) {
        text.push_str(",writeout=immediate");
    }
    let source = filesystem.source.as_ref().and_then(|source| source.dir.as_deref()).unwrap_or_default();
    text.push_str(&format!(",id=fsdev-{alias},path={}", escape_comma(source)));
    if filesystem.readonly {
        text.push_str(",readonly=on");
    }
    line.option("-fsdev", text);
    let generation = match filesystem.model {
        None | Some(FilesystemModel::Virtio) => Generation::Any,
        Some(FilesystemModel::VirtioTransitional) => Generation::Transitional,
        Some(FilesystemModel::VirtioNonTransitional) => Generation::NonTransitional,
    };
    let props = guest
        .virtio("virtio-9p", generation, &filesystem.info, &filesystem.driver.virtio)?
        .set("id", alias)
        .set("fsdev", format!("fsdev-{alias}"))
        .maybe("mount_tag", filesystem.target.as_deref());
    line.device(guest.at(props, &filesystem.info)?);
    Ok(())
}

/// A process of its own serves it.
fn virtiofs(guest: &Guest<'_>, line: &mut Line<'_>, filesystem: &Filesystem) -> Result<()> {
    let alias = guest.alias(&filesystem.info)?;
    let theirs = filesystem.source.as_ref().and_then(|source| source.socket.as_deref());
    let Some(socket) = theirs.or(filesystem.socket.as_deref()) else {
        return unsupported("virtiofsd was not started");
    };
    let chardev = format!("chr-vu-{alias}");
    line.option("-chardev", format!("socket,id={chardev},path={}", escape_comma(socket)));
    let boot = filesystem.info.boot.as_ref().map_or(0, |boot| boot.order);
    let props = guest
        .virtio("vhost-user-fs", Generation::Any, &filesystem.info, &filesystem.driver.virtio)?
        .set("id", alias)
        .set("chardev", chardev)
        .nonzero("queue-size", filesystem.driver.queue.unwrap_or_default())
        .maybe("tag", filesystem.target.as_deref())
        .nonzero("bootindex", boot);
    line.device(guest.at(props, &filesystem.info)?);
    Ok(())
}
