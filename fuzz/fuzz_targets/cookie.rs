//! Cookies of migrations, as another host sends them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _refused_or_accepted = ferrovirt::qemu::fuzz::cookie(input);
});
