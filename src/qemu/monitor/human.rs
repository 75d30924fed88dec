//! A QEMU whose only monitor is for humans: QMP's most needed commands, said in that monitor's words.
//!
//! ```text
//!  Monitor ── QMP over a pair of sockets ──► translator ── one line, then its output up to the next prompt ──► QEMU
//! ```
//!
//! Such a monitor reports no events, and for most commands it has no words: those are refused. What has them is
//! enough to look at a guest, to stop it, to let it go on, and to end it.

use std::io;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// How it asks for the next command.
const PROMPT: &[u8] = b"(qemu) ";
/// What it may print in answer to one command.
const MAX_OUTPUT: usize = 1024 * 1024;
/// It echoes a line anew for each character of it, so longer ones are not worth it.
const MAX_LINE: usize = 1000;

/// The human's side of the conversation.
#[derive(Debug)]
pub(super) struct Human {
    stream: UnixStream,
}

/// Why a command was not done; in QMP's form.
struct Refusal {
    class: &'static str,
    text: String,
}

impl Human {
    /// Waits until QEMU asks for a command.
    pub(super) async fn greeted(stream: UnixStream) -> io::Result<Self> {
        let mut human = Self { stream };
        human.output().await?;
        Ok(human)
    }

    /// Answers QMP's commands until either side is gone. The other side sends one command per line.
    pub(super) async fn serve(mut self, qmp: UnixStream) -> io::Result<()> {
        let (read, mut write) = qmp.into_split();
        let version = json!({ "qemu": { "major": 0, "minor": 0, "micro": 0 }, "package": "" });
        let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
        write.write_all(format!("{greeting}\r\n").as_bytes()).await?;
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            let command: Value = serde_json::from_str(&line).map_err(io::Error::other)?;
            let mut reply = Map::new();
            match self.run(&command).await? {
                Ok(value) => reply.insert("return".to_owned(), value),
                Err(Refusal { class, text }) => {
                    reply.insert("error".to_owned(), json!({ "class": class, "desc": text }))
                }
            };
            if let Some(id) = command.get("id") {
                reply.insert("id".to_owned(), id.clone());
            }
            write.write_all(format!("{}\r\n", Value::Object(reply)).as_bytes()).await?;
        }
        Ok(())
    }

    async fn run(&mut self, command: &Value) -> io::Result<Result<Value, Refusal>> {
        let name = command.get("execute").and_then(Value::as_str).unwrap_or_default();
        let argument = |name: &str| command.pointer(&format!("/arguments/{name}"));
        let asked = match name {
            "qmp_capabilities" => return Ok(Ok(json!({}))),
            "query-status" => "info status",
            "query-name" => "info name",
            "query-uuid" => "info uuid",
            "query-kvm" => "info kvm",
            "query-cpus-fast" => "info cpus",
            "query-chardev" => "info chardev",
            "stop" | "cont" | "quit" | "system_powerdown" | "system_reset" => name,
            "inject-nmi" => "nmi",
            "human-monitor-command" => argument("command-line").and_then(Value::as_str).unwrap_or_default(),
            _ => {
                let text = format!("the guest has a monitor for humans only, which has no words for {name}");
                return Ok(Err(Refusal { class: "CommandNotFound", text }));
            }
        };
        if asked.len() > MAX_LINE || asked.contains(char::is_control) {
            let text = format!("a monitor for humans takes one line of at most {MAX_LINE} characters");
            return Ok(Err(Refusal { class: "GenericError", text }));
        }
        self.stream.write_all(format!("{asked}\r").as_bytes()).await?;
        let output = self.output().await?;
        Ok(understand(name, &output))
    }

    /// What is printed until it asks for the next command, without the echo of the last one.
    async fn output(&mut self) -> io::Result<String> {
        let mut output = Vec::new();
        loop {
            let at_line = |rest: &[u8]| rest.is_empty() || rest.ends_with(b"\n");
            if output.strip_suffix(PROMPT).is_some_and(at_line) {
                break;
            }
            if output.len() > MAX_OUTPUT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            if self.stream.read_buf(&mut output).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let text = String::from_utf8_lossy(&output);
        let (_echo, printed) = text.split_once("\r\n").unwrap_or_default();
        let printed = printed.strip_suffix("(qemu) ").unwrap_or(printed);
        Ok(printed.replace("\r\n", "\n"))
    }
}

/// What was printed, as QMP would have put it.
fn understand(name: &str, output: &str) -> Result<Value, Refusal> {
    let line = output.trim();
    let strange = || Refusal { class: "GenericError", text: format!("strange answer to {name}: {line}") };
    Ok(match name {
        "query-status" => {
            let words = line.strip_prefix("VM status: ").ok_or_else(strange)?;
            let (word, detail) = words.split_once(' ').unwrap_or((words, ""));
            let detail = detail.trim_start_matches('(').trim_end_matches(')');
            json!({ "running": word == "running", "status": if detail.is_empty() { word } else { detail } })
        }
        "query-name" if line.is_empty() => json!({}),
        "query-name" => json!({ "name": line }),
        "query-uuid" => json!({ "UUID": line }),
        "query-kvm" => json!({ "enabled": line == "kvm support: enabled", "present": true }),
        "query-cpus-fast" => output.lines().filter_map(cpu).collect(),
        "query-chardev" => output.lines().filter_map(chardev).collect(),
        "human-monitor-command" => output.into(),
        _ if line.is_empty() => json!({}),
        _ => return Err(Refusal { class: "GenericError", text: line.to_owned() }),
    })
}

/// Takes an output as the answer to each question; how many take it.
pub(super) fn understood(output: &str) -> usize {
    const QUESTIONS: [&str; 7] = [
        "query-status",
        "query-name",
        "query-uuid",
        "query-kvm",
        "query-cpus-fast",
        "query-chardev",
        "human-monitor-command",
    ];
    QUESTIONS.into_iter().filter(|name| understand(name, output).is_ok()).count()
}

/// `* CPU #0: thread_id=123`
fn cpu(line: &str) -> Option<Value> {
    let (index, rest) = line.trim_start_matches(['*', ' ']).strip_prefix("CPU #")?.split_once(':')?;
    let index: u32 = index.parse().ok()?;
    let thread: u32 = rest.trim().strip_prefix("thread_id=")?.parse().ok()?;
    Some(json!({ "cpu-index": index, "thread-id": thread, "qom-path": "" }))
}

/// `serial0: filename=pty:/dev/pts/0`
fn chardev(line: &str) -> Option<Value> {
    let (label, filename) = line.split_once(": filename=")?;
    Some(json!({ "label": label, "filename": filename }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_human_reads_is_what_qmp_says() {
        for (name, output, expected) in [
            ("query-status", "VM status: running\n", json!({ "running": true, "status": "running" })),
            (
                "query-status",
                "VM status: paused (prelaunch)\n",
                json!({ "running": false, "status": "prelaunch" }),
            ),
            ("query-status", "VM status: paused\n", json!({ "running": false, "status": "paused" })),
            ("query-name", "", json!({})),
            ("query-name", "web\n", json!({ "name": "web" })),
            ("query-kvm", "kvm support: disabled\n", json!({ "enabled": false, "present": true })),
            (
                "query-cpus-fast",
                "* CPU #0: thread_id=20352\n  CPU #1: thread_id=20353\n",
                json!([
                    { "cpu-index": 0, "thread-id": 20352, "qom-path": "" },
                    { "cpu-index": 1, "thread-id": 20353, "qom-path": "" }
                ]),
            ),
            (
                "query-chardev",
                "m: filename=unix:/m,server=on\nserial0: filename=pty:/dev/pts/0\n",
                json!([
                    { "label": "m", "filename": "unix:/m,server=on" },
                    { "label": "serial0", "filename": "pty:/dev/pts/0" }
                ]),
            ),
            ("stop", "", json!({})),
        ] {
            assert_eq!(understand(name, output).ok(), Some(expected), "{name} {output:?}");
        }
        assert!(understand("stop", "unknown command: 'stop'\n").is_err());
        assert!(understand("query-status", "no idea\n").is_err());
    }

    #[tokio::test]
    async fn a_command_s_echo_and_the_prompt_are_no_part_of_its_output() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let say = "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ";
        qemu.write_all(say.as_bytes()).await.unwrap();
        let mut human = Human::greeted(ours).await.unwrap();
        qemu.write_all(b"i\x1b[K\x1b[Din\x1b[K\r\nthe (qemu) \r\nend\r\n(qemu) ").await.unwrap();
        assert_eq!(human.output().await.unwrap(), "the (qemu) \nend\n");
        drop(qemu);
        assert!(human.output().await.is_err());
    }
}
