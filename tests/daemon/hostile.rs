//! Clients that misbehave are cut off or held back, and nobody else notices.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use ferrovirt_compat::wire::{Wire, WireError, result};
use ferrovirt_compat::{Daemon, eventually, halting};
use ferrovirt_protocol::frame::{FrameType, Status};
use ferrovirt_protocol::remote::{self, procedure};

use crate::catalogue::rounds;
use crate::luks::boot_sector;
use crate::{daemon, kind, on_upstream};

pub(crate) fn memory_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A header in bytes, with whatever is wrong about it.
fn header(length: u32, words: [u32; 6]) -> Vec<u8> {
    std::iter::once(length).chain(words).flat_map(u32::to_be_bytes).collect()
}

const REMOTE: u32 = 0x2000_8086;
const KEEPALIVE: u32 = 0x6b65_6570;

#[test]
fn frames_that_cannot_be_are_cut_off() {
    let daemon = daemon();
    let mut witness = Wire::open(&daemon.socket()).unwrap();
    let cases = [
        ("garbage", (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect()),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("length of 4 GiB", header(u32::MAX, [REMOTE, 1, 66, 0, 1, 0])),
        ("length of 0", header(0, [REMOTE, 1, 66, 0, 1, 0])),
        ("length under the header", header(27, [REMOTE, 1, 66, 0, 1, 0])),
        ("64 MiB before authentication", header(64 << 20, [REMOTE, 1, 66, 0, 1, 0])),
    ];
    for (what, bytes) in cases {
        let mut wire = Wire::connect(&daemon.socket()).unwrap();
        wire.send(&bytes).unwrap();
        // An answer that says what is wrong is fine; what counts is that the connection ends.
        wire.drain().unwrap_or_else(|error| panic!("{what}: {error}"));
        witness
            .call::<procedure::ConnectGetLibVersion>(&())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn who_is_not_known_sends_short_frames() {
    if on_upstream() {
        return; // It looks at a length when the whole frame is there.
    }
    let daemon = Daemon::start(kind(), "auth_unix_rw = \"sasl\"\n");
    let list = |length| header(length, [REMOTE, 1, 66, 0, 0, 0]);
    let mut wire = Wire::connect(&daemon.socket()).unwrap();
    wire.send(&[list(65_536), vec![0; 65_536 - 28]].concat()).unwrap();
    wire.receive().unwrap();
    wire.send(&list(65_537)).unwrap();
    // At once, and not when it has been silent for too long.
    wire.set_limit(Duration::from_secs(10)).unwrap();
    wire.drain().unwrap();
}

#[test]
fn calls_that_cannot_be_are_answered_with_an_error() {
    let daemon = daemon();
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let cases = [
        ("unknown program", [0x1234_5678, 1, 1, 0, 101, 0], "Cannot find program"),
        ("unknown version", [REMOTE, 9, 1, 0, 102, 0], "Cannot find program"),
        ("unknown procedure", [REMOTE, 1, 99_999, 0, 103, 0], "unknown procedure: 99999"),
    ];
    for (what, words, text) in cases {
        wire.send(&header(28, words)).unwrap();
        let reply = wire.reply().unwrap();
        assert_eq!(reply.header.serial, words[4], "{what}");
        let Err(WireError::Refused(error)) = result::<procedure::ConnectGetLibVersion>(&reply) else {
            panic!("{what}: not refused")
        };
        assert_eq!((error.code, error.domain), (39, 7), "{what}: {error}");
        assert!(error.text().to_lowercase().contains(&text.to_lowercase()), "{what}: {error}");
    }
    // Arguments that end early.
    let mut short = header(32, [REMOTE, 1, 23, 0, 104, 0]);
    short.extend(200u32.to_be_bytes());
    wire.send(&short).unwrap();
    let reply = wire.reply().unwrap();
    assert_eq!((reply.header.serial, reply.header.status), (104, Status::ERROR));
    // The connection is none the worse for any of that.
    wire.call::<procedure::ConnectGetLibVersion>(&()).unwrap();
}

#[test]
fn half_a_frame_holds_up_nobody_else() {
    let daemon = daemon();
    let whole = header(28, [REMOTE, 1, 66, 0, 1, 0]);
    let stuck: Vec<Wire> = (1..whole.len())
        .step_by(3)
        .map(|half| {
            let mut wire = Wire::connect(&daemon.socket()).unwrap();
            wire.send(&whole[..half]).unwrap();
            wire
        })
        .collect();
    daemon.ok(&["list"]);
    drop(stuck);
    daemon.ok(&["list"]);
}

#[test]
fn calls_before_opening_are_refused() {
    let daemon = daemon();
    let mut wire = Wire::connect(&daemon.socket()).unwrap();
    wire.call::<procedure::AuthList>(&()).unwrap();
    let refused = wire.call::<procedure::ConnectGetHostname>(&());
    let Err(WireError::Refused(error)) = refused else { panic!("{refused:?}") };
    assert!(error.text().contains("connection not open"), "{error}");
}

#[test]
fn calls_of_one_client_without_end_are_throttled() {
    let count = u32::try_from(rounds(10_000)).unwrap();
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let before = memory_kib(&daemon);
    let mut flood = Wire::open(&daemon.socket()).unwrap();
    let domain = flood
        .call::<procedure::DomainLookupByName>(&remote::DomainLookupByNameArgs { name: "tiny".into() })
        .unwrap()
        .dom;
    for _ in 0..count {
        flood
            .queue::<procedure::DomainGetXmlDesc>(&remote::DomainGetXmlDescArgs {
                dom: domain.clone(),
                flags: 0,
            })
            .unwrap();
    }
    let calls = flood.take_queued();
    let mut hand = flood.writer().unwrap();
    thread::scope(|scope| {
        // Blocks for as long as the daemon does not read, which is the point.
        let writer = scope.spawn(move || hand.write_all(&calls));
        for _ in 0..20 {
            daemon.ok(&["list", "--all"]);
        }
        let grown = memory_kib(&daemon).saturating_sub(before);
        assert!(grown < 16 * 1024, "grew by {grown} KiB");
        // Then it reads after all: every call is answered once, whatever the order.
        let mut serials: Vec<u32> = (0..count).map(|_| flood.reply().unwrap().header.serial).collect();
        writer.join().unwrap().unwrap();
        serials.sort_unstable();
        serials.dedup();
        assert_eq!(serials.len(), count as usize);
    });
}

#[test]
fn a_ping_is_answered_and_a_dead_peer_dropped() {
    let daemon = Daemon::start(kind(), "keepalive_interval = 1\nkeepalive_count = 1\n");
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    wire.send(&header(28, [KEEPALIVE, 1, 1, 2, 0, 0])).unwrap();
    let pong = wire.receive().unwrap().header;
    assert_eq!((pong.program, pong.procedure, pong.kind), (KEEPALIVE, 2, FrameType::MESSAGE));
    // Who says it can answer pings (feature 10) is pinged, and dropped when it does not.
    wire.call::<procedure::ConnectSupportsFeature>(&remote::ConnectSupportsFeatureArgs { feature: 10 })
        .unwrap();
    let ping = wire.receive().unwrap().header;
    assert_eq!((ping.program, ping.procedure, ping.serial), (KEEPALIVE, 1, 0));
    wire.drain().unwrap();
}

#[test]
fn a_guest_that_ends_with_its_client_does_so_when_the_client_left_before_it_ran() {
    const AUTODESTROY: u32 = 2;
    let daemon = daemon();
    let mut events = daemon.events();
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let args = remote::DomainCreateXmlArgs { xml_desc: halting("orphan").xml(), flags: AUTODESTROY };
    wire.queue::<procedure::DomainCreateXml>(&args).unwrap();
    wire.flush().unwrap();
    drop(wire);
    events.expect("orphan stopped destroyed");
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
}

#[test]
fn a_guest_that_floods_its_serial_port_does_not_fill_the_disk() {
    if on_upstream() {
        return; // Its log daemon stands between QEMU and the files.
    }
    let mut daemon = daemon();
    let place = daemon.path("said");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("disk"), boot_sector()).unwrap();
    symlink(place.join("log"), place.join("link")).unwrap();
    let shown = place.display();
    let xml = format!(
        "<domain type='qemu'><name>loud</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type>\
         </os><devices><disk type='file'><source file='{shown}/disk'/><target dev='hda' bus='ide'/></disk>\
         <serial type='file'><source path='{shown}/file'/><log file='{shown}/link'/></serial></devices></domain>"
    );
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    let said = |name: &str| fs::read_to_string(place.join(name)).unwrap_or_default();
    let speaks = || {
        for name in ["file", "log"] {
            eventually("it speaks", || said(name).contains("BOOTED FROM DISK").then_some(()));
        }
    };
    speaks();
    // As if it had been the guest's: what was written last is kept.
    let flood = |word: &str| {
        for name in ["file", "log"] {
            let text = format!("{word}\n").repeat((3 << 20) / (word.len() + 1));
            fs::OpenOptions::new()
                .append(true)
                .open(place.join(name))
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            eventually("it is cut", || fs::metadata(place.join(name)).unwrap().len().eq(&0).then_some(()));
            let kept = said(&format!("{name}.0"));
            assert!(kept.len() == 2 << 20 && kept.ends_with(&text[text.len() - 100..]), "{}", kept.len());
        }
    };
    flood("first");
    // QEMU goes on where the file ends now.
    daemon.ok(&["reset", "loud"]);
    speaks();
    assert!(said("file").len() < 1000 && said("log").len() < 1000);
    daemon.kill();
    daemon.restart();
    for word in ["second", "third", "fourth"] {
        flood(word);
    }
    assert!(said("file.2").contains("second") && !place.join("file.3").exists());
    daemon.ok(&["destroy", "loud"]);
    // Nobody's business any more.
    let large = vec![b'x'; 3 << 20];
    fs::write(place.join("file"), &large).unwrap();
    daemon.run(&halting("other"));
    assert_eq!(fs::metadata(place.join("file")).unwrap().len(), 3 << 20);
}
