//! Clients and daemons that come through a real `sshd`, which has keys, configuration and a network of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ferrovirt_compat::{Daemon, Program, command, eventually, halting, install_script, run};
use tempfile::TempDir;

use crate::daemon;
use crate::migrate::{Hosts, expect_states};
use crate::migrate_ways::{MOVED, Network};
use crate::packaging::lacks;

/// A host that is reached by ssh; as libvirt's daemon it has this one.
struct Host {
    directory: TempDir,
    _server: Program,
    _network: Network,
}

impl Host {
    /// None where there is no `sshd`.
    fn new(what: &str, daemon: &Daemon) -> Option<Self> {
        if ["sshd", "ssh", "ssh-keygen"].into_iter().any(lacks) {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").unwrap();
        let network = Network::new(what);
        let place = directory.path();
        let shown = place.display();
        for key in ["host", "user"] {
            let file = place.join(key);
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", file.to_str().unwrap()]).ok();
        }
        let public = |key: &str| fs::read_to_string(place.join(format!("{key}.pub"))).unwrap();
        fs::write(place.join("known"), format!("127.0.0.1 {}", public("host"))).unwrap();
        fs::write(
            place.join("sshd_config"),
            format!(
                "ListenAddress 127.0.0.1\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/user.pub\nStrictModes no\n\
                 UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
            ),
        )
        .unwrap();
        fs::write(
            place.join("ssh_config"),
            format!(
                "Host *\nIdentityFile {shown}/user\nIdentitiesOnly yes\nUserKnownHostsFile {shown}/known\n"
            ),
        )
        .unwrap();
        // What the helper looks for, and what sshd wants, are in nobody else's /run.
        let start = format!(
            "set -e; PATH=$PATH:/usr/sbin; mount -t tmpfs none /run; mkdir -p /run/sshd /run/libvirt\n\
             mount --bind {} /run/libvirt; exec $(command -v sshd) -D -e -f {shown}/sshd_config 2>{shown}/log\n",
            daemon.path("run/libvirt").display()
        );
        let mut server = inside(&network, "sh");
        server.args(["-c", &start]);
        let server = Program::start(server);
        eventually("sshd listens", || {
            fs::read_to_string(place.join("log"))
                .unwrap_or_default()
                .contains("Server listening")
                .then_some(())
        });
        let ssh = format!("#!/bin/sh\nexec ip netns exec {} ssh -F {shown}/ssh_config \"$@\"\n", network.0);
        install_script(&place.join("ssh"), &ssh);
        Some(Self { directory, _server: server, _network: network })
    }

    /// How a client calls it, with its own keys.
    fn uri(&self, options: &str) -> String {
        let ssh = self.path("ssh");
        format!("qemu+ssh://root@127.0.0.1/system?command={}&{options}", ssh.display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What connects its input to a socket, as `nc -U` does.
    fn netcat(&self) -> PathBuf {
        let script = "#!/bin/sh\n[ \"$1\" = -U ] || exit 1\nexec python3 -c '\n\
                      import socket, sys, os, select\n\
                      to = socket.socket(socket.AF_UNIX); to.connect(sys.argv[1])\n\
                      while True:\n    \
                          for ready in select.select([0, to], [], [])[0]:\n        \
                              said = os.read(0, 65536) if ready == 0 else to.recv(65536)\n        \
                              if not said: sys.exit()\n        \
                              to.sendall(said) if ready == 0 else os.write(1, said)\n' \"$2\"\n";
        let path = self.path("nc");
        install_script(&path, script);
        path
    }
}

/// A program on the host's network, with mounts of its own.
fn inside(network: &Network, program: &str) -> Command {
    let mut command = command("ip");
    command.args(["netns", "exec", &network.0, program]);
    command
}

#[test]
fn clients_come_through_sshd() {
    let daemon = daemon();
    let Some(host) = Host::new("ssh", &daemon) else { return };
    daemon.define(&halting("far"));
    let virsh = |uri: &str, command: &[&str]| run("virsh", &[&["-q", "-c", uri], command].concat());
    let list = ["list", "--all", "--name"];
    let netcat = host.netcat();
    let socket = daemon.socket();
    let by_netcat = format!("proxy=netcat&netcat={}&socket={}", netcat.display(), socket.display());
    let mut ways = vec![by_netcat.as_str()];
    if !lacks("virt-ssh-helper") {
        ways.extend(["proxy=native", "proxy=auto"]);
    }
    for way in ways {
        let uri = host.uri(way);
        assert_eq!(virsh(&uri, &list).ok().trim(), "far", "{way}");
        // More than one buffer, both ways.
        let long = "a long way ".repeat(20_000);
        let xml =
            halting("far").xml().replace("</name>", &format!("</name><description>{long}</description>"));
        let uuid = daemon.ok(&["domuuid", "far"]);
        let xml = xml.replace("</name>", &format!("</name><uuid>{}</uuid>", uuid.trim()));
        daemon.with_xml(&xml, |file| virsh(&uri, &["define", file]).ok());
        assert!(virsh(&uri, &["dumpxml", "far"]).ok().contains(long.trim_end()), "{way}");
        let error = virsh(&uri, &["dominfo", "nobody"]).fails();
        assert!(error.contains("failed to get domain 'nobody'"), "{way}: {error}");
    }
    if !lacks("virt-ssh-helper") {
        let error = run("virsh", &["-q", "-r", "-c", &host.uri("proxy=native"), "undefine", "far"]).fails();
        assert!(error.contains("read only access"), "{error}");
    }
    // Whose key nobody knows does not come in.
    fs::remove_file(host.path("user")).unwrap();
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", host.path("other").to_str().unwrap()]).ok();
    fs::rename(host.path("other"), host.path("user")).unwrap();
    let error = virsh(&host.uri(&by_netcat), &list).fails();
    assert!(error.contains("Permission denied"), "{error}");
}

#[test]
fn a_guest_goes_from_daemon_to_daemon_through_sshd() {
    let hosts = Hosts::new();
    let Some(host) = Host::new("sshm", &hosts.destination) else { return };
    hosts.source.run(&halting("guest"));
    let through = format!("unix://{}", hosts.destination.path("arrival").display());
    let migrate = |way: &str, options: &[&str]| {
        let to = host.uri(way);
        hosts.source.virsh(&[&["migrate", "guest", &to], &MOVED[..], options].concat())
    };
    let netcat = host.netcat();
    let socket = hosts.destination.socket();
    migrate(
        &format!("proxy=netcat&netcat={}&socket={}", netcat.display(), socket.display()),
        &["--migrateuri", &through],
    )
    .ok();
    expect_states(&hosts, "guest", "", "running");
    if lacks("virt-ssh-helper") {
        return;
    }
    hosts.migrate_back("guest", &MOVED).ok();
    migrate("proxy=native", &["--tunnelled"]).ok();
    expect_states(&hosts, "guest", "", "running");
}
