//! Processors: the model, its features, how many there are.

use super::draft::Draft;
use super::node::Node;
use super::options::Options;
use crate::qemu::command::libvirt_feature;

/// Enlightenments that are on or off and nothing more.
const HYPERV: &[&str] = &[
    "relaxed",
    "vapic",
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
    "evmcs",
    "avic",
    "emsr-bitmap",
    "xmm-input",
];

/// What a machine has that is told nothing.
const DEFAULT_MODEL: &str = "qemu64";

pub(super) fn model(draft: &mut Draft<'_>) {
    draft.each("cpu", |draft, value| {
        let mut parts = value.split(',');
        let name = parts.next()?;
        let mut cpu = Cpu::new(name);
        let mut ahead = Ahead::default();
        for part in parts {
            let (feature, state) =
                match (part.strip_prefix('+'), part.strip_prefix('-'), part.split_once('=')) {
                    (Some(name), ..) => (name, "on"),
                    (_, Some(name), _) => (name, "off"),
                    (_, _, Some((name, state))) => (name, state),
                    (None, None, None) => (part, "on"),
                };
            cpu.add(&mut ahead, feature, state)?;
        }
        let (node, ahead) = cpu.finish(ahead)?;
        ahead.apply(draft);
        if let Some(node) = node {
            *draft.domain.child_mut("cpu") = node;
        }
        Some(())
    });
}

/// What stands elsewhere in the definition.
#[derive(Default)]
struct Ahead {
    /// Paths below `<features>` with one attribute.
    features: Vec<(Vec<&'static str>, &'static str, String)>,
    hyperv: Vec<Node>,
    timers: Vec<Node>,
    panic: bool,
}

impl Ahead {
    fn note(&mut self, path: &[&'static str], attribute: &'static str, value: &str) {
        self.features.push((path.to_vec(), attribute, value.to_owned()));
    }

    fn apply(self, draft: &mut Draft<'_>) {
        for (path, attribute, value) in self.features {
            let features = draft.domain.child_mut("features");
            path.iter().fold(features, |node, name| node.child_mut(name)).put(attribute, value);
        }
        if !self.hyperv.is_empty() {
            let node = draft.feature("hyperv");
            node.put("mode", "custom");
            self.hyperv.into_iter().for_each(|feature| node.push(feature));
        }
        self.timers.into_iter().for_each(|timer| draft.timer(timer));
        if self.panic {
            draft.devices.push(Node::new("panic").set("model", "hyperv"));
        }
    }
}

struct Cpu<'a> {
    name: &'a str,
    features: Vec<Node>,
    migratable: Option<String>,
    vendor: Option<String>,
    l3_cache: Option<String>,
    host_cache: Option<String>,
    host_bits: Option<String>,
    bits: Option<String>,
    bits_limit: Option<String>,
}

impl<'a> Cpu<'a> {
    fn new(name: &'a str) -> Self {
        let (migratable, vendor, l3_cache, host_cache) = (None, None, None, None);
        let (host_bits, bits, bits_limit) = (None, None, None);
        Self {
            name,
            features: Vec::new(),
            migratable,
            vendor,
            l3_cache,
            host_cache,
            host_bits,
            bits,
            bits_limit,
        }
    }

    fn add(&mut self, ahead: &mut Ahead, feature: &str, state: &str) -> Option<()> {
        let switch = matches!(state, "on" | "off");
        let own = |place: &mut Option<String>| *place = Some(state.to_owned());
        match feature.replace('_', "-").as_str() {
            name if name.starts_with("hv-") => return hyperv(ahead, name.strip_prefix("hv-")?, state),
            "migratable" => own(&mut self.migratable),
            "vendor" => own(&mut self.vendor),
            "l3-cache" => own(&mut self.l3_cache),
            "host-cache-info" => own(&mut self.host_cache),
            "host-phys-bits" => own(&mut self.host_bits),
            "host-phys-bits-limit" => own(&mut self.bits_limit),
            "phys-bits" => own(&mut self.bits),
            "pmu" if switch => ahead.note(&["pmu"], "state", state),
            "kvm-pv-eoi" if switch => ahead.note(&["apic"], "eoi", state),
            "kvm-pv-unhalt" if switch => ahead.note(&["pvspinlock"], "state", state),
            "kvm" if state == "off" => ahead.note(&["kvm", "hidden"], "state", "on"),
            "kvm-hint-dedicated" if state == "on" => ahead.note(&["kvm", "hint-dedicated"], "state", "on"),
            "kvm-poll-control" if state == "on" => ahead.note(&["kvm", "poll-control"], "state", "on"),
            "kvm-pv-ipi" if state == "off" => ahead.note(&["kvm", "pv-ipi"], "state", "off"),
            "kvmclock" if switch => {
                let present = if state == "on" { "yes" } else { "no" };
                ahead.timers.push(Node::new("timer").set("name", "kvmclock").set("present", present));
            }
            "tsc-frequency" => {
                ahead.timers.push(Node::new("timer").set("name", "tsc").set("frequency", state))
            }
            _ if switch => {
                let policy = if state == "on" { "require" } else { "disable" };
                let name = libvirt_feature(feature);
                self.features.push(Node::new("feature").set("policy", policy).set("name", name));
            }
            _ => return None,
        }
        Some(())
    }

    fn finish(self, ahead: Ahead) -> Option<(Option<Node>, Ahead)> {
        let mut node = Node::new("cpu");
        let is_host = matches!(self.name, "host" | "max");
        let mode = match self.name {
            "host" => "host-passthrough",
            "max" => "maximum",
            _ => "custom",
        };
        let cache = match (self.l3_cache.as_deref(), self.host_cache.as_deref()) {
            (None, None) => None,
            (Some("on"), None) if !is_host => Some("emulate"),
            (Some("on"), Some("off")) if is_host => Some("emulate"),
            (Some("off"), Some("on")) => Some("passthrough"),
            (Some("off"), None) if !is_host => Some("disable"),
            (Some("off"), Some("off")) if is_host => Some("disable"),
            _ => return None,
        };
        let cache = cache.map(|mode| {
            let level = (mode == "emulate").then_some("3");
            Node::new("cache").maybe("level", level).set("mode", mode)
        });
        let bits = match (self.host_bits.as_deref(), &self.bits) {
            (None, None) if self.bits_limit.is_none() => None,
            (Some("on"), None) => {
                Some(Node::new("maxphysaddr").set("mode", "passthrough").maybe("limit", self.bits_limit))
            }
            (None, Some(bits)) => Some(Node::new("maxphysaddr").set("mode", "emulate").set("bits", bits)),
            (Some("off"), None) => Some(Node::new("maxphysaddr").set("mode", "emulate")),
            _ => return None,
        };
        let is_plain = self.features.is_empty() && self.vendor.is_none() && cache.is_none() && bits.is_none();
        if self.name == DEFAULT_MODEL && is_plain {
            return self.migratable.is_none().then_some((None, ahead));
        }
        node = node.set("mode", mode);
        if !is_host {
            node = node.set("match", "exact").set("check", "none");
            node = node.with(
                Node::with_text("model", self.name).set("fallback", "forbid").maybe("vendor_id", self.vendor),
            );
        } else if self.vendor.is_some() {
            return None;
        } else {
            node = node.set("check", "none").maybe("migratable", self.migratable);
        }
        Some((Some(node.with_any(bits).with_any(self.features).with_any(cache)), ahead))
    }
}

fn hyperv(ahead: &mut Ahead, name: &str, state: &str) -> Option<()> {
    let feature = |name: &str| Node::new(name).set("state", "on");
    match (name, state) {
        ("time", "on") => {
            ahead.timers.push(Node::new("timer").set("name", "hypervclock").set("present", "yes"));
        }
        ("crash", "on") => ahead.panic = true,
        ("spinlocks", retries) => {
            let retries = super::options::number(retries)?;
            ahead.hyperv.push(feature("spinlocks").set("retries", retries));
        }
        ("vendor-id", id) => ahead.hyperv.push(feature("vendor_id").set("value", id)),
        (name, "on") if HYPERV.contains(&name) => {
            // These have an underscore in definitions.
            ahead
                .hyperv
                .push(feature(&name.replace("emsr-bitmap", "emsr_bitmap").replace("xmm-input", "xmm_input")));
        }
        _ => return None,
    }
    Some(())
}

/// `-smp`
pub(super) fn count(draft: &mut Draft<'_>) {
    draft.each("smp", |draft, value| {
        let mut options = Options::parse(value, Some("cpus"));
        let mut take = |name: &str| match options.take(name) {
            Some(text) => text.parse::<u32>().ok().filter(|count| *count > 0).map(Some),
            None => Some(None),
        };
        let (cpus, max) = (take("cpus")?, take("maxcpus")?);
        let (sockets, dies, clusters) = (take("sockets")?, take("dies")?, take("clusters")?);
        let (cores, threads) = (take("cores")?, take("threads")?);
        options.done()?;
        let shape = Shape::complete([sockets, dies, clusters, cores, threads], max.or(cpus))?;
        let total = max.or(cpus).unwrap_or(shape.total());
        if shape.total() != total {
            return None;
        }
        let online = cpus.filter(|cpus| *cpus < total);
        *draft.domain.child_mut("vcpu") = Node::with_text("vcpu", total.to_string()).maybe("current", online);
        // Without a topology every processor is a socket.
        if shape.0 != [total, 1, 1, 1, 1] || dies.is_some() || clusters.is_some() {
            let names = ["sockets", "dies", "clusters", "cores", "threads"];
            let node = names
                .iter()
                .zip(shape.0)
                .fold(Node::new("topology"), |node, (name, count)| node.set(name, count));
            draft.domain.child_mut("cpu").push(node);
        }
        Some(())
    });
}

/// Sockets, dies, clusters, cores, threads.
struct Shape([u32; 5]);

impl Shape {
    /// Fills in what was not said as QEMU does: cores before sockets before threads.
    fn complete(given: [Option<u32>; 5], total: Option<u32>) -> Option<Self> {
        let [sockets, dies, clusters, cores, threads] = given;
        let product = |parts: &[Option<u32>]| {
            parts.iter().try_fold(1u32, |product, part| product.checked_mul(part.unwrap_or(1)))
        };
        let total = match total {
            Some(total) => total,
            None => product(&given)?,
        };
        let without = |left_out: usize| {
            let rest: Vec<_> =
                given.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, part)| *part).collect();
            Some((total / product(&rest)?.max(1)).max(1))
        };
        let (sockets, cores, threads) = match (sockets, cores, threads) {
            (sockets, None, threads) => (sockets.unwrap_or(1), without(3)?, threads.unwrap_or(1)),
            (None, Some(cores), threads) => (without(0)?, cores, threads.unwrap_or(1)),
            (Some(sockets), Some(cores), None) => (sockets, cores, without(4)?),
            (Some(sockets), Some(cores), Some(threads)) => (sockets, cores, threads),
        };
        Some(Self([sockets, dies.unwrap_or(1), clusters.unwrap_or(1), cores, threads]))
    }

    fn total(&self) -> u32 {
        self.0.iter().fold(1, |product: u32, part| product.saturating_mul(*part))
    }
}

/// `-numa`: nodes and how far they are from each other. One argument without a place keeps all of them out.
pub(super) fn numa(draft: &mut Draft<'_>) {
    let args: Vec<_> = draft.args.iter().enumerate().filter(|(_, arg)| arg.name == "numa").collect();
    let (mut cells, mut distances, mut uses) = (Vec::new(), Vec::new(), Vec::new());
    for (at, arg) in &args {
        let mut options = Options::parse(arg.value(), Some("type"));
        match options.take("type").as_deref() {
            Some("node") => match cell(draft, &mut options) {
                Some(cell) => cells.push(cell),
                None => return,
            },
            Some("dist") => {
                let (src, dst, val) = (options.take("src"), options.take("dst"), options.take("val"));
                distances.push((src, Node::new("sibling").maybe("id", dst).maybe("value", val)));
            }
            _ => return,
        }
        if options.done().is_none() {
            return;
        }
        uses.push(*at);
    }
    if cells.is_empty() {
        return;
    }
    let mut numa = Node::new("numa");
    for Cell { id, node, backend } in cells {
        let siblings: Vec<_> = distances
            .iter()
            .filter(|(src, _)| src.as_ref() == Some(&id))
            .map(|(_, node)| node.clone())
            .collect();
        let distances = Node::new("distances").with_any(siblings).unless_empty();
        numa.push(node.with_any(distances));
        uses.extend(backend);
    }
    uses.into_iter().for_each(|at| draft.take(at));
    draft.domain.child_mut("cpu").push(numa);
}

struct Cell {
    id: String,
    node: Node,
    backend: Option<usize>,
}

fn cell(draft: &Draft<'_>, options: &mut Options) -> Option<Cell> {
    let id = options.take("nodeid")?;
    let cpus = options.take_all("cpus").join(",");
    let (kib, backend) = match (options.take("memdev"), options.take("mem")) {
        (Some(name), None) => {
            let (at, mut object) = draft.backend("object", "id", &name)?;
            object.take("id");
            object.skip("qom-type", "memory-backend-ram");
            let size = super::options::bytes(&object.take("size")?, 1)?;
            object.done()?;
            (size >> 10, Some(at))
        }
        (None, Some(size)) => (super::options::bytes(&size, 1 << 20)? >> 10, None),
        _ => return None,
    };
    let node = Node::new("cell").set("id", &id).maybe("cpus", Some(cpus).filter(|cpus| !cpus.is_empty()));
    Some(Cell { id, node: node.set("memory", kib).set("unit", "KiB"), backend })
}
