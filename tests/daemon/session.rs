//! How the daemon comes and goes: alone on its root, started by a client, configured, read-only.

use std::fs;
use std::path::Path;

use ferrovirt_compat::wire::{Wire, WireError};
use ferrovirt_compat::{Signal, command, eventually, halting, part, signal};
use ferrovirt_protocol::remote::{self, procedure};

use crate::{daemon, on_upstream};

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");

#[test]
fn a_second_daemon_on_the_same_root_is_refused_with_the_firsts_pid() {
    if on_upstream() {
        return;
    }
    let daemon = daemon();
    let second = command(OURS).arg("--root").arg(daemon.path("")).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&daemon.pid().to_string()), "{said}");
    daemon.ok(&["list"]);
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    if on_upstream() {
        return;
    }
    for (config, words) in [
        ("max_clients = 10\nmax_workers == 3\n", "libvirtd.conf:2"),
        ("# fine\n\nmax_clients = \"many\"\n", "max_clients"),
    ] {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/libvirt")).unwrap();
        fs::write(root.path().join("etc/libvirt/libvirtd.conf"), config).unwrap();
        let ran = command("timeout").args(["100", OURS, "--root"]).arg(root.path()).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains(words), "{said}");
    }
}

#[test]
fn a_hangup_reads_the_definitions_again() {
    let daemon = daemon();
    for name in ["changed", "removed", "unlinked"] {
        daemon.define(&halting(name));
    }
    daemon.ok(&["autostart", "unlinked"]);
    let mut watcher = daemon.events();
    let below = |name: &str| daemon.path(&format!("etc/libvirt/qemu/{name}"));
    let text = fs::read_to_string(below("changed.xml")).unwrap();
    fs::write(below("changed.xml"), text.replace("<memory", "<title>Better</title><memory")).unwrap();
    let uuid = daemon.ok(&["domuuid", "changed"]).trim().to_owned();
    let added = text.replace("changed", "added").replace(&uuid, "8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1");
    fs::write(below("added.xml"), added).unwrap();
    fs::remove_file(below("removed.xml")).unwrap();
    fs::remove_file(below("autostart/unlinked.xml")).unwrap();
    let pid = if on_upstream() { upstream_pid(&daemon) } else { daemon.pid().cast_signed() };
    signal(pid, Signal::HUP);
    // In any order; a definition without a file stays.
    watcher.expect("added defined added\n");
    eventually("the title is known", || {
        (daemon.ok(&["desc", "changed", "--title"]).trim() == "Better").then_some(())
    });
    eventually("the link is gone", || {
        daemon.ok(&["dominfo", "unlinked"]).contains("Autostart:      disable").then_some(())
    });
    assert_eq!(
        daemon.ok(&["list", "--all", "--name"]).split_whitespace().collect::<Vec<_>>(),
        ["added", "changed", "removed", "unlinked"]
    );
}

/// libvirt's own daemon runs behind the script that the test started.
fn upstream_pid(daemon: &ferrovirt_compat::Daemon) -> i32 {
    fs::read_to_string(daemon.path("run/libvirtd.pid")).unwrap().trim().parse().unwrap()
}

#[test]
fn limits_of_the_configuration_hold() {
    let daemon =
        ferrovirt_compat::Daemon::start(crate::kind(), "max_clients = 3\nmax_anonymous_clients = 3\n");
    let mut open: Vec<Wire> = (0..3).map(|_| Wire::open(&daemon.socket()).unwrap()).collect();
    // The fourth connects, as the kernel does that, and is not served while three are.
    let mut fourth = Wire::connect(&daemon.socket()).unwrap();
    fourth.set_limit(std::time::Duration::from_millis(500)).unwrap();
    assert!(fourth.call::<procedure::AuthList>(&()).is_err());
    for wire in &mut open {
        wire.call::<procedure::ConnectGetLibVersion>(&()).unwrap();
    }
    open.clear();
    drop(fourth);
    eventually("a place is free", || Wire::open(&daemon.socket()).ok());
}

#[test]
fn the_read_only_socket_reads_and_refuses_writes() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let uri = daemon.read_only_uri();
    let virsh =
        |arguments: &[&str]| ferrovirt_compat::run("virsh", &[&["-q", "-r", "-c", &uri], arguments].concat());
    assert_eq!(virsh(&["list", "--all", "--name"]).ok().trim(), "tiny");
    assert!(virsh(&["dumpxml", "tiny"]).ok().contains("<name>tiny</name>"));
    // virsh -r refuses by itself; the daemon has to refuse a client that does not.
    let mut wire = Wire::connect(&daemon.path("run/libvirt/libvirt-sock-ro")).unwrap();
    wire.call::<procedure::AuthList>(&()).unwrap();
    let args = remote::ConnectOpenArgs { name: Some("qemu:///system".into()), flags: 1 };
    wire.call::<procedure::ConnectOpen>(&args).unwrap();
    let args = remote::DomainLookupByNameArgs { name: "tiny".into() };
    let dom = wire.call::<procedure::DomainLookupByName>(&args).unwrap().dom;
    let refused = wire.call::<procedure::DomainCreate>(&remote::DomainCreateArgs { dom });
    let Err(WireError::Refused(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code, 29, "{error}");
    assert!(error.text().contains("read only access"), "{error}");
    assert_eq!(daemon.state("tiny"), "shut off");
}

/// Without `--root`, as root: in a mount namespace of its own, where the real directories are empty ones.
#[test]
fn clients_find_the_system_daemon_without_any_option() {
    if on_upstream() || !rustix::process::geteuid().is_root() {
        return;
    }
    let script = format!(
        "set -e
         mkdir -p /etc/libvirt
         for directory in /run /etc/libvirt /var/lib /var/log /var/cache; do mount -t tmpfs none $directory; done
         {OURS} 2>/run/daemon.log & daemon=$!
         trap 'kill $daemon; wait $daemon; cat /run/daemon.log >&2' EXIT
         timeout 100 sh -c 'until virsh -q -c qemu:///system uri >/run/tried 2>&1; do :; done'
         virsh -q -c qemu:///system uri
         virsh -q -c 'qemu:///system?mode=direct' list --all --name
         virsh -q -r list --all --name
         /usr/bin/python3 -c 'import libvirt; print(libvirt.open(None).getURI())'
         ls /run/libvirt"
    );
    let out =
        ferrovirt_compat::run("unshare", &["--mount", "--propagation", "private", "bash", "-c", &script])
            .ok();
    assert_eq!(out.matches("qemu:///system").count(), 2, "{out}");
    for family in ["libvirt", "virtqemud"] {
        for kind in ["sock", "sock-ro", "admin-sock"] {
            assert!(out.contains(&format!("{family}-{kind}")), "no {family}-{kind} in {out}");
        }
    }
}

/// What `make install` puts below a directory.
pub(crate) fn install(destination: &Path) {
    let destination = format!("DESTDIR={}", destination.display());
    let binary = format!("BINARY={OURS}");
    let directory = env!("CARGO_MANIFEST_DIR");
    ferrovirt_compat::run("make", &["-s", "-C", directory, "install", "PREFIX=/usr", &destination, &binary])
        .ok();
}

#[test]
fn an_installation_has_the_daemon_under_libvirts_names_and_its_unit() {
    if on_upstream() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let sbin = root.path().join("usr/sbin");
    fs::create_dir_all(&sbin).unwrap();
    fs::write(sbin.join("libvirtd"), "libvirt's own").unwrap();
    install(root.path());
    assert_eq!(fs::read_to_string(sbin.join("libvirtd")).unwrap(), "libvirt's own");
    assert_eq!(fs::read_link(sbin.join("virtqemud")).unwrap(), Path::new("ferrovirtd"));
    let version = command(sbin.join("virtqemud").to_str().unwrap()).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains("ferrovirt"));
    let unit = fs::read_to_string(root.path().join("usr/lib/systemd/system/ferrovirtd.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/sbin/ferrovirtd\n"), "{unit}");
    // virt-install takes these for granted: what it boots an installer from, where disks go.
    for directory in ["boot", "images"] {
        assert!(root.path().join("var/lib/libvirt").join(directory).is_dir(), "{directory}");
    }
}

#[test]
fn virsh_starts_a_session_daemon_by_itself() {
    if on_upstream() {
        return;
    }
    let home = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").unwrap();
    let runtime = home.path().join("run");
    fs::create_dir(&runtime).unwrap();
    // A client looks for the daemon by either of libvirt's names.
    let installed = home.path().join("system");
    install(&installed);
    let sbin = installed.join("usr/sbin");
    fs::copy(part("halt.rom"), home.path().join("halt.rom")).unwrap();
    let file = home.path().join("tiny.xml");
    let guest = halting("tiny")
        .xml()
        .replace(part("halt.rom").to_str().unwrap(), home.path().join("halt.rom").to_str().unwrap());
    fs::write(&file, guest.replace("type='kvm'", "type='qemu'")).unwrap();
    // To root, qemu:///session is the system's daemon: be nobody.
    let is_root = rustix::process::geteuid().is_root();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if is_root {
        assert!(command("chown").args(["-R", "65534:65534"]).arg(home.path()).status().unwrap().success());
    }
    let virsh = |arguments: &[&str]| {
        // Root puts the installed programs where the system has them, for this client alone.
        let in_place = format!("mount --bind {} /usr/sbin && exec \"$@\"", sbin.display());
        let output = command("timeout")
            .arg("150")
            .args(["unshare", "-m", "sh", "-c", &in_place, "sh"].iter().filter(|_| is_root))
            .args(nobody.iter().filter(|_| is_root))
            .args(["virsh", "-q", "-c", "qemu:///session"])
            .args(arguments)
            .env("HOME", home.path())
            .env("XDG_RUNTIME_DIR", &runtime)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .envs((!is_root).then_some(("LIBVIRTD_PATH", &sbin)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let _ended = EndSession(&runtime);
    assert_eq!(virsh(&["uri"]).trim(), "qemu:///session");
    virsh(&["define", file.to_str().unwrap()]);
    virsh(&["start", "tiny"]);
    assert_eq!(virsh(&["domstate", "tiny"]).trim(), "running");
    virsh(&["destroy", "tiny"]);
    assert!(home.path().join(".config/libvirt/qemu/tiny.xml").exists());
}

/// Ends the daemon that virsh left running.
struct EndSession<'a>(&'a Path);

impl Drop for EndSession<'_> {
    fn drop(&mut self) {
        for file in fs::read_dir(self.0.join("libvirt")).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if let Some(pid) = fs::read_to_string(file.path()).ok().filter(|_| name.ends_with("d.pid")) {
                signal(pid.trim().parse().unwrap_or_default(), Signal::TERM);
            }
        }
    }
}

#[test]
fn an_idle_daemon_with_a_timeout_ends() {
    if on_upstream() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let ran =
        command("timeout").args(["100", OURS, "--timeout", "1", "--root"]).arg(root.path()).status().unwrap();
    assert!(ran.success(), "{ran}");
}
