//! A daemon that a service manager starts: with sockets that are there already, and told how it goes.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use ferrovirt_compat::{LIMIT, Program, Ran, Signal, command, run};

use crate::on_upstream;

/// Binds sockets, puts them where a service manager does, and becomes the daemon.
const MANAGER: &str = r"
import fcntl, os, socket, sys
root, daemon = sys.argv[1], sys.argv[2]
high = []
for name in sys.argv[3:]:
    if name.endswith('.socket'):
        bound = socket.socket()
        bound.bind(('127.0.0.1', 0))
        with open(f'{root}/{name}', 'w') as file:
            print(bound.getsockname()[1], file=file)
    else:
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(f'{root}/run/libvirt/{name}')
    bound.listen()
    high.append(fcntl.fcntl(bound.detach(), fcntl.F_DUPFD, 100))
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
    os.close(descriptor)
environment = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv) - 3),
                   LISTEN_FDNAMES=':'.join(sys.argv[3:]),
                   NOTIFY_SOCKET=f'{root}/notify', WATCHDOG_USEC='2000000', WATCHDOG_PID=str(os.getpid()))
os.execve(daemon, [daemon, '--root', root], environment)
";

struct Managed {
    root: tempfile::TempDir,
    told: UnixDatagram,
    daemon: Program,
}

impl Managed {
    fn start(settings: &str, sockets: &[&str]) -> Self {
        let root = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").unwrap();
        fs::create_dir_all(root.path().join("run/libvirt")).unwrap();
        fs::create_dir_all(root.path().join("etc/libvirt")).unwrap();
        fs::write(root.path().join("etc/libvirt/libvirtd.conf"), settings).unwrap();
        let told = UnixDatagram::bind(root.path().join("notify")).unwrap();
        told.set_read_timeout(Some(LIMIT)).unwrap();
        let mut manager = command("/usr/bin/python3");
        manager.args(["-c", MANAGER]).arg(root.path()).arg(env!("CARGO_BIN_EXE_ferrovirtd")).args(sockets);
        Self { daemon: Program::start(manager), told, root }
    }

    fn is_told(&self, what: &str) {
        let mut line = [0; 256];
        loop {
            let len = self.told.recv(&mut line).unwrap();
            if String::from_utf8_lossy(&line[..len]).lines().any(|line| line == what) {
                return;
            }
        }
    }

    fn virsh(&self, socket: &str, arguments: &[&str]) -> Ran {
        let path = self.root.path().join("run/libvirt").join(socket);
        let uri = format!("qemu+unix:///system?socket={}", path.display());
        run("virsh", &[&["-q", "-c", &uri], arguments].concat())
    }
}

#[test]
fn sockets_of_a_service_manager_are_served_and_stay() {
    if on_upstream() {
        return;
    }
    let mut managed = Managed::start("", &["libvirt-sock", "virtqemud-sock-ro"]);
    managed.is_told("READY=1");
    managed.is_told("WATCHDOG=1");
    assert_eq!(managed.virsh("libvirt-sock", &["pool-list", "--name"]).ok().trim(), "");
    let undefined = managed.virsh("virtqemud-sock-ro", &["define", "/dev/null"]).fails();
    assert!(undefined.contains("error"), "{undefined}");
    let runtime = managed.root.path().join("run/libvirt");
    // What was not handed over is not served.
    assert!(!runtime.join("libvirt-admin-sock").exists());
    managed.daemon.signal(Signal::HUP);
    managed.is_told("RELOADING=1");
    managed.is_told("READY=1");
    managed.daemon.signal(Signal::TERM);
    managed.is_told("STOPPING=1");
    managed.daemon.rest();
    assert!(runtime.join("libvirt-sock").exists());
}

#[test]
fn a_network_socket_of_a_service_manager_is_served_by_its_name() {
    if on_upstream() {
        return;
    }
    let managed = Managed::start("auth_tcp = \"none\"\n", &["libvirtd-tcp.socket", "libvirt-sock"]);
    managed.is_told("READY=1");
    let port = fs::read_to_string(managed.root.path().join("libvirtd-tcp.socket")).unwrap();
    let uri = format!("qemu+tcp://127.0.0.1:{}/system", port.trim());
    assert_eq!(run("virsh", &["-c", &uri, "uri"]).ok().trim(), uri);
    managed.virsh("libvirt-sock", &["list"]).ok();
}

#[test]
fn a_configuration_is_checked_without_a_daemon() {
    if on_upstream() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc/libvirt");
    fs::create_dir_all(&etc).unwrap();
    let check = || {
        let root = root.path().to_str().unwrap();
        run(env!("CARGO_BIN_EXE_ferrovirtd"), &["--root", root, "--check-config"])
    };
    assert_eq!(check().ok(), "");
    fs::write(etc.join("libvirtd.conf"), "max_clients = 7\nmin_worker = 3\n").unwrap();
    fs::write(etc.join("qemu.conf"), "max_core = 1\n").unwrap();
    let remarks = check().ok();
    assert_eq!(
        remarks,
        "libvirtd.conf: line 2: unknown setting 'min_worker'\nqemu.conf: line 1: 'max_core' has no effect here\n"
    );
    fs::write(etc.join("qemu.conf"), "user = 'no-such-user'\n").unwrap();
    let refused = check().fails();
    assert!(refused.contains("qemu.conf:1: Failed to parse user 'no-such-user'"), "{refused}");
    assert!(!Path::new(&root.path().join("run")).exists());
}
