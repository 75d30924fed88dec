//! Guests that move between two daemons on one machine, each with its own root and its own host uuid.

use ferrovirt_compat::{Daemon, Guest, Kind, Program, Ran, halting};

use crate::kind;

pub(crate) const SOURCE: &str = "host_uuid = \"11111111-1111-4111-8111-111111111111\"\n";
pub(crate) const DESTINATION: &str = "host_uuid = \"22222222-2222-4222-8222-222222222222\"\n";

/// Two hosts, as far as anybody can tell.
pub(crate) struct Hosts {
    pub source: Daemon,
    pub destination: Daemon,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        Self::of(kind(), kind())
    }

    pub(crate) fn of(source: Kind, destination: Kind) -> Self {
        Self { source: Daemon::start(source, SOURCE), destination: Daemon::start(destination, DESTINATION) }
    }

    /// Two of the same kind with `guests` as their `qemu.conf`.
    pub(crate) fn with(guests: &str) -> Self {
        Self::with_each(guests, guests)
    }

    pub(crate) fn with_each(source: &str, destination: &str) -> Self {
        Self {
            source: Daemon::start_with(kind(), SOURCE, source),
            destination: Daemon::start_with(kind(), DESTINATION, destination),
        }
    }

    /// Where the guest's state is sent: a socket in the destination's root.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.destination.path("arrival").display())
    }

    /// `virsh migrate` with some options.
    pub(crate) fn migrate(&self, guest: &str, options: &[&str]) -> Ran {
        let (to, through) = (self.destination.uri(), self.socket());
        self.source.virsh(&[&["migrate", guest, &to, "--migrateuri", &through], options].concat())
    }

    /// Moves back what was moved.
    pub(crate) fn migrate_back(&self, guest: &str, options: &[&str]) -> Ran {
        let (to, through) = (self.source.uri(), format!("unix://{}", self.source.path("arrival").display()));
        self.destination.virsh(&[&["migrate", guest, &to, "--migrateuri", &through], options].concat())
    }

    /// How many of the two run the guest, by their own account.
    pub(crate) fn running(&self, guest: &str) -> (bool, bool) {
        let runs = |daemon: &Daemon| daemon.virsh(&["domstate", guest]).out.trim() == "running";
        (runs(&self.source), runs(&self.destination))
    }
}

/// The next number that the guest counts to.
pub(crate) fn next_count(console: &mut Program) -> u64 {
    console.expect("count ");
    let line = console.expect("\n");
    line.trim().parse().unwrap_or_else(|_| panic!("no number: {line:?}"))
}

/// One that takes a minute and a half to send where a migration is slow, and a moment where it is not.
pub(crate) fn counting() -> Guest {
    ferrovirt_compat::counting("penguin").memory_mib(96)
}

#[test]
fn a_guest_that_counts_goes_on_counting_on_the_other_host() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    let counted = next_count(&mut hosts.source.console("penguin"));
    hosts.migrate("penguin", &["--live"]).ok();
    assert_eq!(hosts.running("penguin"), (false, true));
    let there = next_count(&mut hosts.destination.console("penguin"));
    assert!(there > counted, "counted to {counted}, and now {there}");
    assert!(hosts.source.ok(&["list", "--all", "--name"]).trim().is_empty());
    assert_eq!(hosts.destination.ok(&["domstate", "--reason", "penguin"]).trim(), "running (migrated)");
    hosts.migrate_back("penguin", &["--live"]).ok();
    let back = next_count(&mut hosts.source.console("penguin"));
    assert!(back > there, "counted to {there}, and now {back}");
    assert_eq!((hosts.source.qemu_pids().len(), hosts.destination.qemu_pids().len()), (1, 0));
}

/// Which of the two hosts has a guest, and how: `running`, `paused`, `shut off`, or nothing.
fn states(hosts: &Hosts, guest: &str) -> (String, String) {
    let state = |daemon: &Daemon| daemon.virsh(&["domstate", guest]).out.trim().to_owned();
    (state(&hosts.source), state(&hosts.destination))
}

pub(crate) fn expect_states(hosts: &Hosts, guest: &str, source: &str, destination: &str) {
    assert_eq!(states(hosts, guest), (source.to_owned(), destination.to_owned()));
}

#[test]
fn what_stays_of_a_guest_on_either_host_is_what_was_asked_for() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    hosts.migrate("guest", &["--live"]).ok();
    // Defined here, transient there.
    expect_states(&hosts, "guest", "shut off", "running");
    hosts.migrate_back("guest", &["--live"]).ok();
    expect_states(&hosts, "guest", "running", "");
    hosts.migrate("guest", &["--live", "--persistent", "--undefinesource"]).ok();
    expect_states(&hosts, "guest", "", "running");
    assert_eq!(hosts.destination.ok(&["list", "--persistent", "--name"]).trim(), "guest");
    // Without --live it stands still on the way; with --suspend it stays so.
    hosts.migrate_back("guest", &["--suspend", "--persistent", "--undefinesource"]).ok();
    assert_eq!(hosts.source.ok(&["domstate", "--reason", "guest"]).trim(), "paused (user)");
    hosts.source.ok(&["resume", "guest"]);
    hosts.migrate("guest", &["--live", "--dname", "other"]).ok();
    expect_states(&hosts, "guest", "shut off", "");
    assert_eq!(hosts.destination.state("other"), "running");
    hosts.destination.ok(&["destroy", "other"]);
    hosts.migrate("guest", &["--offline", "--persistent"]).ok();
    expect_states(&hosts, "guest", "shut off", "shut off");
    let xml = |daemon: &Daemon| daemon.ok(&["dumpxml", "guest"]);
    assert_eq!(xml(&hosts.source), xml(&hosts.destination));
    hosts.destination.ok(&["undefine", "guest"]);
    hosts.migrate("guest", &["--offline", "--persistent", "--undefinesource"]).ok();
    expect_states(&hosts, "guest", "", "shut off");
}

#[test]
fn both_sides_say_how_it_went_and_subscribers_hear_of_it() {
    let hosts = Hosts::new();
    hosts.source.create(&halting("guest"));
    let (mut leaving, mut arriving) = (hosts.source.events(), hosts.destination.events());
    hosts.migrate("guest", &["--live"]).ok();
    for event in ["guest suspended migrated", "guest stopped migrated"] {
        leaving.expect(event);
    }
    for event in ["guest started migrated", "guest resumed migrated"] {
        arriving.expect(event);
    }
    let told = hosts.destination.ok(&["domjobinfo", "guest", "--completed"]);
    for line in ["Incoming migration", "Memory processed", "Total downtime", "Time elapsed w/o network"] {
        assert!(told.contains(line), "{line}: {told}");
    }
}

#[test]
fn what_cannot_migrate_stays_and_says_why() {
    let hosts = Hosts::new();
    let disk = hosts.source.path("disk.img");
    std::fs::write(&disk, vec![0; 4096]).unwrap();
    let disk = format!(
        "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    hosts.source.run(&halting("with-disk").device(&disk));
    let refusal = |options: &[&str]| hosts.migrate("with-disk", options).err;
    let unsafe_ = refusal(&["--live"]);
    assert!(unsafe_.contains("Unsafe migration: Migration without shared storage is unsafe"), "{unsafe_}");
    let contradiction = refusal(&["--offline"]);
    assert!(
        contradiction.contains("offline migration must be specified with the persistent flag set"),
        "{contradiction}"
    );
    // Both daemons see the same file here, so it is safe indeed.
    hosts.migrate("with-disk", &["--live", "--unsafe", "--persistent"]).ok();
    expect_states(&hosts, "with-disk", "shut off", "running");
    let taken = hosts.migrate_back("with-disk", &["--live", "--unsafe", "--dname", "with-disk-2"]).err;
    assert!(taken.contains("is already defined with uuid"), "{taken}");
    expect_states(&hosts, "with-disk", "shut off", "running");
    let itself = hosts.source.uri();
    hosts.source.create(&halting("narcissus"));
    let refused = hosts.source.virsh(&["migrate", "--live", "narcissus", &itself]).err;
    assert!(refused.contains("Attempt to migrate guest to the same host 11111111"), "{refused}");
    assert_eq!(hosts.source.state("narcissus"), "running");
}

#[test]
fn two_daemons_move_a_guest_between_themselves() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    hosts.migrate("guest", &["--live", "--p2p", "--persistent", "--undefinesource"]).ok();
    expect_states(&hosts, "guest", "", "running");
    hosts.migrate_back("guest", &["--live", "--p2p", "--suspend"]).ok();
    expect_states(&hosts, "guest", "paused", "shut off");
    hosts.source.ok(&["resume", "guest"]);
    // Without a URI for the guest's state: through the connection of the two daemons.
    let to = hosts.destination.uri();
    hosts.source.ok(&["migrate", "guest", &to, "--live", "--p2p", "--tunnelled"]);
    expect_states(&hosts, "guest", "", "running");
    let both = hosts.migrate_back("guest", &["--live", "--p2p", "--tunnelled"]).err;
    assert!(both.contains("migration URI is not supported by tunnelled migration"), "{both}");
    let nowhere = hosts.destination.virsh(&[
        "migrate",
        "guest",
        "qemu+unix:///system?socket=/nowhere",
        "--live",
        "--p2p",
    ]);
    assert!(!nowhere.success);
    expect_states(&hosts, "guest", "", "running");
    assert_eq!(hosts.destination.ok(&["domjobinfo", "guest"]).split_whitespace().last(), Some("None"));
}

#[test]
fn a_counting_guest_goes_through_the_tunnel() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    let counted = next_count(&mut hosts.source.console("penguin"));
    let to = hosts.destination.uri();
    hosts.source.ok(&["migrate", "penguin", &to, "--live", "--p2p", "--tunnelled"]);
    let there = next_count(&mut hosts.destination.console("penguin"));
    assert!(there > counted, "counted to {counted}, and now {there}");
    assert_eq!((hosts.source.qemu_pids().len(), hosts.destination.qemu_pids().len()), (0, 1));
}

#[test]
fn limits_of_a_migration_are_kept_and_told() {
    let daemon = crate::daemon();
    daemon.run(&halting("guest"));
    assert_eq!(daemon.ok(&["migrate-getspeed", "guest"]).trim(), "8796093022207");
    daemon.ok(&["migrate-setspeed", "guest", "77"]);
    assert_eq!(daemon.ok(&["migrate-getspeed", "guest"]).trim(), "77");
    daemon.ok(&["migrate-setmaxdowntime", "guest", "123"]);
    assert_eq!(daemon.ok(&["migrate-getmaxdowntime", "guest"]).trim(), "123");
    daemon.ok(&["migrate-compcache", "guest", "--size", "134217728"]);
    assert!(daemon.ok(&["migrate-compcache", "guest"]).contains("128.000 MiB"));
    let refused = daemon.virsh(&["migrate-setspeed", "guest", "9999999999999999"]).err;
    assert!(refused.contains("bandwidth must be less than 8796093022208"), "{refused}");
    let refused = daemon.virsh(&["migrate-postcopy", "guest"]).err;
    let sentence = "post-copy can only be started while outgoing migration is in progress";
    assert!(refused.contains(sentence), "{refused}");
}

/// The file at `path` as a disk.
pub(crate) fn image_disk(path: &std::path::Path) -> String {
    let path = path.display();
    format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='vda' bus='virtio'/></disk>"
    )
}

/// An image of a megabyte with `content` at its beginning.
fn image(daemon: &Daemon, content: &[u8]) -> std::path::PathBuf {
    let path = daemon.path("disk.img");
    let mut bytes = content.to_vec();
    bytes.resize(1 << 20, 0);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn disks_that_are_not_shared_are_copied() {
    let hosts = Hosts::new();
    let (here, there) = (image(&hosts.source, b"contents of the disk"), image(&hosts.destination, b""));
    hosts.source.run(&halting("guest").device(&image_disk(&here)));
    // The disk lies elsewhere on the other host.
    let xml = hosts.source.ok(&["dumpxml", "guest", "--migratable"]);
    let xml = xml.replace(&here.display().to_string(), &there.display().to_string());
    let nbd = format!("unix://{}", hosts.destination.path("disks").display());
    hosts.source.with_xml(&xml, |xml| {
        let options = [
            "--live",
            "--copy-storage-all",
            "--disks-uri",
            &nbd,
            "--xml",
            xml,
            "--persistent",
            "--persistent-xml",
            xml,
        ];
        hosts.migrate("guest", &options).ok();
    });
    expect_states(&hosts, "guest", "shut off", "running");
    assert!(std::fs::read(&there).unwrap().starts_with(b"contents of the disk"));
    // And back, through ports that the daemon chooses.
    std::fs::write(&here, vec![0; 1 << 20]).unwrap();
    let xml = hosts.destination.ok(&["dumpxml", "guest", "--migratable"]);
    let xml = xml.replace(&there.display().to_string(), &here.display().to_string());
    let to = hosts.source.uri();
    hosts.destination.with_xml(&xml, |xml| {
        let options =
            ["--live", "--p2p", "--copy-storage-all", "--migrateuri", "tcp://127.0.0.1", "--xml", xml];
        hosts.destination.ok(&[&["migrate", "guest", &to], &options[..]].concat());
    });
    expect_states(&hosts, "guest", "running", "shut off");
    assert!(std::fs::read(&here).unwrap().starts_with(b"contents of the disk"));
    let blocked = hosts.destination.virsh(&["undefine", "guest"]);
    assert!(blocked.success, "{}", blocked.err);
}

#[test]
fn another_machine_is_no_place_to_go_on() {
    let hosts = Hosts::new();
    hosts.source.create(&halting("guest"));
    let xml = hosts.source.ok(&["dumpxml", "guest", "--migratable"]);
    for (from, to, sentence) in [
        (
            "<memory unit='KiB'>16384",
            "<memory unit='KiB'>32768",
            "Target domain max memory 32768 does not match source 16384",
        ),
        ("<name>guest<", "<name>other<", "Target domain name 'other' does not match source 'guest'"),
    ] {
        let refused = hosts
            .source
            .with_xml(&xml.replace(from, to), |xml| hosts.migrate("guest", &["--live", "--xml", xml]))
            .err;
        assert!(refused.contains(sentence), "{refused}");
    }
    expect_states(&hosts, "guest", "running", "");
}

#[test]
fn options_of_the_stream_are_taken_by_both_sides() {
    let hosts = Hosts::new();
    hosts.source.run(&halting("guest"));
    for options in [
        &["--live", "--parallel", "--parallel-connections", "3"][..],
        &["--live", "--auto-converge", "--auto-converge-initial", "30"],
        &["--live", "--compressed", "--comp-methods", "xbzrle", "--comp-xbzrle-cache", "67108864"],
        &["--live", "--parallel", "--compressed", "--comp-methods", "zstd", "--comp-zstd-level", "3"],
        &["--live", "--abort-on-error", "--change-protection", "--bandwidth", "500"],
        &["--live", "--postcopy", "--postcopy-bandwidth", "100"],
    ] {
        let both = [options, &["--persistent", "--undefinesource"]].concat();
        hosts.migrate("guest", &both).ok();
        expect_states(&hosts, "guest", "", "running");
        hosts.migrate_back("guest", &both).ok();
        expect_states(&hosts, "guest", "running", "");
    }
    let refused = hosts.migrate("guest", &["--live", "--parallel-connections", "3"]).err;
    assert!(refused.contains("Turn parallel migration on to tune it"), "{refused}");
    let refused = hosts.migrate("guest", &["--live", "--compressed", "--comp-methods", "mt"]).err;
    assert!(refused.contains("Migration option 'compress' is not supported by QEMU binary"), "{refused}");
    expect_states(&hosts, "guest", "running", "");
    hosts.migrate("guest", &["--live", "--postcopy", "--postcopy-after-precopy"]).ok();
    assert_eq!(hosts.destination.ok(&["domstate", "--reason", "guest"]).trim(), "running (migrated)");
}

#[test]
fn how_fast_a_guest_may_leave_is_kept_as_long_as_it_is_known() {
    let daemon = crate::daemon();
    daemon.run(&halting("h"));
    daemon.ok(&["migrate-setspeed", "h", "77"]);
    daemon.ok(&["destroy", "h"]);
    assert_eq!(daemon.ok(&["migrate-getspeed", "h"]).trim(), "77");
    daemon.ok(&["undefine", "h"]);
    daemon.run(&halting("h"));
    assert_ne!(daemon.ok(&["migrate-getspeed", "h"]).trim(), "77");
}
