//! XDR (RFC 4506) over one complete frame.
//!
//! A [`Decoder`] works on a payload that has already been received in full, so every length a peer
//! claims is checked against the bytes that are really there before anything is allocated. Lengths
//! also stay under the maximum the interface names, padding must be zero, and [`decode`] refuses
//! bytes that nothing claimed.

use bytes::BytesMut;
use thiserror::Error;

/// Why a payload is not what its type says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("payload ends {missing} bytes early")]
    Truncated { missing: usize },
    #[error("{extra} bytes left over after the payload")]
    LeftOver { extra: usize },
    #[error("length {len} is over the limit of {max}")]
    TooLong { len: usize, max: usize },
    #[error("padding is not zero")]
    Padding,
    #[error("string is not UTF-8 or has a NUL byte")]
    Text,
    #[error("{value} does not fit the type")]
    Range { value: i32 },
    #[error("{value} selects no arm of {union}")]
    Arm { union: &'static str, value: i32 },
}

/// Why a value has no form on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    #[error("length {len} is over the limit of {max}")]
    TooLong { len: usize, max: usize },
    #[error("message is over the limit of {max} bytes")]
    FrameTooLarge { max: usize },
    #[error("string has a NUL byte")]
    Text,
}

pub type DecodeResult<T> = Result<T, DecodeError>;
pub type EncodeResult = Result<(), EncodeError>;

/// A value that appends its XDR form to a buffer.
pub trait Encode {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult;
}

/// A value that is read from the front of a complete payload.
pub trait Decode: Sized {
    /// The fewest bytes any value of this type takes; bounds what a claimed list length may allocate.
    const MIN_SIZE: usize;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self>;
}

/// Reads exactly one `T`: left-over bytes are an error.
pub fn decode<T: Decode>(payload: &[u8]) -> DecodeResult<T> {
    let mut input = Decoder::new(payload);
    let value = T::decode(&mut input)?;
    input.finish()?;
    Ok(value)
}

/// Appends to a caller's buffer, never more than `limit` bytes.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut BytesMut,
    limit: usize,
    /// The length of `out` at which the limit is reached.
    end: usize,
}

impl<'a> Encoder<'a> {
    pub fn new(out: &'a mut BytesMut, limit: usize) -> Self {
        let end = out.len().saturating_add(limit);
        Self { out, limit, end }
    }

    fn put(&mut self, bytes: &[u8]) -> EncodeResult {
        if bytes.len() > self.end - self.out.len() {
            return Err(EncodeError::FrameTooLarge { max: self.limit });
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn length(&mut self, len: usize, max: usize) -> EncodeResult {
        match u32::try_from(len) {
            Ok(wire) if len <= max => self.put(&wire.to_be_bytes()),
            _ => Err(EncodeError::TooLong { len, max }),
        }
    }

    fn padded(&mut self, bytes: &[u8]) -> EncodeResult {
        self.put(bytes)?;
        self.put(&[0; 3][..padding(bytes.len())])
    }

    /// Bytes as they are: the data of a stream has no XDR form.
    pub fn raw(&mut self, bytes: &[u8]) -> EncodeResult {
        self.put(bytes)
    }

    /// Variable-length opaque data of at most `max` bytes.
    pub fn opaque(&mut self, bytes: &[u8], max: usize) -> EncodeResult {
        self.length(bytes.len(), max)?;
        self.padded(bytes)
    }

    /// Fixed-length opaque data: no length on the wire.
    pub fn fixed_opaque(&mut self, bytes: &[u8]) -> EncodeResult {
        self.padded(bytes)
    }

    /// XDR's variable-length array of char: each byte in a word of its own, with its sign.
    pub fn chars(&mut self, bytes: &[u8], max: usize) -> EncodeResult {
        self.length(bytes.len(), max)?;
        self.fixed_chars(bytes)
    }

    /// XDR's fixed-length array of char.
    pub fn fixed_chars(&mut self, bytes: &[u8]) -> EncodeResult {
        bytes.iter().try_for_each(|byte| byte.cast_signed().encode(self))
    }

    /// A string of at most `max` bytes.
    pub fn string(&mut self, text: &str, max: usize) -> EncodeResult {
        if text.as_bytes().contains(&0) {
            return Err(EncodeError::Text);
        }
        self.opaque(text.as_bytes(), max)
    }

    /// A variable-length array of at most `max` items.
    pub fn list<T: Encode>(&mut self, items: &[T], max: usize) -> EncodeResult {
        self.length(items.len(), max)?;
        items.iter().try_for_each(|item| item.encode(self))
    }

    /// A list of strings, each of at most `max_len` bytes.
    pub fn strings(&mut self, items: &[String], max: usize, max_len: usize) -> EncodeResult {
        self.length(items.len(), max)?;
        items.iter().try_for_each(|item| self.string(item, max_len))
    }

    /// An optional value: a boolean, then the value if there is one.
    pub fn option<T>(
        &mut self,
        value: Option<&T>,
        put: impl FnOnce(&mut Self, &T) -> EncodeResult,
    ) -> EncodeResult
    where
        T: ?Sized,
    {
        match value {
            None => self.put(&0u32.to_be_bytes()),
            Some(value) => {
                self.put(&1u32.to_be_bytes())?;
                put(self, value)
            }
        }
    }
}

/// The unread rest of one payload.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Fails unless everything was read.
    pub fn finish(&self) -> DecodeResult<()> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::LeftOver { extra }),
        }
    }

    fn take(&mut self, len: usize) -> DecodeResult<&'a [u8]> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(DecodeError::Truncated { missing: len - self.rest.len() }),
        }
    }

    fn array<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(DecodeError::Truncated { missing: N - self.rest.len() }),
        }
    }

    /// A length prefix that is within `max` and whose items fit in what is left.
    fn length(&mut self, max: usize, min_item_size: usize) -> DecodeResult<usize> {
        let len = u32::from_be_bytes(self.array()?) as usize;
        if len > max {
            return Err(DecodeError::TooLong { len, max });
        }
        let needed = len.saturating_mul(min_item_size);
        if needed > self.rest.len() {
            return Err(DecodeError::Truncated { missing: needed - self.rest.len() });
        }
        Ok(len)
    }

    fn padded(&mut self, len: usize) -> DecodeResult<&'a [u8]> {
        let bytes = self.take(len)?;
        match self.take(padding(len))?.iter().all(|&byte| byte == 0) {
            true => Ok(bytes),
            false => Err(DecodeError::Padding),
        }
    }

    /// Variable-length opaque data of at most `max` bytes.
    pub fn opaque(&mut self, max: usize) -> DecodeResult<&'a [u8]> {
        let len = self.length(max, 1)?;
        self.padded(len)
    }

    /// Fixed-length opaque data.
    pub fn fixed_opaque<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let bytes = self.array()?;
        match self.take(padding(N))?.iter().all(|&byte| byte == 0) {
            true => Ok(bytes),
            false => Err(DecodeError::Padding),
        }
    }

    /// XDR's variable-length array of char, each in a word of its own.
    pub fn chars(&mut self, max: usize) -> DecodeResult<Vec<u8>> {
        let len = self.length(max, 4)?;
        // Whole at once: what grows leaves copies behind, and passwords come this way.
        let mut bytes = Vec::with_capacity(len);
        for _ in 0..len {
            bytes.push(self.char()?);
        }
        Ok(bytes)
    }

    /// XDR's fixed-length array of char.
    pub fn fixed_chars<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.char()?;
        }
        Ok(bytes)
    }

    /// Machines disagree on the sign of a char, so 0xff arrives as -1 or as 255.
    fn char(&mut self) -> DecodeResult<u8> {
        let value = i32::decode(self)?;
        let signed = i8::try_from(value).map(i8::cast_unsigned);
        signed.or_else(|_| u8::try_from(value)).map_err(|_| DecodeError::Range { value })
    }

    /// A string of at most `max` bytes; UTF-8 without NUL, as every text that libvirt's clients send.
    pub fn string(&mut self, max: usize) -> DecodeResult<String> {
        let bytes = self.opaque(max)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Ok(text.to_owned()),
            _ => Err(DecodeError::Text),
        }
    }

    /// A variable-length array of at most `max` items.
    pub fn list<T: Decode>(&mut self, max: usize) -> DecodeResult<Vec<T>> {
        // What a frame can make us allocate is a small multiple of what it took to send it.
        const { assert!(size_of::<T>() <= 8 * T::MIN_SIZE) };
        let len = self.length(max, T::MIN_SIZE.max(1))?;
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(T::decode(self)?);
        }
        Ok(items)
    }

    /// A list of strings, each of at most `max_len` bytes.
    pub fn strings(&mut self, max: usize, max_len: usize) -> DecodeResult<Vec<String>> {
        let len = self.length(max, 4)?;
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.string(max_len)?);
        }
        Ok(items)
    }

    /// An optional value.
    pub fn option<T>(&mut self, get: impl FnOnce(&mut Self) -> DecodeResult<T>) -> DecodeResult<Option<T>> {
        match bool::decode(self)? {
            true => get(self).map(Some),
            false => Ok(None),
        }
    }
}

/// Zero bytes that bring `len` to a multiple of four.
fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
                out.put(&self.to_be_bytes())
            }
        }

        impl Decode for $int {
            const MIN_SIZE: usize = size_of::<$int>();

            fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
                Ok(<$int>::from_be_bytes(input.array()?))
            }
        }
    )*};
}

integers!(u32, i32, u64, i64);

/// `char` and `short` are widened to four bytes each (RFC 4506 knows no smaller integer).
macro_rules! widened {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
                i32::from(*self).encode(out)
            }
        }

        impl Decode for $int {
            const MIN_SIZE: usize = 4;

            fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
                let value = i32::decode(input)?;
                <$int>::try_from(value).map_err(|_| DecodeError::Range { value })
            }
        }
    )*};
}

widened!(i8, u8, i16, u16);

impl Encode for bool {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        u32::from(*self).encode(out)
    }
}

/// What is not zero is true, as libvirt reads it: go-libvirt writes the bytes of a 1 in another order.
impl Decode for bool {
    const MIN_SIZE: usize = 4;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
        Ok(u32::decode(input)? != 0)
    }
}

impl Encode for f64 {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        self.to_bits().encode(out)
    }
}

impl Decode for f64 {
    const MIN_SIZE: usize = 8;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
        u64::decode(input).map(f64::from_bits)
    }
}

impl Encode for () {
    fn encode(&self, _: &mut Encoder<'_>) -> EncodeResult {
        Ok(())
    }
}

impl Decode for () {
    const MIN_SIZE: usize = 0;

    fn decode(_: &mut Decoder<'_>) -> DecodeResult<Self> {
        Ok(())
    }
}

impl<T: Encode, const N: usize> Encode for [T; N] {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        self.iter().try_for_each(|item| item.encode(out))
    }
}

impl<T: Decode + Copy + Default, const N: usize> Decode for [T; N] {
    const MIN_SIZE: usize = T::MIN_SIZE * N;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
        let mut items = [T::default(); N];
        for item in &mut items {
            *item = T::decode(input)?;
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encode: impl FnOnce(&mut Encoder<'_>) -> EncodeResult) -> Result<Vec<u8>, EncodeError> {
        let mut out = BytesMut::new();
        encode(&mut Encoder::new(&mut out, 64)).map(|()| out.to_vec())
    }

    #[test]
    fn values_look_as_rfc_4506_says() {
        for (got, expected) in [
            (encoded(|out| (-2i32).encode(out)), &[255, 255, 255, 254][..]),
            (encoded(|out| 1u64.encode(out)), &[0, 0, 0, 0, 0, 0, 0, 1]),
            (encoded(|out| 1.5f64.encode(out)), &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0]),
            (encoded(|out| true.encode(out)), &[0, 0, 0, 1]),
            (encoded(|out| (-1i8).encode(out)), &[255, 255, 255, 255]),
            (encoded(|out| 9u16.encode(out)), &[0, 0, 0, 9]),
            (encoded(|out| out.string("hello", 5)), b"\0\0\0\x05hello\0\0\0"),
            (encoded(|out| out.opaque(&[1, 2, 3, 4], 4)), &[0, 0, 0, 4, 1, 2, 3, 4]),
            (encoded(|out| out.fixed_opaque(&[1, 2])), &[1, 2, 0, 0]),
            (encoded(|out| out.chars(&[1, 0xff], 2)), &[0, 0, 0, 2, 0, 0, 0, 1, 255, 255, 255, 255]),
            (encoded(|out| out.list(&[1u32, 2], 2)), &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]),
            (encoded(|out| out.option(None::<&u32>, |out, v| v.encode(out))), &[0, 0, 0, 0]),
            (encoded(|out| out.option(Some(&3u32), |out, v| v.encode(out))), &[0, 0, 0, 1, 0, 0, 0, 3]),
        ] {
            assert_eq!(got.as_deref(), Ok(expected));
        }
    }

    #[test]
    fn whatever_is_not_zero_is_true() {
        for (bytes, expected) in [([0, 0, 0, 0], false), ([0, 0, 0, 1], true), ([1, 0, 0, 0], true)] {
            assert_eq!(decode(&bytes), Ok(expected));
        }
    }

    #[test]
    fn what_has_no_form_on_the_wire_is_refused() {
        let too_long = |len, max| Err(EncodeError::TooLong { len, max });
        assert_eq!(encoded(|out| out.string("hello", 4)), too_long(5, 4));
        assert_eq!(encoded(|out| out.opaque(&[0; 3], 2)), too_long(3, 2));
        assert_eq!(encoded(|out| out.chars(&[0; 3], 2)), too_long(3, 2));
        assert_eq!(encoded(|out| out.list(&[0u32; 3], 2)), too_long(3, 2));
        assert_eq!(encoded(|out| out.strings(&["a".into(), "bcd".into()], 2, 2)), too_long(3, 2));
        assert_eq!(encoded(|out| out.string("a\0b", 9)), Err(EncodeError::Text));
        assert_eq!(encoded(|out| out.raw(&[0; 65])), Err(EncodeError::FrameTooLarge { max: 64 }));
    }
}
