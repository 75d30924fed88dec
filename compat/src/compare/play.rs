//! One scenario on one daemon.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ferrovirt_compat::{Daemon, Kind, Program, Ran, Signal, command, halting, linux, part, run};

use crate::normalise::Normaliser;
use crate::scenario::{Scenario, Script, Step};

/// What was asked, and what came back, without what differs between any two runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) asked: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The same for both daemons: no security labels, no owners to remember, no control groups.
pub(crate) const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\nremember_owner = 0\nsecurity_driver = \"none\"\n\
                         cgroup_controllers = []\nnamespaces = []\n";

const WAIT: Duration = Duration::from_secs(60);

pub(crate) fn play(kind: Kind, scenario: &Scenario) -> Vec<Answer> {
    let daemon = Daemon::start_with(kind, "", QEMU_CONF);
    let directory = daemon.path("work");
    fs::create_dir_all(&directory).expect("the root is ours");
    match &scenario.script {
        Script::Virsh(steps) => {
            let mut player = Player::new(&daemon);
            for step in steps {
                player.take(step);
            }
            player.end()
        }
        Script::Python(path) => python(&daemon, path),
    }
}

/// `virsh` of a scenario's lines. To migrate it has a thread, and may wait for ever for one that is over already: it is
/// then asked again.
const VIRSH: &str = "virsh() {
    [ \"$1\" = migrate ] || { command virsh -c \"$URI\" \"$@\"; return; }
    local answer code attempt
    for attempt in 1 2 3 4 5; do
        answer=$(timeout 30 virsh -c \"$URI\" \"$@\" 2>&1)
        code=$?
        [ $code = 124 ] || break
    done
    echo \"$answer\"
    return $code
}";

#[derive(Debug)]
struct Player<'a> {
    daemon: &'a Daemon,
    directory: String,
    normaliser: Normaliser,
    beside: Vec<(String, Program)>,
    events: Option<Program>,
    answers: Vec<Answer>,
}

pub(crate) fn normaliser(daemon: &Daemon) -> Normaliser {
    let path = |below: &str| daemon.path(below).to_string_lossy().trim_end_matches('/').to_owned();
    let roms = part("halt.rom").with_file_name("").to_string_lossy().trim_end_matches('/').to_owned();
    let mut paths = vec![(path("work"), "DIR"), (path(""), ""), (roms, "GUEST")];
    // QEMU inherits it.
    paths.extend(std::env::var("PATH").map(|path| (path, "PATH")));
    Normaliser::new(paths)
}

impl<'a> Player<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        let directory = daemon.path("work").to_string_lossy().into_owned();
        let normaliser = normaliser(daemon);
        Self { daemon, directory, normaliser, beside: Vec::new(), events: None, answers: Vec::new() }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Command(line) => self.ask(line, &format!("virsh {line}")),
            Step::Shell(line) => self.ask(&format!("@sh {line}"), line),
            Step::Guest { name, devices } => {
                self.write(&format!("{name}.xml"), &halting(name).device(&self.expand(devices)).xml());
            }
            Step::Linux { name, options } => {
                let agent =
                    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
                self.write(&format!("{name}.xml"), &linux(name, options).device(agent).xml());
            }
            Step::File { name, text } => self.write(name, &self.expand(text)),
            Step::Wait { text, command } => self.wait(text, command),
            Step::Beside(line) => {
                let mut shell = command("bash");
                shell.args(["-c", &self.script(&format!("exec virsh -c \"$URI\" {line} 2>&1"))]);
                self.beside.push((line.clone(), Program::start(shell)));
            }
            Step::Events => {
                let mut watcher = self.daemon.python_beside("watch_all_events(conn)");
                watcher.expect("watching\n");
                self.events = Some(watcher);
            }
        }
    }

    fn expand(&self, text: &str) -> String {
        text.replace("$DIR", &self.directory).replace("$ROM", &part("halt.rom").to_string_lossy())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(Path::new(&self.directory).join(name), text).expect("the directory is ours");
    }

    /// What a shell needs to know before the line.
    fn script(&self, line: &str) -> String {
        let (directory, uri) = (&self.directory, self.daemon.uri());
        format!(
            "set -o pipefail; DIR='{directory}' URI='{uri}' ROM='{}' HOME='{directory}' EDITOR=true\n\
             export HOME EDITOR; unset VISUAL; cd \"$DIR\"\n\
             {VIRSH}\n{line}",
            part("halt.rom").display()
        )
    }

    fn shell(&self, line: &str) -> Ran {
        run("bash", &["-c", &self.script(line)])
    }

    fn ask(&mut self, asked: &str, line: &str) {
        let ran = self.shell(line);
        let (out, err) = (self.normaliser.apply(&ran.out), self.normaliser.apply(&ran.err));
        self.answers.push(Answer { asked: asked.to_owned(), code: ran.code, out, err });
    }

    fn wait(&mut self, text: &str, command: &str) {
        let begin = Instant::now();
        // Each attempt starts a program, which is pause enough.
        loop {
            let ran = self.shell(&format!("virsh {command}"));
            if ran.out.contains(text) || ran.err.contains(text) {
                return;
            }
            if begin.elapsed() > WAIT {
                let asked = format!("@wait {text}: {command}");
                self.answers.push(Answer { asked, code: None, out: ran.out, err: ran.err });
                return;
            }
        }
    }

    fn end(mut self) -> Vec<Answer> {
        for (line, mut program) in std::mem::take(&mut self.beside) {
            program.signal(Signal::INT);
            let out = self.normaliser.apply(&program.rest());
            self.answers.push(Answer {
                asked: format!("@beside {line}"),
                code: None,
                out,
                err: String::new(),
            });
        }
        if let Some(mut watcher) = self.events.take() {
            // Events keep their order: behind this one are none of the scenario's.
            self.daemon.define(&halting("the-end"));
            let out = watcher.expect("the-end defined");
            // A QEMU that is ended by a signal may be gone before anybody has read that it says so.
            let out: String = out
                .lines()
                .filter(|line| !line.ends_with(" shutdown host"))
                .map(|line| format!("{line}\n"))
                .collect();
            let out = self.normaliser.apply(&out);
            self.answers.push(Answer { asked: "@events".to_owned(), code: None, out, err: String::new() });
        }
        self.answers
    }
}

/// Every function of a file is a question; what it prints is the answer.
fn python(daemon: &Daemon, path: &Path) -> Vec<Answer> {
    let runner = path.with_file_name("runner.py");
    let (uri, directory) = (daemon.uri(), daemon.path("work").to_string_lossy().into_owned());
    let rom = part("halt.rom").to_string_lossy().into_owned();
    let paths = [runner.to_string_lossy(), path.to_string_lossy()];
    let ran = run("/usr/bin/python3", &["-B", &paths[0], &paths[1], &uri, &directory, &rom]);
    sections(&ran, &mut normaliser(daemon))
}

/// The answers in what a program printed: each begins with `== ` and what was asked.
pub(crate) fn sections(ran: &Ran, normaliser: &mut Normaliser) -> Vec<Answer> {
    let out = format!("\n{}", ran.out);
    let mut answers: Vec<Answer> = out
        .split("\n== ")
        .skip(1)
        .map(|part| {
            let (asked, out) = part.split_once('\n').unwrap_or((part, ""));
            let out = normaliser.apply(out);
            Answer { asked: asked.to_owned(), code: Some(0), out, err: String::new() }
        })
        .collect();
    let err = normaliser.apply(&ran.err);
    answers.push(Answer { asked: "the whole".to_owned(), code: ran.code, out: String::new(), err });
    answers
}
