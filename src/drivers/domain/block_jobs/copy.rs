//! Copying a disk to another image, on which it may stand afterwards.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use super::begin::{Begun, node};
use super::image::{Origin, standing_on};
use super::{check_idle, check_supported, disk_of, speed};
use crate::conf::devices::{
    Backing, Disk, LayerFormat, Mirror, MirrorJob, Place, Storage, StorageFormat, StorageKind,
};
use crate::drivers::domain::audit::Exchange;
use crate::drivers::domain::flags::{BlockCopyFlags, BlockRebaseFlags, CallFlags};
use crate::drivers::domain::reads::running;
use crate::drivers::domain::{Domains, blocking};
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Result};
use crate::qemu::block::{self, Layers, Nodes, Passed, device_node};
use crate::qemu::block_jobs::{BlockJob, Phase, Work};
use crate::qemu::job::{DomainHandle, Modify};
use crate::qemu::monitor::BlockdevMirror;
use crate::util::audit::Outcome;

/// Where to, and how.
#[derive(Debug)]
pub struct CopyRequest {
    pub target: Storage,
    /// Not said: as the disk's own, or as the target looks.
    pub format: Option<StorageFormat>,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
    pub granularity: Option<u32>,
    pub buf_size: Option<u64>,
    pub flags: BlockCopyFlags,
}

impl Domains {
    /// `virDomainBlockCopy`
    pub async fn block_copy(
        self: &Arc<Self>,
        domain: DomainHandle,
        disk: &str,
        xml: &str,
        params: &Params,
        flags: u32,
    ) -> Result<()> {
        let flags = BlockCopyFlags::accept(flags)?;
        params.validate(&[
            ("bandwidth", ParamType::Ullong),
            ("granularity", ParamType::Uint),
            ("buf-size", ParamType::Ullong),
        ])?;
        let granularity = params.uint("granularity").copied();
        if granularity.is_some_and(|it| it != 0 && !it.is_power_of_two()) {
            return Err(Error::invalid_arg("granularity must be power of 2"));
        }
        let (target, format) = Disk::read_source(xml)?;
        let speed = params.ullong("bandwidth").copied().unwrap_or(0);
        let buf_size = params.ullong("buf-size").copied().filter(|size| *size != 0);
        let granularity = granularity.filter(|it| *it != 0);
        self.copy(domain, disk, CopyRequest { target, format, speed, granularity, buf_size, flags }).await
    }

    /// `virDomainBlockRebase`: pulls, or copies to a file.
    pub async fn block_rebase(
        self: &Arc<Self>,
        domain: DomainHandle,
        disk: &str,
        base: Option<&str>,
        bandwidth: u64,
        flags: u32,
    ) -> Result<()> {
        let flags = BlockRebaseFlags::accept(flags)?;
        if !flags.contains(BlockRebaseFlags::COPY) {
            return self.pull(domain, disk, base, bandwidth, flags).await;
        }
        let path = base.map(Box::<str>::from);
        let target = Storage::new(match flags.contains(BlockRebaseFlags::COPY_DEV) {
            true => Place::Block(path),
            false => Place::File(path),
        });
        let speed = speed(bandwidth, flags.contains(BlockRebaseFlags::BANDWIDTH_BYTES))?;
        if flags.contains(BlockRebaseFlags::RELATIVE) {
            return Err(Error::argument_unsupported("Relative backing during copy not supported yet"));
        }
        let format = flags.contains(BlockRebaseFlags::COPY_RAW).then_some(StorageFormat::Raw);
        let flags = flags & (BlockRebaseFlags::SHALLOW | BlockRebaseFlags::REUSE_EXT);
        let flags = BlockCopyFlags::from_bits_retain(flags.bits());
        let request = CopyRequest { target, format, speed, granularity: None, buf_size: None, flags };
        self.copy(domain, disk, request).await
    }

    async fn copy(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        disk: &str,
        mut request: CopyRequest,
    ) -> Result<()> {
        if request.target.path().is_some_and(|path| !path.starts_with('/')) {
            return Err(Error::invalid_arg("absolute path must be used as block copy target"));
        }
        if request.speed > i64::MAX.cast_unsigned() {
            let (bytes, mib) = (i64::MAX, i64::MAX >> 20);
            let sentence = format!("bandwidth must be less than '{bytes}' bytes/s ({mib} MiB/s)");
            return Err(Error::invalid_arg(sentence));
        }
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let state = live.state();
        let disk = disk_of(running(state)?, disk)?;
        check_idle(state, disk)?;
        check_supported(disk)?;
        if !request.flags.contains(BlockCopyFlags::TRANSIENT_JOB) && state.is_persistent() {
            return Err(Error::operation_invalid("domain is not transient"));
        }
        if disk.storage.layer().is_none() {
            request.flags.remove(BlockCopyFlags::SHALLOW);
        }
        let last_node = state.launched.as_ref().map_or(0, |launched| launched.last_node);
        let reader = self.rules.security.images_are_of(running(state)?)?;
        let (domains, plan) = (Arc::clone(self), (disk.clone(), request));
        let Plan { wanted, mirror, origin, last_node, request } = blocking(move || {
            let (disk, mut request) = plan;
            domains.storage.locate_image(&mut request.target)?;
            plan_copy(&disk, request, last_node, reader)
        })
        .await?;
        let inherits = origin != Origin::Existing && request.flags.contains(BlockCopyFlags::SHALLOW);
        let reused = request.flags.contains(BlockCopyFlags::REUSE_EXT);
        let added = self.add_images(&live, disk, &wanted, origin).await?;
        let layers = Layers::of(disk);
        let target =
            Nodes::of(&mirror.storage, mirror.format.kind).map(|nodes| nodes.top).unwrap_or_default();
        let replaces = node(&layers, 0)?;
        let name = format!("copy-{}-{replaces}", disk.name());
        let shallow = request.flags.contains(BlockCopyFlags::SHALLOW);
        let synchronous = request.flags.contains(BlockCopyFlags::SYNCHRONOUS_WRITES);
        let command = BlockdevMirror {
            job_id: name.clone(),
            device: device_node(disk).unwrap_or_default(),
            target,
            replaces: Some(replaces),
            speed: (request.speed > 0).then_some(request.speed),
            granularity: request.granularity,
            buf_size: request.buf_size,
            sync: if shallow { "top" } else { "full" },
            copy_mode: synchronous.then_some("write-blocking"),
            auto_finalize: true,
            auto_dismiss: false,
        };
        let work = Work::Copy { inherits: inherits && !reused };
        let job = BlockJob { disk: disk.name().into(), work, phase: Phase::New, flags: request.flags.bits() };
        let image = mirror.storage.clone();
        let begun = Begun { name, job, mirror: Some(mirror), last_node: Some(last_node) };
        let begun = self.begin_block_job(&object, &live, begun, command).await;
        self.audit_image(running(state)?, Exchange::Mirror, (None, Some(&image)), Outcome::of(&begun));
        match begun {
            Ok(()) => {
                added.keep();
                Ok(())
            }
            Err(error) => Err(added.give_up(&live, error).await),
        }
    }
}

/// A copy that can begin.
struct Plan {
    /// The disk as QEMU is to open the copy now.
    wanted: Disk,
    mirror: Mirror,
    origin: Origin,
    last_node: u32,
    request: CopyRequest,
}

/// Looks at the target. Reads files.
fn plan_copy(
    disk: &Disk,
    mut request: CopyRequest,
    mut last_node: u32,
    reader: Option<crate::util::accounts::Ids>,
) -> Result<Plan> {
    let shallow = request.flags.contains(BlockCopyFlags::SHALLOW);
    let reused = request.flags.contains(BlockCopyFlags::REUSE_EXT);
    if request.target.fdgroup.is_some() {
        let sentence = "copy to a FD passed disk source is not yet supported";
        return Err(Error::config_unsupported(sentence));
    }
    if request.target.layer().is_some() {
        if !shallow {
            let sentence = "backingStore of mirror without VIR_DOMAIN_BLOCK_COPY_SHALLOW doesn't make sense";
            return Err(Error::invalid_arg(sentence));
        }
    } else if request.target.backing.is_none() && !shallow {
        request.target.backing = Some(Box::new(Backing::End));
    }
    if shallow && !reused && request.format == Some(StorageFormat::Raw) {
        let sentence = format!("shallow copy of disk '{}' into a raw file is not possible", disk.name());
        return Err(Error::config_unsupported(sentence));
    }
    let exists = check_target(&request.target, disk, reused)?;
    let kind = match (request.format, reused) {
        (Some(kind), _) => kind,
        (None, false) => disk.format(),
        (None, true) => probe(&request.target)?,
    };
    if disk.shareable && !disk.readonly && kind != StorageFormat::Raw {
        let sentence = "can't pivot a shared disk to a storage volume not supporting sharing";
        return Err(Error::operation_unsupported(sentence));
    }
    let format = LayerFormat { kind, metadata_cache: None };
    let mut copy = standing_on(disk, Layers::from_top(format.clone(), request.target.clone()));
    block::number_disk(&mut copy, &mut last_node);
    if reused && kind.has_backing() && copy.storage.backing.is_none() {
        block::detect_chain(&mut copy, reader, &Passed::new())?;
        block::number_disk(&mut copy, &mut last_node);
    }
    let mirror = Mirror { job: MirrorJob::Copy, state: None, format, storage: copy.storage.clone() };
    let mut layers = Layers::of(&copy);
    let mut own = Layers::of(disk);
    if reused {
        // What is below is opened when the disk comes to stand on it.
        layers.remove(1..layers.images().len());
    } else if shallow && layers.is_open() {
        own.remove(0..1);
        layers.stand_on(own);
    }
    let wanted = standing_on(disk, layers);
    let origin = match exists {
        true => Origin::Existing,
        false => Origin::New(wanted.storage.layer().cloned()),
    };
    Ok(Plan { wanted, mirror, origin, last_node, request })
}

/// Whether the target is there to be used as it is.
fn check_target(target: &Storage, disk: &Disk, reused: bool) -> Result<bool> {
    let (Some(path), name) = (target.path(), disk.name()) else { return Ok(reused) };
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("unable to verify existence of block copy target", error));
        }
        Err(error) if reused || target.kind() == StorageKind::Block => {
            return Err(Error::io(format_args!("missing destination file for disk {name}: {path}"), error));
        }
        Err(_) => return Ok(false),
    };
    if found.file_type().is_block_device() {
        return Ok(true);
    }
    if found.len() > 0 && !reused {
        return Err(Error::config_unsupported(format!(
            "external destination file for disk {name} already exists and is not a block device: {path}"
        )));
    }
    if target.kind() == StorageKind::Block {
        return Err(Error::invalid_arg(format!(
            "blockdev flag requested for disk {name}, but file '{path}' is not a block device"
        )));
    }
    Ok(reused)
}

fn probe(target: &Storage) -> Result<StorageFormat> {
    let header = target.path().and_then(|path| block::read_header(path).ok());
    let unknown = || Error::config_unsupported("reused mirror destination format must be specified");
    header.map(|header| block::probe(&header)).ok_or_else(unknown)
}
