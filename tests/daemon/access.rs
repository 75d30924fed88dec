//! Who may do what: the policy file, from virsh's side.

use std::fs;

use ferrovirt_compat::{Daemon, Signal, eventually, halting, signal};

use crate::{kind, on_upstream};

const DENIED: &str = "access denied: 'QEMU' denied access";
const EVERYTHING: &str = "[[allow]]\nusers = ['root']\npermissions = ['*']\n";
const CONNECTION: &str = "[[allow]]\nusers = ['root']\npermissions = ['connect:*']\n";

/// A daemon that goes by a policy, which is not there yet.
fn judging() -> Daemon {
    Daemon::start(kind(), "access_drivers = [ \"policy\" ]\nlog_level = 2\n")
}

/// Gives the daemon other rules.
fn rule(daemon: &Daemon, rules: &str) {
    fs::write(daemon.path("etc/libvirt/access-policy.toml"), rules).unwrap();
    signal(daemon.pid().cast_signed(), Signal::HUP);
}

#[test]
fn without_a_policy_nobody_may_do_anything() {
    if on_upstream() {
        return;
    }
    let daemon = judging();
    let said = daemon.virsh(&["list"]).fails();
    assert!(said.contains(DENIED), "{said}");
    assert!(daemon.log().contains("access-policy.toml"), "{}", daemon.log());
    rule(&daemon, EVERYTHING);
    eventually("the policy is in force", || daemon.virsh(&["list"]).success.then_some(()));
    rule(&daemon, "[[allow]]\nusers = ['root']\npermissions = ['nonsense']\n");
    eventually("the mistake is named", || daemon.log().contains("'nonsense'").then_some(()));
    daemon.ok(&["list"]);
}

#[test]
fn a_policy_opens_some_guests_and_hides_the_others() {
    if on_upstream() {
        return;
    }
    let daemon = judging();
    rule(&daemon, EVERYTHING);
    eventually("the policy is in force", || daemon.virsh(&["list"]).success.then_some(()));
    for name in ["db-1", "web-1"] {
        daemon.define(&halting(name));
    }
    let (web, db) = (halting("web-2").xml(), halting("db-2").xml());
    let narrow = "[[allow]]\nusers = ['root']\nnames = ['web-*']\n\
                  permissions = ['domain:getattr', 'domain:read', 'domain:write', 'domain:save', 'domain:start']\n";
    rule(&daemon, &format!("{CONNECTION}{narrow}"));
    let refused = |arguments: &[&str]| {
        let said = daemon.virsh(arguments).fails();
        // virsh does not say why a guest is not found.
        let denied = said.contains(DENIED) || said.contains("failed to get domain");
        assert!(denied, "{arguments:?}: {said}");
    };
    eventually("the policy is in force", || (!daemon.virsh(&["dominfo", "db-1"]).success).then_some(()));
    let mut watcher = daemon.events();
    for arguments in [["domid", "db-1"], ["dumpxml", "db-1"], ["start", "db-1"], ["undefine", "db-1"]] {
        refused(&arguments);
    }
    daemon.with_xml(&db, |path| refused(&["define", path]));
    daemon.with_xml(&db, |path| refused(&["create", path]));
    // Not under its name either: the guest with this uuid is another one.
    let uuid = daemon.ok(&["domuuid", "web-1"]);
    let text = fs::read_to_string(daemon.path("etc/libvirt/qemu/db-1.xml")).unwrap();
    daemon.with_xml(&text.replace("<name>db-1", "<name>web-9"), |path| refused(&["define", path]));
    daemon.with_xml(&web, |path| daemon.ok(&["define", path]));
    let listed = daemon.ok(&["list", "--all", "--name"]);
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["web-1", "web-2"]);
    let python = daemon.python(
        "print(conn.numOfDefinedDomains(), sorted(conn.listDefinedDomains()), conn.numOfDomains(), conn.listDomainsID())\n\
         print(sorted(d.name() for d, _ in conn.getAllDomainStats()))",
    );
    assert_eq!(python.ok(), "2 ['web-1', 'web-2'] 0 []\n['web-1', 'web-2']\n");
    daemon.ok(&["start", "web-1"]);
    refused(&["destroy", "web-1"]);
    watcher.expect("web-1 started");
    // Of guests that it may not see it hears nothing: both come to be at once, by their files.
    let file = |name: &str| daemon.path(&format!("etc/libvirt/qemu/{name}.xml"));
    let other = |name: &str, digit: &str| {
        let text =
            text.replace("db-1", name).replace(&db_uuid(&text), &uuid.trim().replace(&uuid[..1], digit));
        fs::write(file(name), text).unwrap();
    };
    other("db-3", "e");
    other("web-3", "f");
    signal(daemon.pid().cast_signed(), Signal::HUP);
    let heard = watcher.expect("web-3 defined added\n");
    assert!(!heard.contains("db-"), "{heard}");
    rule(&daemon, EVERYTHING);
    eventually("the policy is in force", || daemon.virsh(&["destroy", "web-1"]).success.then_some(()));
    assert!(daemon.ok(&["list", "--all", "--name"]).contains("db-3"));
}

fn db_uuid(text: &str) -> String {
    let from = text.find("<uuid>").unwrap() + "<uuid>".len();
    text[from..from + 36].to_owned()
}

#[test]
fn a_hangup_changes_limits_and_logging_and_keeps_what_was_right() {
    if on_upstream() {
        return;
    }
    let daemon = Daemon::start(kind(), "max_clients = 30\nlog_level = 2\n");
    let admin = |arguments: &[&str]| {
        let uri =
            format!("libvirtd:///system?socket={}", daemon.path("run/libvirt/libvirt-admin-sock").display());
        let ran = ferrovirt_compat::run("virt-admin", &[&["-c", &uri], arguments].concat());
        ran.ok()
    };
    let limit = || {
        let said = admin(&["server-clients-info", "libvirtd"]);
        said.lines()
            .find(|line| line.starts_with("nclients_max"))
            .unwrap()
            .split(':')
            .next_back()
            .unwrap()
            .trim()
            .to_owned()
    };
    let file = daemon.path("etc/libvirt/libvirtd.conf");
    assert_eq!(limit(), "30");
    fs::write(&file, "max_clients = 40\nlog_level = 2\nlog_filters = \"1:rpc\"\ntcp_port = \"7\"\n").unwrap();
    signal(daemon.pid().cast_signed(), Signal::HUP);
    eventually("the limit is another", || (limit() == "40").then_some(()));
    assert!(admin(&["daemon-log-filters"]).contains("1:*rpc*"));
    eventually("what cannot change is named", || {
        daemon.log().contains("a change of the sockets counts from the next start").then_some(())
    });
    for (wrong, words) in [
        ("log_level = 2\nmax_clients = \"x\"\n", "libvirtd.conf:2"),
        ("max_clients = 50\nlog_level = 2\nlog_filters = \"9:x\"\n", "Invalid priority '9' for filter '9:x'"),
    ] {
        fs::write(&file, wrong).unwrap();
        signal(daemon.pid().cast_signed(), Signal::HUP);
        eventually("the mistake is named", || daemon.log().contains(words).then_some(()));
        assert_eq!(limit(), "40", "{wrong}");
    }
    assert!(daemon.log().contains("the configuration of before stays in force"));
}

/// The line of the audit trail that has all these words, once it is there.
fn audited(log: &std::path::Path, words: &[&str]) -> String {
    eventually(&format!("{words:?} are recorded"), || {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
    })
}

#[test]
fn starts_stops_and_resources_are_on_record_as_libvirt_records_them() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let config = format!("audit_logging = 1\nlog_level = 2\nlog_outputs = \"2:file:{}\"\n", log.display());
    let daemon = Daemon::start(kind(), &config);
    let disk = directory.path().join("d\" i.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let xml = format!(
        "<disk type='file' device='disk'><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    daemon.run(&halting("au dit").device(&xml));
    let uuid = daemon.ok(&["domuuid", "au dit"]).trim().to_owned();
    let pid = daemon.qemu_pid("au dit");
    let vm = format!("vm=617520646974 uuid={uuid}");
    audited(&log, &["success=yes virt=kvm op=start reason=booted", &format!("{vm} vm-pid={pid}")]);
    let coded: String = disk.display().to_string().bytes().map(|byte| format!("{byte:02X}")).collect();
    audited(&log, &["virt=kvm resrc=disk reason=start", &vm, &format!("old-disk=\"?\" new-disk={coded}")]);
    audited(&log, &["virt=kvm resrc=vcpu reason=start", &vm, "old-vcpu=0 new-vcpu="]);
    audited(&log, &["virt=kvm resrc=mem reason=start", &vm, "old-mem=0 new-mem="]);
    let rng = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>";
    daemon.with_xml(rng, |path| daemon.ok(&["attach-device", "au dit", path, "--live"]));
    audited(&log, &["resrc=rng reason=attach", &vm, "old-rng=\"?\" new-rng=\"/dev/urandom\""]);
    daemon.ok(&["destroy", "au dit"]);
    audited(&log, &["success=yes virt=kvm op=stop reason=destroyed", &format!("{vm} vm-pid=0")]);
    fs::remove_file(&disk).unwrap();
    daemon.virsh(&["start", "au dit"]).fails();
    audited(&log, &["success=no virt=kvm op=start reason=booted", &vm]);
}
