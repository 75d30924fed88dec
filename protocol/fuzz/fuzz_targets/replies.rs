//! Decodes any bytes as the result of any procedure, and as an error.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ferrovirt_protocol::fuzz::replies(data));
