//! Results of calls, as another daemon sends them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ferrovirt_protocol::fuzz::replies(input));
