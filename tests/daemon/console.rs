//! Consoles through streams, and pictures of the screen.

use ferrovirt_compat::linux;

use crate::daemon;

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
