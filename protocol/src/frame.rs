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
use zeroize::{Zeroize, Zeroizing};

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

/// The header of the frame that begins `buffer`, as soon as it is there.
pub fn begun(buffer: &[u8]) -> Option<Header> {
    let header = buffer.get(LENGTH_SIZE..LENGTH_SIZE + HEADER_SIZE)?;
    Header::decode(&mut Decoder::new(header)).ok()
}

/// Cuts the next frame off the front of `buffer`, or says that it is not complete yet.
pub fn cut(buffer: &mut BytesMut, max: usize) -> Result<Option<Frame>, FrameError> {
    cut_with(buffer, max, |_| false)
}

/// The same, where some payloads are secret: such a one leaves nothing in the buffer, and is wiped when it is
/// dropped.
pub fn cut_with(
    buffer: &mut BytesMut,
    max: usize,
    is_secret: impl FnOnce(&Header) -> bool,
) -> Result<Option<Frame>, FrameError> {
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
    let mut frame = buffer.split_to(len);
    frame.advance(LENGTH_SIZE);
    let header = Header::decode(&mut Decoder::new(&frame[..HEADER_SIZE]))?;
    frame.advance(HEADER_SIZE);
    if !is_secret(&header) {
        return Ok(Some(Frame { header, payload: frame.freeze() }));
    }
    let payload = Bytes::from_owner(Zeroizing::new(frame.to_vec()));
    frame.zeroize();
    Ok(Some(Frame { header, payload }))
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
    let mut encoder = Encoder::new(out, MAX_FRAME);
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

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Header = Header {
        program: 0x2000_8086,
        version: 1,
        procedure: 157,
        kind: FrameType::CALL,
        serial: 7,
        status: Status::OK,
    };

    fn with_length(len: u32) -> BytesMut {
        BytesMut::from(&len.to_be_bytes()[..])
    }

    #[test]
    fn frames_are_cut_one_by_one_and_only_when_whole() {
        let mut sent = BytesMut::new();
        put(&mut sent, &CALL, &5u32).unwrap();
        put_bytes(&mut sent, &Header { serial: 8, ..CALL }, b"raw").unwrap();
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for byte in &sent {
            buffer.extend_from_slice(&[*byte]);
            frames.extend(cut(&mut buffer, MAX_FRAME).unwrap());
        }
        let payloads: Vec<_> = frames.iter().map(|frame| (frame.header.serial, &frame.payload[..])).collect();
        assert_eq!(payloads, [(7, &[0, 0, 0, 5][..]), (8, b"raw")]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_secret_is_taken_out_of_the_buffer() {
        let mut buffer = BytesMut::new();
        put_bytes(&mut buffer, &CALL, b"passphrase").unwrap();
        assert_eq!(begun(&buffer[..27]), None);
        assert_eq!(begun(&buffer), Some(CALL));
        let all = buffer.as_ptr_range();
        let frame = cut_with(&mut buffer, MAX_FRAME, |header| *header == CALL).unwrap().unwrap();
        assert_eq!(&frame.payload[..], b"passphrase");
        assert!(!all.contains(&frame.payload.as_ptr()));
    }

    #[test]
    fn a_bad_length_is_refused_as_soon_as_it_is_there() {
        for (len, max, expected) in [
            (0, MAX_FRAME, Err(FrameError::TooShort { len: 0, min: 28 })),
            (27, MAX_FRAME, Err(FrameError::TooShort { len: 27, min: 28 })),
            (28, MAX_FRAME, Ok(None)),
            (33_554_436, MAX_FRAME, Ok(None)),
            (33_554_437, MAX_FRAME, Err(FrameError::TooLong { len: 33_554_437, max: MAX_FRAME })),
            (u32::MAX, MAX_FRAME, Err(FrameError::TooLong { len: u32::MAX as usize, max: MAX_FRAME })),
            (65_536, MAX_FRAME_UNAUTHENTICATED, Ok(None)),
            (65_537, MAX_FRAME_UNAUTHENTICATED, Err(FrameError::TooLong { len: 65_537, max: 65_536 })),
        ] {
            let mut buffer = with_length(len);
            assert_eq!(cut(&mut buffer, max), expected, "{len}");
            assert!(buffer.capacity() < 1024, "{len} made the buffer grow");
        }
    }

    #[test]
    fn what_does_not_fit_a_frame_leaves_the_buffer_as_it_was() {
        let mut out = BytesMut::from(&b"before"[..]);
        let room = MAX_FRAME - LENGTH_SIZE - HEADER_SIZE;
        let refused = Err(EncodeError::FrameTooLarge { max: MAX_FRAME });
        assert_eq!(put_bytes(&mut out, &CALL, &vec![0; room + 1]), refused);
        assert_eq!(&out[..], b"before");
        assert_eq!(put_bytes(&mut out, &CALL, &vec![0; room]), Ok(()));
        let _before = out.split_to(6);
        assert_eq!(cut(&mut out, MAX_FRAME).unwrap().unwrap().payload.len(), room);
    }

    #[test]
    fn a_value_within_its_limits_may_still_be_too_large_for_a_frame() {
        let mut out = BytesMut::new();
        let names = vec!["x".repeat(4 << 20); 9];
        let ret = crate::remote::ConnectListDefinedDomainsRet { names };
        let refused = Err(EncodeError::FrameTooLarge { max: MAX_FRAME });
        assert_eq!(put(&mut out, &CALL, &ret), refused);
        assert!(out.is_empty());
    }

    #[test]
    fn types_and_statuses_of_tomorrow_survive() {
        let mut out = BytesMut::new();
        let header = Header { kind: FrameType(99), status: Status(-3), ..CALL };
        put(&mut out, &header, &()).unwrap();
        assert_eq!(cut(&mut out, MAX_FRAME).unwrap().unwrap().header, header);
    }
}
