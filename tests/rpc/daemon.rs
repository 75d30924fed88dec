//! A whole daemon on a private root: sockets, pid files, limits, its end.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use ferrovirt::config::Config;
use ferrovirt::config::qemu::QemuConfig;
use ferrovirt::daemon::{Daemon, Setup};
use ferrovirt::logging::Logging;
use ferrovirt::util::paths::Paths;
use ferrovirt_protocol::admin;
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::remote::procedure::*;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::world::{call, open, said, soon};

pub(crate) fn setup(root: &Path, settings: &str) -> Setup {
    let config = Config::read(Path::new("test.conf"), settings).unwrap();
    Setup {
        paths: Paths::system(root),
        config,
        qemu: QemuConfig::default(),
        secrets: Default::default(),
        search_path: "/nowhere".into(),
        pid_file: None,
        logging: Logging::default(),
        activated: Vec::new(),
        idle: None,
        listen: false,
    }
}

/// Serves until the sender is used or dropped.
pub(crate) fn serve(daemon: Daemon) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(daemon.serve(async move {
        let _ = stopped.await;
    }));
    (stop, serving)
}

pub(crate) async fn connect(root: &Path, name: &str) -> Client {
    let socket = UnixStream::connect(root.join("run/libvirt").join(name)).await.unwrap();
    Client::unix(socket).0
}

#[tokio::test]
async fn every_socket_leads_to_its_server_and_goes_with_the_daemon() {
    let root = TempDir::new().unwrap();
    let settings = "unix_sock_rw_perms = '0770'";
    let (stop, serving) = serve(Daemon::start(setup(root.path(), settings)).await.unwrap());
    for (name, mode) in [
        ("libvirt-sock", 0o770),
        ("virtqemud-sock", 0o770),
        ("libvirt-sock-ro", 0o777),
        ("virtqemud-sock-ro", 0o777),
        ("libvirt-admin-sock", 0o700),
        ("virtqemud-admin-sock", 0o700),
    ] {
        let metadata = root.path().join("run/libvirt").join(name).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
        let client = connect(root.path(), name).await;
        if name.contains("admin") {
            let args = admin::ConnectOpenArgs::default();
            soon(client.call::<admin::procedure::ConnectOpen>(&args)).await.unwrap();
            continue;
        }
        soon(open(&client, 0)).await.unwrap();
        assert_eq!(soon(client.call::<ConnectGetUri>(&())).await.unwrap().uri, "qemu:///system");
        let create = call::<DomainCreate>(&client, Default::default()).await;
        assert_eq!(said(create).0 == 29, name.ends_with("-ro"), "{name}");
    }
    stop.send(()).unwrap();
    soon(serving).await.unwrap();
    let left = std::fs::read_dir(root.path().join("run/libvirt")).unwrap();
    let left: Vec<_> = left.map(Result::unwrap).filter(|it| it.file_type().unwrap().is_socket()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!root.path().join("run/libvirtd.pid").exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused_by_the_firsts_pid() {
    let root = TempDir::new().unwrap();
    let first = Daemon::start(setup(root.path(), "")).await.unwrap();
    let refused = Daemon::start(setup(root.path(), "")).await.unwrap_err().to_string();
    let pid_file = root.path().join("run/libvirtd.pid");
    let (pid_file, pid) = (pid_file.display(), std::process::id());
    assert_eq!(refused, format!("another daemon serves this directory: {pid_file} is held by process {pid}"));
    drop(first);
    drop(Daemon::start(setup(root.path(), "")).await.unwrap());
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("run/libvirt/libvirt-sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), "")).await.unwrap());
    soon(open(&connect(root.path(), "libvirt-sock").await, 0)).await.unwrap();
}

#[tokio::test]
async fn a_client_over_the_limit_waits_for_room() {
    let root = TempDir::new().unwrap();
    let settings = "max_clients = 1";
    let (_stop, _serving) = serve(Daemon::start(setup(root.path(), settings)).await.unwrap());
    let first = connect(root.path(), "libvirt-sock").await;
    soon(open(&first, 0)).await.unwrap();
    let second = connect(root.path(), "libvirt-sock").await;
    let waiting = tokio::spawn(async move { open(&second, 0).await });
    for _ in 0..200 {
        soon(first.call::<ConnectGetType>(&())).await.unwrap();
    }
    assert!(!waiting.is_finished());
    first.close();
    soon(waiting).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_daemon_nobody_needs_knows_it() {
    let root = TempDir::new().unwrap();
    let daemon = Daemon::start(setup(root.path(), "")).await.unwrap();
    daemon.administration().set_idle(Some(Duration::from_secs(120)));
    let idle = tokio::spawn(daemon.idle());
    let (_stop, _serving) = serve(daemon);
    let client = connect(root.path(), "libvirt-sock").await;
    open(&client, 0).await.unwrap();
    tokio::time::advance(Duration::from_secs(500)).await;
    client.call::<ConnectGetType>(&()).await.unwrap();
    assert!(!idle.is_finished());
    let left = tokio::time::Instant::now();
    client.close();
    idle.await.unwrap();
    assert!(left.elapsed() >= Duration::from_secs(120));
}

#[tokio::test]
async fn what_others_put_in_place_of_a_socket_is_neither_followed_nor_removed() {
    let root = TempDir::new().unwrap();
    let runtime = root.path().join("run/libvirt");
    std::fs::create_dir_all(&runtime).unwrap();
    let victim = root.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    for name in ["libvirt-sock", "libvirt-sock-ro"] {
        std::os::unix::fs::symlink(&victim, runtime.join(name)).unwrap();
    }
    let (stop, serving) = serve(Daemon::start(setup(root.path(), "")).await.unwrap());
    let client = connect(root.path(), "libvirt-sock").await;
    soon(open(&client, 0)).await.unwrap();
    // And while it runs: a file, and a socket that leads elsewhere.
    let [file, socket] = ["libvirt-sock", "virtqemud-sock"].map(|name| runtime.join(name));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "somebody's").unwrap();
    std::fs::remove_file(&socket).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    soon(client.call::<ConnectGetType>(&())).await.unwrap();
    soon(open(&connect(root.path(), "virtqemud-sock-ro").await, 0)).await.unwrap();
    stop.send(()).unwrap();
    soon(serving).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
    assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
    assert!(!runtime.join("libvirt-sock-ro").exists());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(victim.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}
