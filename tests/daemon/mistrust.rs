//! What the daemon keeps to itself: its rights, secrets that pass through it, names that lead elsewhere; and a QEMU
//! that it cannot trust either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ferrovirt::qemu::save_image::{Prologue, SaveCookie, SaveFormat, Whole};
use ferrovirt_compat::{Daemon, Guest, Kind, eventually, halting};

use crate::access::{CONNECTION, judging, rule};
use crate::endings::{faked, needs_fake};
use crate::fake_qemu::Behaviour;
use crate::luks::{gives_away, in_files, in_processes};
use crate::{daemon, kind, on_upstream};

/// Nobody's, so that no right of the host's is theirs.
const USER: u32 = 64_999;
const GROUP: u32 = 64_998;

fn table(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn qemu_has_none_of_the_daemon_s_rights() {
    if on_upstream() {
        return; // What spares the daemon when memory is short spares its guests as well.
    }
    let other = format!("user = \"+{USER}\"\ngroup = \"+{GROUP}\"\n");
    for (config, groups) in [("", None), (other.as_str(), Some(GROUP.to_string()))] {
        let daemon = Daemon::start_with(kind(), "", config);
        // Where a test may do what a service manager does.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", daemon.pid()), "-500");
        daemon.run(&halting("g").tcg());
        let pid = daemon.qemu_pid("g");
        let status = table(&format!("/proc/{pid}/status"));
        for nothing in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status[nothing], 16), Ok(0), "{nothing}");
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["Umask"].as_str()), ("1", "0002"));
        // QEMU's own: SIGPIPE is all that it does not care for, beside what the C library uses inside.
        assert_eq!(u64::from_str_radix(&status["SigIgn"], 16).unwrap() & !0x1_8000_1000, 0);
        if let Some(groups) = groups {
            for nothing in ["CapPrm", "CapEff"] {
                assert_eq!(u64::from_str_radix(&status[nothing], 16), Ok(0), "{nothing}");
            }
            assert_eq!(status["Groups"], groups);
            assert_eq!(status["Uid"], std::array::from_fn::<_, 4, _>(|_| USER.to_string()).join("\t"));
            assert_eq!(status["Gid"], [groups.as_str(); 4].join("\t"));
        }
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "0");
        // The daemon's own limit is higher, so that it can serve many; the rest is the host's.
        let limits = |pid: &str| -> Vec<String> {
            let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            text.lines().filter(|line| !line.starts_with("Max open files")).map(str::to_owned).collect()
        };
        assert_eq!(limits(&pid.to_string()), limits("self"));
    }
}

/// A process that may not be dumped has files in `/proc` that are root's, whoever runs it.
#[test]
fn the_memory_of_the_daemon_is_in_no_core_file() {
    if on_upstream() || !rustix::process::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    chown(root.path(), Some(USER), Some(GROUP)).unwrap();
    let mut command = ferrovirt_compat::command("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={GROUP}"), "--clear-groups".to_owned()]);
    command.args([env!("CARGO_BIN_EXE_ferrovirtd"), "--root", root.path().to_str().unwrap()]);
    let mut daemon = command.spawn().unwrap();
    let files = format!("/proc/{}/status", daemon.id());
    let kept = std::panic::catch_unwind(|| {
        eventually("it serves", || root.path().join("run/libvirt/libvirt-sock").exists().then_some(()));
        assert!(fs::read_to_string(&files).unwrap().contains(&format!("Uid:\t{USER}\t")));
        assert_eq!(fs::metadata(&files).unwrap().uid(), 0);
    });
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    kept.unwrap_or_else(|reason| std::panic::resume_unwind(reason));
}

const PASSWORD: &str = "Zyklop17";
const NEW_PASSWORD: &str = "Medusa99";

/// Files of anybody's to read, below a directory that anybody may enter, that show it.
fn readable(directory: &Path, shows: &impl Fn(&[u8]) -> bool) -> Vec<String> {
    let by_others =
        |path: &String| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o007 != 0);
    in_files(directory, shows).into_iter().filter(by_others).collect()
}

#[test]
fn a_screen_s_password_is_seen_by_nobody_who_does_not_ask_for_it() {
    let daemon = Daemon::start(kind(), "log_level = 1\n");
    let shows = |content: &[u8]| [PASSWORD, NEW_PASSWORD].iter().any(|it| gives_away(content, it));
    let screen = |password: &str, more: &str| {
        format!(
            "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='{password}' {more}/>"
        )
    };
    let guest = halting("seen").device(&screen(PASSWORD, ""));
    let mut said = Vec::new();
    daemon.run(&guest);
    let look = |what: &str| {
        let logs = daemon.log();
        assert!(!shows(logs.as_bytes()), "{what}: the daemon's log");
        let found = in_files(&daemon.path("var/log"), &shows);
        assert!(found.is_empty(), "{what}: {found:?}");
        assert_eq!(in_processes(shows), [""; 0], "{what}");
        let found = readable(&daemon.path(""), &shows);
        assert!(found.is_empty(), "{what}: {found:?}");
    };
    look("start");
    daemon.with_xml(&screen(NEW_PASSWORD, ""), |file| daemon.ok(&["update-device", "seen", file]));
    look("update");
    for wrong in [
        screen(NEW_PASSWORD, "passwdValidTo='never'"),
        screen(NEW_PASSWORD, "connected='sometimes'"),
        screen(NEW_PASSWORD, "sharePolicy='none'"),
    ] {
        let error = daemon.with_xml(&wrong, |file| daemon.virsh(&["update-device", "seen", file]).err);
        said.push(error);
    }
    let command = format!(
        r#"{{"execute": "set_password", "arguments": {{"protocol": "x", "password": "{PASSWORD}"}}}}"#
    );
    said.push(daemon.virsh(&["qemu-monitor-command", "seen", &command]).err);
    said.push(
        daemon.virsh(&["qemu-monitor-command", "seen", "--hmp", &format!("set_password vnc {PASSWORD}")]).err,
    );
    assert!(said.iter().all(|text| !shows(text.as_bytes())), "{said:?}");
    look("refusals");
    assert!(!shows(daemon.ok(&["dumpxml", "seen"]).as_bytes()));
    // Whoever may ask for it gets it.
    assert!(shows(daemon.ok(&["dumpxml", "seen", "--security-info"]).as_bytes()));
    daemon.ok(&["destroy", "seen"]);
    look("end");
}

#[test]
fn a_qemu_that_says_a_gibibyte_costs_its_guest_and_nobody_else() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    daemon.run(&halting("other"));
    let behaviour = Behaviour {
        flood_at: Some("x-flood".to_owned()),
        storm_at: Some("x-storm".to_owned()),
        ..Behaviour::default()
    };
    faked(&daemon, "storms", &behaviour, "");
    faked(&daemon, "floods", &behaviour, "");
    let most = || {
        let peak = &table(&format!("/proc/{}/status", daemon.pid()))["VmHWM"];
        peak.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = most();
    let error = daemon.virsh(&["qemu-monitor-command", "floods", r#"{"execute": "x-flood"}"#]).fails();
    assert!(error.contains("exceeds buffer size (10485760 bytes)"), "{error}");
    thread::scope(|scope| {
        let storm =
            scope.spawn(|| daemon.ok(&["qemu-monitor-command", "storms", r#"{"execute": "x-storm"}"#]));
        daemon.ok(&["domstats", "other"]);
        daemon.ok(&["qemu-monitor-command", "other", r#"{"execute": "query-status"}"#]);
        storm.join().unwrap();
    });
    let after = most();
    // The line that was given up, twice while its buffer grows, and the queue of events.
    assert!(after < before + 64 * 1024, "{before} KiB grew to {after} KiB");
    assert_eq!(daemon.state("other"), "running");
    daemon.ok(&["destroy", "storms"]);
    // It cannot be spoken with; it can be ended.
    if daemon.state("floods") == "running" {
        daemon.ok(&["destroy", "floods"]);
    }
    eventually("only the other one is left", || (daemon.qemu_pids().len() == 1).then_some(()));
    daemon.ok(&["destroy", "other"]);
}

/// All files below a directory but logs.
fn names(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true if path.ends_with("log") => {}
            true => found.extend(names(&path)),
            false => drop(found.insert(path)),
        }
    }
    found
}

/// Pools, volumes, snapshots, checkpoints and secrets have names as guests have.
#[test]
fn no_name_of_anything_leads_out_of_its_directory() {
    let daemon = daemon();
    let pool = daemon.path("pool");
    daemon.ok(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap(), "--build"]);
    daemon.define(&halting("g"));
    let made = |kind: &str| {
        format!(
            "<{kind}><name>NAME</name><state>shutoff</state><creationTime>1700000000</creationTime>\
             <domain type='kvm'><name>g</name><memory>1024</memory><os><type>hvm</type></os></domain></{kind}>"
        )
    };
    let (snapshot, checkpoint) = (made("domainsnapshot"), made("domaincheckpoint"));
    let kinds: [(&str, &str, &[&str]); 5] = [
        (
            "<pool type='dir'><name>NAME</name><target><path>/nowhere</path></target></pool>",
            "etc/libvirt/storage",
            &["pool-define", "FILE"],
        ),
        ("<volume><name>NAME</name><capacity>512</capacity></volume>", "pool", &["vol-create", "p", "FILE"]),
        (&snapshot, "var/lib/libvirt/qemu/snapshot/g", &["snapshot-create", "g", "FILE", "--redefine"]),
        (&checkpoint, "var/lib/libvirt/qemu/checkpoint/g", &["checkpoint-create", "g", "FILE", "--redefine"]),
        (
            "<secret><usage type='volume'><volume>NAME</volume></usage></secret>",
            "etc/libvirt/secrets",
            &["secret-define", "FILE"],
        ),
    ];
    let long = "x".repeat(4096);
    for (xml, home, words) in kinds {
        for name in ["../escaped", "../../escaped", "a/b", "/tmp/escaped", "..", ".", "", "a&#10;b", &long] {
            let before = names(&daemon.path(""));
            let ran = daemon.with_xml(&xml.replace("NAME", name), |file| {
                let words: Vec<_> = words.iter().map(|word| word.replace("FILE", file)).collect();
                daemon.virsh(&words.iter().map(String::as_str).collect::<Vec<_>>())
            });
            let after = names(&daemon.path(""));
            let new: Vec<_> = after.difference(&before).collect();
            let shown: String = name.chars().take(20).collect();
            assert!(ran.success || new.is_empty(), "{words:?} {shown:?}: {new:?}");
            let inside = |path: &&PathBuf| path.parent() == Some(&daemon.path(home));
            assert!(new.iter().all(inside), "{words:?} {shown:?}: {new:?}");
            assert!(before.is_subset(&after), "{words:?} {shown:?}");
        }
    }
    assert!(!Path::new("/tmp/escaped").exists() && !Path::new("/tmp/escaped.xml").exists());
}

/// A file that a guest was saved in.
fn saved(guest: &Guest, path: &Path) {
    // Without a uuid, so it gets one as it is read, which each call does twice.
    let prologue = Prologue::new(SaveFormat::Raw, guest.xml(), &SaveCookie { cpu: None });
    fs::write(path, prologue.encode(Whole::Yes).unwrap()).unwrap();
}

#[test]
fn who_may_see_one_saved_guest_sees_no_other_under_its_name() {
    if on_upstream() {
        return;
    }
    let daemon = judging();
    let narrow = "[[allow]]\nusers = ['root']\nnames = ['web-*']\npermissions = ['domain:getattr', 'domain:read', 'domain:write']\n";
    rule(&daemon, &format!("{CONNECTION}{narrow}"));
    let (web, db) = (daemon.path("web"), daemon.path("db"));
    saved(&halting("web-1"), &web);
    saved(&halting("db-1"), &db);
    let name = daemon.path("saved");
    let lead = |to: &Path| {
        let next = daemon.path("next");
        symlink(to, &next).unwrap();
        fs::rename(next, &name).unwrap();
    };
    lead(&web);
    let path = name.to_str().unwrap();
    let ask = ["save-image-dumpxml", path];
    eventually("the policy is in force", || daemon.virsh(&ask).success.then_some(()));
    lead(&db);
    let refused = daemon.virsh(&ask).fails();
    assert!(refused.contains("access denied"), "{refused}");
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                lead(&web);
                lead(&db);
            }
        });
        let script = format!(
            "seen, libvirt_error = set(), __import__('libvirt').libvirtError\n\
             for _ in range(3000):\n    \
                 try: seen.add('db-1' if '<name>db-1' in conn.saveImageGetXMLDesc('{path}', 0) else 'web-1')\n    \
                 except libvirt_error: seen.add('refused')\n\
             print(sorted(seen))"
        );
        let seen = daemon.python(&script);
        over.store(true, Ordering::Relaxed);
        seen
    });
    assert_eq!(seen.ok().trim(), "['refused', 'web-1']");
}

/// Programs that other users may run see nothing of the daemon's files.
#[test]
fn files_are_the_daemon_s_own() {
    if kind() != Kind::for_tests(env!("CARGO_BIN_EXE_ferrovirtd")) || on_upstream() {
        return;
    }
    let daemon = daemon();
    daemon.run(&halting("g"));
    let uuid = "5f1f2f50-8403-4b23-88d6-21ccc2f80d70";
    daemon.with_xml(&format!("<secret><uuid>{uuid}</uuid></secret>"), |file| {
        daemon.ok(&["secret-define", file])
    });
    daemon.ok(&["secret-set-value", uuid, "--base64", "b2xk"]);
    for below in ["etc/libvirt", "run/libvirt/qemu", "var/log/libvirt/qemu"] {
        for path in names(&daemon.path(below)) {
            let found = fs::symlink_metadata(&path).unwrap();
            let open = found.is_file() && found.permissions().mode() & 0o077 != 0;
            let harmless = path.extension().is_some_and(|it| it == "pid" || it == "conf");
            assert!(!open || harmless, "{}: {:o}", path.display(), found.permissions().mode());
        }
    }
}

/// Whether a process has these bytes anywhere in the memory that it writes to.
fn in_memory(pid: u32, shows: impl Fn(&[u8]) -> bool) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let places = maps.lines().filter(|line| line.contains(" rw")).map(|line| {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        (from, usize::try_from(to - from).unwrap())
    });
    // What is not there any more, or never was, has nothing in it.
    places.into_iter().any(|(from, length)| {
        let mut content = vec![0; length];
        memory.read_exact_at(&mut content, from).is_ok() && shows(&content)
    })
}

/// As it is, in base64, and with each byte in a word of its own, as SASL's travel.
fn anyhow(content: &[u8], secret: &str) -> bool {
    let wide: Vec<u8> = secret.bytes().flat_map(|byte| [0, 0, 0, byte]).collect();
    gives_away(content, secret) || content.windows(wide.len()).any(|window| window == wide)
}

#[test]
fn what_came_with_a_secret_is_wiped_from_memory() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    daemon.run(&halting("g"));
    let uuid = "5f1f2f50-8403-4b23-88d6-21ccc2f80d70";
    let xml = format!("<secret><uuid>{uuid}</uuid></secret>");
    let there = |secret: &str| in_memory(daemon.pid(), |content| anyhow(content, secret));
    // It is found where it is.
    daemon.with_xml(&xml, |file| daemon.ok(&["secret-define", file]));
    let value = |text: &str| {
        let script = format!("conn.secretLookupByUUIDString('{uuid}').setValue(b'{text}')");
        daemon.python(&script)
    };
    value(PASSWORD).ok();
    assert!(there(PASSWORD));
    daemon.ok(&["secret-undefine", uuid]);
    assert!(!there(PASSWORD), "a short one");
    // In more pieces than one, and more than a buffer takes.
    let long = "Minotaur42".repeat(6000);
    daemon.with_xml(&xml, |file| daemon.ok(&["secret-define", file]));
    value(&long).ok();
    daemon.ok(&["secret-undefine", uuid]);
    assert!(!there("Minotaur42Minotaur42"), "a long one");
    daemon.with_xml(&xml, |file| daemon.ok(&["secret-define", file]));
    let script = format!("conn.secretLookupByUUIDString('{uuid}').setValue(b'Kentaur63', 5)");
    assert!(!daemon.python(&script).success, "there are no such flags");
    assert!(!there("Kentaur63"), "one that is refused");
    daemon.virsh(&["set-user-password", "g", "root", "Chimaera55"]).fails();
    assert!(!there("Chimaera55"), "a guest's user's");
}

/// Has the daemon let in by a mechanism of SASL's who knows this password.
fn lets_in(daemon: &mut Daemon, mechanism: &str, password: &str) {
    let etc = daemon.path("etc/sasl2");
    fs::create_dir_all(&etc).unwrap();
    let database = etc.join("passwd.db");
    let settings =
        format!("mech_list: {mechanism}\npwcheck_method: auxprop\nsasldb_path: {}\n", database.display());
    fs::write(etc.join("libvirt.conf"), settings).unwrap();
    let add = format!(
        "printf %s {password} | saslpasswd2 -p -c -a libvirt -f {} alice && chmod 600 {0}",
        database.display()
    );
    ferrovirt_compat::run("sh", &["-c", &add]).ok();
    daemon.terminate();
    daemon.restart();
}

#[test]
fn a_password_that_lets_somebody_in_is_seen_by_nobody() {
    if on_upstream() {
        return;
    }
    let mut daemon = Daemon::start(kind(), "auth_unix_rw = \"sasl\"\nlog_level = 1\n");
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        lets_in(&mut daemon, mechanism, PASSWORD);
        let auth = tempfile::tempdir().unwrap();
        let file = auth.path().join("auth.conf");
        let log_in = |password: &str| {
            let known = format!(
                "[credentials-test]\nauthname=alice\npassword={password}\n[auth-libvirt-default]\ncredentials=test\n"
            );
            fs::write(&file, known).unwrap();
            let set = format!("LIBVIRT_AUTH_FILE={}", file.display());
            ferrovirt_compat::run("env", &[&set, "virsh", "-q", "-c", &daemon.uri(), "uri"])
        };
        let wrong = log_in(NEW_PASSWORD).fails();
        assert!(wrong.contains("authentication failed"), "{mechanism}: {wrong}");
        log_in(PASSWORD).ok();
        assert!(daemon.log().contains("SASL name 'alice'"), "{mechanism}: {}", daemon.log());
        let shows = |content: &[u8]| [PASSWORD, NEW_PASSWORD].iter().any(|it| anyhow(content, it));
        assert!(!shows(wrong.as_bytes()) && !shows(daemon.log().as_bytes()), "{mechanism}");
        assert_eq!(in_processes(shows), [""; 0], "{mechanism}");
        // The library's own list of passwords is root's.
        let kept = in_files(&daemon.path(""), &shows);
        assert_eq!(kept, [daemon.path("etc/sasl2/passwd.db").display().to_string()], "{mechanism}");
        assert!(readable(&daemon.path(""), &shows).is_empty(), "{mechanism}");
        // The right one is in the library's database, which it keeps in memory.
        assert!(!in_memory(daemon.pid(), |content| anyhow(content, NEW_PASSWORD)), "{mechanism}");
    }
}
