//! Short migrations that somebody disturbs at a random moment: after each there is exactly one guest, and nothing else
//! is left of it.
//!
//! `FERROVIRT_SOAK_ROUNDS` and `FERROVIRT_SOAK_SEED` make it longer and other; `make soak` runs a thousand rounds.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use ferrovirt_compat::{Daemon, LIMIT, Signal, eventually, gone_within, halting, signal};

use crate::migrate::{DESTINATION, SOURCE};
use crate::migrate_failures::Migration;
use crate::{kind, on_upstream};

const GUEST: &str = "wanderer";
/// Where QEMU listens if the destination chooses the port.
const PORTS: std::ops::RangeInclusive<u16> = 49152..=49215;
/// Descriptors that a process may hold more than at rest: a connection that is just ending, a file just read.
const MARGIN: usize = 2;

/// Numbers that are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Direct,
    PeerToPeer,
    Tunnelled,
}

/// What happens to a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    Abort,
    Client,
    SourceQemu,
    DestinationQemu,
    SourceDaemon,
    DestinationDaemon,
}

#[derive(Debug)]
struct Round {
    way: Way,
    blow: Blow,
    after: Duration,
    /// More options for virsh.
    options: Vec<&'static str>,
    through_tcp: bool,
}

impl Round {
    fn draw(dice: &mut Dice, usual: &BTreeMap<Way, Duration>) -> Self {
        use Blow::{Abort, Client, DestinationDaemon, DestinationQemu, SourceDaemon, SourceQemu};
        let way = dice.one_of(&[Way::Direct, Way::PeerToPeer, Way::Tunnelled]);
        let blow =
            dice.one_of(&[Abort, Client, SourceQemu, DestinationQemu, SourceDaemon, DestinationDaemon]);
        let longest = u64::try_from(usual[&way].as_micros()).unwrap() * 5 / 4;
        let mut options = Vec::new();
        for option in [&["--change-protection"][..], &["--persistent", "--undefinesource"]] {
            if dice.below(2) == 0 {
                options.extend(option);
            }
        }
        let after = Duration::from_micros(dice.below(longest));
        Self { way, blow, after, options, through_tcp: dice.below(2) == 0 }
    }
}

/// What a QEMU does, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Gone,
    StandsStill,
    Runs,
}

/// Two hosts and a guest that is on one of them.
struct World {
    hosts: [Daemon; 2],
    at: usize,
    /// How many descriptors a daemon holds that has so many guests.
    descriptors: [usize; 2],
    /// How many its QEMU holds.
    guests_descriptors: usize,
}

impl World {
    fn new() -> Self {
        let hosts = [SOURCE, DESTINATION].map(|config| Daemon::start(kind(), config));
        let world = Self { hosts, at: 0, descriptors: [0, 0], guests_descriptors: 0 };
        world.begin_guest();
        world
    }

    fn begin_guest(&self) {
        self.hosts[self.at].create(&halting(GUEST));
    }

    fn source(&self) -> &Daemon {
        &self.hosts[self.at]
    }

    fn destination(&self) -> &Daemon {
        &self.hosts[1 - self.at]
    }

    fn begin(&self, round: &Round) -> Migration {
        let (to, socket) = (self.destination().uri(), self.destination().path("arrival"));
        let through = if round.through_tcp {
            "tcp://127.0.0.1".to_owned()
        } else {
            format!("unix://{}", socket.display())
        };
        let way: &[&str] = match round.way {
            Way::Direct => &["--migrateuri", &through],
            Way::PeerToPeer => &["--p2p", "--migrateuri", &through],
            Way::Tunnelled => &["--p2p", "--tunnelled"],
        };
        Migration::begin(self.source(), &[&["--live", GUEST, &to], way, &round.options].concat())
    }

    fn strike(&mut self, blow: Blow, migration: &Migration) {
        match blow {
            Blow::Abort => drop(self.source().virsh(&["domjobabort", GUEST])),
            Blow::Client => signal(migration.pid(), Signal::KILL),
            Blow::SourceQemu => kill_all(&qemus(self.source())),
            Blow::DestinationQemu => kill_all(&qemus(self.destination())),
            Blow::SourceDaemon => self.hosts[self.at].kill(),
            Blow::DestinationDaemon => self.hosts[1 - self.at].kill(),
        }
    }

    /// The daemons that were killed come back.
    fn mend(&mut self, blow: Blow) {
        match blow {
            Blow::SourceDaemon => drop(self.hosts[self.at].restart()),
            Blow::DestinationDaemon => drop(self.hosts[1 - self.at].restart()),
            _ => {}
        }
    }

    /// What has become of the guest at the source and at the destination, once nothing is under way any more.
    fn settled(&self, may_be: impl Fn((Found, Found)) -> bool) -> (Found, Found) {
        let begin = Instant::now();
        let mut seen = (Found::Gone, Found::Gone);
        while begin.elapsed() < LIMIT {
            if is_idle(self.source(), GUEST) && is_idle(self.destination(), GUEST) {
                seen = (found(self.source(), GUEST), found(self.destination(), GUEST));
                let processes = |seen: Found| usize::from(seen != Found::Gone);
                let told_of = (qemus(self.source()).len(), qemus(self.destination()).len());
                if may_be(seen) && told_of == (processes(seen.0), processes(seen.1)) {
                    return seen;
                }
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let jobs = [self.source(), self.destination()].map(|host| host.virsh(&["domjobinfo", GUEST]));
        panic!("it does not settle: {seen:?}, {jobs:?}");
    }

    /// Brings about that the guest runs on one host, wherever it stands still now, and that nothing else is left.
    fn tidy(&mut self, seen: (Found, Found)) {
        match seen {
            (Found::StandsStill, Found::Gone) => drop(self.source().ok(&["resume", GUEST])),
            (Found::StandsStill, Found::Runs) => {
                self.source().ok(&["destroy", GUEST]);
                self.at = 1 - self.at;
            }
            (Found::Gone, Found::Runs) => self.at = 1 - self.at,
            _ => {}
        }
        // Its definition may have stayed behind.
        let _ = self.destination().virsh(&["undefine", GUEST]);
        if seen == (Found::Gone, Found::Gone) {
            let _ = self.source().virsh(&["undefine", GUEST]);
            self.begin_guest();
        }
    }

    /// Nothing is held but one guest, or soon will be.
    fn check(&self) {
        // These take the guest's job, so none is left that nobody ends.
        self.source().ok(&["suspend", GUEST]);
        self.source().ok(&["resume", GUEST]);
        let begin = Instant::now();
        while let Some(left) = self.left_over() {
            assert!(begin.elapsed() < LIMIT, "{left}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        for host in &self.hosts {
            let log = host.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    /// What is held beside one guest.
    fn left_over(&self) -> Option<String> {
        let known = self.destination().ok(&["list", "--all", "--name"]);
        if !known.trim().is_empty() {
            return Some(format!("the destination knows {known}"));
        }
        for (host, guests) in [(self.source(), 1), (self.destination(), 0)] {
            let (pids, ports) = (qemus(host), ports_of(host));
            if pids.len() != guests || !ports.is_empty() {
                return Some(format!("processes {pids:?}, listened on {ports:?}"));
            }
            for directory in ["run/libvirt/qemu", "var/lib/libvirt/qemu"] {
                let left = names_of_guests(host, directory);
                if left.len() > guests {
                    return Some(format!("in {directory}: {left:?}"));
                }
            }
            let daemon = (host.pid(), self.descriptors[guests]);
            let qemus = pids.iter().map(|pid| (pid.cast_unsigned(), self.guests_descriptors));
            for (pid, usual) in qemus.chain([daemon]) {
                let held = descriptors(pid);
                if held > usual + MARGIN {
                    return Some(format!("{held} descriptors are open in {pid}, {usual} are usual"));
                }
            }
        }
        None
    }
}

fn kill_all(pids: &[i32]) {
    for pid in pids {
        signal(*pid, Signal::KILL);
        gone_within(*pid, LIMIT);
    }
}

/// The guests' processes of a daemon, of which it may not know: by their command lines.
pub(crate) fn qemus(host: &Daemon) -> Vec<i32> {
    let root = format!("{}/", host.path("").display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("qemu-system") && line.contains(root.trim_end_matches('/'))
    })
    .collect()
}

/// The ports in libvirt's range that a daemon or a guest of it listens on.
fn ports_of(host: &Daemon) -> Vec<u16> {
    let pids = qemus(host).into_iter().chain([host.pid().cast_signed()]);
    let sockets: Vec<String> = pids
        .flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten())
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(3)? == &"0A" && sockets.iter().any(|socket| socket == fields[9]);
            let port = u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok()?;
            (listens && PORTS.contains(&port)).then_some(port)
        })
        .collect()
}

/// What a directory holds of guests: their directories, monitors, pid and status files are named after them.
fn names_of_guests(host: &Daemon, directory: &str) -> Vec<String> {
    let names = fs::read_dir(host.path(directory)).into_iter().flatten().flatten();
    let mut stems: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(GUEST))
        .map(|name| name.split_once('.').map_or(name.clone(), |(stem, _)| stem.to_owned()))
        .collect();
    stems.sort_unstable();
    stems.dedup();
    stems
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

pub(crate) fn is_idle(host: &Daemon, guest: &str) -> bool {
    let told = host.virsh(&["domjobinfo", guest]);
    !told.success || told.out.split_whitespace().last() == Some("None")
}

pub(crate) fn found(host: &Daemon, guest: &str) -> Found {
    let asked = host.virsh(&["qemu-monitor-command", guest, r#"{"execute": "query-status"}"#]);
    match (asked.success, asked.out.contains("\"running\":true")) {
        (false, _) => Found::Gone,
        (true, false) => Found::StandsStill,
        (true, true) => Found::Runs,
    }
}

/// What may be left of a guest after a blow. The two daemons never know more than they were told: where one of them or
/// the client has died in the last moments, the guest stands still at the source until somebody decides.
fn may_be(round: &Round, success: bool, seen: (Found, Found)) -> bool {
    use Found::{Gone, Runs, StandsStill};
    match seen {
        (Runs, Gone) | (Gone, Runs) => true,
        (Gone, Gone) => match round.blow {
            Blow::SourceQemu => true,
            Blow::DestinationQemu => success,
            _ => false,
        },
        (StandsStill, Gone | Runs) => match round.blow {
            Blow::Client => round.way == Way::Direct,
            Blow::SourceDaemon => true,
            Blow::DestinationDaemon => round.way != Way::Direct,
            _ => false,
        },
        _ => false,
    }
}

/// A number that whoever runs the tests may choose.
pub(crate) fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

/// How long each way takes when nobody disturbs it; and what the daemons hold then.
fn undisturbed(world: &mut World) -> BTreeMap<Way, Duration> {
    let mut usual = BTreeMap::new();
    for way in [Way::Direct, Way::PeerToPeer, Way::Tunnelled, Way::Direct] {
        let begin = Instant::now();
        let round = Round { way, blow: Blow::Abort, after: LIMIT, options: Vec::new(), through_tcp: true };
        let (success, said) = world.begin(&round).wait();
        assert!(success, "{said}");
        usual.insert(way, begin.elapsed());
        world.at = 1 - world.at;
        for (host, guests) in [(world.at, 1), (1 - world.at, 0)] {
            let host = &world.hosts[host];
            eventually("it settles", || is_idle(host, GUEST).then_some(()));
            world.descriptors[guests] = world.descriptors[guests].max(descriptors(host.pid()));
        }
        let qemu = world.source().qemu_pid(GUEST).cast_unsigned();
        world.guests_descriptors = world.guests_descriptors.max(descriptors(qemu));
    }
    usual
}

#[test]
fn whatever_happens_to_a_migration_one_guest_is_left_and_nothing_else() {
    if on_upstream() {
        // Ours keeps the promise; the original makes none.
        return;
    }
    let rounds = from_environment("FERROVIRT_SOAK_ROUNDS", 30);
    let seed = from_environment("FERROVIRT_SOAK_SEED", 1);
    let mut dice = Dice(seed);
    let mut world = World::new();
    let usual = undisturbed(&mut world);
    let mut ends: BTreeMap<(Blow, String), u32> = BTreeMap::new();
    for number in 0..rounds {
        let round = Round::draw(&mut dice, &usual);
        eprintln!("round {number} of seed {seed}: {round:?}");
        let migration = world.begin(&round);
        gone_within(migration.pid(), round.after);
        world.strike(round.blow, &migration);
        let (success, said) = migration.wait();
        world.mend(round.blow);
        let seen = world.settled(|seen| may_be(&round, success, seen));
        eprintln!("    {seen:?}, {success} {}", said.trim());
        world.tidy(seen);
        world.check();
        *ends.entry((round.blow, format!("{seen:?}"))).or_default() += 1;
    }
    for ((blow, seen), times) in ends {
        println!("{blow:?}: {times} times {seen}");
    }
}
