//! What a domain uses of the host, and what it never used: the questions that clients and exporters ask of all.

use ferrovirt_compat::halting;

use crate::daemon;

#[test]
fn pinning_is_told_of_domains_that_run_and_that_do_not() {
    let daemon = daemon();
    let xml = halting("tiny").xml().replace(
        "<os>",
        "<vcpu>2</vcpu><cputune><vcpupin vcpu='1' cpuset='1'/><emulatorpin cpuset='0'/></cputune><os>",
    );
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let pins = || {
        let script =
            "d = conn.lookupByName('tiny')\nprint(d.vcpuPinInfo(0)[1][:2], d.emulatorPinInfo(0)[:2])";
        daemon.python(script).ok().trim().to_owned()
    };
    assert_eq!(pins(), "(False, True) (True, False)");
    assert_eq!(daemon.ok(&["vcpuinfo", "tiny"]).matches("VCPU:").count(), 2);
    let error =
        daemon.python("conn.lookupByName('tiny').vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)").fails();
    assert!(error.contains("domain is not running"), "{error}");
}

#[test]
fn the_size_of_an_image_is_told() {
    let daemon = daemon();
    let image = daemon.path("disk.qcow2");
    let image = image.to_str().unwrap();
    ferrovirt_compat::run("qemu-img", &["create", "-q", "-f", "qcow2", image, "10M"]).ok();
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
         <target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
    );
    daemon.define(&halting("tiny").device(&disk));
    let told = || {
        let script = format!(
            "d = conn.lookupByName('tiny')\nprint(d.blockInfo('vda') == d.blockInfo('{image}'), d.blockInfo('vda')[0])"
        );
        daemon.python(&script).ok().trim().to_owned()
    };
    assert_eq!(told(), "True 10485760");
    daemon.ok(&["start", "tiny"]);
    assert_eq!(told(), "True 10485760");
    for (disk, sentence) in [
        ("sda", "disk 'sda' does not currently have a source assigned"),
        ("vdx", "invalid argument: invalid path vdx not assigned to domain"),
    ] {
        let error = daemon.virsh(&["domblkinfo", "tiny", disk]).fails();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn the_memory_of_a_running_guest_is_told() {
    let daemon = daemon();
    let xml = halting("tiny").xml().replace("<memballoon model='none'/>", "<memballoon model='virtio'/>");
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let error = daemon.virsh(&["dommemstat", "tiny"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
    daemon.ok(&["start", "tiny"]);
    let told = daemon.ok(&["dommemstat", "tiny"]);
    let names: Vec<_> = told.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["actual", "last_update", "rss"]);
    assert!(told.starts_with("actual 16384\n"), "{told}");
}

#[test]
fn a_migratable_text_starts_another_guest() {
    let daemon = daemon();
    let screen = "<graphics type='vnc' passwd='secret'><listen type='socket'/></graphics>";
    daemon.run(&halting("tiny").device(screen));
    let text = daemon.ok(&["dumpxml", "tiny", "--migratable"]);
    assert!(text.contains("passwd='secret'") && text.starts_with("<domain type='"), "{text}");
    assert!(!text.contains("<alias"), "{text}");
}
