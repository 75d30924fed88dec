//! Guests whose state, and whose disks, nobody on the way can read.

use std::fs;
use std::path::Path;

use ferrovirt_compat::{Daemon, command, halting};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::migrate::{Hosts, counting, expect_states, image_disk, next_count};

const TCP: [&str; 2] = ["--migrateuri", "tcp://127.0.0.1"];

/// The files that QEMU takes, in a directory of their own.
fn keys(authority: &Authority) -> TempDir {
    let directory = tempfile::Builder::new().prefix("keys").tempdir_in("/tmp").unwrap();
    write(directory.path(), "ca-cert.pem", &authority.certificate);
    for side in ["server", "client"] {
        let (certificate, key) = authority.certify(side);
        write(directory.path(), &format!("{side}-cert.pem"), &certificate);
        write(directory.path(), &format!("{side}-key.pem"), &key);
    }
    directory
}

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).unwrap();
}

fn settings(keys: &TempDir, more: &str) -> String {
    let keys = keys.path().display();
    format!(
        "user = \"root\"\ngroup = \"root\"\nremember_owner = 0\nmigrate_tls_x509_cert_dir = \"{keys}\"\n{more}"
    )
}

/// What a guest's QEMU is told of streams, and the objects that it has.
fn left_in(daemon: &Daemon) -> String {
    let asked = |command: &str| daemon.ok(&["qemu-monitor-command", "guest", command]);
    let objects = r#"{"execute":"qom-list","arguments":{"path":"/objects"}}"#;
    asked(r#"{"execute":"query-migrate-parameters"}"#) + &asked(objects)
}

#[test]
fn a_counting_guest_travels_encrypted() {
    let authority = Authority::new("test authority");
    let keys = keys(&authority);
    let hosts = Hosts::with(&settings(&keys, "migrate_tls_force = 1\n"));
    hosts.source.create(&counting());
    let counted = next_count(&mut hosts.source.console("penguin"));
    let to = hosts.destination.uri();
    let base = [&["migrate", "penguin", &to, "--live"][..], &TCP].concat();
    let clear = hosts.source.virsh(&base).fails();
    assert!(clear.contains("allows migration only with VIR_MIGRATE_TLS flag"), "{clear}");
    hosts.source.ok(&[&base[..], &["--tls"]].concat());
    let there = next_count(&mut hosts.destination.console("penguin"));
    assert!(there > counted, "counted to {counted}, and now {there}");
}

#[test]
fn whoever_cannot_prove_who_he_is_gets_no_guest() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let (ours, theirs) = (keys(&one), keys(&other));
    let hosts = Hosts::with_each(&settings(&ours, ""), &settings(&theirs, ""));
    hosts.source.run(&halting("guest"));
    let to = hosts.destination.uri();
    for p2p in [&[][..], &["--p2p"]] {
        let options = [&["migrate", "guest", &to, "--live", "--tls"][..], &TCP, p2p].concat();
        let refused = hosts.source.virsh(&options).fails();
        assert!(refused.contains("certificate"), "{refused}");
        expect_states(&hosts, "guest", "running", "");
    }
    // Neither the one that failed nor anything of the next in the clear has traces of it.
    let left = left_in(&hosts.source);
    assert!(left.contains(r#""tls-creds":"""#) && !left.contains("libvirt_migrate"), "{left}");
    hosts.source.ok(&[&["migrate", "guest", &to, "--live"][..], &TCP].concat());
    expect_states(&hosts, "guest", "shut off", "running");
}

#[test]
fn encryption_goes_with_every_way_to_stream() {
    let authority = Authority::new("test authority");
    let keys = keys(&authority);
    // A passphrase that the host keeps opens the keys.
    for side in ["server", "client"] {
        let (plain, sealed) = (keys.path().join(format!("{side}-key.pem")), keys.path().join("sealed"));
        let mut openssl = command("openssl");
        openssl.args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:sesame", "-in"]).arg(&plain);
        assert!(openssl.arg("-out").arg(&sealed).status().unwrap().success());
        fs::rename(&sealed, &plain).unwrap();
    }
    let uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let hosts = Hosts::with(&settings(&keys, &format!("migrate_tls_x509_secret_uuid = \"{uuid}\"\n")));
    hosts.source.run(&halting("guest"));
    let to = hosts.destination.uri();
    let migrate = |options: &[&str]| {
        let base = ["migrate", "guest", &to, "--live", "--tls", "--persistent", "--undefinesource"];
        hosts.source.virsh(&[&base[..], options].concat())
    };
    let without = migrate(&TCP).fails();
    assert!(without.contains("Secret not found"), "{without}");
    for daemon in [&hosts.source, &hosts.destination] {
        let xml = format!(
            "<secret ephemeral='yes'><uuid>{uuid}</uuid><usage type='tls'><name>keys</name></usage></secret>"
        );
        daemon.with_xml(&xml, |xml| daemon.ok(&["secret-define", xml]));
        daemon.ok(&["secret-set-value", uuid, "c2VzYW1l"]);
    }
    for options in [&["--parallel"][..], &["--postcopy"], &["--p2p"], &["--tls-destination", "localhost"]] {
        migrate(&[&TCP, options].concat()).ok();
        expect_states(&hosts, "guest", "", "running");
        let left = left_in(&hosts.destination);
        assert!(left.contains(r#""tls-creds":"""#) && !left.contains("libvirt_migrate"), "{left}");
        hosts.migrate_back("guest", &["--live", "--persistent", "--undefinesource"]).ok();
    }
    let stranger = migrate(&[&TCP[..], &["--tls-destination", "elsewhere"]].concat()).fails();
    assert!(stranger.contains("elsewhere") || stranger.contains("certificate"), "{stranger}");
    let socket = format!("unix://{}", hosts.destination.path("arrival").display());
    let nameless = migrate(&["--migrateuri", &socket]).fails();
    assert!(nameless.contains("Explicit destination hostname is required for TLS migration"), "{nameless}");
    migrate(&["--migrateuri", &socket, "--tls-destination", "localhost"]).ok();
    expect_states(&hosts, "guest", "", "running");
}

#[test]
fn disks_are_copied_encrypted() {
    let authority = Authority::new("test authority");
    let keys = keys(&authority);
    let hosts = Hosts::with(&settings(&keys, ""));
    let (here, there) = (hosts.source.path("disk.img"), hosts.destination.path("disk.img"));
    fs::write(&here, [&b"contents"[..], &vec![0; (1 << 20) - 8]].concat()).unwrap();
    fs::write(&there, vec![0; 1 << 20]).unwrap();
    hosts.source.run(&halting("guest").device(&image_disk(&here)));
    let xml = hosts.source.ok(&["dumpxml", "guest", "--migratable"]);
    let xml = xml.replace(&here.display().to_string(), &there.display().to_string());
    let to = hosts.destination.uri();
    let socket = format!("unix://{}", hosts.destination.path("disks").display());
    hosts.source.with_xml(&xml, |xml| {
        let base = ["migrate", "guest", &to, "--live", "--tls", "--copy-storage-all", "--xml", xml];
        let refused = hosts.source.virsh(&[&base[..], &TCP, &["--disks-uri", &socket]].concat()).fails();
        assert!(refused.contains("NBD migration with TLS is not supported over UNIX socket"), "{refused}");
        expect_states(&hosts, "guest", "running", "");
        hosts.source.ok(&[&base[..], &TCP].concat());
    });
    expect_states(&hosts, "guest", "shut off", "running");
    assert!(fs::read(&there).unwrap().starts_with(b"contents"));
}
