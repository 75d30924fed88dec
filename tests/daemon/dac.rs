//! Guests that run as another user: whose their files are meanwhile and afterwards.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use ferrovirt_compat::{Daemon, Guest, Kind, LIMIT, Signal, eventually, gone_within, halting, run, signal};

use crate::{kind, on_upstream};

/// Nobody's, so that no file of the host's is theirs.
const USER: u32 = 64_999;
const GROUP: u32 = 64_998;

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");

fn conf(more: &str) -> String {
    format!(
        "user = \"+{USER}\"\ngroup = \"+{GROUP}\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n{more}"
    )
}

fn daemon(more: &str) -> Daemon {
    Daemon::start_with(kind(), "", &conf(more))
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let path = path.as_ref();
    let found = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.uid(), found.gid())
}

/// An image that belongs to user 1.
fn image(daemon: &Daemon, name: &str) -> String {
    let path = daemon.path(name);
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(1), Some(1)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn disk(path: &str, dev: &str, more: &str) -> String {
    format!("<disk type='file'><source file='{path}'/><target dev='{dev}' bus='virtio'/>{more}</disk>")
}

fn note(path: &str, name: &str) -> Option<String> {
    let mut value = [0; 64];
    let name = format!("trusted.libvirt.security.{name}");
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8(value[..length].to_vec()).unwrap())
}

fn guest(name: &str) -> Guest {
    halting(name).tcg()
}

#[test]
fn a_guest_s_files_are_its_user_s_while_it_runs() {
    let daemon = daemon("");
    let (base, top) = (image(&daemon, "base"), daemon.path("top.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", top.to_str().unwrap()]).ok();
    let (top, read, log) = (top.to_str().unwrap(), image(&daemon, "read"), image(&daemon, "serial.log"));
    chown(top, Some(1), Some(1)).unwrap();
    let qcow2 = format!(
        "<disk><driver name='qemu' type='qcow2'/><source file='{top}'/><target dev='vda' bus='virtio'/></disk>"
    );
    let guest = guest("other")
        .device(&qcow2)
        .device(&disk(&read, "vdb", "<readonly/>"))
        .device("<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
        .device(&format!("<serial type='file'><source path='{log}'/></serial>"));
    daemon.run(&guest);
    let process = fs::read_to_string(format!("/proc/{}/status", daemon.qemu_pid("other"))).unwrap();
    for line in
        [format!("Uid:\t{USER}\t{USER}"), format!("Gid:\t{GROUP}\t{GROUP}"), format!("Groups:\t{GROUP} \n")]
    {
        assert!(process.contains(&line), "{line}: {process}");
    }
    for path in [top, &*base, &*read] {
        assert_eq!(owner(path), (USER, GROUP), "{path}");
    }
    assert_eq!((note(top, "dac").as_deref(), note(top, "ref_dac").as_deref()), (Some("+1:+1"), Some("1")));
    assert!(note(top, "timestamp_dac").is_some() && note(&base, "ref_dac").is_none());
    let own = fs::read_dir(daemon.path("var/lib/libvirt/qemu")).unwrap();
    let own = own.map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().contains("domain-1"));
    let own = own.expect("a directory of its own");
    assert_eq!((owner(&own), owner(own.join("master-key.aes"))), ((USER, GROUP), (USER, GROUP)));
    let xml = daemon.ok(&["dumpxml", "other"]);
    let label = format!("<label>+{USER}:+{GROUP}</label>");
    assert!(
        xml.contains("<seclabel type='dynamic' model='dac' relabel='yes'>") && xml.contains(&label),
        "{xml}"
    );

    daemon.ok(&["destroy", "other"]);
    // Others may stand on the one below, and may read the one that is only read.
    assert_eq!([owner(top), owner(&base), owner(&read)], [(1, 1), (USER, GROUP), (USER, GROUP)]);
    assert_eq!(["dac", "ref_dac", "timestamp_dac"].map(|name| note(top, name)), [None, None, None]);
}

#[test]
fn memory_that_is_kept_is_the_guest_s_while_it_runs() {
    let daemon = daemon("");
    let (memory, store, more) = (image(&daemon, "pmem"), daemon.path("store"), image(&daemon, "more"));
    fs::write(&memory, vec![0; 2 << 20]).unwrap();
    fs::write(&more, vec![0; 2 << 20]).unwrap();
    let pmem = |path: &str| {
        format!(
            "<memory model='virtio-pmem'><source><path>{path}</path></source>\
             <target><size unit='MiB'>2</size></target></memory>"
        )
    };
    let guest = guest("keeper").machine("pc").device(&pmem(&memory)).device(&format!(
        "<pstore backend='acpi-erst'><path>{}</path><size unit='KiB'>64</size></pstore>",
        store.display()
    ));
    let xml = guest.xml().replace(
        "<memory unit='MiB'>16</memory>",
        "<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory unit='MiB'>64</memory>\
         <cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>",
    );
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    assert_eq!((owner(&memory), owner(&store)), ((USER, GROUP), (USER, GROUP)));
    assert_eq!(fs::metadata(&store).unwrap().len(), 64 << 10);
    daemon.with_xml(&pmem(&more), |file| daemon.ok(&["attach-device", "keeper", file, "--live"]));
    assert_eq!(owner(&more), (USER, GROUP));
    daemon.ok(&["destroy", "keeper"]);
    assert_eq!([owner(&memory), owner(&more), owner(&store)], [(1, 1), (1, 1), (0, 0)]);
}

#[test]
fn nothing_is_given_where_nothing_is_to_be() {
    let daemon = daemon("dynamic_ownership = 0\n");
    let image = image(&daemon, "disk");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    daemon.run(&guest("static").device(&disk(&image, "vda", "")));
    assert_eq!(owner(&image), (1, 1));
    daemon.ok(&["destroy", "static"]);
    assert_eq!(owner(&image), (1, 1));
}

#[test]
fn without_notes_files_become_root_s() {
    let daemon = daemon("remember_owner = 0\n");
    let image = image(&daemon, "disk");
    daemon.run(&guest("forgetful").device(&disk(&image, "vda", "")));
    assert_eq!((owner(&image), note(&image, "ref_dac")), ((USER, GROUP), None));
    daemon.ok(&["destroy", "forgetful"]);
    assert_eq!(owner(&image), (0, 0));
}

/// A definition with a label of its own.
fn labelled(guest: &Guest, label: &str) -> String {
    guest.xml().replace("</domain>", &format!("{label}</domain>"))
}

#[test]
fn a_definition_names_its_own_user() {
    let daemon = daemon("");
    let (one, two) = (image(&daemon, "one"), image(&daemon, "two"));
    let static_label =
        "<seclabel type='static' model='dac' relabel='yes'><label>+64997:+64996</label></seclabel>";
    let own = "<disk><source file='TWO'><seclabel model='dac' relabel='no'/></source><target dev='vdb' bus='virtio'/></disk>";
    fs::set_permissions(&two, fs::Permissions::from_mode(0o666)).unwrap();
    let first = guest("first").device(&disk(&one, "vda", "")).device(&own.replace("TWO", &two));
    daemon.with_xml(&labelled(&first, static_label), |file| daemon.ok(&["create", file]));
    assert_eq!((owner(&one), owner(&two)), ((64_997, 64_996), (1, 1)));
    // The first guest would lose it.
    let second = guest("second").device(&disk(&two, "vda", "")).device(&disk(&one, "vdb", ""));
    let refused = daemon.with_xml(&second.xml(), |file| daemon.virsh(&["create", file]));
    let sentence = format!("Setting different DAC user or group on {one} which is already in use");
    assert!(!refused.success && refused.err.contains(&sentence), "{refused:?}");
    assert_eq!((owner(&one), owner(&two)), ((64_997, 64_996), (1, 1)), "nothing of the second is left");
    assert_eq!(note(&one, "ref_dac").as_deref(), Some("1"));
    daemon.ok(&["destroy", "first"]);
    assert_eq!(owner(&one), (1, 1));

    let third =
        labelled(&guest("third").device(&disk(&one, "vda", "")), "<seclabel type='none' model='dac'/>");
    fs::set_permissions(&one, fs::Permissions::from_mode(0o666)).unwrap();
    daemon.with_xml(&third, |file| daemon.ok(&["create", file]));
    assert_eq!(owner(&one), (1, 1));
    let process = fs::metadata(format!("/proc/{}", daemon.qemu_pid("third"))).unwrap();
    assert_eq!(process.uid(), USER);
    let unknown = labelled(&guest("fourth"), "<seclabel type='dynamic' model='selinux'/>");
    let refused = daemon.with_xml(&unknown, |file| daemon.virsh(&["create", file]));
    assert!(refused.err.contains("Security driver model 'selinux' is not available"), "{refused:?}");
}

#[test]
fn labels_of_processes_are_told() {
    let daemon = daemon("");
    daemon.run(&guest("told"));
    let script = "dom = conn.lookupByName('told'); print(dom.securityLabel(), dom.securityLabelList(), conn.getSecurityModel())\n\
                  dom.destroy(); print(dom.securityLabel())";
    let expected =
        format!("['', False] [['', False], ['+{USER}:+{GROUP}', False]] ['none', '0']\n['', False]\n");
    assert_eq!(daemon.python(script).ok(), expected);
    let capabilities = daemon.ok(&["capabilities"]);
    let model = capabilities.split("<model>dac</model>").nth(1).expect("dac is among the models");
    assert!(model.contains(&format!("<baselabel type='kvm'>+{USER}:+{GROUP}</baselabel>")), "{model}");
}

#[test]
fn disks_and_media_that_come_later_change_hands_too() {
    let daemon = daemon("");
    let [disk, first, second] = ["disk", "first", "second"].map(|name| image(&daemon, name));
    let drive =
        "<disk type='file' device='floppy'><source file='FIRST'/><target dev='fda' bus='fdc'/></disk>";
    let bus = "<controller type='scsi' model='virtio-scsi'/>";
    daemon.run(&guest("later").device(&drive.replace("FIRST", &first)).device(bus));
    assert_eq!((owner(&first), owner(&second)), ((USER, GROUP), (1, 1)));
    daemon.ok(&["change-media", "later", "fda", &second, "--live"]);
    assert_eq!((owner(&first), owner(&second)), ((1, 1), (USER, GROUP)));
    daemon.ok(&["attach-disk", "later", &disk, "sdb", "--targetbus", "scsi"]);
    assert_eq!((owner(&disk), note(&disk, "ref_dac").as_deref()), ((USER, GROUP), Some("1")));
    daemon.ok(&["detach-disk", "later", "sdb"]);
    assert_eq!((owner(&disk), note(&disk, "ref_dac")), ((1, 1), None));
}

#[test]
fn a_disk_is_given_back_when_it_is_refused() {
    let daemon = daemon("");
    let one = image(&daemon, "one");
    daemon.run(&guest("plugged"));
    // QEMU itself refuses it: there is no such IO thread.
    let with = "<driver name='qemu' type='qcow2'/>";
    let xml = disk(&one, "vda", "").replace("<source", &format!("{with}<source"));
    let refused = daemon.with_xml(&xml, |file| daemon.virsh(&["attach-device", "plugged", file]));
    assert!(!refused.success, "{refused:?}");
    assert_eq!((owner(&one), note(&one, "ref_dac")), ((1, 1), None));
    let xml = disk(&one, "vda", "");
    daemon.with_xml(&xml, |file| daemon.ok(&["attach-device", "plugged", file]));
    assert_eq!(owner(&one), (USER, GROUP));
    daemon.ok(&["destroy", "plugged"]);
    assert_eq!(owner(&one), (1, 1));
}

#[test]
fn files_go_back_when_no_daemon_saw_the_end() {
    let mut daemon = daemon("");
    if on_upstream() {
        // Its notes hold as long as its clock and that of the next one agree to the second.
        daemon.kill();
        note_boot(&daemon);
        daemon.restart();
    }
    let image = image(&daemon, "disk");
    daemon.run(&guest("orphan").device(&disk(&image, "vda", "")));
    let pid = daemon.qemu_pid("orphan");
    daemon.kill();
    signal(pid, Signal::KILL);
    assert!(gone_within(pid, LIMIT));
    assert_eq!(owner(&image), (USER, GROUP));
    daemon.restart();
    eventually("the file goes back", || (owner(&image) == (1, 1)).then_some(()));
    eventually("the guest is off", || (daemon.state("orphan") == "shut off").then_some(()));
}

#[test]
fn who_cannot_reach_a_file_is_told_why() {
    let daemon = daemon("");
    let closed = daemon.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let image = image(&daemon, "closed/disk");
    daemon.define(&guest("shut-out").device(&disk(&image, "vda", "")));
    let refused = daemon.virsh(&["start", "shut-out"]);
    assert!(!refused.success);
    assert_eq!((owner(&image), note(&image, "ref_dac")), ((1, 1), None));
    if !on_upstream() {
        let closed = closed.display();
        let way_out =
            format!("directory '{closed}' gives uid {USER}, gid {GROUP} no search permission: grant it (");
        assert!(refused.err.contains("Permission denied") && refused.err.contains(&way_out), "{refused:?}");
    }
}

#[test]
fn the_usual_user_runs_guests_where_the_host_has_him() {
    let known = run("getent", &["passwd", "libvirt-qemu"]);
    let daemon = Daemon::start_with(kind(), "", "");
    if on_upstream() {
        return;
    }
    daemon.run(&guest("usual"));
    let uid = fs::metadata(format!("/proc/{}", daemon.qemu_pid("usual"))).unwrap().uid();
    let expected = known.out.split(':').nth(2).map_or(0, |uid| uid.parse().unwrap());
    assert_eq!(uid, expected);
}

/// Where the C library finds when the host booted: by the clock it is now one second more, now one less.
fn note_boot(daemon: &Daemon) {
    let mut record = vec![0; 384];
    record[0] = 2;
    record[340..344].copy_from_slice(&1_700_000_000_i32.to_ne_bytes());
    fs::write(daemon.path("run/utmp"), record).unwrap();
}

fn gives_back_what_another_gave(first: Kind, second: Kind) {
    if !Path::new("/usr/sbin/libvirtd").exists() {
        eprintln!("left out: libvirt's own daemon is not installed (scripts/deps upstream)");
        return;
    }
    let mut daemon = Daemon::start_with(first, "", &conf(""));
    daemon.kill();
    note_boot(&daemon);
    daemon.restart();
    let [one, two] = ["one", "two"].map(|name| image(&daemon, name));
    daemon.run(&guest("handed").device(&disk(&one, "vda", "")).device(&disk(&two, "vdb", "")));
    assert_eq!((owner(&one), note(&one, "timestamp_dac").as_deref()), ((USER, GROUP), Some("1700000000")));
    daemon.kill();
    daemon.hand_over_to(second);
    daemon.restart();
    assert_eq!(daemon.state("handed"), "running");
    // libvirt's lists it before it has reconnected, and a destroy meanwhile fails by its own doing.
    daemon.ok(&["qemu-monitor-command", "handed", "--hmp", "info name"]);
    daemon.ok(&["destroy", "handed"]);
    assert_eq!((owner(&one), owner(&two), note(&one, "ref_dac")), ((1, 1), (1, 1), None));
}

#[test]
fn libvirt_gives_back_what_ours_gave() {
    gives_back_what_another_gave(Kind::Instead(OURS), Kind::Upstream);
}

#[test]
fn ours_gives_back_what_libvirt_gave() {
    gives_back_what_another_gave(Kind::Upstream, Kind::Instead(OURS));
}
