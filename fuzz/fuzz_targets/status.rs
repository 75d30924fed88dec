//! What another daemon left of a guest that runs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let _refused_or_accepted = ferrovirt::qemu::fuzz::status(text);
    }
});
