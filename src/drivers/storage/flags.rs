//! The flag words of storage calls.

use crate::drivers::flags::flag_words;
pub use crate::drivers::flags::{CallFlags, no_flags};

flag_words!(
    /// `virStoragePoolDefineFlags`
    DefineFlags of "storagePoolDefineXML" {
        VALIDATE = 1,
    }
    /// `virStoragePoolCreateFlags`
    CreateFlags of "storagePoolCreate" {
        BUILD = 1,
        BUILD_OVERWRITE = 1 << 1,
        BUILD_NO_OVERWRITE = 1 << 2,
    }
    /// `virStoragePoolBuildFlags`
    BuildFlags of "virStorageBackendFileSystemBuild" {
        NO_OVERWRITE = 1 << 2,
        OVERWRITE = 1 << 3,
    }
    /// `virStorageXMLFlags`
    XmlFlags of "storagePoolGetXMLDesc" {
        INACTIVE = 1,
    }
    /// `virConnectListAllStoragePoolsFlags`
    ListFlags of "storageConnectListAllStoragePools" {
        INACTIVE = 1,
        ACTIVE = 1 << 1,
        PERSISTENT = 1 << 2,
        TRANSIENT = 1 << 3,
        AUTOSTART = 1 << 4,
        NO_AUTOSTART = 1 << 5,
        DIR = 1 << 6,
        FS = 1 << 7,
        NETFS = 1 << 8,
        LOGICAL = 1 << 9,
        DISK = 1 << 10,
        ISCSI = 1 << 11,
        SCSI = 1 << 12,
        MPATH = 1 << 13,
        RBD = 1 << 14,
        SHEEPDOG = 1 << 15,
        GLUSTER = 1 << 16,
        ZFS = 1 << 17,
        VSTORAGE = 1 << 18,
        ISCSI_DIRECT = 1 << 19,
    }
    /// `virStorageVolCreateFlags`, for a new volume
    VolumeFlags of "storageVolCreateXML" {
        PREALLOCATE_METADATA = 1,
        VALIDATE = 1 << 2,
    }
    /// `virStorageVolCreateFlags`, for a copy
    CloneFlags of "storageVolCreateXMLFrom" {
        PREALLOCATE_METADATA = 1,
        REFLINK = 1 << 1,
        VALIDATE = 1 << 2,
    }
    /// `virStorageVolResizeFlags`
    ResizeFlags of "storageVolResize" {
        ALLOCATE = 1,
        DELTA = 1 << 1,
        SHRINK = 1 << 2,
    }
    /// `virStorageVolInfoFlags`
    InfoFlags of "storageVolGetInfoFlags" {
        PHYSICAL = 1,
    }
    /// `virStorageVolUploadFlags`
    UploadFlags of "storageVolUpload" {
        SPARSE = 1,
    }
    /// `virStorageVolDownloadFlags`
    DownloadFlags of "storageVolDownload" {
        SPARSE = 1,
    }
);
