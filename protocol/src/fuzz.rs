//! What a fuzzer runs, so that ordinary tests run it too, over the committed corpus.
//!
//! Each target takes any bytes. It panics when decoding accepts what encoding would write differently: every
//! accepted payload has exactly one form, except a char, whose sign is the sender's, and a flag, which is any number.

use std::sync::LazyLock;

use bytes::BytesMut;

use crate::every::{Codec, codecs};
use crate::frame::{self, MAX_FRAME, MAX_FRAME_UNAUTHENTICATED};
use crate::net::Error;
use crate::xdr::{Decoder, decode};

/// Cuts frames until the bytes are used up or refused, and puts each together again.
pub fn frames(data: &[u8]) {
    for max in [MAX_FRAME_UNAUTHENTICATED, MAX_FRAME] {
        let mut rest = BytesMut::from(data);
        while let Ok(Some(frame)) = frame::cut(&mut rest, max) {
            let mut again = BytesMut::new();
            let put = frame::put_bytes(&mut again, &frame.header, &frame.payload);
            assert_eq!(put, Ok(()));
            assert_eq!(frame::cut(&mut again, MAX_FRAME), Ok(Some(frame)));
        }
    }
}

/// Decodes the rest as the arguments of the call, or the message of the event, that the first two bytes pick.
pub fn arguments(data: &[u8]) {
    if let Some((codec, payload)) = pick(data) {
        stable(codec.args, payload);
    }
}

/// Decodes the rest as the result of the call that the first two bytes pick, and as an error.
pub fn replies(data: &[u8]) {
    let Some((codec, payload)) = pick(data) else { return };
    if let Some(ret) = codec.ret {
        stable(ret, payload);
    }
    let _ = decode::<Error>(payload);
    let _ = Decoder::new(payload).string(MAX_FRAME);
}

fn pick(data: &[u8]) -> Option<(Codec, &[u8])> {
    static CODECS: LazyLock<Vec<Codec>> = LazyLock::new(codecs);
    let (number, payload) = data.split_first_chunk::<2>()?;
    let codec = CODECS.get(usize::from(u16::from_be_bytes(*number)) % CODECS.len())?;
    Some((*codec, payload))
}

/// What comes out of a round must survive the next one unchanged.
pub(crate) fn stable(recode: crate::every::Recode, payload: &[u8]) {
    if let Ok(once) = recode(payload) {
        assert_eq!(once.len(), payload.len());
        assert_eq!(recode(&once), Ok(once));
    }
}
