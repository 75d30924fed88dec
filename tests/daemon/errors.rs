//! What goes wrong is told in libvirt's words with the cause, and leaves nothing half-made.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use ferrovirt_compat::{Daemon, halting};

use crate::{daemon, on_upstream};

/// A stopped guest has no process, no pid or status file, no directory of its own.
#[track_caller]
fn assert_nothing_left(daemon: &Daemon, name: &str) {
    assert!(daemon.qemu_pids().is_empty());
    for below in ["run/libvirt/qemu", "var/lib/libvirt/qemu"] {
        for entry in fs::read_dir(daemon.path(below)).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let of_guest = file.ends_with(&format!("-{name}"))
                || file == format!("{name}.pid")
                || file == format!("{name}.xml");
            assert!(!of_guest, "{below}/{file} is left");
        }
    }
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let daemon = daemon();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let disk = |file: &str| {
        format!("<disk type='file'><source file='{file}'/><target dev='vda' bus='virtio'/></disk>")
    };
    let root = daemon.path("");
    let (pipe, precious) = (root.join("pipe"), root.join("precious"));
    ferrovirt_compat::run("mkfifo", &[pipe.to_str().unwrap()]).ok();
    std::fs::write(&precious, "years of work").unwrap();
    let cases = [
        (
            "pipe-without-reader",
            format!("<serial type='file'><source path='{}'/></serial>", pipe.display()),
            vec!["Unable to open file", "No such device or address"],
        ),
        (
            "socket-in-place-of-a-file",
            format!("<serial type='unix'><source mode='bind' path='{}'/></serial>", precious.display()),
            vec!["precious", "File exists"],
        ),
        (
            "channel-out-of-its-directory",
            "<channel type='unix'><target type='virtio' name='../../../../../precious'/></channel>"
                .to_owned(),
            vec!["unsupported configuration: channel name '../../../../../precious' cannot be"],
        ),
        (
            "missing-disk",
            disk("/nonexistent/disk.img"),
            vec!["/nonexistent/disk.img", "No such file or directory"],
        ),
        (
            "busy-port",
            format!("<serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}'/></serial>"),
            match on_upstream() {
                true => vec!["internal error: ", "Address already in use"],
                false => vec!["internal error: ", "Address already in use", "; port taken: "],
            },
        ),
        (
            "text-as-qcow2",
            format!(
                "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}/Cargo.toml'/><target dev='vda' bus='virtio'/></disk>",
                env!("CARGO_MANIFEST_DIR")
            ),
            vec!["qcow2"],
        ),
    ];
    for (name, device, words) in cases {
        daemon.define(&halting(name).device(&device));
        let error = daemon.virsh(&["start", name]).fails();
        for word in words {
            assert!(error.contains(word), "{name}: {error}");
        }
        assert_eq!(daemon.state(name), "shut off", "{name}");
        assert_nothing_left(&daemon, name);
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "years of work");
    // As a transient guest the same failure leaves not even a name.
    daemon.with_xml(&halting("fleeting").device(&disk("/nonexistent/disk.img")).xml(), |file| {
        daemon.virsh(&["create", file]).fails()
    });
    assert!(!daemon.ok(&["list", "--all", "--name"]).contains("fleeting"));
    drop(taken);
}

#[test]
fn a_qemu_that_dies_at_start_has_the_last_word() {
    let daemon = daemon();
    let xml = halting("doomed")
        .xml()
        .replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ")
        .replace(
            "</domain>",
            "<qemu:commandline><qemu:arg value='-no-such-option'/></qemu:commandline></domain>",
        );
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let error = daemon.virsh(&["start", "doomed"]).fails();
    assert!(error.contains("-no-such-option: invalid option"), "{error}");
    assert_nothing_left(&daemon, "doomed");
    let log = fs::read_to_string(daemon.path("var/log/libvirt/qemu/doomed.log")).unwrap();
    assert!(log.contains("-no-such-option: invalid option") && log.contains("-name"), "{log}");
}

#[test]
fn refusals_have_libvirts_words() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let uuid = daemon.ok(&["domuuid", "tiny"]).trim().to_owned();
    let xml = |change: &dyn Fn(String) -> String| change(halting("other").xml());
    let cases = [
        ("not XML", "<domain".to_owned(), "line 1"),
        ("another root", "<network/>".to_owned(), "expecting root element of 'domain', not 'network'"),
        ("no name", xml(&|x| x.replace("<name>other</name>", "")), "error: missing name information"),
        (
            "bad machine",
            xml(&|x| x.replace("machine='pc'", "machine='toaster'")),
            "does not support machine type 'toaster'",
        ),
        (
            "bad type",
            xml(&|x| {
                x.replace("<domain type='kvm'", "<domain type='bogus'")
                    .replace("<domain type='qemu'", "<domain type='bogus'")
            }),
            "invalid domain type bogus",
        ),
        (
            "name of another",
            xml(&|x| {
                x.replace("other", "tiny")
                    .replace("<name>", "<uuid>8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1</uuid><name>")
            }),
            &format!("operation failed: domain 'tiny' already exists with uuid {uuid}"),
        ),
        (
            "uuid of another",
            xml(&|x| x.replace("<name>", &format!("<uuid>{uuid}</uuid><name>"))),
            &format!("operation failed: domain 'tiny' is already defined with uuid {uuid}"),
        ),
        ("slash in name", xml(&|x| x.replace("other", "a/b")), "XML error: name a/b cannot contain '/'"),
    ];
    for (what, xml, words) in cases {
        let ran = daemon.with_xml(&xml, |file| daemon.virsh(&["define", file]));
        assert!(!ran.success, "{what}: defined");
        let error = ran.err;
        assert!(error.contains(words), "{what}: {error}");
    }
    assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "tiny");

    let cases: [(&[&str], &str); 5] = [
        (&["destroy", "tiny"], "Requested operation is not valid: domain is not running"),
        (&["suspend", "tiny"], "Requested operation is not valid: domain is not running"),
        (&["shutdown", "tiny"], "Requested operation is not valid: domain is not running"),
        (&["start", "absent"], "failed to get domain 'absent'"),
        (&["console", "absent"], "failed to get domain 'absent'"),
    ];
    for (command, words) in cases {
        let error = daemon.virsh(command).fails();
        assert!(error.contains(words), "{command:?}: {error}");
    }
    daemon.ok(&["start", "tiny"]);
    let error = daemon.virsh(&["start", "tiny"]).fails();
    assert!(error.contains("Domain is already active"), "{error}");
}

/// Every field of every refusal is what libvirt's own daemon answers; with `UPDATE=1` that one writes it down.
#[test]
fn refusals_are_libvirts_in_every_field() {
    let daemon = daemon();
    let script = format!(
        "ROOT = '{}'\nREAD_ONLY = '{}'\nTYPE = '{}'\nROM = '{}'\n{}",
        daemon.path("").display().to_string().trim_end_matches('/'),
        daemon.read_only_uri(),
        if Path::new("/dev/kvm").exists() { "kvm" } else { "qemu" },
        ferrovirt_compat::part("halt.rom").display(),
        include_str!("refusals.py"),
    );
    let answered = daemon.python(&script).ok();
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/refusals.txt");
    if on_upstream() && std::env::var_os("UPDATE").is_some() {
        fs::write(&recorded, &answered).unwrap();
    }
    let recorded = fs::read_to_string(&recorded).unwrap();
    let differing: Vec<_> = (recorded.lines().zip(answered.lines()))
        .filter(|(expected, answer)| expected != answer)
        .map(|(expected, answer)| format!("expected {expected}\nanswered {answer}"))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert_eq!(recorded.lines().count(), answered.lines().count());
}

#[test]
fn python_sees_code_and_domain() {
    let daemon = daemon();
    let out = daemon
        .python(
            "def refused(call, *arguments):\n\
             \x20   try: call(*arguments)\n\
             \x20   except libvirt.libvirtError as e: print(e.get_error_code(), e.get_error_domain(), e.get_error_level(), e.get_error_message())\n\
             refused(conn.lookupByName, 'absent')\n\
             refused(conn.lookupByID, 99)\n\
             refused(conn.lookupByUUIDString, '00000000-0000-0000-0000-000000000001')\n\
             refused(conn.defineXML, '<domain type=\"qemu\"/>')\n",
        )
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "42 10 2 Domain not found: no domain with matching name 'absent'",
            "42 10 2 Domain not found: no domain with matching id 99",
            "42 10 2 Domain not found: no domain with matching uuid '00000000-0000-0000-0000-000000000001'",
            "21 20 2 missing name information",
        ]
    );
}
