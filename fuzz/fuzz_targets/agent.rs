//! What an agent in a guest answers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ferrovirt::qemu::fuzz::agent(input));
