//! What the first bytes of an image say: pure functions over a header that a guest may have written.

use crate::conf::devices::StorageFormat;

/// How many bytes of an image are looked at.
pub(super) const HEADER_LEN: usize = 0x8200;

/// The image below another, as the upper one names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// A path, or `json:{…}`, or a URI.
    pub name: String,
    /// Unknown where the upper image does not say.
    pub format: Option<StorageFormat>,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub backing: Option<Backing>,
    /// The guest's data is in another file.
    pub has_data_file: bool,
}

/// The format that an image's magic number stands for; raw without one. Only for images whose format nobody
/// has told: what a guest writes to a raw disk can look like anything.
pub fn probe(header: &[u8]) -> StorageFormat {
    let has = |offset: usize, magic: &[u8]| header.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let be = |offset| u32_at(header, offset);
    let le = |offset| u32_at(header, offset).map(u32::swap_bytes);
    if has(32769, b"CD001") {
        StorageFormat::Iso
    } else if has(0, b"conectix") && be(12) == Some(0x10000) {
        StorageFormat::Vpc
    } else if has(64, b"\x7f\x10\xda\xbe") && le(68) == Some(0x0001_0001) {
        StorageFormat::Vdi
    } else if has(0, b"WithouFreSpacExt") {
        StorageFormat::Ploop
    } else if has(0, b"OOOM") && be(4) == Some(2) {
        StorageFormat::Cow
    } else if has(0, b"QFI") && be(4) == Some(1) {
        StorageFormat::Qcow
    } else if has(0, b"QFI") && matches!(be(4), Some(2 | 3)) {
        StorageFormat::Qcow2
    } else if has(0, b"QED") {
        StorageFormat::Qed
    } else if has(0, b"KDMV") && matches!(le(4), Some(1..=3)) {
        StorageFormat::Vmdk
    } else {
        StorageFormat::Raw
    }
}

/// Reads what an image of this format says of others. A header that makes no sense names none.
pub fn read(format: StorageFormat, header: &[u8]) -> Header {
    let backing = match format {
        StorageFormat::Qcow | StorageFormat::Qcow2 => qcow_backing(header),
        StorageFormat::Qed => qed_backing(header),
        StorageFormat::Vmdk => vmdk_backing(header),
        StorageFormat::Cow => cow_backing(header),
        _ => None,
    };
    let has_data_file = format == StorageFormat::Qcow2
        && u32_at(header, 4) >= Some(3)
        && u64_at(header, 72).is_some_and(|features| features & 4 != 0);
    Header { backing, has_data_file }
}

/// How large the guest sees an image of which this is the beginning. None where the image is as large as its
/// file, or where the format does not say it in the beginning.
pub fn capacity(format: StorageFormat, header: &[u8]) -> Option<u64> {
    match format {
        StorageFormat::Qcow | StorageFormat::Qcow2 => u64_at(header, 24),
        StorageFormat::Qed => u64_at(header, 48).map(u64::swap_bytes),
        StorageFormat::Vdi => u64_at(header, 0x170).map(u64::swap_bytes),
        _ => None,
    }
}

fn u32_at(header: &[u8], offset: usize) -> Option<u32> {
    let bytes = header.get(offset..offset.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn u64_at(header: &[u8], offset: usize) -> Option<u64> {
    let bytes = header.get(offset..offset.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn text_at(header: &[u8], offset: usize, len: usize) -> Option<String> {
    let bytes = header.get(offset..offset.checked_add(len)?)?;
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok().filter(|text| !text.is_empty())
}

fn qcow_backing(header: &[u8]) -> Option<Backing> {
    let offset = usize::try_from(u64_at(header, 8)?).ok()?;
    let len = usize::try_from(u32_at(header, 16)?).ok()?;
    if offset == 0 || len == 0 || len > 1023 {
        return None;
    }
    Some(Backing { name: text_at(header, offset, len)?, format: qcow2_backing_format(header, offset) })
}

/// Between header and backing file name stand extensions: kind, length, content padded to eight bytes.
fn qcow2_backing_format(header: &[u8], end: usize) -> Option<StorageFormat> {
    const BACKING_FORMAT: u32 = 0xE279_2ACA;
    let mut offset = match u32_at(header, 4)? {
        0 | 1 => return None,
        2 => 72,
        _ => usize::try_from(u32_at(header, 100)?).ok()?,
    };
    while offset.checked_add(8)? <= end {
        let (kind, len) = (u32_at(header, offset)?, usize::try_from(u32_at(header, offset + 4)?).ok()?);
        offset += 8;
        match kind {
            0 => return None,
            BACKING_FORMAT => {
                let name = text_at(header, offset, len)?;
                // Drivers of protocols stand for bytes as they are.
                let format = StorageFormat::from_word(&name).filter(|it| *it != StorageFormat::None);
                return Some(format.unwrap_or(StorageFormat::Raw));
            }
            _ => offset = offset.checked_add(len)?.checked_next_multiple_of(8)?,
        }
    }
    None
}

fn qed_backing(header: &[u8]) -> Option<Backing> {
    let (little32, little64) = (
        |offset| u32_at(header, offset).map(u32::swap_bytes),
        |offset| u64_at(header, offset).map(u64::swap_bytes),
    );
    let features = little64(16)?;
    if features & 1 == 0 {
        return None;
    }
    let (offset, len) = (little32(56)?, little32(60)?);
    let name = text_at(header, usize::try_from(offset).ok()?, usize::try_from(len).ok()?)?;
    // The image says whether the format must not be guessed, or shall be.
    let format = (features & 4 != 0).then_some(StorageFormat::Raw);
    Some(Backing { name, format })
}

fn vmdk_backing(header: &[u8]) -> Option<Backing> {
    const BEFORE: &[u8] = b"parentFileNameHint=\"";
    let descriptor = header.get(0x200..header.len().min(0x200 + 20 * 512))?;
    let start = descriptor.windows(BEFORE.len()).position(|words| words == BEFORE)? + BEFORE.len();
    let len = descriptor.get(start..)?.iter().position(|byte| *byte == b'"')?;
    let name = text_at(descriptor, start, len)?;
    Some(Backing { name, format: Some(StorageFormat::Vmdk) })
}

fn cow_backing(header: &[u8]) -> Option<Backing> {
    text_at(header, 8, 1024).map(|name| Backing { name, format: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A qcow2 header with extensions and a backing file name.
    fn qcow2(version: u32, extensions: &[(u32, &[u8])], name: &str) -> Vec<u8> {
        let mut header = vec![0; if version == 2 { 72 } else { 104 }];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&version.to_be_bytes());
        if version > 2 {
            header[100..104].copy_from_slice(&104u32.to_be_bytes());
        }
        for (kind, content) in extensions {
            header.extend(kind.to_be_bytes());
            header.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            header.extend(*content);
            header.resize(header.len().next_multiple_of(8), 0);
        }
        header.extend([0; 8]);
        let offset = u64::try_from(header.len()).unwrap();
        header[8..16].copy_from_slice(&offset.to_be_bytes());
        header[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        header.extend(name.as_bytes());
        header
    }

    #[test]
    fn an_image_names_the_one_below_and_its_format() {
        let named = |format| Some(Backing { name: "/base.img".to_owned(), format });
        for version in [2, 3] {
            let header = qcow2(version, &[(0x6803_f857, b"xx"), (0xE279_2ACA, b"qcow2")], "/base.img");
            assert_eq!(probe(&header), StorageFormat::Qcow2);
            assert_eq!(read(StorageFormat::Qcow2, &header).backing, named(Some(StorageFormat::Qcow2)));
        }
        let header = qcow2(3, &[(0xE279_2ACA, b"host_device")], "/base.img");
        assert_eq!(read(StorageFormat::Qcow2, &header).backing, named(Some(StorageFormat::Raw)));
        let header = qcow2(3, &[], "/base.img");
        assert_eq!(read(StorageFormat::Qcow2, &header).backing, named(None));
        assert_eq!(read(StorageFormat::Raw, &header).backing, None);
    }

    #[test]
    fn a_hostile_header_names_nothing_and_ends() {
        let mut header = qcow2(3, &[(1, &[0; 8])], "/x");
        header[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(
            read(StorageFormat::Qcow2, &header).backing,
            Some(Backing { name: "/x".to_owned(), format: None })
        );
        header[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(read(StorageFormat::Qcow2, &header).backing, None);
        let full = qcow2(3, &[(0xE279_2ACA, b"raw")], "/x");
        for len in 0..full.len() {
            let _ = read(StorageFormat::Qcow2, &full[..len]);
            let _ = read(StorageFormat::Qed, &full[..len]);
            let _ = read(StorageFormat::Vmdk, &full[..len]);
            let _ = probe(&full[..len]);
        }
    }
}
