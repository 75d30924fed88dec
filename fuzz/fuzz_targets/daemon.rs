//! The daemon in this process that targets talk to.

use std::sync::LazyLock;

use ferrovirt::rpc::fuzz::World;

pub struct Daemon {
    pub world: World,
    _root: tempfile::TempDir,
}

pub static DAEMON: LazyLock<Daemon> = LazyLock::new(|| {
    let root = tempfile::tempdir().expect("a directory for its files");
    Daemon { world: World::new(root.path()).expect("a daemon in this process"), _root: root }
});
