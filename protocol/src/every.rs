//! What tests and fuzzers need: a random value of any type, and a visit of every type there is.
//!
//! The generated modules implement [`Sample`] for each type and show all of them to a [`Visitor`] in
//! `remote::every::visit` and its like, so that no test has a list of types that could fall behind.

use std::fmt::Debug;

use bytes::BytesMut;

use crate::frame::MAX_FRAME;
use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, DecodeError, DecodeResult, Encode, Encoder, decode};

/// Shows `visitor` every type, call and event of every program.
pub fn visit<V: Visitor>(visitor: &mut V) {
    crate::net::every::visit(visitor);
    crate::remote::every::visit(visitor);
    crate::qemu::every::visit(visitor);
    crate::admin::every::visit(visitor);
    crate::keepalive::every::visit(visitor);
}

/// Something to do with every type.
pub trait Visitor {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str);
    fn call<P: Procedure>(&mut self);
    fn event<E: Event>(&mut self);
}

/// Decodes one kind of payload and encodes it again.
pub type Recode = fn(&[u8]) -> DecodeResult<BytesMut>;

/// A call or event by number, its types behind function pointers.
#[derive(Debug, Clone, Copy)]
pub struct Codec {
    pub program: u32,
    pub number: i32,
    pub name: &'static str,
    /// Arguments of a call, message of an event.
    pub args: Recode,
    /// Results of a call.
    pub ret: Option<Recode>,
}

/// The codecs of all calls and events.
pub fn codecs() -> Vec<Codec> {
    struct Collect(Vec<Codec>);

    impl Visitor for Collect {
        fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, _: &'static str) {}

        fn call<P: Procedure>(&mut self) {
            self.0.push(Codec {
                program: P::PROGRAM.number,
                number: P::NUMBER,
                name: P::NAME,
                args: recode::<P::Args>,
                ret: Some(recode::<P::Ret>),
            });
        }

        fn event<E: Event>(&mut self) {
            self.0.push(Codec {
                program: E::PROGRAM.number,
                number: E::NUMBER,
                name: E::NAME,
                args: recode::<E::Message>,
                ret: None,
            });
        }
    }

    let mut collect = Collect(Vec::new());
    visit(&mut collect);
    collect.0
}

/// What was decoded had a form on the wire, so it has one again.
pub fn recode<T: Encode + Decode>(payload: &[u8]) -> DecodeResult<BytesMut> {
    let value: T = decode(payload)?;
    let mut out = BytesMut::with_capacity(payload.len());
    match value.encode(&mut Encoder::new(&mut out, MAX_FRAME)) {
        Ok(()) => Ok(out),
        Err(_) => Err(DecodeError::LeftOver { extra: 0 }),
    }
}

/// A value drawn from a source, within the limits of its type.
pub trait Sample {
    fn sample(source: &mut Source<'_>) -> Self;
}

/// What decides how a sample looks.
#[derive(Debug)]
pub enum Source<'a> {
    /// Bytes, and zeros once they are used up, so that shorter means simpler.
    Entropy(&'a [u8]),
    /// Every optional value is there, every list and text has one item, one of them has another length.
    Stretch(Stretch),
}

/// Which of a type's limits a sample reaches for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stretch {
    /// Counts lists, texts and opaque values from the front.
    pub target: usize,
    pub len: usize,
    /// Which arm of a union.
    pub arm: usize,
    /// Afterwards: how many there are, and the limit of the target.
    pub seen: usize,
    pub limit: Option<usize>,
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::Entropy(bytes)
    }

    fn byte(&mut self) -> u8 {
        match self {
            Self::Entropy(bytes) => match bytes.split_first() {
                Some((&first, rest)) => {
                    *bytes = rest;
                    first
                }
                None => 0,
            },
            Self::Stretch(_) => b'a',
        }
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// One of the arms of a union.
    pub fn below(&mut self, arms: usize) -> usize {
        match self {
            Self::Entropy(_) => usize::from(self.byte()) % arms,
            Self::Stretch(stretch) => stretch.arm % arms,
        }
    }

    /// Random lengths are small: limits have tests of their own.
    fn len(&mut self, max: usize) -> usize {
        match self {
            Self::Entropy(_) => usize::from(self.byte()) % (max.min(9) + 1),
            Self::Stretch(stretch) => {
                let index = stretch.seen;
                stretch.seen += 1;
                if index != stretch.target {
                    return 1;
                }
                stretch.limit = Some(max);
                stretch.len
            }
        }
    }

    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.len(max)).map(|_| self.byte()).collect()
    }

    pub fn text(&mut self, max: usize) -> String {
        let len = self.len(max);
        let mut text = String::with_capacity(len);
        for _ in 0..len {
            let c = char::from(self.byte().max(1));
            if text.len() + c.len_utf8() <= len {
                text.push(c);
            }
        }
        text
    }

    pub fn list<T>(&mut self, max: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.len(max)).map(|_| item(self)).collect()
    }

    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() % 2 == 1).then(|| value(self))
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Sample for $int {
            fn sample(source: &mut Source<'_>) -> Self {
                Self::from_be_bytes(source.array())
            }
        }
    )*};
}

integers!(i8, u8, i16, u16, i32, u32, i64, u64);

impl Sample for bool {
    fn sample(source: &mut Source<'_>) -> Self {
        source.byte() % 2 == 1
    }
}

impl Sample for f64 {
    /// Never NaN, which is not equal to itself.
    fn sample(source: &mut Source<'_>) -> Self {
        Self::from(i32::sample(source)) / 8.0
    }
}
