//! The 16 bytes that name a guest, a network, a secret for life.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

tokio::task_local! {
    /// The number of what the task that runs makes.
    static DRAWN: OnceLock<Uuid>;
}

/// A future in which [`Uuid::of_new`] is the same each time: who judges a text and who carries it out both read
/// it, and have to mean the same object.
pub async fn drawn_once<F: Future>(future: F) -> F::Output {
    DRAWN.scope(OnceLock::new(), future).await
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

/// A text that is not a uuid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed uuid")]
pub struct UuidError;

impl Uuid {
    /// A fresh random one (RFC 9562 version 4).
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        super::random::fill(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// The number of an object whose definition has none: a fresh one, but within [`drawn_once`].
    pub fn of_new() -> std::io::Result<Self> {
        let fresh = Self::random()?;
        Ok(DRAWN.try_with(|drawn| *drawn.get_or_init(|| fresh)).unwrap_or(fresh))
    }

    /// Whether it can name a host: firmware that has none reports all bytes equal.
    pub fn is_plausible(&self) -> bool {
        self.0.iter().any(|byte| *byte != self.0[0])
    }
}

/// Takes every form libvirt takes: hex digit pairs in either case, with any number of dashes and blanks
/// between pairs and blanks around the whole.
impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let mut rest = text.trim_ascii().bytes();
        let mut uuid = [0; 16];
        for byte in &mut uuid {
            let high = rest.find(|char| !matches!(char, b'-' | b' '));
            *byte = 16 * digit(high)? + digit(rest.next())?;
        }
        match rest.next() {
            None => Ok(Self(uuid)),
            Some(_) => Err(UuidError),
        }
    }
}

fn digit(char: Option<u8>) -> Result<u8, UuidError> {
    let value = char.and_then(|char| char::from(char).to_digit(16)).ok_or(UuidError)?;
    u8::try_from(value).map_err(|_| UuidError)
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANONICAL: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

    #[test]
    fn every_accepted_form_prints_canonically() {
        for text in [
            CANONICAL,
            "c7a5fdbdedaf9455926ad65c16db1809",
            "C7A5FDBD-EDAF-9455-926A-D65C16DB1809",
            "  c7a5 fdbd edaf 9455 926a d65c 16db 1809\t\n",
            "c7-a5-fd-bd-ed-af-94-55-92-6a-d6-5c-16-db-18-09",
            "-c7a5fdbd--edaf9455926ad65c16db1809",
        ] {
            assert_eq!(text.parse::<Uuid>().unwrap().to_string(), CANONICAL, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "c7a5fdbd-edaf-9455-926a-d65c16db180",
            "c7a5fdbd-edaf-9455-926a-d65c16db18090",
            "c7a5fdbd-edaf-9455-926a-d65c16db180g",
            "c-7a5fdbdedaf9455926ad65c16db1809",
            "c7a5fdbd-edaf-9455-926a-d65c16db1809-",
            "c7a5fdbd\tedaf9455926ad65c16db1809",
        ] {
            assert_eq!(text.parse::<Uuid>(), Err(UuidError), "{text}");
        }
    }

    #[tokio::test]
    async fn within_one_judgement_a_new_object_has_one_number() {
        let two = || (Uuid::of_new().unwrap(), Uuid::of_new().unwrap());
        let (one, other) = drawn_once(async { two() }).await;
        assert_eq!(one, other);
        let (third, fourth) = two();
        assert!(third != one && fourth != one && third != fourth);
    }

    #[test]
    fn random_ones_differ_and_carry_version_and_variant() {
        let (one, two) = (Uuid::random().unwrap(), Uuid::random().unwrap());
        assert_ne!(one, two);
        assert_eq!((one.0[6] >> 4, one.0[8] >> 6), (4, 2));
    }

    #[test]
    fn firmware_without_a_uuid_is_recognised() {
        assert!(!Uuid([0xff; 16]).is_plausible());
        assert!(CANONICAL.parse::<Uuid>().unwrap().is_plausible());
    }
}
