//! Processors and memory of a domain, more and less of them: of the running guest, of its next start, of both.

use ferrovirt_compat::{Daemon, halting, run};

use crate::daemon;

/// A guest that may get more vCPUs than it has, with a balloon.
fn roomy(name: &str, elements: &str) -> String {
    let xml = halting(name).xml().replace("<memballoon model='none'/>", "<memballoon model='virtio'/>");
    xml.replace("<os>", &format!("{elements}<os>"))
}

fn start(daemon: &Daemon, name: &str, elements: &str) {
    daemon.with_xml(&roomy(name, elements), |file| daemon.ok(&["define", file]));
    daemon.ok(&["start", name]);
}

/// What the live and the inactive definition say in this element.
fn lines(daemon: &Daemon, name: &str, element: &str) -> (Vec<String>, Vec<String>) {
    let of = |flags: &[&str]| {
        let xml = daemon.ok(&[&["dumpxml", name], flags].concat());
        xml.lines().map(str::trim).filter(|line| line.starts_with(element)).map(str::to_owned).collect()
    };
    (of(&[]), of(&["--inactive"]))
}

fn refused(daemon: &Daemon, arguments: &[&str], sentence: &str) {
    let error = daemon.virsh(arguments).fails();
    assert!(error.contains(sentence), "{arguments:?}: {error}");
}

#[test]
fn vcpus_are_plugged_into_a_running_guest_and_its_definition() {
    let daemon = daemon();
    start(&daemon, "many", "<vcpu current='1'>4</vcpu>");
    daemon.ok(&["setvcpus", "many", "2", "--live"]);
    let (live, inactive) = lines(&daemon, "many", "<vcpu ");
    assert_eq!(
        live,
        [
            "<vcpu placement='static' current='2'>4</vcpu>",
            "<vcpu id='0' enabled='yes' hotpluggable='no' order='1'/>",
            "<vcpu id='1' enabled='yes' hotpluggable='yes' order='2'/>",
            "<vcpu id='2' enabled='no' hotpluggable='yes'/>",
            "<vcpu id='3' enabled='no' hotpluggable='yes'/>",
        ]
    );
    assert_eq!(inactive, ["<vcpu placement='static' current='1'>4</vcpu>"]);
    daemon.ok(&["setvcpu", "many", "3", "--enable", "--live"]);
    assert_eq!(
        lines(&daemon, "many", "<vcpu id='3'").0,
        ["<vcpu id='3' enabled='yes' hotpluggable='yes' order='3'/>"]
    );
    let infos = daemon.ok(&["vcpuinfo", "many"]);
    let numbers: Vec<_> =
        infos.lines().filter_map(|line| line.strip_prefix("VCPU:")).map(str::trim).collect();
    assert_eq!(numbers, ["0", "1", "3"]);
    let cpus = daemon.ok(&["qemu-monitor-command", "many", "--hmp", "info cpus"]);
    assert_eq!(cpus.matches("CPU #").count(), 3, "{cpus}");
    daemon.ok(&["setvcpus", "many", "3", "--config"]);
    assert_eq!(lines(&daemon, "many", "<vcpu ").1, ["<vcpu placement='static' current='3'>4</vcpu>"]);
    for (arguments, sentence) in [
        (
            &["setvcpus", "many", "5", "--live"][..],
            "greater than max allowable vcpus for the live domain: 5 > 4",
        ),
        (&["setvcpus", "many", "5", "--config"], "vcpus for the persistent domain: 5 > 4"),
        (
            &["setvcpus", "many", "4", "--maximum", "--config", "--live"],
            "maximum vcpu count of a live domain can't be",
        ),
        (&["setvcpu", "many", "3", "--enable", "--live"], "vcpu '3' is already in requested state"),
        (&["setvcpu", "many", "0", "--disable", "--config"], "vCPU '0' can't be modified"),
        (
            &["setvcpu", "many", "1", "--disable", "--config"],
            "vcpu '1' can't be modified as it is followed by",
        ),
        (&["setvcpu", "many", "9", "--enable", "--config"], "vcpu 9 is not present in persistent config"),
    ] {
        refused(&daemon, arguments, sentence);
    }
}

#[test]
fn a_guest_starts_with_the_vcpus_that_are_plugged_and_the_next_daemon_knows_them() {
    let mut daemon = daemon();
    start(
        &daemon,
        "some",
        "<vcpu>4</vcpu><vcpus><vcpu id='0' enabled='yes' hotpluggable='no' order='1'/>\
         <vcpu id='2' enabled='yes' hotpluggable='yes' order='2'/></vcpus>",
    );
    let cpus = |daemon: &Daemon| {
        let infos = daemon.ok(&["vcpuinfo", "some"]);
        infos
            .lines()
            .filter_map(|line| line.strip_prefix("VCPU:"))
            .map(|n| n.trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(cpus(&daemon), ["0", "2"]);
    daemon.terminate();
    daemon.restart();
    assert_eq!(cpus(&daemon), ["0", "2"]);
    daemon.ok(&["setvcpu", "some", "1", "--enable", "--live"]);
    assert_eq!(cpus(&daemon), ["0", "1", "2"]);
    daemon.ok(&["destroy", "some"]);
    daemon.ok(&["setvcpus", "some", "6", "--maximum", "--config"]);
    let definition = daemon.ok(&["dumpxml", "some"]);
    assert!(definition.contains("current='2'>6</vcpu>"), "{definition}");
    daemon.ok(&["setvcpus", "some", "4", "--config", "--hotpluggable"]);
    let enabled = lines(&daemon, "some", "<vcpu id=").1;
    assert_eq!(enabled.iter().filter(|line| line.contains("enabled='yes'")).count(), 4, "{enabled:?}");
}

#[test]
fn a_guest_that_keeps_its_vcpu_is_not_taken_for_one_without() {
    let daemon = daemon();
    start(&daemon, "stubborn", "<vcpu current='1'>2</vcpu>");
    daemon.ok(&["setvcpus", "stubborn", "2", "--live"]);
    // No system runs there that could let go of it.
    refused(&daemon, &["setvcpus", "stubborn", "1", "--live"], "unable to execute QEMU command 'device_del'");
    let (live, _) = lines(&daemon, "stubborn", "<vcpu id='1'");
    assert_eq!(live, ["<vcpu id='1' enabled='yes' hotpluggable='yes' order='2'/>"]);
    refused(&daemon, &["setvcpu", "stubborn", "0", "--disable", "--live"], "vcpu '0' can't be unplugged");
}

#[test]
fn memory_is_taken_and_given_while_the_guest_runs_and_for_its_next_start() {
    let daemon = daemon();
    start(&daemon, "soft", "");
    daemon.ok(&["setmem", "soft", "8192", "--config"]);
    assert_eq!(
        lines(&daemon, "soft", "<currentMemory").1,
        ["<currentMemory unit='KiB'>8192</currentMemory>"]
    );
    assert_eq!(
        lines(&daemon, "soft", "<currentMemory").0,
        ["<currentMemory unit='KiB'>16384</currentMemory>"]
    );
    daemon.ok(&["setmem", "soft", "8192", "--live"]);
    daemon.ok(&["dommemstat", "soft", "--period", "3", "--live"]);
    assert_eq!(lines(&daemon, "soft", "<stats").0, ["<stats period='3'/>"]);
    let query = r#"{"execute":"qom-get","arguments":{"path":"/machine/peripheral/balloon0","property":"guest-stats-polling-interval"}}"#;
    assert!(daemon.ok(&["qemu-monitor-command", "soft", query]).contains("\"return\":3"));
    daemon.ok(&["dommemstat", "soft", "--period", "5", "--config"]);
    assert_eq!(lines(&daemon, "soft", "<stats").1, ["<stats period='5'/>"]);
    for (arguments, sentence) in [
        (&["setmem", "soft", "20000", "--live"][..], "cannot set memory higher than max memory"),
        (&["setmaxmem", "soft", "20000", "--live"], "cannot resize the maximum memory on an active domain"),
    ] {
        refused(&daemon, arguments, sentence);
    }
    daemon.ok(&["setmaxmem", "soft", "4096", "--config"]);
    let (_, inactive) = lines(&daemon, "soft", "<memory ");
    assert_eq!(inactive, ["<memory unit='KiB'>4096</memory>"]);
    assert_eq!(
        lines(&daemon, "soft", "<currentMemory").1,
        ["<currentMemory unit='KiB'>4096</currentMemory>"]
    );
    daemon.run(&halting("hard"));
    refused(
        &daemon,
        &["setmem", "hard", "8192", "--live"],
        "without the balloon device and guest OS balloon driver",
    );
    refused(
        &daemon,
        &["dommemstat", "hard", "--period", "3", "--live"],
        "No memory balloon device configured",
    );
}

#[test]
fn threads_run_where_they_are_pinned_from_the_start_and_later() {
    let daemon = daemon();
    start(
        &daemon,
        "pinned",
        "<vcpu current='1'>2</vcpu><iothreads>1</iothreads><cputune><vcpupin vcpu='0' cpuset='0'/>\
         <vcpupin vcpu='1' cpuset='0'/><emulatorpin cpuset='0'/><iothreadpin iothread='1' cpuset='0'/></cputune>",
    );
    let pid = daemon.qemu_pid("pinned");
    // The process itself by no name, its threads by theirs.
    let allowed = |thread: &str| {
        let find = format!(
            "for t in /proc/{pid}/task/*; do n=$(cat $t/comm); test ${{t##*/}} = {pid} && n=main; \
             case \"$n\" in {thread}) sed -n 's/^Cpus_allowed_list:\\t//p' $t/status;; esac; done"
        );
        run("sh", &["-c", &find]).ok().trim().to_owned()
    };
    for thread in ["main", "CPU\\ 0*", "IO\\ iothread1"] {
        assert_eq!(allowed(thread), "0", "{thread}");
    }
    daemon.ok(&["setvcpus", "pinned", "2", "--live"]);
    assert_eq!(allowed("CPU\\ 1*"), "0");
    daemon.ok(&["vcpupin", "pinned", "1", "1", "--live"]);
    daemon.ok(&["emulatorpin", "pinned", "1", "--live", "--config"]);
    daemon.ok(&["iothreadpin", "pinned", "1", "1", "--live"]);
    for thread in ["main", "CPU\\ 1*", "IO\\ iothread1"] {
        assert_eq!(allowed(thread), "1", "{thread}");
    }
    let pin = "<vcpupin vcpu='1' cpuset='";
    assert_eq!(lines(&daemon, "pinned", pin), (vec![format!("{pin}1'/>")], vec![format!("{pin}0'/>")]));
    let pin = "<emulatorpin cpuset='1'/>";
    assert_eq!(lines(&daemon, "pinned", "<emulatorpin"), (vec![pin.to_owned()], vec![pin.to_owned()]));
    assert_eq!(lines(&daemon, "pinned", "<iothreadpin").0, ["<iothreadpin iothread='1' cpuset='1'/>"]);
    for (arguments, sentence) in [
        (&["vcpupin", "pinned", "2", "0", "--live"][..], "vcpu 2 is out of range of live cpu count 2"),
        (&["vcpupin", "pinned", "2", "0", "--config"], "vcpu 2 is out of range of persistent cpu count"),
        (&["iothreadpin", "pinned", "7", "0", "--live"], "iothread 7 not found"),
        (&["iothreadpin", "pinned", "7", "0", "--config"], "iothreadid 7 not found"),
    ] {
        refused(&daemon, arguments, sentence);
    }
}
