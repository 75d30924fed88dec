//! What tests and fuzzers need: a random value of any type, and a visit of every type there is.
//!
//! The generated modules implement [`Sample`] for each type and show all of them to a [`Visitor`] in
//! `remote::every::visit` and its like, so that no test has a list of types that could fall behind.

use std::fmt::Debug;

use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, Encode};

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

/// A value drawn from a source, within the limits of its type.
pub trait Sample {
    fn sample(source: &mut Source<'_>) -> Self;
}

/// Bytes that decide what a sample looks like; zeros once they are used up, so shorter means simpler.
#[derive(Debug)]
pub struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((&first, rest)) => {
                self.bytes = rest;
                first
            }
            None => 0,
        }
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// A number under `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// Small lengths: the limits themselves have tests of their own.
    fn len(&mut self, max: usize) -> usize {
        self.below(max.min(9) + 1)
    }

    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.len(max)).map(|_| self.byte()).collect()
    }

    pub fn text(&mut self, max: usize) -> String {
        let mut text = String::new();
        for _ in 0..self.len(max) {
            let c = char::from(self.byte().max(1));
            if text.len() + c.len_utf8() <= max {
                text.push(c);
            }
        }
        text
    }

    pub fn list<T>(&mut self, max: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.len(max) / 2).map(|_| item(self)).collect()
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;
    use crate::frame::MAX_FRAME;
    use crate::xdr::{Encoder, decode};

    /// Encodes a sample of each type, decodes it, and compares.
    struct RoundTrip<'a> {
        entropy: &'a [u8],
        types: usize,
    }

    impl Visitor for RoundTrip<'_> {
        fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
            let value = T::sample(&mut Source::new(self.entropy));
            let mut wire = BytesMut::new();
            value.encode(&mut Encoder::new(&mut wire, MAX_FRAME)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(wire.len() >= T::MIN_SIZE, "{name}: {} bytes, MIN_SIZE is {}", wire.len(), T::MIN_SIZE);
            assert_eq!(wire.len() % 4, 0, "{name}");
            let back: T = decode(&wire).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(back, value, "{name}");
            for cut in 0..wire.len() {
                assert!(
                    decode::<T>(&wire[..cut]).is_err(),
                    "{name} decodes from {cut} of {} bytes",
                    wire.len()
                );
            }
            wire.extend_from_slice(&[0; 4]);
            assert!(decode::<T>(&wire).is_err(), "{name} ignores bytes behind it");
            self.types += 1;
        }

        fn call<P: Procedure>(&mut self) {}
        fn event<E: Event>(&mut self) {}
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_type_survives_the_wire(entropy in vec(any::<u8>(), 0..512)) {
            let mut round_trip = RoundTrip { entropy: &entropy, types: 0 };
            visit(&mut round_trip);
            assert!(round_trip.types > 700);
        }
    }
}
