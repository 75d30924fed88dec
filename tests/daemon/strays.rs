//! Guests of which the files say nothing any more: they are found, kept, and never run twice.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ferrovirt_compat::{Daemon, LIMIT, Program, Signal, command, eventually, gone_within, halting, signal};

use crate::{daemon, on_upstream};

fn run_file(daemon: &Daemon, file: &str) -> PathBuf {
    daemon.path("run/libvirt/qemu").join(file)
}

/// What a client sees of a guest's devices, in no order, without the boot order, which has two forms.
fn devices(daemon: &Daemon, name: &str) -> Vec<String> {
    let xml = daemon.ok(&["dumpxml", name]);
    let lines = xml[xml.find("<devices>").unwrap()..].lines().filter(|line| !line.contains("<boot order"));
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_guest_whose_status_file_is_torn_or_gone_goes_on() {
    if on_upstream() {
        return; // it loses sight of such a guest, and starts it a second time
    }
    let mut daemon = daemon();
    let disk = daemon.path("disk.img");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let more = format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <serial type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        disk.display()
    );
    let names = ["torn", "empty", "gone", "all-gone", "fleeting"];
    for name in &names[..4] {
        let guest = if *name == "torn" { halting(name).device(&more) } else { halting(name) };
        daemon.run(&guest);
        daemon.ok(&["autostart", name]);
    }
    daemon.create(&halting("fleeting"));
    daemon.ok(&["desc", "torn", "--live", "--config", "--title", "A title"]);
    daemon.ok(&["set-lifecycle-action", "torn", "reboot", "destroy", "--live", "--config"]);
    daemon.run(&halting("sound"));
    let pids = names.map(|name| daemon.qemu_pid(name));
    let before = devices(&daemon, "torn");
    daemon.ok(&["suspend", "empty"]);
    daemon.kill();

    let runtime = daemon.path("run/libvirt/qemu");
    let status = |name: &str| runtime.join(format!("{name}.xml"));
    let whole = fs::read(status("torn")).unwrap();
    fs::write(status("torn"), &whole[..whole.len() / 2]).unwrap();
    fs::write(status("empty"), "").unwrap();
    for file in ["gone.xml", "all-gone.xml", "fleeting.xml", "all-gone.pid"] {
        fs::remove_file(run_file(&daemon, file)).unwrap();
    }
    // It would start all that are marked for it.
    fs::remove_file(run_file(&daemon, "autostarted")).unwrap();
    daemon.restart();

    for (name, pid) in names.iter().zip(pids) {
        eventually("it is known", || {
            let state = daemon.state(name);
            (state == if *name == "empty" { "paused" } else { "running" }).then_some(())
        });
        let error = daemon.virsh(&["start", name]).fails();
        assert!(error.contains("already"), "{error}");
        assert!(!gone_within(pid, Duration::ZERO));
        eventually("it is written down again", || {
            fs::read_to_string(status(name))
                .is_ok_and(|text| text.contains(&format!("pid='{pid}'")))
                .then_some(())
        });
    }
    eventually("its QEMU has told what it has", || (devices(&daemon, "torn") == before).then_some(()));
    let xml = daemon.ok(&["dumpxml", "torn"]);
    assert!(
        xml.contains("<title>A title</title>") && xml.contains("<on_reboot>destroy</on_reboot>"),
        "{xml}"
    );
    // Its monitor is that of the old process, and so are its devices.
    let mut events = daemon.events();
    daemon.ok(&["suspend", "torn"]);
    events.expect("torn suspended paused");
    daemon.ok(&["detach-disk", "torn", "vda"]);
    let again = devices(&daemon, "torn");
    daemon.kill();
    daemon.restart();
    assert_eq!(devices(&daemon, "torn"), again);
    assert_eq!(daemon.ok(&["domstate", "--reason", "torn"]).trim(), "paused (user)");
    for (name, pid) in names.iter().zip(pids) {
        daemon.ok(&["destroy", name]);
        assert!(gone_within(pid, Duration::ZERO));
    }
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), "sound");
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).split_whitespace().count(), 5);
}

#[test]
fn a_guest_is_not_started_beside_itself() {
    if on_upstream() {
        return; // it starts it
    }
    let mut daemon = daemon();
    daemon.run(&halting("twin"));
    let pid = daemon.qemu_pid("twin");
    daemon.kill();
    // All that a daemon could find it by, until it is up.
    let hidden = daemon.path("hidden");
    fs::create_dir(&hidden).unwrap();
    let state = fs::read_dir(daemon.path("var/lib/libvirt/qemu")).unwrap().map(|entry| entry.unwrap().path());
    let directory = state.into_iter().find(|path| path.to_string_lossy().contains("domain-")).unwrap();
    fs::rename(&directory, hidden.join("directory")).unwrap();
    for file in ["twin.pid", "twin.xml"] {
        fs::rename(run_file(&daemon, file), hidden.join(file)).unwrap();
    }
    daemon.restart();
    assert_eq!(daemon.state("twin"), "shut off");
    let start = |text: &str| {
        fs::write(run_file(&daemon, "twin.pid"), text).unwrap();
        daemon.virsh(&["start", "twin"])
    };
    // Half a pid file is as good a reason to look as a whole one.
    for text in [pid.to_string(), String::new()] {
        let error = start(&text).fails();
        assert!(error.contains(&format!("domain 'twin' runs already as process {pid}")), "{error}");
        assert!(!gone_within(pid, Duration::ZERO));
    }
    // A boot that is refused forgets no saved state either.
    let kept = daemon.path("var/lib/libvirt/qemu/save/twin.save");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "kept").unwrap();
    let error = daemon.virsh(&["start", "twin", "--force-boot"]).fails();
    assert!(error.contains("runs already") && kept.exists(), "{error}");
    fs::remove_file(&kept).unwrap();
    signal(pid, Signal::KILL);
    assert!(gone_within(pid, LIMIT));
    // Nor is a left-over an obstacle, whoever has the number by now.
    start(&std::process::id().to_string()).ok();
}

#[test]
fn what_was_prepared_for_a_guest_that_never_ran_is_removed() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.run(&halting("here"));
    daemon.kill();
    let state = daemon.path("var/lib/libvirt/qemu");
    let left = [
        state.join("domain-77-ghost"),
        state.join("ram/77-ghost"),
        daemon.path("run/libvirt/qemu/channel/77-ghost"),
    ];
    for directory in &left {
        fs::create_dir_all(directory).unwrap();
    }
    daemon.restart();
    assert_eq!(daemon.state("here"), "running");
    for directory in &left {
        assert!(!directory.exists(), "{}", directory.display());
    }
    // What a guest has that runs stays, also that of a later run under the same name.
    daemon.kill();
    fs::create_dir(state.join("domain-77-here")).unwrap();
    daemon.restart();
    daemon.ok(&["suspend", "here"]);
    assert!(!state.join("domain-77-here").exists());
    let pid = daemon.qemu_pid("here");
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_guest_whose_monitor_cannot_be_reached_is_kept() {
    if on_upstream() {
        return; // it kills it
    }
    let mut daemon = daemon();
    daemon.run(&halting("deaf"));
    let pid = daemon.qemu_pid("deaf");
    daemon.kill();
    let state = fs::read_dir(daemon.path("var/lib/libvirt/qemu")).unwrap().map(|entry| entry.unwrap().path());
    let directory = state.into_iter().find(|path| path.to_string_lossy().contains("domain-")).unwrap();
    fs::rename(directory.join("monitor.sock"), directory.join("elsewhere")).unwrap();
    daemon.restart();
    let error = eventually("it is given up", || {
        let told = daemon.log().contains("there is no way to its monitor");
        told.then(|| daemon.virsh(&["suspend", "deaf"]).fails())
    });
    assert!(error.contains("failed to connect to monitor socket: No such file or directory"), "{error}");
    assert_eq!(daemon.state("deaf"), "running");
    assert!(!gone_within(pid, Duration::from_millis(300)));
    // The next daemon finds a way again.
    daemon.kill();
    fs::rename(directory.join("elsewhere"), directory.join("monitor.sock")).unwrap();
    daemon.restart();
    daemon.ok(&["suspend", "deaf"]);
    // And without one it can still be ended.
    daemon.kill();
    fs::remove_file(directory.join("monitor.sock")).unwrap();
    daemon.restart();
    daemon.ok(&["destroy", "deaf"]);
    assert!(gone_within(pid, Duration::ZERO));
    assert_eq!(daemon.ok(&["domstate", "--reason", "deaf"]).trim(), "shut off (destroyed)");
}

/// The number of its process is somebody else's by now.
#[test]
fn a_stranger_with_a_guest_s_number_is_let_alone() {
    if on_upstream() {
        return; // it goes by the monitor's socket alone
    }
    let mut daemon = daemon();
    let tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>";
    for guest in [halting("ours").device(tpm), halting("libvirt-s"), halting("fleeting")] {
        daemon.run(&guest);
    }
    daemon.ok(&["undefine", "fleeting"]);
    daemon.kill();
    for pid in daemon.qemu_pids() {
        signal(pid, Signal::KILL);
        assert!(gone_within(pid, LIMIT));
    }
    let mut sleeping = command("sleep");
    sleeping.arg("1000");
    let stranger = Program::start(sleeping);
    let pid = stranger.pid();
    for name in ["ours", "libvirt-s", "fleeting"] {
        let status = run_file(&daemon, &format!("{name}.xml"));
        let text = fs::read_to_string(&status).unwrap();
        let from = text.find("pid='").unwrap() + 5;
        let to = from + text[from..].find('\'').unwrap();
        let mut text = format!("{}{pid}{}", &text[..from], &text[to..]);
        if name == "libvirt-s" {
            // libvirt notes no start.
            let from = text.find("<process startTime").unwrap();
            let to = from + text[from..].find("/>").unwrap() + 2;
            text.replace_range(from..to, "");
        }
        fs::write(&status, text).unwrap();
        fs::write(run_file(&daemon, &format!("{name}.pid")), pid.to_string()).unwrap();
    }
    daemon.restart();
    for name in ["ours", "libvirt-s"] {
        eventually("it is off", || (daemon.state(name) == "shut off").then_some(()));
        let error = daemon.virsh(&["destroy", name]).fails();
        assert!(error.contains("domain is not running"), "{error}");
        daemon.ok(&["start", name]);
        daemon.ok(&["destroy", name]);
    }
    eventually("it is forgotten", || (!daemon.virsh(&["dominfo", "fleeting"]).success).then_some(()));
    assert!(!gone_within(pid, Duration::from_millis(100)), "the stranger was ended");
}
