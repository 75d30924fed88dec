//! How much of the host a domain may use, as clients read and change it.

use ferrovirt_compat::halting;

use crate::daemon;

#[test]
fn limits_of_the_next_start_are_changed_and_written_down() {
    let daemon = daemon();
    daemon.define(&halting("off"));
    for arguments in [
        &["schedinfo", "off", "--set", "vcpu_quota=5000"][..],
        &["schedinfo", "off", "--set", "cpu_shares=2048"],
        &["blkiotune", "off", "--weight", "300"],
        &["blkiotune", "off", "--device-weights", "/dev/null,300"],
        &["memtune", "off", "--hard-limit", "100000"],
        &["numatune", "off", "--mode", "preferred", "--nodeset", "0"],
    ] {
        daemon.ok(arguments);
    }
    let out = daemon.python(
        "d = conn.lookupByName('off')\n\
         print(d.schedulerType(), d.schedulerParameters()['vcpu_quota'], d.schedulerParametersFlags(2)['cpu_shares'])\n\
         print(d.blkioParameters()['weight'], d.blkioParameters()['device_weight'], len(d.blkioParameters()))\n\
         print(d.memoryParameters())\n\
         print(d.numaParameters())",
    );
    assert_eq!(
        out.ok().lines().collect::<Vec<_>>(),
        [
            "('posix', 9) 5000 2048",
            "300 /dev/null,300 6",
            "{'hard_limit': 100000, 'soft_limit': 9007199254740991, 'swap_hard_limit': 9007199254740991}",
            "{'numa_mode': 1, 'numa_nodeset': '0'}",
        ]
    );
    let xml = daemon.ok(&["dumpxml", "off"]);
    for element in [
        "<shares>2048</shares>\n    <quota>5000</quota>",
        "<weight>300</weight>\n    <device>\n      <path>/dev/null</path>\n      <weight>300</weight>",
        "<hard_limit unit='KiB'>100000</hard_limit>",
        "<memory mode='preferred' nodeset='0'/>",
    ] {
        assert!(xml.contains(element), "{element}: {xml}");
    }
    for (arguments, refusal) in [
        (
            &["schedinfo", "off", "--set", "vcpu_quota=5"][..],
            "value of 'vcpu_quota' is out of range [1000, 1",
        ),
        (
            &["memtune", "off", "--swap-hard-limit", "5"],
            "memory hard_limit tunable value must be lower than or",
        ),
        (&["schedinfo", "off", "--live"], "domain is not running"),
    ] {
        let error = daemon.virsh(arguments).fails();
        assert!(error.contains(refusal), "{arguments:?}: {error}");
    }
}

#[test]
fn a_running_guest_without_a_cgroup_has_limits_for_its_next_start() {
    let daemon = daemon();
    daemon.run(&halting("on"));
    for (arguments, refusal) in [
        (&["schedinfo", "on"][..], "cgroup CPU controller is not mounted"),
        (&["blkiotune", "on"], "blkio cgroup isn't mounted"),
        (&["blkiotune", "on", "--weight", "300"], "blkio cgroup isn't mounted"),
        (&["memtune", "on"], "cgroup memory controller is not mounted"),
        (&["memtune", "on", "--hard-limit", "5"], "cgroup memory controller is not mounted"),
        (&["numatune", "on", "--nodeset", "0"], "cgroup cpuset controller is not mounted"),
    ] {
        let error = daemon.virsh(arguments).fails();
        assert!(error.contains(refusal), "{arguments:?}: {error}");
    }
    assert!(daemon.ok(&["numatune", "on"]).contains("numa_mode      : strict"));
    daemon.ok(&["memtune", "on", "--hard-limit", "100000", "--config"]);
    assert!(daemon.ok(&["memtune", "on", "--config"]).contains("hard_limit     : 100000"));
    assert!(!daemon.ok(&["dumpxml", "on"]).contains("hard_limit"));
    assert!(daemon.ok(&["dumpxml", "on", "--inactive"]).contains("hard_limit"));
}

#[test]
fn the_pace_of_a_disk_changes_while_the_guest_runs_and_for_its_next_start() {
    let daemon = daemon();
    let image = daemon.path("raw");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = format!(
        "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>",
        image.display()
    );
    daemon.run(&halting("on").device(&disk));
    daemon.ok(&["blkdeviotune", "on", "vda", "--total-bytes-sec", "1000000", "--live"]);
    daemon.ok(&["blkdeviotune", "on", "vda", "--read-iops-sec", "100", "--config"]);
    let told = daemon.ok(&["blkdeviotune", "on", "vda"]);
    assert!(told.contains("total_bytes_sec: 1000000\n") && told.contains("read_iops_sec  : 0\n"), "{told}");
    assert_eq!(told.trim().lines().count(), 20, "{told}");
    let told = daemon.ok(&["blkdeviotune", "on", "vda", "--config"]);
    assert!(told.contains("total_bytes_sec: 0\n") && told.contains("read_iops_sec  : 100\n"), "{told}");
    assert!(daemon.ok(&["dumpxml", "on"]).contains("<total_bytes_sec>1000000</total_bytes_sec>"));
    let blocks = daemon.ok(&["qemu-monitor-command", "on", r#"{"execute": "query-block"}"#]);
    assert!(blocks.contains(r#""bps":1000000"#), "{blocks}");
    // A limit of 0 is none.
    daemon.ok(&["blkdeviotune", "on", "vda", "--total-bytes-sec", "0"]);
    assert!(!daemon.ok(&["dumpxml", "on"]).contains("<iotune>"));
    for (arguments, refusal) in [
        (
            &["vda", "--total-iops-sec", "5", "--read-iops-sec", "5"][..],
            "total and read/write of iops_sec cannot be set",
        ),
        (&["hdc"], "disk 'hdc' does not currently have a source assigned"),
        (&["vdx"], "disk 'vdx' not found in domain"),
        (&["vdx", "--config"], "disk 'vdx' was not found in the domain config"),
    ] {
        let error = daemon.virsh(&[&["blkdeviotune", "on"], arguments].concat()).fails();
        assert!(error.contains(refusal), "{arguments:?}: {error}");
    }
}

#[test]
fn disks_share_limits_and_subscribers_hear_of_changes() {
    let daemon = daemon();
    let mut events = daemon.python_beside(
        "tell = lambda conn, domain, params, opaque: print(sorted(params.items()))\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, tell, None)\n\
         print('listening')\n\
         run_events()",
    );
    events.expect("listening");
    let path = daemon.path("shared.raw");
    std::fs::write(&path, [0; 65536]).unwrap();
    let disk = |more: &str| {
        format!(
            "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/>{more}</disk>",
            path.display()
        )
    };
    let filters =
        "<throttlefilters><throttlefilter group='slow'/><throttlefilter group='few'/></throttlefilters>";
    let groups = "<throttlegroups><throttlegroup><total_bytes_sec>4096</total_bytes_sec>\
                  <group_name>slow</group_name></throttlegroup><throttlegroup>\
                  <read_iops_sec>50</read_iops_sec><group_name>few</group_name></throttlegroup></throttlegroups>";
    let xml =
        halting("paced").device(&disk(filters)).xml().replace("<devices>", &format!("{groups}<devices>"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    daemon.ok(&["start", "paced"]);
    let nodes = daemon.ok(&["qemu-monitor-command", "paced", "--hmp", "info block -n"]);
    assert!(nodes.contains("-filter") && nodes.contains("throttle"), "{nodes}");
    let limits = |group: &str| {
        let command = format!(
            "{{\"execute\":\"qom-get\",\"arguments\":{{\"path\":\"/objects/throttle-{group}\",\"property\":\"limits\"}}}}"
        );
        daemon.ok(&["qemu-monitor-command", "paced", &command])
    };
    assert!(limits("slow").contains("\"bps-total\":4096"));
    daemon.ok(&["domthrottlegroupset", "paced", "slow", "--total-bytes-sec", "8192", "--live", "--config"]);
    events.expect("[('blkdeviotune.group_name', 'slow'), ('blkdeviotune.total_bytes_sec', 8192)]");
    assert!(limits("slow").contains("\"bps-total\":8192"));
    daemon.ok(&["domthrottlegroupset", "paced", "new", "--read-iops-sec", "5", "--live"]);
    events.expect("[('blkdeviotune.group_name', 'new'), ('blkdeviotune.read_iops_sec', 5)]");
    assert!(limits("new").contains("\"iops-read\":5"));
    let error = daemon.virsh(&["domthrottlegroupdel", "paced", "few", "--live"]).fails();
    assert!(error.contains("throttle group 'few' is still being used by disk vda"), "{error}");
    daemon.ok(&["domthrottlegroupdel", "paced", "new", "--live"]);
    for flags in [&["dumpxml", "paced"][..], &["dumpxml", "paced", "--inactive"]] {
        let xml = daemon.ok(flags);
        assert!(xml.contains("<total_bytes_sec>8192</total_bytes_sec>") && !xml.contains(">new<"), "{xml}");
    }
    daemon.ok(&["emulatorpin", "paced", "0", "--live"]);
    events.expect("[('cputune.emulatorpin', '0')]");
    daemon.ok(&["vcpupin", "paced", "0", "0", "--live"]);
    events.expect("[('cputune.vcpupin0', '0')]");
    daemon.ok(&["destroy", "paced"]);
    let plain = halting("plain").device(&disk("")).xml();
    daemon.with_xml(&plain, |file| daemon.ok(&["create", file]));
    daemon.ok(&["blkdeviotune", "plain", "vda", "--total-bytes-sec", "1000", "--live"]);
    events.expect("[('blkdeviotune.disk', 'vda'), ('blkdeviotune.total_bytes_sec', 1000)]");
    let lost = xml.replace("<group_name>few", "<group_name>other").replace("paced", "lost");
    let error = daemon.with_xml(&lost, |file| daemon.virsh(&["define", file])).fails();
    assert!(error.contains("throttle group 'few' not found"), "{error}");
}

#[test]
fn a_guest_whose_pace_nothing_would_limit_does_not_start() {
    let daemon = daemon();
    daemon.define(&halting("paced"));
    daemon.ok(&["schedinfo", "paced", "--set", "cpu_shares=2048"]);
    daemon.ok(&["start", "paced"]);
    daemon.ok(&["destroy", "paced"]);
    for limit in ["vcpu_period=100000", "vcpu_quota=-1", "emulator_period=100000", "global_quota=5000"] {
        daemon.ok(&["schedinfo", "paced", "--set", limit]);
        let error = daemon.virsh(&["start", "paced"]).fails();
        let sentence = "unsupported configuration: cgroup cpu is required for scheduler tuning";
        assert!(error.contains(sentence), "{limit}: {error}");
        daemon.ok(&["undefine", "paced"]);
        daemon.define(&halting("paced"));
    }
}

/// Less than every process may lock: more only a privileged daemon can allow.
#[test]
fn a_guest_may_lock_as_much_memory_as_it_may_have() {
    let daemon = daemon();
    daemon.define(&halting("small"));
    daemon.ok(&["memtune", "small", "--hard-limit", "4096"]);
    daemon.ok(&["start", "small"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.qemu_pid("small"))).unwrap();
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    assert_eq!(locked.split_whitespace().collect::<Vec<_>>()[3..5], ["4194304", "4194304"], "{locked}");
}
