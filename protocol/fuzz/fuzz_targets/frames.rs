//! Cuts frames out of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ferrovirt_protocol::fuzz::frames(data));
