//! Texts of snapshots, checkpoints, backups, secrets, pools, volumes, processors and single devices.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let _refused_or_accepted = ferrovirt::conf::fuzz::xml(text);
    }
});
