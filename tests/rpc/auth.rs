//! Clients that have to show who they are: by SASL with stock virsh, by polkit, in order, in time, in turn.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ferrovirt::daemon::Daemon;
use ferrovirt::rpc::access::Access;
use ferrovirt::rpc::access::about;
use ferrovirt::rpc::access::polkit::PolkitDriver;
use ferrovirt::rpc::auth::identity::PeerProcess;
use ferrovirt::rpc::auth::polkit::Polkit;
use ferrovirt::rpc::auth::{Authentication, SaslRules};
use ferrovirt::rpc::handlers;
use ferrovirt::rpc::places::{Newcomer, Turn};
use ferrovirt::rpc::session::{Peer, Rights};
use ferrovirt::rpc::transport::UnixTransport;
use ferrovirt_compat::{Ran, run};
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::frame::{self, FrameType, Header, Status};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::authority::Authority;
use crate::bus::{Bus, FakePolkit, verdict};
use crate::daemon::{connect, serve, setup};
use crate::world::{World, call, open, said, soon};

/// What a client is told, whatever the reason.
fn refused() -> (i32, i32, String) {
    (45, 7, "authentication failed: authentication failed".to_owned())
}

// ---- SASL ----

/// Configuration and passwords: one for all tests, for the library reads it once in a process.
fn sasl() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        // It outlives every test, so the next run clears it away.
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sasl");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let place = directory.display();
        let settings = format!(
            "mech_list: SCRAM-SHA-512 SCRAM-SHA-256 DIGEST-MD5 PLAIN\npwcheck_method: auxprop saslauthd\n\
             sasldb_path: {place}/passwd.db\nsaslauthd_path: {place}/mux\n"
        );
        fs::write(directory.join("libvirt.conf"), settings).unwrap();
        for (user, password) in [("fred", "secret"), ("guest", "guest")] {
            let script =
                format!("printf %s {password} | saslpasswd2 -p -c -a libvirt -f {place}/passwd.db {user}");
            run("sh", &["-c", &script]).ok();
        }
        let socket = UnixListener::bind(directory.join("mux")).unwrap();
        std::thread::spawn(move || socket.incoming().flatten().for_each(judge));
        directory
    })
}

type Question = std::os::unix::net::UnixStream;

/// Who hears of questions about a user, and answers them or does not.
static HEARERS: Mutex<Vec<(&str, mpsc::Sender<Question>)>> = Mutex::new(Vec::new());

/// What the library asks about whom it does not know, by name and password; nobody is let in unheard.
fn judge(mut question: Question) {
    let mut said = [0; 256];
    let length = question.read(&mut said).unwrap_or(0);
    let is_about = |user: &str| said[..length].windows(user.len()).any(|part| part == user.as_bytes());
    match HEARERS.lock().unwrap().iter().find(|(user, _)| is_about(user)) {
        Some((_, hearer)) => hearer.send(question).unwrap_or_default(),
        None => question.write_all(b"\0\x02NO").unwrap_or_default(),
    }
}

/// Questions about a user, from now on.
fn questions(user: &'static str) -> mpsc::Receiver<Question> {
    let (hearer, questions) = mpsc::channel();
    sasl();
    HEARERS.lock().unwrap().push((user, hearer));
    questions
}

const NAMES: &str = "sasl_allowed_username_list = [ 'fred*', 'slow*' ]\n";

async fn listening(root: &Path, settings: &str) -> Daemon {
    let settings = format!("listen_addr = '127.0.0.1'\ntcp_port = '0'\ntls_port = '0'\n{NAMES}{settings}");
    let mut setup = setup(root, &settings);
    setup.listen = true;
    setup.paths.sasl = sasl().to_owned();
    Daemon::start(setup).await.unwrap()
}

fn auth_file(directory: &Path, user: &str, password: &str) -> PathBuf {
    let file = directory.join(format!("auth-{user}-{password}"));
    let text = format!(
        "[credentials-test]\nauthname={user}\npassword={password}\n[auth-libvirt-default]\ncredentials=test\n"
    );
    fs::write(&file, text).unwrap();
    file
}

/// virsh as a user with a password in its file.
async fn virsh(uri: &str, (user, password): (&str, &str), command: &[&str]) -> Ran {
    let directory = TempDir::new().unwrap();
    let file = format!("LIBVIRT_AUTH_FILE={}", auth_file(directory.path(), user, password).display());
    let arguments = [&[&*file, "virsh", "-c", uri], command].concat();
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        let _until_then = directory;
        run("env", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    })
    .await
    .unwrap()
}

const FRED: (&str, &str) = ("fred", "secret");

#[tokio::test(flavor = "multi_thread")]
async fn virsh_logs_in_over_tcp_and_what_follows_is_encrypted() {
    let root = TempDir::new().unwrap();
    let daemon = listening(root.path(), "listen_tls = 0\nlisten_tcp = 1").await;
    let port = daemon.net_listeners()[0].address().unwrap().port();
    let (_stop, _serving) = serve(daemon);
    let uri = format!("qemu+tcp://127.0.0.1:{port}/system");
    assert!(virsh(&uri, FRED, &["uri"]).await.ok().contains(&uri));

    // More than one packet in both directions.
    let text = "much to tell ".repeat(20_000);
    let xml = format!(
        "<secret><description>{text}</description><usage type='volume'><volume>x</volume></usage></secret>"
    );
    let file = root.path().join("secret.xml");
    fs::write(&file, xml).unwrap();
    virsh(&uri, FRED, &["secret-define", file.to_str().unwrap()]).await.ok();
    let uuid = virsh(&uri, FRED, &["-q", "secret-list"]).await.ok();
    let uuid = uuid.split_whitespace().next().unwrap().to_owned();
    assert!(virsh(&uri, FRED, &["secret-dumpxml", &uuid]).await.ok().contains(text.trim_end()));

    for who in [("fred", "wrong"), ("guest", "guest"), ("nobody", "secret")] {
        let ran = virsh(&uri, who, &["uri"]).await;
        assert!(!ran.success && ran.err.contains("authentication failed"), "{who:?}: {}", ran.err);
    }
    // What shows the password, or protects nothing that follows, is not offered.
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let ran = virsh(&format!("{uri}?auth=sasl.{mechanism}"), FRED, &["uri"]).await;
        assert!(!ran.success && ran.err.contains("not supported by server"), "{}", ran.err);
    }
}

/// Lets one client through to a daemon, and behind its last unencrypted frame some of its own.
async fn somebody_on_the_way(daemon: u16, says: Vec<u8>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", daemon)).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut last = false;
        while !last {
            let length = from_client.read_u32().await.unwrap();
            let mut frame = length.to_be_bytes().to_vec();
            frame.resize(length as usize, 0);
            from_client.read_exact(&mut frame[4..]).await.unwrap();
            last = i32::from_be_bytes(frame[12..16].try_into().unwrap()) == AuthSaslStep::NUMBER;
            if last {
                frame.extend_from_slice(&says);
            }
            to_server.write_all(&frame).await.unwrap();
        }
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    port
}

fn framed<P: Procedure>(serial: u32, args: &P::Args) -> Vec<u8> {
    let header = Header {
        program: PROGRAM.number,
        version: PROGRAM.version,
        procedure: P::NUMBER,
        kind: FrameType::CALL,
        serial,
        status: Status::OK,
    };
    let mut bytes = BytesMut::new();
    frame::put(&mut bytes, &header, args).unwrap();
    bytes.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_on_the_way_speaks_for_a_client_that_logs_in() {
    let root = TempDir::new().unwrap();
    let daemon = listening(root.path(), "listen_tls = 0\nlisten_tcp = 1").await;
    let port = daemon.net_listeners()[0].address().unwrap().port();
    let (_stop, _serving) = serve(daemon);
    let xml = "<secret><usage type='volume'><volume>planted</volume></usage></secret>".to_owned();
    let planted = [
        framed::<ConnectOpen>(7, &ConnectOpenArgs::default()),
        framed::<SecretDefineXml>(8, &SecretDefineXmlArgs { xml, flags: 0 }),
    ];
    let proxy = somebody_on_the_way(port, planted.concat()).await;
    let ran = virsh(&format!("qemu+tcp://127.0.0.1:{proxy}/system"), FRED, &["uri"]).await;
    assert!(!ran.success, "{}", ran.out);
    let uri = format!("qemu+tcp://127.0.0.1:{port}/system");
    assert_eq!(virsh(&uri, FRED, &["-q", "secret-list"]).await.ok().trim(), "", "a call of somebody else's");
    // Who adds nothing is not noticed.
    let proxy = somebody_on_the_way(port, Vec::new()).await;
    virsh(&format!("qemu+tcp://127.0.0.1:{proxy}/system"), FRED, &["uri"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_tls_and_on_unix_sockets_any_mechanism_will_do() {
    let root = TempDir::new().unwrap();
    let authority = Authority::new("ours");
    authority.serve_from(root.path());
    let daemon = listening(root.path(), "auth_tls = 'sasl'\nauth_unix_rw = 'sasl'").await;
    let port = daemon.net_listeners()[0].address().unwrap().port();
    let (_stop, _serving) = serve(daemon);
    let files = authority.client_files("client");
    let tls = format!("qemu+tls://127.0.0.1:{port}/system?pkipath={}", files.path().display());
    let local = format!("qemu+unix:///system?socket={}/run/libvirt/libvirt-sock", root.path().display());
    for uri in [tls, local] {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "DIGEST-MD5"] {
            let uri = format!("{uri}&auth=sasl.{mechanism}");
            virsh(&uri, FRED, &["list"]).await.ok();
            let ran = virsh(&uri, ("fred", "wrong"), &["list"]).await;
            assert!(!ran.success && ran.err.contains("authentication failed"), "{mechanism}: {}", ran.err);
        }
    }
}

async fn plain(client: &Client, user: &str, password: &str) -> Result<AuthSaslStartRet, (i32, i32, String)> {
    let init = call::<AuthSaslInit>(client, ()).await;
    assert!(init.map_err(|error| error.to_string()).unwrap().mechlist.contains("PLAIN"));
    let data = format!("\0{user}\0{password}").into_bytes();
    let start = AuthSaslStartArgs { mech: "PLAIN".to_owned(), nil: 0, data };
    match call::<AuthSaslStart>(client, start).await {
        Ok(ret) => Ok(ret),
        error => Err(said(error)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_before_the_client_is_known_and_no_step_out_of_order() {
    let root = TempDir::new().unwrap();
    let daemon = listening(root.path(), "listen_tls = 0\nauth_unix_rw = 'sasl'").await;
    let admin = Arc::clone(daemon.administration());
    let (_stop, _serving) = serve(daemon);
    let client = connect(root.path(), "libvirt-sock").await;
    assert_eq!(call::<AuthList>(&client, ()).await.unwrap().types, [AuthType::SASL]);
    let required = (39, 7, "authentication required".to_owned());
    assert_eq!(said(soon(open(&client, 0)).await), required);
    assert_eq!(said(call::<ConnectGetType>(&client, ()).await), required);
    // The library itself would follow a null pointer here.
    call::<AuthSaslInit>(&client, ()).await.unwrap();
    assert_eq!(said(call::<AuthSaslStep>(&client, AuthSaslStepArgs::default()).await), refused());
    assert_eq!(said(call::<AuthPolkit>(&client, ()).await), refused());
    assert_eq!(plain(&client, "fred", "secret").await.unwrap().complete, 1);
    soon(open(&client, 0)).await.unwrap();
    assert_eq!(call::<AuthList>(&client, ()).await.unwrap().types, [AuthType::NONE]);
    let identity = admin.server("libvirtd").unwrap().clients()[0].identity();
    assert!(identity.sasl_name.as_deref().unwrap().starts_with("fred"), "{identity}");
    assert!(identity.uid.is_some());
    let place =
        format!("libvirtd+unix:///system?socket={}/run/libvirt/libvirt-admin-sock", root.path().display());
    let info = move || run("virt-admin", &["-c", &place, "client-info", "libvirtd", "1"]).ok();
    let info = tokio::task::spawn_blocking(info).await.unwrap();
    let info: Vec<Vec<_>> = info.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(info.contains(&vec!["sasl_user_name", ":", "fred"]), "{info:?}");
    assert!(info.iter().any(|line| line[..].starts_with(&["unix_process_id:"])), "{info:?}");

    // Who fails too often has to come again.
    let client = connect(root.path(), "libvirt-sock").await;
    for _ in 0..3 {
        assert_eq!(plain(&client, "fred", "wrong").await, Err(refused()));
    }
    soon(client.closed()).await;
    let client = connect(root.path(), "libvirt-sock").await;
    assert_eq!(plain(&client, "guest", "guest").await, Err(refused()), "not on the list");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_that_takes_its_time_keeps_nobody_else_waiting() {
    let root = TempDir::new().unwrap();
    let daemon = listening(root.path(), "listen_tls = 0\nauth_unix_rw = 'sasl'").await;
    let (_stop, _serving) = serve(daemon);
    let questions = questions("slow-one");
    let slow = connect(root.path(), "libvirt-sock").await;
    let waiting = tokio::spawn(async move { plain(&slow, "slow-one", "secret").await });
    let mut asked = tokio::task::spawn_blocking(move || questions.recv().unwrap()).await.unwrap();
    let other = connect(root.path(), "libvirt-sock").await;
    plain(&other, "fred", "secret").await.unwrap();
    soon(open(&other, 0)).await.unwrap();
    assert!(!waiting.is_finished());
    asked.write_all(b"\0\x02OK").unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap().complete, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_that_nobody_answers_about_keep_other_mechanisms_free() {
    let root = TempDir::new().unwrap();
    let daemon =
        listening(root.path(), "listen_tls = 0\nauth_unix_rw = 'sasl'\nmax_anonymous_clients = 60").await;
    let (_stop, _serving) = serve(daemon);
    let questions = questions("slow-many");
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let client = connect(root.path(), "libvirt-sock").await;
        waiting.push(tokio::spawn(async move { plain(&client, "slow-many", "secret").await }));
    }
    // As many as may: the others wait for their turn.
    let asked = move || ((0..16).map(|_| questions.recv().unwrap()).collect::<Vec<_>>(), questions);
    let (asked, questions) = tokio::task::spawn_blocking(asked).await.unwrap();
    let local = format!("qemu+unix:///system?socket={}/run/libvirt/libvirt-sock", root.path().display());
    virsh(&format!("{local}&auth=sasl.SCRAM-SHA-256"), FRED, &["list"]).await.ok();
    assert!(waiting.iter().all(|login| !login.is_finished()));
    drop((asked, questions));
    for login in waiting {
        assert_eq!(soon(login).await.unwrap(), Err(refused()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_few_places_for_who_is_not_known() {
    let root = TempDir::new().unwrap();
    let settings = "listen_tls = 0\nauth_unix_rw = 'sasl'\nauth_unix_ro = 'none'\nmax_anonymous_clients = 2";
    let daemon = listening(root.path(), settings).await;
    let server = daemon.administration().server("libvirtd").unwrap();
    let (_stop, _serving) = serve(daemon);
    let (first, second) =
        (connect(root.path(), "libvirt-sock").await, connect(root.path(), "libvirt-sock").await);
    call::<AuthList>(&first, ()).await.unwrap();
    call::<AuthList>(&second, ()).await.unwrap();
    let third = connect(root.path(), "libvirt-sock").await;
    let waiting = tokio::spawn({
        let third = third.clone();
        async move { call::<AuthList>(&third, ()).await }
    });
    let other = connect(root.path(), "libvirt-sock-ro").await;
    soon(open(&other, 0)).await.unwrap();
    assert_eq!(server.anonymous_count(), 2);
    assert!(!waiting.is_finished());
    // The first gives its place up by being known.
    plain(&first, "fred", "secret").await.unwrap();
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(server.anonymous_count(), 2);
    soon(open(&first, 0)).await.unwrap();
}

#[tokio::test]
async fn a_proxy_says_for_whom_it_speaks() {
    let world = World::new(|_| {});
    let said_by = |identity: &str| -> Vec<TypedParam> {
        let text = |text: &str| TypedParamValue::String(text.to_owned());
        [("user-name", text(identity)), ("unix-user-id", TypedParamValue::Ullong(77))]
            .map(|(field, value)| TypedParam { field: field.to_owned().into(), value })
            .into()
    };
    for (rights, known) in [(Rights::ReadWrite, "uid 77, user 'jane'"), (Rights::ReadOnly, "nobody known")] {
        let client = world.client_with(rights, 0).await;
        let args = ConnectSetIdentityArgs { params: said_by("jane"), flags: 0 };
        call::<ConnectSetIdentity>(&client, args).await.unwrap();
        let last = world.server.clients().pop().unwrap();
        assert_eq!(last.identity().to_string(), known);
        let wrong = vec![TypedParam { field: "process-id".into(), value: TypedParamValue::Int(1) }];
        let wrong =
            call::<ConnectSetIdentity>(&client, ConnectSetIdentityArgs { params: wrong, flags: 0 }).await;
        let sentence = "invalid argument: invalid type 'int' for parameter 'process-id', expected 'llong'";
        assert_eq!(said(wrong), (8, 0, sentence.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_who_it_is_does_not_stay() {
    let world = World::new(|_| {});
    let asked = Authentication::Sasl(Arc::new(SaslRules::new(None, 56)));
    let mut silent = world.socket_of(Peer::Unix(None), Rights::ReadWrite, asked).await;
    let since = tokio::time::Instant::now();
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(since.elapsed().as_secs(), 30);
    // Who has tried has some time again.
    let client = local(&world, "unix:path=/nowhere/bus", process(1), Rights::ReadWrite).await;
    let since = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(client.call::<AuthPolkit>(&()).await.is_err());
    client.closed().await;
    assert_eq!(since.elapsed().as_secs(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_stop_in_the_middle_of_a_step_keep_no_other_user_out() {
    let root = TempDir::new().unwrap();
    let settings = "listen_tls = 0\nauth_unix_rw = 'sasl'\nmax_anonymous_clients = 20";
    let daemon = listening(root.path(), settings).await;
    let server = Arc::clone(daemon.hypervisor());
    let (_stop, _serving) = serve(daemon);
    let asked = Authentication::Sasl(Arc::new(SaslRules::new(None, 56)));
    let (mut stuck, mut in_line) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        match server.line_up(Newcomer::User(7), &asked).unwrap() {
            Turn::Now(place) => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let peer = Peer::Unix(None);
                server.serve(UnixTransport::new(ours), peer, Rights::ReadWrite, asked.clone(), place);
                let client = Client::unix(theirs).0;
                call::<AuthSaslInit>(&client, ()).await.unwrap();
                stuck.push(client);
            }
            Turn::Later(waiting) => in_line.push(waiting),
        }
    }
    assert_eq!((stuck.len(), in_line.len()), (15, 25));
    let other = connect(root.path(), "libvirt-sock").await;
    plain(&other, "fred", "secret").await.unwrap();
    soon(open(&other, 0)).await.unwrap();
    // Steps out of order end the exchange, and then the connection; whoever is in line is next.
    for client in &stuck {
        for _ in 0..3 {
            assert_eq!(said(call::<AuthSaslInit>(client, ()).await), refused());
        }
        soon(client.closed()).await;
    }
    for waiting in in_line {
        soon(waiting.place()).await.unwrap();
    }
    assert_eq!(server.anonymous_count(), 0);
}

/// Sends a byte each second until the daemon closes; answers how many seconds that took.
async fn drip(mut socket: impl AsyncRead + AsyncWrite + Unpin, beginning: &[u8]) -> u64 {
    let since = tokio::time::Instant::now();
    for byte in beginning.iter().copied().chain(std::iter::repeat(b'a')) {
        if socket.write_all(&[byte]).await.is_err() {
            break;
        }
        let second = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut [0; 64])).await;
        if matches!(second, Ok(Ok(0) | Err(_))) {
            break;
        }
        assert!(since.elapsed().as_secs() < 1000, "for ever");
    }
    since.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn who_speaks_a_byte_at_a_time_is_cut_off_in_time() {
    let root = TempDir::new().unwrap();
    Authority::new("ours").serve_from(root.path());
    let metrics = root.path().join("metrics");
    let settings = format!("listen_tcp = 1\nmetrics_listen = 'unix:{}'", metrics.display());
    let daemon = listening(root.path(), &settings).await;
    let [tcp, tls] = [0, 1].map(|at| daemon.net_listeners()[at].address().unwrap());
    let (_stop, _serving) = serve(daemon);
    // A frame of 4000 bytes; a record of 16 KiB with a greeting in it.
    let frame = [0, 0, 0x0f, 0xa0, 0x20, 0, 0x80, 0x86];
    assert_eq!(drip(TcpStream::connect(tcp).await.unwrap(), &frame).await, 30);
    let greeting = [0x16, 3, 1, 0x3f, 0, 1, 0, 0x3e, 0xfc, 3, 3];
    assert_eq!(drip(TcpStream::connect(tls).await.unwrap(), &greeting).await, 15);
    let question = b"GET /metrics HTTP/1.1\r\nX: ";
    assert_eq!(drip(UnixStream::connect(&metrics).await.unwrap(), question).await, 10);
}

// ---- polkit ----

fn process(uid: u32) -> PeerProcess {
    let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
    PeerProcess { uid, ..PeerProcess::of(&ours).unwrap() }
}

async fn local(world: &World, bus: &str, process: PeerProcess, rights: Rights) -> Client {
    let asked = Authentication::Polkit(Arc::new(Polkit::on_bus(bus)));
    Client::unix(world.socket_of(Peer::Unix(Some(process)), rights, asked).await).0
}

#[tokio::test(flavor = "multi_thread")]
async fn polkit_is_asked_who_may_come_in() {
    let directory = TempDir::new().unwrap();
    let bus = Bus::start(directory.path());
    let polkit = FakePolkit::new(|question| {
        let dismissed = HashMap::from([("polkit.dismissed".to_owned(), "true".to_owned())]);
        match question.uid {
            1 => verdict(true),
            2 => Some((false, true, HashMap::new())),
            3 => Some((false, false, dismissed)),
            _ => verdict(false),
        }
    });
    let _serving = polkit.serve(&bus).await;
    let world = World::new(|_| {});
    let client = local(&world, &bus.address(), process(1), Rights::ReadWrite).await;
    assert_eq!(call::<AuthList>(&client, ()).await.unwrap().types, [AuthType::POLKIT]);
    assert_eq!(said(soon(open(&client, 0)).await), (39, 7, "authentication required".to_owned()));
    assert_eq!(call::<AuthPolkit>(&client, ()).await.unwrap().complete, 1);
    soon(open(&client, 0)).await.unwrap();
    let question = polkit.asked.lock().unwrap().remove(0);
    assert_eq!((&*question.action, question.flags), ("org.libvirt.unix.manage", 1));
    assert_eq!(question.kind, "unix-process");
    let facts = question.subject;
    assert!(facts["pid"].contains(&std::process::id().to_string()), "{facts:?}");
    assert!(facts["start-time"].contains(&process(1).start_time.unwrap().to_string()), "{facts:?}");
    assert!(facts.contains_key("pidfd"), "{facts:?}");

    let no_agent = "authentication unavailable: no polkit agent available to authenticate action 'org.libvirt.unix.monitor'";
    for (uid, refusal) in [
        (2, (94, 60, no_agent)),
        (3, (79, 60, "authentication cancelled: user cancelled authentication process")),
        (4, (45, 60, "authentication failed: access denied by policy")),
    ] {
        let client = local(&world, &bus.address(), process(uid), Rights::ReadOnly).await;
        let (code, origin, sentence) = said(call::<AuthPolkit>(&client, ()).await);
        assert_eq!((code, origin, &*sentence), refusal);
        assert_eq!(said(soon(open(&client, 0)).await).0, 39, "still nobody known");
    }
    // A process that is gone, whose number another may have by now.
    let gone = PeerProcess { start_time: Some(1), ..process(1) };
    let client = local(&world, &bus.address(), gone, Rights::ReadWrite).await;
    assert_eq!(said(call::<AuthPolkit>(&client, ()).await), refused());
    assert_eq!(polkit.asked.lock().unwrap().len(), 3, "nobody was asked about it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_taken_back_when_its_client_leaves() {
    let directory = TempDir::new().unwrap();
    let bus = Bus::start(directory.path());
    let polkit = FakePolkit::new(|_| None);
    let _serving = polkit.serve(&bus).await;
    let world = World::new(|_| {});
    let client = local(&world, &bus.address(), process(5), Rights::ReadWrite).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call::<AuthPolkit>(&()).await }
    });
    let was_asked = async {
        while polkit.asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon(was_asked).await;
    client.close();
    let was_taken_back = async {
        while polkit.taken_back.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon(was_taken_back).await;
    let name = polkit.taken_back.lock().unwrap().remove(0);
    assert!(!name.is_empty() && polkit.asked.lock().unwrap()[0].name == name);
    assert!(soon(waiting).await.unwrap().is_err());
    // No call is left that the daemon would wait for.
    soon(world.server.stop(Duration::from_secs(60))).await;
    assert_eq!(world.server.running_calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bus_or_an_authority_nobody_comes_in() {
    let world = World::new(|_| {});
    let client = local(&world, "unix:path=/nowhere/bus", process(1), Rights::ReadWrite).await;
    let (code, origin, sentence) = said(call::<AuthPolkit>(&client, ()).await);
    assert_eq!((code, origin), (1, 47));
    assert!(sentence.starts_with("internal error: Unable to get system bus connection: "), "{sentence}");
    let directory = TempDir::new().unwrap();
    let bus = Bus::start(directory.path());
    let client = local(&world, &bus.address(), process(1), Rights::ReadWrite).await;
    let (code, origin, sentence) = said(call::<AuthPolkit>(&client, ()).await);
    assert_eq!((code, origin), (89, 47));
    assert!(
        sentence.starts_with("error from service: ") && sentence.contains("org.freedesktop.PolicyKit1"),
        "{sentence}"
    );
}

/// A list of many objects waits once for who decides about them, and shows none.
#[tokio::test(flavor = "multi_thread")]
async fn a_polkit_that_does_not_answer_is_asked_once_in_a_call() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let directory = TempDir::new().unwrap();
    let bus = Bus::start(directory.path());
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let polkit = FakePolkit::new(move |question| {
        let about_pools = question.action == "org.libvirt.api.storage-pool.getattr";
        if about_pools && silent.load(Ordering::Relaxed) { None } else { verdict(true) }
    });
    let _serving = polkit.serve(&bus).await;
    let world = World::new(|r| {
        about::routes(r);
        handlers::storage_pool::routes(r);
    });
    let asked = Polkit::on_bus(&bus.address()).with_patience(PATIENCE);
    let driver = Arc::new(PolkitDriver::new(Arc::new(asked)));
    world.server.set_access(Access::new(vec![driver]).unwrap());
    let socket = world.socket_of(Peer::Unix(Some(process(1))), Rights::ReadWrite, Authentication::None).await;
    let (client, _events) = Client::unix(socket);
    open(&client, 0).await.unwrap();
    for name in 0..20 {
        let xml =
            format!("<pool type='dir'><name>p{name}</name><target><path>/p{name}</path></target></pool>");
        call::<StoragePoolDefineXml>(&client, StoragePoolDefineXmlArgs { xml, flags: 0 }).await.unwrap();
    }
    let list = async || {
        let args = ConnectListAllStoragePoolsArgs { need_results: 1, flags: 0 };
        call::<ConnectListAllStoragePools>(&client, args).await.unwrap().pools.len()
    };
    assert_eq!(list().await, 20);
    is_silent.store(true, Ordering::Relaxed);
    let since = Instant::now();
    assert_eq!(list().await, 0);
    assert!(since.elapsed() >= PATIENCE && since.elapsed() < PATIENCE * 10, "{:?}", since.elapsed());
    is_silent.store(false, Ordering::Relaxed);
    assert_eq!(list().await, 20, "the next call asks again");
}
