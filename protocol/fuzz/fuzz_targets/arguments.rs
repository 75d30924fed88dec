//! Decodes any bytes as the arguments of any procedure.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ferrovirt_protocol::fuzz::arguments(data));
