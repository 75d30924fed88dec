//! Pairs of definitions, and what is said of the second.

use super::*;
use crate::conf::xml::Form;

const GUEST: &str = "<domain type='qemu'><name>guest</name><uuid>6ba7b810-9dad-41d1-80b4-00c04fd430c8</uuid>\
    <memory>65536</memory><currentMemory>65536</currentMemory><vcpu current='1'>2</vcpu>\
    <os><type arch='x86_64' machine='pc-i440fx-10.0'>hvm</type></os>\
    <features><acpi/><apic/><vmport state='off'/></features>\
    <cpu mode='custom' match='exact' check='none'><model>qemu64</model>\
    <topology sockets='2' dies='1' clusters='1' cores='1' threads='1'/><feature policy='disable' name='svm'/></cpu>\
    <clock offset='utc'><timer name='hpet' present='no'/></clock>\
    <devices><disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/><serial>x</serial>\
    <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></disk>\
    <controller type='usb' index='0' model='none'/>\
    <interface type='user'><mac address='52:54:00:01:02:03'/><model type='virtio'/></interface>\
    <serial type='pty'><target type='isa-serial' port='0'/></serial>\
    <channel type='unix'><target type='virtio' name='a.b'/></channel>\
    <graphics type='vnc' port='5900'/><video><model type='vga' vram='16384'/></video>\
    <memballoon model='virtio' freePageReporting='on'/></devices></domain>";

fn domain(text: &str) -> Domain {
    Domain::parse(text, Form::INACTIVE).unwrap()
}

fn verdict(changes: &[(&str, &str)]) -> Result<(), String> {
    let changed = changes.iter().fold(GUEST.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    });
    domain(GUEST).check_same_machine(&domain(&changed)).map_err(|error| error.message)
}

#[test]
fn what_the_guest_does_not_see_may_differ() {
    for (from, to) in [
        ("<source file='/a'/>", "<source file='/elsewhere'/>"),
        ("type='vnc' port='5900'", "type='vnc' port='5999' passwd='x'"),
        ("<interface type='user'>", "<interface type='bridge'><source bridge='br0'/>"),
        ("<serial type='pty'>", "<serial type='file'><source path='/log'/>"),
        // The balloon moves.
        ("<currentMemory>65536", "<currentMemory>32768"),
    ] {
        assert_eq!(verdict(&[(from, to)]), Ok(()), "{to}");
    }
}

#[test]
fn what_the_guest_sees_must_not() {
    for (from, to, sentence) in [
        ("type='qemu'", "type='kvm'", "Target domain virt type kvm does not match source qemu"),
        ("<name>guest<", "<name>other<", "Target domain name 'other' does not match source 'guest'"),
        ("<memory>65536", "<memory>131072", "Target domain max memory 131072 does not match source 65536"),
        ("current='1'>2<", "current='1'>3<", "Target domain vCPU max 3 does not match source 2"),
        (
            "current='1'>2<",
            "current='2'>2<",
            "State of vCPU '1' differs between source and destination definitions",
        ),
        (
            "pc-i440fx-10.0",
            "pc-i440fx-9.2",
            "Target domain machine type pc-i440fx-9.2 does not match source pc-i440fx-10.0",
        ),
        ("<acpi/>", "", "State of feature 'acpi' differs: source: 'on', destination: 'default'"),
        (
            "<vmport state='off'/>",
            "<vmport state='on'/>",
            "State of feature 'vmport' differs: source: 'off', destination: 'on'",
        ),
        (
            "<apic/>",
            "<apic eoi='on'/>",
            "State of feature 'apic' differs: source: 'on,eoi=default', destination: 'on,eoi=on'",
        ),
        ("present='no'", "present='yes'", "Target timer presence 'yes' does not match source 'no'"),
        ("<timer name='hpet' present='no'/>", "", "Target domain timers do not match source"),
        ("qemu64", "kvm64", "Target CPU model kvm64 does not match source qemu64"),
        ("sockets='2'", "sockets='1'", "Target CPU sockets 1 does not match source 2"),
        ("name='svm'", "name='vmx'", "Target CPU feature vmx does not match source svm"),
        (
            "policy='disable'",
            "policy='require'",
            "Target CPU feature policy require does not match source disable",
        ),
    ] {
        assert_eq!(verdict(&[(from, to)]), Err(sentence.to_owned()));
    }
}

#[test]
fn what_is_plugged_in_must_stay_what_and_where_it_is() {
    for (from, to, sentence) in [
        (
            "dev='vda' bus='virtio'",
            "dev='sda' bus='scsi'",
            "Target disk bus scsi does not match source virtio",
        ),
        ("<serial>x</serial>", "", "Target disk serial <null> does not match source x"),
        (
            "slot='0x03'",
            "slot='0x04'",
            "Target device PCI address 0000:00:04.0 does not match source 0000:00:03.0",
        ),
        (
            "<controller type='usb' index='0' model='none'/>",
            "",
            "Target domain controller count 0 does not match source 1",
        ),
        (
            "52:54:00:01:02:03",
            "52:54:00:01:02:04",
            "Target network card mac 52:54:00:01:02:04 does not match source 52:54:00:01:02:03",
        ),
        (
            "<model type='virtio'/>",
            "<model type='e1000'/>",
            "Target network card model e1000 does not match source virtio",
        ),
        ("port='0'", "port='1'", "Target serial port 1 does not match source 0"),
        ("name='a.b'", "name='a.c'", "Target channel name a.c does not match source a.b"),
        ("vram='16384'", "vram='8192'", "Target video card vram 8192 does not match source 16384"),
        (
            "freePageReporting='on'",
            "",
            "Target balloon freePageReporting attribute value 'default' does not match source 'on'",
        ),
    ] {
        assert_eq!(verdict(&[(from, to)]), Err(sentence.to_owned()));
    }
}
