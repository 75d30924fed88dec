//! libvirt-python as its users write it.

use ferrovirt_compat::halting;

use crate::daemon;

#[test]
fn the_connection_tells_what_it_is() {
    let daemon = daemon();
    let out = daemon
        .python(
            "print(conn.getType(), conn.getLibVersion(), conn.getVersion() >= 7002000, conn.isAlive(), conn.isSecure(), conn.isEncrypted())\n\
             print(conn.getHostname() == os.uname().nodename, 'system' in conn.getURI(), conn.getMaxVcpus('qemu') > 0)\n\
             model, memory, cpus, mhz, nodes, sockets, cores, threads = conn.getInfo()\n\
             print(model, memory > 100, cpus == os.cpu_count(), nodes * sockets * cores * threads >= cpus)\n\
             print('<capabilities>' in conn.getCapabilities(), '<domainCapabilities>' in conn.getDomainCapabilities())\n\
             print(conn.getFreeMemory() > 0, conn.getCPUMap()[0] == os.cpu_count(), 'total' in conn.getMemoryStats(-1), 'user' in conn.getCPUStats(-1))",
        )
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "QEMU 11003000 True 1 1 0",
            "True True True",
            "x86_64 True True True",
            "True True",
            "True True True True",
        ]
    );
}

#[test]
fn old_and_new_lists_agree() {
    let daemon = daemon();
    for name in ["off", "on", "paused"] {
        daemon.define(&halting(name));
    }
    daemon.create(&halting("fleeting"));
    daemon.ok(&["start", "on"]);
    daemon.ok(&["start", "--paused", "paused"]);
    daemon.ok(&["autostart", "off"]);
    let out = daemon
        .python(
            "names = lambda flags: sorted(d.name() for d in conn.listAllDomains(flags))\n\
             print(conn.numOfDomains(), len(conn.listDomainsID()), conn.numOfDefinedDomains(), conn.listDefinedDomains())\n\
             L = libvirt\n\
             for flags in (0, L.VIR_CONNECT_LIST_DOMAINS_ACTIVE, L.VIR_CONNECT_LIST_DOMAINS_INACTIVE, L.VIR_CONNECT_LIST_DOMAINS_TRANSIENT,\n\
             \x20             L.VIR_CONNECT_LIST_DOMAINS_RUNNING, L.VIR_CONNECT_LIST_DOMAINS_PAUSED, L.VIR_CONNECT_LIST_DOMAINS_AUTOSTART,\n\
             \x20             L.VIR_CONNECT_LIST_DOMAINS_ACTIVE | L.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):\n\
             \x20   print(*names(flags))",
        )
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "3 3 1 ['off']",
            "fleeting off on paused",
            "fleeting on paused",
            "off",
            "fleeting",
            "fleeting on",
            "paused",
            "off",
            "on paused",
        ]
    );
}

#[test]
fn a_domain_tells_what_it_is() {
    let daemon = daemon();
    daemon.run(&halting("tiny"));
    let out = daemon
        .python(
            "d = conn.lookupByName('tiny')\n\
             print(d.info()[:4], d.state(), d.ID(), d.isActive(), d.isPersistent(), d.isUpdated(), d.autostart())\n\
             print(d.OSType(), d.maxMemory(), d.maxVcpus(), d.vcpusFlags())\n\
             print(conn.lookupByUUIDString(d.UUIDString()).name(), conn.lookupByID(1).name(), conn.lookupByUUID(d.UUID()).name())\n\
             live, inactive = d.XMLDesc(), d.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)\n\
             print(\"id='1'>\" in live.splitlines()[0], \"id=\" in inactive.splitlines()[0], '<alias' in live, '<alias' in inactive)\n\
             import libvirt_qemu, json\n\
             print(json.loads(libvirt_qemu.qemuMonitorCommand(d, '{\"execute\": \"query-status\"}', 0))['return']['status'])\n\
             print(libvirt_qemu.qemuMonitorCommand(d, 'info status', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP).strip())\n\
             d.destroy()\n\
             print(d.info()[0], d.ID(), d.isActive())",
        )
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "[1, 16384, 16384, 1] [1, 1] 1 1 1 0 0",
            "hvm 16384 1 1",
            "tiny tiny tiny",
            "True False True False",
            "running",
            "VM status: running",
            "5 -1 0",
        ]
    );
}

#[test]
fn a_guest_with_autodestroy_ends_with_its_client() {
    let daemon = daemon();
    let xml = halting("tied").xml();
    let mut client = daemon.python_beside(&format!(
        "conn.createXML(\"{xml}\", libvirt.VIR_DOMAIN_START_AUTODESTROY)\nprint('created')\nsys.stdin.read()"
    ));
    client.expect("created\n");
    assert_eq!(daemon.state("tied"), "running");
    drop(client);
    ferrovirt_compat::eventually("the guest ends", || {
        daemon.ok(&["list", "--all", "--name"]).trim().is_empty().then_some(())
    });
}
