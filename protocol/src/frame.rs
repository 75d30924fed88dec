//! The packet around every payload: a length, a header of six words, the payload.
//!
//! ```text
//! u32 length (counts itself) | program | version | procedure | type | serial | status | payload
//! ```
//!
//! A length over [`MAX_FRAME`] or under the header's size is refused as soon as its four bytes are
//! there, before a buffer grows for it.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::xdr::{Decode, DecodeError, DecodeResult, Decoder, Encode, EncodeError, EncodeResult, Encoder};

/// Bytes of the length word.
pub const LENGTH_SIZE: usize = 4;
/// Bytes of the header behind it.
pub const HEADER_SIZE: usize = 24;
/// The longest frame, length word included (VIR_NET_MESSAGE_MAX + its length word).
pub const MAX_FRAME: usize = 32 * 1024 * 1024 + LENGTH_SIZE;
/// The longest frame accepted before a client has authenticated (VIR_NET_MESSAGE_INITIAL).
pub const MAX_FRAME_UNAUTHENTICATED: usize = 65536;
/// Most descriptors beside one frame.
pub const MAX_FDS: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("frame length {len} is under the header's {min} bytes")]
    TooShort { len: usize, min: usize },
    #[error("frame length {len} is over the limit of {max} bytes")]
    TooLong { len: usize, max: usize },
    #[error("frame header: {0}")]
    Header(#[from] DecodeError),
}

/// What a frame is. Unknown values survive decoding so that the receiver can name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameType(pub i32);

impl FrameType {
    pub const CALL: Self = Self(0);
    pub const REPLY: Self = Self(1);
    /// An event: nobody asked, nobody answers.
    pub const MESSAGE: Self = Self(2);
    pub const STREAM: Self = Self(3);
    pub const CALL_WITH_FDS: Self = Self(4);
    pub const REPLY_WITH_FDS: Self = Self(5);
    pub const STREAM_HOLE: Self = Self(6);

    /// Whether a descriptor count stands before the payload.
    pub fn carries_fds(self) -> bool {
        self == Self::CALL_WITH_FDS || self == Self::REPLY_WITH_FDS
    }
}

/// How a call or stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub i32);

impl Status {
    pub const OK: Self = Self(0);
    pub const ERROR: Self = Self(1);
    /// On streams only: more data follows.
    pub const CONTINUE: Self = Self(2);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub program: u32,
    pub version: u32,
    pub procedure: i32,
    pub kind: FrameType,
    pub serial: u32,
    pub status: Status,
}

impl Encode for Header {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        self.program.encode(out)?;
        self.version.encode(out)?;
        self.procedure.encode(out)?;
        self.kind.0.encode(out)?;
        self.serial.encode(out)?;
        self.status.0.encode(out)
    }
}

impl Decode for Header {
    const MIN_SIZE: usize = HEADER_SIZE;

    fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {
        Ok(Self {
            program: u32::decode(input)?,
            version: u32::decode(input)?,
            procedure: i32::decode(input)?,
            kind: FrameType(i32::decode(input)?),
            serial: u32::decode(input)?,
            status: Status(i32::decode(input)?),
        })
    }
}

/// One received packet. The payload shares the read buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub payload: Bytes,
}

/// Cuts the next frame off the front of `buffer`, or says that it is not complete yet.
pub fn cut(buffer: &mut BytesMut, max: usize) -> Result<Option<Frame>, FrameError> {
    let Some(word) = buffer.first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
    let len = u32::from_be_bytes(*word) as usize;
    if len < LENGTH_SIZE + HEADER_SIZE {
        return Err(FrameError::TooShort { len, min: LENGTH_SIZE + HEADER_SIZE });
    }
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if buffer.len() < len {
        return Ok(None);
    }
    let mut frame = buffer.split_to(len).freeze();
    frame.advance(LENGTH_SIZE);
    let header = Header::decode(&mut Decoder::new(&frame[..HEADER_SIZE]))?;
    frame.advance(HEADER_SIZE);
    Ok(Some(Frame { header, payload: frame }))
}

/// Appends one whole frame to `out`. On error `out` is as it was.
pub fn put<T: Encode + ?Sized>(out: &mut BytesMut, header: &Header, payload: &T) -> EncodeResult {
    put_with(out, header, |encoder| payload.encode(encoder))
}

/// Appends one frame whose payload is raw bytes (stream data). On error `out` is as it was.
pub fn put_bytes(out: &mut BytesMut, header: &Header, payload: &[u8]) -> EncodeResult {
    put_with(out, header, |encoder| encoder.raw(payload))
}

/// Appends one frame whose payload `write` encodes. On error `out` is as it was.
pub fn put_with(
    out: &mut BytesMut,
    header: &Header,
    write: impl FnOnce(&mut Encoder<'_>) -> EncodeResult,
) -> EncodeResult {
    let start = out.len();
    let mut encoder = Encoder::new(out, start + MAX_FRAME);
    let result = 0u32
        .encode(&mut encoder)
        .and_then(|()| header.encode(&mut encoder))
        .and_then(|()| write(&mut encoder));
    let len = out.len() - start;
    match (result, u32::try_from(len)) {
        (Ok(()), Ok(wire)) => {
            out[start..start + LENGTH_SIZE].copy_from_slice(&wire.to_be_bytes());
            Ok(())
        }
        (Err(error), _) => {
            out.truncate(start);
            Err(error)
        }
        (Ok(()), Err(_)) => {
            out.truncate(start);
            Err(EncodeError::FrameTooLarge { max: MAX_FRAME })
        }
    }
}
