//! From QEMU's command line to a definition: the other direction of [`crate::qemu::command`].
//!
//! ```text
//!   argv ─split─► arguments ─each by those who know it─► elements ─► Domain
//!                     │                                     ▲
//!                     └─ what has no place in a definition ─┘ as <qemu:commandline>
//! ```
//!
//! An argument is translated whole or not at all: one option of it that definitions do not have sends all of
//! it to `<qemu:commandline>`, and what it refers to as well. So nothing is lost, and nothing is said twice.
//! What only tells QEMU how to live beside a daemon (`-S`, `-daemonize`, the daemon's own monitor) is left
//! out: the daemon sees to it.

mod arguments;
mod board;
mod controllers;
mod cpu;
mod devices;
mod disks;
mod draft;
mod firmware;
mod images;
mod monitors;
mod networks;
mod node;
mod options;
mod place;
mod placed;
mod screens;
mod streams;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use thiserror::Error;

pub use monitors::{MonitorMode, MonitorPlace, NativeMonitor};
pub use placed::place;

use self::arguments::Argument;
use self::draft::Draft;
use self::node::Node;
use self::options::Options;
use crate::conf::domain::QEMU_NAMESPACE;
use crate::conf::xml::{Form, Writer};

/// Why a command line could not be read at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NativeError {
    #[error("no emulator path found")]
    NoProgram,
    #[error("missing value for {option} argument")]
    NoValue { option: String },
    #[error("a quote is not closed")]
    Unclosed,
}

/// What the command line itself does not show.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The working directory, for paths that start there.
    pub directory: Option<PathBuf>,
    /// Terminals that a running QEMU has opened, by the name of the stream.
    pub ptys: Vec<(String, String)>,
    /// Whether a running QEMU uses KVM.
    pub kvm: Option<bool>,
    /// Contents of `-readconfig` files, by their names.
    pub files: Vec<(String, String)>,
    /// What a guest without a name is called.
    pub name: String,
}

impl Surroundings {
    fn pty(&self, label: &str) -> Option<&str> {
        self.ptys.iter().find(|(name, _)| name == label).map(|(_, path)| path.as_str())
    }
}

/// A guest that was described by a command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Native {
    /// `<domain>`, not yet completed.
    pub xml: String,
    /// Where it can be talked to.
    pub monitors: Vec<NativeMonitor>,
}

/// What to execute, as far as a text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub env: Vec<(String, String)>,
    pub program: String,
    pub args: Vec<String>,
}

impl Invocation {
    /// Takes a text apart that a shell would execute.
    pub fn parse(text: &str) -> Result<Self, NativeError> {
        let mut words = arguments::split_shell(text)?.into_iter().peekable();
        let mut env = Vec::new();
        let variable = |word: &String| {
            let (name, _) = word.split_once('=')?;
            name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_').then_some(())
        };
        while let Some(word) = words.next_if(|word| variable(word).is_some()) {
            env.extend(word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let program = words.next().ok_or(NativeError::NoProgram)?;
        Ok(Self { env, program, args: words.collect() })
    }

    /// The files that the arguments include.
    pub fn config_files(&self) -> Vec<String> {
        let args = arguments::parse(&self.args).unwrap_or_default().into_iter();
        args.filter(|arg| arg.name == "readconfig").filter_map(|arg| arg.value).collect()
    }
}

/// The definition of the guest that `invocation` runs.
pub fn convert(invocation: &Invocation, surroundings: &Surroundings) -> Result<Native, NativeError> {
    let args = include(arguments::parse(&invocation.args)?, surroundings);
    let monitors = monitors::find(&args, surroundings);
    let mut draft = Draft::new(args, machine_of(&invocation.args), surroundings);
    translate(&mut draft);
    monitors::take_own(&mut draft);
    Ok(Native { xml: finish(draft, invocation), monitors })
}

/// Puts the content of `-readconfig` files in their place.
fn include(args: Vec<Argument>, surroundings: &Surroundings) -> Vec<Argument> {
    let content = |arg: &Argument| {
        let (_, text) = surroundings.files.iter().find(|(name, _)| name == arg.value())?;
        (arg.name == "readconfig").then(|| arguments::parse_config(text))?
    };
    args.into_iter().flat_map(|arg| content(&arg).unwrap_or_else(|| vec![arg])).collect()
}

/// The machine decides what buses are called, so it has to be known first.
fn machine_of(args: &[String]) -> String {
    let args = arguments::parse(args).unwrap_or_default();
    let given = args.iter().rev().filter(|arg| matches!(arg.name.as_str(), "machine" | "M"));
    let mut types = given.filter_map(|arg| Options::parse(arg.value(), Some("type")).take("type"));
    types.next().unwrap_or_else(|| "pc".to_owned())
}

fn translate(draft: &mut Draft<'_>) {
    board::machine(draft);
    board::memory(draft);
    cpu::model(draft);
    cpu::count(draft);
    cpu::numa(draft);
    board::iothreads(draft);
    board::clock(draft);
    firmware::boot(draft);
    firmware::tables(draft);
    networks::guestfwd(draft);
    devices::all(draft);
    draft.each("global", board::global);
    board::usb_devices(draft);
    drives(draft);
    draft.each_piece("nic", networks::nic);
    networks::hub(draft);
    streams::ports(draft);
    screens::displays(draft);
    screens::vga(draft);
    if !draft.has("nodefaults") {
        networks::default_card(draft);
        streams::default_port(draft);
    }
    screens::legacy_sound(draft);
    screens::audios(draft);
    board::endings(draft);
    identity(draft);
    daemons_own(draft);
}

/// The short forms of `-drive`, and itself.
fn drives(draft: &mut Draft<'_>) {
    for (name, place) in [
        ("hda", "index=0"),
        ("hdb", "index=1"),
        ("hdc", "index=2"),
        ("hdd", "index=3"),
        ("cdrom", "index=2,media=cdrom"),
        ("fda", "if=floppy,index=0"),
        ("fdb", "if=floppy,index=1"),
        ("pflash", "if=pflash"),
    ] {
        draft.each(name, |draft, file| {
            draft.legacy_drive(&format!("{place},file={}", file.replace(',', ",,")))
        });
    }
    draft.each("drive", |draft, value| draft.legacy_drive(value));
}

fn identity(draft: &mut Draft<'_>) {
    *draft.domain.child_mut("name") = Node::with_text("name", &draft.surroundings.name);
    draft.each("name", |draft, value| {
        let mut options = Options::parse(value, Some("guest"));
        if let Some(name) = options.take("guest").filter(|name| !name.is_empty()) {
            *draft.domain.child_mut("name") = Node::with_text("name", name);
        }
        options.skip("debug-threads", "on");
        draft.pass_rest("name", &options);
        Some(())
    });
    draft.each("uuid", |draft, value| {
        *draft.domain.child_mut("uuid") = Node::with_text("uuid", value);
        Some(())
    });
}

/// Arguments by which a daemon runs its guests.
fn daemons_own(draft: &mut Draft<'_>) {
    draft.take_all(&["S", "daemonize", "no-user-config", "nodefaults", "no-shutdown", "nographic"]);
    draft.each("msg", |_, value| matches!(value, "timestamp=on" | "timestamp").then_some(()));
    draft.each("sandbox", |_, value| value.starts_with("on").then_some(()));
    draft.each("object", |_, value| {
        let options = Options::parse(value, Some("qom-type"));
        (options.get("id") == Some("masterKey0")).then_some(())
    });
    draft.each("run-with", |draft, value| {
        let mut options = Options::parse(value, None);
        let state = options.take_yes_no("async-teardown")?;
        options.done()?;
        draft.feature("async-teardown").put("enabled", state);
        Some(())
    });
}

/// Names of machines' architectures differ from QEMU's for some.
fn arch_of(program: &str) -> Option<&str> {
    match program.rsplit('/').next()?.strip_prefix("qemu-system-")? {
        "i386" => Some("i686"),
        arch => Some(arch),
    }
}

fn finish(draft: Draft<'_>, invocation: &Invocation) -> String {
    let Draft { args, rests, mut domain, mut devices, disks, machine, floppy_boot, .. } = draft;
    let has = |name: &str, kind: Option<&str>, devices: &[Node]| {
        devices.iter().any(|node| node.is(name) && (kind.is_none() || node.attribute("type") == kind))
    };
    // What is not there must not be added.
    if !has("controller", Some("usb"), &devices) {
        devices.push(Node::new("controller").set("type", "usb").set("index", 0).set("model", "none"));
    }
    if !has("memballoon", None, &devices) {
        devices.push(Node::new("memballoon").set("model", "none"));
    }
    if has("graphics", None, &devices) && !has("video", None, &devices) {
        devices.push(Node::new("video").with(Node::new("model").set("type", "none")));
    }
    let kind =
        Node::with_text("type", "hvm").maybe("arch", arch_of(&invocation.program)).set("machine", machine);
    domain.child_mut("os").push(kind);
    let emulator = Node::with_text("emulator", &invocation.program);
    let list = Node::new("devices").with(emulator).with_any(disks.name(&floppy_boot)).with_any(devices);
    domain.push(list);
    extras(&mut domain, &args, rests, &invocation.env);
    let mut out = Writer::new(Form::INACTIVE);
    domain.write(&mut out);
    out.finish()
}

/// `<qemu:commandline>`
fn extras(domain: &mut Node, args: &[Argument], rests: Vec<(String, String)>, env: &[(String, String)]) {
    let mut list = Node::new("qemu:commandline");
    let mut add = |value: String| list.push(Node::new("qemu:arg").set("value", value));
    for arg in args.iter().filter(|arg| !arg.taken) {
        add(format!("-{}", arg.name));
        arg.value.iter().for_each(|value| add(value.clone()));
    }
    for (name, rest) in rests {
        add(format!("-{name}"));
        add(rest);
    }
    list.extend(env.iter().map(|(name, value)| Node::new("qemu:env").set("name", name).set("value", value)));
    if let Some(list) = list.unless_empty() {
        domain.put("xmlns:qemu", QEMU_NAMESPACE);
        domain.push(list);
    }
}
