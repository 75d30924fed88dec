//! What the first bytes of an image say: pure, over a header that a guest may have written.

use crate::conf::devices::StorageFormat;
use crate::conf::storage::{EncryptionFormat, VolumeFeature};
use crate::qemu::block;

/// How many bytes of an image are looked at.
pub(super) const HEADER_LEN: usize = 0x8200;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub format: StorageFormat,
    /// In bytes; none where the image is as large as its file.
    pub capacity: Option<u64>,
    pub cluster_size: u64,
    /// None before there were features.
    pub features: Option<Vec<VolumeFeature>>,
    pub encryption: Option<EncryptionFormat>,
    /// Bytes before those of an encrypted raw image.
    pub payload: u64,
    pub backing: Option<block::Backing>,
}

impl Facts {
    pub fn of(header: &[u8]) -> Self {
        let format = block::probe(header);
        let is_qcow2 = format == StorageFormat::Qcow2;
        let luks = format == StorageFormat::Raw && is_luks(header);
        let encryption = match format {
            StorageFormat::Raw if luks => Some(EncryptionFormat::Luks),
            StorageFormat::Qcow2 | StorageFormat::Qcow => qcow_encryption(header),
            _ => None,
        };
        Self {
            format,
            capacity: capacity(format, header),
            cluster_size: u32_at(header, 20)
                .filter(|_| is_qcow2)
                .and_then(|bits| 1u64.checked_shl(bits))
                .unwrap_or(0),
            features: is_qcow2.then(|| features(header)).flatten(),
            encryption,
            payload: if luks { luks_payload(header) } else { 0 },
            backing: block::read(format, header).backing,
        }
    }
}

/// How large the guest sees an image of this format.
pub(super) fn capacity(format: StorageFormat, header: &[u8]) -> Option<u64> {
    match format {
        StorageFormat::Vpc => u64_at(header, 40),
        StorageFormat::Vmdk => {
            u64_at(header, 12).map(u64::swap_bytes).and_then(|sectors| sectors.checked_mul(512))
        }
        _ => block::capacity(format, header),
    }
}

fn is_luks(header: &[u8]) -> bool {
    header.starts_with(b"LUKS\xba\xbe") && header.get(6..8) == Some(&[0, 1])
}

fn luks_payload(header: &[u8]) -> u64 {
    u32_at(header, 104).map_or(0, |sectors| u64::from(sectors) * 512)
}

fn qcow_encryption(header: &[u8]) -> Option<EncryptionFormat> {
    let at = if u32_at(header, 4) == Some(1) { 36 } else { 32 };
    match u32_at(header, at)? {
        1 => Some(EncryptionFormat::Qcow),
        2 => Some(EncryptionFormat::Luks),
        _ => None,
    }
}

fn features(header: &[u8]) -> Option<Vec<VolumeFeature>> {
    const EXTENDED_L2: u64 = 1 << 4;
    const LAZY_REFCOUNTS: u64 = 1;
    if u32_at(header, 4)? < 3 {
        return None;
    }
    let (incompatible, compatible) = (u64_at(header, 72)?, u64_at(header, 80)?);
    let mut features = Vec::new();
    if compatible & LAZY_REFCOUNTS != 0 {
        features.push(VolumeFeature::LazyRefcounts);
    }
    if incompatible & EXTENDED_L2 != 0 {
        features.push(VolumeFeature::ExtendedL2);
    }
    Some(features)
}

fn u32_at(header: &[u8], offset: usize) -> Option<u32> {
    header.get(offset..offset.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}

fn u64_at(header: &[u8], offset: usize) -> Option<u64> {
    header.get(offset..offset.checked_add(8)?)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A qcow2 header: version 3, clusters of 64 KiB, 8 MiB, lazy reference counts, encrypted.
    fn qcow2() -> Vec<u8> {
        let mut header = vec![0; 112];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[7] = 3;
        header[23] = 16;
        header[24..32].copy_from_slice(&(8u64 << 20).to_be_bytes());
        header[35] = 2;
        header[87] = 1;
        header[103] = 104;
        header
    }

    #[test]
    fn a_qcow2_header_tells_size_features_and_encryption() {
        let facts = Facts::of(&qcow2());
        assert_eq!(
            (facts.format, facts.capacity, facts.cluster_size),
            (StorageFormat::Qcow2, Some(8 << 20), 65536)
        );
        assert_eq!(facts.features, Some(vec![VolumeFeature::LazyRefcounts]));
        assert_eq!(facts.encryption, Some(EncryptionFormat::Luks));
        let mut old = qcow2();
        old[7] = 2;
        assert_eq!(Facts::of(&old).features, None);
    }

    #[test]
    fn an_encrypted_raw_image_begins_later() {
        let mut header = b"LUKS\xba\xbe\0\x01".to_vec();
        header.resize(208, 0);
        header[104..108].copy_from_slice(&4096u32.to_be_bytes());
        let facts = Facts::of(&header);
        assert_eq!((facts.format, facts.payload), (StorageFormat::Raw, 2 << 20));
    }

    #[test]
    fn a_hostile_header_is_read_to_its_end_and_not_further() {
        let mut header = qcow2();
        header[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Facts::of(&header).cluster_size, 0);
        for len in 0..header.len() {
            let _ = Facts::of(&header[..len]);
        }
        let mut vmdk = b"KDMV\x01\0\0\0".to_vec();
        vmdk.resize(1024, 0xff);
        assert_eq!(Facts::of(&vmdk).capacity, None);
    }
}
