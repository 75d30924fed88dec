//! What a client sends that speaks in bytes.

#![no_main]

mod daemon;

use daemon::DAEMON;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ferrovirt_protocol::fuzz::frames(input);
    DAEMON.world.bytes(input);
});
