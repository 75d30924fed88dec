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

use crate::net;
pub use crate::net::{FrameType, Header, Status};
use crate::xdr::{Decode, DecodeError, Decoder, Encode, EncodeError, EncodeResult, Encoder};

/// Bytes of the length word.
pub const LENGTH_SIZE: usize = net::MESSAGE_LEN_MAX;
/// Bytes of the header behind it.
pub const HEADER_SIZE: usize = net::MESSAGE_HEADER_MAX;
/// The longest frame, length word included.
pub const MAX_FRAME: usize = net::MESSAGE_MAX + LENGTH_SIZE;
/// The longest frame accepted before a client has authenticated.
pub const MAX_FRAME_UNAUTHENTICATED: usize = net::MESSAGE_INITIAL;
/// Most descriptors beside one frame.
pub const MAX_FDS: usize = net::MESSAGE_NUM_FDS_MAX;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("frame length {len} is under the header's {min} bytes")]
    TooShort { len: usize, min: usize },
    #[error("frame length {len} is over the limit of {max} bytes")]
    TooLong { len: usize, max: usize },
    #[error("frame header: {0}")]
    Header(#[from] DecodeError),
}

impl FrameType {
    /// Whether a descriptor count stands before the payload.
    pub fn carries_fds(self) -> bool {
        self == Self::CALL_WITH_FDS || self == Self::REPLY_WITH_FDS
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
