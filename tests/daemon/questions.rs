//! Single questions about a guest: what its disks, interfaces, threads and memory do and hold.

use ferrovirt_compat::{Daemon, halting};

use crate::daemon;

/// Answers of a guest `on` that runs and of the same one `off` that does not, a line each; refusals as code and
/// sentence.
fn asked(daemon: &Daemon, questions: &[&str]) -> Vec<String> {
    let disk = |path: &str, dev: &str, format: &str| {
        format!(
            "<disk type='file'><driver name='qemu' type='{format}'/><source file='{path}'/>\
             <target dev='{dev}' bus='virtio'/></disk>"
        )
    };
    for name in ["on", "off"] {
        let path = |file: &str| daemon.path(&format!("{name}-{file}")).to_str().unwrap().to_owned();
        ferrovirt_compat::run("qemu-img", &["create", "-q", "-f", "qcow2", &path("cow"), "10M"]).ok();
        std::fs::write(path("raw"), [b"0123456789".to_vec(), vec![0; 1 << 20]].concat()).unwrap();
        let guest = halting(name)
            .device(&disk(&path("cow"), "vda", "qcow2"))
            .device(&disk(&path("raw"), "vdb", "raw"))
            .device("<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>")
            .device("<interface type='user'><mac address='52:54:00:00:00:01'/></interface>");
        let xml = guest.xml().replace("<os>", "<vcpu cpuset='0'>1</vcpu><iothreads>2</iothreads><os>");
        daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    }
    daemon.ok(&["start", "on"]);
    let mut script = "on, off = conn.lookupByName('on'), conn.lookupByName('off')\n\
        def answer(call):\n\
        \x20   try: print(call())\n\
        \x20   except libvirt.libvirtError as e: print(e.get_error_code(), e.get_error_message())\n"
        .to_owned();
    for question in questions {
        script.push_str(&format!("answer(lambda: ({question}))\n"));
    }
    daemon.python(&script).ok().lines().map(str::to_owned).collect()
}

#[test]
fn disks_and_interfaces_are_counted() {
    let daemon = daemon();
    let answers = asked(
        &daemon,
        &[
            "on.blockStats('vda')",
            "on.blockStats('')",
            "sorted(on.blockStatsFlags('vdb').items())",
            "len(on.blockStatsFlags('hdc'))",
            "on.blockStats('vdx')",
            "off.blockStats('vda')",
            "on.interfaceStats('52:54:00:00:00:01')",
            "on.interfaceStats('vnet77')",
            "off.interfaceStats('vnet77')",
            "on.diskErrors()",
            "off.diskErrors()",
            "sorted(on.getCPUStats(True)[0])",
            "on.getCPUStats(False)",
            "off.getCPUStats(True)",
        ],
    );
    let expected = [
        "(0, 0, 0, 0, -1)",
        "(0, 0, 0, 0, -1)",
        "[('flush_operations', 0), ('flush_total_times', 0), ('rd_bytes', 0), ('rd_operations', 0), \
         ('rd_total_times', 0), ('wr_bytes', 0), ('wr_operations', 0), ('wr_total_times', 0)]",
        "8",
        "8 invalid argument: invalid path: vdx",
        "55 Requested operation is not valid: domain is not running",
        "1 internal error: Interface name not provided",
        "8 invalid argument: 'vnet77' is not a known interface",
        "55 Requested operation is not valid: domain is not running",
        "{}",
        "55 Requested operation is not valid: domain is not running",
        "['cpu_time', 'system_time', 'user_time']",
        "55 Requested operation is not valid: cgroup CPUACCT controller is not mounted",
        "55 Requested operation is not valid: domain is not running",
    ];
    assert_eq!(answers, expected);
}

#[test]
fn threads_names_and_addresses_are_told() {
    let daemon = daemon();
    let answers = asked(
        &daemon,
        &[
            "sorted((id, cpus[0]) for id, cpus in on.ioThreadInfo())",
            "[(id, cpus) for id, cpus in off.ioThreadInfo()] == [(1, [True] + [False] * (os.cpu_count() - 1)), (2, [True] + [False] * (os.cpu_count() - 1))]",
            "off.ioThreadInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)",
            "[on.interfaceAddresses(source) for source in (0, 2)]",
            "on.interfaceAddresses(1)",
            "on.interfaceAddresses(3)",
            "off.interfaceAddresses(0)",
            "on.hostname()",
            "on.hostname(1)",
            "off.hostname()",
            "len(on.perfEvents()), any(on.perfEvents().values())",
            "len(off.perfEvents()), off.perfEvents()['cpu_cycles']",
        ],
    );
    let expected = [
        "[(1, True), (2, True)]",
        "True",
        "55 Requested operation is not valid: domain is not running",
        "[{}, {}]",
        "74 argument unsupported: QEMU guest agent is not configured",
        "74 argument unsupported: Unknown IP address data source 3",
        "55 Requested operation is not valid: domain is not running",
        "74 argument unsupported: QEMU guest agent is not configured",
        "108 no hostname found: no hostname found for domain on",
        "55 Requested operation is not valid: domain is not running",
        "(22, False)",
        "(22, False)",
    ];
    assert_eq!(answers, expected);
}

#[test]
fn memory_and_images_can_be_looked_into() {
    let daemon = daemon();
    let answers = asked(
        &daemon,
        &[
            "on.blockPeek('vdb', 2, 4)",
            "off.blockPeek('vdb', 0, 3)",
            "off.blockPeek('vdb', 1048580, 10)",
            "on.blockPeek('vda', 0, 8)",
            "on.blockPeek('vdx', 0, 8)",
            "len(on.memoryPeek(0, 4096, libvirt.VIR_MEMORY_PHYSICAL))",
            "len(on.memoryPeek(0, 16, libvirt.VIR_MEMORY_VIRTUAL))",
            "on.memoryPeek(0, 16, 0)",
            "off.memoryPeek(0, 16, libvirt.VIR_MEMORY_PHYSICAL)",
        ],
    );
    let expected = [
        "b'2345'",
        "b'012'",
        "8 invalid argument: 'vdb' starting from 1048580 has only 6 bytes available",
        "84 Operation not supported: peeking is only supported for disk with 'raw' format not 'qcow2'",
        "8 invalid argument: disk 'vdx' not found in domain",
        "4096",
        "16",
        "8 invalid argument: flags parameter must be VIR_MEMORY_VIRTUAL or VIR_MEMORY_PHYSICAL",
        "55 Requested operation is not valid: domain is not running",
    ];
    assert_eq!(answers, expected);
    let left = std::fs::read_dir(daemon.path("var/lib/libvirt/qemu/domain-1-on"));
    let pieces = left
        .map(|files| files.filter_map(|file| file.ok()?.file_name().into_string().ok()).collect::<Vec<_>>());
    assert!(
        !pieces.unwrap_or_default().iter().any(|name| name.contains("mem")),
        "a piece of memory was left"
    );
}

#[test]
fn disks_are_resized_and_watched_while_the_guest_runs() {
    let daemon = daemon();
    let answers = asked(
        &daemon,
        &[
            "on.blockResize('vdb', 3 * 1024 + 1), on.blockInfo('vdb')[0]",
            "on.blockResize('vda', 20 << 20, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES), on.blockInfo('vda')[0]",
            "on.blockResize('hdc', 1)",
            "on.blockResize('vdx', 1)",
            "on.blockResize('vdb', 1 << 60)",
            "off.blockResize('vda', 1)",
            "on.setBlockThreshold('vdb', 1000)",
            "next(filter(None, (domain[1].get('block.1.threshold') for _ in range(1000) for domain in conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_BLOCK))))",
            "on.setBlockThreshold('vdb[99]', 1)",
            "off.setBlockThreshold('vdb', 1)",
            "on.startDirtyRateCalc(1, 0)",
            "on.startDirtyRateCalc(61, 0)",
            "on.startDirtyRateCalc(1, libvirt.VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_RING)",
            "off.startDirtyRateCalc(1, 0)",
        ],
    );
    let expected = [
        "(0, 3146752)",
        "(0, 20971520)",
        "84 Operation not supported: can't resize empty or readonly disk 'hdc'",
        "8 invalid argument: disk 'vdx' was not found in the domain config",
        "82 numerical overflow: size must be less than 18014398509481983",
        "55 Requested operation is not valid: domain is not running",
        "0",
        "1000",
        "8 invalid argument: failed to find disk 'vdb[99]'",
        "55 Requested operation is not valid: domain is not running",
        "0",
        "67 unsupported configuration: seconds=61 is invalid, please choose value within [1, 60].",
        "84 Operation not supported: dirty-ring calculation mode requires dirty-ring feature enabled.",
        "55 Requested operation is not valid: domain is not running",
    ];
    assert_eq!(answers, expected);
    ferrovirt_compat::eventually("the rate was measured", || {
        daemon.ok(&["domstats", "--dirtyrate", "on"]).contains("dirtyrate.calc_status=2\n").then_some(())
    });
}
