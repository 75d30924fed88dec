//! Encrypted volumes: a guest boots from one, and its passphrase is nowhere to be seen.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine;
use ferrovirt_compat::{Daemon, eventually, linux, run};

use crate::daemon;

const UUID: &str = "5f1f2f50-8403-4b23-88d6-21ccc2f80d70";
const PASSPHRASE: &str = "correct horse battery staple 7";

/// A boot sector that says so on the first serial port and halts.
pub(crate) fn boot_sector() -> Vec<u8> {
    const CODE: &[u8] = &[
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0xbe, 0x15, 0x7c, 0xba, 0xf8, 0x03, // mov si, text; mov dx, 0x3f8
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb,
        0xf8, // next: lodsb; test al, al; jz halt; out dx, al; jmp next
        0xf4, 0xeb, 0xfd, // halt: hlt; jmp halt
    ];
    let mut sector = [CODE, b"BOOTED FROM DISK\n\0"].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Whether this gives a passphrase away: as it is, or as it is on the wire and in files.
pub(crate) fn gives_away(content: &[u8], passphrase: &str) -> bool {
    let encoded = base64::engine::general_purpose::STANDARD.encode(passphrase);
    [passphrase, &encoded]
        .iter()
        .any(|shape| content.windows(shape.len()).any(|window| window == shape.as_bytes()))
}

fn shows(content: &[u8]) -> bool {
    gives_away(content, PASSPHRASE)
}

/// Processes whose arguments or environment `shows` says something of.
pub(crate) fn in_processes(shows: impl Fn(&[u8]) -> bool) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let files = processes.flat_map(|process| ["cmdline", "environ"].map(|file| process.join(file)));
    files
        .filter(|file| fs::read(file).is_ok_and(|it| shows(&it)))
        .map(|it| it.display().to_string())
        .collect()
}

/// Files below a directory that `shows` says something of.
pub(crate) fn in_files(directory: &Path, shows: &impl Fn(&[u8]) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(in_files(&path, shows));
        } else if kind.is_file() && fs::read(&path).is_ok_and(|content| shows(&content)) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// A daemon with the secret, set by a file that is gone again, and a pool.
fn with_secret() -> Daemon {
    let daemon = daemon();
    let xml = format!("<secret private='yes'><uuid>{UUID}</uuid></secret>");
    daemon.with_xml(&xml, |file| daemon.ok(&["secret-define", file]));
    let file = daemon.path("passphrase");
    fs::write(&file, PASSPHRASE).unwrap();
    daemon.ok(&["secret-set-value", UUID, "--file", file.to_str().unwrap(), "--plain"]);
    fs::remove_file(file).unwrap();
    let pool = daemon.path("pool");
    daemon.ok(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap(), "--build"]);
    daemon
}

fn encryption() -> String {
    format!("<encryption format='luks'><secret type='passphrase' uuid='{UUID}'/></encryption>")
}

/// Does something while somebody looks at every process there is.
fn watched<T>(work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut found = Vec::new();
            while !over.load(Ordering::Relaxed) && found.is_empty() {
                found = in_processes(shows);
                // Who works with a passphrase computes for much longer, and needs a processor for it.
                thread::park_timeout(Duration::from_millis(30));
            }
            found
        });
        // Whatever becomes of it: who watches must hear that it is over.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        assert_eq!(watching.join().unwrap(), [""; 0]);
        done.unwrap_or_else(|reason| std::panic::resume_unwind(reason))
    })
}

#[test]
fn a_guest_boots_from_an_encrypted_volume_whose_passphrase_nobody_sees() {
    let daemon = with_secret();
    let plain = daemon.path("pool/plain");
    daemon.ok(&["vol-create-as", "p", "plain", "1M"]);
    fs::File::options().write(true).open(&plain).unwrap().write_all_at(&boot_sector(), 0).unwrap();
    let copy = format!(
        "<volume><name>sealed</name><capacity>0</capacity><target><format type='raw'/>{}</target></volume>",
        encryption()
    );
    watched(|| {
        daemon.with_xml(&copy, |file| daemon.ok(&["vol-create-from", "p", file, "plain", "--inputpool", "p"]))
    });
    let sealed = fs::read(daemon.path("pool/sealed")).unwrap();
    assert!(sealed.starts_with(b"LUKS\xba\xbe") && !sealed.windows(6).any(|window| window == b"BOOTED"));
    let said = daemon.path("said");
    let guest = format!(
        "<domain type='qemu'><name>sealed</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type>\
         <boot dev='hd'/></os><devices><disk type='volume'><driver name='qemu' type='raw'/><source pool='p' volume='sealed'>{}</source>\
         <target dev='vda' bus='virtio'/></disk><serial type='file'><source path='{}'/></serial></devices></domain>",
        encryption(),
        said.display()
    );
    watched(|| daemon.with_xml(&guest, |file| daemon.ok(&["create", file])));
    eventually("the guest boots from its disk", || {
        fs::read_to_string(&said).ok().filter(|said| said.contains("BOOTED FROM DISK"))
    });
    assert_eq!((in_processes(shows), in_files(&daemon.path(""), &shows)), (Vec::new(), Vec::new()));
    daemon.ok(&["destroy", "sealed"]);
}

#[test]
fn linux_writes_to_an_encrypted_volume() {
    let daemon = with_secret();
    let volume = format!(
        "<volume><name>v</name><capacity unit='MiB'>8</capacity><target><format type='raw'/>{}</target></volume>",
        encryption()
    );
    watched(|| daemon.with_xml(&volume, |file| daemon.ok(&["vol-create", "p", file])));
    let image = daemon.path("pool/v");
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'>{}</source><target dev='vda' bus='virtio'/></disk>",
        image.display(),
        encryption()
    );
    daemon.run(&linux("penguin", "guest.write=/dev/vda").device(&disk));
    daemon.console("penguin").expect("wrote 3");
    assert_eq!((in_processes(shows), in_files(&daemon.path(""), &shows)), (Vec::new(), Vec::new()));
    daemon.ok(&["destroy", "penguin"]);
    // What Linux wrote is there, for who has the passphrase.
    let (key, opened) = (tempfile::NamedTempFile::new().unwrap(), daemon.path("opened"));
    fs::write(key.path(), PASSPHRASE).unwrap();
    let options = format!("driver=luks,key-secret=s,file.filename={}", image.display());
    let object = format!("secret,id=s,file={}", key.path().display());
    let target = opened.to_str().unwrap();
    run("qemu-img", &["convert", "--object", &object, "--image-opts", &options, "-O", "raw", target]).ok();
    assert!(fs::read(&opened).unwrap().starts_with(b"block 0000000000\n"));
    assert!(!fs::read(&image).unwrap().windows(6).any(|window| window == b"block "));
}
