//! What a client sends that speaks in bytes.

#![no_main]

use std::sync::LazyLock;

use ferrovirt::rpc::fuzz::World;
use libfuzzer_sys::fuzz_target;

struct Daemon {
    world: World,
    _root: tempfile::TempDir,
}

static DAEMON: LazyLock<Daemon> = LazyLock::new(|| {
    let root = tempfile::tempdir().expect("a directory for its files");
    Daemon { world: World::new(root.path()).expect("a daemon in this process"), _root: root }
});

fuzz_target!(|input: &[u8]| {
    ferrovirt_protocol::fuzz::frames(input);
    DAEMON.world.bytes(input);
});
