//! Memory that is plugged in, memory that guests share, and networks of guests alone.

use std::fs;

use ferrovirt_compat::halting;

use crate::daemon;

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
