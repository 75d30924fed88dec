//! What a fuzzer runs, so that ordinary tests run it too: everything between a client's text and QEMU's arguments,
//! without a host, and what QEMU, its guests and other hosts may have written.

use std::path::Path;

use super::capabilities::{QemuCaps, probe};
use super::command::{
    self, Context, Descriptors, ImageDescriptors, InterfaceDescriptors, Need, Opened, Sandbox, Settings,
    VsockDescriptor,
};
use super::facts::facts;
use super::prepare::{Chooser, Place, prepare};
use super::process::Directories;
use super::save_image::{Prologue, SaveImageError, Whole};
use super::status::Status;
use crate::conf::ConfError;
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::Generator;
use crate::conf::migration::{Cookie, Feature, Peer};
use crate::conf::xml::Form;
use crate::util::mac::Mac;
use crate::util::paths::{Paths, Scope};
use crate::util::uuid::Uuid;

/// Values that are always the same.
struct Same;

impl Generator for Same {
    fn uuid(&mut self) -> Uuid {
        Uuid([7; 16])
    }

    fn mac(&mut self) -> Mac {
        Mac([0x52, 0x54, 0, 1, 2, 3])
    }
}

impl Chooser for Same {
    fn vnc_port(&mut self) -> Option<u16> {
        Some(5900)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        Some(5700)
    }
}

/// Takes a text all the way: read, defaults, validate, write, arguments. A definition that is accepted must read
/// back as it was written.
pub fn definition(text: &str, caps: &QemuCaps) -> Result<(), ConfError> {
    let mut domain = Domain::parse(text, Form::INACTIVE)?;
    let facts = facts(caps, &domain);
    domain.defaults(&facts, &mut Same)?;
    domain.validate(&facts)?;
    let form = Form::INACTIVE | Form::SECURE;
    let written = domain.to_xml(form);
    let again = Domain::parse(&written, form)?.to_xml(form);
    assert!(again == written, "what was written reads as something else:\n{written}\n{again}");
    domain.to_xml(Form::LIVE | Form::MIGRATABLE);
    arguments(domain, caps);
    Ok(())
}

/// Looks at the first bytes of an image, which a guest may have written.
pub fn header(bytes: &[u8]) {
    let facts = super::storage::Facts::of(bytes);
    assert!(facts.cluster_size == 0 || facts.cluster_size.is_power_of_two(), "{facts:?}");
    assert!(facts.backing.is_none_or(|below| below.name.len() <= bytes.len()), "a name from elsewhere");
}

/// Reads a cookie of another host's; one that is accepted must read back as it was written.
pub fn cookie(bytes: &[u8]) -> Result<(), ConfError> {
    let peer = Peer { name: "guest", uuid: COOKIES_GUEST, host_uuid: Uuid([9; 16]) };
    let Some(cookie) = Cookie::parse(bytes, peer, Feature::ALL)? else { return Ok(()) };
    // What grows when it is written may be too large then.
    let written = cookie.to_bytes()?;
    let again = Cookie::parse(&written, peer, Feature::ALL)?.map(|cookie| cookie.to_bytes()).transpose()?;
    assert!(again.as_ref() == Some(&written), "what was written reads as something else");
    Ok(())
}

/// Reads what another daemon may have left of a guest that runs.
pub fn status(text: &str) -> Result<(), ConfError> {
    let written = Status::parse(text)?.to_text();
    let again = Status::parse(&written)?;
    assert!(again.to_text() == written, "what was written reads as something else:\n{written}");
    again.claim(&Directories::new(&Paths::system(Path::new("/"))));
    Ok(())
}

/// Reads what comes before a guest's memory in a file that it was saved in, and the texts in there.
pub fn image(bytes: &[u8]) -> Result<(), SaveImageError> {
    let mut rest = bytes;
    let prologue = Prologue::read(&mut rest)?;
    let read = u64::try_from(bytes.len() - rest.len());
    assert!(read == Ok(prologue.stream_offset()), "the stream begins elsewhere");
    // What is refused is refused by whoever restores the guest.
    let _ = prologue.cookie();
    let _ = Domain::parse(&prologue.xml, Form::INACTIVE);
    // What fills its place to the last byte has none for the zero behind it.
    if let Ok(written) = prologue.encode(Whole::Yes) {
        let again = Prologue::read(&mut written.as_slice())?;
        assert!(again == prologue, "what was written reads as something else");
    }
    Ok(())
}

/// Takes bytes as what a QEMU says, line by line, and as its answers to the questions about what it can do.
pub fn qmp(bytes: &[u8]) {
    super::monitor::fuzz::lines(bytes);
    super::monitor::fuzz::conversation(bytes);
    if let Ok(answers) = serde_json::from_slice(bytes) {
        let _refused_or_understood = probe::assemble("/usr/bin/qemu-system-x86_64".into(), &answers, None);
    }
}

pub use super::agent::fuzz::agent;

/// Of the seeds.
const COOKIES_GUEST: Uuid =
    Uuid([0x6b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x41, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8]);

/// The command line; that there is none is an answer as well.
fn arguments(mut domain: Domain, caps: &QemuCaps) {
    let directory = Path::new("/var/lib/libvirt/qemu/domain-1-x");
    let place = Place {
        id: 1,
        state_dir: directory,
        channel_dir: directory,
        vnc_listen: "127.0.0.1",
        render_node: None,
    };
    if prepare(&mut domain, &place, &mut Same).is_err() {
        return;
    }
    super::block::number_images(&mut domain, &mut 0);
    let mut descriptors =
        Descriptors { secrets: Descriptors::placeholders(&domain).secrets, ..Descriptors::default() };
    for need in command::needs(&domain) {
        match need {
            Need::ListenUnix { name, .. }
            | Need::File { name, .. }
            | Need::Device { name, .. }
            | Need::TpmCancel { name, .. } => {
                descriptors.chardevs.insert(name, Opened(9));
            }
            Need::Image { node, .. } => {
                let opened = ImageDescriptors { descriptors: vec![9], writable: false };
                descriptors.images.insert(node, opened);
            }
            Need::Vsock { alias, cid } => {
                let opened = VsockDescriptor { descriptor: 9, cid: cid.unwrap_or(3) };
                descriptors.vsocks.insert(alias, opened);
            }
            Need::Tap { alias, .. } => {
                let opened = InterfaceDescriptors { tap: vec![9], vhost: Vec::new() };
                descriptors.interfaces.insert(alias, opened);
            }
        }
    }
    let context = Context {
        scope: Scope::System,
        state_dir: directory,
        memory_dir: directory,
        monitor: 8,
        descriptors: &descriptors,
        sandbox: Sandbox::On,
        now_s: 0,
        local_offset_s: 0,
        incoming: None,
        settings: &Settings::default(),
        inherited_env: &[],
    };
    let _refused_or_built = command::build(&domain, caps, &context);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::qemu::capabilities::probe::assemble;

    fn data() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
    }

    fn caps() -> QemuCaps {
        let file = |name: &str| {
            let path = data().join("capabilities").join(name);
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
        };
        let (kvm, tcg) = (file("qemu-10.0.2-x86_64-kvm.json"), file("qemu-10.0.2-x86_64-tcg.json"));
        assemble("/usr/bin/qemu-system-x86_64".into(), &kvm, Some(&tcg)).unwrap()
    }

    fn inputs() -> Vec<String> {
        let guests =
            fs::read_dir(data().join("domain")).unwrap().map(|entry| entry.unwrap().path().join("input.xml"));
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/definition");
        let seeds = fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().path());
        guests.chain(seeds).filter_map(|path| fs::read_to_string(path).ok()).collect()
    }

    #[test]
    fn every_guest_goes_all_the_way() {
        let (caps, inputs) = (caps(), inputs());
        let accepted = inputs.iter().filter(|text| definition(text, &caps).is_ok()).count();
        assert!(inputs.len() > 100 && accepted > 60, "{accepted} of {}", inputs.len());
    }

    /// Values that readers of numbers, names and paths stumble over.
    const HOSTILE: [&str; 8] =
        ["", "-1", "18446744073709551616", "4294967295", "9223372036854775807", "../../x", "a,b=c", "0x"];

    /// Each attribute in turn becomes something else, each element in turn comes twice or is cut off.
    fn mutations(text: &str, salt: usize) -> Vec<String> {
        let mut all = Vec::new();
        for (number, (start, _)) in text.match_indices("='").enumerate() {
            let start = start + 2;
            let Some(length) = text[start..].find('\'') else { continue };
            let value = HOSTILE[(number + salt) % HOSTILE.len()];
            all.push(format!("{}{value}{}", &text[..start], &text[start + length..]));
        }
        for (number, (end, _)) in text.match_indices("/>").enumerate() {
            let Some(start) = text[..end].rfind('<') else { continue };
            let element = &text[start..end + 2];
            match (number + salt) % 2 {
                0 => all.push(text.replacen(element, &element.repeat(2), 1)),
                _ => all.push(text.replacen(element, "", 1)),
            }
        }
        all
    }

    #[test]
    fn no_change_of_a_definition_brings_the_daemon_down() {
        let caps = caps();
        for (salt, text) in inputs().iter().enumerate() {
            // Each guest has its share; what they have in common is changed often enough.
            for text in mutations(text, salt).into_iter().skip(salt % 4).step_by(4) {
                let done =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| definition(&text, &caps)));
                assert!(done.is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn no_change_of_a_header_brings_the_daemon_down() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/header");
        let seeds = fs::read_dir(seeds).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let mut count = 0;
        for seed in seeds {
            count += 1;
            for at in 0..seed.len().min(600) {
                header(&seed[..at]);
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    for len in [1, 4, 8] {
                        let mut changed = seed.clone();
                        changed.iter_mut().skip(at).take(len).for_each(|byte| *byte = value);
                        header(&changed);
                    }
                }
            }
        }
        assert!(count >= 6, "{count}");
    }

    #[test]
    fn no_change_of_a_cookie_brings_the_daemon_down() {
        let text = fs::read_to_string(data().join("migration/cookie.xml")).unwrap();
        let terminated = |text: &str| [text.as_bytes(), &[0]].concat();
        cookie(&terminated(&text)).unwrap();
        let mut refused = 0;
        for salt in 0..HOSTILE.len() {
            for changed in mutations(&text, salt) {
                let done = std::panic::catch_unwind(|| cookie(&terminated(&changed)));
                refused += usize::from(done.unwrap_or_else(|_| panic!("{changed}")).is_err());
            }
        }
        assert!(refused > 100, "{refused}");
        for cut in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            assert!(cookie(&terminated(&text[..cut])).is_err() || cut == text.trim_end().len(), "{cut}");
        }
    }

    /// What a definition asks for takes no memory before anything is opened.
    #[test]
    fn nobody_has_billions_of_queues() {
        let caps = caps();
        let card =
            "<interface type='ethernet'><model type='virtio'/><driver queues='4294967295'/></interface>";
        let drive = "<disk type='block' device='cdrom'><target dev='sda' bus='sata'/></disk>";
        let text = format!(
            "<domain type='kvm'><name>x</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>\
             <devices>{card}{drive}</devices></domain>"
        );
        let mut domain = Domain::parse(&text, Form::INACTIVE).unwrap();
        assert!(domain.to_xml(Form::INACTIVE).contains("<disk type='block' device='cdrom'>"));
        domain.defaults(&facts(&caps, &domain), &mut Same).unwrap();
        for interface in &mut domain.devices.interfaces {
            interface.info.alias = Some("net0".into());
        }
        assert_eq!(Descriptors::placeholders(&domain).interfaces["net0"].tap.len(), 256);
    }

    #[test]
    fn hostile_texts_are_refused_with_the_place() {
        let caps = caps();
        let domain = |inside: &str| {
            format!(
                "<domain type='kvm'>\n<name>x</name><memory>1</memory><os><type>hvm</type></os>\n{inside}</domain>"
            )
        };
        let bomb =
            "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>\n<domain>&b;</domain>".to_owned();
        let long = "y".repeat(11 << 20);
        for (text, place) in [
            (bomb, "at line 1"),
            (domain(&format!("<title x='{long}'/>")), "over the limit"),
            (domain(&"<a>".repeat(100_000)), "at line 3"),
            (domain("<title>\0</title>"), "at line 3"),
            (domain("<title>&unknown;</title>"), "at line 3"),
            (domain("<title a='1' a='2'/>"), "at line 3"),
            (domain("<vcpu>99999999999999999999</vcpu>"), "vcpu"),
            (domain("<iothreads>4294967296</iothreads>"), "iothreads"),
            (domain("<devices><controller type='usb' index='4294967296'/></devices>"), "'index'"),
            (domain("<devices><controller type='pci' index='-5'/></devices>"), "'index'"),
            (domain("<cputune><shares>-1</shares></cputune>"), "shares"),
        ] {
            let refused = definition(&text, &caps).unwrap_err();
            let shown: String = text.chars().take(200).collect();
            assert!(refused.message.contains(place), "{shown}: {}", refused.message);
            assert!(refused.message.len() < 10_000, "{shown}");
        }
    }
}
