//! Every way in which a migration fails, and where the guest is afterwards: at every moment it runs on at most one host.
//!
//! | what fails | when | the guest | test |
//! |---|---|---|---|
//! | a client ends it | memory streams | goes on at the source | `whoever_ends…` |
//! | its time is over | memory streams | stands still until it has arrived, or is ended | `a_migration_that_takes_too_long…` |
//! | the client dies | before the memory has left | goes on at the source | `whoever_ends…`, `whoever_dies_between…` |
//! | | when all of it has left | stands still at the source until somebody decides | `whoever_dies_between…` |
//! | | when it runs there | runs there; what stands still at the source is to be destroyed | `whoever_dies_between…` |
//! | the source's QEMU dies | before the memory has left | is gone | `whoever_ends…`, `whoever_dies_between…` |
//! | | later | runs at the destination | `whoever_dies_between…` |
//! | the destination's QEMU dies | before it runs there | goes on at the source | `whoever_ends…`, `whoever_dies_between…` |
//! | | later | is gone, like every guest whose QEMU dies | `whoever_dies_between…` |
//! | the source's daemon dies | before the memory has left | goes on at the source | `a_daemon_that_dies…`, `whoever_dies_between…` |
//! | | when all of it has left | stands still at the source | `whoever_dies_between…` |
//! | the destination's daemon dies | before it runs there | goes on at the source | `a_daemon_that_dies…`, `whoever_dies_between…` |
//! | | later | runs at the destination | `whoever_dies_between…` |
//! | the network | memory streams, peer to peer | goes on at the source | `a_cut_network…` |
//! | | memory streams, the client connects both | goes on when somebody ends the migration | `a_cut_network…` |
//! | the destination is silent | memory streams, peer to peer | goes on at the source | `a_daemon_that_says_nothing…` |
//! | the destination's disk is full | disks are copied | goes on at the source | `a_full_disk…` |
//!
//! What happens between these moments, `migrate_soak` tries at random.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ferrovirt_compat::wire::{Wire, WireError};
use ferrovirt_compat::{Daemon, LIMIT, Signal, eventually, gone_within, halting, run, signal};
use ferrovirt_protocol::remote::procedure::{
    DomainLookupByName, DomainMigrateBegin3Params, DomainMigrateConfirm3Params, DomainMigrateFinish3Params,
    DomainMigratePerform3Params, DomainMigratePrepare3Params,
};
use ferrovirt_protocol::remote::{
    Domain, DomainLookupByNameArgs, DomainMigrateBegin3ParamsArgs, DomainMigrateConfirm3ParamsArgs,
    DomainMigrateFinish3ParamsArgs, DomainMigratePerform3ParamsArgs, DomainMigratePrepare3ParamsArgs,
    TypedParam, TypedParamValue,
};

use crate::migrate::{DESTINATION, Hosts, SOURCE, counting, image_disk, next_count};
use crate::migrate_soak::{Found, found, is_idle, qemus};
use crate::readopt::{rewrite_interrupted, rewrite_status};
use crate::{kind, on_upstream};

/// One under way; killed when dropped.
#[derive(Debug)]
pub(crate) struct Migration(Option<std::process::Child>);

impl Migration {
    /// A virsh that is to move a guest away from a daemon.
    pub(crate) fn begin(from: &Daemon, arguments: &[&str]) -> Self {
        let mut virsh = ferrovirt_compat::command("virsh");
        virsh.args(["-q", "-c", &from.uri(), "migrate"]).args(arguments);
        let quiet = virsh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self(Some(quiet.spawn().unwrap()))
    }

    /// Who drives it.
    pub(crate) fn pid(&self) -> i32 {
        self.0.as_ref().unwrap().id().cast_signed()
    }

    /// Fails the test if it has ended.
    pub(crate) fn expect_running(&mut self) {
        if self.0.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
            let ended = self.0.take().unwrap().wait_with_output().unwrap();
            panic!("it has ended: {}", String::from_utf8_lossy(&ended.stderr));
        }
    }

    /// Its end, and what it said.
    pub(crate) fn wait(mut self) -> (bool, String) {
        assert!(gone_within(self.pid(), LIMIT), "it does not end");
        let ended = self.0.take().unwrap().wait_with_output().unwrap();
        (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A migration so slow that there is time to disturb it.
fn slowly(hosts: &Hosts) -> Migration {
    slowly_to(hosts, &[&hosts.destination.uri(), "--migrateuri", &hosts.socket()])
}

fn slowly_to(hosts: &Hosts, arguments: &[&str]) -> Migration {
    hosts.source.ok(&["migrate-setspeed", "penguin", "1"]);
    let migration = Migration::begin(&hosts.source, &[&["--live", "penguin"], arguments].concat());
    eventually("memory is sent", || {
        let told = hosts.source.virsh(&["domjobinfo", "penguin"]).out;
        told.lines()
            .any(|line| line.starts_with("Memory processed") && !line.contains(" 0.000 B"))
            .then_some(())
    });
    migration
}

/// Afterwards the guest counts on where it was, and the other host has nothing of it.
fn stays_at_the_source(hosts: &Hosts) {
    eventually("the guest goes on at the source", || {
        (hosts.running("penguin") == (true, false)).then_some(())
    });
    eventually("nothing is left at the destination", || {
        (hosts.destination.qemu_pids().is_empty()
            && hosts.destination.ok(&["list", "--all", "--name"]).trim().is_empty())
        .then_some(())
    });
    next_count(&mut hosts.source.console("penguin"));
    assert_eq!(hosts.source.ok(&["domjobinfo", "penguin"]).split_whitespace().last(), Some("None"));
}

#[test]
fn whoever_ends_a_migration_the_guest_runs_on_exactly_one_host() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    next_count(&mut hosts.source.console("penguin"));
    // A client changes its mind.
    let migration = slowly(&hosts);
    hosts.source.ok(&["domjobabort", "penguin"]);
    let (_, said) = migration.wait();
    assert!(said.contains("canceled by client"), "{said}");
    stays_at_the_source(&hosts);
    // The QEMU that waits for the guest dies.
    let migration = slowly(&hosts);
    ferrovirt_compat::signal(hosts.destination.qemu_pid("penguin"), ferrovirt_compat::Signal::KILL);
    assert!(!migration.wait().0);
    stays_at_the_source(&hosts);
    // The client dies, and with it the QEMU that waits.
    let migration = slowly(&hosts);
    drop(migration);
    stays_at_the_source(&hosts);
    // The guest's own QEMU dies: it is nowhere, and nothing is left.
    let migration = slowly(&hosts);
    ferrovirt_compat::signal(hosts.source.qemu_pid("penguin"), ferrovirt_compat::Signal::KILL);
    assert!(!migration.wait().0);
    eventually("nothing is left", || {
        (hosts.destination.qemu_pids().is_empty() && hosts.source.qemu_pids().is_empty()).then_some(())
    });
}

#[test]
fn a_daemon_that_dies_in_a_migration_leaves_the_guest_on_one_host() {
    let mut hosts = Hosts::new();
    hosts.source.create(&counting());
    next_count(&mut hosts.source.console("penguin"));
    let migration = slowly(&hosts);
    hosts.source.kill();
    assert!(!migration.wait().0);
    hosts.source.restart();
    stays_at_the_source(&hosts);
    let migration = slowly(&hosts);
    hosts.destination.kill();
    // The stream goes on to a QEMU that nobody watches, and what becomes of it nobody says.
    hosts.source.ok(&["migrate-setspeed", "penguin", "1000"]);
    assert!(!migration.wait().0);
    hosts.destination.restart();
    stays_at_the_source(&hosts);
}

// ---- between the phases ----

/// How far a migration comes before somebody dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Begun,
    Prepared,
    Performed,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    SourceQemu,
    DestinationQemu,
    SourceDaemon,
    DestinationDaemon,
}

/// `VIR_MIGRATE_LIVE | VIR_MIGRATE_CHANGE_PROTECTION`
const FLAGS: u32 = 1 | 1 << 8;
const GUEST: &str = "guest";

/// A client that goes through the phases one by one.
struct Client {
    source: Wire,
    destination: Wire,
    dom: Domain,
    params: Vec<TypedParam>,
    cookie: Vec<u8>,
    reached: Option<Reached>,
}

fn param(field: &str, value: &str) -> TypedParam {
    TypedParam { field: field.to_owned().into(), value: TypedParamValue::String(value.to_owned()) }
}

impl Client {
    fn new(hosts: &Hosts) -> Self {
        let mut source = Wire::open(&hosts.source.socket()).unwrap();
        let destination = Wire::open(&hosts.destination.socket()).unwrap();
        let name = GUEST.to_owned();
        let dom = source.call::<DomainLookupByName>(&DomainLookupByNameArgs { name }).unwrap().dom;
        let params = vec![param("migrate_uri", &hosts.socket())];
        Self { source, destination, dom, params, cookie: Vec::new(), reached: None }
    }

    /// Goes on with the next phase.
    fn go_on(&mut self) -> Result<(), WireError> {
        let (params, flags) = (self.params.clone(), FLAGS);
        let (dom, cookie_in) = (self.dom.clone(), self.cookie.clone());
        let next = match self.reached {
            None => {
                let args = DomainMigrateBegin3ParamsArgs { dom, params, flags };
                let begun = self.source.call::<DomainMigrateBegin3Params>(&args)?;
                self.cookie = begun.cookie_out;
                self.params.push(param("destination_xml", &begun.xml));
                Reached::Begun
            }
            Some(Reached::Begun) => {
                let args = DomainMigratePrepare3ParamsArgs { params, cookie_in, flags };
                self.cookie = self.destination.call::<DomainMigratePrepare3Params>(&args)?.cookie_out;
                Reached::Prepared
            }
            Some(Reached::Prepared) => {
                let args = DomainMigratePerform3ParamsArgs { dom, dconnuri: None, params, cookie_in, flags };
                self.cookie = self.source.call::<DomainMigratePerform3Params>(&args)?.cookie_out;
                Reached::Performed
            }
            Some(Reached::Performed | Reached::Finished) => {
                self.params.push(param("destination_name", GUEST));
                let params = self.params.clone();
                let args = DomainMigrateFinish3ParamsArgs { params, cookie_in, flags, cancelled: 0 };
                self.cookie = self.destination.call::<DomainMigrateFinish3Params>(&args)?.cookie_out;
                Reached::Finished
            }
        };
        self.reached = Some(next);
        Ok(())
    }

    /// Does what is left to do for one who has seen what he has seen; whoever is gone does not answer.
    fn end(mut self) {
        let finished = match self.reached {
            Some(Reached::Finished) => true,
            Some(Reached::Performed) => self.go_on().is_ok(),
            _ => false,
        };
        let cancelled = i32::from(!finished);
        let cookie_in = if finished { self.cookie.clone() } else { Vec::new() };
        let (dom, params) = (self.dom.clone(), self.params.clone());
        let args = DomainMigrateConfirm3ParamsArgs { dom, params, cookie_in, flags: FLAGS, cancelled };
        let _ = self.source.call::<DomainMigrateConfirm3Params>(&args);
    }
}

fn kill_qemus(host: &Daemon) {
    for pid in qemus(host) {
        signal(pid, Signal::KILL);
        assert!(gone_within(pid, LIMIT));
    }
}

/// What is left at the source and at the destination.
fn left_behind(hosts: &mut Hosts, reached: Reached, victim: Victim, expected: (Found, Found)) {
    let mut client = Client::new(hosts);
    while client.reached.is_none_or(|so_far| so_far < reached) {
        client.go_on().unwrap();
    }
    match victim {
        Victim::Client => drop(client),
        Victim::SourceQemu => {
            kill_qemus(&hosts.source);
            client.end();
        }
        Victim::DestinationQemu => {
            kill_qemus(&hosts.destination);
            client.end();
        }
        Victim::SourceDaemon => {
            hosts.source.kill();
            client.end();
            hosts.source.restart();
        }
        Victim::DestinationDaemon => {
            hosts.destination.kill();
            client.end();
            hosts.destination.restart();
        }
    }
    let mut seen = expected;
    let begin = Instant::now();
    let settled =
        std::iter::repeat_with(|| begin.elapsed() < LIMIT).take_while(|in_time| *in_time).any(|_| {
            std::thread::park_timeout(Duration::from_millis(20));
            let idle = is_idle(&hosts.source, GUEST) && is_idle(&hosts.destination, GUEST);
            seen = (found(&hosts.source, GUEST), found(&hosts.destination, GUEST));
            let processes = (qemus(&hosts.source).len(), qemus(&hosts.destination).len());
            let known = (usize::from(seen.0 != Found::Gone), usize::from(seen.1 != Found::Gone));
            idle && seen == expected && processes == known
        });
    assert!(settled, "{victim:?} at {reached:?}: {seen:?} instead of {expected:?}");
}

#[test]
fn whoever_dies_between_two_phases_the_guest_runs_on_at_most_one_host() {
    use Found::{Gone, Runs, StandsStill};
    use Victim::{Client, DestinationDaemon, DestinationQemu, SourceDaemon, SourceQemu};
    if on_upstream() {
        // The original lets a guest go on in two places if the client says so.
        return;
    }
    let mut hosts = Hosts::new();
    for (reached, ends) in [
        (
            Reached::Begun,
            &[
                (Client, (Runs, Gone)),
                (SourceQemu, (Gone, Gone)),
                (SourceDaemon, (Runs, Gone)),
                (DestinationDaemon, (Runs, Gone)),
            ][..],
        ),
        (
            Reached::Prepared,
            &[
                (Client, (Runs, Gone)),
                (SourceQemu, (Gone, Gone)),
                (DestinationQemu, (Runs, Gone)),
                (SourceDaemon, (Runs, Gone)),
                (DestinationDaemon, (Runs, Gone)),
            ],
        ),
        (
            Reached::Performed,
            &[
                (Client, (StandsStill, Gone)),
                (SourceQemu, (Gone, Runs)),
                (DestinationQemu, (Runs, Gone)),
                (SourceDaemon, (StandsStill, Runs)),
                (DestinationDaemon, (Runs, Gone)),
            ],
        ),
        (
            Reached::Finished,
            &[
                (Client, (StandsStill, Runs)),
                (SourceQemu, (Gone, Runs)),
                (DestinationQemu, (Gone, Gone)),
                (SourceDaemon, (StandsStill, Runs)),
                (DestinationDaemon, (Gone, Runs)),
            ],
        ),
    ] {
        for (victim, expected) in ends {
            hosts.source.create(&halting(GUEST));
            left_behind(&mut hosts, reached, *victim, *expected);
            if *expected == (StandsStill, Gone) {
                // Whoever knows that it is nowhere else lets it go on.
                hosts.source.ok(&["resume", GUEST]);
            }
            for host in [&hosts.source, &hosts.destination] {
                let _ = host.virsh(&["destroy", GUEST]);
                assert!(qemus(host).is_empty());
            }
        }
    }
}

#[test]
fn a_guest_that_ran_when_its_new_hosts_daemon_died_runs_on() {
    if on_upstream() {
        return; // it has no file of ours
    }
    let job = "<job type='none' async='migration in' phase='finish3' flags='0x101'/>";
    let mut hosts = Hosts::new();
    for (reached, state, reason) in
        [(Reached::Finished, "running", "migrated"), (Reached::Performed, "paused", "migration")]
    {
        hosts.source.create(&halting(GUEST));
        let mut client = Client::new(&hosts);
        while client.reached.is_none_or(|so_far| so_far < reached) {
            client.go_on().unwrap();
        }
        hosts.destination.kill();
        let runs = reached == Reached::Finished;
        rewrite_interrupted(&hosts.destination, GUEST, (state, reason), job);
        // As the file is just before and just after that it ends with its connection has been taken back.
        match runs {
            true => rewrite_status(&hosts.destination, GUEST, &[("<domain ", "<autodestroy/><domain ")]),
            false => rewrite_status(&hosts.destination, GUEST, &[("<autodestroy/>", "")]),
        }
        hosts.destination.restart();
        if runs {
            hosts.destination.ok(&["qemu-monitor-command", "--hmp", GUEST, "info status"]);
            assert_eq!(hosts.destination.ok(&["domstate", "--reason", GUEST]).trim(), "running (migrated)");
            hosts.destination.kill();
            hosts.destination.restart();
            hosts.destination.ok(&["qemu-monitor-command", "--hmp", GUEST, "info status"]);
            hosts.destination.ok(&["destroy", GUEST]);
        } else {
            eventually("it is ended", || qemus(&hosts.destination).is_empty().then_some(()));
        }
        hosts.source.ok(&["destroy", GUEST]);
    }
}

// ---- hosts that do not hear each other ----

/// Two network namespaces and a cable between them; gone when dropped.
struct Cable {
    names: [String; 2],
    addresses: [String; 2],
}

impl Cable {
    fn new() -> Self {
        let number = std::process::id();
        let names = ["a", "b"].map(|end| format!("fv{end}{number}"));
        let addresses = ["1", "2"].map(|end| format!("192.0.2.{end}"));
        let cable = Self { names, addresses };
        for name in &cable.names {
            run("ip", &["netns", "add", name]).ok();
        }
        let [here, there] = &cable.names;
        let ends =
            ["link", "add", "cable", "netns", here, "type", "veth", "peer", "name", "cable", "netns", there];
        run("ip", &ends).ok();
        for (name, address) in cable.names.iter().zip(&cable.addresses) {
            run("ip", &["-n", name, "address", "add", &format!("{address}/24"), "dev", "cable"]).ok();
            for device in ["lo", "cable"] {
                run("ip", &["-n", name, "link", "set", device, "up"]).ok();
            }
        }
        cable
    }

    fn set(&self, state: &str) {
        run("ip", &["-n", &self.names[0], "link", "set", "cable", state]).ok();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            run("ip", &["netns", "del", name]);
        }
    }
}

/// Impatient, so that nobody waits for half a minute; who has to wait for a processor is not taken for lost.
const IMPATIENT: &str = "keepalive_interval = 1\nkeepalive_count = 9\n";

fn apart(cable: &Cable) -> Hosts {
    let guests = format!("user = \"root\"\ngroup = \"root\"\nremember_owner = 0\n{IMPATIENT}");
    let [source, destination] = [(SOURCE, 0), (DESTINATION, 1)].map(|(config, end)| {
        let address = &cable.addresses[end];
        let listen =
            format!("listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\nlisten_addr = \"{address}\"\n");
        let config = format!("{config}{IMPATIENT}{listen}");
        Daemon::start_in(Some(&cable.names[end]), kind(), &config, &guests)
    });
    Hosts { source, destination }
}

#[test]
fn a_cut_network_leaves_the_guest_at_the_source() {
    if on_upstream() {
        // That one lives in namespaces of its own.
        return;
    }
    let cable = Cable::new();
    let hosts = apart(&cable);
    hosts.source.create(&counting());
    next_count(&mut hosts.source.console("penguin"));
    let address = &cable.addresses[1];
    let (there, state) = (format!("qemu+tcp://{address}/system"), format!("tcp://{address}"));
    for options in [&[&there[..], "--p2p", "--migrateuri", &state][..], &[&there, "--p2p", "--tunnelled"]] {
        let migration = slowly_to(&hosts, options);
        cable.set("down");
        let (success, said) = migration.wait();
        assert!(!success && said.contains("Lost connection to destination host"), "{said}");
        stays_at_the_source(&hosts);
        cable.set("up");
    }
    // A client that hears both has them: it, or whoever else ends the migration.
    let migration = slowly_to(&hosts, &[&hosts.destination.uri(), "--migrateuri", &state]);
    cable.set("down");
    hosts.source.ok(&["domjobabort", "penguin"]);
    assert!(!migration.wait().0);
    stays_at_the_source(&hosts);
    cable.set("up");
    hosts.source.ok(&["migrate-setspeed", "penguin", "1000"]);
    hosts.source.ok(&["migrate", "--live", "--p2p", "penguin", &there, "--migrateuri", &state]);
    next_count(&mut hosts.destination.console("penguin"));
}

#[test]
fn a_daemon_that_says_nothing_any_more_is_not_waited_for() {
    if on_upstream() {
        // Its process is not the one that the test started.
        return;
    }
    let guests = format!("user = \"root\"\ngroup = \"root\"\nremember_owner = 0\n{IMPATIENT}");
    let hosts = Hosts::with(&guests);
    hosts.source.create(&counting());
    next_count(&mut hosts.source.console("penguin"));
    let migration = slowly_to(&hosts, &[&hosts.destination.uri(), "--p2p", "--migrateuri", &hosts.socket()]);
    let daemon = hosts.destination.pid().cast_signed();
    signal(daemon, Signal::STOP);
    let (success, said) = migration.wait();
    signal(daemon, Signal::CONT);
    assert!(!success && said.contains("Lost connection to destination host"), "{said}");
    stays_at_the_source(&hosts);
}

#[test]
fn a_migration_that_takes_too_long_goes_on_while_the_guest_stands_still() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    let counted = next_count(&mut hosts.source.console("penguin"));
    let through = hosts.socket();
    let to = hosts.destination.uri();
    let options = [&to[..], "--migrateuri", &through, "--timeout", "1", "--timeout-suspend"];
    let migration = slowly_to(&hosts, &options);
    eventually("its time is over", || (hosts.source.state("penguin") == "paused").then_some(()));
    hosts.source.ok(&["domjobabort", "penguin"]);
    assert!(!migration.wait().0);
    stays_at_the_source(&hosts);
    let migration = slowly_to(&hosts, &options);
    eventually("its time is over", || (hosts.source.state("penguin") == "paused").then_some(()));
    hosts.source.ok(&["migrate-setspeed", "penguin", "1000"]);
    let (success, said) = migration.wait();
    assert!(success, "{said}");
    assert_eq!(hosts.destination.state("penguin"), "running");
    assert!(next_count(&mut hosts.destination.console("penguin")) > counted);
}

// ---- disks ----

/// A file system of a few MiB; gone when dropped.
pub(crate) struct Small(pub PathBuf);

impl Small {
    pub(crate) fn new(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "small", at.to_str().unwrap()]).ok();
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_at_the_destination_leaves_the_guest_at_the_source() {
    if on_upstream() {
        // It does not see what is mounted here.
        return;
    }
    let hosts = Hosts::new();
    let small = Small::new(&hosts.destination.path("small"), "1m");
    let (here, there) = (hosts.source.path("disk.img"), small.0.join("disk.img"));
    fs::write(&here, vec![7; 4 << 20]).unwrap();
    // There is room for the name of it only.
    fs::File::create(&there).unwrap().set_len(4 << 20).unwrap();
    hosts.source.create(&counting().device(&image_disk(&here)));
    next_count(&mut hosts.source.console("penguin"));
    let xml = hosts.source.ok(&["dumpxml", "penguin", "--migratable"]);
    let xml = xml.replace(&here.display().to_string(), &there.display().to_string());
    let nbd = format!("unix://{}", hosts.destination.path("disks").display());
    let to = hosts.destination.uri();
    hosts.source.with_xml(&xml, |xml| {
        for way in [
            &["--disks-uri", &nbd, "--migrateuri", &hosts.socket()][..],
            &["--p2p", "--migrateuri", "tcp://127.0.0.1"],
        ] {
            let copy =
                [&["migrate", "--live", "penguin", &to, "--copy-storage-all", "--xml", xml], way].concat();
            let said = hosts.source.virsh(&copy).fails();
            assert!(said.contains("migration of disk vda failed"), "{said}");
            stays_at_the_source(&hosts);
        }
    });
    let jobs = r#"{"execute": "query-jobs"}"#;
    assert!(hosts.source.ok(&["qemu-monitor-command", "penguin", jobs]).contains("\"return\":[]"));
}

#[test]
fn a_dead_daemons_copies_of_disks_are_ended_by_the_next() {
    if on_upstream() {
        return; // it has no file of ours
    }
    let mut source = crate::daemon();
    let disk = source.path("disk.img");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    source.create(&halting(GUEST).device(&image_disk(&disk)));
    let ask = |source: &Daemon, command: &str| source.ok(&["qemu-monitor-command", GUEST, command]);
    let nodes = ask(&source, r#"{"execute":"query-block"}"#);
    let (_, node) = nodes.split_once(r#""node-name":""#).unwrap();
    let node = node.split_once('"').unwrap().0;
    for command in [
        r#"{"execute":"blockdev-add","arguments":{"driver":"null-co","size":1048576,"node-name":"migration-vda-storage"}}"#
            .to_owned(),
        format!(
            r#"{{"execute":"blockdev-mirror","arguments":{{"job-id":"drive-virtio-disk0","device":"{node}","target":"migration-vda-storage","sync":"full","auto-dismiss":false}}}}"#
        ),
        r#"{"execute":"migrate-set-parameters","arguments":{"tls-hostname":"there","multifd-compression":"zlib"}}"#
            .to_owned(),
    ] {
        let said = ask(&source, &command);
        assert!(!said.contains("error"), "{said}");
    }
    source.kill();
    // VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK
    let job = "<job type='none' async='migration out' phase='perform3' flags='0x41'/>";
    rewrite_interrupted(&source, GUEST, ("running", "booted"), job);
    source.restart();
    assert!(ask(&source, r#"{"execute":"query-jobs"}"#).contains("\"return\":[]"));
    let nodes = ask(&source, r#"{"execute":"query-named-block-nodes"}"#);
    assert!(!nodes.contains("migration-vda-storage"), "{nodes}");
    let told = ask(&source, r#"{"execute":"query-migrate-parameters"}"#);
    for line in [r#""tls-hostname":"""#, r#""multifd-compression":"none""#] {
        assert!(told.contains(line), "{line} is not in {told}");
    }
    source.ok(&["save", GUEST, source.path("saved").to_str().unwrap(), "--image-format", "sparse"]);
}

#[test]
fn a_place_for_a_guest_that_does_not_come_is_free_again() {
    let range = "migration_port_min = 49990\nmigration_port_max = 49990\n";
    let daemon = Daemon::start_with(kind(), DESTINATION, range);
    // VIR_MIGRATE_PERSIST_DEST | VIR_MIGRATE_OFFLINE
    let flags = 1 << 3 | 1 << 10;
    for name in ["one", "two"] {
        let params = vec![param("destination_xml", &halting(name).xml())];
        eventually("there is a place", || {
            let args =
                DomainMigratePrepare3ParamsArgs { params: params.clone(), cookie_in: Vec::new(), flags };
            Wire::open(&daemon.socket()).unwrap().call::<DomainMigratePrepare3Params>(&args).ok()
        });
    }
}
