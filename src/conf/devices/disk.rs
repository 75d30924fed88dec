//! `<disk>`: hard disks, CD-ROM and floppy drives.

use super::info::{DeviceInfo, VirtioOptions};
use super::iothread_mapping::IoThreadMapping;
use super::mirror::Mirror;
use super::network_storage::StorageAuth;
use super::storage::{MetadataCache, Storage, StorageFormat};
use crate::conf::storage::{Encryption, EncryptionFormat};
use crate::conf::xml::{Document, Element, Form, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, ErrorKind, Result};

xml! {
    pub struct Disk {
        group driver: DiskDriver = "driver";
        /// The older place of the source's own.
        child auth: Option<Box<StorageAuth>> = "auth";
        flat storage: Storage;
        attr device: DiskDevice = "device", or DiskDevice::Disk;
        attr(omit) model: DiskModel = "model", or DiskModel::Default;
        attr rawio: Option<YesNo> = "rawio";
        attr sgio: Option<Box<str>> = "sgio";
        attr snapshot: Option<SnapshotLocation> = "snapshot";
        child_attr backend_domain: Option<Box<str>> = "backenddomain" / "name";
        child geometry: Option<Box<Geometry>> = "geometry";
        group blockio: BlockIo = "blockio";
        child(live) mirror: Option<Box<Mirror>> = "mirror";
        group target: DiskTarget = "target";
        group iotune: Box<IoTune> = "iotune";
        flat throttle_filters: ThrottleFilters;
        flag readonly: bool = "readonly";
        flag shareable: bool = "shareable";
        child transient: Option<Transient> = "transient";
        text serial: Option<Box<str>> = "serial";
        text wwn: Option<Box<str>> = "wwn";
        text vendor: Option<Box<str>> = "vendor";
        text product: Option<Box<str>> = "product";
        /// The older place of the source's own.
        child encryption: Option<Box<Encryption>> = "encryption";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum DiskDevice {
        Disk = "disk",
        Cdrom = "cdrom",
        Floppy = "floppy",
        Lun = "lun",
    }
}

impl DiskDevice {
    /// Whether the medium can be taken out.
    pub fn is_removable(self) -> bool {
        matches!(self, Self::Cdrom | Self::Floppy)
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum DiskModel {
        #[default]
        Default = "default",
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

xml_enum! {
    pub enum SnapshotLocation {
        No = "no",
        Internal = "internal",
        External = "external",
        Manual = "manual",
    }
}

xml! {
    #[derive(Default)]
    pub struct DiskDriver {
        attr name: Option<Box<str>> = "name";
        attr format: Option<StorageFormat> = "type";
        attr(omit) cache: DiskCache = "cache", or DiskCache::Default;
        attr error_policy: Option<ErrorPolicy> = "error_policy";
        attr rerror_policy: Option<ErrorPolicy> = "rerror_policy";
        attr io: Option<DiskIo> = "io";
        attr ioeventfd: Option<OnOff> = "ioeventfd";
        attr event_idx: Option<OnOff> = "event_idx";
        attr copy_on_read: Option<OnOff> = "copy_on_read";
        attr discard: Option<Discard> = "discard";
        attr iothread: Option<u32> = "iothread";
        attr detect_zeroes: Option<DetectZeroes> = "detect_zeroes";
        attr discard_no_unref: Option<OnOff> = "discard_no_unref";
        attr(omit) queues: u32 = "queues", or 0;
        attr(omit) queue_size: u32 = "queue_size", or 0;
        flat virtio: VirtioOptions;
        child metadata_cache: Option<MetadataCache> = "metadata_cache";
        child iothreads: Option<Box<IoThreadMapping>> = "iothreads";
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum DiskCache {
        #[default]
        Default = "default",
        None = "none",
        Writethrough = "writethrough",
        Writeback = "writeback",
        Directsync = "directsync",
        Unsafe = "unsafe",
    }
}

xml_enum! {
    pub enum ErrorPolicy {
        Stop = "stop",
        Report = "report",
        Ignore = "ignore",
        Enospace = "enospace",
    }
}

xml_enum! {
    pub enum DiskIo {
        Native = "native",
        Threads = "threads",
        IoUring = "io_uring",
    }
}

xml_enum! {
    pub enum Discard {
        Unmap = "unmap",
        Ignore = "ignore",
    }
}

xml_enum! {
    pub enum DetectZeroes {
        Off = "off",
        On = "on",
        Unmap = "unmap",
    }
}

xml! {
    pub struct Geometry {
        attr cylinders: u32 = "cyls", or 0;
        attr heads: u32 = "heads", or 0;
        attr sectors: u32 = "secs", or 0;
        attr trans: Option<GeometryTrans> = "trans";
    }
}

xml_enum! {
    pub enum GeometryTrans {
        None = "none",
        Auto = "auto",
        Lba = "lba",
    }
}

xml! {
    #[derive(Default)]
    pub struct BlockIo {
        attr(omit) logical_block_size: u32 = "logical_block_size", or 0;
        attr(omit) physical_block_size: u32 = "physical_block_size", or 0;
        attr(omit) discard_granularity: u32 = "discard_granularity", or 0;
    }
}

xml! {
    /// Where the guest sees the disk. Bus and name are there once the definition was completed.
    #[derive(Default)]
    pub struct DiskTarget {
        attr dev: Option<Box<str>> = "dev";
        attr bus: Option<DiskBus> = "bus";
        attr(omit) tray: Tray = "tray", or Tray::Closed;
        attr removable: Option<OnOff> = "removable";
        attr(omit) rotation_rate: u32 = "rotation_rate", or 0;
    }
}

xml_enum! {
    pub enum DiskBus {
        Ide = "ide",
        Fdc = "fdc",
        Scsi = "scsi",
        Virtio = "virtio",
        Xen = "xen",
        Usb = "usb",
        Uml = "uml",
        Sata = "sata",
        Sd = "sd",
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum Tray {
        #[default]
        Closed = "closed",
        Open = "open",
    }
}

xml! {
    /// Throttling; nothing stands for no limit.
    #[derive(Default)]
    pub struct IoTune {
        text total_bytes_sec: Option<u64> = "total_bytes_sec";
        text read_bytes_sec: Option<u64> = "read_bytes_sec";
        text write_bytes_sec: Option<u64> = "write_bytes_sec";
        text total_iops_sec: Option<u64> = "total_iops_sec";
        text read_iops_sec: Option<u64> = "read_iops_sec";
        text write_iops_sec: Option<u64> = "write_iops_sec";
        text total_bytes_sec_max: Option<u64> = "total_bytes_sec_max";
        text read_bytes_sec_max: Option<u64> = "read_bytes_sec_max";
        text write_bytes_sec_max: Option<u64> = "write_bytes_sec_max";
        text total_iops_sec_max: Option<u64> = "total_iops_sec_max";
        text read_iops_sec_max: Option<u64> = "read_iops_sec_max";
        text write_iops_sec_max: Option<u64> = "write_iops_sec_max";
        text size_iops_sec: Option<u64> = "size_iops_sec";
        text group_name: Option<Box<str>> = "group_name";
        text total_bytes_sec_max_length: Option<u64> = "total_bytes_sec_max_length";
        text read_bytes_sec_max_length: Option<u64> = "read_bytes_sec_max_length";
        text write_bytes_sec_max_length: Option<u64> = "write_bytes_sec_max_length";
        text total_iops_sec_max_length: Option<u64> = "total_iops_sec_max_length";
        text read_iops_sec_max_length: Option<u64> = "read_iops_sec_max_length";
        text write_iops_sec_max_length: Option<u64> = "write_iops_sec_max_length";
    }
}

/// The groups whose limits hold for a disk, each with the node that keeps them once the guest was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ThrottleFilters(pub Vec<ThrottleFilter>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleFilter {
    pub group: Box<str>,
    pub node: Option<Box<str>>,
}

impl Part for ThrottleFilters {
    fn read(element: Element<'_>) -> Result<Self> {
        let filters = element.child("throttlefilters");
        let kept = element.child("privateData").filter(|kept| kept.form().contains(Form::STATUS));
        let nodes = || kept.and_then(|kept| kept.child("nodenames")).into_iter().flat_map(|it| it.children());
        let filters = filters.into_iter().flat_map(|filters| filters.children_named("throttlefilter"));
        let read = |filter: Element<'_>| {
            let group: Box<str> = filter.required("group")?;
            let node = nodes().find(|node| node.attribute("group") == Some(&group));
            Ok(ThrottleFilter { group, node: node.and_then(|node| node.attribute("name")).map(Into::into) })
        };
        filters.map(read).collect::<Result<_>>().map(Self)
    }

    fn write_children(&self, out: &mut Writer) {
        out.group("throttlefilters", |out| {
            for filter in &self.0 {
                out.element("throttlefilter", |out| out.attribute("group", &filter.group));
            }
        });
        if !out.form().contains(Form::STATUS) || self.0.is_empty() {
            return;
        }
        out.element("privateData", |out| {
            out.element("nodenames", |out| {
                for (group, node) in self.0.iter().filter_map(|it| Some((&it.group, it.node.as_ref()?))) {
                    out.element("nodename", |out| {
                        out.attribute_str("type", "throttle-filter");
                        out.attribute("group", group);
                        out.attribute("name", node);
                    });
                }
            });
        });
    }
}

xml! {
    /// What the guest writes is thrown away when it stops.
    pub struct Transient {
        attr share_backing: Option<YesNo> = "shareBacking";
    }
}

impl Disk {
    /// The name in the guest, or nothing before the definition was validated.
    pub fn name(&self) -> &str {
        self.target.dev.as_deref().unwrap_or_default()
    }

    /// A source alone, with its format: where a disk is to be copied to.
    pub fn read_source(text: &str) -> Result<(Storage, Option<StorageFormat>)> {
        let document = Document::parse(text, Form::INACTIVE)?;
        let root = document.root().expect_root("disk")?;
        let mut source = Storage::read(root)?;
        if source.is_empty() {
            return Err(ConfError::new(ErrorKind::NoSource, ""));
        }
        if source.auth.is_none() {
            source.auth = root.child("auth").map(StorageAuth::read).transpose()?.map(Box::new);
        }
        let format = root.child("driver").map(|driver| driver.value("type")).transpose()?.flatten();
        Ok((source, format))
    }

    /// Between the names of a transient disk's image and its guest.
    pub const OVERLAY: &'static str = ".TRANSIENT-";

    /// Whether other guests may use what is below at the same time.
    pub fn shares_backing(&self) -> bool {
        self.transient.as_ref().is_some_and(|transient| transient.share_backing == Some(YesNo::Yes))
    }

    /// Whether it is transient and has the image that goes with its guest.
    pub fn has_overlay(&self) -> bool {
        let base = self.storage.layer().and_then(|layer| layer.storage.path());
        let name = base.zip(self.storage.path()).and_then(|(base, path)| path.strip_prefix(base));
        self.transient.is_some() && name.is_some_and(|name| name.starts_with(Self::OVERLAY))
    }

    /// The cache mode; the page cache of one host must not hide writes that another one shares.
    pub fn effective_cache(&self) -> DiskCache {
        if self.driver.cache == DiskCache::Default && self.shareable && !self.readonly {
            return DiskCache::None;
        }
        self.driver.cache
    }

    /// Who asks for the image, wherever the definition has it.
    pub fn storage_auth(&self) -> Option<&StorageAuth> {
        self.storage.auth.as_deref().or(self.auth.as_deref())
    }

    /// How the first image is encrypted, wherever the definition has it.
    pub fn storage_encryption(&self) -> Option<&Encryption> {
        self.storage.encryption.as_deref().or(self.encryption.as_deref())
    }

    /// Whether the first image is encrypted as a whole and QEMU opens it.
    pub fn is_luks(&self) -> bool {
        let by_qemu = |it: &&Encryption| it.format == EncryptionFormat::Luks && !it.is_by_librbd();
        self.format() == StorageFormat::Raw && self.storage_encryption().as_ref().is_some_and(by_qemu)
    }

    /// The image's format; raw where nobody said.
    pub fn format(&self) -> StorageFormat {
        self.driver.format.unwrap_or(StorageFormat::Raw)
    }
}
