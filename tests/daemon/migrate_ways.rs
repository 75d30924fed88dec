//! Ways from daemon to daemon, and disks that are made where the guest goes.

use std::fs;

use ferrovirt_compat::{Daemon, halting, install_script, run};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::migrate::{DESTINATION, Hosts, SOURCE, expect_states, image_disk};
use crate::{kind, on_upstream};

pub(crate) const MOVED: [&str; 4] = ["--live", "--p2p", "--persistent", "--undefinesource"];

#[test]
fn daemons_find_each_other_through_ssh() {
    let hosts = Hosts::new();
    let ssh = hosts.source.path("ssh");
    // The other host is this one.
    let script =
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\necho \"to $2\" >&2\nshift 2\nexec sh -c \"$*\"\n";
    install_script(&ssh, script);
    hosts.source.run(&halting("guest"));
    let (ssh, socket) = (ssh.display(), hosts.destination.socket());
    let to = format!("qemu+ssh://elsewhere/system?command={ssh}&socket={}", socket.display());
    let through = format!("unix://{}", hosts.destination.path("arrival").display());
    let migrate = |to: &str, options: &[&str]| {
        let base = [&["migrate", "guest", to][..], &MOVED].concat();
        hosts.source.virsh(&[&base[..], options].concat())
    };
    let nobody = migrate("qemu+ssh://elsewhere/system?command=/bin/false", &[]).fails();
    assert!(nobody.contains("Lost connection") || nobody.contains("closed"), "{nobody}");
    let other = migrate("qemu+libssh2://elsewhere/system", &[]).fails();
    assert!(!other.is_empty());
    expect_states(&hosts, "guest", "running", "");
    migrate(&to, &["--migrateuri", &through]).ok();
    expect_states(&hosts, "guest", "", "running");
    hosts.migrate_back("guest", &MOVED).ok();
    migrate(&to, &["--tunnelled"]).ok();
    expect_states(&hosts, "guest", "", "running");
}

/// A network that nobody else is in.
pub(crate) struct Network(pub(crate) String);

impl Network {
    pub(crate) fn new(what: &str) -> Self {
        let name = format!("fv{what}{}", std::process::id());
        run("ip", &["netns", "add", &name]).ok();
        run("ip", &["-n", &name, "link", "set", "lo", "up"]).ok();
        Self(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

/// The files that a client of libvirt's has, and those of a daemon beside them.
fn certificates(authority: &Authority, trusted: &Authority) -> TempDir {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("cacert.pem", &trusted.certificate);
    for side in ["server", "client"] {
        let (certificate, key) = authority.certify(side);
        write(&format!("{side}cert.pem"), &certificate);
        write(&format!("{side}key.pem"), &key);
    }
    directory
}

#[test]
fn daemons_show_each_other_their_certificates() {
    if on_upstream() {
        return;
    }
    let (authority, stranger) = (Authority::new("test authority"), Authority::new("stranger"));
    let (keys, others) = (certificates(&authority, &authority), certificates(&stranger, &authority));
    let network = Network::new("ways");
    let files = keys.path().display();
    let net = format!(
        "listen_addr = '0.0.0.0'\nca_file = '{files}/cacert.pem'\ncert_file = '{files}/servercert.pem'\n\
         key_file = '{files}/serverkey.pem'\n"
    );
    let start = |config: &str| {
        let guests = "user = \"root\"\ngroup = \"root\"\nremember_owner = 0\n";
        Daemon::start_in(Some(&network.0), kind(), config, guests)
    };
    let hosts = Hosts {
        source: start(&format!("{SOURCE}listen_tls = 0\n")),
        destination: start(&format!("{DESTINATION}{net}")),
    };
    hosts.source.run(&halting("guest"));
    let migrate = |host: &str, keys: &TempDir| {
        let to = format!("qemu+tls://{host}/system?pkipath={}", keys.path().display());
        hosts.source.virsh(&[&["migrate", "guest", &to, "--tunnelled"][..], &MOVED].concat())
    };
    migrate("127.0.0.1", &others).fails();
    // Whose certificate names him otherwise is somebody else.
    let otherwise = migrate("127.0.0.2", &keys).fails();
    assert!(otherwise.contains("127.0.0.2"), "{otherwise}");
    expect_states(&hosts, "guest", "running", "");
    migrate("127.0.0.1", &keys).ok();
    expect_states(&hosts, "guest", "", "running");
}

#[test]
fn disks_that_are_not_there_are_made_where_the_guest_goes() {
    let hosts = Hosts::new();
    let (here, there) = (hosts.source.path("images"), hosts.destination.path("images"));
    for directory in [&here, &there] {
        fs::create_dir(directory).unwrap();
    }
    let (raw, qcow2) = (here.join("a&b.img"), here.join("b.qcow2"));
    fs::write(&raw, [&b"contents"[..], &vec![0; (1 << 20) - 8]].concat()).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "3M"]).ok();
    let second = image_disk(&qcow2).replace("type='raw'", "type='qcow2'").replace("vda", "vdb");
    let first = image_disk(&raw).replace("a&b", "a&amp;b");
    hosts.source.run(&halting("guest").device(&first).device(&second));
    let xml = hosts.source.ok(&["dumpxml", "guest", "--migratable"]);
    let xml = xml.replace(&here.display().to_string(), &there.display().to_string());
    let (to, nbd) =
        (hosts.destination.uri(), format!("unix://{}", hosts.destination.path("disks").display()));
    let through = format!("unix://{}", hosts.destination.path("arrival").display());
    let migrate = |options: &[&str]| {
        hosts.source.with_xml(&xml, |xml| {
            let base = [
                "migrate",
                "guest",
                &to,
                "--live",
                "--disks-uri",
                &nbd,
                "--migrateuri",
                &through,
                "--xml",
                xml,
            ];
            hosts.source.virsh(&[&base[..], options].concat())
        })
    };
    let homeless = migrate(&["--copy-storage-all"]).fails();
    assert!(homeless.contains("no storage pool with matching target path"), "{homeless}");
    let pool = format!(
        "<pool type='dir'><name>images</name><target><path>{}</path></target></pool>",
        there.display()
    );
    hosts.destination.with_xml(&pool, |xml| hosts.destination.ok(&["pool-create", xml]));
    let incremental = migrate(&["--copy-storage-inc"]).fails();
    assert!(
        incremental.contains("for incremental storage migration of disk 'vda' is not supported"),
        "{incremental}"
    );
    expect_states(&hosts, "guest", "running", "");
    migrate(&[
        "--copy-storage-all",
        "--migrate-disks-detect-zeroes",
        "vda",
        "--copy-storage-synchronous-writes",
    ])
    .ok();
    expect_states(&hosts, "guest", "shut off", "running");
    assert!(fs::read(there.join("a&b.img")).unwrap().starts_with(b"contents"));
    hosts.destination.ok(&["destroy", "guest"]);
    let made = run("qemu-img", &["info", there.join("b.qcow2").to_str().unwrap()]).ok();
    assert!(
        made.contains("file format: qcow2") && made.contains("3 MiB") && made.contains("compat: 1.1"),
        "{made}"
    );
}
