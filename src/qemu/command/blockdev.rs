//! Images as block nodes: `libvirt-N-storage` holds the bytes, `libvirt-N-format` what they mean.
//!
//! ```text
//!   device ──► [copy-on-read] ──► N-format ──► N-storage      raw images have no format node
//!                                     └─ backing ──► M-format ──► …
//!
//! Where only a part of a file is the image, `N-slice-sto` stands between the two.
//! ```

use serde_json::Value;

use super::line::{Line, Props};
use super::remote;
use super::secret::{self, SecretNeed};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    DetectZeroes, Discard, Disk, DiskCache, DiskDevice, IoTune, NvmeSource, Place, Storage, StorageAuth,
    StorageFormat, ThrottleFilter,
};
use crate::conf::storage::{Encryption, EncryptionFormat};
use crate::conf::xml::OnOff;

/// One image of a chain.
pub(super) struct Image<'a> {
    pub storage: &'a Storage,
    format: StorageFormat,
    metadata_cache: Option<u64>,
    readonly: bool,
    detect_zeroes: Option<DetectZeroes>,
    pub auth: Option<&'a StorageAuth>,
    pub encryption: Option<&'a Encryption>,
    disk: &'a Disk,
    /// Where QEMU finds what a client has handed over.
    passed: Option<PassedImage>,
}

/// A set of descriptors that QEMU has.
struct PassedImage {
    path: String,
    /// Of an image that is opened in one way only: QEMU cannot change it later.
    access: Option<Access>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Wanted,
    Writable,
}

/// The images of a disk, top first.
pub(super) fn images(disk: &Disk) -> Vec<Image<'_>> {
    let cache = disk.driver.metadata_cache.as_ref().map(|cache| cache.max_size.bytes);
    let top = Image {
        storage: &disk.storage,
        format: disk.format(),
        metadata_cache: cache,
        readonly: disk.readonly,
        detect_zeroes: disk.driver.detect_zeroes,
        auth: disk.storage_auth(),
        encryption: disk.storage_encryption(),
        disk,
        passed: None,
    };
    let below = disk.storage.layers().map(|layer| Image {
        storage: &layer.storage,
        format: layer.format.kind,
        metadata_cache: layer.format.metadata_cache.as_ref().map(|cache| cache.max_size.bytes),
        readonly: true,
        detect_zeroes: None,
        auth: layer.storage.auth.as_deref(),
        encryption: layer.storage.encryption.as_deref(),
        disk,
        passed: None,
    });
    std::iter::once(top).chain(below).collect()
}

/// Whether QEMU reads the image itself; else another process shows the guest a disk.
fn has_nodes(disk: &Disk) -> bool {
    !disk.storage.is_empty() && !matches!(disk.storage.place, Place::VhostUser(_))
}

/// What `-blockdev` (or `blockdev-add`) takes for a disk's images, lowest first, each behind the secrets that it
/// needs. Nothing for an empty drive.
pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>, disk: &Disk) -> Result<()> {
    if !has_nodes(disk) {
        return Ok(());
    }
    let mut images = images(disk);
    let mut below: Option<String> = None;
    for image in images.iter_mut().rev() {
        image.passed = pass(guest, line, image)?;
        let has_backing = below.is_some();
        if has_backing && !image.format.has_backing() {
            return unsupported(format!("storage format '{}' does not support backing store", image.format));
        }
        for SecretNeed { id, .. } in image.secrets()? {
            guest.secret(line, &id)?;
        }
        remote::credentials(guest, line, image)?;
        for node in image.nodes(below.as_deref())? {
            line.json("-blockdev", node);
        }
        below = Some(image.top_node()?);
    }
    if disk.driver.copy_on_read == Some(OnOff::On) {
        let props = Props::driver("copy-on-read")
            .set("node-name", copy_on_read_node(disk))
            .set("file", below.unwrap_or_default())
            .set("discard", "unmap");
        line.json("-blockdev", props);
        below = Some(copy_on_read_node(disk));
    }
    for filter in &disk.throttle_filters.0 {
        let node = filter_node(filter)?;
        let props = Props::driver("throttle")
            .set("node-name", node)
            .set("throttle-group", throttle_group(&filter.group))
            .set("file", below.unwrap_or_default());
        line.json("-blockdev", props);
        below = Some(node.to_owned());
    }
    Ok(())
}

/// Hands QEMU the descriptors of an image that a client has handed over.
fn pass(guest: &Guest<'_>, line: &mut Line<'_>, image: &Image<'_>) -> Result<Option<PassedImage>> {
    if image.storage.fdgroup.is_none() {
        return Ok(None);
    }
    let node = image.storage_name()?;
    let Some(opened) = guest.context.descriptors.images.get(&node) else {
        return unsupported("disk sources from descriptors are not supported");
    };
    let set = line.fd_sets;
    line.fd_sets += 1;
    for (number, descriptor) in opened.descriptors.iter().enumerate() {
        line.option("-add-fd", format!("set={set},fd={descriptor},opaque={node}{number}"));
    }
    let access = if opened.writable { Access::Writable } else { Access::Wanted };
    let access = Some(access).filter(|_| opened.descriptors.len() == 1);
    Ok(Some(PassedImage { path: format!("/dev/fdset/{set}"), access }))
}

fn filter_node(filter: &ThrottleFilter) -> Result<&str> {
    match filter.node.as_deref() {
        Some(node) => Ok(node),
        None => internal("a disk's limits have no node"),
    }
}

/// What a group of disks is called in QEMU.
fn throttle_group(name: &str) -> String {
    format!("throttle-{name}")
}

/// The limits that groups of disks share.
pub(super) fn throttle_groups(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for group in guest.domain.throttle_groups.iter().filter(|group| has_limits(&group.0)) {
        let props = Props::object("throttle-group", throttle_group(group.name()));
        line.object(props.set("limits", throttle_limits(&group.0)));
    }
    Ok(())
}

fn has_limits(tune: &IoTune) -> bool {
    IoTune { group_name: None, ..tune.clone() } != IoTune::default()
}

/// A group's limits as QEMU takes them.
pub fn throttle_limits(tune: &IoTune) -> Value {
    let limits = [
        ("bps-total", tune.total_bytes_sec),
        ("bps-read", tune.read_bytes_sec),
        ("bps-write", tune.write_bytes_sec),
        ("iops-total", tune.total_iops_sec),
        ("iops-read", tune.read_iops_sec),
        ("iops-write", tune.write_iops_sec),
        ("bps-total-max", tune.total_bytes_sec_max),
        ("bps-read-max", tune.read_bytes_sec_max),
        ("bps-write-max", tune.write_bytes_sec_max),
        ("iops-total-max", tune.total_iops_sec_max),
        ("iops-read-max", tune.read_iops_sec_max),
        ("iops-write-max", tune.write_iops_sec_max),
        ("iops-size", tune.size_iops_sec),
    ];
    let lengths = [
        ("bps-total-max-length", tune.total_bytes_sec_max_length),
        ("bps-read-max-length", tune.read_bytes_sec_max_length),
        ("bps-write-max-length", tune.write_bytes_sec_max_length),
        ("iops-total-max-length", tune.total_iops_sec_max_length),
        ("iops-read-max-length", tune.read_iops_sec_max_length),
        ("iops-write-max-length", tune.write_iops_sec_max_length),
    ];
    let mut props = Props::new();
    for (name, limit) in limits {
        props = props.set(name, limit.unwrap_or(0));
    }
    for (name, length) in lengths {
        props = props.nonzero(name, length.unwrap_or(0));
    }
    props.into_value()
}

/// The node that the disk's device reads and writes.
pub(super) fn top_node(disk: &Disk) -> Result<Option<String>> {
    if !has_nodes(disk) {
        return Ok(None);
    }
    if let Some(filter) = disk.throttle_filters.0.last() {
        return filter_node(filter).map(|node| Some(node.to_owned()));
    }
    if disk.driver.copy_on_read == Some(OnOff::On) {
        return Ok(Some(copy_on_read_node(disk)));
    }
    let images = images(disk);
    images.first().map(Image::top_node).transpose()
}

fn copy_on_read_node(disk: &Disk) -> String {
    format!("libvirt-CoR-{}", disk.name())
}

impl Image<'_> {
    fn number(&self) -> Result<u32> {
        match self.storage.index {
            Some(number) => Ok(number),
            None => internal("disk source has no node number"),
        }
    }

    /// Whether QEMU itself opens the encrypted image, and how.
    fn crypto(&self) -> Option<EncryptionFormat> {
        let encryption = self.encryption.filter(|encryption| !encryption.is_by_librbd())?;
        Some(encryption.format)
    }

    /// What was handed over has one always, as the device may only read what QEMU can write.
    fn has_format_node(&self) -> bool {
        self.format != StorageFormat::Raw
            || self.storage.fdgroup.is_some()
            || self.crypto() == Some(EncryptionFormat::Luks)
    }

    pub(super) fn storage_name(&self) -> Result<String> {
        Ok(format!("libvirt-{}-storage", self.number()?))
    }

    fn slice_name(&self) -> Result<String> {
        Ok(format!("libvirt-{}-slice-sto", self.number()?))
    }

    fn top_node(&self) -> Result<String> {
        match (self.has_format_node(), self.storage.slice) {
            (true, _) => Ok(format!("libvirt-{}-format", self.number()?)),
            (false, Some(_)) => self.slice_name(),
            (false, None) => self.storage_name(),
        }
    }

    /// The values that QEMU must have before it opens the image.
    pub(super) fn secrets(&self) -> Result<Vec<SecretNeed>> {
        let storage = self.storage_name()?;
        let encrypted = match self.has_format_node() {
            true => format!("libvirt-{}-format", self.number()?),
            false => storage.clone(),
        };
        let mut needs = Vec::new();
        needs.extend(self.auth.map(|auth| secret::of_auth(&storage, auth, self.storage.remote())));
        needs.extend(self.storage.remote().and_then(|remote| secret::of_cookies(&storage, remote)));
        if let Some(encryption) = self.encryption {
            needs.extend(secret::of_encryption(&encrypted, encryption));
        }
        Ok(needs)
    }

    /// From the bytes to what they mean.
    fn nodes(&self, below: Option<&str>) -> Result<Vec<Props>> {
        let mut nodes = vec![self.storage_node()?];
        if let Some(slice) = self.storage.slice {
            let props = Props::driver("raw")
                .set("file", self.storage_name()?)
                .set("offset", slice.offset)
                .set("size", slice.size)
                .set("node-name", self.slice_name()?);
            nodes.push(if self.has_format_node() {
                self.inner_options(props)
            } else {
                self.own_options(props)
            });
        }
        if self.has_format_node() {
            nodes.push(self.format_node(below)?);
        }
        Ok(nodes)
    }

    fn storage_node(&self) -> Result<Props> {
        if self.storage.reservations.is_some() {
            return unsupported("disk source element 'reservations' is not supported");
        }
        if self.storage.data_store.is_some() {
            return unsupported("disk source element 'dataStore' is not supported");
        }
        let props = self.backend()?.set("node-name", self.storage_name()?);
        if self.has_format_node() || self.storage.slice.is_some() {
            return Ok(self.inner_options(props));
        }
        Ok(self.own_options(props))
    }

    /// QEMU's block driver for where the bytes are.
    fn backend(&self) -> Result<Props> {
        let local = |driver: &str, path: &str| {
            let aio = self.disk.driver.io.map(|io| io.as_str());
            let path = self.passed.as_ref().map_or(path, |passed| &passed.path);
            Props::driver(driver).set("filename", path).maybe("aio", aio)
        };
        match &self.storage.place {
            Place::File(Some(path)) => Ok(local("file", path)),
            Place::Block(Some(path)) if self.storage.is_host_cdrom => Ok(local("host_cdrom", path)),
            Place::Block(Some(path)) => Ok(local("host_device", path)),
            Place::File(None) | Place::Block(None) | Place::Dir(None) => {
                internal("disk source path is missing")
            }
            // QEMU makes a file system of it.
            Place::Dir(Some(path)) => Ok(Props::driver("vvfat")
                .set("dir", &**path)
                .set("floppy", self.disk.device == DiskDevice::Floppy)
                .set("rw", !self.readonly)),
            Place::Network(source) => remote::backend(self, source),
            Place::Nvme(source) => Ok(nvme(source)),
            Place::VhostVdpa(_) => unsupported("disk type 'vhostvdpa' is not supported"),
            Place::VhostUser(_) => internal("unable to create blockdev props for vhostuser disk type"),
            Place::Volume(source) => internal(format!(
                "storage source pool '{}' volume '{}' is not translated",
                source.pool, source.volume
            )),
        }
    }

    /// What concerns the nodes below the one that guests see.
    fn inner_options(&self, props: Props) -> Props {
        let props = match self.passed.as_ref().and_then(|passed| passed.access) {
            Some(access) => props.set("read-only", self.readonly && access == Access::Wanted),
            None => props.set("auto-read-only", true),
        };
        props.set("discard", "unmap").maybe("cache", self.cache())
    }

    /// What concerns the node that guests see.
    fn own_options(&self, props: Props) -> Props {
        let discard = self.disk.driver.discard;
        let zeroes = match self.detect_zeroes {
            // Zeroes cannot become holes where holes are not made.
            Some(DetectZeroes::Unmap) if discard != Some(Discard::Unmap) => Some(DetectZeroes::On),
            other => other,
        };
        props
            .set("read-only", self.readonly)
            .maybe("discard", discard.map(Discard::as_str))
            .maybe("detect-zeroes", zeroes.map(DetectZeroes::as_str))
            .maybe("cache", self.cache())
    }

    fn cache(&self) -> Option<Value> {
        let flags = CacheFlags::of(self.disk.effective_cache())?;
        let props = Props::new().set("direct", flags.direct).set("no-flush", flags.no_flush);
        Some(props.into_value())
    }

    /// How QEMU opens what is encrypted inside the image's own format.
    fn encrypt(&self) -> Result<Option<Value>> {
        let format = match self.crypto() {
            None => return Ok(None),
            Some(EncryptionFormat::Qcow) => "aes",
            Some(EncryptionFormat::Luks) => "luks",
            Some(other) => return internal(format!("Unexpected enum value '{other}' for encryption format")),
        };
        let props = Props::new().set("format", format).set("key-secret", self.key()?);
        Ok(Some(props.into_value()))
    }

    fn key(&self) -> Result<String> {
        Ok(format!("libvirt-{}-format-encryption-secret0", self.number()?))
    }

    fn format_node(&self, below: Option<&str>) -> Result<Props> {
        let is_luks = self.crypto() == Some(EncryptionFormat::Luks);
        let driver = match self.format {
            StorageFormat::Qcow2 => "qcow2",
            StorageFormat::Qcow => "qcow",
            StorageFormat::Fat => "raw",
            StorageFormat::Ploop => "parallels",
            StorageFormat::Vhd => "vhdx",
            StorageFormat::Bochs
            | StorageFormat::Cloop
            | StorageFormat::Dmg
            | StorageFormat::Vdi
            | StorageFormat::Vpc
            | StorageFormat::Qed
            | StorageFormat::Vmdk => self.format.as_str(),
            StorageFormat::Raw if is_luks => "luks",
            StorageFormat::Raw => "raw",
            StorageFormat::None | StorageFormat::Dir | StorageFormat::Iso | StorageFormat::Cow => {
                return internal(format!("mishandled storage format '{}'", self.format));
            }
        };
        let name = format!("libvirt-{}-format", self.number()?);
        let mut props = self.own_options(Props::new().set("node-name", name)).set("driver", driver);
        if self.format == StorageFormat::Raw && is_luks {
            props = props.set("key-secret", self.key()?);
        }
        if matches!(self.format, StorageFormat::Qcow2 | StorageFormat::Qcow) {
            props = props.maybe("encrypt", self.encrypt()?);
        }
        if self.format == StorageFormat::Qcow2 {
            props = props
                .nonzero("cache-size", self.metadata_cache.unwrap_or_default())
                .switch("discard-no-unref", self.disk.driver.discard_no_unref);
        }
        props = props.set(
            "file",
            match self.storage.slice {
                Some(_) => self.slice_name()?,
                None => self.storage_name()?,
            },
        );
        Ok(match below {
            Some(node) => props.set("backing", node),
            // QEMU shall not look for one itself.
            None if self.format.has_backing() && self.storage.backing.is_some() => {
                props.set("backing", Value::Null)
            }
            None => props,
        })
    }
}

fn nvme(source: &NvmeSource) -> Props {
    let address = &source.address;
    let (domain, bus, slot, function) = (address.domain, address.bus, address.slot, address.function);
    Props::driver("nvme")
        .set("device", format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
        .set("namespace", source.namespace)
}

/// QEMU's three switches behind a cache mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheFlags {
    pub writeback: bool,
    pub direct: bool,
    pub no_flush: bool,
}

impl CacheFlags {
    pub(super) fn of(cache: DiskCache) -> Option<Self> {
        let (writeback, direct, no_flush) = match cache {
            DiskCache::Default => return None,
            DiskCache::None => (true, true, false),
            DiskCache::Writethrough => (false, false, false),
            DiskCache::Writeback => (true, false, false),
            DiskCache::Directsync => (false, true, false),
            DiskCache::Unsafe => (true, false, true),
        };
        Some(Self { writeback, direct, no_flush })
    }
}
