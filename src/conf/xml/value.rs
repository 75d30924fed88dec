//! What an attribute or a text can hold.

use std::fmt::Write as _;

use super::writer::escape_into;
use crate::conf::ConfError;
use crate::util::arch::Arch;
use crate::util::bitmap::Bitmap;
use crate::util::mac::Mac;
use crate::util::uuid::Uuid;

/// Where a value stood that its type does not know.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub element: &'a str,
    /// `None`: it was the element's text.
    pub attribute: Option<&'a str>,
}

/// A value with a written form.
pub trait Value: Sized {
    /// What to add to "Invalid value for attribute …": empty or ` Expected …`.
    const EXPECTED: &'static str = "";

    fn parse(text: &str) -> Option<Self>;

    /// Appends the written form, escaped.
    fn print(&self, out: &mut String);

    /// The answer to a text that is no such value.
    fn refuse(place: Place<'_>, text: &str) -> ConfError {
        match place.attribute {
            Some(name) => ConfError::invalid_attribute(name, place.element, text, Self::EXPECTED),
            None => {
                let (name, text) = (place.element, crate::conf::error::excerpt(text));
                ConfError::xml(format!("Invalid value for element '{name}': '{text}'.{}", Self::EXPECTED))
            }
        }
    }
}

impl Value for String {
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn print(&self, out: &mut String) {
        escape_into(self, out);
    }
}

impl Value for Box<str> {
    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }

    fn print(&self, out: &mut String) {
        escape_into(self, out);
    }
}

impl<V: Value> Value for Box<V> {
    const EXPECTED: &'static str = V::EXPECTED;

    fn parse(text: &str) -> Option<Self> {
        V::parse(text).map(Box::new)
    }

    fn print(&self, out: &mut String) {
        V::print(self, out);
    }

    fn refuse(place: Place<'_>, text: &str) -> ConfError {
        V::refuse(place, text)
    }
}

/// Types of `util` that read and print themselves.
macro_rules! foreign {
    ($($type:ty: |$text:ident| $parse:expr, |$place:ident, $bad:ident| $refusal:expr;)*) => {
        $(
            impl Value for $type {
                fn parse($text: &str) -> Option<Self> {
                    $parse
                }

                fn print(&self, out: &mut String) {
                    let _ = write!(out, "{self}");
                }

                fn refuse($place: Place<'_>, $bad: &str) -> ConfError {
                    $refusal
                }
            }
        )*
    };
}

/// As many CPUs as libvirt's CPU sets name.
const MAX_CPUS: usize = 16384;

foreign! {
    Uuid: |text| text.parse().ok(), |place, _text| ConfError::internal(format!("malformed {} element", place.element));
    Mac: |text| text.parse().ok(), |_place, text| ConfError::xml(format!("unable to parse mac address '{text}'"));
    Arch: |text| text.parse().ok(), |_place, text| ConfError::unsupported(format!("Unknown architecture {text}"));
    Bitmap: |text| Self::parse(text, MAX_CPUS).ok(),
        |_place, text| ConfError::invalid_arg(format!("Failed to parse bitmap '{text}'")).by_nobody();
}

macro_rules! integers {
    ($($type:ty: $expected:literal;)*) => {
        $(
            impl Value for $type {
                const EXPECTED: &'static str = $expected;

                fn parse(text: &str) -> Option<Self> {
                    text.trim_start().parse().ok()
                }

                fn print(&self, out: &mut String) {
                    let _ = write!(out, "{self}");
                }
            }
        )*
    };
}

integers! {
    u8: " Expected non-negative integer value";
    u16: " Expected non-negative integer value";
    u32: " Expected non-negative integer value";
    u64: " Expected non-negative integer value";
    i32: " Expected integer value";
    i64: " Expected long long integer value";
}

/// Reads `0x1f`, `037` and `31` alike, as C's strtoul does with base 0.
pub(crate) fn parse_any_base(text: &str) -> Option<u64> {
    let text = text.trim_start();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    }
    match text.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// A number in any base when read, `0x` and at least `DIGITS` hexadecimal digits when written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hex<const DIGITS: usize>(pub u32);

impl<const DIGITS: usize> Value for Hex<DIGITS> {
    const EXPECTED: &'static str = " Expected non-negative integer value";

    fn parse(text: &str) -> Option<Self> {
        parse_any_base(text).and_then(|value| value.try_into().ok()).map(Self)
    }

    fn print(&self, out: &mut String) {
        let _ = write!(out, "0x{:0digits$x}", self.0, digits = DIGITS);
    }
}

/// A number in any base when read, decimal when written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dec(pub u32);

impl Value for Dec {
    const EXPECTED: &'static str = " Expected non-negative integer value";

    fn parse(text: &str) -> Option<Self> {
        parse_any_base(text).and_then(|value| value.try_into().ok()).map(Self)
    }

    fn print(&self, out: &mut String) {
        let _ = write!(out, "{}", self.0);
    }
}

super::xml_enum! {
    /// `yes` or `no`; absent is `None` around it.
    pub enum YesNo {
        Yes = "yes",
        No = "no",
    }
}

super::xml_enum! {
    /// `on` or `off`; absent is `None` around it.
    pub enum OnOff {
        On = "on",
        Off = "off",
    }
}

impl From<YesNo> for bool {
    fn from(value: YesNo) -> Self {
        value == YesNo::Yes
    }
}

impl From<OnOff> for bool {
    fn from(value: OnOff) -> Self {
        value == OnOff::On
    }
}
