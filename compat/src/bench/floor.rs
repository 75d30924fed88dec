//! What nobody can undercut: a server that only echoes, and QEMU with nobody around it.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use bytes::BytesMut;
use ferrovirt_compat::wire::Wire;
use ferrovirt_compat::{LIMIT, Signal, command, eventually, gone_within, halting, part, signal};
use ferrovirt_protocol::frame::{self, FrameType, MAX_FRAME};
use ferrovirt_protocol::remote::{self, procedure};

use crate::Effort;
use crate::calls::throughput;
use crate::timing::{Samples, as_micros, longest, micros, repeat};

pub(crate) fn measure(effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let directory = tempfile::tempdir().expect("a directory");
    let server = directory.path().join("echo");
    echo(&server, effort, put);
    qemu_alone(&server, effort, put);
    crate::storage::floor(directory.path(), put);
    let text = halting("floor").xml();
    put("define", repeat(effort.calls / 20, || write_durably(directory.path(), &text)).median() / 1e3);
}

/// What a definition costs on disk: a synced file under its name.
fn write_durably(directory: &Path, text: &str) {
    let file = directory.join("new");
    let mut open = fs::File::create(&file).expect("the directory is ours");
    open.write_all(text.as_bytes()).and_then(|()| open.sync_all()).expect("the disk takes it");
    fs::rename(&file, directory.join("definition")).expect("the directory is ours");
}

// ---- echo ----

fn echo(path: &Path, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let listener = UnixListener::bind(path).expect("the directory is ours");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || serve(client));
        }
    });
    let open = || Wire::connect(path).expect("the server listens");
    let mut wire = open();
    let mut samples = repeat(effort.calls, || {
        wire.call::<procedure::ConnectGetLibVersion>(&()).expect("an echo");
    });
    put("lib-version", samples.median());
    put("lib-version-p99", samples.percentile(99));
    put("calls-1x1", throughput(1, 1, open));
    put("calls-1x5", throughput(1, 5, open));
    put("calls-8x5", throughput(8, 5, open));
    put("calls-16x1", throughput(16, 1, open));
    put("calls-16x5", throughput(16, 5, open));
    put(
        "connect",
        repeat(effort.calls / 10, || {
            open().call::<procedure::ConnectGetLibVersion>(&()).expect("an echo");
        })
        .median(),
    );
}

/// Answers every call with the same eight bytes.
fn serve(mut client: UnixStream) {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut chunk = [0; 1 << 16];
    while let Ok(n @ 1..) = client.read(&mut chunk) {
        input.extend_from_slice(&chunk[..n]);
        while let Ok(Some(call)) = frame::cut(&mut input, MAX_FRAME) {
            let header = frame::Header { kind: FrameType::REPLY, ..call.header };
            let ret = remote::ConnectGetLibVersionRet { lib_ver: 11_003_000 };
            frame::put(&mut output, &header, &ret).expect("it is short");
        }
        if client.write_all(&output).is_err() {
            return;
        }
        output.clear();
    }
}

// ---- QEMU ----

/// A process and a monitor on which it has been told to go.
struct Running {
    child: Child,
    monitor: UnixStream,
    answers: Lines<BufReader<UnixStream>>,
}

fn qemu_alone(server: &Path, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut starts, mut ends) = (Samples::default(), Samples::default());
    for _ in 0..effort.rounds {
        let mut guest = None;
        starts.add(micros(|| guest = Some(start(directory.path(), 0, &[]))));
        let guest = guest.expect("started above");
        ends.add(micros(|| end(vec![guest])));
    }
    put("start", starts.median() / 1e3);
    put("destroy", ends.median() / 1e3);

    // Twenty at once keep the processors so busy that even an echo takes its time.
    let over = AtomicBool::new(false);
    let mut wire = Wire::connect(server).expect("the server listens");
    let guests: Vec<Running> = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            longest(&over, || {
                wire.call::<procedure::ConnectGetLibVersion>(&()).expect("an echo");
            })
        });
        let path = directory.path();
        let begin = Instant::now();
        let starts: Vec<_> = (0..20).map(|n| scope.spawn(move || start(path, n, &[]))).collect();
        let guests = starts.into_iter().map(|start| start.join().expect("a start")).collect();
        put("start20", as_micros(begin.elapsed()) / 1e3);
        over.store(true, Ordering::Relaxed);
        put("stall", asking.join().expect("the asking thread") / 1e3);
        guests
    });
    put("destroy20", micros(|| end(guests)) / 1e3);
    console(directory.path(), effort, put);
    screenshot(directory.path(), effort, put);
}

/// A serial port that is a socket: nobody between it and this client.
fn console(directory: &Path, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let (rom, serial) = (directory.join("echo.rom"), directory.join("serial"));
    crate::display::write_echo(&rom);
    let serial_port = format!("unix:{},server=on,wait=off", serial.display());
    let more = ["-bios".to_owned(), rom.display().to_string(), "-serial".to_owned(), serial_port];
    let guest = start(directory, 0, &more);
    let port = UnixStream::connect(&serial).expect("QEMU listens");
    put("console", crate::display::echoes_alone(&port, effort));
    end(vec![guest]);
}

/// As small as QEMU itself makes a picture.
fn screenshot(directory: &Path, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut guest = start(directory, 0, &["-vga".to_owned(), "std".to_owned()]);
    let file = directory.join("screen.png");
    let arguments = format!("\"filename\":\"{}\",\"format\":\"png\"", file.display());
    let shot = format!("\"execute\":\"screendump\",\"arguments\":{{{arguments}}}");
    let times = repeat(effort.rounds * 10, || {
        guest.execute(&shot);
        fs::read(&file).expect("QEMU wrote it");
    });
    put("screenshot", { times }.median() / 1e3);
    end(vec![guest]);
}

/// The command line that libvirt makes of the minimal guest, less what needs a daemon.
fn qemu(socket: &Path) -> Command {
    let accel = if Path::new("/dev/kvm").exists() { "kvm" } else { "tcg" };
    // In a session of its own like any guest: the kernel shares the processors out among sessions.
    let mut qemu = command("setsid");
    qemu.arg("qemu-system-x86_64")
        .args([
            "-S",
            "-machine",
            "pc,usb=off,dump-guest-core=off,memory-backend=pc.ram,acpi=on",
            "-accel",
            accel,
        ])
        .args(["-cpu", "qemu64", "-bios"])
        .arg(part("halt.rom"))
        .args([
            "-m",
            "size=16384k",
            "-object",
            r#"{"qom-type":"memory-backend-ram","id":"pc.ram","size":16777216}"#,
        ])
        .args(["-overcommit", "mem-lock=off", "-smp", "1,sockets=1,cores=1,threads=1", "-display", "none"])
        .args(["-no-user-config", "-nodefaults", "-rtc", "base=utc", "-no-shutdown", "-boot", "strict=on"])
        .args(["-chardev", &format!("socket,id=charmonitor,path={},server=on,wait=off", socket.display())])
        .args([
            "-mon",
            "chardev=charmonitor,id=monitor,mode=control",
            "-audiodev",
            r#"{"id":"audio1","driver":"none"}"#,
        ])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .args(["-msg", "timestamp=on"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    qemu
}

fn start(directory: &Path, number: usize, more: &[String]) -> Running {
    let socket = directory.join(format!("monitor{number}"));
    // What an earlier round left.
    let _ = fs::remove_file(&socket);
    let child = qemu(&socket).args(more).spawn().expect("QEMU is installed");
    let monitor = eventually("QEMU opens its monitor", || UnixStream::connect(&socket).ok());
    monitor.set_read_timeout(Some(LIMIT)).expect("a socket");
    let mut answers = BufReader::new(monitor.try_clone().expect("a socket")).lines();
    answers.next().expect("a greeting").expect("a line");
    let mut guest = Running { child, monitor, answers };
    for execute in ["qmp_capabilities", "cont"] {
        guest.execute(&format!("\"execute\":\"{execute}\""));
    }
    guest
}

impl Running {
    fn execute(&mut self, command: &str) {
        (&self.monitor).write_all(format!("{{{command}}}\n").as_bytes()).expect("QEMU reads");
        let answered =
            self.answers.by_ref().map(|line| line.expect("a line")).any(|line| line.contains("\"return\""));
        assert!(answered, "QEMU ended");
    }
}

fn end(guests: Vec<Running>) {
    for guest in &guests {
        signal(guest.child.id().cast_signed(), Signal::TERM);
    }
    for mut guest in guests {
        assert!(gone_within(guest.child.id().cast_signed(), LIMIT), "QEMU takes no signal");
        // The reaper may have been here first: the guest has left our session.
        let _ = guest.child.wait();
    }
}
