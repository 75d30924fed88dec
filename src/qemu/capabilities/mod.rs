//! What a QEMU binary can do, found out once over QMP and kept in a file.
//!
//! ```text
//! find ──▶ cache file fresh? ──yes──▶ QemuCaps (shared, immutable)
//!               │ no                      ▲
//!               ▼                         │
//!          probe (QEMU with an empty machine, twice where KVM works) ──▶ cache file
//! ```
//!
//! `flags` lists the capabilities and their evidence, `schema` answers questions to QEMU's schema, `probe`
//! knows what to ask and what the answers mean, `converse` asks, `fingerprint` says when to ask again,
//! `emulators` ties it together.

mod compare;
mod converse;
pub mod domain;
mod emulators;
mod fingerprint;
mod flags;
mod given_cpu;
mod guest_cpu;
mod host_model;
pub mod probe;
pub mod processor;
mod schema;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use compare::Against;
pub use converse::ConverseError;
pub use emulators::{Emulators, LookupError};
pub use flags::{Cap, CapSet};
pub use given_cpu::CpuArguments;
pub use guest_cpu::{GuestCpuError, IGNORED as IGNORED_CPU_FEATURES, resolve as resolve_guest_cpu};
pub use host_model::{Features, feature_from_qemu, feature_to_qemu};
pub use probe::ProbeError;

use crate::util::arch::Arch;

/// How a guest's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accel {
    /// `<domain type='kvm'>`
    Kvm,
    /// `<domain type='qemu'>`
    Tcg,
}

/// Everything that is known of one QEMU binary on this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QemuCaps {
    pub binary: PathBuf,
    pub arch: Arch,
    /// `major * 1000000 + minor * 1000 + micro`
    pub version: u32,
    pub package: String,
    pub flags: CapSet,
    /// Device types that a guest can be given, sorted.
    pub(crate) devices: Vec<String>,
    pub(crate) kvm: Option<AccelCaps>,
    pub(crate) tcg: Option<AccelCaps>,
    /// Hyper-V enlightenments that KVM offers, under QEMU's names without `hv-`.
    pub hyperv: Vec<String>,
    #[serde(skip)]
    host_models: host_model::HostModels,
    #[serde(skip)]
    given: given_cpu::GivenCpus,
}

/// What depends on how instructions are executed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AccelCaps {
    /// The default machine first, the others in QEMU's order.
    pub machines: Vec<Machine>,
    pub cpus: Vec<CpuDefinition>,
    /// The best CPU that this host can offer: the expansion of `host` or `max`.
    pub host_cpu: Option<CpuExpansion>,
}

/// A machine type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    pub alias: Option<String>,
    pub max_cpus: u32,
    pub hotplug_cpus: bool,
    pub numa_memory: bool,
    pub deprecated: bool,
    /// Unknown to older binaries.
    pub acpi: Option<bool>,
    /// The id of the memory backend that the machine would create itself.
    pub default_ram_id: Option<String>,
    /// A CPU type, as in [`CpuDefinition::type_name`].
    pub default_cpu: Option<String>,
}

/// A CPU model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuDefinition {
    pub name: String,
    /// The QOM type.
    pub type_name: String,
    /// Features that this host lacks, under QEMU's names; none where QEMU does not say.
    pub blockers: Option<Vec<String>>,
    pub deprecated: bool,
}

/// A CPU model written out as a static model and properties.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuExpansion {
    pub model: String,
    pub properties: Vec<CpuProperty>,
    /// Whether [`CpuProperty::migratable`] was found out.
    pub migratability: bool,
}

/// A feature or number of a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProperty {
    /// QEMU's name.
    pub name: String,
    pub value: CpuValue,
    /// A guest that has it cannot be migrated where this is `Some(false)`.
    pub migratable: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CpuValue {
    Bool(bool),
    Number(i64),
    Text(String),
}

impl QemuCaps {
    pub fn supports(&self, cap: Cap) -> bool {
        self.flags.contains(cap)
    }

    /// Whether `-device` knows the type, as `virtio-net-pci`.
    pub fn has_device(&self, name: &str) -> bool {
        self.devices.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    /// KVM where it works, else TCG.
    pub fn best_accel(&self) -> Accel {
        if self.supports(Cap::Kvm) { Accel::Kvm } else { Accel::Tcg }
    }

    pub fn accel(&self, accel: Accel) -> Option<&AccelCaps> {
        match accel {
            Accel::Kvm => self.kvm.as_ref(),
            Accel::Tcg => self.tcg.as_ref(),
        }
    }

    /// The machine of this name or alias.
    pub fn machine(&self, accel: Accel, name: &str) -> Option<&Machine> {
        self.accel(accel)?.machine(name)
    }

    /// The machine that a name or alias stands for: `q35` is `pc-q35-10.0`. A name that QEMU does not know stays.
    pub fn canonical_machine<'a>(&'a self, accel: Accel, name: &'a str) -> &'a str {
        self.accel(accel)
            .and_then(|accel| accel.machines.iter().find(|machine| machine.alias.as_deref() == Some(name)))
            .map_or(name, |machine| &machine.name)
    }

    /// The machine of a guest that names none.
    pub fn default_machine(&self, accel: Accel) -> Option<&Machine> {
        self.accel(accel)?.machines.first()
    }

    /// The most virtual CPUs that the machine takes.
    pub fn max_vcpus(&self, accel: Accel, machine: &str) -> Option<u32> {
        self.machine(accel, machine).map(|machine| machine.max_cpus)
    }

    /// The CPU model of a guest that names none, as `qemu64`.
    pub fn default_cpu(&self, accel: Accel, machine: &str) -> Option<&str> {
        let accel = self.accel(accel)?;
        let type_name = accel.machine(machine)?.default_cpu.as_deref()?;
        let definition = accel.cpus.iter().find(|cpu| cpu.type_name == type_name);
        definition.map(|cpu| cpu.name.as_str())
    }
}

impl AccelCaps {
    /// The machine of this name or alias.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.name == name || machine.alias.as_deref() == Some(name))
    }

    pub fn cpu(&self, name: &str) -> Option<&CpuDefinition> {
        self.cpus.iter().find(|cpu| cpu.name == name)
    }
}
