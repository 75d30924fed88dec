//! What became of a guest's images while no daemon watched: the next one follows QEMU.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use ferrovirt_compat::{Daemon, Guest, LIMIT, eventually, halting, run};
use serde_json::{Value, json};

use crate::block_jobs::images;
use crate::fake_qemu::Behaviour;
use crate::{daemon, on_upstream};

/// A guest on the image `a` of a directory.
fn guest(daemon: &Daemon, name: &str) -> Guest {
    fs::create_dir_all(daemon.path("images")).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &at(daemon, "a"), "16M"]).ok();
    halting(name).device(&format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        at(daemon, "a")
    ))
}

fn at(daemon: &Daemon, file: &str) -> String {
    daemon.path("images").join(file).display().to_string()
}

fn status(daemon: &Daemon, name: &str) -> String {
    fs::read_to_string(daemon.path(&format!("run/libvirt/qemu/{name}.xml"))).unwrap()
}

fn change_status(daemon: &Daemon, name: &str, status: &str, from: &str, to: &str) {
    assert!(status.contains(from), "{from}: {status}");
    fs::write(daemon.path(&format!("run/libvirt/qemu/{name}.xml")), status.replacen(from, to, 1)).unwrap();
}

/// Waits until the disk stands on these, now and after the next start.
fn stands_on(daemon: &Daemon, name: &str, expected: &[&str]) {
    eventually("the disk is where QEMU has it", || (images(daemon, name, &[]) == expected).then_some(()));
    eventually("the definition follows", || {
        (images(daemon, name, &["--inactive"]) == expected).then_some(())
    });
}

/// The monitor of a guest that no daemon has hold of.
struct Qmp {
    lines: std::io::Lines<BufReader<UnixStream>>,
    socket: UnixStream,
}

impl Qmp {
    fn connect(daemon: &Daemon, name: &str) -> Self {
        let status = status(daemon, name);
        let path = status.split("<monitor path='").nth(1).unwrap().split('\'').next().unwrap();
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut qmp = Self { lines: BufReader::new(socket.try_clone().unwrap()).lines(), socket };
        qmp.ask("qmp_capabilities", &json!({}));
        qmp
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> String {
        let command = json!({ "execute": command, "arguments": arguments });
        self.socket.write_all(command.to_string().as_bytes()).unwrap();
        let reply = self.expect("\"");
        if reply.contains("\"event\"") || reply.contains("\"QMP\"") {
            return self.expect("{\"return\"");
        }
        assert!(reply.starts_with("{\"return\""), "{command}: {reply}");
        reply
    }

    fn expect(&mut self, part: &str) -> String {
        self.lines.find_map(|line| line.ok().filter(|line| line.contains(part))).unwrap()
    }

    /// Ends a copy with the disk on it.
    fn pivot(&mut self, job: &str) {
        self.ask("job-complete", &json!({ "id": job }));
        self.expect("\"concluded\"");
    }
}

#[test]
fn a_pivot_that_no_daemon_saw_is_followed() {
    if on_upstream() {
        return; // its guests' sockets are out of reach here
    }
    let mut daemon = daemon();
    daemon.run(&guest(&daemon, "b"));
    let copy = |daemon: &Daemon, to: &str| {
        daemon.ok(&["blockcopy", "b", "vda", &at(daemon, to), "--transient-job", "--wait"]);
    };
    copy(&daemon, "c");
    daemon.kill();
    Qmp::connect(&daemon, "b").pivot("copy-vda-libvirt-1-format");
    daemon.restart();
    stands_on(&daemon, "b", &["c"]);

    // Also where QEMU knows nothing of the job any more.
    copy(&daemon, "d");
    let job = "copy-vda-libvirt-2-format";
    daemon.kill();
    let mut qmp = Qmp::connect(&daemon, "b");
    qmp.pivot(job);
    qmp.ask("job-dismiss", &json!({ "id": job }));
    drop(qmp);
    daemon.restart();
    stands_on(&daemon, "b", &["d"]);

    // One that was written down and that QEMU never heard of.
    copy(&daemon, "e");
    daemon.kill();
    change_status(
        &daemon,
        "b",
        &status(&daemon, "b"),
        "type='copy' state='ready'",
        "type='copy' state='pivoting'",
    );
    daemon.restart();
    eventually("the copy is ready", || daemon.ok(&["dumpxml", "b"]).contains("ready='yes'").then_some(()));
    daemon.ok(&["blockjob", "b", "vda", "--abort"]);
    assert_eq!(images(&daemon, "b", &[]), ["d"]);
    let left = daemon.ok(&["qemu-monitor-command", "b", r#"{"execute":"query-jobs"}"#]);
    assert!(left.contains("\"return\":[]"), "{left}");
}

#[test]
fn a_snapshot_that_no_daemon_saw_is_followed() {
    if on_upstream() {
        return; // it writes nothing down, and loses what is written from then on
    }
    let mut daemon = daemon();
    daemon.run(&guest(&daemon, "b"));
    let snapshot = ["snapshot-create-as", "b", "one", "--disk-only", "--no-metadata"];
    let file = daemon.path("etc/libvirt/qemu/b.xml");
    let (status_before, definition_before) = (status(&daemon, "b"), fs::read(&file).unwrap());
    daemon.ok(&snapshot);
    daemon.kill();
    let after = status(&daemon, "b");
    assert!(!after.contains("<overlays"), "{after}");
    let disk = &after[after.find("<disk type").unwrap()..after.find("</disk>").unwrap()];
    let noted = format!("<overlays>{disk}</disk></overlays><domain ");
    let reserved = status_before.replace("<nodename index='1'/>", "<nodename index='2'/>");
    change_status(&daemon, "b", &reserved, "<domain ", &noted);
    fs::write(&file, definition_before).unwrap();
    daemon.restart();
    stands_on(&daemon, "b", &["a.one", "a"]);
    daemon.ok(&["snapshot-create-as", "b", "two", "--disk-only", "--no-metadata"]);
    stands_on(&daemon, "b", &["a.two", "a.one", "a"]);
    assert!(!status(&daemon, "b").contains("<overlays"));
}

#[test]
fn a_snapshot_that_qemu_never_heard_of_is_given_up() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.run(&guest(&daemon, "b"));
    daemon.kill();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &at(&daemon, "a.one"), "16M"]).ok();
    let before = status(&daemon, "b");
    let disk = &before[before.find("<disk type").unwrap()..before.find("</disk>").unwrap()];
    let source = disk.lines().find(|line| line.contains("<source file")).unwrap();
    let below = format!(
        "<source file='{}' index='2'/><backingStore type='file' index='1'><format type='qcow2'/>\
         <source file='{}'/><backingStore/></backingStore>",
        at(&daemon, "a.one"),
        at(&daemon, "a")
    );
    let disk = disk.replace("<backingStore/>", "").replace(source, &below);
    let noted = format!("<overlays>{disk}</disk></overlays><domain ");
    change_status(&daemon, "b", &before, "<domain ", &noted);
    daemon.restart();
    eventually("nothing is left of it", || (!daemon.path("images/a.one").exists()).then_some(()));
    stands_on(&daemon, "b", &["a"]);
}

/// The names of the nodes that QEMU has for images.
fn nodes(daemon: &Daemon, name: &str) -> Vec<String> {
    let query = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    let told = daemon.ok(&["qemu-monitor-command", name, query]);
    let names = told.split("\"node-name\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("libvirt-")).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn images_that_were_being_opened_stand_in_nobodys_way() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.run(&guest(&daemon, "b"));
    for file in ["b", "c"] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", &at(&daemon, file), "16M"]).ok();
    }
    daemon.kill();
    let mut qmp = Qmp::connect(&daemon, "b");
    // A snapshot's beginning, and a disk's that was to be copied on read.
    qmp.ask(
        "blockdev-add",
        &json!({ "driver": "file", "filename": at(&daemon, "b"), "node-name": "libvirt-2-storage" }),
    );
    qmp.ask(
        "blockdev-add",
        &json!({ "driver": "file", "filename": at(&daemon, "c"), "node-name": "libvirt-3-storage" }),
    );
    qmp.ask(
        "blockdev-add",
        &json!({ "driver": "qcow2", "file": "libvirt-3-storage", "node-name": "libvirt-3-format" }),
    );
    qmp.ask(
        "blockdev-add",
        &json!({ "driver": "copy-on-read", "file": "libvirt-3-format", "node-name": "libvirt-CoR-vdb" }),
    );
    // Another program's.
    qmp.ask("blockdev-add", &json!({ "driver": "null-co", "node-name": "mine", "read-zeroes": true }));
    drop(qmp);
    daemon.restart();
    eventually("they are gone", || {
        (nodes(&daemon, "b") == ["libvirt-1-format", "libvirt-1-storage"]).then_some(())
    });
    let query = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    assert!(daemon.ok(&["qemu-monitor-command", "b", query]).contains("\"mine\""));
    daemon.ok(&["snapshot-create-as", "b", "one", "--disk-only", "--no-metadata"]);
    daemon.ok(&["attach-disk", "b", &at(&daemon, "c"), "vdb", "--subdriver", "qcow2"]);
    stands_on(&daemon, "b", &["a.one", "a"]);
    assert!(nodes(&daemon, "b").contains(&"libvirt-4-format".to_owned()), "{:?}", nodes(&daemon, "b"));
}

#[test]
fn a_merge_whose_daemon_is_gone_is_given_up() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.run(&guest(&daemon, "b"));
    for name in ["one", "two"] {
        daemon.ok(&["snapshot-create-as", "b", name, "--disk-only"]);
    }
    daemon.ok(&["blockcommit", "b", "vda", "--active", "--shallow", "--wait"]);
    daemon.kill();
    // As it is when `two` is being deleted.
    let under_way = "<job type='none' async='snapshot' flags='0x0'><snapshotDelete/></job><domain ";
    change_status(&daemon, "b", &status(&daemon, "b"), "<domain ", under_way);
    let parent = daemon.path("var/lib/libvirt/qemu/snapshot/b/one.xml");
    let text = fs::read_to_string(&parent).unwrap();
    let source = format!("<source file='{}'/>", at(&daemon, "a.one"));
    let (before, after) = text.split_once(&source).unwrap();
    fs::write(&parent, format!("{before}<snapshotDeleteInProgress/>{source}{after}")).unwrap();
    daemon.restart();
    eventually("the mark is removed", || {
        (!fs::read_to_string(&parent).unwrap().contains("InProgress")).then_some(())
    });
    stands_on(&daemon, "b", &["a.two", "a.one", "a"]);
    for (name, left) in [("two", &["a.one", "a"][..]), ("one", &["a"])] {
        daemon.ok(&["snapshot-delete", "b", name]);
        stands_on(&daemon, "b", left);
    }
}

#[test]
fn that_images_are_being_merged_is_written_down() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let jobs = ("query-jobs".to_owned(), json!([]));
    let behaviour =
        Behaviour { hang_at: Some("block-commit".into()), replies: [jobs].into(), ..Behaviour::default() };
    faked(&daemon, "b", &behaviour);
    let image = format!("vda,file={}", at(&daemon, "b"));
    daemon.ok(&["snapshot-create-as", "b", "one", "--disk-only", "--reuse-external", "--diskspec", &image]);
    let _call = begin(&daemon, "domain.snapshotLookupByName('one').delete()");
    eventually("it is noted", || status(&daemon, "b").contains("<snapshotDelete/>").then_some(()));
}

/// A guest on a QEMU that is none.
fn faked(daemon: &Daemon, name: &str, behaviour: &Behaviour) {
    let directory = daemon.path(&format!("fake-{name}"));
    fs::create_dir_all(&directory).unwrap();
    let emulator = behaviour.install(&directory);
    daemon.run(&guest(daemon, name).device(&format!("<emulator>{}</emulator>", emulator.display())));
    run("qemu-img", &["create", "-q", "-f", "qcow2", &at(daemon, "b"), "16M"]).ok();
}

/// A call that nobody answers.
fn begin(daemon: &Daemon, call: &str) -> ferrovirt_compat::Program {
    daemon.python_beside(&format!("domain = conn.lookupByName('b')\n{call}"))
}

#[test]
fn what_qemu_is_asked_to_write_to_is_written_down_before() {
    if on_upstream() {
        return; // it converses at length with a QEMU before it starts one
    }
    let jobs = ("query-jobs".to_owned(), json!([]));
    let first = daemon();
    let behaviour = Behaviour {
        hang_at: Some("transaction".into()),
        replies: [jobs.clone()].into(),
        ..Behaviour::default()
    };
    faked(&first, "b", &behaviour);
    let snapshot = format!(
        "xml = \"<domainsnapshot><disks><disk name='vda'><source file='{}'/></disk></disks></domainsnapshot>\"\n\
         flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT\n\
         domain.snapshotCreateXML(xml, flags)",
        at(&first, "b")
    );
    let _call = begin(&first, &snapshot);
    eventually("the new image is noted", || {
        status(&first, "b").contains("<overlays reused='yes'>").then_some(())
    });

    let name = "copy-vda-libvirt-1-format";
    let ready = ("JOB_STATUS_CHANGE".to_owned(), json!({ "id": name, "status": "ready" }));
    let second = daemon();
    let behaviour = Behaviour {
        hang_at: Some("job-complete".into()),
        replies: [jobs.clone()].into(),
        events: [("blockdev-mirror".to_owned(), vec![ready.clone()])].into(),
        ..Behaviour::default()
    };
    let copy = |daemon: &Daemon| {
        let to = at(daemon, "b");
        daemon.ok(&[
            "blockcopy",
            "b",
            "vda",
            &to,
            "--transient-job",
            "--reuse-external",
            "--format",
            "qcow2",
        ]);
        eventually("the copy is ready", || status(daemon, "b").contains("state='ready'").then_some(()));
    };
    faked(&second, "b", &behaviour);
    copy(&second);
    let _call = begin(&second, "domain.blockJobAbort('vda', libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)");
    eventually("the pivot is noted", || status(&second, "b").contains("state='pivoting'").then_some(()));

    let third = daemon();
    let behaviour = Behaviour {
        hang_at: None,
        refuse: [("job-complete".to_owned(), "not this time".to_owned())].into(),
        ..behaviour
    };
    faked(&third, "b", &behaviour);
    copy(&third);
    let error = third.virsh(&["blockjob", "b", "vda", "--pivot"]).fails();
    assert!(error.contains("not this time"), "{error}");
    assert!(
        status(&third, "b").contains("state='ready'") && third.ok(&["dumpxml", "b"]).contains("ready='yes'")
    );
}
