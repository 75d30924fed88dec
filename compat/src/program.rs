//! Programs that a test runs, and waiting for what they say. Every wait has a limit; none is a fixed pause.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Signal;

/// Far over what anything here takes on a slow machine: it ends a hung test, it judges no speed.
pub const LIMIT: Duration = Duration::from_secs(180);

/// The one place where tests make a `Command`.
#[expect(
    clippy::disallowed_methods,
    reason = "a test runs clients as a user does, not as the daemon runs QEMU"
)]
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    // Clients read all of these; a developer's own must not decide a test.
    for name in ["LIBVIRT_DEFAULT_URI", "VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEBUG", "LANG", "LANGUAGE"] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// What a finished program left.
#[derive(Debug)]
pub struct Ran {
    pub success: bool,
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output of a program that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.success, "failed: {}{}", self.err, self.out);
        self.out
    }

    /// Standard error of a program that must have failed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(!self.success, "succeeded: {}{}", self.err, self.out);
        self.err
    }
}

/// Runs a program to its end, which comes within [`LIMIT`] or by force.
pub fn run(program: &str, arguments: &[&str]) -> Ran {
    let output = command("timeout")
        .arg("--kill-after=5")
        .arg(LIMIT.as_secs().to_string())
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("timeout is part of coreutils");
    Ran {
        success: output.status.success(),
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Puts an executable script there. Another process writes it: one that a parallel test starts from this one may hold
/// whatever is open here for a while, and a file that somebody writes to cannot be executed.
pub fn install_script(path: &Path, text: &str) {
    let mut writer = command("sh")
        .args(["-c", "cat >\"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("every host has a shell");
    let written = writer.stdin.take().expect("piped above").write_all(text.as_bytes());
    let ended = writer.wait().expect("it is our child");
    assert!(written.is_ok() && ended.success(), "cannot write {}", path.display());
}

/// Waits until somebody accepts connections on a unix socket, without making one. Its name is there before.
#[track_caller]
pub fn wait_for_listener(path: &Path) {
    const ACCEPTS: &str = "00010000";
    let ending = format!(" {}", path.display());
    eventually("somebody listens", || {
        let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
        let mut ours = sockets.lines().filter(|line| line.ends_with(&ending));
        ours.any(|line| line.split_whitespace().nth(3) == Some(ACCEPTS)).then_some(())
    });
}

/// Tries until `attempt` has an answer. For states that nothing announces to a test.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        // Seldom enough to leave the processors alone, often enough to tell how long it took within a twentieth.
        thread::park_timeout(
            (begin.elapsed() / 20).clamp(Duration::from_micros(100), Duration::from_millis(20)),
        );
    }
}

/// A program that runs beside the test and talks: a console, a watcher of events. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    seen: String,
    /// What `expect` has been through.
    taken: usize,
}

impl Program {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdout = child.stdout.take().expect("piped above");
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, output, seen: String::new(), taken: 0 }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        super::signal(self.child.id().cast_signed(), signal);
    }

    /// Waits until `text` comes up behind what was expected before; answers all up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        match self.find_by(text, Instant::now() + LIMIT) {
            Ok(answer) => answer,
            Err(why) => {
                panic!("no {text:?} ({why:?}) behind the first {} bytes of {:?}", self.taken, self.seen)
            }
        }
    }

    /// The same for a text that may not come.
    pub fn expect_within(&mut self, text: &str, limit: Duration) -> Option<String> {
        self.find_by(text, Instant::now() + limit).ok()
    }

    fn find_by(&mut self, text: &str, deadline: Instant) -> Result<String, RecvTimeoutError> {
        loop {
            if let Some(at) = self.seen[self.taken..].find(text) {
                let end = self.taken + at + text.len();
                let answer = self.seen[self.taken..end].to_owned();
                self.taken = end;
                return Ok(answer);
            }
            self.read(deadline)?;
        }
    }

    /// All that came after what was expected, once the program has ended by itself.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.read(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return self.seen[self.taken..].to_owned(),
                Err(RecvTimeoutError::Timeout) => panic!("still running; it said {:?}", self.seen),
            }
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<(), RecvTimeoutError> {
        let bytes = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        self.seen.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    pub fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("open until the program is dropped");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("the program reads its input");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
