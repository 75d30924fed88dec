//! How guests end, sleep and begin anew, by their own doing or by a client's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use ferrovirt_compat::{Daemon, Guest, LIMIT, Signal, eventually, gone_within, halting, linux, signal};
use serde_json::{Value, json};

use crate::fake_qemu::Behaviour;
use crate::{daemon, on_upstream};

/// Whether a test that needs a QEMU which misbehaves has to be left out.
pub(crate) fn needs_fake() -> bool {
    on_upstream() // it converses at length with a QEMU before it starts one
}

/// A guest whose QEMU is a fake one; `more` are elements of its description.
pub(crate) fn faked(daemon: &Daemon, name: &str, behaviour: &Behaviour, more: &str) -> Guest {
    let directory = daemon.path(&format!("fake-{name}"));
    fs::create_dir_all(&directory).unwrap();
    let emulator = behaviour.install(&directory);
    let guest = halting(name).device(&format!("<emulator>{}</emulator>", emulator.display()));
    let xml = guest.xml().replace("<devices>", &format!("{more}<devices>"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    daemon.ok(&["start", name]);
    guest
}

/// A fake QEMU that reports an event when it is asked for it; see [`provoke`].
pub(crate) fn reporting(events: &[(&str, Value)]) -> Behaviour {
    let events =
        events.iter().map(|(name, data)| (format!("x-{name}"), vec![((*name).to_owned(), data.clone())]));
    Behaviour { events: events.collect(), ..Behaviour::default() }
}

fn provoke(daemon: &Daemon, guest: &str, event: &str) {
    daemon.ok(&["qemu-monitor-command", guest, &format!(r#"{{"execute": "x-{event}"}}"#)]);
}

fn reason(daemon: &Daemon, guest: &str) -> String {
    daemon.ok(&["domstate", "--reason", guest]).trim().to_owned()
}

#[test]
fn a_graceful_destroy_never_kills() {
    let daemon = daemon();
    daemon.run(&halting("frozen"));
    let pid = daemon.qemu_pid("frozen");
    signal(pid, Signal::STOP);
    let error = daemon.virsh(&["destroy", "--graceful", "frozen"]).fails();
    let sentence = format!("Failed to terminate process {pid} with SIGTERM: Device or resource busy");
    assert!(error.contains(&sentence), "{error}");
    assert!(!gone_within(pid, Duration::ZERO));
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "frozen");
    assert_eq!(daemon.state("frozen"), "running");
    let begin = Instant::now();
    daemon.ok(&["destroy", "frozen"]);
    // Who is only asked to go has fifteen seconds.
    assert!(on_upstream() || begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    assert!(gone_within(pid, Duration::ZERO));
    assert_eq!(reason(&daemon, "frozen"), "shut off (destroyed)");
}

#[test]
fn a_destroy_takes_the_log_with_it_on_request_and_knows_its_flags() {
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    let logs = daemon.path("var/log/libvirt/qemu");
    fs::write(logs.join("tiny.log.0"), "an older one").unwrap();
    fs::write(logs.join("tiny.log.old"), "somebody's own").unwrap();
    let refused = daemon
        .python("try: conn.lookupByName('tiny').destroyFlags(4)\nexcept libvirt.libvirtError as e: print(e)")
        .ok();
    assert!(refused.contains("unsupported flags (0x4) in function qemuDomainDestroyFlags"), "{refused}");
    daemon.ok(&["destroy", "tiny"]);
    assert!(logs.join("tiny.log").exists());
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["destroy", "--remove-logs", "tiny"]);
    assert!(!logs.join("tiny.log").exists() && !logs.join("tiny.log.0").exists());
    assert!(logs.join("tiny.log.old").exists());
}

#[test]
fn a_qemu_that_is_asked_to_go_from_outside_shuts_down() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&halting("tiny"));
    signal(daemon.qemu_pid("tiny"), Signal::TERM);
    events.expect("tiny shutdown host");
    events.expect("tiny stopped shutdown");
    assert_eq!(reason(&daemon, "tiny"), "shut off (shutdown)");
}

#[test]
fn a_qemu_that_answers_sigterm_by_another_report_is_not_asked_for_ever() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let off = [("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" })), ("STOP", Value::Null)];
    let behaviour = Behaviour { report_sigterm: true, ..reporting(&off) };
    faked(&daemon, "stays", &behaviour, "");
    let mut events = daemon.events();
    provoke(&daemon, "stays", "SHUTDOWN");
    events.expect("stays shutdown guest");
    assert_eq!(reason(&daemon, "stays"), "in shutdown (unknown)");
    provoke(&daemon, "stays", "SHUTDOWN");
    daemon.ok(&["destroy", "stays"]);
    let seen = events.expect("stays stopped");
    assert!(!seen.contains("shutdown"), "{seen}");
}

#[test]
fn a_reboot_that_fails_is_a_shutdown() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let off = [("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" }))];
    let mut behaviour = reporting(&off);
    behaviour.refuse.insert("system_reset".to_owned(), "no such thing today".to_owned());
    faked(&daemon, "stuck", &behaviour, "");
    let mut events = daemon.events();
    let pid = daemon.qemu_pid("stuck");
    daemon.ok(&["reboot", "stuck"]);
    provoke(&daemon, "stuck", "SHUTDOWN");
    events.expect("stuck shutdown finished");
    events.expect("stuck stopped shutdown");
    assert!(gone_within(pid, LIMIT));
    assert_eq!(reason(&daemon, "stuck"), "shut off (shutdown)");
}

#[test]
fn a_reboot_that_fails_kills_nobody() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let off = [("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" }))];
    let mut behaviour = Behaviour { ignore_sigterm: true, ..reporting(&off) };
    behaviour.refuse.insert("system_reset".to_owned(), "no such thing today".to_owned());
    faked(&daemon, "stuck", &behaviour, "");
    let mut events = daemon.events();
    let pid = daemon.qemu_pid("stuck");
    daemon.ok(&["reboot", "stuck"]);
    provoke(&daemon, "stuck", "SHUTDOWN");
    events.expect("stuck shutdown finished");
    // It may still be writing; a destroy would give it less time than this.
    assert!(!gone_within(pid, Duration::from_millis(2500)));
    assert_eq!(reason(&daemon, "stuck"), "in shutdown (unknown)");
    daemon.ok(&["destroy", "stuck"]);
    assert!(gone_within(pid, Duration::ZERO));
}

#[test]
fn a_power_off_after_a_graceful_destroy_that_gave_up_is_one() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    faked(&daemon, "late", &Behaviour { report_sigterm: true, ..Behaviour::default() }, "");
    let mut events = daemon.events();
    daemon.virsh(&["destroy", "--graceful", "late"]).fails();
    assert_eq!(reason(&daemon, "late"), "in shutdown (unknown)");
    // It was still writing.
    daemon.ok(&["qemu-monitor-command", "late", r#"{"execute": "quit"}"#]);
    events.expect("late stopped shutdown");
    assert_eq!(reason(&daemon, "late"), "shut off (shutdown)");
}

#[test]
fn a_qemu_that_closes_its_monitor_is_asked_to_go_and_not_killed() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let goes = Behaviour { close_at: Some("x-close".to_owned()), ..Behaviour::default() };
    let stays = Behaviour { ignore_sigterm: true, ..goes.clone() };
    let mut events = daemon.events();
    faked(&daemon, "goes", &goes, "");
    faked(&daemon, "stays", &stays, "");
    let pids = ["goes", "stays"].map(|name| daemon.qemu_pid(name));
    for name in ["stays", "goes"] {
        let error = daemon.virsh(&["qemu-monitor-command", name, r#"{"execute": "x-close"}"#]).fails();
        assert!(error.contains("End of file from qemu monitor"), "{error}");
    }
    events.expect("goes stopped failed");
    assert!(gone_within(pids[0], Duration::ZERO));
    let asked = || daemon.log().matches("closed its monitor and stays").count();
    eventually("both are asked", || (asked() == 2).then_some(()));
    assert!(!gone_within(pids[1], Duration::from_millis(500)));
    assert_eq!(daemon.state("stays"), "running");
    let begin = Instant::now();
    daemon.ok(&["destroy", "stays"]);
    assert!(gone_within(pids[1], Duration::ZERO) && begin.elapsed() < Duration::from_secs(12));
}

#[test]
fn a_reboot_under_way_is_known_to_the_next_daemon() {
    let mut daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.ok(&["reboot", "tiny"]);
    let status = fs::read_to_string(daemon.path("run/libvirt/qemu/tiny.xml")).unwrap();
    assert!(status.contains("<fakereboot/>"), "{status}");
    daemon.kill();
    daemon.restart();
    daemon.ok(&["shutdown", "tiny"]);
    let status = fs::read_to_string(daemon.path("run/libvirt/qemu/tiny.xml")).unwrap();
    assert!(!status.contains("<fakereboot/>"), "{status}");
}

#[test]
fn a_panic_is_followed_by_what_the_definition_says() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let panic = reporting(&[("GUEST_PANICKED", json!({ "action": "pause" }))]);
    let mut events = daemon.events();
    for (action, then, left) in [
        ("destroy", Some("stopped crashed"), "shut off (crashed)"),
        ("restart", Some("resumed unpaused"), "running (crashed)"),
        ("preserve", None, "crashed (panicked)"),
    ] {
        faked(&daemon, action, &panic, &format!("<on_crash>{action}</on_crash>"));
        let pid = daemon.qemu_pid(action);
        provoke(&daemon, action, "GUEST_PANICKED");
        events.expect(&format!("{action} crashed panicked"));
        if let Some(then) = then {
            events.expect(&format!("{action} {then}"));
        }
        assert_eq!(reason(&daemon, action), left);
        assert_eq!(gone_within(pid, Duration::ZERO), action == "destroy");
        daemon.virsh(&["destroy", action]);
    }
}

#[test]
fn a_linux_that_panics_is_followed_by_what_its_definition_says() {
    let daemon = daemon();
    let mut events = daemon.events();
    for (action, model) in [("preserve", "isa"), ("restart", "pvpanic"), ("coredump-destroy", "isa")] {
        let guest = linux(action, "").device(&format!("<panic model='{model}'/>"));
        let xml = guest.xml().replace("<devices>", &format!("<on_crash>{action}</on_crash><devices>"));
        daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
        daemon.ok(&["start", action]);
        let mut console = daemon.console(action);
        console.expect("GUEST READY");
        console.send("echo c > /proc/sysrq-trigger\n");
        events.expect(&format!("{action} crashed panicked"));
        match action {
            "preserve" => assert_eq!(reason(&daemon, action), "crashed (panicked)"),
            "restart" => {
                events.expect("restart resumed unpaused");
                assert_eq!(reason(&daemon, action), "running (crashed)");
                console.expect("GUEST READY");
                daemon.ok(&["destroy", action]);
            }
            _ => {
                events.expect(&format!("{action} stopped crashed"));
                assert_eq!(reason(&daemon, action), "shut off (crashed)");
            }
        }
    }
    let dumps = daemon.path("var/lib/libvirt/qemu/dump");
    let dump = fs::read_dir(&dumps).unwrap().next().unwrap().unwrap();
    assert!(dump.file_name().to_string_lossy().contains("-coredump-destroy-"), "{dump:?}");
    assert!(dump.metadata().unwrap().len() > 1 << 20);
    // What has crashed can be looked at, and begun again or ended.
    daemon.ok(&["reset", "preserve"]);
    assert_eq!(reason(&daemon, "preserve"), "paused (crashed)");
    daemon.ok(&["destroy", "preserve"]);
}

#[test]
fn a_panic_that_no_daemon_saw_is_followed_by_the_same() {
    if needs_fake() {
        return;
    }
    let mut daemon = daemon();
    let mut behaviour = Behaviour::default();
    behaviour
        .replies
        .insert("query-status".to_owned(), json!({ "running": false, "status": "guest-panicked" }));
    let actions = ["destroy", "restart", "preserve"];
    for action in actions {
        faked(&daemon, action, &behaviour, &format!("<on_crash>{action}</on_crash>"));
    }
    let pids = actions.map(|action| daemon.qemu_pid(action));
    daemon.kill();
    daemon.restart();
    for (action, left) in [
        ("destroy", "shut off (crashed)"),
        ("restart", "running (crashed)"),
        ("preserve", "crashed (panicked)"),
    ] {
        eventually(action, || (reason(&daemon, action) == left).then_some(()));
    }
    assert!(gone_within(pids[0], Duration::ZERO) && !gone_within(pids[1], Duration::ZERO));
}

#[test]
fn what_a_reboot_becomes_can_be_changed_while_the_guest_runs() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&halting("tiny"));
    daemon.ok(&["set-lifecycle-action", "tiny", "reboot", "destroy", "--live", "--config"]);
    for form in [&["dumpxml", "tiny"][..], &["dumpxml", "tiny", "--inactive"]] {
        assert!(daemon.ok(form).contains("<on_reboot>destroy</on_reboot>"));
    }
    daemon.ok(&["reset", "tiny"]);
    events.expect("tiny stopped shutdown");
    // What the definition says counts from the start on.
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["reset", "tiny"]);
    events.expect("tiny stopped shutdown");
    daemon.ok(&["set-lifecycle-action", "tiny", "reboot", "restart"]);
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["set-lifecycle-action", "tiny", "crash", "coredump-restart", "--live"]);
    assert!(daemon.ok(&["dumpxml", "tiny"]).contains("<on_crash>coredump-restart</on_crash>"));
    assert!(!daemon.ok(&["dumpxml", "tiny", "--inactive"]).contains("coredump"));
    for (occasion, action, sentence) in [
        (
            "poweroff",
            "coredump-destroy",
            "Lifecycle event 'poweroff' doesn't support 'coredump-destroy' action",
        ),
        (
            "reboot",
            "preserve",
            "qemu driver doesn't support the 'preserve' action for 'on_reboot'/'on_poweroff'",
        ),
    ] {
        let error = daemon.virsh(&["set-lifecycle-action", "tiny", occasion, action]).fails();
        assert!(error.contains(sentence), "{error}");
    }
    daemon.ok(&["reset", "tiny"]);
    assert_eq!(daemon.state("tiny"), "running");
}

#[test]
fn an_nmi_reaches_the_guests_qemu() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let error = daemon.virsh(&["inject-nmi", "tiny"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["inject-nmi", "tiny"]);
    if needs_fake() {
        return;
    }
    let refuse = [("inject-nmi".to_owned(), "machine does not provide NMIs".to_owned())].into();
    faked(&daemon, "fake", &Behaviour { refuse, ..Behaviour::default() }, "");
    let error = daemon.virsh(&["inject-nmi", "fake"]).fails();
    assert!(error.contains("unable to execute QEMU command 'inject-nmi': machine does not"), "{error}");
}

#[test]
fn a_guest_that_sleeps_is_woken() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let mut behaviour = reporting(&[("SUSPEND", Value::Null)]);
    behaviour.events.insert("system_wakeup".to_owned(), vec![("WAKEUP".to_owned(), Value::Null)]);
    faked(&daemon, "sleepy", &behaviour, "");
    let mut events = daemon.events();
    provoke(&daemon, "sleepy", "SUSPEND");
    events.expect("sleepy pmsuspended memory");
    assert_eq!(daemon.state("sleepy"), "pmsuspended");
    let error = daemon.virsh(&["resume", "sleepy"]).fails();
    assert!(error.contains("domain is pmsuspended"), "{error}");
    daemon.ok(&["dompmwakeup", "sleepy"]);
    assert_eq!(reason(&daemon, "sleepy"), "running (event wakeup)");
    events.expect("sleepy started wakeup");
    daemon.ok(&["destroy", "sleepy"]);
    let error = daemon.virsh(&["dompmwakeup", "sleepy"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
}

#[test]
fn a_guest_that_panics_leaves_its_memory_where_it_is_to() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let dumps = daemon.path("var/lib/libvirt/qemu/dump");
    let panic = reporting(&[("GUEST_PANICKED", json!({ "action": "pause" }))]);
    let mut events = daemon.events();
    faked(&daemon, "end", &panic, "<on_crash>coredump-destroy</on_crash>");
    provoke(&daemon, "end", "GUEST_PANICKED");
    events.expect("end stopped crashed");
    let dump: Vec<_> = fs::read_dir(&dumps).unwrap().map(|file| file.unwrap()).collect();
    assert!(dump[0].file_name().to_string_lossy().starts_with("1-end-20"), "{dump:?}");
    assert_eq!(dump[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    faked(&daemon, "again", &panic, "<on_crash>coredump-restart</on_crash>");
    provoke(&daemon, "again", "GUEST_PANICKED");
    eventually("it starts anew", || (reason(&daemon, "again") == "running (crashed)").then_some(()));
    // Without its memory on disk the guest stays as it is.
    let mut behaviour = panic;
    behaviour.refuse.insert("dump-guest-memory".to_owned(), "the disk is full".to_owned());
    faked(&daemon, "full", &behaviour, "<on_crash>coredump-destroy</on_crash>");
    provoke(&daemon, "full", "GUEST_PANICKED");
    events.expect("full crashed panicked");
    eventually("the failure is told", || daemon.log().contains("the disk is full").then_some(()));
    assert_eq!(reason(&daemon, "full"), "crashed (panicked)");
    assert_eq!(fs::read_dir(&dumps).unwrap().count(), 2);
}

#[test]
fn a_long_operation_is_written_down_and_refuses_what_it_must() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let mut behaviour = reporting(&[("GUEST_PANICKED", json!({ "action": "pause" }))]);
    behaviour.hang_at = Some("dump-guest-memory".to_owned());
    faked(&daemon, "long", &behaviour, "<on_crash>coredump-destroy</on_crash>");
    let error = daemon.virsh(&["domjobabort", "long"]).fails();
    assert!(error.contains("no job is active on the domain"), "{error}");
    provoke(&daemon, "long", "GUEST_PANICKED");
    let status = daemon.path("run/libvirt/qemu/long.xml");
    let noted = || {
        fs::read_to_string(&status)
            .unwrap()
            .contains("<job type='none' async='dump' flags='0x10' asyncStarted='")
    };
    eventually("the dump is noted", || noted().then_some(()));
    // Its nested job has the monitor, and answers nobody: destroy does not mind.
    assert_eq!(daemon.state("long"), "crashed");
    daemon.ok(&["destroy", "long"]);
    assert!(!status.exists());
}

#[test]
fn what_the_last_daemon_began_is_given_up() {
    let mut daemon = daemon();
    for name in ["saved", "paused"] {
        daemon.run(&halting(name));
        daemon.ok(&["suspend", name]);
    }
    let file = |name: &str| daemon.path(&format!("run/libvirt/qemu/{name}.xml"));
    let files = ["saved", "paused"].map(file);
    daemon.kill();
    for (file, reason) in files.iter().zip(["save", "user"]) {
        let status = fs::read_to_string(file).unwrap();
        let (before, after) = status.split_once("<libDir").unwrap();
        let before = before.replace("reason='user'", &format!("reason='{reason}'"));
        let job = "<job type='none' async='save' flags='0x0' asyncStarted='0'/>";
        fs::write(file, format!("{before}{job}<libDir{after}")).unwrap();
    }
    daemon.restart();
    eventually("the save is given up", || {
        (reason(&daemon, "saved") == "running (save canceled)").then_some(())
    });
    assert_eq!(reason(&daemon, "paused"), "paused (user)");
}
