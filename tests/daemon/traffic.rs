//! What an interface may use of the network, and what it is connected to, while its guest runs.

use std::fs;

use ferrovirt_compat::{Daemon, halting, install_script};

use crate::daemon;

/// Puts a program of ours before the host's.
fn stub(daemon: &Daemon, name: &str, script: &str) {
    let directory = daemon.path("tools");
    fs::create_dir_all(&directory).unwrap();
    install_script(&directory.join(name), &format!("#!/bin/sh\n{script}\n"));
}

fn card(bandwidth: &str) -> String {
    format!(
        "<interface type='ethernet'><mac address='52:54:00:00:00:07'/><bandwidth>{bandwidth}</bandwidth>\
         <model type='virtio'/><coalesce><rx><frames max='32'/></rx></coalesce></interface>"
    )
}

/// The kernel of a test machine may lack what `tc` needs.
#[test]
fn an_interface_gets_its_share_at_start_and_while_it_runs() {
    if crate::on_upstream() {
        return;
    }
    let daemon = daemon();
    let (log, fail) = (daemon.path("tc.log"), daemon.path("fail"));
    stub(
        &daemon,
        "tc",
        &format!(
            "echo \"$@\" >> {}\ncase \"$*\" in *htb*) test ! -e {} || {{ echo no >&2; exit 2; }};; esac",
            log.display(),
            fail.display()
        ),
    );
    let said = || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        fs::write(&log, "").unwrap();
        said
    };
    daemon.run(&halting("fast").device(&card("<inbound average='1000' peak='2000' burst='64'/>")));
    let first = said();
    assert!(first.contains("rate 1000kbps ceil 2000kbps burst 64kb quantum 85"), "{first}");
    assert!(!first.contains("police"), "{first}");
    let mac = "52:54:00:00:00:07";
    daemon.ok(&["domiftune", "fast", mac, "--outbound", "128,,", "--live"]);
    let second = said();
    assert!(
        second.contains("police rate 128kbps burst 128kb") && second.contains("rate 1000kbps"),
        "{second}"
    );
    let tuned = daemon.ok(&["domiftune", "fast", mac]);
    assert!(tuned.contains("inbound.average: 1000") && tuned.contains("outbound.average: 128"), "{tuned}");
    let xml = daemon.ok(&["dumpxml", "fast"]);
    assert!(xml.contains("<outbound average='128'/>"), "{xml}");
    assert!(!daemon.ok(&["dumpxml", "fast", "--inactive"]).contains("<outbound"));
    // What was there holds again where something new does not.
    fs::write(&fail, "").unwrap();
    let error = daemon.virsh(&["domiftune", "fast", mac, "--inbound", "5", "--live"]).fails();
    assert!(error.contains("unexpected exit status 2: no"), "{error}");
    assert!(daemon.ok(&["dumpxml", "fast"]).contains("<inbound average='1000' peak='2000' burst='64'/>"));
    fs::remove_file(&fail).unwrap();
    said();
    daemon.ok(&["domiftune", "fast", mac, "--inbound", "0", "--outbound", "0", "--live", "--config"]);
    assert!(!said().contains(" add "));
    for flags in [&["dumpxml", "fast"][..], &["dumpxml", "fast", "--inactive"]] {
        assert!(!daemon.ok(flags).contains("<bandwidth"));
    }
    let update =
        |xml: &str| daemon.with_xml(xml, |file| daemon.virsh(&["update-device", "fast", file, "--live"]));
    update(&card("<inbound average='7'/>")).ok();
    assert!(said().contains("rate 7kbps"));
    assert!(daemon.ok(&["dumpxml", "fast"]).contains("<inbound average='7'/>"));
    for (from, to, sentence) in [
        ("</interface>", "<mtu size='1400'/></interface>", "cannot modify MTU"),
        ("'virtio'", "'e1000'", "cannot modify network device model from virtio to e1000"),
        (
            "<model type='virtio'/>",
            "<model type='virtio'/><driver queues='2'/>",
            "cannot modify virtio network device driver attributes",
        ),
        ("</interface>", "<target dev='other9'/></interface>", "cannot modify network device tap name"),
        ("</interface>", "<rom bar='off'/></interface>", "cannot modify network device rom bar setting"),
        ("type='ethernet'", "type='user'", "unable to change config on 'user' network type"),
    ] {
        let error = update(&card("<inbound average='7'/>").replace(from, to)).fails();
        assert!(error.contains(sentence), "{to}: {error}");
    }
    daemon.ok(&["destroy", "fast"]);
}

#[test]
fn an_interface_of_qemu_itself_has_no_share() {
    let daemon = daemon();
    daemon.run(&halting("own").device(
        "<interface type='user'><mac address='52:54:00:00:00:08'/><bandwidth><inbound average='9'/></bandwidth>\
         <model type='virtio'/></interface>",
    ));
    let error = daemon.virsh(&["domiftune", "own", "52:54:00:00:00:08", "--inbound", "5", "--live"]).fails();
    let sentence = "setting bandwidth on interfaces of type 'user' is not implemented yet";
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn passt_serves_a_guest_as_long_as_it_runs() {
    if crate::on_upstream() {
        return;
    }
    let daemon = daemon();
    let card = "<interface type='user'><backend type='passt'/><mac address='52:54:00:00:00:09'/>\
                <model type='virtio'/></interface>";
    let define =
        |name: &str| daemon.with_xml(&halting(name).device(card).xml(), |file| daemon.ok(&["define", file]));
    define("lonely");
    stub(&daemon, "passt", "exit 1");
    let error = daemon.virsh(&["start", "lonely"]).fails();
    assert!(error.contains("Could not run 'passt'"), "{error}");
    let log = daemon.path("passt.log");
    let serve = format!(
        "echo \"$@\" > {}\nexec /usr/bin/python3 -c \"import socket, sys\ns = socket.socket(socket.AF_UNIX)\n\
         s.bind(sys.argv[1])\ns.listen()\nc = s.accept()[0]\nwhile c.recv(4096): pass\" \"$4\"",
        log.display()
    );
    stub(&daemon, "passt", &serve);
    daemon.ok(&["start", "lonely"]);
    let told = fs::read_to_string(&log).unwrap();
    assert!(
        told.starts_with("--one-off --foreground --socket /") && told.contains("net0-passt.sock"),
        "{told}"
    );
    let networks = daemon.ok(&["qemu-monitor-command", "lonely", "--hmp", "info network"]);
    assert!(networks.contains("type=stream"), "{networks}");
    daemon.ok(&["destroy", "lonely"]);
}
