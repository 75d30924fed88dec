//! A catalogue of a hostile world: names, files, limits, crashes. What needs no guest is tried in `tests/rpc`.
//!
//! `make soak` runs the long ones for longer (`FERROVIRT_SOAK_ROUNDS`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use ferrovirt_compat::wire::{Wire, WireError};
use ferrovirt_compat::{Daemon, Program, eventually, halting, run};
use ferrovirt_protocol::remote::{self, procedure};

use crate::hostile::memory_kib;
use crate::migrate_soak::from_environment;
use crate::{daemon, kind, on_upstream};

/// How often, unless `make soak` asks for more.
pub(crate) fn rounds(otherwise: u64) -> u64 {
    from_environment("FERROVIRT_SOAK_ROUNDS", otherwise)
}

fn define(wire: &mut Wire, xml: &str) -> Result<remote::Domain, WireError> {
    let args = remote::DomainDefineXmlArgs { xml: xml.to_owned() };
    Ok(wire.call::<procedure::DomainDefineXml>(&args)?.dom)
}

fn undefine(wire: &mut Wire, dom: remote::Domain) -> Result<(), WireError> {
    wire.call::<procedure::DomainUndefine>(&remote::DomainUndefineArgs { dom })
}

#[test]
fn no_name_leads_out_of_its_directory() {
    let daemon = daemon();
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let files = || -> BTreeSet<_> {
        let entries = fs::read_dir(daemon.path("etc/libvirt/qemu")).into_iter().flatten();
        entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
    };
    let before = files();
    let long = "x".repeat(4096);
    for name in ["../escaped", "a/b", "/etc/passwd", "..", ".", "", "a&#10;b", &long] {
        let xml = halting("NAME").xml().replace("NAME", name);
        match define(&mut wire, &xml) {
            Err(WireError::Refused(_)) => {}
            Err(error) => panic!("{name}: {error}"),
            // libvirt lets a guest be called so; its file is where the others are.
            Ok(dom) => {
                let new: Vec<_> = files().difference(&before).cloned().collect();
                assert_eq!(new, [format!("{name}.xml")]);
                undefine(&mut wire, dom).unwrap();
            }
        }
        assert_eq!(files(), before, "{name}");
    }
    for escaped in ["etc/libvirt/escaped.xml", "etc/escaped.xml", "escaped.xml"] {
        assert!(!daemon.path(escaped).exists(), "{escaped}");
    }
}

#[test]
fn a_link_in_place_of_a_definition_is_replaced_and_not_followed() {
    let daemon = daemon();
    let victim = daemon.path("victim");
    fs::write(&victim, "precious").unwrap();
    let link = daemon.path("etc/libvirt/qemu/linked.xml");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(&victim, &link).unwrap();
    daemon.define(&halting("linked"));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(fs::symlink_metadata(&link).unwrap().is_file());
    daemon.ok(&["undefine", "linked"]);
    assert!(victim.exists() && !link.exists());
}

#[test]
fn a_count_without_results_is_the_length_of_the_list() {
    let daemon = daemon();
    for name in ["one", "two", "three"] {
        daemon.define(&halting(name));
    }
    daemon.ok(&["pool-create-as", "p", "dir", "--target", daemon.path("").to_str().unwrap()]);
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    for (need_results, length) in [(0, 0), (1, 3), (-1, 3)] {
        let args = remote::ConnectListAllDomainsArgs { need_results, flags: 0 };
        let list = wire.call::<procedure::ConnectListAllDomains>(&args).unwrap();
        assert_eq!((list.ret, list.domains.len()), (3, length), "{need_results}");
        let args = remote::ConnectListAllStoragePoolsArgs { need_results, flags: 0 };
        let list = wire.call::<procedure::ConnectListAllStoragePools>(&args).unwrap();
        assert_eq!((list.ret, list.pools.len()), (1, length.min(1)), "{need_results}");
        let args = remote::ConnectListAllSecretsArgs { need_results, flags: 0 };
        let list = wire.call::<procedure::ConnectListAllSecrets>(&args).unwrap();
        assert_eq!((list.ret, list.secrets.len()), (0, 0), "{need_results}");
    }
}

#[test]
fn fifteen_thousand_devices_take_no_more_than_their_share() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let mut took = Vec::new();
    for count in [1000, 15_000] {
        let devices = "<channel type='null'><target type='virtio'/></channel>".repeat(count);
        let xml = halting("crowded").device(&devices).xml();
        let begin = Instant::now();
        // Refused or not, it is answered; nobody else waits meanwhile.
        let answer = define(&mut wire, &xml);
        took.push(begin.elapsed());
        if let Ok(dom) = answer {
            undefine(&mut wire, dom).unwrap();
        }
        daemon.ok(&["list"]);
    }
    // Fifteen times the devices: a quadratic reader would take two hundred times as long.
    assert!(took[1] < took[0] * 100 + Duration::from_secs(2), "{took:?}");
}

#[test]
fn lookups_that_race_with_deletes_find_a_guest_or_none() {
    let daemon = daemon();
    let xml = halting("fleeting").xml();
    let socket = daemon.socket();
    let turns = rounds(60);
    thread::scope(|scope| {
        let seekers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut wire = Wire::open(&socket).unwrap();
                    for _ in 0..turns * 10 {
                        let args = remote::DomainLookupByNameArgs { name: "fleeting".to_owned() };
                        let dom = match wire.call::<procedure::DomainLookupByName>(&args) {
                            Ok(answer) => answer.dom,
                            Err(WireError::Refused(error)) => {
                                assert_eq!(error.code, 42, "{error}");
                                continue;
                            }
                            Err(error) => panic!("{error}"),
                        };
                        let args = remote::DomainGetXmlDescArgs { dom, flags: 0 };
                        match wire.call::<procedure::DomainGetXmlDesc>(&args) {
                            Ok(answer) => assert!(answer.xml.contains("<name>fleeting</name>")),
                            Err(WireError::Refused(error)) => assert_eq!(error.code, 42, "{error}"),
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let mut wire = Wire::open(&socket).unwrap();
        for _ in 0..turns {
            let dom = define(&mut wire, &xml).unwrap();
            undefine(&mut wire, dom).unwrap();
        }
        for seeker in seekers {
            seeker.join().unwrap();
        }
    });
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
}

#[test]
fn a_daemon_that_is_killed_over_a_define_leaves_the_old_file_or_the_new_one() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    let file = daemon.path("etc/libvirt/qemu/torn.xml");
    let text = |word: &str| {
        let description = format!("<description>{}</description>", word.repeat(20_000));
        halting("torn").xml().replace("<memory", &format!("{description}<memory"))
    };
    let (old, new) = (text("old "), text("new "));
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let uuid = define(&mut wire, &old).unwrap().uuid;
    let tag = |xml: &str| {
        let uuid = ferrovirt::util::uuid::Uuid(uuid);
        xml.replace("</name>", &format!("</name><uuid>{uuid}</uuid>"))
    };
    let texts = [tag(&old), tag(&new)];
    for round in 0..rounds(6) {
        let socket = daemon.socket();
        let texts = texts.clone();
        let writer = thread::spawn(move || {
            let mut wire = Wire::open(&socket).unwrap();
            let mut count = 0;
            while define(&mut wire, &texts[count % 2]).is_ok() {
                count += 1;
            }
            count
        });
        // After some of them, and so at another moment in each round.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(20 + 7 * (round % 11)) {
            thread::yield_now();
        }
        daemon.kill();
        writer.join().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let is_whole = text.trim_end().ends_with("</domain>");
        assert!(
            is_whole && (text.contains("old old") != text.contains("new new")),
            "torn: {} bytes",
            text.len()
        );
        daemon.restart();
        assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "torn");
        let left: Vec<_> =
            fs::read_dir(file.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(left.len() < 8, "files of each death stay: {left:?}");
    }
}

#[test]
fn without_descriptors_those_who_are_connected_go_on() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let mut witness = Wire::open(&daemon.socket()).unwrap();
    let has = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let limit = format!("--nofile={0}:{0}", has + 10);
    run("prlimit", &["--pid", &daemon.pid().to_string(), &limit]).ok();
    let crowd: Vec<_> = (0..40).filter_map(|_| Wire::connect(&daemon.socket()).ok()).collect();
    assert_eq!(crowd.len(), 40, "the others wait in the backlog");
    eventually("the daemon notices", || daemon.log().contains("cannot accept a client").then_some(()));
    witness.call::<procedure::ConnectGetLibVersion>(&()).unwrap();
    drop(crowd);
    let again = eventually("there is room again", || Wire::open(&daemon.socket()).ok());
    drop(again);
    witness.call::<procedure::ConnectGetLibVersion>(&()).unwrap();
}

#[test]
fn one_user_cannot_take_all_connections_nor_all_users_roots() {
    if on_upstream() {
        return;
    }
    // A hundredth, one place, is root's; a user has 75.
    let daemon =
        Daemon::start(kind(), "max_clients = 100\nauth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0777\"\n");
    let mut user = crowd(&daemon, 65534, 90, Says::Something);
    user.expect("75 15\n");
    assert!(daemon.log().contains("Too many active clients of user 65534"), "{}", daemon.log());
    daemon.ok(&["list"]);
}

/// What somebody says on the connections that he opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    /// Asks how to authenticate.
    Something,
}

/// Somebody who opens connections, tells how many are served and how many closed, and keeps them.
fn crowd(daemon: &Daemon, user: u32, count: usize, says: Says) -> Program {
    const SCRIPT: &str = r"
import socket, sys
place, count, asks = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'Something'
held, refused = [], 0
for _ in range(count):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(90)
    s.connect(place)
    try:
        if asks:
            s.sendall(bytes.fromhex('0000001c200080860000000100000042000000000000000100000000'))
        alive = not asks or s.recv(4) != b''
    except ConnectionError:
        alive = False
    held.append(s)
    refused += not alive
print(count - refused, refused, flush=True)
sys.stdin.readline()
";
    let mut user_command = ferrovirt_compat::command("setpriv");
    user_command.arg(format!("--reuid={user}")).args(["--clear-groups", "/usr/bin/python3", "-c", SCRIPT]);
    user_command.arg(daemon.socket()).args([count.to_string(), format!("{says:?}")]);
    Program::start(user_command)
}

#[test]
fn a_user_who_says_nothing_keeps_nobody_else_out() {
    // libvirtd accepts nobody any more then, not even root.
    if on_upstream() {
        return;
    }
    // Polkit is asked: of the 20 places for those who are not known yet, a user has 15, root one.
    let daemon = Daemon::start(kind(), "max_clients = 100\nmax_anonymous_clients = 20\n");
    let mut silent = crowd(&daemon, 65534, 50, Says::Nothing);
    silent.expect("50 0\n");
    daemon.ok(&["list"]);
    crowd(&daemon, 65533, 1, Says::Something).expect("1 0\n");
    let mut second = crowd(&daemon, 65533, 50, Says::Nothing);
    second.expect("50 0\n");
    daemon.ok(&["list"]);
    let place =
        format!("libvirtd+unix:///system?socket={}", daemon.path("run/libvirt/libvirt-admin-sock").display());
    let info = run("virt-admin", &["-c", &place, "server-clients-info", "libvirtd"]).ok();
    let info: Vec<Vec<_>> = info.lines().map(|line| line.split_whitespace().collect()).collect();
    for (name, value) in [
        ("nclients_max", "100"),
        ("nclients_unauth_max", "20"),
        ("nclients", "19"),
        ("nclients_unauth", "19"),
    ] {
        assert!(info.contains(&vec![name, ":", value]), "{name} {value}: {info:?}");
    }
    // Those who left make room for those in line.
    drop(silent);
    crowd(&daemon, 65534, 1, Says::Something).expect("1 0\n");
}

#[test]
fn a_line_of_the_log_says_on_whose_behalf() {
    if on_upstream() {
        return;
    }
    let daemon = Daemon::start(kind(), "log_filters = \"1:rpc\"\nlog_outputs = \"1:stderr\"\n");
    daemon.virsh(&["dominfo", "nobody"]).fails();
    let log = daemon.log();
    let line =
        log.lines().find(|line| line.contains("call failed") && line.contains("api=virDomainLookupByName"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    let who = "call{client=";
    assert!(
        line.contains(who) && line.contains("who=\"uid 0, gid 0, pid ") && line.contains("socket=\"unix\""),
        "{line}"
    );
}

#[test]
fn a_storm_of_resets_leaves_the_guest_running_and_the_daemon_as_it_was() {
    let daemon = daemon();
    daemon.run(&halting("storm"));
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let args = remote::DomainLookupByNameArgs { name: "storm".to_owned() };
    let dom = wire.call::<procedure::DomainLookupByName>(&args).unwrap().dom;
    let reset = remote::DomainResetArgs { dom: dom.clone(), flags: 0 };
    let before = memory_kib(&daemon);
    for _ in 0..rounds(200) {
        wire.call::<procedure::DomainReset>(&reset).unwrap();
    }
    assert_eq!(daemon.state("storm"), "running");
    let after = memory_kib(&daemon);
    assert!(after < before + 20 * 1024, "{before} KiB grew to {after} KiB");
    wire.call::<procedure::DomainDestroy>(&remote::DomainDestroyArgs { dom }).unwrap();
}

/// What is opened for QEMU is all that it gets, whatever the daemon itself has.
#[test]
fn qemu_gets_what_is_meant_for_it_and_nothing_else() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    // The daemon's own: clients, listeners, logs, pools, other guests' monitors.
    let _clients: Vec<_> = (0..5).map(|_| Wire::open(&daemon.socket()).unwrap()).collect();
    daemon.run(&halting("first"));
    daemon.run(&halting("second"));
    let pid = daemon.qemu_pid("second");
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let variables: Vec<_> = read("environ")
        .split('\0')
        .filter_map(|variable| variable.split_once('=').map(|(name, _)| name.to_owned()))
        .collect();
    let known = |name: &String| {
        matches!(name.as_str(), "PATH" | "LC_ALL" | "HOME" | "USER" | "LOGNAME" | "TMPDIR" | "QEMU_AUDIO_DRV")
            || name.starts_with("XDG_")
    };
    assert!(variables.iter().all(known), "{variables:?}");
    let shared = |pid: u32| -> BTreeSet<String> {
        let links = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|it| fs::read_link(it.unwrap().path()).ok());
        links.map(|link| link.display().to_string()).collect()
    };
    let common: Vec<_> = shared(daemon.pid())
        .intersection(&shared(pid.cast_unsigned()))
        .filter(|link| !link.starts_with("/dev/") && !link.starts_with("anon_inode:"))
        .cloned()
        .collect();
    // The log's pipe or file may be both's; a socket or a directory is not.
    let leaked: Vec<_> = common.iter().filter(|link| !link.contains("second.log")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    let other = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(other < 60, "{other} descriptors");
}

/// As many rounds as a busy host makes in a day leave the daemon as large as it was.
#[test]
fn rounds_of_everything_leave_no_memory_behind() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let xml = halting("again").xml();
    let turns = rounds(150);
    let round = |wire: &mut Wire| {
        let dom = define(wire, &xml).unwrap();
        let registered = wire
            .call::<procedure::ConnectDomainEventCallbackRegisterAny>(
                &remote::ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: Some(dom.clone()) },
            )
            .unwrap();
        wire.call::<procedure::ConnectDomainEventCallbackDeregisterAny>(
            &remote::ConnectDomainEventCallbackDeregisterAnyArgs { callback_id: registered.callback_id },
        )
        .unwrap();
        undefine(wire, dom).unwrap();
        drop(Wire::open(&daemon.socket()).unwrap());
    };
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    (0..turns / 3 + 50).for_each(|_| round(&mut wire));
    let before = memory_kib(&daemon);
    (0..turns).for_each(|_| round(&mut wire));
    for _ in 0..turns / 50 {
        daemon.create(&halting("brief"));
        daemon.ok(&["destroy", "brief"]);
    }
    let after = memory_kib(&daemon);
    // What the first guests and the allocator take once; a leak of a definition a round would be ten times as much.
    assert!(after < before + 16 * 1024, "{before} KiB grew to {after} KiB in {turns} rounds");
}
