//! Definitions of guests, all the way to QEMU's arguments.

#![no_main]

use std::sync::LazyLock;

use ferrovirt::qemu::capabilities::{QemuCaps, probe};
use libfuzzer_sys::fuzz_target;

static CAPS: LazyLock<QemuCaps> = LazyLock::new(|| {
    let answers = |text| serde_json::from_str(text).expect("recorded answers are JSON");
    let kvm = answers(include_str!("../../tests/data/capabilities/qemu-10.0.2-x86_64-kvm.json"));
    let tcg = answers(include_str!("../../tests/data/capabilities/qemu-10.0.2-x86_64-tcg.json"));
    probe::assemble("/usr/bin/qemu-system-x86_64".into(), &kvm, Some(&tcg)).expect("recorded answers are complete")
});

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let _refused_or_accepted = ferrovirt::qemu::fuzz::definition(text, &CAPS);
    }
});
