//! Every definition of the corpus, completed by us, is what libvirt made of it.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::conf::xml::Form;

/// What the machine that recorded the corpus has.
pub(in crate::conf::domain) fn facts(domain: &Domain) -> Facts<'static> {
    let machine = match domain.machine() {
        "" | "pc" | "pc-i440fx-10.0" => Some("pc-i440fx-10.0"),
        "q35" | "pc-q35-10.0" => Some("pc-q35-10.0"),
        _ => None,
    };
    let default_cpu = match domain.machine() {
        "pc-bogus" => None,
        "isapc" => Some("486"),
        _ => Some("qemu64"),
    };
    let mut has = Has::all();
    has.remove(Has::QXL);
    let max_vcpus = Some(if machine == Some("pc-q35-10.0") { 4096 } else { 255 });
    let versioned = ["pc-q35-", "pc-i440fx-", "isapc"];
    let is_known = versioned.iter().any(|known| domain.machine().starts_with(known));
    let machine = machine.or_else(|| is_known.then(|| &*domain.machine().to_owned().leak()));
    Facts {
        arch: Arch::X86_64,
        emulator: "/usr/bin/qemu-system-x86_64",
        machine,
        default_cpu,
        has,
        age: Age::New,
        firmwares: &[],
        nvram_dir: "/var/lib/libvirt/qemu/nvram",
        virt_type_works: true,
        max_vcpus,
        acpi: None,
    }
}

#[derive(Default)]
struct Counter(u8);

impl Generator for Counter {
    fn uuid(&mut self) -> Uuid {
        self.0 = self.0.wrapping_add(1);
        Uuid([self.0; 16])
    }

    fn mac(&mut self) -> Mac {
        self.0 = self.0.wrapping_add(1);
        Mac([0x52, 0x54, 0, 0, 0, self.0])
    }
}

pub(in crate::conf::domain) fn complete(text: &str) -> Result<Domain> {
    let mut domain = Domain::parse(text, Form::INACTIVE)?;
    let facts = facts(&domain);
    domain.defaults(&facts, &mut Counter::default())?;
    Ok(domain)
}

pub(in crate::conf::domain) fn corpus() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/domain");
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.join("input.xml").exists());
    cases.sort();
    cases
}

/// Kinds of devices that are kept without being understood are not completed either.
const NOT_YET: &[&str] = &["later-devices"];

#[test]
fn definitions_are_completed_as_libvirt_completes_them() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for case in corpus() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let Ok(expected) = fs::read_to_string(case.join("inactive.xml")) else { continue };
        if NOT_YET.contains(&name) {
            continue;
        }
        checked += 1;
        let input = fs::read_to_string(case.join("input.xml")).unwrap();
        match complete(&input) {
            Ok(domain) => {
                let written = domain.to_xml(Form::INACTIVE | Form::SECURE);
                if without_generated(&written, &input) != without_generated(&expected, &input) {
                    let mut lines = expected.lines().zip(written.lines());
                    let line = lines.find(|(theirs, ours)| theirs != ours);
                    wrong.push(format!("{name}: {line:?}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(checked > 70, "only {checked}");
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Blanks out what chance decided.
fn without_generated(text: &str, input: &str) -> String {
    let by_chance = |line: &str| {
        (line.contains("<mac address") && !input.contains(line.trim()))
            || (line.contains("<genid>") && !input.contains(line.trim()))
            || (line.contains("<uuid>") && !input.contains("<uuid>"))
    };
    text.lines().filter(|line| !by_chance(line)).flat_map(|line| [line, "\n"]).collect()
}

/// The order of disks follows from buses and names that completing has only just added.
const SETTLES_LATER: &[&str] = &["disk-defaults"];

#[test]
fn a_completed_definition_stays_as_it_is() {
    let form = Form::INACTIVE | Form::SECURE;
    for case in corpus() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let input = fs::read_to_string(case.join("input.xml")).unwrap();
        let Ok(domain) = complete(&input) else { continue };
        let written = domain.to_xml(form);
        let again = complete(&written).unwrap_or_else(|error| panic!("{name}: {error}"));
        if SETTLES_LATER.contains(&name) {
            continue;
        }
        assert_eq!(again.to_xml(form), written, "{name}");
        assert_eq!(again, domain, "{name}");
    }
}

#[test]
fn what_was_read_is_read_again_from_what_was_written() {
    let mut checked = 0;
    for case in corpus() {
        for (file, form) in [
            ("input.xml", Form::INACTIVE),
            ("inactive.xml", Form::INACTIVE | Form::SECURE),
            ("live.xml", Form::LIVE | Form::SECURE),
        ] {
            let Ok(text) = fs::read_to_string(case.join(file)) else { continue };
            let Ok(domain) = Domain::parse(&text, form) else { continue };
            let written = domain.to_xml(form | Form::SECURE);
            let again = Domain::parse(&written, form).unwrap();
            assert_eq!(again.to_xml(form | Form::SECURE), written);
            // Before it is complete, a definition may say things that nothing is written for.
            if file != "input.xml" {
                assert_eq!(again, domain, "{} of {}", file, case.display());
                assert_eq!(domain.to_xml(form), text, "{} of {}", file, case.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 200, "only {checked}");
}

#[test]
fn a_running_guests_socket_is_not_part_of_its_definition() {
    for (path, kept) in [
        ("/run/libvirt/qemu/channel/12-x/org.qemu.guest_agent.0", false),
        ("/var/lib/libvirt/qemu/channel/target/domain-3-x/org.qemu.guest_agent.0", false),
        ("/var/lib/libvirt/qemu/channel/target/x.org.qemu.guest_agent.0", false),
        ("/run/libvirt/qemu/channel/mine/org.qemu.guest_agent.0", true),
        ("/srv/channel/12-x/org.qemu.guest_agent.0", true),
        ("/run/libvirt/qemu/channel/12-x/other", true),
    ] {
        let text = format!(
            "<domain type='qemu'><name>x</name><memory>65536</memory><os><type machine='q35'>hvm</type></os><devices>\
             <channel type='unix'><source mode='bind' path='{path}'/>\
             <target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"
        );
        assert_eq!(complete(&text).unwrap().to_xml(Form::INACTIVE).contains(path), kept, "{path}");
    }
}
