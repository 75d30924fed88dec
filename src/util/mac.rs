//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A text that is not an ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed mac address")]
pub struct MacError;

impl Mac {
    /// The first three bytes of the addresses that guests get when they name none.
    pub const QEMU_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

    /// A fresh address below `prefix`.
    pub fn random(prefix: [u8; 3]) -> std::io::Result<Self> {
        let mut bytes = [prefix[0], prefix[1], prefix[2], 0, 0, 0];
        super::random::fill(&mut bytes[3..])?;
        Ok(Self(bytes))
    }

    pub fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// Six numbers of one or two hex digits, colons between; what follows a blank is not looked at.
impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let text = text.split(|char: char| char <= ' ').next().unwrap_or_default();
        let mut numbers = text.split(':');
        let mut mac = [0; 6];
        for byte in &mut mac {
            let number = numbers.next().ok_or(MacError)?;
            if !matches!(number.len(), 1 | 2) || !number.bytes().all(|char| char.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(number, 16).map_err(|_| MacError)?;
        }
        if numbers.next().is_some() { Err(MacError) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_forms_print_canonically() {
        for (text, printed) in [
            ("52:54:00:11:22:33", "52:54:00:11:22:33"),
            ("0:1E:FC:E:3a:CB", "00:1e:fc:0e:3a:cb"),
            ("52:54:00:11:22:33 and more", "52:54:00:11:22:33"),
        ] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            " 52:54:00:11:22:33",
            "52:54:00:11:22",
            "52:54:00:11:22:33:44",
            "52:54:00:11:22:333",
            "52:54:00:11:22:",
            "52:54:00:11:22:+3",
            "52-54-00-11-22-33",
            "52:54:00:11:22:xx",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
    }

    #[test]
    fn a_random_one_keeps_its_prefix() {
        let mac = Mac::random(Mac::QEMU_PREFIX).unwrap();
        assert_eq!(mac.0[..3], Mac::QEMU_PREFIX);
        assert!(!mac.is_multicast());
        assert!(Mac([1, 0, 0, 0, 0, 0]).is_multicast());
    }
}
