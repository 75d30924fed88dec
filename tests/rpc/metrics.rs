//! Numbers for Prometheus: who may ask what, and what it is answered.

use std::path::Path;

use ferrovirt::daemon::Daemon;
use ferrovirt_protocol::remote::procedure::ConnectGetLibVersion;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::daemon::{connect, serve, setup};
use crate::world::{call, open, soon};

async fn ask(socket: &Path, question: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn calls_clients_and_guests_are_counted() {
    let root = TempDir::new().unwrap();
    let socket = root.path().join("metrics");
    let settings = format!("metrics_listen = 'unix:{}'", socket.display());
    // A name that a killed daemon left.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (stop, serving) = serve(Daemon::start(setup(root.path(), &settings)).await.unwrap());
    let client = connect(root.path(), "libvirt-sock").await;
    open(&client, 0).await.unwrap();
    for _ in 0..3 {
        call::<ConnectGetLibVersion>(&client, ()).await.unwrap();
    }
    let answer = ask(&socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", text.len())), "{head}");
    for line in [
        "ferrovirt_clients{server=\"libvirtd\"} 1",
        "ferrovirt_calls_total{api=\"virConnectGetLibVersion\",procedure=\"connect_get_lib_version\",outcome=\"ok\"} 3",
        "ferrovirt_calls_total{api=\"virConnectGetLibVersion\",procedure=\"connect_get_lib_version\",outcome=\"error\"} 0",
        "ferrovirt_call_duration_seconds_bucket{api=\"virConnectGetLibVersion\",procedure=\"connect_get_lib_version\",le=\"+Inf\"} 3",
        "ferrovirt_call_duration_seconds_count{api=\"virConnectGetLibVersion\",procedure=\"connect_get_lib_version\"} 3",
        "libvirt_up 1",
        "libvirt_domains_number 0",
        "ferrovirt_domains{state=\"running\"} 0",
    ] {
        assert!(text.lines().any(|told| told == line), "no {line} in {text}");
    }
    drop(stop);
    soon(serving).await.unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_is_no_question_is_refused() {
    let root = TempDir::new().unwrap();
    let socket = root.path().join("metrics");
    let settings = format!("metrics_listen = 'unix:{}'", socket.display());
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), &settings)).await.unwrap());
    for (question, status) in [
        ("GET /healthz HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET /metrics?x=y HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("\u{0}\u{1}garbage\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = ask(&socket, question).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{question:?}: {answer}");
    }
    let endless = "x".repeat(20_000);
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    // It is closed before all of it is taken.
    let _ = stream.write_all(endless.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));
    assert!(ask(&socket, "GET /healthz HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\nok\n"));
}

#[tokio::test]
async fn a_place_that_is_taken_is_no_place() {
    let root = TempDir::new().unwrap();
    let precious = root.path().join("precious");
    std::fs::write(&precious, "years of work").unwrap();
    let settings = format!("metrics_listen = 'unix:{}'", precious.display());
    assert!(Daemon::start(setup(root.path(), &settings)).await.is_err());
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "years of work");
}

#[tokio::test]
async fn scrapes_that_say_nothing_hold_up_no_other() {
    let root = TempDir::new().unwrap();
    let socket = root.path().join("metrics");
    let settings = format!("metrics_listen = 'unix:{}'", socket.display());
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), &settings)).await.unwrap());
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
    }
    assert!(ask(&socket, "GET /healthz HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\nok\n"));
    // Before the time of the last of them was up.
    for silent in &silent[75..] {
        let heard = silent.try_read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock));
    }
    assert_eq!(soon(silent[0].read(&mut [0; 8])).await.unwrap(), 0);
}
