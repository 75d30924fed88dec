//! Images as block nodes: `libvirt-N-storage` holds the bytes, `libvirt-N-format` what they mean.
//!
//! ```text
//!   device ──► [copy-on-read] ──► N-format ──► N-storage      raw images have no format node
//!                                     └─ backing ──► M-format ──► …
//! ```

use serde_json::Value;

use super::line::Props;
use super::{Result, internal, unsupported};
use crate::conf::devices::{DetectZeroes, Discard, Disk, DiskCache, Place, Storage, StorageFormat};
use crate::conf::xml::OnOff;

/// One image of a chain.
struct Image<'a> {
    storage: &'a Storage,
    format: StorageFormat,
    metadata_cache: Option<u64>,
    readonly: bool,
    detect_zeroes: Option<DetectZeroes>,
    disk: &'a Disk,
}

/// The images of a disk, top first.
fn images(disk: &Disk) -> Vec<Image<'_>> {
    let cache = disk.driver.metadata_cache.as_ref().map(|cache| cache.max_size.bytes);
    let top = Image {
        storage: &disk.storage,
        format: disk.format(),
        metadata_cache: cache,
        readonly: disk.readonly,
        detect_zeroes: disk.driver.detect_zeroes,
        disk,
    };
    let below = disk.storage.layers().map(|layer| Image {
        storage: &layer.storage,
        format: layer.format.kind,
        metadata_cache: layer.format.metadata_cache.as_ref().map(|cache| cache.max_size.bytes),
        readonly: true,
        detect_zeroes: None,
        disk,
    });
    std::iter::once(top).chain(below).collect()
}

/// What `-blockdev` (or `blockdev-add`) takes for a disk's images, lowest first. Nothing for an empty drive.
pub fn chain(disk: &Disk) -> Result<Vec<Props>> {
    if disk.storage.is_empty() {
        return Ok(Vec::new());
    }
    let images = images(disk);
    let mut nodes = Vec::new();
    let mut below: Option<String> = None;
    for image in images.iter().rev() {
        let has_backing = below.is_some();
        if has_backing && !image.format.has_backing() {
            return unsupported(format!("storage format '{}' does not support backing store", image.format));
        }
        nodes.push(image.storage_node()?);
        if image.has_format_node() {
            nodes.push(image.format_node(below.as_deref())?);
        }
        below = Some(image.top_node()?);
    }
    if disk.driver.copy_on_read == Some(OnOff::On) {
        let props = Props::driver("copy-on-read")
            .set("node-name", copy_on_read_node(disk))
            .set("file", below.unwrap_or_default())
            .set("discard", "unmap");
        nodes.push(props);
    }
    Ok(nodes)
}

/// The node that the disk's device reads and writes.
pub fn top_node(disk: &Disk) -> Result<Option<String>> {
    if disk.storage.is_empty() {
        return Ok(None);
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

/// QEMU's block driver for a place on this host.
pub fn backend(place: &Place) -> Result<(&'static str, &str)> {
    match place {
        Place::File(Some(path)) => Ok(("file", path)),
        Place::Block(Some(path)) => Ok(("host_device", path)),
        Place::File(None) | Place::Block(None) | Place::Dir(None) => internal("disk source path is missing"),
        Place::Dir(Some(_)) => unsupported("disk type 'dir' is not supported"),
        Place::Other(kind, _) => unsupported(format!("disk type '{kind}' is not supported")),
    }
}

impl Image<'_> {
    fn number(&self) -> Result<u32> {
        match self.storage.index {
            Some(number) => Ok(number),
            None => internal("disk source has no node number"),
        }
    }

    fn has_format_node(&self) -> bool {
        self.format != StorageFormat::Raw
    }

    fn top_node(&self) -> Result<String> {
        let kind = if self.has_format_node() { "format" } else { "storage" };
        Ok(format!("libvirt-{}-{kind}", self.number()?))
    }

    fn storage_node(&self) -> Result<Props> {
        if let Some((name, _)) = self.storage.extras.iter().find(|(name, _)| &**name != "seclabel") {
            return unsupported(format!("disk source element '{name}' is not supported"));
        }
        if self.storage.fdgroup.is_some() {
            return unsupported("disk sources from descriptors are not supported");
        }
        let (mut driver, path) = backend(&self.storage.place)?;
        if self.storage.is_host_cdrom {
            driver = "host_cdrom";
        }
        let props = Props::driver(driver)
            .set("filename", path)
            .maybe("aio", self.disk.driver.io.map(|io| io.as_str()));
        let name = format!("libvirt-{}-storage", self.number()?);
        if self.has_format_node() {
            let props = props.set("node-name", name).set("auto-read-only", true).set("discard", "unmap");
            return Ok(props.maybe("cache", self.cache()));
        }
        Ok(self.own_options(props.set("node-name", name)))
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

    fn format_node(&self, below: Option<&str>) -> Result<Props> {
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
            StorageFormat::Raw
            | StorageFormat::None
            | StorageFormat::Dir
            | StorageFormat::Iso
            | StorageFormat::Cow => {
                return internal(format!("mishandled storage format '{}'", self.format));
            }
        };
        let name = format!("libvirt-{}-format", self.number()?);
        let mut props = self.own_options(Props::new().set("node-name", name)).set("driver", driver);
        if self.format == StorageFormat::Qcow2 {
            props = props
                .nonzero("cache-size", self.metadata_cache.unwrap_or_default())
                .switch("discard-no-unref", self.disk.driver.discard_no_unref);
        }
        props = props.set("file", format!("libvirt-{}-storage", self.number()?));
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
