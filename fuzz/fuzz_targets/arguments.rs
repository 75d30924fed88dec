//! Arguments of every call, decoded and served.

#![no_main]

mod daemon;

use daemon::DAEMON;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ferrovirt_protocol::fuzz::arguments(input);
    DAEMON.world.call(input);
});
