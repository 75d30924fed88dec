//! A guest from define to undefine, by stock virsh.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrovirt_compat::{Daemon, Signal, eventually, gone_within, halting, install_script, linux, signal};

use crate::{daemon, on_upstream};

#[test]
fn a_guest_lives_from_define_to_undefine() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    assert_eq!(daemon.state("tiny"), "shut off");
    daemon.ok(&["start", "tiny"]);
    let pid = daemon.qemu_pid("tiny");
    assert_eq!(daemon.ok(&["domstate", "--reason", "tiny"]).trim(), "running (booted)");
    assert_eq!(daemon.ok(&["domid", "tiny"]).trim(), "1");
    daemon.ok(&["suspend", "tiny"]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "tiny"]).trim(), "paused (user)");
    daemon.ok(&["resume", "tiny"]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "tiny"]).trim(), "running (unpaused)");
    daemon.ok(&["reset", "tiny"]);
    assert_eq!(daemon.state("tiny"), "running");
    daemon.ok(&["destroy", "tiny"]);
    assert!(!fs::exists(format!("/proc/{pid}/cmdline")).unwrap() || cmdline(pid).is_empty(), "QEMU is gone");
    assert_eq!(daemon.ok(&["domstate", "--reason", "tiny"]).trim(), "shut off (destroyed)");
    daemon.ok(&["undefine", "tiny"]);
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
}

/// Empty for a process that is only waiting to be reaped.
fn cmdline(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

#[test]
fn the_power_button_shuts_linux_down() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&linux("penguin", ""));
    let mut console = daemon.console("penguin");
    console.expect("GUEST READY");
    daemon.ok(&["shutdown", "penguin"]);
    console.expect("GUEST POWEROFF");
    events.expect("penguin shutdown guest");
    events.expect("penguin stopped shutdown");
    assert_eq!(daemon.ok(&["domstate", "--reason", "penguin"]).trim(), "shut off (shutdown)");
}

#[test]
fn a_reboot_boots_again_in_the_same_process() {
    let daemon = daemon();
    daemon.run(&linux("penguin", ""));
    let pid = daemon.qemu_pid("penguin");
    let mut console = daemon.console("penguin");
    console.expect("GUEST READY");
    daemon.ok(&["reboot", "penguin"]);
    console.expect("GUEST POWEROFF");
    console.expect("GUEST READY");
    assert_eq!(daemon.qemu_pid("penguin"), pid);
    // A reset asks nobody.
    daemon.ok(&["reset", "penguin"]);
    console.expect("GUEST READY");
    assert_eq!((daemon.state("penguin"), daemon.qemu_pid("penguin")), ("running".into(), pid));
}

#[test]
fn a_deaf_guest_keeps_running_until_destroyed() {
    let daemon = daemon();
    daemon.run(&linux("deaf", "guest.button=ignore guest.count=0.2"));
    let mut console = daemon.console("deaf");
    console.expect("GUEST READY");
    daemon.ok(&["shutdown", "deaf"]);
    for n in ["count 5\r\n", "count 10\r\n"] {
        console.expect(n);
    }
    assert_eq!(daemon.state("deaf"), "running");
    daemon.ok(&["destroy", "deaf"]);
    assert_eq!(daemon.state("deaf"), "shut off");
}

#[test]
fn a_guest_that_stands_still_stays_when_it_is_asked_to_go() {
    let daemon = daemon();
    daemon.run(&halting("still"));
    daemon.ok(&["suspend", "still"]);
    let error = daemon.virsh(&["shutdown", "still"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
    daemon.ok(&["reboot", "still"]);
    daemon.ok(&["reset", "still"]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "still"]).trim(), "paused (user)");
    daemon.ok(&["resume", "still"]);
    assert_eq!(daemon.state("still"), "running");
}

#[test]
fn a_transient_guest_is_forgotten_when_it_stops() {
    let daemon = daemon();
    daemon.create(&halting("fleeting"));
    assert!(daemon.ok(&["dominfo", "fleeting"]).contains("Persistent:     no"));
    daemon.ok(&["destroy", "fleeting"]);
    let error = daemon.virsh(&["domstate", "fleeting"]).fails();
    assert!(error.contains("failed to get domain 'fleeting'"), "{error}");
}

#[test]
fn a_guest_started_paused_runs_on_resume() {
    let daemon = daemon();
    daemon.define(&halting("later"));
    daemon.ok(&["start", "--paused", "later"]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "later"]).trim(), "paused (user)");
    daemon.ok(&["resume", "later"]);
    assert_eq!(daemon.state("later"), "running");
}

#[test]
fn a_killed_qemu_is_a_crashed_guest() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&halting("victim"));
    events.expect("victim started booted");
    signal(daemon.qemu_pid("victim"), Signal::KILL);
    events.expect("victim stopped failed");
    assert_eq!(daemon.ok(&["domstate", "--reason", "victim"]).trim(), "shut off (crashed)");
    daemon.ok(&["start", "victim"]);
    assert_eq!(daemon.state("victim"), "running");
}

#[test]
fn undefine_of_a_running_guest_leaves_it_transient() {
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    daemon.ok(&["undefine", "tiny"]);
    assert!(daemon.ok(&["dominfo", "tiny"]).contains("Persistent:     no"));
    daemon.ok(&["destroy", "tiny"]);
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
}

#[test]
fn destroy_ends_a_guest_that_takes_no_signal_but_the_last() {
    let daemon = daemon();
    daemon.run(&halting("frozen"));
    let pid = daemon.qemu_pid("frozen");
    signal(pid, Signal::STOP);
    daemon.ok(&["destroy", "frozen"]);
    assert!(gone_within(pid, std::time::Duration::ZERO), "answered before QEMU was gone");
    assert_eq!(daemon.state("frozen"), "shut off");
}

#[test]
fn a_guest_marked_for_it_starts_with_the_host() {
    let mut daemon = daemon();
    daemon.define(&halting("early"));
    daemon.define(&halting("late"));
    daemon.ok(&["autostart", "early"]);
    // Not with every daemon: a guest that was stopped stays so until the host boots, which empties /run.
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.state("early"), "shut off");
    let stamp = daemon.path("run/libvirt/qemu/autostarted");
    daemon.terminate();
    fs::remove_file(&stamp).unwrap();
    daemon.restart();
    eventually("the guest runs", || (daemon.state("early") == "running").then_some(()));
    assert_eq!(daemon.state("late"), "shut off");
    if !on_upstream() {
        // Where /run is kept by a disk, the stamp is there after a boot: it is of another one.
        daemon.ok(&["destroy", "early"]);
        daemon.terminate();
        fs::write(&stamp, "a4a5ba35-bd06-4d24-b3c7-a5b2d1c1a5fb\n").unwrap();
        daemon.restart();
        eventually("the guest runs", || (daemon.state("early") == "running").then_some(()));
    }
}

#[test]
fn a_forced_boot_forgets_the_saved_memory() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let image = daemon.path("var/lib/libvirt/qemu/save/tiny.save");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, "not an image that can be restored").unwrap();
    if !on_upstream() {
        // libvirt forgets the file at once and boots.
        daemon.virsh(&["start", "tiny"]).fails();
    }
    assert!(image.exists() && daemon.state("tiny") == "shut off");
    daemon.ok(&["start", "tiny", "--force-boot"]);
    assert!(!image.exists(), "a later start would restore it over the disks of this one");
}

/// A QEMU that is there, holds whatever it was given, and never answers.
fn never_ready(daemon: &Daemon) -> String {
    let slow = daemon.path("slow-qemu");
    let script =
        "#!/bin/sh\ncase \"$*\" in *guest=*) exec sleep 1000;; esac\nexec qemu-system-x86_64 \"$@\"\n";
    install_script(&slow, script);
    format!("<emulator>{}</emulator>", slow.display())
}

#[test]
fn a_start_that_has_not_finished_is_called_off_by_destroy() {
    let daemon = daemon();
    let emulator = never_ready(&daemon);
    daemon.define(&halting("slow").device(&emulator));
    for defined in [true, false] {
        if on_upstream() && !defined {
            continue; // there, the destroy of a transient guest that does not run yet ends it and fails
        }
        let call = match defined {
            true => "conn.lookupByName('slow').create()".to_owned(),
            false => format!("conn.createXML(\"\"\"{}\"\"\")", halting("brief").device(&emulator).xml()),
        };
        let name = if defined { "slow" } else { "brief" };
        let mut starting = daemon.python_beside(&format!(
            "try: {call}\nexcept libvirt.libvirtError as e: print(e.get_error_code(), e)\nprint('over')"
        ));
        let status = daemon.path(&format!("run/libvirt/qemu/{name}.xml"));
        let pidfile = daemon.path(&format!("run/libvirt/qemu/{name}.pid"));
        let there = || fs::read_to_string(&pidfile).ok()?.trim().parse().ok();
        let pid = eventually("QEMU is there", there);
        let begin = Instant::now();
        daemon.ok(&["destroy", name]);
        // A start is given up by itself after half a minute. Nothing of it is left when the answer is here.
        assert!(on_upstream() || begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert!(gone_within(pid, Duration::ZERO), "QEMU runs on");
        let told = starting.expect("over");
        if !on_upstream() {
            let sentence =
                format!("78 operation aborted: domain '{name}' was destroyed while it was starting");
            assert!(told.contains(&sentence), "{told}");
        }
        assert!(!status.exists() && !pidfile.exists());
    }
    assert_eq!(daemon.ok(&["domstate", "--reason", "slow"]).trim(), "shut off (destroyed)");
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "slow");
    let error = daemon.virsh(&["destroy", "slow"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
}

#[test]
fn the_status_file_is_written_for_what_is_in_it() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&halting("tiny"));
    let file = daemon.path("run/libvirt/qemu/tiny.xml");
    let written = || fs::metadata(&file).map(|file| (file.ino(), file.mtime(), file.mtime_nsec())).unwrap();
    daemon.ok(&["suspend", "tiny"]);
    let before = written();
    let mut reboots = daemon.python_beside(
        "conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_: print('rebooted'), None)\n\
         print('watching')\nrun_events()",
    );
    reboots.expect("watching\n");
    for _ in 0..3 {
        daemon.ok(&["reset", "tiny"]);
        reboots.expect("rebooted");
    }
    assert_eq!(
        on_upstream(),
        written() != before,
        "a reset changes nothing that the next daemon has to know"
    );
    let before = written();
    daemon.ok(&["resume", "tiny"]);
    events.expect("tiny resumed unpaused");
    assert_ne!(written(), before);
}

/// Has every write of the file at `path` fail, as on a full disk, until the answer is dropped.
struct Full(PathBuf);

impl Full {
    fn of(path: PathBuf) -> Self {
        let mut growing = path.into_os_string();
        growing.push(".new");
        // A name that cannot be opened for writing.
        fs::create_dir_all(Path::new(&growing).join("full")).unwrap();
        Self(growing.into())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn what_cannot_be_written_down_is_told_and_costs_no_guest() {
    if on_upstream() {
        return; // it writes under other names
    }
    let mut daemon = daemon();
    daemon.define(&halting("tiny"));
    let definition = daemon.ok(&["dumpxml", "tiny"]);
    let status = daemon.path("run/libvirt/qemu/tiny.xml");
    let full = Full::of(status.clone());
    let error = daemon.virsh(&["start", "tiny"]).fails();
    assert!(error.contains("cannot write status file") && error.contains("tiny.xml"), "{error}");
    assert_eq!(daemon.ok(&["domstate", "--reason", "tiny"]).trim(), "shut off (failed)");
    assert!(daemon.qemu_pids().is_empty() && !status.exists());
    drop(full);
    daemon.ok(&["start", "tiny"]);
    // A guest that runs goes on, and the next daemon finds out what the file does not say.
    let pid = daemon.qemu_pid("tiny");
    let full = Full::of(status.clone());
    daemon.ok(&["suspend", "tiny"]);
    daemon.kill();
    drop(full);
    daemon.restart();
    eventually("the daemon asked", || (daemon.state("tiny") == "paused").then_some(()));
    assert_eq!(daemon.qemu_pid("tiny"), pid);
    let full = Full::of(daemon.path("etc/libvirt/qemu/tiny.xml"));
    let error = daemon
        .with_xml(&definition.replace("16384", "32768"), |file| daemon.virsh(&["define", file]))
        .fails();
    assert!(error.contains("cannot save the definition of domain 'tiny'"), "{error}");
    assert_eq!(daemon.ok(&["dumpxml", "--inactive", "tiny"]), definition);
    drop(full);
    let full = Full::of(daemon.path("etc/libvirt/qemu/new.xml"));
    let error = daemon.with_xml(&halting("new").xml(), |file| daemon.virsh(&["define", file])).fails();
    assert!(error.contains("cannot save the definition of domain 'new'"), "{error}");
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "tiny");
    drop(full);
}
