//! What libvirt refuses is refused with its code and its sentence; what it accepts is accepted.

use std::fs;

use crate::conf::domain::Domain;
use crate::conf::domain::defaults::tests::{complete, corpus, facts};
use crate::conf::xml::Form;
use crate::conf::{ConfError, ErrorKind, Origin, Result};

fn define(text: &str) -> Result<Domain> {
    let facts = facts(&Domain::parse(text, Form::INACTIVE)?);
    let domain = complete(text)?;
    domain.validate(&facts)?;
    Ok(domain)
}

/// Code, origin and whole sentence, as the corpus records them.
fn as_recorded(error: &ConfError) -> String {
    let (code, form) = match error.kind {
        ErrorKind::Internal => (1, "internal error: {}"),
        ErrorKind::InvalidArg => (8, "invalid argument: {}"),
        ErrorKind::OsType => (16, "unknown OS type {}"),
        ErrorKind::NoSource => (19, "missing source information for device {}"),
        ErrorKind::NoTarget => (20, "missing target information for device {}"),
        ErrorKind::NoName => (21, "missing name information"),
        ErrorKind::Xml => (27, "XML error: {}"),
        ErrorKind::InvalidSchema => (92, "XML document failed to validate against schema: {}"),
        ErrorKind::XmlDetail => (35, "{}"),
        ErrorKind::Unsupported => (67, "unsupported configuration: {}"),
        ErrorKind::Failed => (9, "operation failed: {}"),
        ErrorKind::Overflow => (82, "numerical overflow: {}"),
        ErrorKind::OperationUnsupported => (84, "Operation not supported: {}"),
    };
    let origin = match error.origin {
        Origin::None => 0,
        Origin::Cpu => 31,
        Origin::Xml => 5,
        Origin::Qemu => 10,
        Origin::Domain => 20,
    };
    format!("define {code} {origin}\n{}\n", form.replace("{}", &error.message))
}

#[test]
fn the_corpus_is_refused_and_accepted_as_by_libvirt() {
    let mut wrong = Vec::new();
    let mut refused = 0;
    for case in corpus() {
        let input = fs::read_to_string(case.join("input.xml")).unwrap();
        let name = case.file_name().unwrap().to_str().unwrap();
        let recorded = fs::read_to_string(case.join("error")).unwrap_or_default();
        match (define(&input), recorded.starts_with("define ")) {
            (Ok(_), false) => {}
            (Err(error), true) if as_recorded(&error) == recorded => refused += 1,
            (Ok(_), true) => wrong.push(format!("{name}: accepted, not {recorded}")),
            (Err(error), _) => wrong.push(format!("{name}: {} not {recorded}", as_recorded(&error))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 20, "only {refused}");
}

/// A guest with these elements inside `<domain>` and inside `<devices>`.
fn guest(elements: &str, devices: &str) -> String {
    format!(
        "<domain type='qemu'><name>x</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>{elements}\
         <devices>{devices}</devices></domain>"
    )
}

#[test]
fn nonsense_does_not_reach_qemu() {
    for (elements, devices, message) in [
        ("<vcpu>0</vcpu>", "", "CPU IDs in <numa> exceed the <vcpu> count"),
        ("<vcpu current='3'>2</vcpu>", "", "maximum vCPU count must not be less than current vCPU count"),
        (
            "<vcpu>256</vcpu>",
            "<iommu model='intel'><driver eim='off'/></iommu>",
            "more than 255 vCPUs require extended interrupt mode enabled on the iommu device",
        ),
        (
            "<vcpu>2</vcpu><cpu><topology sockets='1' cores='1' threads='1'/></cpu>",
            "",
            "CPU topology doesn't match maximum vcpu count",
        ),
        (
            "<on_poweroff>coredump-destroy</on_poweroff>",
            "",
            "Lifecycle event 'poweroff' doesn't support 'coredump-destroy' action",
        ),
        (
            "<cputune><period>1</period></cputune>",
            "",
            "Value of cputune 'period' must be in range [1000, 1000000]",
        ),
        ("", "<disk><target dev='vda'/></disk>", "vda"),
        (
            "",
            "<disk device='cdrom'><target dev='sda' bus='sata'/></disk><disk device='cdrom'><target dev='sdb' bus='sata'/><address type='drive'/></disk>",
            "Found duplicate drive address for disk with target name 'sda' controller='0' bus='0' target='0' unit='0'",
        ),
        (
            "",
            "<disk><source file='/x'/><target dev='foo'/></disk>",
            "Unknown disk name 'foo' and no address specified",
        ),
        (
            "",
            "<controller type='pci' index='300' model='pcie-root-port'/>",
            "Inappropriate new pci controller index 300 exceeds addrs array length",
        ),
        (
            "",
            "<controller type='usb' index='0' model='none'/><input type='tablet' bus='usb'/>",
            "Can't add USB input device. USB bus is disabled",
        ),
        (
            "",
            "<controller type='usb' index='0' model='none'/><disk><source file='/x'/><target dev='sda' bus='usb'/></disk>",
            "USB is disabled for this domain, but USB devices are present in the domain XML",
        ),
        ("", "<watchdog model='diag288'/>", "diag288 model of watchdog is allowed for s390 and s390x only"),
        (
            "",
            "<graphics type='vnc' passwd='123456789'/>",
            "VNC password is 9 characters long, only 8 permitted",
        ),
        ("<name>y</name>", "<serial type='unix'/>", "Missing source path attribute for char device"),
    ] {
        let error = define(&guest(elements, devices)).unwrap_err();
        assert_eq!(error.message, message, "{elements}{devices}");
    }
    let slash = guest("", "").replace("<name>x<", "<name>a/b<");
    assert_eq!(define(&slash).unwrap_err().message, "name a/b cannot contain '/'");
    let nothing = guest("", "").replace("<memory>65536</memory>", "");
    let message = "Memory size must be specified via <memory> or in the <numa> configuration";
    assert_eq!(define(&nothing).unwrap_err().message, message);
}

#[test]
fn hostile_definitions_end_quickly() {
    let started = std::time::Instant::now();
    let many = |element: &str, count: usize| guest("", &element.repeat(count));
    for text in [
        many("<disk><source file='/x'/><target dev='vda'/></disk>", 20_000),
        many("<disk><source file='/x'/><target dev='vda'/></disk>", 1000),
        many("<controller type='scsi'/>", 1000),
        many("<input type='tablet' bus='usb'/>", 1000),
        many("<interface type='user'/>", 1000),
        many("<hub type='usb'/>", 1000),
        guest("<vcpu>4294967295</vcpu><vcpus><vcpu id='0' enabled='yes'/></vcpus>", ""),
        guest("<iothreads>4294967295</iothreads>", ""),
        guest("", "<controller type='usb' index='4294967295' model='qemu-xhci'/>"),
        guest(
            "",
            "<controller type='virtio-serial' index='0' ports='4294967295'/><channel type='unix'><target type='virtio'/></channel>",
        ),
        guest(
            "",
            "<disk><source file='/x'/><target dev='sda' bus='scsi'/><address type='drive' controller='4294967295'/></disk>",
        ),
        guest("", "<controller type='usb' model='qemu-xhci' ports='4294967295'/>"),
    ] {
        let _ = define(&text);
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}
