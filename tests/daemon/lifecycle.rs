//! A guest from define to undefine, by stock virsh.

use std::fs;

use ferrovirt_compat::{Signal, eventually, gone_within, halting, linux, signal};

use crate::daemon;

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
    daemon.terminate();
    fs::remove_file(daemon.path("run/libvirt/qemu/autostarted")).unwrap();
    daemon.restart();
    eventually("the guest runs", || (daemon.state("early") == "running").then_some(()));
    assert_eq!(daemon.state("late"), "shut off");
}

#[test]
fn a_forced_boot_forgets_the_saved_memory() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let image = daemon.path("var/lib/libvirt/qemu/save/tiny.save");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, "not an image that can be restored").unwrap();
    daemon.virsh(&["start", "tiny"]).fails();
    assert!(image.exists() && daemon.state("tiny") == "shut off");
    daemon.ok(&["start", "tiny", "--force-boot"]);
    assert!(!image.exists(), "a later start would restore it over the disks of this one");
}
