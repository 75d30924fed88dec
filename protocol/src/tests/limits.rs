//! Every limit of every type, one by one: reached, it is fine both ways; passed by one, it is refused both
//! ways, and what a peer claims is refused before anything is allocated for it.

use std::collections::HashMap;
use std::fmt::Debug;

use bytes::BytesMut;

use crate::every::{Sample, Source, Stretch, Visitor, visit};
use crate::frame::MAX_FRAME;
use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, DecodeError, Encode, EncodeError, Encoder, decode};

/// Limits above this are slow to reach, so each of them is reached in a few types only.
const LARGE: usize = 10_000;

#[derive(Default)]
struct Limits {
    checked: usize,
    reached: HashMap<usize, usize>,
}

fn sample<T: Sample>(target: usize, len: usize, arm: usize) -> (T, Stretch) {
    let mut source = Source::Stretch(Stretch { target, len, arm, ..Stretch::default() });
    let value = T::sample(&mut source);
    let Source::Stretch(stretch) = source else { panic!("the source changed") };
    (value, stretch)
}

fn encode(value: &impl Encode) -> Result<BytesMut, EncodeError> {
    let mut wire = BytesMut::new();
    value.encode(&mut Encoder::new(&mut wire, MAX_FRAME)).map(|()| wire)
}

impl Limits {
    fn check<T: Encode + Decode + Sample + PartialEq + Debug>(
        &mut self,
        name: &str,
        target: usize,
        arm: usize,
    ) {
        let (empty, stretch) = sample::<T>(target, 0, arm);
        let limit = stretch.limit.unwrap_or_else(|| panic!("{name}: nothing has number {target}"));
        let empty = encode(&empty).unwrap();
        let one = encode(&sample::<T>(target, 1, arm).0).unwrap();
        let differs = |(a, b): (&[u8], &[u8])| a != b;
        let at = 4 * empty.chunks(4).zip(one.chunks(4)).position(differs).unwrap();

        for claim in [limit + 1, u32::MAX as usize] {
            let mut wire = one.clone();
            wire[at..at + 4].copy_from_slice(&u32::try_from(claim).unwrap().to_be_bytes());
            let refused = DecodeError::TooLong { len: claim, max: limit };
            assert_eq!(decode::<T>(&wire), Err(refused), "{name}");
        }
        let mut wire = empty.clone();
        wire.truncate(at + 4);
        wire[at..at + 4].copy_from_slice(&u32::try_from(limit).unwrap().to_be_bytes());
        assert!(matches!(decode::<T>(&wire), Err(DecodeError::Truncated { .. })), "{name}");
        self.checked += 1;

        let times = self.reached.entry(limit).or_default();
        *times += 1;
        if limit > LARGE && *times > 2 {
            return;
        }
        let full = sample::<T>(target, limit, arm).0;
        match encode(&full) {
            Ok(wire) => assert_eq!(decode::<T>(&wire).as_ref(), Ok(&full), "{name}"),
            Err(error) => assert_eq!(error, EncodeError::FrameTooLarge { max: MAX_FRAME }, "{name}"),
        }
        let over = sample::<T>(target, limit + 1, arm).0;
        assert_eq!(encode(&over), Err(EncodeError::TooLong { len: limit + 1, max: limit }), "{name}");
    }
}

impl Visitor for Limits {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
        // The last arm of a typed parameter holds text; in all other types the arm changes nothing.
        let arm = 6;
        let (_, stretch) = sample::<T>(usize::MAX, 0, arm);
        for target in 0..stretch.seen {
            self.check::<T>(name, target, arm);
        }
    }

    fn call<P: Procedure>(&mut self) {}
    fn event<E: Event>(&mut self) {}
}

#[test]
fn every_limit_holds_both_ways() {
    let mut limits = Limits::default();
    visit(&mut limits);
    assert!(limits.checked > 1000, "{}", limits.checked);
}

/// Counts the texts in which nothing got through that is no text.
struct Texts(usize);

impl Visitor for Texts {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
        const LEN: usize = 4;
        // As above: the arm with a text.
        let arm = 6;
        let (_, stretch) = sample::<T>(usize::MAX, 0, arm);
        for target in 0..stretch.seen {
            let (value, stretch) = sample::<T>(target, LEN, arm);
            // Opaque values and lists may hold anything.
            if stretch.limit < Some(LEN) || !format!("{value:?}").contains("\"aaaa\"") {
                continue;
            }
            let wire = encode(&value).unwrap();
            let at = wire.windows(4 + LEN).position(|bytes| bytes == b"\0\0\0\x04aaaa").unwrap() + 4;
            for wrong in [b"a\0aa", b"aaa\0", b"\xff\xff\xff\xff", b"\xc3(aa", b"\xed\xa0\x80a", b"aaa\xc3"] {
                let mut wire = wire.clone();
                wire[at..at + LEN].copy_from_slice(wrong);
                assert_eq!(decode::<T>(&wire), Err(DecodeError::Text), "{name}: {wrong:?}");
            }
            self.0 += 1;
        }
    }

    fn call<P: Procedure>(&mut self) {}
    fn event<E: Event>(&mut self) {}
}

#[test]
fn no_text_has_a_zero_byte_or_is_not_utf8() {
    let mut texts = Texts(0);
    visit(&mut texts);
    assert!(texts.0 > 500, "{}", texts.0);
}
