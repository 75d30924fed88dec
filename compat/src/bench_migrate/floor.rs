//! QEMU to QEMU by hand.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ferrovirt_compat::{LIMIT, command, eventually, part};

use crate::Took;

/// How the stream is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floor {
    Plain,
    Parallel,
    Postcopy,
}

/// One with its monitor; ended when dropped.
struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    /// When its guest last began or ceased to run, by its clock.
    turned: Option<Duration>,
}

impl Qemu {
    fn start(directory: &Path, name: &str, (rom, memory_mib): (&str, u32), more: &[&str]) -> Self {
        let socket = directory.join(name);
        let mut qemu = command("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-machine", "pc", "-nodefaults", "-display", "none"])
            .args(["-m", &memory_mib.to_string(), "-bios"])
            .arg(part(rom))
            .arg("-serial")
            .arg(format!("file:{}", directory.join("console").display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(more);
        let child = qemu.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("QEMU is installed");
        let monitor = eventually("QEMU listens", || UnixStream::connect(&socket).ok());
        monitor.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut this = Self { child, monitor: BufReader::new(monitor), turned: None };
        this.line();
        this.ask("qmp_capabilities", "{}");
        this
    }

    /// The next line, with events noted.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.monitor.read_line(&mut line).expect("QEMU talks");
        if line.contains("\"STOP\"") || line.contains("\"RESUME\"") {
            self.turned = Some(time_of(&line));
        }
        line
    }

    fn ask(&mut self, what: &str, arguments: &str) -> String {
        let text = format!("{{\"execute\": \"{what}\", \"arguments\": {arguments}}}\n");
        self.monitor.get_mut().write_all(text.as_bytes()).expect("QEMU listens");
        loop {
            let line = self.line();
            assert!(!line.contains("\"error\": {"), "{what}: {line}");
            if line.contains("\"return\"") {
                return line;
            }
        }
    }

    /// Until its stream has come to one of these points; says which.
    fn wait<'a>(&mut self, statuses: &[&'a str]) -> &'a str {
        loop {
            let line = self.line();
            let reached = statuses.iter().find(|status| line.contains(&format!("\"status\": \"{status}\"")));
            if let Some(reached) = reached {
                return reached;
            }
        }
    }

    fn set(&mut self, floor: Floor) {
        let mut names = vec!["events"];
        match floor {
            Floor::Plain => {}
            Floor::Parallel => names.push("multifd"),
            Floor::Postcopy => names.push("postcopy-ram"),
        }
        let capabilities: Vec<String> =
            names.iter().map(|name| format!("{{\"capability\": \"{name}\", \"state\": true}}")).collect();
        self.ask("migrate-set-capabilities", &format!("{{\"capabilities\": [{}]}}", capabilities.join(",")));
        // As fast as it can, as the daemons have it.
        self.ask(
            "migrate-set-parameters",
            "{\"max-bandwidth\": 9223372036853727232, \"multifd-channels\": 2}",
        );
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From `"timestamp": {"seconds": 1, "microseconds": 2}`.
fn time_of(line: &str) -> Duration {
    let number = |name: &str| {
        let rest = line.split(name).nth(1).unwrap_or_default();
        let digits: String =
            rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap_or(0)
    };
    Duration::from_secs(number("\"seconds\"")) + Duration::from_micros(number("\"microseconds\""))
}

impl Floor {
    pub(crate) fn measure(self, rom: &str, memory_mib: u32) -> Took {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let mut source = Qemu::start(directory, "source", (rom, memory_mib), &[]);
        let console = directory.join("console");
        eventually("all memory is filled", || {
            std::fs::metadata(&console).ok().filter(|found| found.len() > 0).map(drop)
        });
        let begin = Instant::now();
        let mut destination =
            Qemu::start(directory, "destination", (rom, memory_mib), &["-incoming", "defer", "-S"]);
        let uri = format!("{{\"uri\": \"unix:{}\"}}", directory.join("arrival").display());
        destination.set(self);
        destination.ask("migrate-incoming", &uri);
        source.set(self);
        source.ask("migrate", &uri);
        if self == Floor::Postcopy {
            // After the first pass over memory, as virsh does it.
            while !source.line().contains("\"pass\": 2") {}
            source.ask("migrate-start-postcopy", "{}");
        }
        // A guest that writes little is there before the switch to post-copy has begun.
        let reached = destination.wait(&["postcopy-active", "completed"]);
        destination.ask("cont", "{}");
        if reached != "completed" {
            destination.wait(&["completed"]);
        }
        while destination.turned.is_none() {
            destination.line();
        }
        let total = begin.elapsed();
        source.ask("query-status", "{}");
        let stopped = source.turned.expect("it stood still");
        let resumed = destination.turned.expect("it runs");
        Took { total, stood_still: resumed.saturating_sub(stopped) }
    }
}
