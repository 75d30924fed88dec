//! Where a disk's images come from.

use super::{by_qemu, unsupported};
use crate::conf::Result;
use crate::conf::devices::{
    Disk, DiskBus, DiskCache, IoTune, NetworkProtocol, Place, RemoteSource, SnapshotLocation, Storage,
    StorageAuth, StorageFormat, StorageHost, StorageTransport,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::{Facts, Has};
use crate::conf::secret::UsageType;
use crate::conf::storage::{Encryption, EncryptionFormat};

/// One image of a disk.
struct Image<'a> {
    storage: &'a Storage,
    format: StorageFormat,
    auth: Option<&'a StorageAuth>,
    encryption: Option<&'a Encryption>,
}

fn images(disk: &Disk) -> impl Iterator<Item = Image<'_>> {
    let top = Image {
        storage: &disk.storage,
        format: disk.format(),
        auth: disk.storage_auth(),
        encryption: disk.storage_encryption(),
    };
    let below = disk.storage.layers().map(|layer| Image {
        storage: &layer.storage,
        format: layer.format.kind,
        auth: layer.storage.auth.as_deref(),
        encryption: layer.storage.encryption.as_deref(),
    });
    std::iter::once(top).chain(below)
}

/// What no hypervisor could use.
pub(super) fn check(disk: &Disk) -> Result<()> {
    for image in images(disk) {
        if let Some(remote) = image.storage.remote() {
            if remote.protocol == NetworkProtocol::Sheepdog {
                return unsupported("'sheepdog' protocol is no longer supported by any hypervisor driver");
            }
            if let Some(auth) = image.auth {
                check_auth(remote.protocol, auth)?;
            }
        }
        let luks = image.encryption.filter(|encryption| encryption.format == EncryptionFormat::Luks);
        if luks.is_some_and(|luks| luks.cipher.is_some()) {
            return unsupported("supplying <cipher> for domain disk definition is unnecessary");
        }
    }
    if matches!(disk.storage.place, Place::VhostUser(_)) { check_vhost_user(disk) } else { Ok(()) }
}

fn check_auth(protocol: NetworkProtocol, auth: &StorageAuth) -> Result<()> {
    use NetworkProtocol::{Gluster, Iscsi, Nbd, Nfs, Rbd, Sheepdog, Tftp, Vxhs};
    if matches!(protocol, Nbd | Sheepdog | Gluster | Tftp | Vxhs | Nfs) {
        return unsupported(format!("authentication is not supported for protocol '{protocol}'"));
    }
    let word = auth.secret_type.as_deref();
    let Some(usage) = word.and_then(UsageType::from_word) else {
        return unsupported(format!("unknown secret type '{}'", word.unwrap_or("<null>")));
    };
    let expected = match protocol {
        Iscsi => Some(UsageType::Iscsi),
        Rbd => Some(UsageType::Ceph),
        _ => None,
    };
    if expected.is_some_and(|expected| expected != usage) {
        return unsupported(format!("invalid secret type '{usage}'"));
    }
    Ok(())
}

fn check_vhost_user(disk: &Disk) -> Result<()> {
    if disk.target.bus != Some(DiskBus::Virtio) {
        return unsupported("vhostuser disk supports only virtio bus");
    }
    if disk.snapshot != Some(SnapshotLocation::No) {
        return unsupported("only snapshot=no is supported with vhostuser disk");
    }
    let driver = &disk.driver;
    let blockio = &disk.blockio;
    let given = [
        ("cache", driver.cache != DiskCache::Default),
        ("error_policy", driver.error_policy.is_some() || driver.rerror_policy.is_some()),
        ("io", driver.io.is_some()),
        ("ioeventfd", driver.ioeventfd.is_some()),
        ("copy_on_read", driver.copy_on_read.is_some()),
        ("discard", driver.discard.is_some()),
        ("iothread", driver.iothread.is_some()),
        ("detect_zeroes", driver.detect_zeroes.is_some()),
        ("metadata_cache", driver.metadata_cache.is_some()),
        ("iotune", *disk.iotune != IoTune::default()),
        ("backingStore", disk.storage.backing.is_some()),
        ("encryption", disk.storage_encryption().is_some()),
        ("readonly", disk.readonly),
        ("shareable", disk.shareable),
        ("transient", disk.transient.is_some()),
        ("serial", disk.serial.is_some()),
        ("wwn", disk.wwn.is_some()),
        ("vendor", disk.vendor.is_some()),
        ("product", disk.product.is_some()),
        ("auth", disk.storage_auth().is_some()),
        ("geometry", disk.geometry.is_some()),
        (
            "blockio",
            [blockio.logical_block_size, blockio.physical_block_size, blockio.discard_granularity]
                .iter()
                .any(|size| *size > 0),
        ),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => unsupported(format!("{name} is not supported with vhostuser disk")),
        None => Ok(()),
    }
}

/// What QEMU could not use.
pub(super) fn check_for_qemu(domain: &Domain, disk: &Disk, facts: &Facts<'_>) -> Result<()> {
    for image in images(disk).filter(|image| !image.storage.is_empty()) {
        check_format(&image, disk)?;
        if let Some(remote) = image.storage.remote() {
            check_remote(remote, facts)?;
        }
        if let Some(encryption) = image.encryption {
            check_encryption(&image, encryption, facts)?;
        }
    }
    match &disk.storage.place {
        Place::VhostUser(_) => domain.require_shared_memory("vhostuser"),
        Place::VhostVdpa(_) => {
            domain.require_shared_memory("vhostvdpa")?;
            if !matches!(disk.driver.cache, DiskCache::Directsync | DiskCache::None) {
                return by_qemu("disk type 'vhostvdpa' requires cache mode 'directsync' or 'none'");
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_format(image: &Image<'_>, disk: &Disk) -> Result<()> {
    match image.format {
        StorageFormat::Cow => return by_qemu("'cow' storage format is not supported"),
        StorageFormat::Dir => {
            return by_qemu(
                "'directory' storage format is not directly supported by QEMU, use 'dir' disk type instead",
            );
        }
        StorageFormat::Iso => {
            return by_qemu("storage format 'iso' is not directly supported by QEMU, use 'raw' instead");
        }
        _ => {}
    }
    let is_directory = matches!(image.storage.place, Place::Dir(_));
    let is_volume = matches!(image.storage.place, Place::Volume(_));
    if image.format == StorageFormat::Fat && !is_directory && !is_volume {
        return by_qemu("storage format 'fat' is supported only with 'dir' storage type");
    }
    if is_directory {
        if image.format != StorageFormat::Fat {
            return by_qemu("storage type 'dir' requires use of storage format 'fat'");
        }
        if !disk.readonly {
            return by_qemu("virtual FAT storage can't be accessed in read-write mode");
        }
    }
    Ok(())
}

fn check_remote(remote: &RemoteSource, facts: &Facts<'_>) -> Result<()> {
    match remote.protocol {
        NetworkProtocol::Tftp => {
            return by_qemu("'tftp' protocol is not supported with this QEMU binary");
        }
        NetworkProtocol::Nfs => match remote.hosts.as_slice() {
            [StorageHost::Inet { transport: StorageTransport::Tcp, port: 0, .. }] => {}
            [StorageHost::Inet { transport: StorageTransport::Tcp, .. }] => {
                return by_qemu("port cannot be specified in 'nfs' protocol host");
            }
            [_] => return by_qemu("'nfs' host must use TCP protocol"),
            _ => return by_qemu("'nfs' protocol requires the usage of exactly one host"),
        },
        _ => {}
    }
    if remote.tls_hostname.is_some() {
        if remote.protocol != NetworkProtocol::Nbd {
            return by_qemu("'tlsHostname' field is supported only with NBD disks");
        }
        if !facts.has.contains(Has::NBD_TLS_HOSTNAME) {
            return by_qemu("'tlsHostname' field is not supported by this QEMU");
        }
    }
    Ok(())
}

fn check_encryption(image: &Image<'_>, encryption: &Encryption, facts: &Facts<'_>) -> Result<()> {
    let format = encryption.format;
    if matches!(format, EncryptionFormat::Default | EncryptionFormat::Qcow) {
        return by_qemu("old qcow/qcow2 encryption is not supported");
    }
    if encryption.is_by_librbd() {
        let is_rbd = image.storage.remote().is_some_and(|remote| remote.protocol == NetworkProtocol::Rbd);
        if !facts.has.contains(Has::RBD_ENCRYPTION) {
            return by_qemu("librbd encryption is not supported by this QEMU binary");
        }
        if !is_rbd {
            return by_qemu("librbd encryption is supported only with RBD backed disks");
        }
        if encryption.secrets.len() > 1 && !facts.has.contains(Has::RBD_ENCRYPTION_LAYERING) {
            return by_qemu("librbd encryption layering is not supported by this QEMU binary");
        }
        if format == EncryptionFormat::LuksAny && !facts.has.contains(Has::RBD_ENCRYPTION_LUKS_ANY) {
            return by_qemu("luks-any encryption is not supported by this QEMU binary");
        }
        return Ok(());
    }
    match format {
        EncryptionFormat::Luks if !matches!(image.format, StorageFormat::Qcow2 | StorageFormat::Raw) => {
            by_qemu("encryption is supported only with 'raw' and 'qcow2' image format")
        }
        EncryptionFormat::Luks2 | EncryptionFormat::LuksAny => {
            by_qemu(format!("'{format}' is currently not supported by the qemu encryption engine"))
        }
        _ if encryption.secrets.len() > 1 => by_qemu("qemu encryption engine expects only a single secret"),
        _ => Ok(()),
    }
}
