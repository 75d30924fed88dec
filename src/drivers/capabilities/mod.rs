//! What this host can run: `<capabilities>`, `<domainCapabilities>` and the limits that go with them.
//!
//! The document about the host is kept as text and made again only when a QEMU binary, the processors
//! that are switched on, or the pages that are set aside changed.

mod cpu;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::conf::capabilities::domain::Os;
use crate::conf::capabilities::host::{Cell, Host, HostCpu, HostTopology, Iommu, SecurityModel};
use crate::conf::capabilities::{Capabilities, Guest, GuestMachine};
use crate::conf::domain::VirtType;
use crate::conf::domain::defaults::Firmware;
use crate::conf::xml::Value;
use crate::drivers::domain::blocking;
use crate::drivers::node::Node;
use crate::error::{Error, Origin, Result};
use crate::qemu::capabilities::domain::{HostFacts, Subject, domain_capabilities};
use crate::qemu::capabilities::{Accel, Cap, Emulators, Machine, QemuCaps};
use crate::qemu::security::Security;
use crate::qemu::{firmware, helpers};
use crate::util::arch::{Arch, UnknownArch};
use crate::util::host_cpu;
use crate::util::uuid::Uuid;

/// The most virtual CPUs of a guest without KVM, as libvirt has said since its first days.
const MAX_VCPUS: u32 = 16;

/// Answers what this host can run.
#[derive(Debug)]
pub struct HostCapabilities {
    node: Node,
    emulators: Emulators,
    uuid: Uuid,
    security: Vec<SecurityModel>,
    document: Mutex<Option<Document>>,
}

/// Which guests a question is about; what is not named has a default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    pub emulator: Option<&'a str>,
    pub arch: Option<&'a str>,
    pub machine: Option<&'a str>,
    pub virt_type: Option<&'a str>,
}

/// A document and what it was made from.
#[derive(Debug)]
struct Document {
    guests: Vec<(Arch, Arc<QemuCaps>)>,
    cells: Vec<Cell>,
    text: Arc<str>,
}

impl HostCapabilities {
    pub fn new(node: Node, emulators: Emulators, security: &Security, uuid: Option<Uuid>) -> Result<Self> {
        let uuid = uuid.map_or_else(host_uuid, Ok);
        let uuid = uuid.map_err(|error| Error::io("cannot make a UUID for this host", error))?;
        let security = security_models(security);
        Ok(Self { node, emulators, uuid, security, document: Mutex::default() })
    }

    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What keeps guests apart; the first one is the main one.
    pub fn security(&self) -> &[SecurityModel] {
        &self.security
    }

    /// `virConnectGetCapabilities`
    pub async fn document(&self) -> Result<Arc<str>> {
        let guests = self.guests().await;
        let cells = self.node.cells()?;
        if let Some(text) = self.known(&guests, &cells) {
            return Ok(text);
        }
        let host = self.host(cells.clone())?;
        let described = guests.iter().map(|(arch, caps)| guest(*arch, caps)).collect();
        let text: Arc<str> = Capabilities { host, guests: described }.to_xml().into();
        let document = Document { guests, cells, text: text.clone() };
        *self.document.lock().unwrap_or_else(PoisonError::into_inner) = Some(document);
        Ok(text)
    }

    fn known(&self, guests: &[(Arch, Arc<QemuCaps>)], cells: &[Cell]) -> Option<Arc<str>> {
        let document = self.document.lock().unwrap_or_else(PoisonError::into_inner);
        let document = document.as_ref()?;
        let mut pairs = document.guests.iter().zip(guests);
        let same = document.guests.len() == guests.len()
            && pairs.all(|(old, new)| old.0 == new.0 && Arc::ptr_eq(&old.1, &new.1));
        (same && document.cells == cells).then(|| document.text.clone())
    }

    /// What runs guests of each architecture. A binary that does not answer is left out.
    async fn guests(&self) -> Vec<(Arch, Arc<QemuCaps>)> {
        let ask = |arch: &Arch| {
            let binary = self.emulators.default_binary(*arch)?;
            let emulators = self.emulators.clone();
            // All at once: a binary that was never asked takes a while.
            Some((*arch, tokio::spawn(async move { emulators.lookup(&binary).await })))
        };
        let asked: Vec<_> = Arch::ALL.iter().filter_map(ask).collect();
        let mut guests = Vec::new();
        for (arch, answer) in asked {
            match answer.await {
                Ok(Ok(caps)) => guests.push((arch, caps)),
                Ok(Err(error)) => tracing::warn!(%error, "left out of the capabilities"),
                Err(error) => tracing::error!(%error, "asking a QEMU binary broke off"),
            }
        }
        guests
    }

    fn host(&self, cells: Vec<Cell>) -> Result<Host> {
        Ok(Host {
            uuid: self.uuid,
            arch: self.node.arch(),
            cpu: self.cpu()?,
            page_sizes: self.node.page_sizes()?,
            iommu: if self.node.has_iommu() { Iommu::Present } else { Iommu::Absent },
            cells,
            caches: self.node.cache_banks()?,
            security: self.security.clone(),
        })
    }

    fn cpu(&self) -> Result<HostCpu> {
        let info = self.node.info()?;
        let topology = HostTopology {
            sockets: info.sockets,
            dies: 1,
            clusters: 1,
            cores: info.cores,
            threads: info.threads,
        };
        let cpu = self.emulators.cpu_map().map(|map| self.node.cpu(&map)).transpose()?;
        Ok(HostCpu { topology: Some(topology), ..cpu.unwrap_or_default() })
    }

    /// `virConnectGetCPUModelNames`: none for an architecture whose QEMU knows best.
    pub fn cpu_models(&self, arch: &str) -> Result<Vec<String>> {
        let Ok(known) = arch.parse::<Arch>() else {
            return Err(Error::invalid_arg(format!("cannot find architecture {arch}")));
        };
        if known.is_x86() {
            let map = self.emulators.cpu_map();
            return Ok(map.iter().flat_map(|map| map.models()).map(|model| model.name.clone()).collect());
        }
        let described = known.is_arm() || known.is_ppc64() || known.is_s390();
        if described || matches!(known, Arch::Riscv64 | Arch::Loongarch64) {
            return Ok(Vec::new());
        }
        let sentence = format!("'{arch}' architecture is not supported by CPU driver");
        Err(Error::no_support(sentence).from_origin(Origin::CPU))
    }

    /// `virConnectGetMaxVcpus`
    pub fn max_vcpus(&self, virt_type: Option<&str>) -> Result<u32> {
        match virt_type.map(str::to_ascii_lowercase).as_deref() {
            None | Some("qemu") => Ok(MAX_VCPUS),
            Some("kvm") => host_cpu::max_vcpus().map_err(|error| Error::io("Unable to open /dev/kvm", error)),
            Some(_) => {
                let given = virt_type.unwrap_or_default();
                Err(Error::invalid_arg(format!("unknown type '{given}'")))
            }
        }
    }

    /// `virConnectGetDomainCapabilities`
    pub async fn of_domain(&self, wanted: Wanted<'_>) -> Result<String> {
        let (caps, arch, accel) = self.emulator(wanted).await?;
        let named = wanted.machine.and_then(|name| caps.machine(accel, name));
        let machine = named.or_else(|| caps.default_machine(accel)).map(|machine| machine.name.as_str());
        if !supports_arch(caps.arch, arch) {
            let binary = caps.binary.display();
            return Err(Error::invalid_arg(format!("Emulator '{binary}' does not support arch '{arch}'")));
        }
        let map = self.emulators.cpu_map();
        let swtpm = helpers::swtpm_versions(self.emulators.search_path()).await;
        let host = HostFacts {
            max_vcpus: (accel == Accel::Kvm).then(|| host_cpu::max_vcpus().ok()).flatten(),
            phys_bits: self.node.phys_bits()?,
            vfio: self.node.has_vfio(),
            swtpm: swtpm.as_deref(),
            cpu_map: map.as_deref(),
        };
        let mut found = domain_capabilities(&caps, Subject { arch, accel, machine }, host);
        let firmwares = blocking(|| Ok(firmware::descriptors(&firmware::DIRECTORIES))).await?;
        found.os = os(&firmwares, arch, machine.unwrap_or_default());
        Ok(found.to_xml())
    }

    /// The emulator that a client means by what it names, with defaults for what it does not.
    async fn emulator(&self, wanted: Wanted<'_>) -> Result<(Arc<QemuCaps>, Arch, Accel)> {
        let virt_type = wanted.virt_type.map(|name| {
            VirtType::parse(name).ok_or_else(|| Error::invalid_arg(format!("unknown virttype: {name}")))
        });
        let virt_type = virt_type.transpose()?;
        let arch = match wanted.arch {
            Some(name) => name.parse().map_err(|error: UnknownArch| Error::invalid_arg(error.to_string()))?,
            None => self.node.arch().unwrap_or(Arch::X86_64),
        };
        let binary = wanted.emulator.map(PathBuf::from).or_else(|| self.emulators.default_binary(arch));
        let binary = binary.ok_or_else(|| {
            Error::config_unsupported(format!("unable to find any emulator to serve '{arch}' architecture"))
        })?;
        let caps = self.emulators.lookup(&binary).await?;
        let named = caps.binary.display();
        if caps.arch != arch && !caps.arch.same_family(arch) {
            return Err(Error::invalid_arg(format!(
                "architecture from emulator '{}' doesn't match given architecture '{arch}'",
                caps.arch
            )));
        }
        let best = caps.best_accel();
        let accel = match virt_type {
            None => best,
            Some(VirtType::Qemu) if caps.supports(Cap::Tcg) => Accel::Tcg,
            Some(VirtType::Kvm) if best == Accel::Kvm => Accel::Kvm,
            Some(VirtType::Kvm) => {
                let sentence = format!("the accel 'kvm' is not supported by '{named}' on this host");
                return Err(Error::invalid_arg(sentence));
            }
            Some(_) => {
                let virt_type = wanted.virt_type.unwrap_or_default();
                let sentence = format!("Emulator '{named}' does not support virt type '{virt_type}'");
                return Err(Error::invalid_arg(sentence));
            }
        };
        if let Some(name) = wanted.machine.filter(|name| caps.machine(accel, name).is_none()) {
            let sentence = format!("the machine '{name}' is not supported by emulator '{named}'");
            return Err(Error::invalid_arg(sentence));
        }
        Ok((caps, arch, accel))
    }

    /// `virConnectGetVersion`: that of the binary that runs the host's own architecture.
    pub async fn version(&self) -> Result<u32> {
        let host = self.node.arch().unwrap_or(Arch::X86_64);
        let binary = self.emulators.default_binary(host);
        let binary = binary.ok_or_else(|| no_emulator(host))?;
        Ok(self.emulators.lookup(&binary).await?.version)
    }
}

/// Whether an emulator runs guests of another architecture.
fn supports_arch(emulator: Arch, guest: Arch) -> bool {
    emulator == guest
        || matches!(
            (emulator, guest),
            (Arch::X86_64, Arch::I686)
                | (Arch::Aarch64, Arch::Armv7l)
                | (Arch::Armv7l, Arch::Armv6l)
                | (Arch::Ppc64, Arch::Ppc64le)
        )
}

fn no_emulator(arch: Arch) -> Error {
    Error::invalid_arg(format!("could not find capabilities for ostype=hvm arch={arch} "))
        .from_origin(Origin::CAPABILITIES)
}

/// What the host's firmware offers a guest of this machine.
fn os(firmwares: &[Firmware], arch: Arch, machine: &str) -> Os {
    let fitting = || firmwares.iter().filter(|firmware| firmware.runs_on(arch, machine));
    let kinds = [("bios", "bios"), ("uefi", "efi")];
    let offered = |interface| fitting().any(|firmware| firmware.has_interface(interface));
    let mut loaders: Vec<String> = Vec::new();
    for path in fitting().filter_map(Firmware::loader) {
        if !loaders.iter().any(|known| known == path) && Path::new(path).exists() {
            loaders.push(path.to_owned());
        }
    }
    Os {
        firmware: kinds.iter().filter(|(interface, _)| offered(interface)).map(|(_, name)| *name).collect(),
        loaders,
        secure_boot: fitting().any(Firmware::is_guarded),
    }
}

/// The host's own number: what its firmware says, or else one that holds until the daemon ends.
fn host_uuid() -> std::io::Result<Uuid> {
    let firmware = ["/sys/devices/virtual/dmi/id/product_uuid", "/sys/class/dmi/id/product_uuid"];
    let read = |path: &&str| std::fs::read_to_string(path).ok()?.trim().parse::<Uuid>().ok();
    firmware.iter().find_map(read).filter(Uuid::is_plausible).map_or_else(Uuid::random, Ok)
}

fn security_models(security: &Security) -> Vec<SecurityModel> {
    let mut models = vec![SecurityModel { model: "none", doi: "0", base_labels: Vec::new() }];
    if let Some(ids) = security.default_ids() {
        let label = ids.to_string();
        let base_labels = vec![("kvm", label.clone()), ("qemu", label)];
        models.push(SecurityModel { model: "dac", doi: "0", base_labels });
    }
    models
}

fn guest(arch: Arch, caps: &QemuCaps) -> Guest {
    let machines = caps.accel(caps.best_accel()).map(|accel| accel.machines.as_slice());
    Guest {
        arch,
        emulator: caps.binary.to_string_lossy().into_owned(),
        machines: guest_machines(machines.unwrap_or_default()),
        has_tcg: caps.supports(Cap::Tcg),
        has_kvm: caps.supports(Cap::Kvm),
    }
}

/// Each machine under its name and, after that, under its alias.
fn guest_machines(machines: &[Machine]) -> Vec<GuestMachine> {
    let entry = |machine: &Machine, name: &str, canonical: Option<&str>| GuestMachine {
        name: name.to_owned(),
        canonical: canonical.map(str::to_owned),
        max_cpus: machine.max_cpus,
        deprecated: machine.deprecated,
    };
    let names = |machine: &Machine| {
        let alias = machine.alias.as_deref().map(|alias| entry(machine, alias, Some(&machine.name)));
        [Some(entry(machine, &machine.name, None)), alias]
    };
    machines.iter().flat_map(names).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::security::Policy;
    use crate::util::paths::Paths;

    fn host(root: &std::path::Path) -> HostCapabilities {
        let paths = Paths::system(root);
        let emulators = Emulators::new(&paths.qemu_cache(), "/usr/bin:/bin".into());
        let security = Security::system(Policy::default(), &paths.qemu_state());
        HostCapabilities::new(Node::new("/".as_ref()), emulators, &security, None).unwrap()
    }

    #[tokio::test]
    async fn the_document_is_made_once_and_names_what_runs_here() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        let text = host.document().await.unwrap();
        assert!(text.starts_with("<capabilities>\n\n  <host>\n    <uuid>"), "{text}");
        assert!(text.contains("<arch name='x86_64'>\n      <wordsize>64</wordsize>\n"), "{text}");
        assert!(text.contains("<machine canonical='pc-q35-"), "{text}");
        assert!(text.ends_with("  </guest>\n\n</capabilities>\n"), "{text}");
        assert!(Arc::ptr_eq(&text, &host.document().await.unwrap()));
    }

    #[tokio::test]
    async fn without_qemu_the_host_is_still_described() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::session(root.path(), root.path(), root.path());
        let emulators = Emulators::new(&paths.qemu_cache(), "/nonexistent".into());
        let security = Security::default();
        let host = HostCapabilities::new(Node::new("/".as_ref()), emulators, &security, None).unwrap();
        let text = host.document().await.unwrap();
        assert!(text.ends_with("  </host>\n\n</capabilities>\n"), "{text}");
        assert_eq!(host.security().len(), 1);
        let error = host.version().await.unwrap_err();
        assert!(error.message().starts_with("invalid argument: could not find capabilities for"), "{error}");
    }

    #[test]
    fn limits_are_by_type() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        assert_eq!((host.max_vcpus(None).unwrap(), host.max_vcpus(Some("QEMU")).unwrap()), (16, 16));
        let error = host.max_vcpus(Some("xen")).unwrap_err();
        assert_eq!((error.code.0, error.message().as_str()), (8, "invalid argument: unknown type 'xen'"));
    }

    #[test]
    fn models_are_named_where_there_are_names() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        assert!(host.cpu_models("x86_64").unwrap().iter().any(|model| model == "EPYC"));
        assert!(host.cpu_models("aarch64").unwrap().is_empty());
        for (arch, code) in [("alpha", 3), ("foo", 8)] {
            assert_eq!(host.cpu_models(arch).unwrap_err().code.0, code, "{arch}");
        }
    }

    #[test]
    fn a_machine_with_an_alias_is_listed_under_both_names() {
        let machine = Machine { name: "pc-q35-10.0".into(), alias: Some("q35".into()), ..Machine::default() };
        let listed = guest_machines(&[machine]);
        let names: Vec<_> = listed.iter().map(|m| (m.name.as_str(), m.canonical.as_deref())).collect();
        assert_eq!(names, [("pc-q35-10.0", None), ("q35", Some("pc-q35-10.0"))]);
    }
}
