//! What comes out of a guest: its screen as a picture, its console byte by byte.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{Daemon, Guest, halting};
use ferrovirt_protocol::frame::Status;
use ferrovirt_protocol::remote::{self, procedure};

use crate::Effort;
use crate::calls::{call, define, open};
use crate::guests::{destroy, start, undefine};
use crate::storage::{begin, frame, header};
use crate::timing::{Samples, micros, repeat};

/// What the processor does at the reset vector: it looks at its first serial port until there is a byte, and sends it back.
#[rustfmt::skip]
const ECHO: [u8; 15] = [
    0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec,             // in al, dx
    0xa8, 0x01,       // test al, 1
    0x74, 0xfb,       // jz to the in
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec,             // in al, dx
    0xee,             // out dx, al
    0xeb, 0xf1,       // jmp to the beginning
];
const ROM: usize = 0x1_0000;
const RESET: usize = 0xfff0;

/// A firmware that echoes.
pub(crate) fn write_echo(path: &Path) {
    let mut rom = vec![0; ROM];
    rom[RESET..RESET + ECHO.len()].copy_from_slice(&ECHO);
    fs::write(path, rom).expect("the directory is ours");
}

pub(crate) fn measure(daemon: &Daemon, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut wire = open(daemon);
    let screen = "<video><model type='vga'/></video><graphics type='vnc'/>";
    let shown = run(&mut wire, &halting("shown").device(screen));
    put("screenshot", repeat(effort.rounds * 10, || screenshot(&mut wire, &shown)).median() / 1e3);

    let rom = daemon.path("echo.rom");
    write_echo(&rom);
    let echoing = halting("echoing").device("<serial type='pty'/><console type='pty'/>").rom(&rom);
    let echoing = run(&mut wire, &echoing);
    put("console", echoes(&mut open(daemon), &echoing, effort).median());

    destroy(&mut wire, &shown);
    destroy(&mut wire, &echoing);
    undefine(vec![(open(daemon), shown), (wire, echoing)]);
}

fn run(wire: &mut Wire, guest: &Guest) -> remote::Domain {
    let dom = define(wire, guest.xml());
    start(wire, &dom);
    dom
}

fn screenshot(wire: &mut Wire, dom: &remote::Domain) {
    type Shot = procedure::DomainScreenshot;
    let serial = begin::<Shot>(wire, &remote::DomainScreenshotArgs { dom: dom.clone(), screen: 0, flags: 0 });
    let mut got = 0;
    loop {
        let piece = wire.receive().expect("the daemon sends");
        assert_eq!(piece.header.status, Status::CONTINUE);
        if piece.payload.is_empty() {
            break;
        }
        got += piece.payload.len();
    }
    assert!(got > 1000, "{got} bytes are no picture");
    wire.send(&frame(header::<Shot>(serial, Status::OK), &[])).expect("the daemon reads");
    // libvirt's daemon may say more than once that there is no more.
    while wire.receive().expect("the daemon confirms").header.status != Status::OK {}
}

fn echoes(wire: &mut Wire, dom: &remote::Domain, effort: Effort) -> Samples {
    type Open = procedure::DomainOpenConsole;
    let args = remote::DomainOpenConsoleArgs { dom: dom.clone(), dev_name: None, flags: 0 };
    let serial = begin::<Open>(wire, &args);
    let typed = frame(header::<Open>(serial, Status::CONTINUE), b"x");
    let samples = repeat(effort.calls / 5, || {
        wire.send(&typed).expect("the daemon reads");
        assert_eq!(wire.receive().expect("an echo").payload.as_ref(), b"x");
    });
    call::<procedure::ConnectGetLibVersion>(wire, &());
    samples
}

/// The same through QEMU's own socket.
pub(crate) fn echoes_alone(mut serial: &UnixStream, effort: Effort) -> f64 {
    let mut samples = Samples::default();
    for _ in 0..effort.calls / 5 {
        samples.add(micros(|| {
            serial.write_all(b"x").expect("QEMU reads");
            serial.read_exact(&mut [0]).expect("an echo");
        }));
    }
    samples.median()
}
