//! Long work on the images of running guests: commit, pull, copy, and what is known of it meanwhile.

use std::path::PathBuf;

use ferrovirt_compat::{Daemon, Guest, eventually, halting, run};

use crate::{daemon, on_upstream};

/// `base` below `mid` below `top`, and a guest on it.
struct Chain {
    directory: PathBuf,
    guest: Guest,
}

impl Chain {
    fn new(daemon: &Daemon, name: &str) -> Self {
        let directory = daemon.path("images");
        std::fs::create_dir(&directory).unwrap();
        let at = |file: &str| directory.join(file).display().to_string();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &at("base"), "16M"]).ok();
        for (below, above) in [("base", "mid"), ("mid", "top")] {
            let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, &at(above)];
            run("qemu-img", &arguments).ok();
        }
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/></disk>",
            at("top")
        );
        Self { guest: halting(name).device(&disk), directory }
    }

    fn at(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }
}

/// The paths that the live or the inactive definition of the disk has, from the top.
pub(crate) fn images(daemon: &Daemon, name: &str, flags: &[&str]) -> Vec<String> {
    let xml = daemon.ok(&[&["dumpxml", name], flags].concat());
    let disk = xml.split("<disk ").nth(1).unwrap().split("</disk>").next().unwrap();
    let disk = disk.split("<mirror").next().unwrap();
    let sources = disk.lines().filter_map(|line| line.trim().strip_prefix("<source file='"));
    sources.map(|rest| rest.split('\'').next().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
}

fn disk(daemon: &Daemon, name: &str) -> String {
    let xml = daemon.ok(&["dumpxml", name]);
    let xml = xml.split("<disk ").nth(1).unwrap().split("</disk>").next().unwrap();
    xml.replace(&daemon.path("images").display().to_string(), "DIR")
}

fn refused(daemon: &Daemon, arguments: &[&str], sentence: &str) {
    let error = daemon.virsh(arguments).fails();
    assert!(error.contains(sentence), "{arguments:?}: {error}");
}

/// How many block nodes QEMU has for images.
fn nodes(daemon: &Daemon, name: &str) -> usize {
    let query = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    daemon.ok(&["qemu-monitor-command", name, query]).matches("\"node-name\":\"libvirt-").count()
}

#[test]
fn an_active_commit_shows_its_mirror_and_pivots() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.run(&chain.guest);
    daemon.ok(&["blockcommit", "b", "vda", "--active", "--verbose", "--wait"]);
    assert!(
        disk(&daemon, "b").contains(
            "      <mirror type='file' job='active-commit' ready='yes'>\n        <format type='qcow2'/>\n        \
             <source file='DIR/base' index='3'/>\n      </mirror>\n      <target"
        ),
        "{}",
        disk(&daemon, "b")
    );
    assert!(daemon.ok(&["blockjob", "b", "vda", "--raw"]).contains("type=Active Block Commit"));
    for call in [&["blockcommit", "b", "vda", "--active"][..], &["blockpull", "b", "vda"]] {
        refused(&daemon, call, "block copy still active: disk 'vda' already in active block job");
    }
    refused(&daemon, &["save", "b", "/nowhere/b"], "domain has active block job");
    refused(&daemon, &["detach-disk", "b", "vda", "--live"], "disk 'vda' already in active block job");
    daemon.ok(&["blockjob", "b", "vda", "--pivot"]);
    assert_eq!(images(&daemon, "b", &[]), ["base"]);
    assert_eq!(images(&daemon, "b", &["--inactive"]), ["base"]);
    assert!(!disk(&daemon, "b").contains("mirror"), "{}", disk(&daemon, "b"));
    assert_eq!(nodes(&daemon, "b"), 2);
    refused(&daemon, &["blockjob", "b", "vda", "--abort"], "disk vda does not have an active block job");
    daemon.ok(&["destroy", "b"]);
    daemon.ok(&["start", "b"]);
    assert_eq!(images(&daemon, "b", &[]), ["base"]);
}

#[test]
fn what_is_committed_is_chosen_by_path_and_number_and_deleted_on_wish() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.run(&chain.guest);
    for (arguments, sentence) in [
        (&["vda"][..], "commit of 'vda' active layer requires active flag"),
        (&["vda", "--base", "nosuch", "--active"], "could not find image 'nosuch' beneath"),
        (
            &["vda", "--base", "vda[9]", "--active"],
            "could not find backing store index '9' in chain for 'vda'",
        ),
        (&["vda", "--top", "vda[3]"], "could not find base image in chain for 'vda'"),
        (&["vda", "--top", "vda[2]", "--active"], "active commit requested but"),
        (&["vdz", "--active"], "disk 'vdz' not found in domain"),
    ] {
        refused(&daemon, &[&["blockcommit", "b"], arguments].concat(), sentence);
    }
    let (top, base) = ("vda[2]", chain.at("base"));
    daemon.ok(&[
        "blockcommit",
        "b",
        "vda",
        "--top",
        top,
        "--base",
        &base,
        "--delete",
        "--keep-relative",
        "--wait",
    ]);
    assert_eq!(images(&daemon, "b", &[]), ["top", "base"]);
    assert!(!chain.directory.join("mid").exists());
    let header = run("qemu-img", &["info", "-U", &chain.at("top")]).ok();
    assert!(header.contains("backing file: base (actual"), "{header}");
    daemon.ok(&["blockcommit", "b", "vda", "--shallow", "--active", "--pivot", "--wait"]);
    assert_eq!(images(&daemon, "b", &[]), ["base"]);
}

#[test]
fn a_chain_is_pulled_into_its_top() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.run(&chain.guest);
    daemon.ok(&["blockpull", "b", "vda", "--base", &chain.at("base"), "--wait"]);
    assert_eq!(images(&daemon, "b", &[]), ["top", "base"]);
    assert_eq!(nodes(&daemon, "b"), 4);
    daemon.ok(&["blockpull", "b", "vda", "--wait", "--bandwidth", "100"]);
    assert_eq!(images(&daemon, "b", &[]), ["top"]);
    assert!(disk(&daemon, "b").contains("<backingStore/>"));
    assert_eq!(nodes(&daemon, "b"), 2);
    refused(&daemon, &["blockpull", "b", "vda", "--base", "x"], "could not find image 'x' beneath");
}

#[test]
fn a_copy_is_given_up_or_becomes_the_disk() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.create(&chain.guest);
    let (one, two, three) = (chain.at("one"), chain.at("two"), chain.at("three"));
    daemon.ok(&["blockcopy", "b", "vda", &one, "--wait", "--verbose"]);
    assert!(
        disk(&daemon, "b").contains(
            "      <mirror type='file' file='DIR/one' format='qcow2' job='copy' ready='yes'>\n        \
             <format type='qcow2'/>\n        <source file='DIR/one' index='4'/>\n        <backingStore/>\n      </mirror>"
        ),
        "{}",
        disk(&daemon, "b")
    );
    daemon.ok(&["blockjob", "b", "vda", "--abort"]);
    assert_eq!(images(&daemon, "b", &[]), ["top", "mid", "base"]);
    assert_eq!(nodes(&daemon, "b"), 6);
    refused(&daemon, &["blockcopy", "b", "vda", &one], "already exists and is not a block device");
    refused(
        &daemon,
        &["blockcopy", "b", "vda", &two, "--shallow", "--format", "raw"],
        "shallow copy of disk 'vda' into a raw file is not possible",
    );
    refused(
        &daemon,
        &["blockcopy", "b", "vda", &two, "--reuse-external"],
        "missing destination file for disk vda",
    );
    daemon.ok(&["blockcopy", "b", "vda", &two, "--shallow", "--wait", "--pivot"]);
    assert_eq!(images(&daemon, "b", &[]), ["two", "mid", "base"]);
    daemon.ok(&[
        "blockcopy",
        "b",
        "vda",
        &three,
        "--format",
        "raw",
        "--wait",
        "--pivot",
        "--synchronous-writes",
    ]);
    assert_eq!(images(&daemon, "b", &[]), ["three"]);
    assert!(disk(&daemon, "b").contains("<driver name='qemu' type='raw'/>"));
    assert_eq!(std::fs::metadata(&three).unwrap().len(), 16 << 20);
    assert_eq!(nodes(&daemon, "b"), 1);
}

#[test]
fn a_copy_to_images_that_are_there_opens_what_is_below_at_the_end() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.define(&chain.guest);
    daemon.ok(&["start", "b"]);
    let (other, new) = (chain.at("other"), chain.at("new"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", &other, "16M"]).ok();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &other, &new]).ok();
    refused(&daemon, &["blockcopy", "b", "vda", &new, "--reuse-external"], "domain is not transient");
    let reuse = ["--reuse-external", "--shallow", "--transient-job"];
    daemon.ok(&[&["blockcopy", "b", "vda", &new, "--wait"], &reuse[..]].concat());
    daemon.ok(&["blockjob", "b", "vda", "--pivot"]);
    assert_eq!(images(&daemon, "b", &[]), ["new", "other"]);
    assert_eq!(images(&daemon, "b", &["--inactive"]), ["new"]);
}

#[test]
fn subscribers_hear_by_path_and_by_name() {
    let daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.create(&chain.guest);
    let mut watcher = daemon.python_beside(
        "for id in (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2):\n    \
             conn.domainEventRegisterAny(None, id, lambda c, d, disk, kind, status, o: \
                 print(disk.rsplit('/')[-1], kind, status), None)\n\
         print('watching')\nrun_events()",
    );
    watcher.expect("watching\n");
    daemon.ok(&["blockcommit", "b", "vda", "--active"]);
    watcher.expect("top 4 3\n");
    watcher.expect("vda 4 3\n");
    daemon.ok(&["blockjob", "b", "vda", "--pivot"]);
    watcher.expect("base 4 0\n");
    watcher.expect("vda 4 0\n");
    daemon.ok(&["blockcopy", "b", "vda", &chain.at("copy")]);
    watcher.expect("vda 2 3\n");
    daemon.ok(&["blockjob", "b", "vda", "--abort", "--async"]);
    watcher.expect("base 2 2\n");
    watcher.expect("vda 2 2\n");
}

#[test]
fn a_job_outlives_the_daemon_and_so_does_its_end() {
    let mut daemon = daemon();
    let chain = Chain::new(&daemon, "b");
    daemon.create(&chain.guest);
    daemon.ok(&["blockcommit", "b", "vda", "--active", "--wait"]);
    let status = std::fs::read_to_string(daemon.path("run/libvirt/qemu/b.xml")).unwrap();
    for part in [
        "<blockjobs active='yes'>",
        "<blockjob name='commit-vda-libvirt-1-format' type='active-commit' state='ready' ",
        "<base node='libvirt-3-storage'/>\n      <top node='libvirt-1-storage'/>",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    daemon.kill();
    daemon.restart();
    eventually("the guest is held again", || {
        daemon.ok(&["blockjob", "b", "vda", "--raw"]).contains("Active").then_some(())
    });
    assert!(disk(&daemon, "b").contains("ready='yes'"));
    daemon.ok(&["blockjob", "b", "vda", "--pivot"]);
    assert_eq!(images(&daemon, "b", &[]), ["base"]);
    if on_upstream() {
        // Its guests' sockets are out of reach here.
        return;
    }
    // One that ends while no daemon is there.
    daemon.ok(&["blockcopy", "b", "vda", &chain.at("copy"), "--wait"]);
    daemon.kill();
    let monitor = daemon.path("run/libvirt/qemu/b.xml");
    let status = std::fs::read_to_string(&monitor).unwrap();
    let socket = status.split("<monitor path='").nth(1).unwrap().split('\'').next().unwrap();
    let commands = "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"job-cancel\",\"arguments\":{\"id\":\"copy-vda-libvirt-3-format\"}}";
    let script = format!(
        "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.connect('{socket}')\ns.sendall(b'{commands}')\n\
         text = b''\nwhile b'concluded' not in text: text += s.recv(65536)\n"
    );
    run("/usr/bin/python3", &["-c", &script]).ok();
    daemon.restart();
    eventually("the end is noticed", || (!disk(&daemon, "b").contains("mirror")).then_some(()));
    assert_eq!(images(&daemon, "b", &[]), ["base"]);
    eventually("nothing of the copy is open", || (nodes(&daemon, "b") == 2).then_some(()));
}
