//! What is known so far of the guest behind a command line.

use super::arguments::Argument;
use super::disks::Disks;
use super::node::Node;
use super::options::Options;
use super::{Surroundings, screens};
use crate::qemu::command::{has_builtin_ide, is_q35};

/// Elements that one argument became, and the arguments that it needed for that.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub nodes: Vec<Node>,
    pub uses: Vec<usize>,
}

impl Piece {
    pub(super) fn of(node: Node) -> Self {
        Self { nodes: vec![node], uses: Vec::new() }
    }

    pub(super) fn using(mut self, arguments: impl IntoIterator<Item = usize>) -> Self {
        self.uses.extend(arguments);
        self
    }
}

/// A controller by the name that its bus has in QEMU.
#[derive(Debug)]
pub(super) struct Controller {
    pub id: String,
    pub kind: &'static str,
    pub index: u32,
    /// libvirt's word for what it is.
    pub model: String,
}

/// The definition as it grows, and the arguments that wait for their translation.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub surroundings: &'a Surroundings,
    pub args: Vec<Argument>,
    /// What is left of arguments that QEMU puts together from several.
    pub rests: Vec<(String, String)>,
    pub domain: Node,
    pub devices: Vec<Node>,
    pub disks: Disks,
    pub controllers: Vec<Controller>,
    pub machine: String,
    /// Numbers of host's audio backends, by QEMU's name.
    pub audios: Vec<(String, u32)>,
    /// Places in the boot order that belong to floppy drives.
    pub floppy_boot: Vec<(&'static str, String)>,
    /// Cards without an address so far.
    pub nameless_cards: u8,
}

impl<'a> Draft<'a> {
    pub(super) fn new(args: Vec<Argument>, machine: String, surroundings: &'a Surroundings) -> Self {
        let mut draft = Self {
            surroundings,
            args,
            rests: Vec::new(),
            domain: Node::new("domain"),
            devices: Vec::new(),
            disks: Disks::default(),
            controllers: Vec::new(),
            machine,
            audios: Vec::new(),
            floppy_boot: Vec::new(),
            nameless_cards: 0,
        };
        let root = if draft.is_q35() { ("pcie.0", "pcie-root") } else { ("pci.0", "pci-root") };
        draft.add_controller("pci", root.0, root.1);
        draft.audios = screens::number_audios(&draft);
        draft
    }

    pub(super) fn is_q35(&self) -> bool {
        is_q35(&self.machine)
    }

    pub(super) fn has_ide(&self) -> bool {
        has_builtin_ide(&self.machine)
    }

    /// Whether an option is there that stands alone.
    pub(super) fn has(&self, name: &str) -> bool {
        self.args.iter().any(|arg| arg.name == name)
    }

    /// Gives every argument of that name to `translate`; those it has a place for are taken.
    pub(super) fn each(&mut self, name: &str, mut translate: impl FnMut(&mut Self, &str) -> Option<()>) {
        for at in self.waiting(name) {
            let Some(value) = self.args.get(at).map(|arg| arg.value().to_owned()) else { continue };
            if translate(self, &value).is_some() {
                self.take(at);
            }
        }
    }

    /// The same for devices: what they become is kept, with the arguments that they refer to.
    pub(super) fn each_piece(
        &mut self,
        name: &str,
        mut translate: impl FnMut(&mut Self, &str) -> Option<Piece>,
    ) {
        self.each(name, |draft, value| {
            let piece = translate(draft, value)?;
            draft.keep(piece);
            Some(())
        });
    }

    pub(super) fn keep(&mut self, piece: Piece) {
        self.devices.extend(piece.nodes);
        piece.uses.into_iter().for_each(|at| self.take(at));
    }

    fn waiting(&self, name: &str) -> Vec<usize> {
        let args = self.args.iter().enumerate();
        args.filter(|(_, arg)| arg.name == name && !arg.taken).map(|(at, _)| at).collect()
    }

    pub(super) fn take(&mut self, at: usize) {
        if let Some(arg) = self.args.get_mut(at) {
            arg.taken = true;
        }
    }

    /// Options that stand alone and need nothing more.
    pub(super) fn take_all(&mut self, names: &[&str]) {
        self.args
            .iter_mut()
            .filter(|arg| names.contains(&arg.name.as_str()))
            .for_each(|arg| arg.taken = true);
    }

    /// What is left of a taken argument goes on under its own name.
    pub(super) fn pass_rest(&mut self, name: &str, options: &Options) {
        self.rests.extend(options.rest().map(|rest| (name.to_owned(), rest)));
    }

    /// An argument that others refer to, by the option that names it.
    pub(super) fn backend(&self, option: &str, key: &str, id: &str) -> Option<(usize, Options)> {
        let first = match option {
            "object" => "qom-type",
            "netdev" => "type",
            "audiodev" | "blockdev" => "driver",
            _ => "backend",
        };
        let args = self.args.iter().enumerate().filter(|(_, arg)| arg.name == option && !arg.taken);
        args.map(|(at, arg)| (at, Options::parse(arg.value(), Some(first))))
            .find(|(_, options)| options.get(key) == Some(id))
    }

    pub(super) fn add_controller(&mut self, kind: &'static str, id: &str, model: &str) -> u32 {
        let index = self.free_index(kind, id);
        self.controllers.push(Controller { id: id.to_owned(), kind, index, model: model.to_owned() });
        index
    }

    /// The number in libvirt's own names, or the next one.
    pub(super) fn free_index(&self, kind: &str, id: &str) -> u32 {
        let digits = id.trim_start_matches(|c: char| !c.is_ascii_digit());
        let plain = id.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.');
        let named = (plain == kind || plain == "pcie").then(|| digits.parse().unwrap_or(0));
        let used = |index: u32| self.controllers.iter().any(|it| it.kind == kind && it.index == index);
        named.filter(|index| !used(*index)).unwrap_or_else(|| (0..).find(|index| !used(*index)).unwrap_or(0))
    }

    /// The controller behind the name of a bus: `ID`, or `ID.NUMBER`.
    pub(super) fn controller(&self, kind: &str, bus: &str) -> Option<&Controller> {
        let id = if kind == "pci" { bus } else { bus.rsplit_once('.').map_or(bus, |(id, _)| id) };
        self.controllers.iter().find(|it| it.kind == kind && it.id == id)
    }

    /// A path as QEMU, which has its own working directory, understands it. None for what is no path.
    pub(super) fn path(&self, text: &str) -> Option<String> {
        let text = text.strip_prefix("file:").unwrap_or(text);
        let is_remote = text.split('/').next().is_some_and(|start| start.contains(':'));
        match (is_remote, &self.surroundings.directory) {
            (true, _) => None,
            (false, Some(directory)) => Some(directory.join(text).display().to_string()),
            (false, None) => Some(text.to_owned()),
        }
    }

    /// Whether devices have places in the boot order of their own.
    pub(super) fn has_boot_order(&self) -> bool {
        let given = |arg: &Argument| {
            arg.name == "device" && Options::parse(arg.value(), None).get("bootindex").is_some()
        };
        self.args.iter().any(given)
    }

    /// The element below `<domain>` with the feature's name.
    pub(super) fn feature(&mut self, name: &str) -> &mut Node {
        self.domain.child_mut("features").child_mut(name)
    }

    pub(super) fn timer(&mut self, timer: Node) {
        self.domain.child_mut("clock").push(timer);
    }
}
