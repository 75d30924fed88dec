//! What comes before a guest's memory in a file that it was saved in.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _refused_or_accepted = ferrovirt::qemu::fuzz::image(input);
});
