//! How long guests take to another host, and how long they stand still for it: two of our daemons, two of libvirt's, and
//! the floor, which is QEMU to QEMU by hand over the same kind of socket.
//!
//! ```text
//! ferrovirt-bench-migrate [ROUNDS [WAY…]]
//! ```
//!
//! The total is what a user waits for: from the command until the guest runs there, start of the QEMU that waits
//! included. The standing still is from the source's stop to the destination's start, as the destination tells it.

#![allow(clippy::expect_used, clippy::panic, reason = "a measurement that fails says where and ends")]

mod floor;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ferrovirt_compat::{Daemon, Guest, Kind, counting, dirtying, eventually, run};

use floor::Floor;

const GUEST: &str = "traveller";
const MEMORY_MIB: u32 = 512;
const DISK_MIB: usize = 256;

/// How it travels: what virsh is told, and what QEMU is told by hand, if that is done.
struct Way {
    name: &'static str,
    options: &'static [&'static str],
    floor: Option<Floor>,
}

const WAYS: [Way; 6] = [
    Way { name: "direct", options: &[], floor: Some(Floor::Plain) },
    Way { name: "peer to peer", options: &["--p2p"], floor: Some(Floor::Plain) },
    Way { name: "tunnelled", options: &["--p2p", "--tunnelled"], floor: Some(Floor::Plain) },
    Way {
        name: "parallel",
        options: &["--parallel", "--parallel-connections", "2"],
        floor: Some(Floor::Parallel),
    },
    Way {
        name: "post-copy",
        options: &["--postcopy", "--postcopy-after-precopy"],
        floor: Some(Floor::Postcopy),
    },
    Way { name: "with disk", options: &["--copy-storage-all"], floor: None },
];

impl Way {
    fn has_disk(&self) -> bool {
        self.options.contains(&"--copy-storage-all")
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub total: Duration,
    pub stood_still: Duration,
}

/// A pair of daemons of one kind.
struct Side {
    name: &'static str,
    hosts: [Daemon; 2],
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let only: Vec<String> = arguments.collect();
    let mut sides = vec![Side::new("ours", Kind::built())];
    if ["libvirtd", "virtlogd"].iter().all(|name| run("which", &[name]).success) {
        sides.push(Side::new("libvirt's", Kind::Upstream));
    }
    println!(
        "milliseconds in all / standing still, medians of {rounds}; beside the floor: + is what is added to it"
    );
    println!("{:22} {:>16} {:>32} {:>32}", "", "floor", "ours", "libvirt's");
    for (kind, rom, guest) in
        [("idle", "count.rom", counting(GUEST)), ("dirties 200 MiB/s", "dirty.rom", dirtying(GUEST))]
    {
        let guest = guest.memory_mib(MEMORY_MIB);
        let wanted = |way: &&Way| only.is_empty() || only.iter().any(|name| name == way.name);
        for way in WAYS.iter().filter(wanted) {
            row(&format!("{kind}, {}", way.name), way, rom, &guest, &mut sides, rounds);
        }
    }
    ExitCode::SUCCESS
}

/// Measures one way on all sides. They take turns, so that whatever else the machine does meets all of them.
fn row(name: &str, way: &Way, rom: &str, guest: &Guest, sides: &mut [Side], rounds: usize) {
    let mut floors = Vec::new();
    let mut all: Vec<Vec<Took>> = sides.iter().map(|_| Vec::new()).collect();
    for side in &*sides {
        side.settle(way, guest);
    }
    for _ in 0..rounds {
        floors.extend(way.floor.map(|floor| floor.measure(rom, MEMORY_MIB)));
        for (side, all) in sides.iter_mut().zip(&mut all) {
            match once(&side.hosts, way) {
                Ok(took) => {
                    all.push(took);
                    side.hosts.swap(0, 1);
                }
                Err(refused) => eprintln!("{}, {}: {}", side.name, way.name, refused.trim()),
            }
        }
    }
    for side in &*sides {
        side.clear();
    }
    let floor = (!floors.is_empty()).then(|| median(floors));
    let mut line = format!("{name:22} {:>16}", floor.map_or("-".into(), shown));
    for all in all {
        // Medians of fewer would not compare.
        let whole = all.len() == rounds;
        line.push_str(&format!(" {:>32}", if whole { beside(median(all), floor) } else { "-".into() }));
    }
    println!("{line}");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn shown(took: Took) -> String {
    format!("{:.0} / {:.0}", ms(took.total), ms(took.stood_still))
}

fn beside(took: Took, floor: Option<Took>) -> String {
    let Some(floor) = floor else { return shown(took) };
    let added = |took: Duration, floor: Duration| ms(took) - ms(floor);
    let (total, stood_still) = (added(took.total, floor.total), added(took.stood_still, floor.stood_still));
    format!("{} (x{:.2} {total:+.0} / {stood_still:+.0})", shown(took), ms(took.total) / ms(floor.total))
}

fn median(mut all: Vec<Took>) -> Took {
    let middle = all.len() / 2;
    all.sort_by_key(|took| took.total);
    let total = all[middle].total;
    all.sort_by_key(|took| took.stood_still);
    Took { total, stood_still: all[middle].stood_still }
}

impl Side {
    fn new(name: &'static str, kind: Kind) -> Self {
        let uuid =
            |digit: &str| format!("host_uuid = \"{0}-1111-4111-8111-111111111111\"\n", digit.repeat(8));
        Self { name, hosts: [Daemon::start(kind, &uuid("1")), Daemon::start(kind, &uuid("2"))] }
    }

    /// Has the guest run on the first of the two, with all of its memory filled.
    fn settle(&self, way: &Way, guest: &Guest) {
        let here = &self.hosts[0];
        let mut guest = guest.clone();
        if way.has_disk() {
            for host in &self.hosts {
                fs::write(host.path("disk.img"), vec![7; DISK_MIB << 20]).expect("the root takes it");
            }
            guest = guest.device(&format!(
                "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/>\
                 <target dev='vda' bus='virtio'/></disk>",
                here.path("disk.img").display()
            ));
        }
        here.create(&guest);
        here.console(GUEST).expect("count ");
    }

    fn clear(&self) {
        for host in &self.hosts {
            host.virsh(&["destroy", GUEST]);
        }
    }
}

fn once(hosts: &[Daemon; 2], way: &Way) -> Result<Took, String> {
    let [source, destination] = hosts;
    let to = destination.uri();
    let through = format!("unix://{}", destination.path("arrival").display());
    let nbd = format!("unix://{}", destination.path("disks").display());
    let mut arguments = vec!["migrate", "--live", GUEST, &to];
    if !way.options.contains(&"--tunnelled") {
        arguments.extend(["--migrateuri", &through]);
    }
    arguments.extend(way.options);
    let moved = |path: &Path| path.display().to_string();
    let (here, there) = (moved(&source.path("disk.img")), moved(&destination.path("disk.img")));
    let told = source.virsh(&["dumpxml", GUEST, "--migratable"]);
    if !told.success {
        // An earlier round has lost it.
        return Err(told.err);
    }
    let xml = told.out.replace(&here, &there);
    let (total, ran) = source.with_xml(&xml, |xml| {
        let elsewhere = ["--xml", xml, "--disks-uri", &nbd];
        let all = [&arguments[..], if way.has_disk() { &elsewhere } else { &[] }].concat();
        let begin = Instant::now();
        let ran = source.virsh(&all);
        (begin.elapsed(), ran)
    });
    if !ran.success {
        return Err(ran.err);
    }
    let told = destination.ok(&["domjobinfo", GUEST, "--completed"]);
    let downtime = told.lines().find_map(|line| line.strip_prefix("Total downtime:"));
    let downtime = downtime.and_then(|text| text.trim().strip_suffix(" ms")?.trim().parse().ok());
    eventually("it runs there", || (destination.state(GUEST) == "running").then_some(()));
    Ok(Took { total, stood_still: Duration::from_millis(downtime.unwrap_or(0)) })
}
