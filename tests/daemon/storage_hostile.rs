//! Storage where somebody means harm, or the disk is full.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use ferrovirt_compat::{Daemon, Kind, Signal, eventually, run, signal};

use crate::pools::Disk;
use crate::{daemon, on_upstream};

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");

/// A qcow2 header: version 3, clusters of 64 KiB, 1 MiB, and a name of an image below it.
fn qcow2(below: &str) -> Vec<u8> {
    let mut header = vec![0; 1024];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[7] = 3;
    header[8..16].copy_from_slice(&512u64.to_be_bytes());
    header[16..20].copy_from_slice(&(below.len() as u32).to_be_bytes());
    header[23] = 16;
    header[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    header[103] = 104;
    header[512..512 + below.len()].copy_from_slice(below.as_bytes());
    header
}

/// Headers that promise too much, chains without an end, pipes that nobody writes to, links out of the pool: a refresh
/// is done with them at once, and deletes nothing outside.
#[test]
fn what_lies_in_a_pool_cannot_hold_up_its_refresh() {
    let daemon = daemon();
    let pool = daemon.path("pool");
    fs::create_dir(&pool).unwrap();
    fs::write(daemon.path("precious"), "years of work").unwrap();
    let mut absurd = qcow2("");
    absurd[20..24].fill(0xff);
    absurd[24..32].fill(0xff);
    absurd[36..48].fill(0xff);
    let mut far = qcow2("x");
    far[8..20].fill(0xff);
    for (name, content) in [
        ("absurd", absurd),
        ("far", far),
        ("itself", qcow2("itself")),
        ("one", qcow2("other")),
        ("other", qcow2("one")),
        ("out", qcow2("../precious")),
        ("pipe-below", qcow2("pipe")),
        ("device-below", qcow2("/dev/zero")),
        ("vmdk", [b"KDMV\x01\0\0\0".to_vec(), vec![0xff; 1016]].concat()),
        ("luks", [b"LUKS\xba\xbe\0\x01".to_vec(), vec![0xff; 1016]].concat()),
        ("empty", Vec::new()),
    ] {
        fs::write(pool.join(name), content).unwrap();
    }
    run("mkfifo", &[pool.join("pipe").to_str().unwrap()]).ok();
    symlink("link", pool.join("link")).unwrap();
    symlink(daemon.path("precious"), pool.join("way-out")).unwrap();
    symlink("/dev/zero", pool.join("zero")).unwrap();
    daemon.ok(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap()]);
    let listed = daemon.ok(&["vol-list", "p"]);
    for name in
        ["absurd", "far", "itself", "one", "other", "out", "pipe-below", "vmdk", "luks", "empty", "way-out"]
    {
        assert!(listed.contains(name), "{listed}");
        daemon.ok(&["vol-dumpxml", name, "p"]);
    }
    for name in ["pipe ", "link ", "zero "] {
        assert!(!listed.contains(&format!(" {name}")), "{listed}");
    }
    daemon.ok(&["vol-delete", "way-out", "p"]);
    daemon.ok(&["vol-delete", "out", "p"]);
    daemon.ok(&["pool-refresh", "p"]);
    daemon.ok(&["pool-destroy", "p"]);
    assert_eq!(fs::read_to_string(daemon.path("precious")).unwrap(), "years of work");
    assert!(pool.join("one").exists(), "volumes are not deleted with their pool");
}

/// A file system of its own, mounted by the daemon where nobody else sees it.
#[test]
fn a_full_disk_leaves_nothing_under_the_final_name() {
    if on_upstream() {
        return;
    }
    let daemon = Daemon::start(Kind::Instead(OURS), "");
    let disk = Disk::new(&daemon, 16);
    let (small, large) = (daemon.path("small"), daemon.path("large"));
    for directory in [&small, &large] {
        fs::create_dir(directory).unwrap();
    }
    let (target, source) = (small.to_str().unwrap(), large.to_str().unwrap());
    let as_fs = ["pool-create-as", "p", "fs", "--source-dev", &disk.path, "--source-format", "ext4"];
    daemon.ok(&[&as_fs[..], &["--target", target, "--build", "--overwrite"]].concat());
    daemon.ok(&["pool-create-as", "q", "dir", "--target", source]);
    daemon.ok(&["vol-create-as", "q", "full", "40M"]);
    fs::write(large.join("full"), vec![7; 40 << 20]).unwrap();
    let left = || {
        let inside = format!("/proc/{}/root{target}", daemon.pid());
        let mut names: Vec<_> =
            fs::read_dir(inside).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "lost+found" && name != "sparse");
        daemon.ok(&["pool-refresh", "p"]);
        let listed = daemon.ok(&["vol-list", "p"]);
        (names, listed.lines().filter(|line| line.contains("/new")).count())
    };
    let nothing = (Vec::<String>::new(), 0);
    daemon.virsh(&["vol-create-as", "p", "new", "40M"]).fails();
    assert_eq!(left(), nothing);
    let image = "<volume><name>new</name><capacity unit='MiB'>40</capacity><target><format type='qcow2'/></target></volume>";
    daemon.with_xml(image, |file| daemon.virsh(&["vol-create", "p", file, "--prealloc-metadata"]).fails());
    assert_eq!(left(), nothing);
    for format in ["raw", "qcow2"] {
        let copy = format!(
            "<volume><name>new</name><capacity>0</capacity><allocation>0</allocation>\
             <target><format type='{format}'/></target></volume>"
        );
        let error = daemon.with_xml(&copy, |file| {
            daemon.virsh(&["vol-create-from", "p", file, "full", "--inputpool", "q"]).fails()
        });
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(left(), nothing, "{format}");
    }
    daemon.ok(&["vol-create-as", "p", "sparse", "40M", "--allocation", "0"]);
    let error = daemon.virsh(&["vol-upload", "sparse", large.join("full").to_str().unwrap(), "p"]).fails();
    assert!(error.contains("No space left on device") || error.contains("cannot send data"), "{error}");
    // The volume is nobody's any more, and the pool as it was.
    eventually("the volume is free again", || {
        daemon.virsh(&["vol-delete", "sparse", "p"]).success.then_some(())
    });
    assert_eq!(left(), nothing);
    daemon.ok(&["pool-destroy", "p"]);
}

/// A client that dies while it sends leaves neither a marked volume nor a pool that cannot be stopped.
#[test]
fn a_client_that_leaves_in_mid_stream_leaves_the_pool_free() {
    let daemon = daemon();
    let pool = daemon.path("pool");
    daemon.ok(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap(), "--build"]);
    daemon.ok(&["vol-create-as", "p", "v", "1G", "--allocation", "0"]);
    let mut client = daemon.python_beside(
        "v = conn.storagePoolLookupByName('p').storageVolLookupByName('v')\n\
         s = conn.newStream()\nv.upload(s, 0, 0)\ns.send(b'x' * 65536)\nprint('sending', flush=True)\nimport sys\nsys.stdin.read()",
    );
    client.expect("sending\n");
    let error = daemon.virsh(&["vol-delete", "v", "p"]).fails();
    assert!(error.contains("volume 'v' is still in use."), "{error}");
    drop(client);
    eventually("the volume is free again", || daemon.virsh(&["vol-delete", "v", "p"]).success.then_some(()));
    daemon.ok(&["pool-destroy", "p"]);
}

/// What was put into the directory by hand counts after SIGHUP, and what starts with the host is started.
#[test]
fn definitions_are_read_again_on_sighup() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let pool = daemon.path("pool");
    fs::create_dir(&pool).unwrap();
    daemon.ok(&["pool-define-as", "known", "dir", "--target", pool.to_str().unwrap()]);
    let below = |name: &str| daemon.path(&format!("etc/libvirt/storage/{name}"));
    let uuid = daemon.ok(&["pool-uuid", "known"]).trim().to_owned();
    let text = fs::read_to_string(below("known.xml")).unwrap();
    let added = text.replace("known", "added").replace(&uuid, "8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1");
    fs::create_dir(daemon.path("other")).unwrap();
    fs::write(below("added.xml"), added.replace("/pool<", "/other<")).unwrap();
    fs::create_dir_all(below("autostart")).unwrap();
    symlink(below("added.xml"), below("autostart/added.xml")).unwrap();
    fs::write(below("known.xml"), text.replace("/pool<", "/elsewhere<")).unwrap();
    signal(daemon.pid().cast_signed(), Signal::HUP);
    eventually("the new pool runs", || {
        let info = daemon.virsh(&["pool-info", "added"]).out;
        (info.contains("running") && info.contains("Autostart:      yes")).then_some(())
    });
    assert!(daemon.ok(&["pool-dumpxml", "known"]).contains("/elsewhere</path>"));
    assert!(Path::new(&below("known.xml")).exists());
}
