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
fn the_memory_of_a_snapshot_is_told_of_as_a_completed_job() {
    let daemon = daemon();
    start(&daemon, "s");
    let mut events = all_events(&daemon);
    let memory = format!("file={}", daemon.path("memory").display());
    daemon.ok(&["snapshot-create-as", "s", "one", "--live", "--memspec", &memory]);
    events.expect("s migration_iteration 1\n");
    let seen = events.expect("s job_completed [");
    assert!(seen.contains("s suspended"), "{seen}");
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
    daemon.create(&halting("passing"));
    let xml = daemon.ok(&["dumpxml", "passing", "--inactive"]);
    let mut events = daemon.events();
    let define = || daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    define();
    assert_eq!(events.expect("\n"), "passing defined added\n");
    define();
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

#[test]
fn a_disk_that_is_added_stands_with_those_of_its_bus() {
    let daemon = daemon();
    let cdrom = "<controller type='scsi' model='virtio-scsi'/><disk type='file' device='cdrom'>\
                 <target dev='sda' bus='scsi'/><readonly/></disk>";
    let file = "<disk type='file' device='disk'><source file='/nowhere'/><target dev='vda'/></disk>";
    daemon.define(&halting("d").device(file).device(cdrom));
    // Its name says which bus that is.
    daemon.ok(&["attach-disk", "d", "/nowhere", "vdb", "--config"]);
    let listed = daemon.ok(&["domblklist", "d"]);
    let targets: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(targets, ["vda", "vdb", "sda"]);
}

#[test]
fn a_snapshot_of_a_guest_with_a_cdrom_can_be_redefined_as_it_reads() {
    let daemon = daemon();
    let image = daemon.path("r.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "1M"]).ok();
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda'/></disk>",
        image.display()
    );
    let cdrom = "<disk type='file' device='cdrom'><target dev='hda'/><readonly/></disk>";
    daemon.define(&halting("r").device(&disk).device(cdrom));
    daemon.ok(&["snapshot-create-as", "r", "one"]);
    let xml = daemon.ok(&["snapshot-dumpxml", "r", "one"]);
    daemon.with_xml(&xml, |file| daemon.ok(&["snapshot-create", "r", file, "--redefine", "--current"]));
}

#[test]
fn an_internal_snapshot_tells_of_its_passes_through_memory() {
    let daemon = daemon();
    start(&daemon, "i");
    let mut events = all_events(&daemon);
    daemon.ok(&["snapshot-create-as", "i", "one"]);
    events.expect("i migration_iteration 1\n");
}

#[test]
fn limits_keep_what_belongs_to_them() {
    let daemon = daemon();
    start(&daemon, "l");
    let tune =
        |options: &[&str]| daemon.virsh(&[&["blkdeviotune", "l", "vda", "--config"], options].concat());
    tune(&["--read-bytes-sec", "5", "--read-bytes-sec-max", "50", "--read-bytes-sec-max-length", "3"]).ok();
    tune(&["--write-bytes-sec-max-length", "0"]).ok();
    let shown = tune(&[]).ok();
    let length = shown.lines().find(|line| line.starts_with("read_bytes_sec_max_length"));
    assert_eq!(length, Some("read_bytes_sec_max_length: 1"), "{shown}");
    let refused = daemon.virsh(&["numatune", "l", "--mode", "preferred", "--config"]).fails();
    assert!(refused.contains("unsupported configuration: nodeset for NUMA memory tuning"), "{refused}");
    daemon.ok(&["iothreadadd", "l", "1", "--config"]);
    daemon.ok(&["destroy", "l"]);
    let refused = daemon.virsh(&["domtime", "l", "--time", "5"]).fails();
    assert!(refused.contains("qemu doesn't support rtc-reset-reinjection command"), "{refused}");
}

#[test]
fn pools_are_checked_for_what_only_their_start_would_use() {
    let daemon = daemon();
    let define = |arguments: &[&str]| daemon.virsh(&[&["pool-define-as", "p"], arguments].concat()).fails();
    let rbd = ["rbd", "--source-host", "h", "--source-name", "n", "--auth-type", "bogus", "--auth-username"];
    let refused = define(&[&rbd[..], &["me", "--secret-usage", "s"]].concat());
    assert!(refused.contains("unknown auth type 'bogus'"), "{refused}");
    let wwn = ["scsi", "--adapter-wwnn", "bogus", "--adapter-wwpn", "10000000c9831b4b", "--target", "/dev"];
    assert!(define(&wwn).contains("Malformed wwn: bogus"));
    let ccw = "<disk type='file' device='disk'><source file='/nowhere'/><target dev='vda'/>\
               <address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0000'/></disk>";
    let refused =
        daemon.with_xml(&halting("c").device(ccw).xml(), |file| daemon.virsh(&["define", file]).fails());
    assert!(refused.contains("CCW addresses are not supported by machine type 'pc"), "{refused}");
}
