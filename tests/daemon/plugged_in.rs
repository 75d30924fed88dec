//! Memory that is plugged in, memory that guests share, and networks of guests alone.

use std::fs;

use ferrovirt_compat::{Daemon, Guest, eventually, halting};

use crate::daemon;
use crate::endings::needs_fake;
use crate::fake_qemu::Behaviour;

#[test]
fn memory_devices_are_there_from_the_start() {
    let daemon = daemon();
    let store = daemon.path("pmem.raw");
    fs::write(&store, vec![0; 2 << 20]).unwrap();
    let xml = halting("big")
        .machine("q35")
        .device(
            "<memory model='dimm'><target><size unit='MiB'>32</size><node>0</node></target></memory>\
             <memory model='virtio-mem'><target><size unit='MiB'>64</size><node>0</node>\
             <block unit='MiB'>2</block><requested unit='MiB'>4</requested></target></memory>",
        )
        .device(&format!(
            "<memory model='virtio-pmem'><source><path>{}</path></source>\
             <target><size unit='MiB'>2</size></target></memory>",
            store.display()
        ))
        .xml()
        .replace(
            "<memory unit='MiB'>16</memory>",
            "<maxMemory slots='4' unit='MiB'>1024</maxMemory><memory unit='MiB'>64</memory>\
             <cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>",
        );
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    let found = daemon.ok(&["qemu-monitor-command", "big", r#"{"execute": "query-memory-devices"}"#]);
    for id in ["dimm0", "virtiomem0", "virtiopmem0"] {
        assert!(found.contains(&format!(r#""id":"{id}""#)), "{id}: {found}");
    }
    let live = daemon.ok(&["dumpxml", "big"]);
    assert!(live.contains("<memory unit='KiB'>165888</memory>"), "{live}");
    daemon.ok(&["destroy", "big"]);
}

#[test]
fn guests_share_memory_and_a_network_of_their_own() {
    let daemon = daemon();
    let name = format!("ferrovirt-test-{}", std::process::id());
    let parts = format!(
        "<shmem name='{name}'><model type='ivshmem-plain'/><size unit='M'>2</size></shmem>\
         <crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>\
         <interface type='mcast'><source address='230.0.0.1' port='5558'/><model type='virtio'/></interface>\
         <interface type='udp'><source address='127.0.0.1' port='11115'><local address='127.0.0.1' port='0'/></source>\
         <model type='virtio'/></interface>"
    );
    daemon.run(&halting("one").device(&parts));
    daemon.run(&halting("two").device(&parts.replace("11115", "11116")));
    let shared = format!("/dev/shm/{name}");
    assert_eq!(fs::metadata(&shared).unwrap().len(), 2 << 20);
    let networks = daemon.ok(&["qemu-monitor-command", "two", "--hmp", "info network"]);
    assert!(networks.contains("mcast=230.0.0.1:5558") && networks.contains("udp="), "{networks}");
    for guest in ["one", "two"] {
        daemon.ok(&["destroy", guest]);
    }
    fs::remove_file(shared).unwrap();
}

/// A device of the host that some driver has is not taken from it.
#[test]
fn a_device_of_the_host_stays_with_its_driver() {
    let daemon = daemon();
    let device = "<hostdev mode='subsystem' type='pci' managed='MANAGED'><source>\
                  <address domain='0x0000' bus='0x00' slot='0x1f' function='0x7'/></source></hostdev>";
    for managed in ["yes", "no"] {
        let xml = halting(managed).device(&device.replace("MANAGED", managed)).xml();
        daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
        let error = daemon.virsh(&["start", managed]).fails();
        assert!(error.contains("0000:00:1f.7"), "{error}");
    }
}

/// A guest with room for memory.
fn roomy(guest: Guest) -> String {
    guest.xml().replace(
        "<memory unit='MiB'>16</memory>",
        "<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory unit='MiB'>64</memory>\
         <cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>",
    )
}

fn attach(daemon: &Daemon, guest: &str, xml: &str, flags: &[&str]) {
    daemon.with_xml(xml, |file| daemon.ok(&[&["attach-device", guest, file], flags].concat()));
}

const DIMM: &str = "<memory model='dimm'><target><size unit='MiB'>32</size><node>0</node></target></memory>";
const VIRTIO_MEM: &str = "<memory model='virtio-mem'><target><size unit='MiB'>64</size><node>0</node>\
                          <block unit='MiB'>2</block><requested unit='MiB'>4</requested></target></memory>";

#[test]
fn memory_comes_while_a_guest_runs() {
    let daemon = daemon();
    let mut events = daemon.python_beside(
        "tell = lambda conn, domain, alias, opaque: print('added', alias)\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, tell, None)\n\
         print('listening')\n\
         run_events()",
    );
    events.expect("listening");
    let xml = roomy(halting("roomy").machine("pc"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    daemon.ok(&["start", "roomy"]);
    attach(&daemon, "roomy", DIMM, &["--live", "--config"]);
    events.expect("added memdimm0");
    attach(&daemon, "roomy", VIRTIO_MEM, &["--live"]);
    events.expect("added memvirtiomem0");
    let live = daemon.ok(&["dumpxml", "roomy"]);
    // QEMU says where it is.
    for text in [
        "<memory unit='KiB'>163840</memory>",
        "<address type='dimm' slot='0' base='0x100000000'/>",
        "<requested unit='KiB'>4096</requested>",
        "<alias name='virtiomem0'/>",
    ] {
        assert!(live.contains(text), "{text}: {live}");
    }
    let inactive = daemon.ok(&["dumpxml", "roomy", "--inactive"]);
    assert!(
        inactive.contains("<size unit='KiB'>32768</size>") && !inactive.contains("virtio-mem"),
        "{inactive}"
    );
    daemon.ok(&["update-memory-device", "roomy", "--alias", "virtiomem0", "--requested-size", "8MiB"]);
    assert!(daemon.ok(&["dumpxml", "roomy"]).contains("<requested unit='KiB'>8192</requested>"));
    let found = daemon.ok(&["qemu-monitor-command", "roomy", r#"{"execute": "query-memory-devices"}"#]);
    assert!(found.contains(r#""requested-size":8388608"#), "{found}");
    let other = VIRTIO_MEM.replace("64", "32");
    for (what, xml, flag, sentence) in [
        (
            "detach",
            &*other,
            "--live",
            "model 'virtio-mem' memory device not present in the domain configuration",
        ),
        ("detach", &*other, "--config", "matching memory device was not found"),
        ("update", DIMM, "--live", "memory '(null)' not found"),
    ] {
        let command = format!("{what}-device");
        let error = daemon.with_xml(xml, |file| daemon.virsh(&[&command, "roomy", file, flag])).fails();
        assert!(error.contains(sentence), "{error}");
    }
    attach(&daemon, "roomy", DIMM, &["--live"]);
    let error =
        daemon.with_xml(DIMM, |file| daemon.virsh(&["attach-device", "roomy", file, "--live"])).fails();
    assert!(
        error.contains("count of memory devices requiring memory slots '3' exceeds slots count '2'"),
        "{error}"
    );
    daemon.with_xml(DIMM, |file| daemon.ok(&["detach-device", "roomy", file, "--config"]));
    let inactive = daemon.ok(&["dumpxml", "roomy", "--inactive"]);
    assert!(inactive.contains("<memory unit='KiB'>65536</memory>") && !inactive.contains("<memory model"));
    daemon.ok(&["destroy", "roomy"]);
}

/// Behind memory in files there are files; they go with it.
#[test]
fn memory_in_files_leaves_none_behind() {
    if needs_fake() {
        return;
    }
    let daemon = daemon();
    let behaviour = Behaviour {
        events: [(
            "device_del".to_owned(),
            vec![(
                "DEVICE_DELETED".to_owned(),
                serde_json::json!({ "device": "dimm0", "path": "/machine/peripheral/dimm0" }),
            )],
        )]
        .into(),
        replies: ["query-fdsets", "query-memory-devices", "query-chardev"]
            .map(|name| (name.to_owned(), serde_json::json!([])))
            .into(),
        ..Default::default()
    };
    let emulator = behaviour.install(&daemon.path(""));
    let guest = halting("filed").device(&format!("<emulator>{}</emulator>", emulator.display()));
    let xml = roomy(guest).replace("<emulator>/usr/bin/qemu-system-x86_64</emulator>", "");
    let xml = xml.replace("<devices>", "<memoryBacking><source type='file'/></memoryBacking><devices>");
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    attach(&daemon, "filed", DIMM, &["--live"]);
    let memory = daemon.path("var/lib/libvirt/qemu/ram");
    let directory = fs::read_dir(memory).unwrap().next().unwrap().unwrap().path();
    let file = directory.join("dimm0");
    // The fake QEMU makes none.
    fs::write(&file, "").unwrap();
    daemon.with_xml(DIMM, |file| daemon.ok(&["detach-device", "filed", file, "--live"]));
    eventually("the file is gone", || (!file.exists()).then_some(()));
    eventually("so is the device", || (!daemon.ok(&["dumpxml", "filed"]).contains("dimm")).then_some(()));
    daemon.ok(&["destroy", "filed"]);
}

#[test]
fn shared_memory_leases_and_host_devices_come_and_go_in_definitions() {
    let daemon = daemon();
    let xml = halting("kept").xml().replace("<controller type='usb' model='none'/>", "");
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    for (xml, found) in [
        ("<shmem name='s'><model type='ivshmem-plain'/><size unit='M'>2</size></shmem>", "<shmem name='s'>"),
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source>\
             </hostdev>",
            "<product id='0xbeef'/>",
        ),
        (
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='9' slot='0' function='0'/>\
             </source></hostdev>",
            "bus='0x09'",
        ),
        (
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
             <address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/></source></hostdev>",
            "53764d0e",
        ),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host9'/>\
             <address bus='0' target='0' unit='0'/></source></hostdev>",
            "scsi_host9",
        ),
        (
            "<lease><lockspace>area</lockspace><key>one</key><target path='/leases'/></lease>",
            "<key>one</key>",
        ),
    ] {
        let has = || daemon.ok(&["dumpxml", "kept"]).contains(found);
        attach(&daemon, "kept", xml, &["--config"]);
        assert!(has(), "{xml}");
        let again = daemon.with_xml(xml, |file| daemon.virsh(&["attach-device", "kept", file, "--config"]));
        assert!(again.fails().contains("already"), "{xml}");
        daemon.with_xml(xml, |file| daemon.ok(&["detach-device", "kept", file, "--config"]));
        assert!(!has(), "{xml}");
        let gone = daemon.with_xml(xml, |file| daemon.virsh(&["detach-device", "kept", file, "--config"]));
        assert!(gone.fails().contains("not"), "{xml}");
    }
}

#[test]
fn shared_memory_and_leases_come_while_a_guest_runs() {
    let daemon = daemon();
    daemon.run(&halting("kept").machine("pc"));
    let name = format!("ferrovirt-test-plug-{}", std::process::id());
    let shmem = format!("<shmem name='{name}'><model type='ivshmem-plain'/><size unit='M'>2</size></shmem>");
    attach(&daemon, "kept", &shmem, &["--live"]);
    assert!(daemon.ok(&["dumpxml", "kept"]).contains("<alias name='shmem0'/>"));
    assert!(daemon.ok(&["qemu-monitor-command", "kept", "--hmp", "info pci"]).contains("1af4:1110"));
    let lease = "<lease><lockspace>area</lockspace><key>one</key><target path='/leases'/></lease>";
    attach(&daemon, "kept", lease, &["--live"]);
    assert!(daemon.ok(&["dumpxml", "kept"]).contains("<key>one</key>"));
    daemon.with_xml(lease, |file| daemon.ok(&["detach-device", "kept", file, "--live"]));
    assert!(!daemon.ok(&["dumpxml", "kept"]).contains("<key>one</key>"));
    // A name that the client has chosen is the device's.
    attach(
        &daemon,
        "kept",
        "<rng model='virtio'><backend model='builtin'/><alias name='ua-dice'/></rng>",
        &[],
    );
    assert!(daemon.ok(&["dumpxml", "kept"]).contains("<alias name='ua-dice'/>"));
    for (xml, sentence) in [
        (
            "<filesystem type='mount'><source dir='/tmp'/><target dir='t'/></filesystem>",
            "only virtiofs filesystems can be hotplugged",
        ),
        (
            "<memory model='dimm'><target><size unit='MiB'>32</size></target></memory>",
            "cannot use/hotplug a memory device when domain 'maxMemory' is not defined",
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source>\
             </hostdev>",
            "Device configuration is not compatible: Domain has no USB bus support",
        ),
        (
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
             <address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/></source></hostdev>",
            "ediated",
        ),
    ] {
        let before = daemon.ok(&["dumpxml", "kept"]);
        let error =
            daemon.with_xml(xml, |file| daemon.virsh(&["attach-device", "kept", file, "--live"])).fails();
        assert!(error.contains(sentence), "{xml}: {error}");
        assert_eq!(daemon.ok(&["dumpxml", "kept"]), before);
    }
    daemon.ok(&["destroy", "kept"]);
    fs::remove_file(format!("/dev/shm/{name}")).unwrap();
}
