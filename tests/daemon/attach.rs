//! QEMUs that somebody started by hand, and their command lines.

use std::process::{Child, Stdio};

use ferrovirt_compat::{
    Daemon, LIMIT, Signal, command, eventually, gone_within, part, signal, wait_for_listener,
};

use crate::{daemon, on_upstream};

/// A QEMU of the test's own; ended when it is dropped.
struct Qemu(Child);

impl Qemu {
    /// Runs one whose sockets lie below the daemon's root, so that nothing of it is left.
    fn start(daemon: &Daemon, arguments: &str) -> Self {
        let arguments = arguments.replace("ROOT", daemon.path("").to_str().unwrap().trim_end_matches('/'));
        let arguments = arguments.replace("ROM", part("halt.rom").to_str().unwrap());
        let mut command = command("qemu-system-x86_64");
        command.args(arguments.split_whitespace()).current_dir(daemon.path(""));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_qemu_started_by_hand_is_a_guest_like_any_other() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    let accel = if std::path::Path::new("/dev/kvm").exists() { "-enable-kvm" } else { "-accel tcg" };
    let mut qemu = Qemu::start(
        &daemon,
        &format!(
            "{accel} -m 256 -bios ROM -display none -serial pty -qmp unix:ROOT/q,server=on,wait=off \
             -device edu -device virtio-balloon"
        ),
    );
    wait_for_listener(&daemon.path("q"));
    let mut events = daemon.events();
    let name = format!("qemu-{}", qemu.pid());
    daemon.ok(&["qemu-attach", &qemu.pid()]);
    events.expect(&format!("{name} started booted"));
    assert_eq!(daemon.ok(&["list", "--name"]).trim(), name);
    let xml = daemon.ok(&["dumpxml", &name]);
    let kind = if accel == "-enable-kvm" { "type='kvm'" } else { "type='qemu'" };
    for piece in [
        kind,
        "<memory unit='KiB'>262144</memory>",
        "type='vga'",
        "<source path='/dev/pts/",
        "<memballoon model='virtio'>",
        // Behind the card and a device that definitions do not have.
        "slot='0x05' function='0x0'/>\n    </memballoon>",
        "<label>+",
    ] {
        assert!(xml.contains(piece), "no {piece} in\n{xml}");
    }
    daemon.ok(&["suspend", &name]);
    events.expect(&format!("{name} suspended paused"));
    assert_eq!(daemon.ok(&["domstate", "--reason", &name]).trim(), "paused (user)");
    // The next daemon takes hold of it as of any other, though it has neither a name nor a uuid of its own.
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.ok(&["dumpxml", &name]), xml);
    daemon.ok(&["resume", &name]);
    assert_eq!(daemon.state(&name), "running");
    let disk = daemon.path("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    daemon.ok(&["attach-disk", &name, disk.to_str().unwrap(), "vda", "--live", "--address", "pci:0.0.9.0"]);
    let blocks = daemon.ok(&["qemu-monitor-command", "--hmp", &name, "info block"]);
    assert!(blocks.contains("disk.img"), "{blocks}");
    let picture = daemon.path("picture");
    daemon.ok(&["screenshot", &name, picture.to_str().unwrap()]);
    assert!(std::fs::metadata(&picture).unwrap().len() > 100);
    let error = daemon.virsh(&["qemu-attach", &qemu.pid()]).fails();
    assert!(error.contains(&format!("is already managed as domain '{name}'")), "{error}");
    daemon.ok(&["destroy", &name]);
    assert!(!qemu.runs());
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
    assert!(!daemon.path(&format!("run/libvirt/qemu/{name}.xml")).exists());
}

#[test]
fn what_cannot_be_attached_is_refused_with_a_reason_and_left_alone() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let refuse = |pid: &str, sentence: &str| {
        let error = daemon.virsh(&["qemu-attach", pid]).fails();
        assert!(error.contains(sentence), "{error}");
    };
    refuse("4194303", "no process with pid 4194303");
    refuse(&daemon.pid().to_string(), "is not QEMU but '");
    let base = "-S -machine none -display none -nodefaults";
    let mut none = Qemu::start(&daemon, base);
    let mut stdio =
        Qemu::start(&daemon, &format!("{base} -chardev null,id=n -qmp tcp:127.0.0.1:0,server=on,wait=off"));
    let mut human = Qemu::start(&daemon, &format!("{base} -serial mon:unix:ROOT/m,server=on,wait=off"));
    let mut busy = Qemu::start(&daemon, &format!("{base} -name busy -qmp unix:ROOT/b,server=on,wait=off"));
    let mut terminal = Qemu::start(&daemon, &format!("{base} -monitor stdio"));
    refuse(&terminal.pid(), "its monitor is on its terminal");
    for socket in ["m", "b"] {
        wait_for_listener(&daemon.path(socket));
    }
    refuse(&none.pid(), "it has no monitor");
    refuse(&stdio.pid(), "is not a listening UNIX socket");
    refuse(&human.pid(), "its monitor 'mon:unix:");
    let user = std::os::unix::net::UnixStream::connect(daemon.path("b")).unwrap();
    eventually("QEMU greets its user", || {
        let mut buffer = [0; 1];
        std::io::Read::read(&mut &user, &mut buffer).ok().filter(|read| *read > 0)
    });
    refuse(&busy.pid(), "somebody else uses it");
    drop(user);
    daemon.define(&ferrovirt_compat::halting("busy"));
    refuse(&busy.pid(), "domain 'busy' already exists");
    daemon.ok(&["undefine", "busy"]);
    daemon.ok(&["qemu-attach", &busy.pid()]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "busy"]).trim(), "paused (user)");
    for qemu in [&mut none, &mut stdio, &mut human, &mut terminal, &mut busy] {
        assert!(qemu.runs());
    }
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "busy");
    // Its end is noticed though it is nobody's child here.
    let pid = busy.0.id().cast_signed();
    signal(pid, Signal::KILL);
    assert!(gone_within(pid, LIMIT));
    let _ = busy.0.wait();
    eventually("it is forgotten", || daemon.ok(&["list", "--all", "--name"]).trim().is_empty().then_some(()));
}

#[test]
fn an_image_whose_format_qemu_found_out_is_no_raw_one() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let [image, raw] = ["d.qcow2", "r.img"].map(|name| daemon.path(name));
    command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M").status().unwrap();
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    // Relative, as it would be typed.
    let arguments = "-S -accel tcg -name typed -nodefaults -display none -hda d.qcow2 -hdb ROOT/r.img";
    let qemu = Qemu::start(&daemon, &format!("{arguments} -qmp unix:ROOT/q,server=on,wait=off"));
    wait_for_listener(&daemon.path("q"));
    daemon.ok(&["qemu-attach", &qemu.pid()]);
    let line = format!("/usr/bin/qemu-system-x86_64 -hda {} -hdb {}", image.display(), raw.display());
    let read = daemon.with_xml(&line, |file| daemon.ok(&["domxml-from-native", "qemu-argv", file]));
    for xml in [daemon.ok(&["dumpxml", "typed"]), read] {
        let disks: Vec<&str> = xml.split("<disk ").skip(1).collect();
        assert!(disks[0].contains("type='qcow2'") && disks[0].contains("d.qcow2"), "{xml}");
        assert!(disks[1].contains("type='raw'") && disks[1].contains("r.img"), "{xml}");
    }
}

#[test]
fn a_qemu_with_a_monitor_for_humans_is_looked_at_stopped_and_ended() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    let arguments = "-accel tcg -name talker -m 64 -smp 2 -bios ROM -display none -nodefaults -serial pty";
    let mut qemu = Qemu::start(&daemon, &format!("{arguments} -monitor unix:ROOT/h,server=on,wait=off"));
    wait_for_listener(&daemon.path("h"));
    let mut events = daemon.events();
    daemon.ok(&["qemu-attach", &qemu.pid()]);
    events.expect("talker started booted");
    let xml = daemon.ok(&["dumpxml", "talker"]);
    assert!(xml.contains("type='qemu'") && xml.contains("<source path='/dev/pts/"), "{xml}");
    assert_eq!(daemon.ok(&["domstate", "--reason", "talker"]).trim(), "running (unpaused)");
    for _ in 0..2 {
        daemon.ok(&["suspend", "talker"]);
        assert_eq!(daemon.ok(&["domstate", "--reason", "talker"]).trim(), "paused (user)");
        let told = daemon.ok(&["qemu-monitor-command", "--hmp", "talker", "info status"]);
        assert_eq!(told.trim(), "VM status: paused");
        daemon.ok(&["resume", "talker"]);
        assert_eq!(daemon.state("talker"), "running");
        daemon.ok(&["shutdown", "talker"]);
        let error = daemon.virsh(&["send-key", "talker", "KEY_A"]).fails();
        assert!(error.contains("a monitor for humans only, which has no words for"), "{error}");
        daemon.kill();
        daemon.restart();
        assert_eq!(daemon.ok(&["dumpxml", "talker"]), xml);
    }
    events = daemon.events();
    daemon.ok(&["destroy", "talker"]);
    events.expect("talker stopped destroyed");
    assert!(!qemu.runs());
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
}

#[test]
fn command_lines_and_definitions_become_each_other() {
    let daemon = daemon();
    let guest = ferrovirt_compat::halting("native")
        .device("<serial type='unix'><source mode='bind' path='/tmp/s.sock'/></serial>")
        .device("<serial type='file'><source path='/tmp/s.log'/></serial>");
    let line = daemon.with_xml(&guest.xml(), |file| daemon.ok(&["domxml-to-native", "qemu-argv", file]));
    for piece in [
        " -name guest=native,debug-threads=on -S ",
        "/domain--1-native/monitor.sock,server=on,wait=off",
        "socket,id=charserial0,path=/tmp/s.sock,server=on,wait=off",
        "file,id=charserial1,path=/tmp/s.log ",
    ] {
        assert!(line.contains(piece), "no {piece} in {line}");
    }
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
    let error =
        daemon.with_xml(&guest.xml(), |file| daemon.virsh(&["domxml-to-native", "vmx", file]).fails());
    assert!(error.contains("unsupported config type vmx"), "{error}");
    if on_upstream() {
        return;
    }
    let xml = daemon.with_xml(&line, |file| daemon.ok(&["domxml-from-native", "qemu-argv", file]));
    for piece in ["<name>native</name>", "<source path='/tmp/s.log'/>", "path='/tmp/s.sock'"] {
        assert!(xml.contains(piece), "no {piece} in {xml}");
    }
    assert!(!xml.contains("qemu:"), "{xml}");
    let again = daemon.with_xml(&xml, |file| daemon.ok(&["domxml-to-native", "qemu-argv", file]));
    assert_eq!(again, line);
}
