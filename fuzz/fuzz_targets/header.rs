//! The first bytes of images, which guests and strangers may have written.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ferrovirt::qemu::fuzz::header(input));
