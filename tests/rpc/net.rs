//! Clients that come over the network: stock virsh over TCP and TLS, and who is not let in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ferrovirt::daemon::Daemon;
use ferrovirt::util::fds::Activated;
use ferrovirt_compat::{Ran, run};
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::remote::procedure::ConnectGetType;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::authority::Authority;
use crate::daemon::{connect, serve, setup};
use crate::world::{open, soon};

impl Authority {
    /// The files that virsh takes with `pkipath`.
    pub(crate) fn client_files(&self, name: &str) -> TempDir {
        let directory = TempDir::new().unwrap();
        let (certificate, key) = self.certify(name);
        for (file, text) in
            [("cacert.pem", &self.certificate), ("clientcert.pem", &certificate), ("clientkey.pem", &key)]
        {
            fs::write(directory.path().join(file), text).unwrap();
        }
        directory
    }

    pub(crate) fn serve_from(&self, root: &Path) {
        let pki = root.join("etc/pki");
        fs::create_dir_all(pki.join("CA")).unwrap();
        fs::create_dir_all(pki.join("libvirt/private")).unwrap();
        let (certificate, key) = self.certify("server");
        fs::write(pki.join("CA/cacert.pem"), &self.certificate).unwrap();
        fs::write(pki.join("libvirt/servercert.pem"), certificate).unwrap();
        fs::write(pki.join("libvirt/private/serverkey.pem"), key).unwrap();
    }
}

async fn listening(root: &Path, settings: &str) -> Daemon {
    let mut setup =
        setup(root, &format!("listen_addr = '127.0.0.1'\ntcp_port = '0'\ntls_port = '0'\n{settings}"));
    setup.listen = true;
    Daemon::start(setup).await.unwrap()
}

async fn virsh(uri: String, command: &'static str) -> Ran {
    tokio::task::spawn_blocking(move || run("virsh", &["-c", &uri, command])).await.unwrap()
}

fn tls_uri(port: u16, files: &TempDir) -> String {
    format!("qemu+tls://127.0.0.1:{port}/system?pkipath={}", files.path().display())
}

#[tokio::test]
async fn virsh_comes_over_tcp_where_it_is_asked_for() {
    let root = TempDir::new().unwrap();
    let daemon = listening(root.path(), "listen_tls = 0\nlisten_tcp = 1\nauth_tcp = 'none'").await;
    let port = daemon.net_listeners()[0].address().unwrap().port();
    let admin = Arc::clone(daemon.administration());
    let (_stop, _serving) = serve(daemon);
    let said = virsh(format!("qemu+tcp://127.0.0.1:{port}/system"), "uri").await.ok();
    assert!(said.contains(&format!("qemu+tcp://127.0.0.1:{port}/system")), "{said}");

    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let ours = socket.local_addr().unwrap();
    let client = Client::new(socket).0;
    soon(open(&client, 0)).await.unwrap();
    let peers: Vec<_> = admin
        .server("libvirtd")
        .unwrap()
        .clients()
        .iter()
        .map(|client| format!("{:?}", client.peer))
        .collect();
    assert!(peers.iter().any(|peer| peer.contains(&ours.to_string())), "{peers:?}");
}

#[tokio::test]
async fn nothing_listens_unless_asked_and_no_protection_is_left_out_in_silence() {
    let root = TempDir::new().unwrap();
    let mut without_certificates = setup(root.path(), "");
    without_certificates.listen = true;
    let refusal = Daemon::start(without_certificates).await.unwrap_err().to_string();
    assert!(refusal.contains("servercert.pem"), "{refusal}");
    let quiet = Daemon::start(setup(root.path(), "listen_tcp = 1\nauth_tcp = 'none'")).await.unwrap();
    assert!(quiet.net_listeners().is_empty());
}

#[tokio::test]
async fn virsh_comes_over_tls_with_a_certificate_and_an_allowed_name() {
    let root = TempDir::new().unwrap();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    ours.serve_from(root.path());
    let daemon = listening(root.path(), "tls_allowed_dn_list = [ 'O=test,CN=good*' ]").await;
    let port = daemon.net_listeners()[0].address().unwrap().port();
    let admin = Arc::clone(daemon.administration());
    let (_stop, _serving) = serve(daemon);

    let good = ours.client_files("good one");
    assert_eq!(virsh(tls_uri(port, &good), "list").await.ok().lines().count(), 3);
    let bad = ours.client_files("bad one");
    assert!(!virsh(tls_uri(port, &bad), "list").await.success, "its name is not on the list");
    let stranger = others.client_files("good one");
    fs::write(stranger.path().join("cacert.pem"), &ours.certificate).unwrap();
    assert!(!virsh(tls_uri(port, &stranger), "list").await.success, "somebody else signed it");

    // New certificates count from the moment they are read.
    others.serve_from(root.path());
    assert!(virsh(tls_uri(port, &good), "list").await.success);
    admin.server("libvirtd").unwrap().tls().unwrap().reload().unwrap();
    assert!(!virsh(tls_uri(port, &good), "list").await.success);
    let other = others.client_files("good one");
    assert!(virsh(tls_uri(port, &other), "list").await.success);
    fs::write(root.path().join("etc/pki/libvirt/servercert.pem"), "torn").unwrap();
    assert!(admin.server("libvirtd").unwrap().tls().unwrap().reload().is_err());
    assert!(virsh(tls_uri(port, &other), "list").await.success, "those of before stay in use");
}

#[tokio::test]
async fn those_who_stop_in_the_handshake_hold_up_no_local_client() {
    let root = TempDir::new().unwrap();
    Authority::new("ours").serve_from(root.path());
    let daemon = listening(root.path(), "max_anonymous_clients = 3").await;
    let address = daemon.net_listeners()[0].address().unwrap();
    let (_stop, _serving) = serve(daemon);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let local = connect(root.path(), "libvirt-sock").await;
    soon(open(&local, 0)).await.unwrap();
    soon(local.call::<ConnectGetType>(&())).await.unwrap();
    // Once they have left there is room again, and what is no handshake is closed.
    drop(silent);
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[0; 4096]).await.unwrap();
    let mut answer = Vec::new();
    // Whether in order or not.
    let _closed = soon(garbage.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn one_address_keeps_no_other_out() {
    let root = TempDir::new().unwrap();
    Authority::new("ours").serve_from(root.path());
    // Half of them are the most for one address.
    let daemon = listening(root.path(), "max_anonymous_clients = 8").await;
    let address = daemon.net_listeners()[0].address().unwrap();
    let (_stop, _serving) = serve(daemon);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(address).await.unwrap();
    other.write_all(b"no greeting of TLS").await.unwrap();
    let mut answer = Vec::new();
    let _closed = soon(other.read_to_end(&mut answer)).await;
    assert!(!answer.is_empty(), "told what is wrong with it");
    // Before the time of those was up.
    for silent in &silent {
        let heard = silent.try_read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock));
    }
}

#[tokio::test]
async fn network_sockets_of_a_service_manager_are_told_by_name_or_port() {
    let root = TempDir::new().unwrap();
    let authority = Authority::new("ours");
    authority.serve_from(root.path());
    let bound = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets = [bound(), bound(), bound()];
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
    let names = ["libvirtd-tls.socket", "libvirtd-tcp.socket", "unknown"];
    let activated = || {
        let sockets = sockets.iter().zip(names);
        sockets.map(|(socket, name)| Activated {
            socket: socket.try_clone().unwrap().into(),
            name: name.to_owned(),
        })
    };
    let with = |settings: &str| {
        // Whatever --listen and its settings say.
        let mut setup = setup(root.path(), &format!("auth_tcp = 'none'\nlisten_tls = 0\n{settings}"));
        setup.activated = activated().collect();
        setup
    };
    let refused = Daemon::start(with("")).await.unwrap_err().to_string();
    assert!(
        refused.contains("socket 'unknown' of the service manager has no name or port of ours"),
        "{refused}"
    );
    let daemon = Daemon::start(with(&format!("tcp_port = '{}'", ports[2]))).await.unwrap();
    let (stop, serving) = serve(daemon);
    let files = authority.client_files("somebody");
    virsh(tls_uri(ports[0], &files), "list").await.ok();
    for port in &ports[1..] {
        virsh(format!("qemu+tcp://127.0.0.1:{port}/system"), "list").await.ok();
    }
    // The host's own sockets are the daemon's to bind.
    soon(open(&connect(root.path(), "libvirt-sock").await, 0)).await.unwrap();
    stop.send(()).unwrap();
    soon(serving).await.unwrap();
}
