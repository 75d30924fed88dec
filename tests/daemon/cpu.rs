//! CPUs compared with what can be had here, and with each other.
//!
//! What a processor is differs from host to host: what a QEMU without KVM offers, and what several CPUs have in
//! common, does not.

use crate::daemon;

/// Prints an answer on one line, or the code, the part of libvirt and the sentence of a refusal.
const SAY: &str = "import re\n\
    def say(call, *args):\n    \
        try: answer = call(*args)\n    \
        except libvirt.libvirtError as e: answer = (e.get_error_code(), e.get_error_domain(), e.get_error_message())\n    \
        print(re.sub(r'\\s*\\n\\s*', '', answer) if isinstance(answer, str) else answer)\n";

#[test]
fn a_cpu_is_held_against_what_qemu_offers() {
    let cases = [
        ("<cpu><model>EPYC</model></cpu>", 0, "0"),
        (
            "<cpu><model>EPYC</model></cpu>",
            1,
            "(91, 31, 'the CPU is incompatible with host CPU: Host CPU does not provide required features: vme, xsavec, misalignsse, osvw, fxsr_opt')",
        ),
        ("<cpu><model>qemu64</model></cpu>", 3, "2"),
        ("<cpu mode='host-passthrough'/>", 1, "2"),
        ("<cpu><arch>s390x</arch><model>z13</model></cpu>", 0, "0"),
        (
            "<cpu><model>qemu64</model><feature policy='require' name='avx512f'/></cpu>",
            1,
            "(91, 31, 'the CPU is incompatible with host CPU: Host CPU does not provide required features: avx512f')",
        ),
        // What a host has has no policy, so nothing of it is looked for where QEMU judges the model.
        ("<cpu><arch>x86_64</arch><model>qemu64-v1</model><feature name='avx512f'/></cpu>", 1, "2"),
        ("<cpu><model>vax</model></cpu>", 0, "(1, 31, 'internal error: Unknown CPU model vax')"),
        (
            "<cpu match='exact'><arch>x86_64</arch><model>qemu64</model></cpu>",
            0,
            "(27, 31, \"XML error: 'arch' element cannot be used inside 'cpu' element with 'match' attribute'\")",
        ),
        ("<a/>", 0, "(27, 31, \"XML error: XML does not contain expected 'cpu' element\")"),
        ("<cpu/>", 12, "(8, 10, 'unsupported flags (0xc) in function qemuConnectCompareHypervisorCPU')"),
    ];
    let mut script = SAY.to_owned();
    for (cpu, flags, _) in cases {
        script += &format!("say(conn.compareHypervisorCPU, None, None, None, 'qemu', {cpu:?}, {flags})\n");
    }
    let said = daemon().python(&script);
    let said = said.ok();
    for ((cpu, flags, expected), answer) in cases.iter().zip(said.lines()) {
        assert_eq!(answer, *expected, "{cpu} {flags}");
    }
    assert_eq!(said.lines().count(), cases.len());
}

#[test]
fn what_cpus_have_in_common_is_a_cpu() {
    let host =
        |model: &str, rest: &str| format!("<cpu><arch>x86_64</arch><model>{model}</model>{rest}</cpu>");
    let intel = "<vendor>Intel</vendor>";
    let cases = [
        (
            vec![host("Penryn", ""), host("EPYC", "")],
            0,
            "<cpu mode='custom' match='exact'><model fallback='allow'>kvm64</model>\
             <feature policy='require' name='ssse3'/><feature policy='require' name='sse4.1'/>\
             <feature policy='require' name='lahf_lm'/></cpu>",
        ),
        (
            vec![host("Westmere", intel), host("Nehalem", "<vendor>Intel</vendor><feature name='invtsc'/>")],
            0,
            "<cpu mode='custom' match='exact'><model fallback='allow'>Nehalem</model>\
             <vendor>Intel</vendor></cpu>",
        ),
        (
            vec![host("Nehalem", "<feature name='invtsc'/><feature name='osxsave'/>")],
            0,
            "<cpu mode='custom' match='exact'><model fallback='forbid'>Nehalem</model>\
             <feature policy='require' name='invtsc'/></cpu>",
        ),
        (
            vec![host("Nehalem", "<feature name='invtsc'/>")],
            2,
            "<cpu mode='custom' match='exact'><model fallback='forbid'>Nehalem</model></cpu>",
        ),
        (
            vec![host("486", "<feature name='sse'/>")],
            1,
            "<cpu mode='custom' match='exact'><model fallback='forbid'>486</model>\
             <feature policy='require' name='fpu'/><feature policy='require' name='pse'/>\
             <feature policy='require' name='sse'/><feature policy='require' name='vme'/></cpu>",
        ),
        (
            vec![host("Nehalem", intel), host("EPYC", "")],
            0,
            "(9, 31, 'operation failed: CPU vendors do not match')",
        ),
        (
            vec![host("Nehalem", ""), host("EPYC", intel)],
            0,
            "(9, 31, 'operation failed: CPU vendor AMD of model EPYC differs from vendor Intel')",
        ),
        (vec!["<cpu/>".to_owned()], 0, "(27, 31, 'XML error: Missing CPU architecture')"),
        (vec![], 0, "(8, 20, 'xmlCPUs in virConnectBaselineCPU must not be NULL')"),
    ];
    let mut script = SAY.to_owned();
    for (cpus, flags, _) in &cases {
        script += &format!("say(conn.baselineCPU, {cpus:?}, {flags})\n");
    }
    let said = daemon().python(&script);
    let said = said.ok();
    for ((cpus, flags, expected), answer) in cases.iter().zip(said.lines()) {
        assert_eq!(answer, *expected, "{cpus:?} {flags}");
    }
    assert_eq!(said.lines().count(), cases.len());
}

#[test]
fn a_common_cpu_is_one_that_qemu_offers() {
    let daemon = daemon();
    let script = format!(
        "{SAY}\
         hypervisor = lambda cpus, flags: conn.baselineHypervisorCPU(None, None, None, 'qemu', cpus, flags)\n\
         limited = lambda bits: f\"<cpu><model>Penryn</model><maxphysaddr mode='passthrough' limit='{{bits}}'/></cpu>\"\n\
         say(hypervisor, ['<cpu><model>Haswell</model></cpu>'], 0)\n\
         say(hypervisor, [limited(42), limited(40)], 0)\n\
         say(hypervisor, ['<cpu/>'], 0)\n"
    );
    let said = daemon.python(&script);
    let expected = [
        "<cpu mode='custom' match='exact'><model fallback='forbid'>Haswell</model>\
         <feature policy='disable' name='pcid'/><feature policy='disable' name='tsc-deadline'/>\
         <feature policy='disable' name='hle'/><feature policy='disable' name='invpcid'/>\
         <feature policy='disable' name='rtm'/></cpu>",
        "<cpu mode='custom' match='exact'><model fallback='forbid'>Penryn</model>\
         <maxphysaddr mode='passthrough' limit='40'/></cpu>",
        "(8, 31, 'invalid argument: no CPU model specified at index 0')",
    ];
    assert_eq!(said.ok().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_host_is_identical_to_itself() {
    let daemon = daemon();
    let said = daemon.python(&format!(
        "{SAY}\
         host = re.search('<cpu>.*?</cpu>', conn.getCapabilities(), re.S).group()\n\
         say(conn.compareCPU, host, 0)\n\
         say(conn.compareCPU, host.replace('x86_64', 'aarch64'), 1)\n\
         say(conn.compareCPU, '<cpu match=\"strict\"><model>486</model></cpu>', 0)\n\
         say(conn.compareCPU, '<cpu><model>486</model></cpu>', 2)\n\
         say(conn.compareCPU, host.replace('<arch>', '<bogus/><arch>'), 2)\n"
    ));
    let said = said.ok().lines().map(str::to_owned).collect::<Vec<_>>();
    let refused = "'the CPU is incompatible with host CPU: CPU arch aarch64 does not match host arch'";
    assert_eq!(said[..4], ["1", &format!("(91, 31, {refused})"), "0", "2"]);
    assert!(said[4].starts_with("(92, 5, "), "{}", said[4]);
}
