//! Small calls that everyday clients make: other names, keys, messages, limits and jobs that are not there.

use ferrovirt_compat::{LIMIT, gone_within, halting};

use crate::daemon;

#[test]
fn a_domain_that_is_off_gets_another_name() {
    let daemon = daemon();
    daemon.define(&halting("old"));
    daemon.define(&halting("other"));
    daemon.ok(&["autostart", "old"]);
    let mut events = daemon.events();
    daemon.ok(&["domrename", "old", "new"]);
    let seen = events.expect("new defined renamed\n");
    assert!(seen.contains("old undefined renamed\n"), "{seen}");
    assert_eq!(
        daemon.ok(&["list", "--all", "--name"]).split_whitespace().collect::<Vec<_>>(),
        ["new", "other"]
    );
    let info = daemon.ok(&["dominfo", "new"]);
    assert!(info.contains("Autostart:      enable"), "{info}");
    let config = daemon.path("etc/libvirt/qemu");
    assert!(config.join("new.xml").exists() && config.join("autostart/new.xml").exists());
    assert!(!config.join("old.xml").exists() && !config.join("autostart/old.xml").is_symlink());
    for (name, refusal) in [
        ("new", "Can't rename domain to itself"),
        ("other", "domain with name 'other' already exists"),
        ("a/b", "XML error: name a/b cannot contain '/'"),
    ] {
        let said = daemon.virsh(&["domrename", "new", name]).fails();
        assert!(said.contains(refusal), "{name}: {said}");
    }
    daemon.ok(&["start", "new"]);
    let said = daemon.virsh(&["domrename", "new", "old"]).fails();
    assert!(said.contains("cannot rename active domain"), "{said}");
    daemon.ok(&["destroy", "new"]);
    assert!(daemon.virsh(&["domstate", "old"]).fails().contains("failed to get domain 'old'"));
}

#[test]
fn messages_tell_of_old_machines_and_of_root() {
    let daemon = daemon();
    daemon.run(&halting("old").machine("pc-i440fx-2.8"));
    let said = daemon.python(
        "d = conn.lookupByName('old')\n\
         print(d.messages(1), d.messages(4), 'tainted: running with undesirable elevated privileges' in d.messages())\n\
         d.destroy()",
    );
    assert_eq!(said.ok().trim(), "[\"deprecated configuration: machine type 'pc-i440fx-2.8'\"] [] True");
}

#[test]
fn keys_are_pressed_by_name_and_number() {
    let daemon = daemon();
    daemon.run(&halting("keys"));
    for keys in [
        &["KEY_LEFTCTRL", "KEY_LEFTALT", "KEY_DELETE"][..],
        &["--codeset", "usb", "40"],
        &["--codeset", "win32", "0x0d"],
        &["--codeset", "qnum", "28"],
        &["--holdtime", "5", "KEY_A"],
    ] {
        daemon.ok(&[&["send-key", "keys"], keys].concat());
    }
    let said = daemon.virsh(&["send-key", "keys", "9999"]).fails();
    assert!(said.contains("cannot translate keycode 9999 of linux codeset to qnum keycode"), "{said}");
    daemon.ok(&["destroy", "keys"]);
    let said = daemon.virsh(&["send-key", "keys", "KEY_A"]).fails();
    assert!(said.contains("domain is not running"), "{said}");
}

#[test]
fn a_share_of_the_network_and_a_job_that_is_not_there_are_told() {
    let daemon = daemon();
    let guest = halting("net").device(
        "<interface type='user'><mac address='52:54:00:00:00:01'/>\
         <bandwidth><inbound average='10' peak='20' burst='30'/><outbound average='5'/></bandwidth></interface>",
    );
    daemon.define(&guest);
    let said = daemon.ok(&["domiftune", "net", "52:54:00:00:00:01"]);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "inbound.average: 10 inbound.peak : 20 inbound.burst : 30 inbound.floor : 0 outbound.average: 5 outbound.peak : 0 outbound.burst : 0"
    );
    let said = daemon.virsh(&["domiftune", "net", "52:54:00:00:00:02"]).fails();
    assert!(said.contains("'52:54:00:00:00:02' is not a known interface"), "{said}");
    let said = daemon.virsh(&["blockjob", "net", "vda", "--info"]).fails();
    assert!(said.contains("domain is not running"), "{said}");
    let disk = daemon.path("disk.img");
    std::fs::write(&disk, [0; 512]).unwrap();
    let disk = format!(
        "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    daemon.run(&halting("disk").device(&disk));
    let said = daemon.python("print(conn.lookupByName('disk').blockJobInfo('vda'))");
    assert_eq!(said.ok().trim(), "{}");
    let said = daemon.virsh(&["blockjob", "disk", "vdz", "--info"]).fails();
    assert!(said.contains("disk 'vdz' not found in domain"), "{said}");
    daemon.ok(&["destroy", "disk"]);
}

#[test]
fn an_emulated_tpm_is_made_once_and_served_while_its_guest_runs() {
    let daemon = daemon();
    let guest = halting("tpm").device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>");
    daemon.define(&guest);
    let uuid = daemon.ok(&["domuuid", "tpm"]);
    let state = daemon.path("var/lib/libvirt/swtpm").join(uuid.trim()).join("tpm2/tpm2-00.permall");
    let mut made = None;
    for _ in 0..2 {
        daemon.ok(&["start", "tpm"]);
        let now = std::fs::metadata(&state).unwrap().created().unwrap();
        assert_eq!(*made.get_or_insert(now), now, "a TPM is the guest's for good");
        let note = daemon.path("var/lib/libvirt/qemu/domain-1-tpm").parent().unwrap().to_owned();
        let notes: Vec<_> = std::fs::read_dir(note)
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("swtpm.pid")).ok())
            .collect();
        let [note] = &notes[..] else { panic!("{notes:?}") };
        let pid = note.split(' ').next().unwrap().parse().unwrap();
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(arguments.contains("swtpm\0socket"), "{arguments}");
        daemon.ok(&["destroy", "tpm"]);
        assert!(gone_within(pid, LIMIT), "it outlives its guest");
    }
    daemon.ok(&["undefine", "tpm", "--keep-tpm"]);
    assert!(state.exists());
    let again = guest.xml().replace("<memory", &format!("<uuid>{}</uuid><memory", uuid.trim()));
    daemon.with_xml(&again, |file| daemon.ok(&["define", file]));
    daemon.ok(&["undefine", "tpm"]);
    assert!(!state.exists(), "it outlives its domain");
}

#[test]
fn the_variables_of_firmware_go_where_the_client_says() {
    let daemon = daemon();
    let variables = daemon.path("variables.fd");
    let xml = halting("uefi")
        .xml()
        .replace("</loader>", &format!("</loader><nvram>{}</nvram>", variables.display()));
    let xml = xml.replace("type='rom'", "type='pflash'");
    let define = || daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    define();
    daemon.ok(&["undefine", "uefi"]);
    std::fs::write(&variables, "variables").unwrap();
    define();
    let said = daemon.virsh(&["undefine", "uefi"]).fails();
    assert!(said.contains("cannot undefine domain with nvram"), "{said}");
    // What is refused takes nothing else with it.
    let kept = daemon.path("var/lib/libvirt/qemu/save/uefi.save");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "kept").unwrap();
    daemon.virsh(&["undefine", "uefi", "--managed-save"]).fails();
    assert!(kept.exists());
    std::fs::remove_file(&kept).unwrap();
    daemon.ok(&["undefine", "uefi", "--keep-nvram"]);
    assert!(variables.exists());
    define();
    daemon.ok(&["undefine", "uefi", "--nvram"]);
    assert!(!variables.exists());
}

#[test]
fn a_server_of_directories_that_does_not_work_fails_the_start() {
    let daemon = daemon();
    let guest = halting("shares").device(
        "<filesystem type='mount'><driver type='virtiofs'/><binary path='/bin/false'/>\
         <source dir='/tmp'/><target dir='tag'/></filesystem>",
    );
    let xml = guest.xml().replace(
        "<devices>",
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><devices>",
    );
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let said = daemon.virsh(&["start", "shares"]).fails();
    assert!(said.contains("Failed to start domain 'shares'"), "{said}");
    assert_eq!(daemon.state("shares"), "shut off");
    assert!(daemon.qemu_pids().is_empty());
}

#[test]
fn guests_learn_which_firmware_the_host_has() {
    let daemon = daemon();
    let said = daemon.ok(&["domcapabilities", "--machine", "q35"]);
    let described =
        std::fs::read_dir("/usr/share/qemu/firmware").is_ok_and(|mut files| files.next().is_some());
    assert_eq!(said.contains("<value>efi</value>"), described, "{said}");
}
