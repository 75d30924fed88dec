//! A guest's definition: everything of `<domain>`.
//!
//! ```text
//!   text ──read──► Domain ──defaults(facts)──► complete Domain ──validate──► accepted
//!                                                    │
//!                                       write(Form) ─┴─► inactive · live · migratable
//! ```
//!
//! The fields of [`Domain`] stand in the order libvirt prints them. Devices are in
//! [`crate::conf::devices`].

pub mod addresses;
mod clock;
mod cpu;
pub mod defaults;
mod features;
mod memory;
mod numa;
mod os;
mod power;
mod qemu_namespace;
pub mod schema;
mod security;
mod sysinfo;
mod tuning;
mod validate;
mod vcpu;

pub use clock::*;
pub use cpu::*;
pub use features::*;
pub use memory::*;
pub use numa::*;
pub use os::*;
pub use power::*;
pub use qemu_namespace::*;
pub use security::*;
pub use sysinfo::*;
pub use tuning::*;
pub use vcpu::*;

use super::devices::Devices;
use super::xml::{Document, Element, Form, Metadata, Part, Writer, xml, xml_enum};
use super::{ConfError, ErrorKind, Result};
use crate::util::bitmap::Bitmap;
use crate::util::uuid::Uuid;

xml_enum! {
    /// Who runs the guest's instructions.
    pub enum VirtType {
        Qemu = "qemu",
        Kvm = "kvm",
        Hvf = "hvf",
        Kqemu = "kqemu",
        Xen = "xen",
        Lxc = "lxc",
        Uml = "uml",
        Openvz = "openvz",
        Test = "test",
        Vmware = "vmware",
        Hyperv = "hyperv",
        Vbox = "vbox",
        Phyp = "phyp",
        Parallels = "parallels",
        Bhyve = "bhyve",
        Vz = "vz",
    }
    refuse |_place, text| ConfError::unsupported(format!("invalid domain type {text}"))
}

xml! {
    /// `<domain>`
    pub struct Domain {
        attr virt_type: VirtType = "type";
        /// Set while the guest runs.
        attr(live) id: Option<i32> = "id";
        text name: Box<str> = "name";
        /// All zero until [`Domain::defaults`] chooses one.
        text uuid: Uuid = "uuid", or Uuid([0; 16]);
        child genid: Option<Genid> = "genid";
        text title: Option<Box<str>> = "title";
        text description: Option<Box<str>> = "description";
        child metadata: Option<Metadata> = "metadata";
        flat memory: Memory;
        child blkiotune: Option<Box<Blkiotune>> = "blkiotune";
        child memtune: Option<Box<Memtune>> = "memtune";
        child memory_backing: Option<Box<MemoryBacking>> = "memoryBacking";
        flat vcpus: Vcpus;
        flat iothreads: IoThreads;
        list throttle_groups: Vec<ThrottleGroup> = "throttlegroups" / "throttlegroup";
        child cputune: Option<Box<Cputune>> = "cputune";
        child numatune: Option<Box<Numatune>> = "numatune";
        child resource: Option<Box<Resource>> = "resource";
        child sysinfo: Vec<Sysinfo> = "sysinfo";
        child os: Os = "os";
        child idmap: Option<Box<Idmap>> = "idmap";
        group features: Box<Features> = "features";
        child cpu: Option<Box<Cpu>> = "cpu";
        group clock: Clock = "clock";
        text on_poweroff: LifecycleAction = "on_poweroff", or LifecycleAction::Destroy;
        text on_reboot: LifecycleAction = "on_reboot", or LifecycleAction::Restart;
        text on_crash: LifecycleAction = "on_crash", or LifecycleAction::Destroy;
        text on_lockfailure: Option<LockFailureAction> = "on_lockfailure";
        group pm: Pm = "pm";
        list perf: Vec<PerfEvent> = "perf" / "event";
        group devices: Devices = "devices";
        child seclabels: Vec<Seclabel> = "seclabel";
        list keywrap: Vec<Cipher> = "keywrap" / "cipher";
        child launch_security: Option<Box<LaunchSecurity>> = "launchSecurity";
        flat qemu: QemuNamespace;
    }
}

/// `<genid>`: a value is made when the element is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Genid(pub Option<Uuid>);

impl Part for Genid {
    fn read(element: Element<'_>) -> Result<Self> {
        super::xml::read_body(element).map(Self)
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(uuid) = &self.0 {
            out.body(uuid);
        }
    }
}

impl Domain {
    /// Reads a `<domain>` text; `form` says whether ids, aliases and the like count.
    pub fn parse(text: &str, form: Form) -> Result<Self> {
        let document = Document::parse(text, form)?;
        Self::from_element(document.root())
    }

    /// Reads a `<domain>` element, which may stand inside another document.
    pub fn from_element(element: Element<'_>) -> Result<Self> {
        Self::from_part(element.expect_root("domain")?)
    }

    /// The same, whatever the element is called.
    pub fn from_part(element: Element<'_>) -> Result<Self> {
        check_basics(element)?;
        let mut domain = Self::read(element)?;
        if let Some(cputune) = &mut domain.cputune {
            cputune.normalize(domain.vcpus.max, &domain.iothreads.threads)?;
        }
        if domain.title.as_ref().is_some_and(|title| title.contains('\n')) {
            return Err(ConfError::xml("Domain title can't contain newlines"));
        }
        Ok(domain)
    }

    /// The whole text.
    pub fn to_xml(&self, form: Form) -> String {
        super::xml::write_document(self, "domain", form)
    }

    /// The guest's NUMA cells.
    pub fn cells(&self) -> &[NumaCell] {
        self.cpu.as_ref().and_then(|cpu| cpu.rest.numa.as_ref()).map_or(&[], |numa| &numa.cells)
    }

    /// Whether memory can be plugged in.
    pub fn has_memory_hotplug(&self) -> bool {
        self.memory.max.is_some_and(|max| max.kib > 0 || max.slots.is_some_and(|slots| slots > 0))
    }

    /// What the guest has without memory that is plugged in.
    pub fn initial_memory_kib(&self) -> u64 {
        self.memory.total_kib.saturating_sub(self.plugged_memory_kib())
    }

    /// Memory that is plugged in.
    pub fn plugged_memory_kib(&self) -> u64 {
        let sizes = self.devices.memories.iter().map(|device| device.target.size_kib);
        sizes.fold(0, u64::saturating_add)
    }

    /// Whether it was read with a uuid or has been given one.
    pub fn has_uuid(&self) -> bool {
        self.uuid != Uuid([0; 16])
    }
}

/// What libvirt looks for before anything else, in its order and words.
fn check_basics(element: Element<'_>) -> Result<()> {
    let text_of = |name: &str| element.child(name).map(Element::text).filter(|text| !text.is_empty());
    if text_of("name").is_none() {
        return Err(ConfError::new(ErrorKind::NoName, ""));
    }
    if let Some(uuid) = text_of("uuid")
        && uuid.parse::<Uuid>().is_err()
    {
        return Err(ConfError::internal("malformed uuid element"));
    }
    if element.attribute("type").is_none_or(str::is_empty) {
        return Err(ConfError::internal("missing domain type attribute"));
    }
    element.required::<VirtType>("type")?;
    let os_type = element.child("os").and_then(|os| os.child("type"));
    if os_type.is_none_or(|os_type| os_type.text().is_empty()) {
        return Err(ConfError::xml("an os <type> must be specified"));
    }
    check_node_sets(element)?;
    for (name, sentence) in [("resource", "only one resource element is supported")] {
        if element.children_named(name).nth(1).is_some() {
            return Err(ConfError::xml(sentence));
        }
    }
    Ok(())
}

/// Sets of the host's nodes in which nothing is left.
fn check_node_sets(element: Element<'_>) -> Result<()> {
    let Some(tune) = element.child("numatune") else { return Ok(()) };
    if element.children_named("numatune").nth(1).is_some() {
        return Err(ConfError::xml("only one numatune is supported"));
    }
    for child in tune.children().filter(|child| matches!(child.name(), "memory" | "memnode")) {
        let Some(text) = child.attribute("nodeset") else { continue };
        if child.value::<Bitmap>("nodeset")?.is_some_and(|nodes| nodes.is_empty()) {
            return Err(ConfError::unsupported(format!("Invalid value of 'nodeset': {text}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
