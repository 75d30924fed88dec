//! Random values of every type come back from the wire as they were, and from nothing but the whole of it.

use std::fmt::Debug;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};

use crate::every::{Sample, Source, Stretch, Visitor, visit};
use crate::frame::MAX_FRAME;
use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, Encode, Encoder, decode};

fn encoded(value: &impl Encode, name: &str) -> BytesMut {
    let mut wire = BytesMut::new();
    value.encode(&mut Encoder::new(&mut wire, MAX_FRAME)).unwrap_or_else(|error| panic!("{name}: {error}"));
    wire
}

struct RoundTrip<'a> {
    entropy: &'a [u8],
    types: usize,
}

impl Visitor for RoundTrip<'_> {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
        let value = T::sample(&mut Source::new(self.entropy));
        let mut wire = encoded(&value, name);
        assert!(wire.len() >= T::MIN_SIZE, "{name}: {} bytes, MIN_SIZE is {}", wire.len(), T::MIN_SIZE);
        assert_eq!(wire.len() % 4, 0, "{name}");
        let back: T = decode(&wire).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(back, value, "{name}");
        for cut in 0..wire.len() {
            assert!(decode::<T>(&wire[..cut]).is_err(), "{name} decodes from {cut} of {} bytes", wire.len());
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

struct Smallest;

impl Visitor for Smallest {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
        // No entropy: nothing optional, everything empty. Only a union may have a smaller arm.
        let first = encoded(&T::sample(&mut Source::new(&[])), name).len();
        let smallest = (0..8)
            .map(|arm| {
                encoded(&T::sample(&mut Source::Stretch(Stretch { arm, ..Stretch::default() })), name).len()
            })
            .fold(first, usize::min);
        assert_eq!(smallest, T::MIN_SIZE, "{name}");
    }

    fn call<P: Procedure>(&mut self) {}
    fn event<E: Event>(&mut self) {}
}

#[test]
fn min_size_is_what_the_smallest_value_takes() {
    visit(&mut Smallest);
}
