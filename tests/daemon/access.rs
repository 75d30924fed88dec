//! Who may do what: the policy file, from virsh's side.

use std::collections::{HashMap, HashSet};
use std::fs;

use ferrovirt_compat::{Daemon, Signal, eventually, halting, signal};

use crate::bus::{Bus, FakePolkit, Question, verdict};
use crate::{kind, on_upstream};

const DENIED: &str = "access denied: 'QEMU' denied access";
const EVERYTHING: &str = "[[allow]]\nusers = ['root']\npermissions = ['*']\n";
pub(crate) const CONNECTION: &str = "[[allow]]\nusers = ['root']\npermissions = ['connect:*']\n";

/// A daemon that goes by a policy, which is not there yet.
pub(crate) fn judging() -> Daemon {
    Daemon::start(kind(), "access_drivers = [ \"policy\" ]\nlog_level = 2\n")
}

/// Gives the daemon other rules.
pub(crate) fn rule(daemon: &Daemon, rules: &str) {
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
    let other = |name: &str, uuid: &str| {
        let text = text.replace("db-1", name).replace(&db_uuid(&text), uuid);
        fs::write(file(name), text).unwrap();
    };
    other("db-3", "f2b0f0ee-6d0c-4a3e-9a0b-5c0e4c6f7a03");
    other("web-3", "0c8e6f8a-1b5d-4f7e-8d5c-2e9b7a4d6f03");
    signal(daemon.pid().cast_signed(), Signal::HUP);
    let heard = watcher.expect("web-3 defined added\n");
    assert!(!heard.contains("db-"), "{heard}");
    rule(&daemon, EVERYTHING);
    eventually("the policy is in force", || daemon.virsh(&["destroy", "web-1"]).success.then_some(()));
    assert!(daemon.ok(&["list", "--all", "--name"]).contains("db-3"));
}

/// A rule that only the guest's definition answers still lets its last events through, when there is none any more.
#[test]
fn all_events_of_a_guest_that_goes_are_heard() {
    if on_upstream() {
        return;
    }
    let daemon = judging();
    let team = "[[allow]]\nusers = ['root']\nmetadata = { namespace = 'http://example.org/team', text = 'web' }\n\
                permissions = ['domain:*']\n";
    rule(&daemon, &format!("{CONNECTION}{team}"));
    eventually("the policy is in force", || daemon.virsh(&["list"]).success.then_some(()));
    let metadata = "<metadata><team xmlns='http://example.org/team'>web</team></metadata><memory";
    let xml = halting("brief").xml().replacen("<memory", metadata, 1);
    daemon.with_xml(&xml, |path| daemon.ok(&["create", path]));
    let mut told = daemon.python_beside(
        "tell = lambda *told: print(told[-1])\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, tell, 'it ends')\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, tell, 'it is saved')\n\
         print('watching')\nrun_events()",
    );
    told.expect("watching\n");
    daemon.ok(&["save", "brief", daemon.path("saved").to_str().unwrap()]);
    let before = told.expect("it is saved\n");
    assert!(before.contains("it ends\n"), "{before}");
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

/// polkit on a daemon's own system bus.
struct Deciding {
    _serving: zbus::Connection,
    _bus: Bus,
    runtime: tokio::runtime::Runtime,
}

impl Deciding {
    fn start(daemon: &Daemon, polkit: &FakePolkit) -> Self {
        let directory = daemon.path("run/dbus");
        fs::create_dir_all(&directory).unwrap();
        let bus = Bus::start(&directory);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { _serving: runtime.block_on(polkit.serve(&bus)), _bus: bus, runtime }
    }

    fn stop(self) {
        self.runtime.shutdown_background();
    }
}

/// What one question said of its object.
fn details(asked: &[Question], action: &str) -> HashMap<String, String> {
    let found = asked.iter().rev().find(|question| question.action == action);
    found.unwrap_or_else(|| panic!("no {action} in {asked:?}")).details.clone()
}

#[test]
fn polkit_is_asked_about_every_object_by_libvirts_names_over_one_connection() {
    let daemon =
        Daemon::start(kind(), "access_drivers = [ \"polkit\" ]\nauth_unix_rw = \"none\"\nlog_level = 2\n");
    let polkit = FakePolkit::new(|question| {
        let hidden = question.details.get("domain_name").is_some_and(|name| name == "hidden");
        verdict(!hidden && question.action != "org.libvirt.api.domain.stop")
    });
    let deciding = Deciding::start(&daemon, &polkit);
    daemon.run(&halting("web"));
    let hidden = daemon.with_xml(&halting("hidden").xml(), |path| daemon.virsh(&["define", path]).fails());
    assert!(hidden.contains(DENIED), "{hidden}");
    let stop = daemon.virsh(&["destroy", "web"]).fails();
    assert!(stop.contains(DENIED), "{stop}");
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "web");
    let pool = daemon.path("pool").display().to_string();
    daemon.ok(&["pool-define-as", "pool", "dir", "--target", &pool]);
    daemon.ok(&["pool-start", "pool", "--build"]);
    daemon.ok(&["vol-create-as", "pool", "volume", "1M"]);
    daemon.ok(&["vol-delete", "volume", "pool"]);
    let xml = "<secret><usage type='ceph'><name>store</name></usage></secret>";
    daemon.with_xml(xml, |path| daemon.ok(&["secret-define", path]));
    let listed = daemon.ok(&["secret-list"]);
    let secret = listed.split_whitespace().find(|word| word.len() == 36).unwrap();

    let asked = polkit.asked.lock().unwrap().clone();
    let senders: HashSet<_> = asked.iter().map(|question| &question.sender).collect();
    assert_eq!(senders.len(), 1, "one connection");
    for question in &asked {
        assert_eq!((&*question.kind, question.flags), ("unix-process", 0), "{question:?}");
        assert_eq!(question.details["connect_driver"], "QEMU", "{question:?}");
        assert!(["pid", "start-time", "uid"].iter().all(|fact| question.subject.contains_key(*fact)));
    }
    let expect = |action: &str, facts: &[(&str, &str)]| {
        let driver = ("connect_driver".to_owned(), "QEMU".to_owned());
        let facts = facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        assert_eq!(details(&asked, action), facts.chain([driver]).collect(), "{action}");
    };
    let uuid = |arguments: &[&str]| daemon.ok(arguments).trim().to_owned();
    let (domain, number) = (uuid(&["domuuid", "web"]), uuid(&["pool-uuid", "pool"]));
    expect("org.libvirt.api.connect.getattr", &[]);
    // The number that what is defined without one is to have.
    let defined = asked.iter().find(|question| question.action == "org.libvirt.api.domain.write").unwrap();
    assert_eq!(defined.details["domain_uuid"], domain);
    expect("org.libvirt.api.storage-pool.save", &[("pool_name", "pool"), ("pool_uuid", &number)]);
    expect("org.libvirt.api.domain.start", &[("domain_name", "web"), ("domain_uuid", &domain)]);
    expect("org.libvirt.api.storage-pool.start", &[("pool_name", "pool"), ("pool_uuid", &number)]);
    let key = format!("{pool}/volume");
    expect(
        "org.libvirt.api.storage-vol.delete",
        &[("pool_name", "pool"), ("pool_uuid", &number), ("vol_name", "volume"), ("vol_key", &key)],
    );
    expect("org.libvirt.api.secret.save", &[("secret_uuid", secret), ("secret_usage_ceph", "store")]);

    deciding.stop();
    if on_upstream() {
        return;
    }
    // Nobody to ask: nobody may.
    let said = daemon.virsh(&["list"]).fails();
    assert!(said.contains(DENIED), "{said}");
    assert!(daemon.log().contains("cannot decide, so refused"), "{}", daemon.log());
    // The connection that was kept has gone with its bus.
    let deciding = Deciding::start(&daemon, &polkit);
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "web");
    deciding.stop();
}

#[test]
fn everything_that_a_call_is_about_is_judged() {
    if on_upstream() {
        return;
    }
    let daemon = judging();
    rule(&daemon, EVERYTHING);
    eventually("the policy is in force", || daemon.virsh(&["list"]).success.then_some(()));
    for name in ["mine", "shown", "read"] {
        daemon.define(&halting(name));
    }
    for pool in ["mine", "theirs"] {
        let place = daemon.path(pool).display().to_string();
        daemon.ok(&["pool-define-as", pool, "dir", "--target", &place]);
        daemon.ok(&["pool-start", pool, "--build"]);
        daemon.ok(&["vol-create-as", pool, "volume", "1M"]);
    }
    let number = "09090909-0909-4909-8909-090909090909";
    let secret = |usage: &str| {
        format!("<secret><uuid>{number}</uuid><usage type='ceph'><name>{usage}</name></usage></secret>")
    };
    daemon.with_xml(&secret("theirs"), |path| daemon.ok(&["secret-define", path]));
    let allow = |names: &str, permissions: &str| {
        format!("[[allow]]\nusers = ['root']\nnames = [{names}]\npermissions = [{permissions}]\n")
    };
    let rules = [
        CONNECTION.to_owned(),
        allow("'mine', 'mine-*', 'mine/*'", "'domain:*', 'storage_pool:*', 'storage_vol:*', 'secret:*'"),
        allow("'shown'", "'domain:getattr'"),
        allow("'read'", "'domain:getattr', 'domain:read'"),
        allow("'theirs', 'theirs/*'", "'storage_pool:getattr', 'storage_pool:read', 'storage_vol:getattr'"),
    ];
    rule(&daemon, &rules.concat());
    eventually("the policy is in force", || (!daemon.virsh(&["dumpxml", "shown"]).success).then_some(()));
    let denied = |words: &[&str], xml: &str| {
        let said = daemon.with_xml(xml, |path| daemon.virsh(&[words, &[path]].concat())).fails();
        assert!(said.contains(DENIED), "{words:?}: {said}");
    };
    // Numbers are for those who may read; a screen's password for those who may read secrets.
    let stats = daemon.ok(&["domstats", "--state"]);
    assert!(stats.contains("'read'") && stats.contains("'mine'") && !stats.contains("'shown'"), "{stats}");
    daemon.ok(&["dumpxml", "read"]);
    let said = daemon.virsh(&["dumpxml", "read", "--security-info"]).fails();
    assert!(said.contains(DENIED), "{said}");
    // What is replaced and what replaces it.
    let uuid = daemon.ok(&["domuuid", "mine"]);
    let other = halting("other").xml().replace("</name>", &format!("</name><uuid>{}</uuid>", uuid.trim()));
    denied(&["define"], &other);
    let uuid = daemon.ok(&["pool-uuid", "theirs"]);
    let pool = format!(
        "<pool type='dir'><name>mine-2</name><uuid>{}</uuid><target><path>/nowhere</path></target></pool>",
        uuid.trim()
    );
    denied(&["pool-define"], &pool);
    denied(&["secret-define"], &secret("mine"));
    // What is copied and what is made.
    let volume = "<volume><name>copy</name><capacity>1048576</capacity></volume>";
    let copy = |from: &str| {
        daemon.with_xml(volume, |path| {
            daemon.virsh(&["vol-create-from", "mine", path, "volume", "--inputpool", from])
        })
    };
    let said = copy("theirs").fails();
    assert!(said.contains("Failed to create vol from") && said.contains(DENIED), "{said}");
    copy("mine").ok();
}
