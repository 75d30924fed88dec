//! Consoles and channels through streams, pictures of the screen, the screen itself through a descriptor.

use std::fs;

use ferrovirt_compat::{eventually, halting, linux};

use crate::{daemon, on_upstream};

#[test]
fn a_console_carries_both_ways() {
    let daemon = daemon();
    daemon.run(&linux("penguin", ""));
    let mut console = daemon.console("penguin");
    console.expect("GUEST READY");
    console.send("echo $((6 * 7)) done\n");
    console.expect("42 done");
    // More than one frame and more than one buffer.
    console.send("seq -s, 20000; echo $((6 * 7)) end\n");
    let text = console.expect("42 end");
    assert!(text.contains(",19999,20000"), "{}", text.len());
}

#[test]
fn a_second_console_waits_its_turn_or_takes_over() {
    let daemon = daemon();
    daemon.run(&linux("penguin", ""));
    let mut first = daemon.console("penguin");
    first.expect("GUEST READY");
    let refused = daemon.python(
        "conn.lookupByName('penguin').openConsole(None, conn.newStream(0), libvirt.VIR_DOMAIN_CONSOLE_SAFE)",
    );
    let error = refused.fails();
    assert!(error.contains("Active console session exists for this domain"), "{error}");
    let forced = daemon.python(
        "stream = conn.newStream(0)\n\
         conn.lookupByName('penguin').openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)\n\
         stream.send(b'echo $((6 * 7))\\n')\n\
         text = b''\n\
         while b'42' not in text: text += stream.recv(1024)\n\
         print('taken over')",
    );
    assert_eq!(forced.ok().trim(), "taken over");
    first.rest(); // ends: it lost the console
    drop(first);
    let mut next = daemon.console("penguin");
    next.send("echo $((6 * 7))\n");
    next.expect("42");
}

#[test]
fn programs_beside_the_daemon_see_which_terminal_is_taken() {
    if on_upstream() {
        return; // its lock files are the host's
    }
    let daemon = daemon();
    let locks = daemon.path("var/lock");
    fs::create_dir_all(&locks).unwrap();
    daemon.run(&halting("tiny").device("<serial type='pty'/>"));
    let terminal = daemon.ok(&["ttyconsole", "tiny"]).trim().to_owned();
    let lock = locks.join(format!("LCK..{}", terminal.trim_start_matches("/dev").replace('/', "_")));
    let open = "stream = conn.newStream(0); conn.lookupByName('tiny').openConsole(None, stream, FLAGS)\n\
                print('open'); input()";
    let mut first = daemon.python_beside(&open.replace("FLAGS", "0"));
    first.expect("open");
    assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{:>10}\n", daemon.pid()));
    let mut second = daemon.python_beside(&open.replace("FLAGS", "libvirt.VIR_DOMAIN_CONSOLE_FORCE"));
    second.expect("open");
    drop(first);
    assert!(lock.exists());
    drop(second);
    eventually("the terminal is free", || (!lock.exists()).then_some(()));
    let other = std::process::id();
    fs::write(&lock, format!("{other:>10}\n")).unwrap();
    let error = daemon.python(&open.replace("FLAGS", "0")).fails();
    let held = format!("Requested device '{terminal}' is locked by lock file '{}'", lock.display());
    assert!(error.contains(&format!("{held} held by process {other}")), "{error}");
    // Whoever it was is gone.
    fs::write(&lock, " 999999999\n").unwrap();
    let mut third = daemon.python_beside(&open.replace("FLAGS", "0"));
    third.expect("open");
}

#[test]
fn a_console_ends_with_its_guest() {
    let daemon = daemon();
    daemon.run(&linux("penguin", ""));
    let mut console = daemon.console("penguin");
    console.expect("GUEST READY");
    daemon.ok(&["destroy", "penguin"]);
    console.rest();
}

#[test]
fn a_screenshot_is_a_picture_of_the_screen() {
    let daemon = daemon();
    let guest = linux("penguin", "").device("<video><model type='vga'/></video>");
    daemon.run(&guest);
    daemon.console("penguin").expect("GUEST READY");
    let out = daemon
        .python(
            "stream = conn.newStream(0)\n\
             mime = conn.lookupByName('penguin').screenshot(stream, 0, 0)\n\
             data = b''\n\
             while chunk := stream.recv(65536): data += chunk\n\
             stream.finish()\n\
             if mime == 'image/png': size = [int.from_bytes(data[at:at + 4], 'big') for at in (16, 20)]\n\
             else: size = [int(n) for n in data.split(b'\\n')[1].split()]\n\
             print(mime, size, len(data) > 1000)",
        )
        .ok();
    assert!(out.starts_with("image/") && out.ends_with("[720, 400] True\n"), "{out}");
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let daemon = daemon();
    daemon.run(&ferrovirt_compat::halting("tiny"));
    let error = daemon.python("conn.lookupByName('tiny').openConsole(None, conn.newStream(0), 0)").fails();
    assert!(error.contains("cannot find character device <null>"), "{error}");
    let error = daemon.python("conn.lookupByName('tiny').screenshot(conn.newStream(0), 0, 0)").fails();
    assert!(error.contains("libvirtError"), "{error}");
}

#[test]
fn the_screen_is_served_on_a_descriptor() {
    let daemon = daemon();
    let screen = "<graphics type='vnc' passwd='secret'><listen type='socket'/></graphics>";
    daemon.run(&halting("tiny").device(screen));
    let greeting = |how: &str| {
        daemon.python(&format!(
            "import os, socket\n\
             domain = conn.lookupByName('tiny')\n\
             {how}\n\
             print(socket.socket(fileno=fd).recv(12))"
        ))
    };
    let asked = greeting("fd = domain.openGraphicsFD(0, libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)");
    assert_eq!(asked.ok().trim(), r"b'RFB 003.008\n'");
    let given = greeting(
        "ours, theirs = socket.socketpair(); fd = ours.detach(); domain.openGraphics(0, theirs.fileno(), 0)",
    );
    assert_eq!(given.ok().trim(), r"b'RFB 003.008\n'");
    let error = daemon.python("conn.lookupByName('tiny').openGraphicsFD(1, 0)").fails();
    assert!(error.contains("internal error: No graphics backend with index 1"), "{error}");
}

#[test]
fn a_channel_is_open_to_one_client_at_a_time() {
    let daemon = daemon();
    daemon.run(&halting("tiny").device(
        "<channel type='unix'><target type='virtio' name='com.example'/></channel>\
         <channel type='pty'><target type='virtio' name='com.example.pty'/></channel>",
    ));
    let opened = daemon.python(
        "domain = conn.lookupByName('tiny')\n\
         def open(name, flags=0):\n\
         \x20   stream = conn.newStream(0)\n\
         \x20   try: domain.openChannel(name, stream, flags)\n\
         \x20   except libvirt.libvirtError as error: print(error)\n\
         \x20   return stream\n\
         first = open('com.example')\n\
         second = open('channel0')\n\
         third = open(None, libvirt.VIR_DOMAIN_CHANNEL_FORCE)\n\
         open('com.example.pty')\n\
         open('no')",
    );
    let lines = [
        "operation failed: Active channel stream exists for this domain",
        "internal error: channel com.example.pty is not using a UNIX socket",
        "internal error: cannot find channel no",
    ];
    assert_eq!(opened.ok().trim(), lines.join("\n"));
}
