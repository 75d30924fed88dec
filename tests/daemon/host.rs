//! What the daemon says of its host, and of what the host can run.

use crate::{daemon, on_upstream};

#[test]
fn the_host_is_described() {
    let daemon = daemon();
    let info = daemon.ok(&["nodeinfo"]);
    assert!(info.contains("CPU model:           x86_64"), "{info}");
    for (command, expected) in [
        ("nodecpumap", "CPUs present:"),
        ("nodecpustats", "iowait:"),
        ("nodememstats", "buffers:"),
        ("freecell", "Total:"),
        ("version", "Running hypervisor: QEMU "),
        ("capabilities", "<machine canonical='pc-q35-"),
    ] {
        let said = daemon.ok(&[command]);
        assert!(said.contains(expected), "{command}: {said}");
    }
    assert!(daemon.ok(&["freepages", "--all"]).contains("4KiB: "));
    assert!(daemon.ok(&["cpu-models", "x86_64"]).contains("EPYC-Rome\n"));
    let python = daemon.python("print(conn.getInfo()[0], conn.getSecurityModel(), conn.getMaxVcpus(None))");
    assert_eq!(python.ok().trim(), "x86_64 ['none', '0'] 16");
    assert_eq!(daemon.python("print(conn.getCPUModelNames('aarch64'))").ok().trim(), "[]");
}

#[test]
fn questions_about_what_is_not_there_are_refused() {
    let daemon = daemon();
    for (arguments, refusal) in [
        (&["nodecpustats", "9999"][..], "Invalid cpuNum in virHostCPUGetStatsLinux"),
        (&["nodememstats", "--cell", "99"], "cellNum in virHostMemGetStats must be less than or equal to"),
        (&["freecell", "99"], "internal error: start cell 99 out of range (0-"),
        (&["freepages", "--cellno", "0", "--pagesize", "5"], "page size 5 is not available on node 0"),
        (&["maxvcpus", "xen"], "invalid argument: unknown type 'xen'"),
        (&["cpu-models", "foo"], "invalid argument: cannot find architecture foo"),
    ] {
        let said = daemon.virsh(arguments).fails();
        assert!(said.contains(refusal), "{arguments:?}: {said}");
    }
}

#[test]
fn what_guests_may_have_depends_on_what_is_asked_for() {
    let daemon = daemon();
    let said = daemon.ok(&["domcapabilities", "--virttype", "qemu", "--machine", "q35"]);
    assert!(said.contains("<domain>qemu</domain>\n  <machine>pc-q35-"), "{said}");
    assert!(said.contains("<mode name='host-passthrough' supported='no'/>"), "{said}");
    let binary = "unsupported configuration: unable to find any emulator to serve 'alpha' architecture";
    for (arguments, refusal) in [
        (&["--arch", "alpha"][..], binary),
        (&["--arch", "foo"], "invalid argument: unknown architecture: foo"),
        (&["--virttype", "foo"], "invalid argument: unknown virttype: foo"),
        (&["--virttype", "xen"], "does not support virt type 'xen'"),
        (
            &["--machine", "foo"],
            "invalid argument: the machine 'foo' is not supported by emulator '/usr/bin/",
        ),
        (&["--emulatorbin", "/x"], "Cannot check QEMU binary /x: No such file or directory"),
        (&["--emulatorbin", "/etc/passwd"], "QEMU binary /etc/passwd is not executable: Permission denied"),
    ] {
        let said = daemon.virsh(&[&["domcapabilities"], arguments].concat()).fails();
        assert!(said.contains(refusal), "{arguments:?}: {said}");
    }
}

#[test]
fn answers_of_qemu_outlive_the_daemon() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.ok(&["capabilities"]);
    let cache = daemon.path("var/cache/libvirt/qemu/capabilities/usr-bin-qemu-system-x86_64.json");
    let written = || std::fs::metadata(&cache).expect("the answers are kept").modified().expect("a time");
    let first = written();
    daemon.terminate();
    daemon.restart();
    daemon.ok(&["capabilities"]);
    assert_eq!(written(), first, "the binary was asked again");
    std::fs::write(&cache, "{\"torn\":").expect("the directory is ours");
    daemon.terminate();
    daemon.restart();
    assert!(daemon.ok(&["capabilities"]).contains("<arch name='x86_64'>"));
}

#[test]
fn merged_pages_and_memory_that_guests_keep_to_themselves_are_told() {
    let daemon = daemon();
    daemon.define(&ferrovirt_compat::halting("tiny"));
    let out = daemon.python(
        "merging = conn.getMemoryParameters()\n\
         print(all(name.startswith('shm_') for name in merging))\n\
         print(('shm_pages_to_scan' in merging) == os.path.exists('/sys/kernel/mm/ksm/pages_to_scan'))\n\
         print(conn.lookupByName('tiny').launchSecurityInfo())\n\
         try: conn.getSEVInfo()\n\
         except libvirt.libvirtError as e: print(e.get_error_code(), e.get_error_message())",
    );
    assert_eq!(
        out.ok().lines().collect::<Vec<_>>(),
        ["True", "True", "{}", "84 Operation not supported: QEMU does not support SEV guest"]
    );
}
