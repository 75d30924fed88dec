//! I/O threads that come and go, of a guest that runs and of what it starts with the next time.

use ferrovirt_compat::{Daemon, Guest, halting};

use crate::daemon;

/// Defines a guest with two threads.
fn define(daemon: &Daemon, guest: Guest) {
    let xml = guest.xml().replace("<os>", "<iothreads>2</iothreads><os>");
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
}

#[test]
fn threads_are_added_tuned_and_removed() {
    let daemon = daemon();
    define(&daemon, halting("g"));
    daemon.ok(&["start", "g"]);
    let of_qemu = || {
        let said = daemon.ok(&["qemu-monitor-command", "g", r#"{"execute":"query-iothreads"}"#]);
        let parsed: serde_json::Value = serde_json::from_str(said.trim()).expect("JSON");
        let threads = parsed["return"].as_array().expect("a list").clone();
        threads
            .iter()
            .map(|it| format!("{}:{}", it["id"].as_str().unwrap(), it["poll-grow"]))
            .collect::<Vec<_>>()
    };
    daemon.ok(&["iothreadadd", "g", "7", "--live"]);
    assert_eq!(of_qemu().len(), 3);
    daemon.ok(&[
        "iothreadset",
        "g",
        "7",
        "--poll-grow",
        "3",
        "--thread-pool-min",
        "70",
        "--thread-pool-max",
        "90",
    ]);
    assert!(of_qemu().contains(&"iothread7:3".to_owned()), "{:?}", of_qemu());
    daemon.ok(&["iothreadpin", "g", "7", "0"]);
    assert!(daemon.ok(&["iothreadinfo", "g"]).contains(" 7 "));
    let live = daemon.ok(&["dumpxml", "g"]);
    assert!(live.contains("<iothread id='7' thread_pool_min='70' thread_pool_max='90'>"), "{live}");
    assert!(live.contains("<poll grow='3'/>"), "{live}");
    assert!(!daemon.ok(&["dumpxml", "g", "--inactive"]).contains("<iothreadids>"));

    daemon.ok(&["iothreaddel", "g", "1", "--live", "--config"]);
    let inactive = daemon.ok(&["dumpxml", "g", "--inactive"]);
    assert!(
        inactive.contains("<iothreads>1</iothreads>") && inactive.contains("<iothread id='2'/>"),
        "{inactive}"
    );
    assert_eq!(of_qemu().len(), 2);
    daemon.ok(&["iothreadadd", "g", "1", "--config"]);
    assert_eq!(of_qemu().len(), 2);
}

#[test]
fn a_change_that_makes_no_sense_changes_nothing() {
    let daemon = daemon();
    let disk = "<disk type='file'><driver type='raw' iothread='1'/><source file='/dev/null'/><target dev='vda' bus='virtio'/></disk>";
    define(&daemon, halting("g").device(disk));
    for (arguments, refusal) in [
        (&["iothreadadd", "g", "2"][..], "an IOThread is already using iothread_id '2'"),
        (&["iothreaddel", "g", "9"], "cannot find IOThread '9' in iothreadids list"),
        (&["iothreaddel", "g", "1"], "cannot remove IOThread 1 since it is being used by disk 'vda'"),
        (&["iothreadset", "g", "9", "--poll-grow", "1"], "cannot find IOThread '9' in iothreadids"),
        (
            &["iothreadset", "g", "2", "--thread-pool-min", "9"],
            "thread_pool_min (9) can't be greater than thread_pool_max (-1)",
        ),
        (
            &["iothreadset", "g", "2", "--thread-pool-max", "0"],
            "thread_pool_max (0) must be a positive number or -1",
        ),
        (&["iothreadadd", "g", "9", "--live"], "Requested operation is not valid: domain is not running"),
    ] {
        let said = daemon.virsh(arguments).fails();
        assert!(said.contains(refusal), "{arguments:?}: {said}");
    }
    assert!(daemon.ok(&["dumpxml", "g"]).contains("<iothreads>2</iothreads>"));
}

#[test]
fn perf_events_are_switched_for_the_next_start() {
    let daemon = daemon();
    daemon.define(&halting("g"));
    daemon.ok(&["perf", "g", "--enable", "cpu_cycles,page_faults", "--config"]);
    daemon.ok(&["perf", "g", "--disable", "cpu_cycles"]);
    let said = daemon.ok(&["dumpxml", "g"]);
    assert!(said.contains("<event name='cpu_cycles' enabled='no'/>"), "{said}");
    assert!(said.contains("<event name='page_faults' enabled='yes'/>"), "{said}");
}

#[test]
fn a_domain_starts_with_the_host_once() {
    let daemon = daemon();
    daemon.define(&halting("g"));
    daemon.ok(&["autostart", "g", "--once"]);
    let link = daemon.path("etc/libvirt/qemu/autostart/g.xml.once");
    assert!(link.is_symlink());
    assert!(
        daemon.ok(&["dominfo", "g"]).contains("Autostart Once: enable"),
        "{}",
        daemon.ok(&["dominfo", "g"])
    );
    daemon.ok(&["autostart", "g", "--once", "--disable"]);
    assert!(!link.is_symlink());
}
