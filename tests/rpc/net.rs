//! Clients that come over the network: stock virsh over TCP and TLS, and who is not let in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ferrovirt::daemon::Daemon;
use ferrovirt_compat::{Ran, run};
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::remote::procedure::ConnectGetType;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
