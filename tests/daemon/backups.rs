//! Checkpoints and backups, as backup programs use them: full and incremental, written and served.

use ferrovirt_compat::{Daemon, eventually, halting, run};

use crate::{daemon, on_upstream};

/// A running guest on a new image with one MiB of data.
pub(crate) fn start(daemon: &Daemon, name: &str) -> String {
    let directory = daemon.path("images");
    std::fs::create_dir_all(&directory).unwrap();
    let image = directory.join(format!("{name}.qcow2")).display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "16M"]).ok();
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 1M", &image]).ok();
    daemon.run(&halting(name).device(&format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
         <target dev='vda' bus='virtio'/></disk>"
    )));
    image
}

/// Has QEMU write to the guest's disk, as its driver would.
fn write(daemon: &Daemon, name: &str, what: &str) {
    let command = format!("qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"{what}\"");
    let said = daemon.ok(&["qemu-monitor-command", name, "--hmp", &command]);
    assert!(!said.contains("rror"), "{said}");
}

pub(crate) fn backup(
    daemon: &Daemon,
    name: &str,
    xml: &str,
    checkpoint: Option<&str>,
) -> ferrovirt_compat::Ran {
    daemon.with_xml(xml, |backup| match checkpoint {
        Some(checkpoint) => {
            let text = format!("<domaincheckpoint><name>{checkpoint}</name></domaincheckpoint>");
            daemon.with_xml(&text, |file| daemon.virsh(&["backup-begin", name, backup, file]))
        }
        None => daemon.virsh(&["backup-begin", name, backup]),
    })
}

pub(crate) fn ended(daemon: &Daemon, name: &str) -> String {
    eventually("the backup is over", || {
        let info = daemon.virsh(&["domjobinfo", name, "--completed"]);
        (info.success && info.out.contains("Completed")).then_some(info.out)
    })
}

/// What an image has at an offset, in MiB.
fn byte(image: &str, mib: u32) -> String {
    let read = format!("read -v {mib}M 1");
    let out = run("qemu-io", &["-U", "-r", "-f", "qcow2", "-c", &read, image]).ok();
    out.split_whitespace().nth(1).unwrap().to_owned()
}

fn refused(ran: ferrovirt_compat::Ran, sentence: &str) {
    let error = ran.fails();
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn a_disk_is_written_to_an_image_and_then_what_was_written_since() {
    let daemon = daemon();
    let image = start(&daemon, "b");
    let (full, more) = (format!("{image}.one"), format!("{image}.two"));
    let target = |path: &str, since: &str| {
        format!(
            "<domainbackup>{since}<disks><disk name='vda' type='file'><target file='{path}'/></disk></disks>\
             </domainbackup>"
        )
    };
    backup(&daemon, "b", &target(&full, ""), Some("one")).ok();
    let info = ended(&daemon, "b");
    assert!(info.contains("Operation:        Backup"), "{info}");
    assert_eq!((byte(&full, 0), byte(&full, 1)), ("07".to_owned(), "00".to_owned()));
    write(&daemon, "b", "write -P 9 1M 1M");
    let size = daemon.ok(&["checkpoint-dumpxml", "b", "one", "--size", "--no-domain"]);
    assert!(size.contains("<disk name='vda' checkpoint='bitmap' bitmap='one' size='1048576'/>"), "{size}");
    backup(&daemon, "b", &target(&more, "<incremental>one</incremental>"), Some("two")).ok();
    ended(&daemon, "b");
    let header = run("qemu-img", &["info", "-U", &more]).ok();
    assert!(header.contains(&format!("backing file: {image}")), "{header}");
    run("qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", &full, &more]).ok();
    assert_eq!((byte(&more, 0), byte(&more, 1)), ("07".to_owned(), "09".to_owned()));
    assert_eq!(daemon.ok(&["checkpoint-parent", "b", "two"]).trim(), "one");
    refused(
        backup(&daemon, "b", &target(&full, ""), None),
        &format!("store '{full}' for backup of 'vda' exists"),
    );
    refused(
        backup(&daemon, "b", &target("/nowhere/x", "<incremental>no</incremental>"), None),
        "Checkpoint 'no' for incremental backup of disk 'vda' not found",
    );
    refused(daemon.virsh(&["backup-dumpxml", "b"]), "no domain backup job present");
}

#[test]
fn a_disk_is_served_as_it_was_until_the_client_ends_it() {
    let daemon = daemon();
    let image = start(&daemon, "b");
    let (socket, scratch) = (daemon.path("nbd").display().to_string(), format!("{image}.scratch"));
    let pull = |since: &str| {
        format!(
            "<domainbackup mode='pull'>{since}<server transport='unix' socket='{socket}'/><disks>\
             <disk name='vda' backupmode='{}' type='file' exportname='x'><scratch file='{scratch}'/></disk></disks>\
             </domainbackup>",
            if since.is_empty() { "full" } else { "incremental" }
        )
    };
    backup(&daemon, "b", &pull(""), Some("one")).ok();
    let xml = daemon.ok(&["backup-dumpxml", "b"]);
    for part in [
        "<domainbackup mode='pull'>\n".to_owned(),
        format!("  <server transport='unix' socket='{socket}'/>\n"),
        "    <disk name='vda' backup='yes' type='file' backupmode='full' exportname='x' index='2'>\n      \
         <driver type='qcow2'/>\n"
            .to_owned(),
    ] {
        assert!(xml.contains(&part), "{part}: {xml}");
    }
    write(&daemon, "b", "write -P 9 0 1M");
    let uri = format!("nbd+unix:///x?socket={socket}");
    let copy = daemon.path("images/copy").display().to_string();
    run("qemu-img", &["convert", "-q", "-O", "qcow2", &uri, &copy]).ok();
    assert_eq!(byte(&copy, 0), "07");
    let info = daemon.ok(&["domjobinfo", "b"]);
    assert!(info.contains("Backup"), "{info}");
    daemon.ok(&["domjobabort", "b"]);
    ended(&daemon, "b");
    assert!(!std::path::Path::new(&scratch).exists());
    // What was written while the first one was served.
    backup(&daemon, "b", &pull("<incremental>one</incremental>"), None).ok();
    let xml = daemon.ok(&["backup-dumpxml", "b"]);
    assert!(xml.contains("incremental='one' exportname='x' exportbitmap='backup-vda'"), "{xml}");
    let map = "x-dirty-bitmap=qemu:dirty-bitmap:backup-vda";
    let options = format!("driver=nbd,server.type=unix,server.path={socket},export=x,{map}");
    let dirty = run("qemu-img", &["map", "--output=json", "--image-opts", &options]).ok();
    let first = dirty.lines().next().unwrap();
    assert!(
        first.contains("\"start\": 0, \"length\": 1048576") && first.contains("\"data\": false"),
        "{dirty}"
    );
    daemon.ok(&["domjobabort", "b"]);
    ended(&daemon, "b");
    daemon.ok(&["destroy", "b"]);
}

#[test]
fn a_backup_that_cannot_be_served_leaves_nothing() {
    let daemon = daemon();
    let image = start(&daemon, "b");
    run("qemu-img", &["create", "-q", "-f", "qcow2", &format!("{image}.other"), "16M"]).ok();
    daemon.ok(&["attach-disk", "b", &format!("{image}.other"), "vdb", "--subdriver", "qcow2"]);
    let socket = daemon.path("nbd").display().to_string();
    let pull = |name: &str| {
        format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>\
             <disk name='vda' type='file' exportname='x'><scratch file='{image}.scratch'/></disk>\
             <disk name='vdb' type='file' exportname='{name}'><scratch file='{image}.scratch2'/></disk></disks>\
             </domainbackup>"
        )
    };
    refused(backup(&daemon, "b", &pull("x"), None), "NBD server already has export named 'x'");
    // It has to wait for the end of what had begun.
    backup(&daemon, "b", &pull("y"), None).ok();
    assert!(daemon.ok(&["backup-dumpxml", "b"]).contains("exportname='y'"));
    daemon.ok(&["domjobabort", "b"]);
    ended(&daemon, "b");
    refused(daemon.virsh(&["backup-dumpxml", "b"]), "no domain backup job present");
}

#[test]
fn a_backup_ends_with_its_daemon() {
    if on_upstream() {
        // Which goes on with it.
        return;
    }
    let mut daemon = daemon();
    let image = start(&daemon, "b");
    let (socket, scratch) = (daemon.path("nbd").display().to_string(), format!("{image}.scratch"));
    let pull = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>\
         <disk name='vda' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>"
    );
    backup(&daemon, "b", &pull, None).ok();
    daemon.kill();
    daemon.restart();
    eventually("the scratch image is gone", || (!std::path::Path::new(&scratch).exists()).then_some(()));
    let status = daemon.path("run/libvirt/qemu/b.xml");
    eventually("nothing is under way", || {
        std::fs::read_to_string(&status).unwrap().contains("<blockjobs active='no'/>").then_some(())
    });
    backup(&daemon, "b", &pull, None).ok();
    daemon.ok(&["domjobabort", "b"]);
    ended(&daemon, "b");
}

#[test]
fn checkpoints_are_kept_deleted_and_described_anew() {
    let mut daemon = daemon();
    start(&daemon, "b");
    for name in ["one", "two", "three"] {
        daemon.ok(&["checkpoint-create-as", "b", name]);
    }
    let names = |daemon: &Daemon, flags: &[&str]| {
        let list = daemon.ok(&[&["checkpoint-list", "b", "--name"], flags].concat());
        list.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&daemon, &["--topological"]), "one two three");
    assert_eq!(
        (names(&daemon, &["--roots"]), names(&daemon, &["--leaves"])),
        ("one".to_owned(), "three".to_owned())
    );
    daemon.ok(&["snapshot-create-as", "b", "s", "--disk-only", "--no-metadata"]);
    daemon.ok(&["checkpoint-delete", "b", "two"]);
    assert_eq!(daemon.ok(&["checkpoint-parent", "b", "three"]).trim(), "one");
    let nodes = daemon.ok(&["qemu-monitor-command", "b", r#"{"execute":"query-named-block-nodes"}"#]);
    assert!(nodes.contains("\"name\":\"three\"") && !nodes.contains("\"name\":\"two\""), "{nodes}");
    let xml = daemon.ok(&["checkpoint-dumpxml", "b", "three"]);
    daemon.ok(&["checkpoint-delete", "b", "three", "--metadata"]);
    daemon.kill();
    daemon.restart();
    eventually("the guest is held again", || daemon.virsh(&["domblkinfo", "b", "vda"]).success.then_some(()));
    assert_eq!(names(&daemon, &[]), "one");
    daemon.with_xml(&xml, |file| {
        daemon.ok(&["checkpoint-create", "b", file, "--redefine", "--redefine-validate"])
    });
    assert_eq!(daemon.ok(&["checkpoint-dumpxml", "b", "three"]), xml);
    let other = xml.replace("three", "four");
    daemon.with_xml(&other, |file| {
        let again = daemon.virsh(&["checkpoint-create", "b", file, "--redefine", "--redefine-validate"]);
        refused(again, "missing or broken bitmap 'four' for disk 'vda'");
    });
    refused(daemon.virsh(&["checkpoint-dumpxml", "b", "no"]), "no domain checkpoint with matching name 'no'");
    daemon.ok(&["destroy", "b"]);
    refused(
        daemon.virsh(&["checkpoint-create-as", "b", "x"]),
        "cannot create checkpoint for inactive domain",
    );
    refused(daemon.virsh(&["checkpoint-delete", "b", "one"]), "cannot delete checkpoint for inactive domain");
    refused(daemon.virsh(&["undefine", "b"]), "cannot delete inactive domain with 2 checkpoints");
    daemon.ok(&["undefine", "b", "--checkpoints-metadata"]);
}
