//! Numbers about many guests at once, as dashboards and exporters ask for them.

use ferrovirt_compat::{Daemon, Guest, Signal, eventually, halting, signal};

use crate::{daemon, on_upstream};

/// A guest with something to count in every group.
fn counted(daemon: &Daemon, name: &str) -> Guest {
    let path = |file: &str| daemon.path(&format!("{name}-{file}")).to_str().unwrap().to_owned();
    let (base, top, raw) = (path("base"), path("top"), path("raw"));
    let create = |arguments: &[&str]| {
        ferrovirt_compat::run("qemu-img", &[&["create", "-q", "-f"], arguments].concat()).ok();
    };
    create(&["qcow2", &base, "20M"]);
    create(&["qcow2", "-b", &base, "-F", "qcow2", &top]);
    create(&["raw", &raw, "5M"]);
    let disk = |format: &str, path: &str, dev: &str| {
        format!(
            "<disk type='file'><driver name='qemu' type='{format}'/><source file='{path}'/>\
             <target dev='{dev}' bus='virtio'/></disk>"
        )
    };
    halting(name)
        .device(&disk("qcow2", &top, "vda"))
        .device(&disk("raw", &raw, "vdb"))
        .device("<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>")
        .device("<interface type='user'/>")
}

fn define(daemon: &Daemon, guest: &Guest) {
    let xml = guest
        .xml()
        .replace("<memballoon model='none'/>", "<memballoon model='virtio'/>")
        .replace("<os>", "<vcpu current='1'>2</vcpu><iothreads>1</iothreads><os>");
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
}

/// The fields of a record, without QEMU's own statistics: those depend on the host's kernel.
fn fields(record: &str) -> Vec<&str> {
    let fields = record.lines().filter_map(|line| line.trim().split_once('=')).map(|(name, _)| name);
    fields.filter(|name| ![".sum", ".cur", ".max"].iter().any(|suffix| name.ends_with(suffix))).collect()
}

#[test]
fn every_group_is_told_of_a_running_guest() {
    let daemon = daemon();
    define(&daemon, &counted(&daemon, "busy"));
    daemon.ok(&["start", "busy"]);
    // Who does not answer in time, as on a busy host, is told of without what he would have said.
    let told = eventually("the guest answers", || {
        Some(daemon.ok(&["domstats", "busy", "--backing"]))
            .filter(|told| told.contains("dirtyrate.calc_mode"))
    });
    let expected = "state.state state.reason cpu.time cpu.user cpu.system cpu.cache.monitor.count \
        cpu.haltpoll.success.time cpu.haltpoll.fail.time balloon.current balloon.maximum balloon.last-update \
        balloon.rss vcpu.current vcpu.maximum vcpu.0.state vcpu.0.time vcpu.0.wait vcpu.0.delay net.count \
        block.count \
        block.0.name block.0.path block.0.backingIndex block.0.rd.reqs block.0.rd.bytes block.0.rd.times \
        block.0.wr.reqs block.0.wr.bytes block.0.wr.times block.0.fl.reqs block.0.fl.times block.0.allocation \
        block.0.capacity block.0.physical \
        block.1.name block.1.path block.1.backingIndex block.1.allocation block.1.capacity block.1.physical \
        block.2.name block.2.path block.2.backingIndex block.2.rd.reqs block.2.rd.bytes block.2.rd.times \
        block.2.wr.reqs block.2.wr.bytes block.2.wr.times block.2.fl.reqs block.2.fl.times block.2.allocation \
        block.2.capacity block.2.physical \
        block.3.name block.3.rd.reqs block.3.rd.bytes block.3.rd.times block.3.wr.reqs block.3.wr.bytes \
        block.3.wr.times block.3.fl.reqs block.3.fl.times \
        iothread.count iothread.1.poll-max-ns iothread.1.poll-grow iothread.1.poll-shrink \
        dirtyrate.calc_status dirtyrate.calc_start_time dirtyrate.calc_period dirtyrate.calc_mode";
    assert_eq!(fields(&told), expected.split_whitespace().collect::<Vec<_>>(), "{told}");
    for line in [
        "state.state=1",
        "balloon.current=16384",
        "vcpu.current=1",
        "vcpu.maximum=2",
        "net.count=1",
        "block.count=4",
        "block.1.name=vda",
        "block.1.capacity=20971520",
        "block.2.capacity=5242880",
        "iothread.count=1",
        "dirtyrate.calc_mode=page-sampling",
    ] {
        assert!(told.contains(&format!("  {line}\n")), "{line}: {told}");
    }
    if halting("x").xml().contains("type='kvm'") {
        assert!(told.contains("  vcpu.0.halt_exits.sum=") && told.contains("  vm.pages_4k.cur="), "{told}");
    }
    assert!(daemon.ok(&["domstats", "busy", "--block"]).contains("block.count=3\n"));
    let types = daemon.python(
        "print(*[f'{n}:{type(v).__name__}' for n, v in conn.getAllDomainStats()[0][1].items() if n in\n\
         ('state.state', 'vcpu.0.blocking.cur', 'block.0.name', 'cpu.time')])",
    );
    assert!(types.ok().starts_with("state.state:int cpu.time:int vcpu.0."), "a truth is a boolean");
}

#[test]
fn a_stopped_guest_has_sizes_and_no_counters() {
    let daemon = daemon();
    define(&daemon, &counted(&daemon, "idle"));
    let told = daemon.ok(&["domstats"]);
    let expected = "state.state state.reason cpu.time cpu.user cpu.system balloon.current balloon.maximum \
        vcpu.current vcpu.maximum block.count block.0.name block.0.path block.0.allocation block.0.capacity \
        block.0.physical block.1.name block.1.path block.1.capacity block.1.physical block.2.name";
    // libvirt's newest allocation of a sparse file depends on the file system.
    let told_fields: Vec<_> =
        fields(&told).into_iter().filter(|name| *name != "block.1.allocation").collect();
    assert_eq!(told_fields, expected.split_whitespace().collect::<Vec<_>>(), "{told}");
    assert!(told.contains("block.0.capacity=20971520\n") && told.contains("state.state=5\n"), "{told}");
}

#[test]
fn domains_are_chosen_by_filter_by_name_and_by_what_can_be_told() {
    let daemon = daemon();
    for name in ["off", "on", "paused"] {
        daemon.define(&halting(name));
    }
    daemon.create(&halting("fleeting"));
    daemon.ok(&["start", "on"]);
    daemon.ok(&["start", "--paused", "paused"]);
    let told = |arguments: &[&str]| {
        let told = daemon.ok(&[&["domstats", "--state"], arguments].concat());
        let mut names: Vec<_> = told
            .lines()
            .filter_map(|line| Some(line.strip_prefix("Domain: '")?.trim_end_matches('\'')))
            .map(str::to_owned)
            .collect();
        names.sort();
        names.join(" ")
    };
    for (filter, expected) in [
        (&[][..], "fleeting off on paused"),
        (&["--list-active"], "fleeting on paused"),
        (&["--list-inactive"], "off"),
        (&["--list-persistent"], "off on paused"),
        (&["--list-transient"], "fleeting"),
        (&["--list-running"], "fleeting on"),
        (&["--list-paused"], "paused"),
        (&["--list-shutoff"], "off"),
        (&["--list-other"], ""),
        (&["--list-active", "--list-transient"], "fleeting"),
        (&["on", "off"], "off on"),
        (&["--nowait"], "fleeting off on paused"),
    ] {
        assert_eq!(told(filter), expected, "{filter:?}");
    }
    let error = daemon.virsh(&["domstats", "--enforce", "--vm", "off"]).fails();
    assert!(error.contains("Stats types bits 0x400 are not supported by this daemon or QEMU"), "{error}");
    assert!(daemon.ok(&["domstats", "--enforce", "--vm", "on"]).contains("Domain: 'on'"));
    let out = daemon.python(
        "def refused(call):\n\
         \x20   try: return call()\n\
         \x20   except libvirt.libvirtError as e: return e.get_error_code(), e.get_error_message()\n\
         print(refused(lambda: conn.getAllDomainStats(0, 1 << 8)))\n\
         print(refused(lambda: [stats for _, stats in conn.getAllDomainStats(1 << 20)]))\n\
         gone = conn.lookupByName('off')\n\
         gone.undefine()\n\
         print([d.name() for d, _ in conn.domainListGetStats([gone, conn.lookupByName('on')], 1)])",
    );
    assert_eq!(
        out.ok().lines().collect::<Vec<_>>(),
        [
            "(8, 'unsupported flags (0x100) in function qemuConnectGetAllDomainStats')",
            "[{}, {}, {}, {}]",
            "['on']"
        ]
    );
}

#[test]
fn a_frozen_guest_is_told_of_from_what_is_known_and_holds_nobody_up() {
    if on_upstream() {
        return; // there, every one of these waits for the frozen guest
    }
    let daemon = daemon();
    for name in ["frozen", "well", "well2"] {
        define(&daemon, &counted(&daemon, name));
        daemon.ok(&["start", name]);
    }
    let known = daemon.ok(&["domstats", "frozen", "--block", "--iothread"]);
    signal(daemon.qemu_pid("frozen"), Signal::STOP);
    // On an idle machine these take a fifth of a second, and next to nothing when asked again; who waits for an answer
    // does so for half a minute.
    let script = |call: &str| {
        format!(
            "import time\n\
             frozen = conn.lookupByName('frozen')\n\
             for _ in range(3):\n\
             \x20   begin = time.monotonic()\n\
             \x20   answer = {call}\n\
             \x20   assert time.monotonic() - begin < 20, time.monotonic() - begin\n\
             print(answer)"
        )
    };
    for call in [
        "len(conn.getAllDomainStats())",
        "len(conn.getAllDomainStats(0, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT))",
        "len([1 for _, stats in conn.getAllDomainStats() if stats['block.0.capacity'] == 20971520])",
    ] {
        assert_eq!(daemon.python(&script(call)).ok().trim(), "3", "{call}");
    }
    assert!(daemon.python(&script("frozen.memoryStats()")).ok().contains("'actual': 16384"));
    assert_eq!(daemon.ok(&["domstats", "frozen", "--block", "--iothread"]), known);
    // Nobody has ever asked this one.
    define(&daemon, &counted(&daemon, "mute"));
    daemon.ok(&["start", "mute"]);
    signal(daemon.qemu_pid("mute"), Signal::STOP);
    assert_eq!(daemon.python(&script("len(conn.getAllDomainStats())")).ok().trim(), "4");
    // Thawed, it answers what it was asked, and is asked again.
    signal(daemon.qemu_pid("frozen"), Signal::CONT);
    let index = known.split_once("block.1.backingIndex=").unwrap().1.lines().next().unwrap();
    let resize = format!(
        r#"{{"execute": "block_resize", "arguments": {{"node-name": "libvirt-{index}-storage", "size": 6291456}}}}"#
    );
    daemon.ok(&["qemu-monitor-command", "frozen", &resize]);
    eventually("the guest tells what is so now", || {
        daemon.ok(&["domstats", "frozen", "--block"]).contains("block.1.capacity=6291456\n").then_some(())
    });
}

#[test]
fn what_changes_about_an_image_is_told_the_next_time() {
    let daemon = daemon();
    define(&daemon, &counted(&daemon, "busy"));
    daemon.ok(&["start", "busy"]);
    let told = |name: &str| {
        let record = daemon.ok(&["domstats", "busy", "--block", "--dirtyrate"]);
        let value = record
            .lines()
            .find_map(|line| Some(line.trim().strip_prefix(name)?.strip_prefix('=')?.to_owned()));
        value.unwrap_or_default()
    };
    // Twice each: once asked, once known.
    for _ in 0..2 {
        assert_eq!((told("block.1.capacity"), told("block.1.threshold")), ("5242880".into(), String::new()));
        assert_eq!(told("dirtyrate.calc_status"), "0");
    }
    let raw = daemon.path("busy-raw");
    let physical = || told("block.1.physical").parse::<u64>().expect("a number");
    let before = physical();
    ferrovirt_compat::run(
        "dd",
        &["if=/dev/zero", &format!("of={}", raw.display()), "bs=64k", "count=1", "conv=notrunc"],
    )
    .ok();
    eventually("what the file takes up is looked at each time", || (physical() > before).then_some(()));
    // At the next time that QEMU answers at once.
    let becomes = |name: &str, value: &str| eventually(name, || (told(name) == value).then_some(()));
    daemon.ok(&["blockresize", "busy", "vdb", "6M"]);
    becomes("block.1.capacity", "6291456");
    daemon.ok(&["domblkthreshold", "busy", "vdb", "4096"]);
    becomes("block.1.threshold", "4096");
    let resize = r#"{"execute":"block_resize","arguments":{"node-name":"NODE","size":7340032}}"#;
    let nodes = daemon.ok(&["qemu-monitor-command", "busy", r#"{"execute":"query-blockstats"}"#]);
    let nodes: serde_json::Value = serde_json::from_str(nodes.trim()).expect("JSON");
    let node = nodes["return"].as_array().into_iter().flatten().find_map(|device| {
        let qdev = device["qdev"].as_str()?;
        Some(device["node-name"].as_str()?.to_owned()).filter(|_| qdev.contains("virtio-disk1"))
    });
    let resize = resize.replace("NODE", &node.expect("the node of vdb"));
    daemon.ok(&["qemu-monitor-command", "busy", &resize]);
    becomes("block.1.capacity", "7340032");
    daemon.ok(&["domdirtyrate-calc", "busy", "--seconds", "1"]);
    eventually("the rate is measured", || (told("dirtyrate.calc_status") != "0").then_some(()));
}
