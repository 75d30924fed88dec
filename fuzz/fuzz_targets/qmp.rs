//! What a QEMU says that is not one of ours.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ferrovirt::qemu::fuzz::qmp(input));
