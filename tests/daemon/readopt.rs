//! Guests outlive the daemon, and the next daemon knows them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{
    Daemon, LIMIT, Signal, eventually, gone_within, halting, install_script, linux, signal,
};
use ferrovirt_protocol::remote::{DomainCreateArgs, DomainLookupByNameArgs, procedure};

use crate::{daemon, on_upstream};

#[test]
fn five_guests_survive_the_daemons_death() {
    let mut daemon = daemon();
    let names = ["a", "b", "c", "d"];
    for name in names {
        daemon.run(&halting(name));
    }
    daemon.ok(&["suspend", "d"]);
    daemon.run(&linux("penguin", ""));
    daemon.console("penguin").expect("GUEST READY");
    let pids = daemon.qemu_pids();
    let live = daemon.ok(&["dumpxml", "penguin"]);

    daemon.kill();
    let ready = daemon.restart();
    // It waits for none of them; a QEMU that is silent is waited for half a minute.
    assert!(ready < Duration::from_secs(25), "ready after {ready:?}");

    assert_eq!(daemon.ok(&["list", "--name", "--state-running"]).split_whitespace().count(), 4);
    assert_eq!(daemon.ok(&["domstate", "--reason", "d"]).trim(), "paused (user)");
    if !on_upstream() {
        // The original forgets or finds an alias here and there.
        assert_eq!(daemon.ok(&["dumpxml", "penguin"]), live);
    }
    assert_eq!(sorted(daemon.qemu_pids()), sorted(pids));
    // Not just listed: events, console and monitor of the old processes work.
    let mut events = daemon.events();
    let mut console = daemon.console("penguin");
    console.send("echo $((6 * 7))\n");
    console.expect("42");
    daemon.ok(&["resume", "d"]);
    events.expect("d resumed unpaused");
    daemon.ok(&["shutdown", "penguin"]);
    events.expect("penguin stopped shutdown");
    for name in names {
        daemon.ok(&["destroy", name]);
    }
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "");
}

fn sorted(mut pids: Vec<i32>) -> Vec<i32> {
    pids.sort_unstable();
    pids
}

#[test]
fn a_guest_that_died_meanwhile_is_shut_off() {
    let mut daemon = daemon();
    daemon.run(&halting("gone"));
    daemon.create(&halting("forgotten"));
    daemon.run(&halting("there"));
    let dead = ["gone", "forgotten"].map(|name| daemon.qemu_pid(name));
    daemon.kill();
    for pid in dead {
        signal(pid, Signal::KILL);
        assert!(gone_within(pid, LIMIT));
    }
    daemon.restart();
    // Adoption may go on behind the first connection; a start waits for it.
    eventually("the dead guest is noticed", || (daemon.state("gone") == "shut off").then_some(()));
    assert_eq!(
        daemon.ok(&["list", "--all", "--name"]).split_whitespace().collect::<Vec<_>>(),
        ["there", "gone"]
    );
    assert_eq!(daemon.ok(&["domstate", "--reason", "gone"]).trim(), "shut off (crashed)");
    assert!(on_upstream() || daemon.log().contains("the guest ended while no daemon watched it"));
    daemon.ok(&["start", "gone"]);
    assert_eq!((daemon.state("gone"), daemon.state("there")), ("running".into(), "running".into()));
}

#[test]
fn sigterm_ends_the_daemon_and_not_the_guests() {
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    let pid = daemon.qemu_pid("tiny");
    assert!(daemon.terminate().success());
    assert!(!gone_within(pid, Duration::ZERO), "QEMU ended with the daemon");
    daemon.restart();
    assert_eq!((daemon.state("tiny"), daemon.qemu_pid("tiny")), ("running".into(), pid));
}

#[test]
fn a_definition_that_contradicts_a_running_guest_does_not_hide_it() {
    let mut daemon = daemon();
    daemon.create(&halting("there"));
    let pid = daemon.qemu_pid("there");
    let xml = daemon.ok(&["dumpxml", "there", "--inactive"]);
    daemon.kill();
    // The same name with another uuid.
    let uuid = "<uuid>00000000-1111-2222-3333-444444444444</uuid>";
    let (before, after) = (xml.find("<uuid>").unwrap(), xml.find("</uuid>").unwrap() + "</uuid>".len());
    let other = format!("{}{uuid}{}", &xml[..before], &xml[after..]);
    std::fs::write(daemon.path("etc/libvirt/qemu/there.xml"), other).unwrap();
    daemon.restart();
    assert_eq!((daemon.state("there"), daemon.qemu_pid("there")), ("running".into(), pid));
}

#[test]
fn a_start_that_the_daemon_did_not_survive_leaves_nothing() {
    let mut daemon = daemon();
    // It is there, holds whatever it was given, and never answers.
    let slow = daemon.path("slow-qemu");
    let script =
        "#!/bin/sh\ncase \"$*\" in *guest=*) exec sleep 1000;; esac\nexec qemu-system-x86_64 \"$@\"\n";
    install_script(&slow, script);
    let emulator = format!("<emulator>{}</emulator>", slow.display());
    daemon.define(&halting("slow").device(&emulator));
    let mut wire = Wire::open(&daemon.socket()).unwrap();
    let dom = wire.call::<procedure::DomainLookupByName>(&DomainLookupByNameArgs { name: "slow".into() });
    wire.queue::<procedure::DomainCreate>(&DomainCreateArgs { dom: dom.unwrap().dom }).unwrap();
    wire.flush().unwrap();
    let status = daemon.path("run/libvirt/qemu/slow.xml");
    let pid = eventually("QEMU is noted", || status.exists().then(|| daemon.qemu_pid("slow")));
    daemon.kill();
    daemon.restart();
    eventually("the half-started guest is off", || (daemon.state("slow") == "shut off").then_some(()));
    assert!(gone_within(pid, Duration::ZERO), "the half-started QEMU runs on");
    assert!(!status.exists() && daemon.qemu_pids().is_empty());
}

/// Presses the power button through the monitor, which nobody else listens to, and waits until it worked.
fn power_off(daemon: &Daemon, name: &str) {
    let mut directories = std::fs::read_dir(daemon.path("var/lib/libvirt/qemu")).unwrap();
    let ours = |path: &PathBuf| path.to_string_lossy().ends_with(&format!("-{name}"));
    let directory = directories.find_map(|entry| Some(entry.unwrap().path()).filter(ours)).unwrap();
    let mut monitor = UnixStream::connect(directory.join("monitor.sock")).unwrap();
    monitor.set_read_timeout(Some(LIMIT)).unwrap();
    for command in ["qmp_capabilities", "system_powerdown"] {
        monitor.write_all(format!("{{\"execute\": \"{command}\"}}").as_bytes()).unwrap();
    }
    let mut lines = BufReader::new(monitor).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"STOP\"")));
}

#[test]
fn a_power_off_that_no_daemon_saw_is_one_all_the_same() {
    let mut daemon = daemon();
    for name in ["off", "again"] {
        daemon.run(&linux(name, ""));
        daemon.console(name).expect("GUEST READY");
    }
    let pids = ["off", "again"].map(|name| daemon.qemu_pid(name));
    let files = ["off", "again"].map(|name| daemon.path(&format!("run/libvirt/qemu/{name}.xml")));
    daemon.kill();
    for file in &files {
        assert!(file.exists());
    }
    // The button of a monitor that nobody listens to otherwise.
    for name in ["off", "again"] {
        power_off(&daemon, name);
    }
    // A reboot was under way for one of them.
    let status = std::fs::read_to_string(&files[1]).unwrap();
    let (before, after) = status.split_once("<domain ").unwrap();
    std::fs::write(&files[1], format!("{before}<fakereboot/><domain {after}")).unwrap();
    daemon.restart();
    eventually("the guest is off", || (daemon.state("off") == "shut off").then_some(()));
    assert_eq!(daemon.ok(&["domstate", "--reason", "off"]).trim(), "shut off (shutdown)");
    assert!(gone_within(pids[0], Duration::ZERO));
    eventually("the other one goes on", || {
        let told = daemon.virsh(&["qemu-monitor-command", "again", "--hmp", "info status"]);
        told.out.contains("running").then_some(())
    });
    eventually("that is known", || (daemon.state("again") == "running").then_some(()));
    assert_eq!(daemon.qemu_pid("again"), pids[1]);
}

#[test]
fn a_broken_status_file_is_reported_and_the_others_count() {
    if on_upstream() {
        return; // It logs the same in its own words.
    }
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.kill();
    let broken = daemon.path("run/libvirt/qemu/broken.xml");
    fs::write(&broken, "<domstatus state='running'").unwrap();
    daemon.restart();
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "tiny");
    let log = daemon.log();
    assert!(log.contains("skipped a status file") && log.contains(broken.to_str().unwrap()), "{log}");
}

#[test]
fn the_log_of_a_running_guest_stays_bounded() {
    if on_upstream() {
        return; // Its log daemon stands between QEMU and the file.
    }
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    let path = daemon.path("var/log/libvirt/qemu/tiny.log");
    let mut log = fs::OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(&vec![b'x'; 3 << 20]).unwrap();
    eventually("the log is cut", || (fs::metadata(&path).unwrap().len() < 1 << 20).then_some(()));
    let kept = fs::metadata(daemon.path("var/log/libvirt/qemu/tiny.log.0")).unwrap().len();
    assert!(kept >= 2 << 20, "{kept}");
    daemon.ok(&["destroy", "tiny"]);
    // It and QEMU's last line are the first ones of the cut file.
    let text = || fs::read_to_string(&path).unwrap();
    eventually("the end is noted", || text().contains("shutting down, reason=destroyed").then_some(()));
}

#[test]
fn a_guest_that_does_not_answer_the_next_daemon_is_kept() {
    if on_upstream() {
        return; // it waits, with everything that asks for the guest
    }
    let mut daemon = daemon();
    for name in ["slow", "dead"] {
        daemon.run(&halting(name));
    }
    let pids = ["slow", "dead"].map(|name| daemon.qemu_pid(name));
    for pid in pids {
        signal(pid, Signal::STOP);
    }
    daemon.kill();
    daemon.restart();
    for name in ["slow", "dead"] {
        assert_eq!(daemon.state(name), "running");
        assert!(daemon.ok(&["dumpxml", name]).contains("<domain type="));
    }
    let begin = std::time::Instant::now();
    daemon.ok(&["destroy", "dead"]);
    // Who waits for an answer does so for half a minute.
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    assert!(gone_within(pids[1], Duration::ZERO));
    assert_eq!(daemon.ok(&["domstate", "--reason", "dead"]).trim(), "shut off (destroyed)");
    // What needs the monitor waits, and goes on when QEMU does.
    let mut waiting =
        daemon.python_beside("print('calling')\nconn.lookupByName('slow').suspend()\nprint('done')");
    waiting.expect("calling\n");
    assert_eq!(waiting.expect_within("done", Duration::from_millis(300)), None);
    signal(pids[0], Signal::CONT);
    waiting.expect("done\n");
    assert_eq!(daemon.ok(&["domstate", "--reason", "slow"]).trim(), "paused (user)");
}

/// A state's reasons as they stand in status files, and as virsh says them.
type Reasons = [(&'static str, &'static str); 9];

const RUNNING: Reasons = [
    ("booted", "booted"),
    ("migrated", "migrated"),
    ("restored", "restored"),
    ("from snapshot", "from snapshot"),
    ("unpaused", "unpaused"),
    ("migration canceled", "migration canceled"),
    ("save canceled", "save canceled"),
    ("wakeup", "event wakeup"),
    ("crashed", "crashed"),
];

const PAUSED: Reasons = [
    ("user", "user"),
    ("migration", "migrating"),
    ("save", "saving"),
    ("dump", "dumping"),
    ("ioerror", "I/O error"),
    ("watchdog", "watchdog"),
    ("from snapshot", "from snapshot"),
    ("snapshot", "creating snapshot"),
    ("panicked", "crashed"),
];

#[test]
fn a_state_keeps_its_reason_under_the_next_daemon() {
    let mut daemon = daemon();
    let names: Vec<String> = (0..RUNNING.len()).map(|number| format!("guest{number}")).collect();
    for name in &names {
        daemon.run(&halting(name));
    }
    for (state, now, reasons) in [("running", "booted", RUNNING), ("paused", "user", PAUSED)] {
        if state == "paused" {
            for name in &names {
                daemon.ok(&["suspend", name]);
            }
        }
        daemon.kill();
        for (name, (written, _)) in names.iter().zip(reasons) {
            let path = daemon.path(&format!("run/libvirt/qemu/{name}.xml"));
            let text = fs::read_to_string(&path).unwrap();
            let was = format!("<domstatus state='{state}' reason='{now}'");
            assert!(text.contains(&was), "{text}");
            fs::write(&path, text.replace(&was, &format!("<domstatus state='{state}' reason='{written}'")))
                .unwrap();
        }
        daemon.restart();
        for (name, (_, said)) in names.iter().zip(reasons) {
            // The first call that needs the monitor waits until its QEMU has been asked.
            daemon.ok(&["qemu-monitor-command", "--hmp", name, "info status"]);
            assert_eq!(daemon.ok(&["domstate", "--reason", name]).trim(), format!("{state} ({said})"));
        }
        if state == "running" {
            for name in &names {
                daemon.ok(&["suspend", name]);
                daemon.ok(&["resume", name]);
            }
        }
    }
    // A guest that is off has no past.
    daemon.ok(&["destroy", "guest0"]);
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.ok(&["domstate", "--reason", "guest0"]).trim(), "shut off (unknown)");
}

#[test]
fn a_device_that_went_while_nobody_listened_is_gone() {
    let mut daemon = daemon();
    let card = "<interface type='user'><mac address='52:54:00:00:00:0a'/><model type='virtio'/></interface>";
    daemon.run(&halting("left").device(card));
    let status = daemon.path("run/libvirt/qemu/left.xml");
    let text = fs::read_to_string(&status).unwrap();
    assert!(text.contains("<device alias='net0'/>"), "{text}");
    daemon.kill();
    // As if QEMU had had one more when the last daemon looked.
    let dice = "<rng model='virtio'><backend model='builtin'/><alias name='rng7'/></rng>";
    let text = text.replace("<device alias='net0'/>", "<device alias='net0'/><device alias='rng7'/>");
    let (before, after) = text.rsplit_once("</devices>").unwrap();
    fs::write(&status, format!("{before}{dice}</devices>{after}")).unwrap();
    daemon.restart();
    eventually("the device is gone", || (!daemon.ok(&["dumpxml", "left"]).contains("rng7")).then_some(()));
    assert!(daemon.ok(&["dumpxml", "left"]).contains("<alias name='net0'/>"));
    daemon.ok(&["destroy", "left"]);
}

#[test]
fn what_a_guest_makes_of_its_clock_is_told_as_before() {
    let mut daemon = daemon();
    // Sets its clock to the hour that it shows: `mov al,4; out 70h,al; in al,71h; out 71h,al; hlt`, where a
    // processor begins, by way of a jump to where there is room.
    let mut rom = vec![0; 1 << 16];
    rom[..10].copy_from_slice(&[0xb0, 4, 0xe6, 0x70, 0xe4, 0x71, 0xe6, 0x71, 0xfa, 0xf4]);
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    let file = daemon.path("clock.rom");
    fs::write(&file, rom).unwrap();
    let clock = "</os><clock offset='variable' adjustment='86400' basis='utc'/>";
    let xml = halting("h").rom(&file).xml().replace("</os>", clock);
    let moved_by = |daemon: &Daemon| {
        let xml = daemon.ok(&["dumpxml", "h"]);
        assert!(!xml.contains("adjustment0"), "{xml}");
        let (_, rest) = xml.split_once("adjustment='").unwrap();
        rest.split('\'').next().unwrap().parse::<i64>().unwrap()
    };
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    for restarts in [false, true] {
        if restarts {
            daemon.kill();
            daemon.restart();
        }
        let mut told = daemon.python_beside(
            "conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_RTC_CHANGE, lambda *_: print('set'), None)\n\
             print('watching')\n\
             run_events()",
        );
        told.expect("watching\n");
        daemon.ok(&["reset", "h"]);
        told.expect("set\n");
        // A day and the seconds that the guest took.
        let by_s = moved_by(&daemon);
        assert!((86_300..86_500).contains(&by_s), "{by_s}");
    }
}

/// Has a guest's status file say something else; for while no daemon is there.
pub(crate) fn rewrite_status(daemon: &Daemon, name: &str, changes: &[(&str, &str)]) {
    let path = daemon.path(&format!("run/libvirt/qemu/{name}.xml"));
    let mut text = fs::read_to_string(&path).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from:?} is not in {text}");
        text = text.replacen(from, to, 1);
    }
    fs::write(&path, text).unwrap();
}

/// The same for a guest that runs and in which something was under way.
pub(crate) fn rewrite_interrupted(daemon: &Daemon, name: &str, (state, reason): (&str, &str), job: &str) {
    let status = fs::read_to_string(daemon.path(&format!("run/libvirt/qemu/{name}.xml"))).unwrap();
    let (_, rest) = status.split_once("<domstatus ").unwrap();
    let (was, _) = rest.split_once(" pid=").unwrap();
    let says = format!("state='{state}' reason='{reason}'");
    let noted = rest.split_once("<job ").map(|(_, rest)| rest.split_once("/>").unwrap().0);
    if let Some(noted) = noted {
        rewrite_status(daemon, name, &[(&format!("<job {noted}/>"), "")]);
    }
    rewrite_status(daemon, name, &[(was, &says), ("<domain ", &format!("{job}<domain "))]);
}

/// Stands between a daemon and a guest's QEMU, and keeps to itself what comes from `command` on.
fn withhold(daemon: &Daemon, name: &str, command: &'static str) -> std::sync::mpsc::Receiver<()> {
    let status = fs::read_to_string(daemon.path(&format!("run/libvirt/qemu/{name}.xml"))).unwrap();
    let (_, rest) = status.split_once("<monitor path='").unwrap();
    let socket = PathBuf::from(rest.split_once('\'').unwrap().0);
    let behind = socket.with_extension("behind");
    fs::rename(&socket, &behind).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (seen, withheld) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (daemon, _) = listener.accept().unwrap();
        let mut qemu = UnixStream::connect(&behind).unwrap();
        let (mut answers, mut to) = (qemu.try_clone().unwrap(), daemon.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers, &mut to));
        let mut withholds = false;
        for line in BufReader::new(daemon).lines() {
            let Ok(line) = line else { break };
            if line.contains(command) {
                withholds = true;
                let _ = seen.send(());
            }
            if !withholds {
                qemu.write_all(format!("{line}\n").as_bytes()).unwrap();
            }
        }
        let _ = qemu.shutdown(std::net::Shutdown::Both);
        fs::rename(&behind, &socket).unwrap();
        drop(seen);
    });
    withheld
}

#[test]
fn a_daemon_that_dies_over_what_the_last_one_left_leaves_it_to_the_next() {
    if on_upstream() {
        return; // its monitor's socket is elsewhere
    }
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.ok(&["suspend", "tiny"]);
    daemon.kill();
    rewrite_interrupted(&daemon, "tiny", ("paused", "save"), "<job type='none' async='save' flags='0x0'/>");
    let withheld = withhold(&daemon, "tiny", "\"cont\"");
    daemon.restart();
    withheld.recv_timeout(LIMIT).unwrap();
    daemon.kill();
    // Its end is what the one in between ends with.
    assert!(withheld.recv_timeout(LIMIT).is_err());
    daemon.restart();
    eventually("the guest goes on", || {
        (daemon.ok(&["domstate", "--reason", "tiny"]).trim() == "running (save canceled)").then_some(())
    });
}

#[test]
fn a_guest_that_may_run_on_the_other_side_is_not_let_go_here() {
    if on_upstream() {
        return; // it has no file of ours
    }
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.ok(&["suspend", "tiny"]);
    for reason in ["post-copy", "post-copy failed"] {
        daemon.kill();
        rewrite_interrupted(&daemon, "tiny", ("paused", reason), "");
        daemon.restart();
        let said = daemon.virsh(&["resume", "tiny"]).fails();
        assert!(said.contains("domain is in post-copy migration"), "{said}");
    }
}

#[test]
fn a_save_to_a_clients_file_that_no_daemon_goes_on_with_leaves_none() {
    if on_upstream() {
        return; // it leaves one
    }
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.ok(&["suspend", "tiny"]);
    let uuid = daemon.ok(&["domuuid", "tiny"]);
    let path = daemon.path("saved");
    let partial = daemon.path(&format!("saved.{}.partial", uuid.trim()));
    for operation in ["save", "dump"] {
        daemon.kill();
        fs::write(&partial, "half").unwrap();
        let job = format!("<job type='none' async='{operation}' flags='0x0' file='{}'/>", path.display());
        rewrite_interrupted(&daemon, "tiny", ("paused", operation), &job);
        daemon.restart();
        eventually("the guest goes on", || (daemon.state("tiny") == "running").then_some(()));
        assert!(!partial.exists());
        daemon.ok(&["suspend", "tiny"]);
    }
}
