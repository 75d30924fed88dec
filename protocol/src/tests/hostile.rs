//! `hostile.txt`: payloads that no honest peer sends, and what is said about each.

use std::collections::HashMap;
use std::fmt::Debug;

use super::data;
use crate::every::{Recode, Sample, Visitor, recode, visit};
use crate::procedure::{Event, Procedure};
use crate::xdr::{Decode, Encode};

#[derive(Default)]
struct ByName(HashMap<&'static str, Recode>);

impl Visitor for ByName {
    fn data<T: Encode + Decode + Sample + PartialEq + Debug>(&mut self, name: &'static str) {
        self.0.insert(name, recode::<T>);
    }

    fn call<P: Procedure>(&mut self) {}
    fn event<E: Event>(&mut self) {}
}

/// `61*3` is three bytes of 0x61; spaces and line ends mean nothing.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace().filter(|word| *word != "-") {
        let (hex, times) = word.split_once('*').unwrap_or((word, "1"));
        let one: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_else(|_| panic!("'{word}'")))
            .collect();
        bytes.extend(one.repeat(times.parse().unwrap()));
    }
    bytes
}

#[test]
fn hostile_payloads_are_refused_with_the_reason() {
    let mut types = ByName::default();
    visit(&mut types);
    let corpus = std::fs::read_to_string(data("hostile.txt")).unwrap();
    let mut cases = 0;
    for case in corpus.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [name, payload, expected] = case.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not three columns: {case}")
        };
        let recode = types.0.get(name).unwrap_or_else(|| panic!("no type {name}"));
        match recode(&bytes(payload)) {
            Ok(_) => assert_eq!(expected, "fine", "{case}"),
            Err(error) => assert_eq!(error.to_string(), expected, "{case}"),
        }
        cases += 1;
    }
    assert!(cases > 20);
}
