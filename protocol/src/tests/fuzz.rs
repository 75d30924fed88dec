//! The fuzz targets, over their committed corpus and over every sample there is.

use std::fmt::Debug;

use bytes::BytesMut;
use proptest::prelude::any;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

use super::data;
use crate::every::{Sample, Source, Visitor, codecs, visit};
use crate::frame::MAX_FRAME;
use crate::fuzz;
use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, Encode, Encoder};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = data("../../../fuzz/seeds").join(target);
    let files =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let inputs: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!inputs.is_empty());
    inputs
}

#[test]
fn the_corpus_holds() {
    corpus("frame").iter().for_each(|input| fuzz::frames(input));
    corpus("arguments").iter().for_each(|input| fuzz::arguments(input));
    corpus("replies").iter().for_each(|input| fuzz::replies(input));
}

#[test]
fn no_change_of_the_corpus_is_trouble() {
    type Target = fn(&[u8]);
    let targets: [(&str, Target); 3] =
        [("frame", fuzz::frames), ("arguments", fuzz::arguments), ("replies", fuzz::replies)];
    for (target, run) in targets {
        let inputs = corpus(target);
        let change =
            (any::<Index>(), any::<Index>(), 0..24_usize, proptest::collection::vec(any::<u8>(), 0..8));
        let tried = TestRunner::deterministic().run(&change, |(input, at, removed, instead)| {
            let mut input = input.get(&inputs).clone();
            let at = at.index(input.len() + 1);
            let end = (at + removed).min(input.len());
            input.splice(at..end, instead);
            run(&input);
            Ok(())
        });
        assert!(tried.is_ok(), "{target}: {tried:?}");
    }
}

/// One valid payload of each type, as any procedure's arguments and reply: nearly always the wrong one.
#[derive(Default)]
struct Swap(Vec<Vec<u8>>);

impl Visitor for Swap {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, _: &'static str) {
        let mut wire = BytesMut::new();
        let value = T::sample(&mut Source::new(&[1, 3, 5, 7, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]));
        value.encode(&mut Encoder::new(&mut wire, MAX_FRAME)).unwrap();
        self.0.push(wire.to_vec());
    }

    fn call<P: Procedure>(&mut self) {}
    fn event<E: Event>(&mut self) {}
}

#[test]
fn payloads_of_other_procedures_are_no_trouble() {
    let mut payloads = Swap::default();
    visit(&mut payloads);
    for codec in codecs() {
        for payload in &payloads.0 {
            fuzz::stable(codec.args, payload);
            codec.ret.iter().for_each(|ret| fuzz::stable(*ret, payload));
        }
    }
}
