//! The program itself: in the background, its end, its refusals to start.

use std::path::Path;
use std::time::Duration;

use ferrovirt::util::process::{Captured, Command};
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::remote::procedure::ConnectGetType;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::world::{call, open, soon};

/// Runs the daemon's program in `directory` to its end, or to its parent's end.
async fn run(directory: &Path, args: &[&str]) -> Captured {
    let command = Command::new(env!("CARGO_BIN_EXE_ferrovirtd")).args(args).directory(directory);
    command.capture(Duration::from_secs(100), 65536).await.unwrap()
}

#[tokio::test]
async fn in_the_background_it_is_ready_when_its_parent_returns_and_goes_on_sigterm() {
    let directory = TempDir::new().unwrap();
    let started = run(directory.path(), &["-d", "--root", "here", "-p", "my.pid"]).await;
    assert!(started.exit.success(), "{started:?}");
    let pid_file = directory.path().join("my.pid");
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let socket = UnixStream::connect(directory.path().join("here/run/libvirt/libvirt-sock")).await.unwrap();
    let (client, _events) = Client::unix(socket);
    open(&client, 0).await.unwrap();
    assert_eq!(call::<ConnectGetType>(&client, ()).await.unwrap().r#type, "QEMU");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    soon(client.closed()).await;
    let gone = async {
        while pid_file.exists() {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}

#[tokio::test]
async fn it_ends_when_nobody_needs_it() {
    let directory = TempDir::new().unwrap();
    let ended = run(directory.path(), &["--root", ".", "--timeout=1"]).await;
    assert!(ended.exit.success(), "{ended:?}");
}

#[tokio::test]
async fn it_says_why_it_does_not_start() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("bad.conf"), "\nmax_clients =\n").unwrap();
    for (args, reason) in [
        (
            &["--root", ".", "-f", "bad.conf"][..],
            "ferrovirtd: configuration file syntax error: bad.conf:2: expecting a value",
        ),
        (
            &["--root", ".", "-d", "-f", "none.conf"],
            "ferrovirtd: cannot read configuration file none.conf: No such file or directory",
        ),
        (&["--root", "bad.conf"], "ferrovirtd: cannot read configuration file "),
        (&["--bogus"], "error: unexpected argument '--bogus' found"),
    ] {
        let refused = run(directory.path(), args).await;
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.exit.success() && said.starts_with(reason), "{args:?}: {said}");
    }
}
