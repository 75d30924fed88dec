//! The types of pools: what each needs, which formats it knows.

use crate::conf::devices::StorageFormat;
use crate::conf::xml::{Form, Writer, xml_enum};

xml_enum! {
    /// `type` of a pool, in libvirt's order: the position is a number in some sentences.
    pub enum PoolType {
        Dir = "dir",
        Fs = "fs",
        Netfs = "netfs",
        Logical = "logical",
        Disk = "disk",
        Iscsi = "iscsi",
        IscsiDirect = "iscsi-direct",
        Scsi = "scsi",
        Mpath = "mpath",
        Rbd = "rbd",
        Sheepdog = "sheepdog",
        Gluster = "gluster",
        Zfs = "zfs",
        Vstorage = "vstorage",
    }
}

bitflags::bitflags! {
    /// What the source of a pool consists of.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Needs: u8 {
        const HOST = 1;
        const DEVICE = 1 << 1;
        const DIR = 1 << 2;
        const ADAPTER = 1 << 3;
        const NAME = 1 << 4;
        const INITIATOR = 1 << 5;
        const NETWORK = 1 << 6;
    }
}

/// Words of which one is meant where nobody says which.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub default: &'static str,
    pub all: &'static [&'static str],
}

impl Words {
    pub(super) fn find(self, word: &str) -> Option<&'static str> {
        self.all.iter().find(|known| **known == word).copied()
    }
}

const FILE_SYSTEMS: Words = Words {
    default: "auto",
    all: &[
        "auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat", "hfs+", "xfs",
        "ocfs2", "vmfs",
    ],
};
const NETWORK_FILE_SYSTEMS: Words = Words { default: "auto", all: &["auto", "nfs", "glusterfs", "cifs"] };
const PARTITION_TABLES: Words =
    Words { default: "unknown", all: &["unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2"] };
const VOLUME_GROUPS: Words = Words { default: "lvm2", all: &["unknown", "lvm2"] };
pub(super) const PARTITIONS: Words = Words {
    default: "none",
    all: &["none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended"],
};

impl PoolType {
    /// libvirt's number.
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|other| *other == self).unwrap_or_default()
    }

    pub fn needs(self) -> Needs {
        match self {
            Self::Dir | Self::Mpath => Needs::empty(),
            Self::Fs | Self::Disk => Needs::DEVICE,
            Self::Netfs => Needs::HOST | Needs::DIR,
            Self::Logical | Self::Zfs => Needs::NAME | Needs::DEVICE,
            Self::Iscsi => Needs::HOST | Needs::DEVICE | Needs::INITIATOR,
            Self::IscsiDirect => Needs::HOST | Needs::DEVICE | Needs::NETWORK | Needs::INITIATOR,
            Self::Scsi => Needs::ADAPTER,
            Self::Rbd | Self::Sheepdog => Needs::HOST | Needs::NETWORK | Needs::NAME,
            Self::Gluster => Needs::HOST | Needs::NETWORK | Needs::NAME | Needs::DIR,
            Self::Vstorage => Needs::NAME,
        }
    }

    /// Whether its definition has a `<target>`.
    pub(super) fn has_target(self) -> bool {
        !matches!(self, Self::Rbd | Self::Sheepdog | Self::Gluster | Self::IscsiDirect)
    }

    pub(super) fn source_formats(self) -> Option<Words> {
        match self {
            Self::Fs => Some(FILE_SYSTEMS),
            Self::Netfs => Some(NETWORK_FILE_SYSTEMS),
            Self::Disk => Some(PARTITION_TABLES),
            Self::Logical => Some(VOLUME_GROUPS),
            _ => None,
        }
    }

    /// Whether volumes are images in a format.
    pub fn has_images(self) -> bool {
        matches!(self, Self::Dir | Self::Fs | Self::Netfs | Self::Rbd | Self::Gluster | Self::Vstorage)
    }

    fn write_source_formats(self, out: &mut Writer) {
        if let Some(formats) = self.source_formats() {
            out.element("poolOptions", |out| {
                write_words(out, "sourceFormatType", formats.default, formats.all.iter().copied());
            });
        }
    }

    fn write_volume_formats(self, out: &mut Writer) {
        let images = StorageFormat::ALL.iter().map(|format| format.as_str());
        match self {
            Self::Disk => out.element("volOptions", |out| {
                write_words(out, "targetFormatType", PARTITIONS.default, PARTITIONS.all.iter().copied());
            }),
            Self::Rbd => out.element("volOptions", |out| {
                write_words(out, "targetFormatType", "raw", std::iter::empty());
            }),
            _ if self.has_images() => out.element("volOptions", |out| {
                write_words(out, "targetFormatType", "raw", images);
            }),
            _ => {}
        }
    }
}

fn write_words(out: &mut Writer, name: &str, default: &str, words: impl Iterator<Item = &'static str>) {
    out.element("defaultFormat", |out| out.attribute_str("type", default));
    out.block("enum", |out| {
        out.attribute_str("name", name);
        for word in words {
            out.text_element("value", &word.to_owned());
        }
    });
}

/// The capabilities of storage pools; `is_supported` says of which types the host can have some.
pub fn capabilities(is_supported: impl Fn(PoolType) -> bool) -> String {
    let mut out = Writer::new(Form::INACTIVE);
    out.element("storagepoolCapabilities", |out| {
        for kind in PoolType::ALL {
            out.block("pool", |out| {
                out.attribute("type", kind);
                out.attribute_str("supported", if is_supported(*kind) { "yes" } else { "no" });
                kind.write_source_formats(out);
                kind.write_volume_formats(out);
            });
        }
    });
    out.finish()
}
