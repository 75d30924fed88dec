//! Devices that come and go: of the running guest, of its definition, of both.

use std::fs;

use ferrovirt_compat::{Daemon, Guest, eventually, halting, linux};

use crate::daemon;

/// A guest with buses that devices can be plugged into.
fn guest(name: &str) -> Guest {
    halting(name)
        .device("<controller type='scsi' model='virtio-scsi'/><controller type='virtio-serial' index='0'/>")
}

fn attach(daemon: &Daemon, name: &str, xml: &str, flags: &[&str]) {
    daemon.with_xml(xml, |file| daemon.ok(&[&["attach-device", name, file], flags].concat()));
}

/// The live and the inactive definition have the text so many times.
fn count(daemon: &Daemon, name: &str, text: &str) -> (usize, usize) {
    let of = |flags: &[&str]| daemon.ok(&[&["dumpxml", name], flags].concat()).matches(text).count();
    (of(&[]), of(&["--inactive"]))
}

fn disk(daemon: &Daemon, name: &str, target: &str, bus: &str) -> String {
    let image = daemon.path(name);
    ferrovirt_compat::run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "10M"]).ok();
    let image = image.display();
    format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
         <target dev='{target}' bus='{bus}'/></disk>"
    )
}

#[test]
fn disks_come_and_go_where_the_client_says() {
    let daemon = daemon();
    daemon.run(&guest("tiny"));
    let scsi = disk(&daemon, "a.qcow2", "sda", "scsi");
    let virtio = disk(&daemon, "b.qcow2", "vda", "virtio");
    attach(&daemon, "tiny", &scsi, &["--live"]);
    assert_eq!(count(&daemon, "tiny", "<target dev='sda'"), (1, 0));
    attach(&daemon, "tiny", &virtio, &["--config"]);
    assert_eq!(count(&daemon, "tiny", "<target dev='vda'"), (0, 1));
    attach(&daemon, "tiny", &virtio, &["--live"]);
    let live = daemon.ok(&["dumpxml", "tiny"]);
    assert!(live.contains("<alias name='virtio-disk0'/>") && live.contains("<alias name='scsi0-0-0-0'/>"));
    let error = daemon.with_xml(&virtio, |file| daemon.virsh(&["attach-device", "tiny", file])).fails();
    assert!(error.contains("XML error: target 'vda' duplicated for disk sources '"), "{error}");
    let blocks = daemon.ok(&["qemu-monitor-command", "tiny", "--hmp", "info block"]);
    assert!(blocks.contains("a.qcow2") && blocks.contains("b.qcow2"), "{blocks}");
    // SCSI asks no guest.
    daemon.ok(&["detach-disk", "tiny", "sda"]);
    assert_eq!(count(&daemon, "tiny", "<target dev='sda'"), (0, 0));
    let blocks = daemon.ok(&["qemu-monitor-command", "tiny", "--hmp", "info block -n"]);
    assert!(!blocks.contains("a.qcow2") && blocks.contains("b.qcow2"), "{blocks}");
    daemon.ok(&["detach-disk", "tiny", "vda", "--config"]);
    assert_eq!(count(&daemon, "tiny", "<target dev='vda'"), (1, 0));
    daemon.ok(&["destroy", "tiny"]);
    attach(&daemon, "tiny", &virtio, &["--current"]);
    assert_eq!(count(&daemon, "tiny", "<target dev='vda'"), (1, 1));
}

#[test]
fn every_kind_is_plugged_by_what_it_adds_to_the_command_line() {
    let daemon = daemon();
    daemon.run(&guest("tiny"));
    let socket = daemon.path("channel.sock");
    let channel = format!(
        "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='org.x.0'/></channel>",
        socket.display()
    );
    for (xml, alias) in [
        ("<interface type='user'><model type='virtio'/><link state='down'/></interface>", "net0"),
        ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", "rng0"),
        ("<input type='tablet' bus='virtio'/>", "input2"),
        ("<controller type='scsi' index='1' model='virtio-scsi'/>", "scsi1"),
        ("<watchdog model='i6300esb' action='pause'/>", "watchdog0"),
        (&channel, "channel0"),
        ("<channel type='pty'><target type='virtio' name='org.x.1'/></channel>", "channel1"),
    ] {
        attach(&daemon, "tiny", xml, &["--live"]);
        assert_eq!(count(&daemon, "tiny", &format!("<alias name='{alias}'/>")), (1, 0), "{xml}");
        let path = format!(
            "{{\"execute\":\"qom-get\",\"arguments\":{{\"path\":\"/machine/peripheral/{alias}\",\"property\":\"type\"}}}}"
        );
        let found = daemon.ok(&["qemu-monitor-command", "tiny", &path]);
        assert!(found.contains("\"return\":\""), "{xml}: {found}");
    }
    assert!(fs::exists(&socket).unwrap());
    let live = daemon.ok(&["dumpxml", "tiny"]);
    assert!(live.contains("<source path='/dev/pts/"), "{live}");
    // Nobody knows yet whether the guest opens it.
    assert!(live.contains("<target type='virtio' name='org.x.0'/>"), "{live}");
    // A port of virtio-serial goes at once, and what is behind it with it.
    daemon.ok(&["detach-device-alias", "tiny", "channel0"]);
    eventually("the channel is gone", || {
        (count(&daemon, "tiny", "<alias name='channel0'/>") == (0, 0)).then_some(())
    });
    let chardevs = daemon.ok(&["qemu-monitor-command", "tiny", "--hmp", "info chardev"]);
    assert!(!chardevs.contains("charchannel0") && chardevs.contains("charchannel1"), "{chardevs}");
}

#[test]
fn what_cannot_be_plugged_says_why_and_leaves_nothing() {
    let daemon = daemon();
    daemon.run(&guest("tiny"));
    let sata = disk(&daemon, "c.qcow2", "sdc", "sata");
    let gone = "<disk type='file'><source file='/nonexistent/x'/><target dev='vdb' bus='virtio'/></disk>";
    for (xml, sentence) in [
        (sata.as_str(), "disk bus 'sata' cannot be hotplugged."),
        ("<sound model='ich6'/>", "live attach of device 'sound' is not supported"),
        ("<sound model='ich9'/>", "live attach of device 'sound' is not supported"),
        ("<graphics type='vnc'/>", "live attach of device 'graphics' is not supported"),
        (
            "<tpm model='tpm-crb'><backend type='emulator'/></tpm>",
            "live attach of device 'tpm' is not supported",
        ),
        ("<video><model type='virtio'/></video>", "live attach of device 'video' is not supported"),
        (
            "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
            "chardev 'spicevmc' not supported without spice graphics",
        ),
        ("<input type='mouse' bus='ps2'/>", "input device on bus 'ps2' cannot be hot plugged."),
        ("<toaster/>", "unknown device type 'toaster'"),
        (gone, "No such file or directory"),
    ] {
        let before = daemon.ok(&["dumpxml", "tiny"]);
        let error =
            daemon.with_xml(xml, |file| daemon.virsh(&["attach-device", "tiny", file, "--live"])).fails();
        assert!(error.contains(sentence), "{xml}: {error}");
        assert_eq!(daemon.ok(&["dumpxml", "tiny"]), before);
    }
    for (xml, what, flag, sentence) in [
        (
            "<panic model='isa'/>",
            "attach",
            "--config",
            "persistent attach of device 'panic' is not supported",
        ),
        (
            "<graphics type='vnc'/>",
            "detach",
            "--config",
            "persistent detach of device 'graphics' is not supported",
        ),
        ("<sound model='ich6'/>", "detach", "--live", "live detach of device 'sound' is not supported"),
    ] {
        let command = format!("{what}-device");
        let error = daemon.with_xml(xml, |file| daemon.virsh(&[&command, "tiny", file, flag])).fails();
        assert!(error.contains(sentence), "{xml}: {error}");
    }
    let error = daemon.virsh(&["detach-device-alias", "tiny", "none7"]).fails();
    assert!(error.contains("none7"), "{error}");
    daemon.ok(&["destroy", "tiny"]);
    let error =
        daemon.with_xml(gone, |file| daemon.virsh(&["attach-device", "tiny", file, "--live"])).fails();
    assert!(error.contains("domain is not running"), "{error}");
}

#[test]
fn a_card_is_the_same_in_the_guest_and_in_its_definition() {
    let daemon = daemon();
    daemon.run(&guest("tiny"));
    attach(
        &daemon,
        "tiny",
        "<interface type='user'><model type='virtio'/></interface>",
        &["--live", "--config"],
    );
    let card = |flags: &[&str]| {
        let xml = daemon.ok(&[&["dumpxml", "tiny", "--xpath", "//interface/mac"], flags].concat());
        assert!(xml.contains("52:54:00:"), "{xml}");
        xml
    };
    assert_eq!(card(&[]), card(&["--inactive"]));
}

#[test]
fn definitions_get_devices_that_running_guests_do_not() {
    let daemon = daemon();
    daemon.define(&guest("tiny"));
    for (xml, found) in [
        ("<sound model='ich6'/>", "<sound model='ich6'>"),
        ("<vsock model='virtio'><cid auto='yes'/></vsock>", "<vsock model='virtio'>"),
        (
            "<filesystem type='mount'><source dir='/tmp'/><target dir='tag'/></filesystem>",
            "<target dir='tag'/>",
        ),
    ] {
        attach(&daemon, "tiny", xml, &["--config"]);
        assert_eq!(count(&daemon, "tiny", found), (1, 1), "{xml}");
        daemon.with_xml(xml, |file| daemon.ok(&["detach-device", "tiny", file, "--config"]));
        assert_eq!(count(&daemon, "tiny", found), (0, 0), "{xml}");
    }
}

#[test]
fn a_guest_lets_go_of_a_disk_and_everybody_hears_of_it() {
    let daemon = daemon();
    let mut events = daemon.python_beside(
        "for id in (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED):\n\
         \x20   tell = lambda conn, domain, alias, id: print(id, alias)\n\
         \x20   conn.domainEventRegisterAny(None, id, tell, id)\n\
         print('listening')\n\
         run_events()",
    );
    events.expect("listening");
    daemon.run(&linux("penguin", "").machine("pc"));
    let mut console = daemon.console("penguin");
    console.expect("GUEST READY");
    attach(&daemon, "penguin", &disk(&daemon, "d.qcow2", "vda", "virtio"), &["--live"]);
    events.expect("19 virtio-disk0");
    console.send("until test -b /dev/vda; do usleep 100000; done; echo disk is here\n");
    console.expect("disk is here\r\n");
    daemon.ok(&["detach-disk", "penguin", "vda", "--live"]);
    events.expect("15 virtio-disk0");
    assert_eq!(count(&daemon, "penguin", "<target dev='vda'"), (0, 0));
}

#[test]
fn a_q35_guest_has_a_port_left_and_says_how_to_get_more() {
    let daemon = daemon();
    let card = "<interface type='user'><model type='virtio'/></interface>";
    daemon.run(&halting("small").machine("q35").device(card));
    attach(&daemon, "small", card, &["--live"]);
    let error =
        daemon.with_xml(card, |file| daemon.virsh(&["attach-device", "small", file, "--live"])).fails();
    assert!(error.contains("No more available PCI slots"), "{error}");
}
