//! What the comparison with libvirt's own daemon has brought to light: events, the order of checks, old calls.

use std::fs;
use std::path::PathBuf;

use ferrovirt_compat::{Daemon, Program, halting, run};

use crate::daemon;

/// A running guest on a new image; where that lies.
fn start(daemon: &Daemon, name: &str) -> PathBuf {
    let image = daemon.path(&format!("{name}.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "1M"]).ok();
    daemon.run(&halting(name).device(&format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        image.display()
    )));
    image
}

fn all_events(daemon: &Daemon) -> Program {
    let mut watcher = daemon.python_beside("watch_all_events(conn)");
    watcher.expect("watching\n");
    watcher
}

#[test]
fn a_saved_guest_is_told_of_as_shut_down_by_the_host_and_then_stopped() {
    let daemon = daemon();
    start(&daemon, "s");
    let mut events = daemon.events();
    daemon.ok(&["save", "s", daemon.path("saved").to_str().unwrap()]);
    events.expect("s shutdown host\n");
    assert_eq!(events.expect("stopped saved\n"), "s stopped saved\n");
}

#[test]
fn the_memory_of_a_snapshot_is_told_of_as_a_completed_job() {
    let daemon = daemon();
    start(&daemon, "s");
    let mut events = all_events(&daemon);
    let memory = format!("file={}", daemon.path("memory").display());
    daemon.ok(&["snapshot-create-as", "s", "one", "--live", "--memspec", &memory]);
    events.expect("s migration_iteration 1\n");
    let seen = events.expect("s job_completed [");
    assert!(seen.contains("s suspended snapshot"), "{seen}");
    let seen = events.expect("s resumed");
    assert!(seen.contains("'memory_total', 'operation'"), "{seen}");
}

#[test]
fn the_end_of_a_backup_is_told_for_the_job_and_for_each_disk() {
    let daemon = daemon();
    start(&daemon, "b");
    let mut events = all_events(&daemon);
    daemon.ok(&["backup-begin", "b"]);
    events.expect("b job_completed [");
    // A push backup of a whole disk (5) that has completed (0).
    events.expect("b.qcow2 5 0\n");
    events.expect("b block_job_2 vda 5 0\n");
}

#[test]
fn a_definition_for_a_transient_guest_is_added_and_not_updated() {
    let daemon = daemon();
    let guest = halting("passing");
    daemon.create(&guest);
    let mut events = daemon.events();
    daemon.define(&guest);
    assert_eq!(events.expect("\n"), "passing defined added\n");
    daemon.define(&guest);
    assert_eq!(events.expect("\n"), "passing defined updated\n");
}

#[test]
fn images_to_commit_are_looked_for_before_the_guest_has_to_run() {
    let daemon = daemon();
    start(&daemon, "c");
    daemon.ok(&["destroy", "c"]);
    let refused = daemon.virsh(&["blockcommit", "c", "vda", "--active"]).fails();
    assert!(refused.contains("could not find base image in chain for 'vda'"), "{refused}");
}

#[test]
fn a_migration_is_found_unsafe_before_the_other_host_is_looked_for() {
    let daemon = daemon();
    start(&daemon, "m");
    let nowhere = "qemu+unix:///system?socket=/nowhere";
    let refused = daemon.virsh(&["migrate", "m", nowhere, "--p2p"]).fails();
    assert!(refused.contains("Unsafe migration: Migration without shared storage is unsafe"), "{refused}");
    let refused = daemon.virsh(&["migrate", "m", nowhere, "--p2p", "--unsafe"]).fails();
    assert!(refused.contains("'/nowhere': No such file or directory"), "{refused}");
}

#[test]
fn a_volume_can_be_deleted_whose_download_nobody_ended() {
    let daemon = daemon();
    let pool = daemon.path("pool");
    fs::create_dir(&pool).unwrap();
    daemon.ok(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap()]);
    daemon.ok(&["vol-create-as", "p", "v", "1M"]);
    let script = "volume = conn.storagePoolLookupByName('p').storageVolLookupByName('v')\n\
                  stream = conn.newStream()\nvolume.download(stream, 0, 0)\nprint(volume.delete())";
    assert_eq!(daemon.python(script).ok(), "0\n");
}
