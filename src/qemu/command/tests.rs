//! Every guest of the corpus: our arguments are libvirt's, and so is the running definition.
//!
//! Definitions are taken as libvirt printed them, so that only this floor is under test. What libvirt and
//! we do differently on purpose stands in `tests/data/domain/differences`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{
    Context, Descriptors, ImageDescriptors, InterfaceDescriptors, Need, Opened, Sandbox, Settings, build,
    needs,
};
use crate::conf::devices::{
    Backing, Disk, InterfaceKind, Layer, LayerFormat, Place as Image, Storage, StorageFormat,
};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::qemu::block;
use crate::qemu::capabilities::QemuCaps;
use crate::qemu::prepare::{Chooser, Place, prepare, set_pty_paths};
use crate::qemu::process::short_name;
use crate::qemu::security::Security;
use crate::util::accounts::Ids;
use crate::util::paths::Scope;

pub(crate) fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/domain")
}

pub(crate) fn caps() -> QemuCaps {
    let file = |name: &str| {
        let path = corpus().join("../capabilities").join(name);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let (kvm, tcg) = (file("qemu-10.0.2-x86_64-kvm.json"), file("qemu-10.0.2-x86_64-tcg.json"));
    let binary = "/usr/bin/qemu-system-x86_64".into();
    crate::qemu::capabilities::probe::assemble(binary, &kvm, Some(&tcg)).unwrap()
}

/// The first ports of each kind, as in the recording.
struct First;

impl Chooser for First {
    fn vnc_port(&mut self) -> Option<u16> {
        Some(5900)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        Some(5700)
    }
}

/// What the images of the corpus say of each other, without reading them.
fn detect(disk: &mut Disk) {
    let below = |path: &str| match path.strip_prefix("/var/tmp/ferrovirt-corpus/")? {
        "chain-top.qcow2" => Some(("chain-mid.qcow2", StorageFormat::Qcow2)),
        "chain-mid.qcow2" => Some(("chain-base.raw", StorageFormat::Raw)),
        "over-raw.qcow2" | "over-unformatted.qcow2" => Some(("disk2.raw", StorageFormat::Raw)),
        _ => None,
    };
    // Nobody but QEMU looks into images of other hosts.
    if disk.storage.is_empty() || disk.storage.remote().is_some() {
        return;
    }
    let mut here = &mut disk.storage;
    loop {
        if here.backing.is_none() {
            here.backing_detected = true;
            let layer = here.path().and_then(below).map(|(name, kind)| {
                let path = format!("/var/tmp/ferrovirt-corpus/{name}");
                let format = LayerFormat { kind, metadata_cache: None };
                Backing::Layer(Layer { format, storage: Storage::new(Image::File(Some(path.into()))) })
            });
            here.backing = Some(Box::new(layer.unwrap_or(Backing::End)));
        }
        match here.backing.as_deref_mut() {
            Some(Backing::Layer(layer)) => here = &mut layer.storage,
            _ => return,
        }
    }
}

/// Numbers from 101, in the order of the command line.
pub(crate) fn open_all(needs: &[Need]) -> Descriptors {
    let mut descriptors = Descriptors::default();
    let mut next = 101;
    let mut take = || {
        next += 1;
        next - 1
    };
    for need in needs {
        match need {
            Need::ListenUnix { name, .. }
            | Need::File { name, .. }
            | Need::Device { name, .. }
            | Need::TpmCancel { name, .. } => {
                descriptors.chardevs.insert(name.clone(), Opened(take()));
            }
            Need::Image { node, .. } => {
                let opened = ImageDescriptors { descriptors: vec![take()], writable: false };
                descriptors.images.insert(node.clone(), opened);
            }
            Need::Vsock { .. } => {}
            Need::Tap { alias, queues } => {
                let tap = (0..*queues).map(|_| take()).collect();
                let opened = InterfaceDescriptors { tap, vhost: Vec::new() };
                descriptors.interfaces.insert(alias.clone(), opened);
            }
        }
    }
    descriptors
}

pub(crate) fn running(definition: &str, name: &str) -> Domain {
    let mut domain = Domain::parse(definition, Form::INACTIVE | Form::SECURE).unwrap();
    let state_dir = format!("/var/lib/libvirt/qemu/domain-{}", short_name(1, name));
    let channel_dir = format!("/run/libvirt/qemu/channel/{}", short_name(1, name));
    let place = Place {
        id: 1,
        state_dir: Path::new(&state_dir),
        channel_dir: Path::new(&channel_dir),
        vnc_listen: "127.0.0.1",
        render_node: None,
    };
    Security::fixed(Ids { user: 0, group: 0 }).confine(&mut domain).unwrap();
    prepare(&mut domain, &place, &mut First).unwrap();
    // The kernel names network devices.
    use InterfaceKind::{Bridge, Direct, Ethernet, Network};
    let has_device = |kind| matches!(kind, Bridge | Direct | Ethernet | Network);
    let cards = domain.devices.interfaces.iter_mut();
    let unnamed = cards.filter(|card| card.target.dev.is_none() && has_device(card.kind));
    for (number, interface) in unnamed.enumerate() {
        interface.target.dev = Some(format!("vnet{number}").into());
    }
    let mut last = 0;
    block::number_images(&mut domain, &mut last);
    domain.devices.disks.iter_mut().for_each(detect);
    block::number_images(&mut domain, &mut last);
    domain
}

/// `NAME: reason` lines of one kind.
fn accepted(kind: &str) -> Vec<String> {
    let text = fs::read_to_string(corpus().join("differences")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')?.split_once(':'));
    lines.map(|(name, _)| name.to_owned()).collect()
}

/// Runs `check` on every guest that has `file`; the guests it complains of must be the accepted ones.
pub(crate) fn for_all(kind: &str, file: &str, check: impl Fn(&str, &str, &str) -> Result<(), String>) {
    let accepted = accepted(kind);
    let (mut checked, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Ok(expected) = fs::read_to_string(path.join(file)) else { continue };
        let Ok(definition) = fs::read_to_string(path.join("inactive.xml")) else { continue };
        checked += 1;
        match (check(&name, &definition, &expected), accepted.contains(&name)) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => wrong.push(format!("{name}: is like libvirt's, though listed as different")),
            (Err(difference), false) => wrong.push(format!("{name}: {difference}")),
        }
    }
    assert!(checked > 60, "only {checked} guests");
    wrong.sort();
    assert!(wrong.is_empty(), "{} guests differ:\n{}", wrong.len(), wrong.join("\n"));
}

pub(crate) fn first_difference(theirs: &[&str], ours: &[&str]) -> String {
    let at = theirs.iter().zip(ours).position(|(theirs, ours)| theirs != ours);
    let at = at.unwrap_or(theirs.len().min(ours.len()));
    format!("\n  libvirt: {:?}\n  ours:    {:?}", theirs.get(at), ours.get(at))
}

#[test]
fn arguments_are_libvirts() {
    let caps = caps();
    for_all("args", "args", |name, definition, expected| {
        let domain = running(definition, name);
        let descriptors = open_all(&needs(&domain));
        let state_dir = format!("/var/lib/libvirt/qemu/domain-{}", short_name(1, name));
        let memory_dir = format!("/var/lib/libvirt/qemu/ram/{}", short_name(1, name));
        let context = Context {
            scope: Scope::System,
            state_dir: Path::new(&state_dir),
            memory_dir: Path::new(&memory_dir),
            monitor: 100,
            descriptors: &descriptors,
            sandbox: Sandbox::On,
            now_s: 0,
            local_offset_s: 0,
            incoming: None,
            settings: &Settings::default(),
            inherited_env: &[],
        };
        let line = build(&domain, &caps, &context).map_err(|error| error.to_string())?;
        let ours: Vec<&str> = std::iter::once(&line.program).chain(&line.args).map(String::as_str).collect();
        let theirs: Vec<&str> = expected.lines().collect();
        if ours != theirs {
            return Err(first_difference(&theirs, &ours));
        }
        let Ok(env) = fs::read_to_string(corpus().join(name).join("env")) else { return Ok(()) };
        let ours: Vec<String> = line.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        let theirs: Vec<&str> = env.lines().collect();
        if ours == theirs { Ok(()) } else { Err(first_difference(&theirs, &ours)) }
    });
}

/// The CPU, which QEMU reports after the start, is left out.
fn without_cpu(text: &str) -> String {
    let (Some(start), Some(end)) = (text.find("  <cpu mode="), text.find("  </cpu>\n")) else {
        return text.to_owned();
    };
    text[..start].to_owned() + &text[end..]
}

#[test]
fn the_running_definition_is_libvirts() {
    for_all("live", "live.xml", |name, definition, expected| {
        let mut domain = running(definition, name);
        let devices = &domain.devices;
        // Ptys are numbered in the order in which QEMU opens them.
        let serials = devices.serials.iter().map(|it| (&it.info, &it.source));
        let channels = devices.channels.iter().map(|it| (&it.info, &it.source));
        let consoles = devices.consoles.iter().skip(1).map(|it| (&it.info, &it.source));
        let mut ptys = Vec::new();
        for (info, source) in serials.chain(channels).chain(consoles) {
            if source.kind() == crate::conf::devices::CharKind::Pty {
                let id = format!("char{}", info.alias.as_deref().unwrap());
                ptys.push((id, format!("/dev/pts/{}", ptys.len())));
            }
        }
        set_pty_paths(&mut domain, &ptys);
        let (ours, theirs) = (without_cpu(&domain.to_xml(Form::LIVE | Form::SECURE)), without_cpu(expected));
        if ours == theirs {
            return Ok(());
        }
        let (ours, theirs): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
        Err(first_difference(&theirs, &ours))
    });
}
