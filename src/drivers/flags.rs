//! Flag words of calls, whatever they are about.

use crate::error::{Error, Result};

/// A flag word of one call.
pub trait CallFlags: bitflags::Flags<Bits = u32> {
    /// The function of libvirt's driver that refuses unknown bits.
    const FUNCTION: &'static str;

    /// Takes a client's word; bits that the call does not know are refused by value.
    fn accept(bits: u32) -> Result<Self> {
        Self::accept_in(bits, Self::FUNCTION)
    }

    /// The same in another function that takes the same flags.
    fn accept_in(bits: u32, function: &'static str) -> Result<Self> {
        match bits & !Self::all().bits() {
            0 => Ok(Self::from_bits_retain(bits)),
            unknown => Err(Error::unsupported_flags(unknown, function)),
        }
    }
}

/// Calls that have a flag word and no flag.
pub fn no_flags(bits: u32, function: &'static str) -> Result<()> {
    match bits {
        0 => Ok(()),
        unknown => Err(Error::unsupported_flags(unknown, function)),
    }
}

macro_rules! flag_words {
    ($($(#[$doc:meta])* $name:ident of $function:literal { $($flag:ident = $bit:expr,)* })*) => {$(
        bitflags::bitflags! {
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub struct $name: u32 { $(const $flag = $bit;)* }
        }

        impl CallFlags for $name {
            const FUNCTION: &'static str = $function;
        }
    )*};
}

pub(crate) use flag_words;
