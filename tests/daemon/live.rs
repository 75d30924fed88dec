//! What the live definition says of a guest: what QEMU really gave it.

use ferrovirt_compat::halting;

use crate::daemon;

/// A guest that TCG runs, on every host alike, with this CPU.
fn tcg(name: &str, cpu: &str) -> String {
    let xml = halting(name).xml().replace("type='kvm'", "type='qemu'");
    xml.replace("<devices>", &format!("{cpu}<devices>"))
}

/// The model, and the features behind it as `+name` and `-name`.
fn cpu_of(xml: &str) -> String {
    let cpu = xml.split("<cpu ").nth(1).and_then(|rest| rest.split("</cpu>").next()).expect("a <cpu>");
    let mut said = cpu.split(">\n").next().unwrap_or_default().to_owned();
    for line in cpu.lines().filter_map(|line| line.trim().strip_prefix("<feature policy='")) {
        let mut parts = line.split('\'');
        let policy = if parts.next() == Some("require") { '+' } else { '-' };
        said.push_str(&format!(" {policy}{}", parts.nth(1).unwrap_or_default()));
    }
    said
}

#[test]
fn the_live_cpu_names_what_qemu_gave_beyond_the_model_and_withheld() {
    let daemon = daemon();
    let model = |rest: &str| format!("<cpu match='exact'><model>qemu64</model>{rest}</cpu>");
    let own = "<feature policy='require' name='avx'/><feature policy='require' name='vmx'/>";
    let topology = "<topology sockets='1' cores='2' threads='1'/>";
    let full = "mode='custom' match='exact' check='full'";
    for (name, cpu, expected) in [
        ("plain", String::new(), " +hypervisor +lahf_lm"),
        ("own", model(own).replace("<cpu", "<cpu check='none'"), " +avx -vmx +hypervisor +lahf_lm"),
        ("cores", model(topology), " +ht +hypervisor +cmp_legacy +lahf_lm"),
    ] {
        let xml = tcg(name, &cpu).replace("<os>", "<vcpu>2</vcpu><os>");
        daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
        // The second time it is remembered.
        for _ in 0..2 {
            daemon.ok(&["start", name]);
            let mut found: Vec<_> =
                cpu_of(&daemon.ok(&["dumpxml", name])).split(" +").map(str::to_owned).collect();
            let mut wanted: Vec<_> = format!("{full}{expected}").split(" +").map(str::to_owned).collect();
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted, "{name}");
            daemon.ok(&["destroy", name]);
        }
        assert!(!daemon.ok(&["dumpxml", name]).contains("check='full'"), "the definition stays as it was");
    }
}

#[test]
fn a_cpu_that_the_host_does_not_have_is_refused_as_strictly_as_asked() {
    let daemon = daemon();
    let cpu = |check: &str, model: &str, features: &str| {
        format!("<cpu match='exact' check='{check}'><model>{model}</model>{features}</cpu>")
    };
    let hle = "<feature policy='require' name='hle'/>";
    let forbidden = "<feature policy='forbid' name='x2apic'/>";
    for (cpu, sentence) in [
        (
            cpu("partial", "qemu64", hle),
            "the CPU is incompatible with host CPU: Host CPU does not provide required features: hle",
        ),
        (cpu("partial", "Skylake-Client", ""), "Host CPU does not provide required features: pcid, "),
        (cpu("partial", "qemu64", forbidden), "Host CPU provides forbidden feature 'x2apic'"),
        (
            cpu("full", "Westmere", ""),
            "operation failed: guest CPU doesn't match specification: extra features: ",
        ),
        (cpu("full", "qemu64", hle), "missing features: hle"),
    ] {
        let xml = tcg("wrong", &cpu);
        let error = daemon.with_xml(&xml, |file| daemon.virsh(&["create", file])).fails();
        assert!(error.contains(sentence), "{cpu}: {error}");
        assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
    }
    let xml = tcg("lax", &cpu("none", "qemu64", hle));
    daemon.with_xml(&xml, |file| daemon.ok(&["create", file]));
    assert!(cpu_of(&daemon.ok(&["dumpxml", "lax"])).contains(" -hle"));
}
