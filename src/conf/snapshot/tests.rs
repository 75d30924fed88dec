//! Snapshots in libvirt's form: read, completed, written.

use super::*;
use crate::conf::devices::SnapshotLocation;

const DOMAIN: &str = "<domain type='qemu'><name>d</name><memory>1024</memory><os><type>hvm</type></os><devices>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a.qcow2'/>\
    <target dev='vda' bus='virtio'/></disk>\
    <disk type='file' device='disk' snapshot='no'><source file='/i/b'/><target dev='vdb' bus='virtio'/></disk>\
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk></devices></domain>";

fn aligned(disks: &str, default: SnapshotLocation) -> Result<Vec<String>> {
    let domain = Domain::parse(DOMAIN, Form::INACTIVE).unwrap();
    let text = format!("<domainsnapshot><name>s</name><disks>{disks}</disks></domainsnapshot>");
    let mut snapshot = Snapshot::parse(&text, Purpose::Online)?;
    align(&mut snapshot, &domain, Align { default, forced: false }, |_| true)?;
    let shown = |disk: &SnapshotDisk| {
        let location = disk.location.map_or("", SnapshotLocation::as_str);
        format!("{} {location} {}", disk.name, disk.storage.path().unwrap_or("-"))
    };
    Ok(snapshot.disks.iter().map(shown).collect())
}

#[test]
fn every_disk_gets_its_place() {
    use SnapshotLocation::{External, Internal};
    for (disks, default, expected) in [
        ("", Internal, ["vda internal -", "vdb no -", "sda no -"]),
        ("", External, ["vda external /i/a.s", "vdb no -", "sda no -"]),
        (
            "<disk name='/i/b' snapshot='external'/>",
            External,
            ["vda external /i/a.s", "vdb external /i/b.s", "sda no -"],
        ),
        (
            "<disk name='vda'><source file='/x/y'/></disk><disk name='vdb' snapshot='manual'/>",
            External,
            ["vda external /x/y", "vdb manual -", "sda no -"],
        ),
    ] {
        assert_eq!(aligned(disks, default).unwrap(), expected, "{disks}");
    }
    for (disks, sentence) in [
        ("<disk name='vdz'/>", "no disk named 'vdz'"),
        ("<disk name='vda'/><disk name='/i/a.qcow2'/>", "disk '/i/a.qcow2' specified twice"),
        ("<disk name='vda' snapshot='external'/>", "disk 'vda' must use snapshot mode 'internal'"),
        ("<disk name='vda'><source file='x'/></disk>", "disk snapshot image path 'x' must be absolute"),
        (
            "<disk name='a'/><disk name='b'/><disk name='c'/><disk name='d'/>",
            "too many disk snapshot requests",
        ),
    ] {
        let error = aligned(disks, Internal).unwrap_err();
        assert!(error.message.contains(sentence), "{}", error.message);
    }
}

#[test]
fn memory_goes_where_it_can() {
    let parse = |memory: &str, purpose| {
        Snapshot::parse(&format!("<domainsnapshot><name>s</name>{memory}</domainsnapshot>"), purpose)
    };
    let location = |memory: &str| parse(memory, Purpose::Online).unwrap().memory_location();
    assert_eq!(location("<memory file='/m'/>"), Some(SnapshotLocation::External));
    assert_eq!(location(""), None);
    for (memory, purpose, sentence) in [
        ("<memory snapshot='manual'/>", Purpose::Online, "'manual' memory snapshot mode not supported"),
        ("<memory snapshot='external'/>", Purpose::Online, "external memory snapshots require a filename"),
        (
            "<memory snapshot='internal' file='/m'/>",
            Purpose::Online,
            "memory filename '/m' requires external",
        ),
        ("<memory file='/m'/>", Purpose::Offline, "memory state cannot be saved with offline"),
        ("<memory file='m'/>", Purpose::Online, "memory snapshot file path (m) must be absolute"),
        ("", Purpose::Redefine, "missing creationTime from existing snapshot"),
    ] {
        let error = parse(memory, purpose).unwrap_err();
        assert!(error.message.contains(sentence), "{}", error.message);
    }
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let text = format!(
        "<domainsnapshot><name>s</name><description>d</description><state>running</state><parent><name>p</name>\
         </parent><creationTime>12</creationTime><memory snapshot='external' file='/m'/><disks>\
         <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/i/a.s'/></disk>\
         </disks>{DOMAIN}<active>1</active></domainsnapshot>"
    );
    let (snapshot, current) = Snapshot::from_file(&text).unwrap();
    assert!(current && snapshot.is_online() && snapshot.is_external());
    let written = snapshot.to_file(true);
    assert_eq!(Snapshot::from_file(&written).unwrap(), (snapshot.clone(), true));
    assert!(written.contains("\n  <active>1</active>\n"), "{written}");
    assert!(!snapshot.to_xml(Form::INACTIVE).contains("<active>"));
    assert!(written.contains(
        "    <disk name='vda' snapshot='external' type='file'>\n      <driver type='qcow2'/>\n      \
         <source file='/i/a.s'/>\n    </disk>"
    ));
}
