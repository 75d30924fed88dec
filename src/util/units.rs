//! Sizes with a unit, as XML and clients write them: `4 GiB`, `512 MB`, `1048576`.

use thiserror::Error;

/// The largest size in bytes that libvirt takes for memory.
pub const MAX_MEMORY_BYTES: u64 = i64::MAX as u64;

/// Why a size is no size. The texts are libvirt's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// libvirt's code: `VIR_ERR_INVALID_ARG`.
    #[error("unknown suffix '{suffix}'")]
    UnknownSuffix { suffix: String },
    /// libvirt's code: `VIR_ERR_OVERFLOW`.
    #[error("value too large: {value}{suffix}")]
    TooLarge { value: u64, suffix: String },
    /// libvirt's code: `VIR_ERR_OVERFLOW`.
    #[error("size value too large")]
    MemoryTooLarge,
}

/// The factor of a unit: `b`, `byte`, `bytes`; `k`, `KiB` and so on up to `e` by 1024; `KB` and so on by
/// 1000. Case does not matter.
pub fn factor(suffix: &str) -> Option<u64> {
    let lower = suffix.to_ascii_lowercase();
    if matches!(lower.as_str(), "b" | "byte" | "bytes") {
        return Some(1);
    }
    let mut chars = lower.chars();
    let power = "kmgtpe".find(chars.next()?)?;
    let base: u64 = match chars.as_str() {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return None,
    };
    Some(base.pow(u32::try_from(power).ok()? + 1))
}

/// `value` in bytes. Without a suffix it counts in units of `default_factor`. Fails above `max`.
pub fn scale(value: u64, suffix: Option<&str>, default_factor: u64, max: u64) -> Result<u64, UnitError> {
    let suffix = suffix.unwrap_or_default();
    let factor = match suffix {
        "" => default_factor,
        _ => factor(suffix).ok_or_else(|| UnitError::UnknownSuffix { suffix: suffix.to_owned() })?,
    };
    match value.checked_mul(factor) {
        Some(bytes) if bytes <= max => Ok(bytes),
        _ => Err(UnitError::TooLarge { value, suffix: suffix.to_owned() }),
    }
}

/// A memory size in KiB, rounded up; KiB is also what it counts in without a suffix.
pub fn memory_kib(value: u64, suffix: Option<&str>) -> Result<u64, UnitError> {
    let kib = scale(value, suffix, 1024, MAX_MEMORY_BYTES)?.div_ceil(1024);
    if kib >= MAX_MEMORY_BYTES.div_ceil(1024) { Err(UnitError::MemoryTooLarge) } else { Ok(kib) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_libvirts_factors() {
        for (suffix, expected) in [
            ("b", 1),
            ("Bytes", 1),
            ("k", 1 << 10),
            ("KiB", 1 << 10),
            ("KB", 1000),
            ("kb", 1000),
            ("M", 1 << 20),
            ("mib", 1 << 20),
            ("MB", 1_000_000),
            ("G", 1 << 30),
            ("GB", 1_000_000_000),
            ("TiB", 1 << 40),
            ("P", 1 << 50),
            ("EiB", 1 << 60),
            ("eb", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(factor(suffix), Some(expected), "{suffix}");
        }
        for suffix in ["", "x", "bb", "KiBs", "Ki", "ki b", "é"] {
            assert_eq!(factor(suffix), None, "{suffix}");
        }
    }

    #[test]
    fn memory_counts_in_kib_and_rounds_up() {
        assert_eq!(memory_kib(4, Some("GiB")), Ok(4 << 20));
        assert_eq!(memory_kib(1025, Some("b")), Ok(2));
        assert_eq!(memory_kib(7, None), Ok(7));
        assert_eq!(memory_kib(1, Some("MB")), Ok(977));
        assert_eq!(memory_kib(0, Some("KiB")), Ok(0));
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let error = |value, suffix| memory_kib(value, suffix).unwrap_err().to_string();
        assert_eq!(error(1, Some("parsec")), "unknown suffix 'parsec'");
        assert_eq!(error(8, Some("EiB")), "value too large: 8EiB");
        assert_eq!(error(u64::MAX, None), "value too large: 18446744073709551615");
        assert_eq!(error(MAX_MEMORY_BYTES, Some("b")), "size value too large");
    }
}
