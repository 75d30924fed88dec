//! Every command of virsh about pools and volumes, on each type of pool that this host can have, beside what
//! libvirt's own daemon answers to the same.
//!
//! Partitions are real ones, on loop devices. Volume groups are those of `tests/data/tools/lvm`, for both daemons.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ferrovirt_compat::{Daemon, Kind, install_script, run};

use crate::takeover::has_upstream;
use crate::{daemon, kind};

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");
const LVM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tools/lvm");
const LVM_COMMANDS: &[&str] = &[
    "pvcreate", "pvremove", "pvs", "vgscan", "vgcreate", "vgremove", "vgchange", "vgs", "lvs", "lvcreate",
    "lvremove", "lvchange",
];

/// A disk of its own for a test.
pub(crate) struct Disk {
    pub path: String,
}

impl Disk {
    pub(crate) fn new(daemon: &Daemon, mib: u64) -> Self {
        let image = daemon.path("disk.img");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let path = run("losetup", &["--partscan", "--find", "--show", image.to_str().unwrap()]).ok();
        Self { path: path.trim().to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.path]);
    }
}

/// LVM's commands where the daemon looks for them; what they made is gone with this.
struct Lvm {
    tools: PathBuf,
}

impl Lvm {
    fn new(daemon: &mut Daemon) -> Self {
        let tools = daemon.path("tools");
        fs::create_dir_all(&tools).unwrap();
        let script = fs::read_to_string(LVM).unwrap().replace("@tools@", tools.to_str().unwrap());
        install_script(&tools.join("lvm"), &script);
        for name in LVM_COMMANDS {
            symlink("lvm", tools.join(name)).unwrap();
        }
        // libvirt's own daemon has the places of its tools built in; they are laid over them as it starts.
        daemon.terminate();
        daemon.restart();
        Self { tools }
    }
}

impl Drop for Lvm {
    fn drop(&mut self) {
        run(self.tools.join("lvm").to_str().unwrap(), &["tidy"]);
    }
}

/// What one daemon answers to a row of commands.
struct Talk<'a> {
    daemon: &'a Daemon,
    /// What differs from run to run, and what stands for it.
    names: Vec<(String, &'static str)>,
    said: Vec<String>,
}

impl<'a> Talk<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        Self { daemon, names: vec![(daemon.path("").display().to_string(), "ROOT/")], said: Vec::new() }
    }

    fn named(mut self, name: &str, instead: &'static str) -> Self {
        self.names.push((name.to_owned(), instead));
        self
    }

    /// `line` without what differs from run to run: ids, times, and how full the host is.
    fn normal(&self, line: &str) -> String {
        let mut line = line.trim_end().to_owned();
        for (name, instead) in &self.names {
            line = line.replace(name, instead);
        }
        let trimmed = line.trim_start();
        let varies = ["<uuid>", "<atime>", "<mtime>", "<ctime>", "UUID:"];
        let is_uuid = trimmed.len() == 36 && trimmed.matches('-').count() == 4;
        let is_room = line.contains("<!--") || (self.names.len() == 1 && is_about_room(trimmed));
        match varies.into_iter().find(|start| trimmed.starts_with(start)) {
            Some(start) => start.to_owned(),
            None if is_uuid => "UUID".to_owned(),
            None if is_room => trimmed.split([':', '>']).next().unwrap_or_default().to_owned(),
            None => line,
        }
    }

    fn ask(&mut self, arguments: &[&str]) -> bool {
        let ran = self.daemon.virsh(arguments);
        let text = format!("{}{}", ran.out, ran.err);
        let lines: Vec<_> =
            text.lines().map(|line| self.normal(line)).filter(|line| !line.is_empty()).collect();
        let command: Vec<_> = arguments.iter().map(|argument| self.normal(argument)).collect();
        self.said.push(format!("$ {}\n{}", command.join(" "), lines.join("\n")));
        ran.success
    }

    /// Notes how long a file is, and of which bytes it consists.
    fn note_content(&mut self, file: &Path) {
        let content = fs::read(file).unwrap_or_default();
        let bytes: std::collections::BTreeSet<u8> = content.iter().copied().collect();
        self.said.push(format!("{} bytes of {bytes:?}", content.len()));
    }

    /// The same about a description that `change` makes of a text.
    fn ask_about(&mut self, command: &[&str], xml: &str, rest: &[&str]) -> bool {
        let file = self.daemon.path("about.xml");
        fs::write(&file, xml).unwrap();
        self.ask(&[command, &[file.to_str().unwrap()], rest].concat())
    }
}

/// How much of the host's disk is taken, which is nobody's doing here.
fn is_about_room(line: &str) -> bool {
    ["Capacity:", "Allocation:", "Available:", "<allocation", "<available", "<capacity"]
        .iter()
        .any(|start| line.starts_with(start))
}

/// What every pool is asked, after it has been defined and before it is built.
fn life_begins(talk: &mut Talk<'_>) {
    for arguments in [
        &["pool-info", "p"][..],
        &["pool-dumpxml", "p"],
        &["pool-list", "--all", "--details"],
        &["pool-name", "p"],
        &["pool-uuid", "p"],
        &["pool-refresh", "p"],
        &["vol-list", "p"],
        &["pool-start", "p"],
        &["pool-build", "p"],
        &["pool-build", "p", "--no-overwrite", "--overwrite"],
        &["pool-start", "p"],
        &["pool-start", "p"],
        &["pool-build", "p"],
        &["pool-delete", "p"],
        &["pool-undefine", "p"],
        &["pool-autostart", "p"],
        &["pool-info", "p"],
        &["pool-autostart", "p", "--disable"],
        &["pool-list", "--autostart"],
        &["pool-list", "--transient"],
        &["pool-dumpxml", "p"],
        &["pool-dumpxml", "p", "--inactive"],
        &["pool-refresh", "p"],
        &["vol-list", "p", "--details"],
    ] {
        talk.ask(arguments);
    }
}

/// What is asked of every volume.
fn about(talk: &mut Talk<'_>, volume: &str) {
    for arguments in [
        &["vol-info", volume, "p"][..],
        &["vol-info", volume, "p", "--bytes", "--physical"],
        &["vol-dumpxml", volume, "p"],
        &["vol-path", volume, "p"],
        &["vol-key", volume, "p"],
        &["vol-list", "p"],
    ] {
        talk.ask(arguments);
    }
    let path = talk.daemon.virsh(&["vol-path", volume, "p"]).out.trim().to_owned();
    for command in ["vol-name", "vol-pool", "vol-key"] {
        talk.ask(&[command, &path]);
    }
}

fn life_ends(talk: &mut Talk<'_>) {
    for arguments in [
        &["pool-info", "p"][..],
        &["pool-destroy", "p"],
        &["pool-destroy", "p"],
        &["vol-list", "p"],
        &["pool-delete", "p"],
        &["pool-undefine", "p"],
        &["pool-undefine", "p"],
        &["pool-list", "--all"],
    ] {
        talk.ask(arguments);
    }
}

/// Up and down again with a known content, and wiped.
fn streams(talk: &mut Talk<'_>, volume: &str) {
    let (up, down) = (talk.daemon.path("up"), talk.daemon.path("down"));
    fs::write(&up, [7; 70_000]).unwrap();
    let (up, target) = (up.to_str().unwrap().to_owned(), down.to_str().unwrap().to_owned());
    talk.ask(&["vol-upload", volume, &up, "p", "--offset", "4096"]);
    talk.ask(&["vol-download", volume, &target, "p", "--offset", "4096", "--length", "70000"]);
    talk.note_content(&down);
    talk.ask(&["vol-wipe", volume, "p"]);
    talk.ask(&["vol-download", volume, &target, "p", "--offset", "4096", "--length", "70000"]);
    talk.note_content(&down);
}

fn directory(daemon: &mut Daemon) -> Vec<String> {
    let mut talk = Talk::new(daemon);
    let target = daemon.path("pool").display().to_string();
    talk.ask(&["pool-define-as", "p", "dir", "--target", &target]);
    life_begins(&mut talk);
    for arguments in [
        &["vol-create-as", "p", "raw", "1M"][..],
        &["vol-create-as", "p", "raw", "1M"],
        &["vol-create-as", "p", "a/b", "1M"],
        &["vol-create-as", "p", "sparse", "1M", "--allocation", "0", "--print-xml"],
        &["vol-create-as", "p", "sparse", "1M", "--allocation", "0"],
        &["vol-create-as", "p", "image", "8M", "--format", "qcow2"],
        &[
            "vol-create-as",
            "p",
            "top",
            "8M",
            "--format",
            "qcow2",
            "--backing-vol",
            "image",
            "--backing-vol-format",
            "qcow2",
        ],
        &["vol-create-as", "p", "none", "8M", "--format", "nothing"],
        &["vol-clone", "raw", "copy", "p"],
        &["vol-clone", "raw", "copy", "p"],
        &["vol-clone", "image", "image2", "p"],
        &["vol-resize", "sparse", "2M", "p"],
        &["vol-resize", "sparse", "1M", "p"],
        &["vol-resize", "sparse", "1M", "p", "--shrink"],
        &["vol-resize", "sparse", "1M", "p", "--delta"],
        &["vol-resize", "image", "16M", "p"],
        &["vol-resize", "raw", "2M", "p", "--allocate"],
        &["vol-list", "p", "--details"],
    ] {
        talk.ask(arguments);
    }
    for volume in ["raw", "sparse", "image", "top", "copy", "image2"] {
        about(&mut talk, volume);
    }
    streams(&mut talk, "raw");
    let copy =
        "<volume><name>from</name><capacity>0</capacity><target><format type='qcow2'/></target></volume>";
    talk.ask_about(&["vol-create-from", "p"], copy, &["raw", "--inputpool", "p"]);
    talk.ask_about(&["vol-create", "p"], "<volume><name>x</name></volume>", &[]);
    about(&mut talk, "from");
    talk.ask(&["pool-event", "--list"]);
    talk.ask(&["find-storage-pool-sources", "dir"]);
    talk.ask(&["find-storage-pool-sources-as", "logical-or-not"]);
    for volume in ["raw", "raw", "sparse", "image", "top", "copy", "image2", "from"] {
        talk.ask(&["vol-delete", volume, "p"]);
    }
    life_ends(&mut talk);
    talk.said
}

fn volume_group(daemon: &mut Daemon) -> Vec<String> {
    let disk = Disk::new(daemon, 129);
    let _lvm = Lvm::new(daemon);
    let group = format!("fvlvm{}", std::process::id());
    let mut talk =
        Talk::new(daemon).named(&group, "GROUP").named(&disk.path, "DISK").named("ROOT/tools", "/usr/sbin");
    talk.ask(&["pool-define-as", "p", "logical", "--source-dev", &disk.path, "--source-name", &group]);
    life_begins(&mut talk);
    for arguments in [
        &["vol-create-as", "p", "one", "10M"][..],
        &["vol-create-as", "p", "one", "10M"],
        &["vol-create-as", "p", "thin", "20M", "--allocation", "4M"],
        &["vol-create-as", "p", "large", "1G"],
        &["vol-create-as", "p", "snapshot", "12M", "--backing-vol", "one"],
        &["vol-resize", "one", "20M", "p"],
        &["vol-wipe", "thin", "p"],
        &["vol-clone", "one", "copy", "p"],
        &["vol-list", "p", "--details"],
    ] {
        talk.ask(arguments);
    }
    for volume in ["one", "thin", "snapshot", "copy"] {
        about(&mut talk, volume);
    }
    streams(&mut talk, "one");
    talk.ask(&["find-storage-pool-sources", "logical"]);
    talk.ask(&["find-storage-pool-sources-as", "logical"]);
    let copy = talk.daemon.virsh(&["vol-path", "copy", "p"]).out;
    talk.note_content(Path::new(copy.trim()));
    for volume in ["copy", "snapshot", "thin", "one", "one"] {
        talk.ask(&["vol-delete", volume, "p"]);
    }
    talk.ask(&["pool-refresh", "p"]);
    life_ends(&mut talk);
    talk.said
}

fn partitions(daemon: &mut Daemon) -> Vec<String> {
    let disk = Disk::new(daemon, 100);
    let name = disk.path.rsplit('/').next().unwrap().to_owned();
    let part = |number: u32| format!("{name}p{number}");
    let mut talk = Talk::new(daemon).named(&disk.path, "DISK").named(&name, "NAME");
    talk.ask(&["pool-define-as", "p", "disk", "--source-dev", &disk.path, "--target", "/dev"]);
    life_begins(&mut talk);
    for number in 1..=3 {
        talk.ask(&["vol-create-as", "p", &part(number), "10M", "--format", "linux"]);
    }
    talk.ask(&["vol-create-as", "p", &part(4), "40M", "--format", "extended"]);
    talk.ask(&["vol-create-as", "p", &part(6), "40M", "--format", "extended"]);
    // libvirt's own daemon has forgotten where there is room.
    talk.ask(&["pool-refresh", "p"]);
    talk.ask(&["vol-create-as", "p", &part(5), "5M"]);
    talk.ask(&["vol-create-as", "p", &part(6), "1G"]);
    talk.ask(&["pool-refresh", "p"]);
    talk.ask(&["vol-list", "p", "--details"]);
    talk.ask(&["pool-dumpxml", "p"]);
    for number in [1, 4, 5] {
        about(&mut talk, &part(number));
    }
    talk.ask(&["vol-wipe", &part(4), "p"]);
    talk.ask(&["vol-resize", &part(1), "20M", "p"]);
    streams(&mut talk, &part(1));
    life_ends(&mut talk);
    talk.said
}

/// Both daemons, each with its own root; ours alone where libvirt's is not installed.
fn compare(talk: fn(&mut Daemon) -> Vec<String>, backend: &str) {
    let ours = talk(&mut Daemon::start(Kind::Ours(OURS), ""));
    let module =
        format!("/usr/lib/x86_64-linux-gnu/libvirt/storage-backend/libvirt_storage_backend_{backend}.so");
    if !has_upstream() || !Path::new(&module).exists() {
        eprintln!("compared to nothing: libvirt's {backend} driver is not installed (scripts/deps upstream)");
        return;
    }
    let theirs = talk(&mut Daemon::start(Kind::Upstream, ""));
    let differences: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
    for (ours, theirs) in &differences {
        eprintln!("---- ours\n{ours}\n---- libvirt's\n{theirs}\n");
    }
    assert!(differences.is_empty() && ours.len() == theirs.len(), "{} answers differ", differences.len());
}

#[test]
fn directories_answer_every_command_as_libvirt_does() {
    compare(directory, "fs");
}

#[test]
fn volume_groups_answer_every_command_as_libvirt_does() {
    compare(volume_group, "logical");
}

#[test]
fn partitions_answer_every_command_as_libvirt_does() {
    compare(partitions, "disk");
}

/// libvirt's own daemon can do neither on a loop device.
#[test]
fn a_partition_is_removed_and_one_of_a_wrong_name_is_not_left() {
    if kind() == Kind::Upstream {
        return;
    }
    let daemon = daemon();
    let disk = Disk::new(&daemon, 100);
    let part = format!("{}p1", disk.path.trim_start_matches("/dev/"));
    daemon.ok(&["pool-create-as", "p", "disk", "--source-dev", &disk.path, "--target", "/dev", "--build"]);
    let room = || {
        daemon.ok(&["pool-dumpxml", "p"]).lines().find(|line| line.contains("<available")).map(str::to_owned)
    };
    let before = room();
    let error = daemon.virsh(&["vol-create-as", "p", "wrong", "10M"]).fails();
    assert!(error.contains(&format!("invalid partition name 'wrong', expected '{part}'")), "{error}");
    daemon.ok(&["pool-refresh", "p"]);
    assert_eq!((room(), daemon.ok(&["vol-list", "p", "--details"]).contains(&part)), (before.clone(), false));
    daemon.ok(&["vol-create-as", "p", &part, "10M"]);
    assert_ne!(room(), before);
    daemon.ok(&["vol-delete", &part, "p"]);
    assert_eq!(room(), before);
    assert!(!Path::new(&format!("/dev/{part}")).exists());
}

#[test]
fn a_missing_tool_is_named_and_a_type_that_is_not_built_in_is_refused() {
    let daemon = daemon();
    if kind() == Kind::Upstream {
        return;
    }
    let capabilities = daemon.ok(&["pool-capabilities"]);
    for (kind, word) in
        [("dir", "yes"), ("netfs", "yes"), ("mpath", "yes"), ("zfs", "no"), ("gluster", "no"), ("rbd", "no")]
    {
        assert!(capabilities.contains(&format!("<pool type='{kind}' supported='{word}'>")), "{capabilities}");
    }
    daemon.ok(&["pool-define-as", "z", "zfs", "--source-name", "tank"]);
    let error = daemon.virsh(&["pool-start", "z"]).fails();
    assert!(error.contains("Cannot find 'zpool' in path: No such file or directory"), "{error}");
    let error = daemon
        .virsh(&[
            "pool-define-as",
            "g",
            "gluster",
            "--source-host",
            "h",
            "--source-name",
            "v",
            "--source-path",
            "/",
        ])
        .fails();
    assert!(error.contains("internal error: missing backend for pool type 11 (gluster)"), "{error}");
}
