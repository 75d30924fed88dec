//! A QEMU that does as it is told: hangs, dies, talks nonsense at a chosen command.
//!
//! [`Behaviour::install`] writes a script that can be given as a guest's emulator. The script runs this
//! test binary again, with one test selected, which plays QEMU. Questions about a binary's capabilities
//! go to the real QEMU.
//!
//! A test crate takes it in by `#[path = "fake_qemu/mod.rs"] mod fake_qemu;`.

#![allow(dead_code, reason = "each test crate uses the part it needs")]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

const BEHAVIOUR: &str = "FAKE_QEMU_BEHAVIOUR";
const ARGS: &str = "FAKE_QEMU_ARGS";
const REAL: &str = "/usr/bin/qemu-system-x86_64";

/// What to do differently from a healthy QEMU. Commands are QMP's names; `start` stands for the time before
/// the greeting.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Behaviour {
    /// Prints its last words and exits with status 1.
    pub(crate) die_at: Option<String>,
    pub(crate) last_words: String,
    /// Answers this command no more, nor any after it.
    pub(crate) hang_at: Option<String>,
    /// Answers this command with a line that is no JSON.
    pub(crate) garbage_at: Option<String>,
    /// Takes up to so long for each command, at random.
    pub(crate) stall_ms: u64,
    /// Says "hangs" in its log and answers nothing any more after so many commands; 0 for never.
    pub(crate) hang_after: u32,
    /// Closes the connection at this command, and lives on.
    pub(crate) close_at: Option<String>,
    /// Answers this command with a line of a gibibyte, or what it can send of it.
    pub(crate) flood_at: Option<String>,
    /// Answers this command with events, twenty thousand of them.
    pub(crate) storm_at: Option<String>,
    pub(crate) ignore_sigterm: bool,
    /// Answers SIGTERM by reporting a shutdown, and stays.
    pub(crate) report_sigterm: bool,
    /// Commands that fail, with the reason.
    pub(crate) refuse: BTreeMap<String, String>,
    /// Replies that differ from the usual ones.
    pub(crate) replies: BTreeMap<String, Value>,
    /// Events sent after the reply to a command: name and data, null for none.
    pub(crate) events: BTreeMap<String, Vec<(String, Value)>>,
}

impl Behaviour {
    /// Makes an executable `DIRECTORY/qemu-system-x86_64` that behaves like this.
    pub(crate) fn install(&self, directory: &Path) -> PathBuf {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let module = module_path!().split_once("::").expect("a module of a test crate").1;
        let script = format!(
            "#!/bin/sh\n\
             case \"$*\" in *none,accel=*) exec {REAL} \"$@\";; esac\n\
             {BEHAVIOUR}={} {ARGS}=\"$(printf '%s\\n' \"$@\")\" exec {} --exact {module}::play --nocapture >/dev/null\n",
            quoted(&serde_json::to_string(self).unwrap()),
            quoted(std::env::current_exe().unwrap().to_str().unwrap()),
        );
        let path = directory.join("qemu-system-x86_64");
        ferrovirt_compat::install_script(&path, &script);
        path
    }
}

/// Plays QEMU where the script asks for it; in a plain test run there is nothing to do.
#[tokio::test]
async fn play() -> ExitCode {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return ExitCode::SUCCESS };
    let args = std::env::var(ARGS).unwrap();
    let mut fake = Fake::new(serde_json::from_str(&behaviour).unwrap(), &args);
    let mut sigterm = signal(SignalKind::terminate()).unwrap();
    fake.run(&mut sigterm).await
}

struct Fake {
    behaviour: Behaviour,
    name: String,
    uuid: String,
    listener: UnixListener,
    status: &'static str,
    commands: u32,
}

/// Why a conversation is over.
enum Over {
    /// The other side closed; it may connect again.
    Hangup,
    Exit(ExitCode),
}

impl Fake {
    fn new(behaviour: Behaviour, args: &str) -> Self {
        let args: Vec<&str> = args.lines().collect();
        let value_of = |option: &str| {
            args.iter()
                .position(|arg| *arg == option)
                .and_then(|at| args.get(at + 1))
                .copied()
                .unwrap_or_default()
        };
        let monitor = args.iter().find(|arg| arg.contains("id=charmonitor")).expect("a monitor");
        let number = monitor.split(',').find_map(|part| part.strip_prefix("fd=")).expect("its descriptor");
        let name = value_of("-name").split(',').next().unwrap_or_default();
        Self {
            behaviour,
            name: name.strip_prefix("guest=").unwrap_or(name).to_owned(),
            uuid: value_of("-uuid").to_owned(),
            listener: inherited(number.parse().unwrap()),
            status: "prelaunch",
            commands: 0,
        }
    }

    async fn run(&mut self, sigterm: &mut Signal) -> ExitCode {
        if let Some(Over::Exit(code)) = self.misbehave("start").await {
            return code;
        }
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted.unwrap().0,
                _ = sigterm.recv(), if !self.behaviour.ignore_sigterm => return ExitCode::SUCCESS,
            };
            if let Over::Exit(code) = self.converse(stream, sigterm).await {
                return code;
            }
        }
    }

    async fn converse(&mut self, stream: UnixStream, sigterm: &mut Signal) -> Over {
        let (read, mut write) = stream.into_split();
        let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "fake" });
        send(&mut write, &json!({ "QMP": { "version": version, "capabilities": [] } }).to_string()).await;
        let mut lines = BufReader::new(read).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line,
                _ = sigterm.recv(), if !self.behaviour.ignore_sigterm => {
                    let data = json!({ "guest": false, "reason": "host-signal" });
                    send(&mut write, &event("SHUTDOWN", &data)).await;
                    if self.behaviour.report_sigterm {
                        continue;
                    }
                    return Over::Exit(ExitCode::SUCCESS);
                }
            };
            let Ok(Some(line)) = line else { return Over::Hangup };
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap_or_default().to_owned();
            self.commands += 1;
            // A hang ignores the other side, not a signal.
            let over = tokio::select! {
                over = async { self.stall().await; self.misbehave(&name).await } => over,
                _ = sigterm.recv(), if !self.behaviour.ignore_sigterm => Some(Over::Exit(ExitCode::SUCCESS)),
            };
            if let Some(over) = over {
                return over;
            }
            if self.behaviour.flood_at.as_ref() == Some(&name) {
                flood(&mut write).await;
                return Over::Hangup;
            }
            if self.behaviour.storm_at.as_ref() == Some(&name) {
                storm(&mut write).await;
            }
            let mut reply = if self.behaviour.garbage_at.as_ref() == Some(&name) {
                Value::from("garbage")
            } else {
                self.answer(&name)
            };
            if let Value::Object(reply) = &mut reply {
                reply.insert("id".to_owned(), command["id"].clone());
            }
            send(&mut write, &reply.to_string()).await;
            for (name, data) in self.behaviour.events.get(&name).into_iter().flatten() {
                send(&mut write, &event(name, data)).await;
            }
            if name == "quit" {
                return Over::Exit(ExitCode::SUCCESS);
            }
        }
    }

    async fn stall(&self) {
        let Behaviour { stall_ms, hang_after, .. } = self.behaviour;
        if (1..self.commands).contains(&hang_after) {
            eprintln!("hangs");
            std::future::pending::<()>().await;
        }
        // Each run of the standard library has a seed of its own.
        let random = RandomState::new().hash_one(self.commands);
        let stall = Duration::from_millis(random.checked_rem(stall_ms).unwrap_or(0));
        let _ = tokio::time::timeout(stall, std::future::pending::<()>()).await;
    }

    async fn misbehave(&self, at: &str) -> Option<Over> {
        if self.behaviour.die_at.as_deref() == Some(at) {
            eprintln!("{}", self.behaviour.last_words);
            return Some(Over::Exit(ExitCode::FAILURE));
        }
        if self.behaviour.hang_at.as_deref() == Some(at) {
            std::future::pending::<()>().await;
        }
        if self.behaviour.close_at.as_deref() == Some(at) {
            return Some(Over::Hangup);
        }
        None
    }

    fn answer(&mut self, command: &str) -> Value {
        if let Some(reason) = self.behaviour.refuse.get(command) {
            return json!({ "error": { "class": "GenericError", "desc": reason } });
        }
        if let Some(reply) = self.behaviour.replies.get(command) {
            return json!({ "return": reply });
        }
        let reply = match command {
            "query-status" => json!({ "status": self.status, "running": self.status == "running" }),
            "query-name" => json!({ "name": self.name }),
            "query-uuid" => json!({ "UUID": self.uuid }),
            "query-cpus-fast" => {
                let path = "/machine/unattached/device[0]";
                json!([{ "cpu-index": 0, "thread-id": std::process::id(), "qom-path": path, "target": "x86_64" }])
            }
            "query-dump" => json!({ "status": "completed", "completed": 1, "total": 1 }),
            "query-balloon" => json!({ "actual": 128 << 20 }),
            "query-chardev"
            | "query-iothreads"
            | "query-block"
            | "query-blockstats"
            | "query-named-block-nodes"
            | "qom-get"
            | "qom-list"
            | "query-rx-filter" => json!([]),
            "human-monitor-command" => json!(""),
            "query-cpu-model-expansion" => json!({ "model": { "name": "base", "props": {} } }),
            "cont" => {
                self.status = "running";
                json!({})
            }
            "stop" => {
                self.status = "paused";
                json!({})
            }
            _ => json!({}),
        };
        json!({ "return": reply })
    }
}

fn event(name: &str, data: &Value) -> String {
    let mut event = json!({ "timestamp": { "seconds": 1, "microseconds": 0 }, "event": name });
    if !data.is_null() {
        event["data"] = data.clone();
    }
    event.to_string()
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), line: &str) {
    // Nobody may be there any more.
    let _ = stream.write_all(format!("{line}\r\n").as_bytes()).await;
}

/// Half of a reply: it has no end.
async fn flood(stream: &mut (impl AsyncWriteExt + Unpin)) {
    let mebibyte = vec![b'x'; 1 << 20];
    let mut sent = stream.write_all(br#"{"return": {"status": ""#).await;
    for _ in 0..1024 {
        if sent.is_err() {
            return;
        }
        sent = stream.write_all(&mebibyte).await;
    }
}

async fn storm(stream: &mut (impl AsyncWriteExt + Unpin)) {
    let many =
        format!("{}\r\n", event("RTC_CHANGE", &json!({ "offset": 1, "qom-path": "/rtc" }))).repeat(1000);
    for _ in 0..20 {
        if stream.write_all(many.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A descriptor that this process was started with.
fn inherited(number: i32) -> UnixListener {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let listener: OwnedFd = pidfd_getfd(this, number, PidfdGetfdFlags::empty()).unwrap();
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true).unwrap();
    UnixListener::from_std(listener).unwrap()
}
