//! What is on record of guests, compared with what libvirt's own daemon records.

use std::fs;
use std::path::{Path, PathBuf};

use ferrovirt_compat::{Daemon, Guest, eventually, halting};

use crate::{kind, on_upstream};

/// A daemon whose audit trail goes to this file.
fn recording(log: &Path) -> Daemon {
    let config = format!("audit_logging = 1\nlog_level = 2\nlog_outputs = \"2:file:{}\"\n", log.display());
    Daemon::start(kind(), &config)
}

/// The line of the audit trail that has all these words, once it is there.
fn audited(log: &std::path::Path, words: &[&str]) -> String {
    eventually(&format!("{words:?} are recorded"), || {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
    })
}

#[test]
fn starts_stops_and_resources_are_on_record_as_libvirt_records_them() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let daemon = recording(&log);
    let disk = directory.path().join("d\" i.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let xml = format!(
        "<disk type='file' device='disk'><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    daemon.run(&halting("au dit").device(&xml));
    let uuid = daemon.ok(&["domuuid", "au dit"]).trim().to_owned();
    let pid = daemon.qemu_pid("au dit");
    let vm = format!("vm=617520646974 uuid={uuid}");
    audited(&log, &["success=yes virt=kvm op=start reason=booted", &format!("{vm} vm-pid={pid}")]);
    let coded: String = disk.display().to_string().bytes().map(|byte| format!("{byte:02X}")).collect();
    audited(&log, &["virt=kvm resrc=disk reason=start", &vm, &format!("old-disk=\"?\" new-disk={coded}")]);
    audited(&log, &["virt=kvm resrc=vcpu reason=start", &vm, "old-vcpu=0 new-vcpu="]);
    audited(&log, &["virt=kvm resrc=mem reason=start", &vm, "old-mem=0 new-mem="]);
    let rng = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>";
    daemon.with_xml(rng, |path| daemon.ok(&["attach-device", "au dit", path, "--live"]));
    // libvirt forgets the source before it records a device that has come.
    if !on_upstream() {
        audited(&log, &["resrc=rng reason=attach", &vm, "old-rng=\"?\" new-rng=\"/dev/urandom\""]);
    }
    daemon.ok(&["destroy", "au dit"]);
    audited(&log, &["success=yes virt=kvm op=stop reason=destroyed", &format!("{vm} vm-pid=0")]);
    fs::remove_file(&disk).unwrap();
    daemon.virsh(&["start", "au dit"]).fails();
    audited(&log, &["success=no virt=kvm op=start reason=booted", &vm]);
}

/// A name that no other test has for anything.
fn name(root: &Path) -> String {
    root.file_name().unwrap().display().to_string()
}

/// Memory that guests share, which is nobody's to remove but the test's.
struct Shared(PathBuf);

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// All records of a guest, with what differs by chance left out; host-only ones of libvirt's (cgroups) as well.
fn records(log: &Path, vm: &str, root: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    let head = format!(" vm=\"{vm}\" uuid=");
    let mut records = Vec::new();
    for line in text.lines().filter(|line| line.contains(&head) && !line.contains("resrc=cgroup")) {
        let Some((_, record)) = line.split_once("success=") else { continue };
        let (before, after) = record.split_once(&head).unwrap();
        // Not the uuid, which is of 36 letters, nor what kind of QEMU it is.
        let before = before.replace(" virt=kvm", "").replace(" virt=qemu", "");
        let after = after[36..].replace(root.to_str().unwrap(), "").replace(&name(root), "NAME");
        let words = after.split(' ').map(|word| match word.split_once('=') {
            Some(("vm-pid", pid)) if pid != "0" => "vm-pid=PID".to_owned(),
            Some((key, path)) if path.starts_with("\"/dev/pts/") => format!("{key}=PTY"),
            Some(("device", path)) if path.contains("swtpm.sock") => "device=SWTPM".to_owned(),
            _ => word.to_owned(),
        });
        records.push(format!("{before}{}", words.collect::<Vec<_>>().join(" ")));
    }
    records
}

/// With something of each kind that a host without devices to give away has.
fn rich(place: &str, shared: &str) -> Guest {
    let mut guest = halting("rich");
    for device in [
        format!(
            "<disk type='file' device='disk'><source file='{place}/disk.img'/><target dev='vda' bus='virtio'/></disk>"
        ),
        format!(
            "<disk type='file' device='cdrom'><source file='{place}/one.iso'/><target dev='hda'/></disk>"
        ),
        "<controller type='scsi' model='virtio-scsi'/>".to_owned(),
        format!("<filesystem><source dir='{place}'/><target dir='share'/></filesystem>"),
        "<interface type='user'><mac address='52:54:00:01:02:03'/><model type='virtio'/></interface>"
            .to_owned(),
        "<serial type='pty'/>".to_owned(),
        format!("<serial type='file'><source path='{place}/serial'/><target port='1'/></serial>"),
        format!("<parallel type='file'><source path='{place}/parallel'/></parallel>"),
        format!(
            "<channel type='unix'><source mode='bind' path='{place}/channel'/><target type='virtio' name='c'/></channel>"
        ),
        "<console type='pty'><target type='virtio'/></console>".to_owned(),
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>".to_owned(),
        "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>".to_owned(),
        format!("<shmem name='{shared}'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"),
    ] {
        guest = guest.device(&device);
    }
    guest
}

#[test]
fn what_a_guest_gets_and_gives_back_is_on_record_as_libvirt_records_it() {
    let directory = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").unwrap();
    let log = directory.path().join("log");
    let place = directory.path().to_str().unwrap().to_owned();
    for image in ["disk.img", "one.iso", "two.iso", "copy.img", "scsi.img"] {
        fs::File::create(directory.path().join(image)).unwrap().set_len(1 << 20).unwrap();
    }
    let daemon = recording(&log);
    let numa = "<cpu><numa><cell id='0' cpus='0-1' memory='16' unit='MiB'/></numa></cpu>\
                <maxMemory slots='2' unit='MiB'>512</maxMemory><vcpu current='1'>2</vcpu>";
    let shared = Shared(Path::new("/dev/shm").join(name(directory.path())));
    let xml = rich(&place, &name(directory.path())).xml().replace("<os>", &format!("{numa}<os>"));
    daemon.with_xml(&xml, |path| daemon.ok(&["create", path]));
    let ok = |arguments: &[&str]| daemon.ok(&[&arguments[..1], &["rich"], &arguments[1..]].concat());
    let with = |command: &str, xml: &str| daemon.with_xml(xml, |path| ok(&[command, path, "--live"]));
    let scsi = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{place}/scsi.img'/>\
         <target dev='sda' bus='scsi'/></disk>"
    );
    with("attach-device", &scsi);
    with("detach-device", &scsi);
    let channel = format!(
        "<channel type='unix'><source mode='bind' path='{place}/other'/><target type='virtio' name='d'/></channel>"
    );
    with("attach-device", &channel);
    with("detach-device", &channel);
    let rng = "<rng model='virtio'><backend model='random'>/dev/missing</backend></rng>";
    daemon.with_xml(rng, |path| daemon.virsh(&["attach-device", "rich", path, "--live"]).fails());
    with(
        "attach-device",
        "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>",
    );
    ok(&["change-media", "hda", &format!("{place}/two.iso"), "--live"]);
    ok(&["change-media", "hda", "--eject", "--live"]);
    ok(&["setvcpus", "2", "--live"]);
    ok(&["iothreadadd", "1", "--live"]);
    ok(&["iothreaddel", "1", "--live"]);
    ok(&["blockcopy", "vda", &format!("{place}/copy.img"), "--reuse-external", "--transient-job"]);
    ok(&["blockjob", "vda", "--abort"]);
    ok(&[
        "snapshot-create-as",
        "--no-metadata",
        "--disk-only",
        "--diskspec",
        &format!("vda,file={place}/top.img"),
    ]);
    ok(&["destroy"]);
    audited(&log, &["op=stop reason=destroyed", "vm=\"rich\""]);
    assert_eq!(records(&log, "rich", directory.path()), RECORDS.lines().collect::<Vec<_>>());
    assert!(shared.0.exists(), "it outlives its guests");
}

const RECORDS: &str = r#"yes vm-ctx=+0:+0 img-ctx=+0:+0 model=dac
yes resrc=disk reason=start old-disk="?" new-disk="/disk.img"
yes resrc=disk reason=start old-disk="?" new-disk="/one.iso"
yes resrc=fs reason=start old-fs="?" new-fs=""
yes resrc=net reason=start old-net="?" new-net="52:54:00:01:02:03"
yes resrc=chardev reason=start old-chardev="?" new-chardev=PTY
yes resrc=chardev reason=start old-chardev="?" new-chardev="/serial"
yes resrc=chardev reason=start old-chardev="?" new-chardev="/parallel"
yes resrc=chardev reason=start old-chardev="?" new-chardev="/channel"
yes resrc=chardev reason=start old-chardev="?" new-chardev=PTY
yes resrc=rng reason=start old-rng="?" new-rng="/dev/urandom"
yes resrc=tpm-emulator reason=start device=SWTPM
yes resrc=shmem reason=start size=1048576 path=/dev/shm/NAME
yes resrc=mem reason=start old-mem=0 new-mem=16384
yes resrc=vcpu reason=start old-vcpu=0 new-vcpu=1
yes op=start reason=booted vm-pid=PID
yes resrc=disk reason=attach old-disk="?" new-disk="/scsi.img"
yes resrc=disk reason=detach old-disk="/scsi.img" new-disk="?"
yes resrc=chardev reason=attach old-chardev="?" new-chardev="/other"
yes resrc=chardev reason=detach old-chardev="/other" new-chardev="?"
no resrc=rng reason=attach old-rng="?" new-rng="/dev/missing"
yes resrc=mem reason=update old-mem=16384 new-mem=147456
yes resrc=disk reason=update old-disk="/one.iso" new-disk="/two.iso"
yes resrc=disk reason=update old-disk="/two.iso" new-disk="?"
yes resrc=vcpu reason=update old-vcpu=1 new-vcpu=2
yes resrc=iothread reason=update old-iothread=0 new-iothread=1
yes resrc=iothread reason=update old-iothread=1 new-iothread=0
yes resrc=disk reason=mirror old-disk="?" new-disk="/copy.img"
yes resrc=disk reason=snapshot old-disk="/disk.img" new-disk="/top.img"
yes op=stop reason=destroyed vm-pid=0"#;
