//! What an attribute or a text can hold.

use std::fmt::Write as _;

use super::writer::escape_into;

/// A value with a written form.
pub trait Value: Sized {
    /// What to add to "Invalid value for attribute …": empty or ` Expected …`.
    const EXPECTED: &'static str = "";

    fn parse(text: &str) -> Option<Self>;

    /// Appends the written form, escaped.
    fn print(&self, out: &mut String);
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
