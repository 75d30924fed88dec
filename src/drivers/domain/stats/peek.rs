//! Looking into a guest's memory and images, and small changes of what is measured of them.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::conf::devices::{Disk, Place, StorageFormat};
use crate::conf::domain::Domain;
use crate::conf::xml::OnOff;
use crate::drivers::domain::flags::{CallFlags, DirtyRateFlags, MemoryFlags, ResizeFlags, no_flags};
use crate::drivers::domain::reads::{definition, running};
use crate::drivers::domain::usage::disk_named;
use crate::drivers::domain::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::block::Nodes;
use crate::qemu::job::{DomainHandle, Live, Modify, Query};
use crate::qemu::monitor::{
    BlockResize, BlockSetWriteThreshold, CalcDirtyRate, Memsave, Pmemsave, QueryBlock,
};
use crate::util::uuid::Uuid;

/// `virDomainDiskErrorCode`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskError {
    pub disk: String,
    pub code: i32,
}

impl Domains {
    /// A piece of the guest's memory, by the addresses of its processor or of its board.
    pub async fn memory_peek(
        &self,
        mut domain: DomainHandle,
        at: u64,
        len: u32,
        flags: u32,
    ) -> Result<Vec<u8>> {
        let flags = MemoryFlags::accept(flags)?;
        if flags != MemoryFlags::VIRTUAL && flags != MemoryFlags::PHYSICAL {
            let sentence = "flags parameter must be VIR_MEMORY_VIRTUAL or VIR_MEMORY_PHYSICAL";
            return Err(Error::invalid_arg(sentence));
        }
        let job = domain.begin::<Query>().await?;
        let live = job.live()?;
        let name = Uuid::random().map_err(|error| Error::io("cannot make a file name", error))?;
        let file = Piece(live.files().directory.join(format!("qemu.mem.{name}")));
        let (filename, size) = (file.0.to_string_lossy().into_owned(), u64::from(len));
        match flags == MemoryFlags::VIRTUAL {
            true => live.monitor().execute(Memsave { val: at, size, filename }).await?,
            false => live.monitor().execute(Pmemsave { val: at, size, filename }).await?,
        };
        let mut piece = tokio::fs::read(&file.0)
            .await
            .map_err(|error| Error::io(format_args!("cannot read '{}'", file.0.display()), error))?;
        piece.resize(len as usize, 0);
        Ok(piece)
    }

    /// A piece of a disk's image; of a raw one, where the file's bytes are the guest's.
    pub async fn block_peek(
        &self,
        domain: &DomainHandle,
        disk: &str,
        at: u64,
        len: u32,
        flags: u32,
    ) -> Result<Vec<u8>> {
        no_flags(flags, "qemuDomainBlockPeek")?;
        let state = domain.state();
        let found = disk_named(definition(&state)?, disk)
            .ok_or_else(|| Error::invalid_arg(format!("disk '{disk}' not found in domain")))?;
        if found.format() != StorageFormat::Raw {
            let format = found.format();
            return Err(Error::operation_unsupported(format!(
                "peeking is only supported for disk with 'raw' format not '{format}'"
            )));
        }
        if found.storage.fdgroup.is_some() {
            let sentence = "peeking is not supported for FD passed images";
            return Err(Error::operation_unsupported(sentence));
        }
        let path = found.storage.path().map(PathBuf::from).ok_or_else(|| {
            Error::operation_unsupported(format!("the image of disk '{disk}' is no file of this host"))
        })?;
        let disk = disk.to_owned();
        blocking(move || {
            let failed = |error| Error::io(format_args!("cannot read '{}'", path.display()), error);
            // Opening a pipe would wait for its writer.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let file = File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
            let mut piece = vec![0; len as usize];
            let mut read = 0;
            while let Some(rest) = piece.get_mut(read..).filter(|rest| !rest.is_empty()) {
                match file.read_at(rest, at.saturating_add(read as u64)).map_err(failed)? {
                    0 => {
                        return Err(Error::invalid_arg(format!(
                            "'{disk}' starting from {at} has only {read} bytes available"
                        )));
                    }
                    more => read += more,
                }
            }
            Ok(piece)
        })
        .await
    }

    /// Makes a running guest's disk larger or smaller.
    pub async fn block_resize(
        &self,
        mut domain: DomainHandle,
        disk: &str,
        size: u64,
        flags: u32,
    ) -> Result<()> {
        let flags = ResizeFlags::accept(flags)?;
        const MAX_KIB: u64 = u64::MAX / 1024;
        let mut size = match flags.contains(ResizeFlags::BYTES) {
            true => size,
            false if size > MAX_KIB => {
                return Err(Error::overflow(format!("size must be less than {MAX_KIB}")));
            }
            false => size * 1024,
        };
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let found = disk_named(running(live.state())?, disk)
            .ok_or_else(|| Error::invalid_arg(format!("disk '{disk}' was not found in the domain config")))?;
        if found.storage.is_empty() || found.readonly {
            let name = found.name();
            return Err(Error::operation_unsupported(format!(
                "can't resize empty or readonly disk '{name}'"
            )));
        }
        if flags.contains(ResizeFlags::CAPACITY) {
            size = self.whole_device(found, size).await?;
        }
        if matches!(found.format(), StorageFormat::Qcow2 | StorageFormat::Qed) {
            size = size.next_multiple_of(512);
        }
        let nodes = nodes(found)?;
        live.monitor().execute(BlockResize { node_name: nodes.top, size }).await?;
        Ok(())
    }

    /// The size that a block device has, which is the only one that its guest can see.
    async fn whole_device(&self, disk: &Disk, size: u64) -> Result<u64> {
        let path = disk
            .storage
            .path()
            .filter(|_| disk.format() == StorageFormat::Raw && matches!(disk.storage.place, Place::Block(_)));
        let path = path.ok_or_else(|| {
            Error::operation_unsupported(
                "block resize to full capacity supported only with 'raw' local block-based disks",
            )
        })?;
        let physical = self.image_sizes.measure(path, StorageFormat::Raw).await?.physical;
        match size {
            0 => Ok(physical),
            size if size == physical => Ok(size),
            _ => {
                let sentence = format!("Requested resize to '{size}' but device size is '{physical}'");
                Err(Error::invalid_arg(sentence))
            }
        }
    }

    /// Has QEMU report when the guest writes beyond a place in the file of an image: `vda`, or `vda[3]` for
    /// the image of that number.
    pub async fn set_block_threshold(
        &self,
        mut domain: DomainHandle,
        image: &str,
        threshold: u64,
        flags: u32,
    ) -> Result<()> {
        no_flags(flags, "qemuDomainSetBlockThreshold")?;
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let unknown = || Error::invalid_arg(format!("failed to find disk '{image}'"));
        let node_name = storage_node(&live, image).ok_or_else(unknown)?;
        let command = BlockSetWriteThreshold { node_name, write_threshold: threshold };
        live.monitor().execute(command).await?;
        Ok(())
    }

    /// Has QEMU measure for some seconds how fast the guest changes its memory.
    pub async fn start_dirty_rate(&self, mut domain: DomainHandle, seconds: i32, flags: u32) -> Result<()> {
        let flags = DirtyRateFlags::accept(flags)?;
        const LONGEST: u64 = 60;
        let calc_time = u64::try_from(seconds).unwrap_or(0);
        if !(1..=LONGEST).contains(&calc_time) {
            return Err(Error::config_unsupported(format!(
                "seconds={seconds} is invalid, please choose value within [1, {LONGEST}]."
            )));
        }
        let state = domain.state();
        let mode = match flags {
            flags if flags.contains(DirtyRateFlags::BITMAP) => "dirty-bitmap",
            flags if flags.contains(DirtyRateFlags::RING) => {
                if !has_dirty_ring(running(&state)?) {
                    return Err(Error::operation_unsupported(
                        "dirty-ring calculation mode requires dirty-ring feature enabled.",
                    ));
                }
                "dirty-ring"
            }
            _ => "page-sampling",
        };
        running(&state)?;
        let job = domain.begin::<Modify>().await?;
        job.live()?.monitor().execute(CalcDirtyRate { calc_time, mode }).await?;
        Ok(())
    }

    /// Which disks have failed, at most `max` of them.
    pub async fn disk_errors(
        &self,
        mut domain: DomainHandle,
        max: usize,
        flags: u32,
    ) -> Result<Vec<DiskError>> {
        no_flags(flags, "qemuDomainGetDiskErrors")?;
        let job = domain.begin::<Query>().await?;
        let live = job.live()?;
        let definition = running(live.state())?;
        let devices = live.monitor().execute(QueryBlock {}).await?;
        let failed = definition.devices.disks.iter().filter_map(|disk| {
            let alias = disk.info.alias.as_deref()?;
            let device = devices.iter().find(|device| device.is(alias))?;
            let code = match device.io_status.as_deref()? {
                "failed" => 1,
                "nospace" => 2,
                _ => return None,
            };
            Some(DiskError { disk: disk.name().to_owned(), code })
        });
        Ok(failed.take(max).collect())
    }
}

fn nodes(disk: &Disk) -> Result<Nodes> {
    Nodes::of(&disk.storage, disk.format())
        .ok_or_else(|| Error::internal_error(format!("disk '{}' has no block node", disk.name())))
}

/// The node of an image's file, given a disk's name or one with an image's number behind it.
fn storage_node(live: &Live<'_>, image: &str) -> Option<String> {
    let definition = live.state().live.as_ref()?;
    let (name, index) = match image.strip_suffix(']').and_then(|image| image.split_once('[')) {
        Some((name, index)) => (name, Some(index.parse::<u32>().ok()?)),
        None => (image, None),
    };
    let disk = disk_named(definition, name)?;
    let below = disk.storage.layers().map(|layer| (&layer.storage, layer.format.kind));
    let mut images = std::iter::once((&disk.storage, disk.format())).chain(below);
    let (storage, format) = images.find(|(storage, _)| index.is_none() || storage.index == index)?;
    Some(Nodes::of(storage, format)?.storage)
}

fn has_dirty_ring(definition: &Domain) -> bool {
    let ring = definition.features.kvm.as_ref().and_then(|kvm| kvm.0.dirty_ring);
    ring.is_some_and(|ring| ring.state == OnOff::On)
}

/// A file for QEMU to write to; whoever reads it does so before this is dropped.
struct Piece(PathBuf);

impl Drop for Piece {
    fn drop(&mut self) {
        if let Err(error) = crate::util::file::remove_if_there(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a piece of a guest's memory");
        }
    }
}
