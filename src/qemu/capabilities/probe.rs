//! The conversation with a QEMU that was started to be asked, and what its answers mean.
//!
//! All questions are known beforehand, so they are sent at once: no question waits for an answer. A
//! question that this binary does not understand has no answer, which is an answer as well.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::flags::Evidence;
use super::given_cpu::GivenCpus;
use super::host_model::HostModels;
use super::schema::Schema;
use super::{Accel, AccelCaps, Cap, CpuDefinition, CpuExpansion, CpuProperty, CpuValue, Machine, QemuCaps};
use crate::util::arch::Arch;

/// Binaries before this version lack commands that everything here relies on.
const OLDEST: u32 = 6_002_000;

/// A QEMU that answered, but not with what is needed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no answer to '{0}'")]
    NoAnswer(String),
    #[error("answer to '{question}' is malformed: {error}")]
    Malformed { question: String, error: serde_json::Error },
    #[error("Unknown QEMU arch {0}")]
    UnknownArch(String),
    #[error("QEMU version >= 6.2.0 is required, but {0} found")]
    TooOld(String),
}

/// One command to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Tells the answers apart: the command, or the command and what it asks about.
    pub key: String,
    pub command: &'static str,
    pub arguments: Option<Value>,
}

impl Question {
    fn plain(command: &'static str) -> Self {
        Self { key: command.to_owned(), command, arguments: None }
    }

    fn properties_of(command: &'static str, type_name: &str) -> Self {
        let arguments = Some(json!({ "typename": type_name }));
        Self { key: format!("{command}:{type_name}"), command, arguments }
    }

    fn expansion(key: &str, how: &str, model: Value) -> Self {
        let arguments = Some(json!({ "type": how, "model": model }));
        Self { key: format!("{EXPANSION}:{key}"), command: EXPANSION, arguments }
    }
}

const EXPANSION: &str = "query-cpu-model-expansion";
const DEVICE_PROPERTIES: &str = "device-list-properties";
const OBJECT_PROPERTIES: &str = "qom-list-properties";
const DEVICES: &str = "qom-list-types:device";

/// What is asked of a binary whose best accelerator is in use.
pub fn questions() -> Vec<Question> {
    let mut all = vec![
        Question::plain("query-version"),
        Question::plain("query-target"),
        Question::plain("query-kvm"),
        Question::plain("query-qmp-schema"),
        Question::plain("qom-list-types"),
        Question {
            key: DEVICES.to_owned(),
            command: "qom-list-types",
            arguments: Some(json!({ "implements": "device", "abstract": false })),
        },
        Question::plain("query-tpm-models"),
        Question::plain("query-tpm-types"),
        Question::plain("query-command-line-options"),
        Question::plain("query-migrate-capabilities"),
        Question::plain("query-sev-capabilities"),
        Question::plain("query-sgx-capabilities"),
    ];
    let asked_about: BTreeSet<(&'static str, String)> =
        Cap::ALL.iter().flat_map(|cap| cap.evidence()).filter_map(Evidence::properties_of).collect();
    all.extend(asked_about.iter().map(|(command, type_name)| Question::properties_of(command, type_name)));
    all.extend(accel_questions());
    let everything = json!({ "name": "host", "props": { "migratable": false, "hv-passthrough": true } });
    all.push(Question::expansion("host-hyperv", "full", everything));
    all
}

/// What is asked again of the same binary with KVM turned off.
pub fn accel_questions() -> Vec<Question> {
    let mut all = vec![Question::plain("query-machines"), Question::plain("query-cpu-definitions")];
    for model in ["host", "max"] {
        let unmigratable = json!({ "name": model, "props": { "migratable": false } });
        all.push(Question::expansion(model, "static", json!({ "name": model })));
        all.push(Question::expansion(&format!("{model}-unmigratable"), "static", unmigratable));
        all.push(Question::expansion(&format!("{model}-full"), "full", json!({ "name": model })));
    }
    all
}

impl Evidence {
    /// The command and the type that show whether a property exists.
    fn properties_of(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Property(device, _) => Some((DEVICE_PROPERTIES, (*device).to_owned())),
            Self::ObjectProperty(object, _) => Some((OBJECT_PROPERTIES, (*object).to_owned())),
            Self::MachineProperty(machine, _) => Some((OBJECT_PROPERTIES, format!("{machine}-machine"))),
            _ => None,
        }
    }
}

/// Answers by [`Question::key`]; errors are left out.
#[derive(Debug, Default, Deserialize)]
pub struct Answers(pub(super) HashMap<String, Value>);

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "default-value", default)]
    default_value: Value,
}

#[derive(Deserialize)]
struct CommandLineOption {
    option: String,
    parameters: Vec<Named>,
}

impl Answers {
    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ProbeError> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        T::deserialize(value)
            .map(Some)
            .map_err(|error| ProbeError::Malformed { question: key.to_owned(), error })
    }

    fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T, ProbeError> {
        self.read(key)?.ok_or_else(|| ProbeError::NoAnswer(key.to_owned()))
    }

    fn list<T: DeserializeOwned>(&self, key: &str) -> Result<Vec<T>, ProbeError> {
        Ok(self.read(key)?.unwrap_or_default())
    }

    fn names(&self, key: &str) -> Result<Vec<String>, ProbeError> {
        Ok(self.list::<Named>(key)?.into_iter().map(|entry| entry.name).collect())
    }
}

/// Puts the answers together: those with the best accelerator and, where that was KVM, those with TCG.
pub fn assemble(binary: PathBuf, best: &Answers, tcg: Option<&Answers>) -> Result<QemuCaps, ProbeError> {
    #[derive(Deserialize)]
    struct Version {
        qemu: Triple,
        package: String,
    }
    #[derive(Deserialize)]
    struct Triple {
        major: u32,
        minor: u32,
        micro: u32,
    }
    #[derive(Deserialize)]
    struct Target {
        arch: String,
    }
    #[derive(Deserialize)]
    struct Kvm {
        enabled: bool,
        present: bool,
    }

    let Version { qemu: Triple { major, minor, micro }, package } = best.require("query-version")?;
    let version = major * 1_000_000 + minor * 1_000 + micro;
    if version < OLDEST {
        return Err(ProbeError::TooOld(format!("{major}.{minor}.{micro}")));
    }
    let target: Target = best.require("query-target")?;
    let arch = Arch::from_qemu_target(&target.arch).ok_or(ProbeError::UnknownArch(target.arch))?;
    let kvm: Kvm = best.require("query-kvm")?;

    let mut devices = best.names(DEVICES)?;
    devices.sort_unstable();
    let mut caps = QemuCaps {
        binary,
        arch,
        version,
        package,
        flags: evident(best)?.into_iter().collect(),
        devices,
        kvm: None,
        tcg: None,
        hyperv: Vec::new(),
        host_models: HostModels::default(),
        given: GivenCpus::default(),
    };
    if kvm.enabled && kvm.present {
        caps.flags.insert(Cap::Kvm);
        caps.kvm = Some(accel(best, arch, Accel::Kvm)?);
        caps.hyperv = hyperv(best)?;
    }
    if caps.supports(Cap::Tcg) {
        let answers = if caps.kvm.is_some() { tcg } else { Some(best) };
        caps.tcg = answers.map(|answers| accel(answers, arch, Accel::Tcg)).transpose()?;
    }
    conclude(&mut caps, best)?;
    Ok(caps)
}

/// The flags that have evidence in the answers.
fn evident(answers: &Answers) -> Result<Vec<Cap>, ProbeError> {
    let schema: Schema = answers.require("query-qmp-schema")?;
    let types: BTreeSet<String> = answers.names("qom-list-types")?.into_iter().collect();
    let options: Vec<CommandLineOption> = answers.list("query-command-line-options")?;
    let tpm_models: Vec<String> = answers.list("query-tpm-models")?;
    let tpm_types: Vec<String> = answers.list("query-tpm-types")?;
    let migration: Vec<Value> = answers.list("query-migrate-capabilities")?;
    let mut properties: HashMap<(&str, String), Vec<String>> = HashMap::new();
    for owner in Cap::ALL.iter().flat_map(|cap| cap.evidence()).filter_map(Evidence::properties_of) {
        let names = answers.names(&format!("{}:{}", owner.0, owner.1))?;
        properties.insert(owner, names);
    }

    let has_property = |evidence: &Evidence, property: &str| {
        let names = evidence.properties_of().and_then(|owner| properties.get(&owner));
        names.is_some_and(|names| names.iter().any(|name| name == property))
    };
    let shown = |evidence: &Evidence| match evidence {
        Evidence::Type(name) => types.contains(*name),
        Evidence::Schema(path) => schema.has(path),
        Evidence::Property(_, name)
        | Evidence::ObjectProperty(_, name)
        | Evidence::MachineProperty(_, name) => has_property(evidence, name),
        Evidence::Option(name, parameter) => {
            options.iter().filter(|option| option.option == *name).any(|option| {
                parameter.is_empty() || option.parameters.iter().any(|known| known.name == *parameter)
            })
        }
        Evidence::Migration(name) => migration.iter().any(|known| known["capability"] == *name),
        Evidence::TpmType(name) => tpm_types.iter().any(|known| known == name),
        Evidence::TpmModel(name) => tpm_models.iter().any(|known| known == name),
    };
    let mut caps: Vec<Cap> =
        Cap::ALL.iter().copied().filter(|cap| cap.evidence().iter().any(shown)).collect();
    let masks = |job: &str| schema.has(&format!("{job}/arg-type/backing-mask-protocol"));
    if masks("block-commit") && masks("block-stream") {
        caps.push(Cap::BlockjobBackingMaskProtocol);
    }
    Ok(caps)
}

/// The flags that follow from others or need a closer look.
fn conclude(caps: &mut QemuCaps, answers: &Answers) -> Result<(), ProbeError> {
    if caps.supports(Cap::CpuUnavailableFeatures) {
        caps.flags.insert(Cap::CanonicalCpuFeatures);
    }
    // "esp" is only built into machines, so no list of types shows it.
    if matches!(caps.arch, Arch::Sparc | Arch::M68k | Arch::Mips) {
        caps.flags.insert(Cap::ScsiNcr53c90);
    }
    if [&caps.kvm, &caps.tcg].into_iter().flatten().any(|accel| accel.cpu("max").is_some()) {
        caps.flags.insert(Cap::CpuMax);
    }
    // These types are always compiled in; the hardware behind them shows in another answer.
    if !answers.0.contains_key("query-sev-capabilities") {
        caps.flags.remove(Cap::SevGuest);
        caps.flags.remove(Cap::SevSnpGuest);
    }
    if !answers.0.contains_key("query-sgx-capabilities") {
        caps.flags.remove(Cap::SgxEpc);
    }
    let virtio_blk: Vec<Property> = answers.list("device-list-properties:virtio-blk-pci")?;
    if virtio_blk.iter().any(|property| property.name == "scsi" && property.default_value == false) {
        caps.flags.insert(Cap::VirtioBlkScsiDefaultDisabled);
    }
    Ok(())
}

fn accel(answers: &Answers, arch: Arch, kind: Accel) -> Result<AccelCaps, ProbeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Definition {
        name: String,
        #[serde(default)]
        typename: String,
        unavailable_features: Option<Vec<String>>,
        #[serde(default)]
        deprecated: bool,
    }

    let cpus: Vec<Definition> = answers.list("query-cpu-definitions")?;
    let host_model = if kind == Accel::Kvm { "host" } else { "max" };
    Ok(AccelCaps {
        machines: machines(answers, arch)?,
        cpus: cpus
            .into_iter()
            .map(|cpu| CpuDefinition {
                name: cpu.name,
                type_name: cpu.typename,
                blockers: cpu.unavailable_features,
                deprecated: cpu.deprecated,
            })
            .collect(),
        host_cpu: expansion(answers, arch, host_model)?,
    })
}

fn machines(answers: &Answers, arch: Arch) -> Result<Vec<Machine>, ProbeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Described {
        name: String,
        alias: Option<String>,
        #[serde(default)]
        is_default: bool,
        cpu_max: u32,
        #[serde(default)]
        hotpluggable_cpus: bool,
        #[serde(default)]
        numa_mem_supported: bool,
        #[serde(default)]
        deprecated: bool,
        acpi: Option<bool>,
        default_ram_id: Option<String>,
        default_cpu_type: Option<String>,
    }

    let mut described: Vec<Described> = answers.list("query-machines")?;
    described.retain(|machine| machine.name != "none");
    // QEMU may change its default; a guest that names no machine must not change with it.
    let preferred = preferred_machine(arch);
    let default = described
        .iter()
        .rposition(|machine| {
            preferred.is_some_and(|name| machine.name == name || machine.alias.as_deref() == Some(name))
        })
        .or_else(|| described.iter().rposition(|machine| machine.is_default));
    if let Some(default) = default {
        described[..=default].rotate_right(1);
    }
    let machine = |from: Described| Machine {
        name: from.name,
        alias: from.alias,
        max_cpus: from.cpu_max,
        hotplug_cpus: from.hotpluggable_cpus,
        numa_memory: from.numa_mem_supported,
        deprecated: from.deprecated,
        acpi: from.acpi,
        default_ram_id: from.default_ram_id,
        default_cpu: from.default_cpu_type,
    };
    Ok(described.into_iter().map(machine).collect())
}

/// The machine that a guest gets when it names none (libvirt's choice, not QEMU's).
fn preferred_machine(arch: Arch) -> Option<&'static str> {
    Some(match arch {
        Arch::Alpha => "clipper",
        Arch::Armv6l => "integratorcp",
        Arch::Armv7l | Arch::Armv7b | Arch::Aarch64 | Arch::Loongarch64 | Arch::Riscv32 | Arch::Riscv64 => {
            "virt"
        }
        Arch::Cris => "axis-dev88",
        Arch::I686 | Arch::X86_64 => "pc",
        Arch::Lm32 => "lm32-evr",
        Arch::M68k => "mcf5208evb",
        Arch::Microblaze | Arch::Microblazeel => "petalogix-s3adsp1800",
        Arch::Mips | Arch::Mipsel | Arch::Mips64 | Arch::Mips64el => "malta",
        Arch::Openrisc => "or1k-sim",
        Arch::Ppc | Arch::Ppcle => "g3beige",
        Arch::Ppc64 | Arch::Ppc64le => "pseries",
        Arch::Ppcemb => "bamboo",
        Arch::S390x => "s390-ccw-virtio",
        Arch::Sh4 | Arch::Sh4eb => "shix",
        Arch::Sparc => "SS-5",
        Arch::Sparc64 => "sun4u",
        Arch::Unicore32 => "puv3",
        Arch::Xtensa | Arch::Xtensaeb => "sim",
        Arch::Ia64 | Arch::Parisc | Arch::Parisc64 | Arch::S390 => return None,
    })
}

#[derive(Deserialize)]
struct Expansion {
    model: ExpandedModel,
}

#[derive(Deserialize)]
struct ExpandedModel {
    name: String,
    #[serde(default)]
    props: serde_json::Map<String, Value>,
}

/// The CPU `model` in full. On x86 a second answer, for a guest that is never to be migrated, shows
/// which features forbid migration.
fn expansion(answers: &Answers, arch: Arch, model: &str) -> Result<Option<CpuExpansion>, ProbeError> {
    let how =
        if arch.is_arm() { format!("{EXPANSION}:{model}-full") } else { format!("{EXPANSION}:{model}") };
    let Some(Expansion { model: expanded }) = answers.read(&how)? else { return Ok(None) };
    let unmigratable: Option<Expansion> = answers.read(&format!("{EXPANSION}:{model}-unmigratable"))?;
    let unmigratable = unmigratable.filter(|_| arch.is_x86()).map(|expansion| expansion.model.props);

    let property = |(name, value): (String, Value)| {
        let mut value = match value {
            Value::Bool(on) => CpuValue::Bool(on),
            Value::Number(number) => CpuValue::Number(number.as_i64().unwrap_or(i64::MAX)),
            Value::String(text) => CpuValue::Text(text),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        let otherwise = unmigratable.as_ref().and_then(|props| props.get(&name)).and_then(Value::as_bool);
        let migratable = match (&value, otherwise) {
            (CpuValue::Bool(true), Some(_)) => Some(true),
            (CpuValue::Bool(false), Some(true)) => {
                value = CpuValue::Bool(true);
                Some(false)
            }
            _ => None,
        };
        Some(CpuProperty { name, value, migratable })
    };
    let migratability = unmigratable.is_some();
    let properties = expanded.props.into_iter().filter_map(property).collect();
    Ok(Some(CpuExpansion { model: expanded.name, properties, migratability }))
}

/// The Hyper-V enlightenments that are on when all that KVM has are asked for.
fn hyperv(answers: &Answers) -> Result<Vec<String>, ProbeError> {
    let full: Option<Expansion> = answers.read(&format!("{EXPANSION}:host-hyperv"))?;
    let on = |value: &Value| match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_i64().is_some_and(|number| number > 0),
        Value::String(_) => true,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    let props = full.map(|full| full.model.props).unwrap_or_default();
    let offered = props.iter().filter(|(_, value)| on(value));
    Ok(offered.filter_map(|(name, _)| name.strip_prefix("hv-")).map(str::to_owned).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Replies of QEMU 10.0.2 on an AMD host, trimmed to what the questions look at.
    const KVM: &str = include_str!("../../../tests/data/capabilities/qemu-10.0.2-x86_64-kvm.json");
    const TCG: &str = include_str!("../../../tests/data/capabilities/qemu-10.0.2-x86_64-tcg.json");
    /// The flags that libvirt 11.3 finds in the same binary.
    const FLAGS: &str = include_str!("../../../tests/data/capabilities/qemu-10.0.2-x86_64.flags");

    pub(in super::super) fn caps() -> QemuCaps {
        let kvm: Answers = serde_json::from_str(KVM).unwrap();
        let tcg: Answers = serde_json::from_str(TCG).unwrap();
        assemble("/usr/bin/qemu-system-x86_64".into(), &kvm, Some(&tcg)).unwrap()
    }

    #[test]
    fn the_flags_are_those_that_libvirt_finds() {
        let found: Vec<&str> = caps().flags.iter().map(Cap::as_str).collect();
        let expected: Vec<&str> = FLAGS.lines().collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn machines_start_with_the_default_and_answer_to_their_alias() {
        let caps = caps();
        assert_eq!((caps.arch, caps.version), (Arch::X86_64, 10_000_002));
        let default = caps.default_machine(Accel::Kvm).unwrap();
        assert_eq!((default.name.as_str(), default.alias.as_deref()), ("pc-i440fx-10.0", Some("pc")));
        assert_eq!(caps.canonical_machine(Accel::Tcg, "q35"), "pc-q35-10.0");
        assert_eq!(caps.canonical_machine(Accel::Kvm, "bogus"), "bogus");
        assert_eq!(caps.max_vcpus(Accel::Kvm, "q35"), Some(4096));
        assert_eq!(caps.default_cpu(Accel::Kvm, "q35"), Some("qemu64"));
        assert!(caps.machine(Accel::Kvm, "none").is_none());
    }

    #[test]
    fn devices_and_cpus_are_known_by_name() {
        let caps = caps();
        assert!(caps.has_device("virtio-net-pci") && !caps.has_device("qxl"));
        let kvm = caps.accel(Accel::Kvm).unwrap();
        assert_eq!(kvm.cpu("qemu64").unwrap().blockers.as_deref(), Some(&["pni".to_owned()][..]));
        assert!(kvm.cpu("no-such-model").is_none());
    }

    #[test]
    fn the_host_cpu_says_which_features_forbid_migration() {
        let caps = caps();
        let cpu = caps.accel(Accel::Kvm).unwrap().host_cpu.as_ref().unwrap();
        let property = |name| cpu.properties.iter().find(|property| property.name == name).unwrap();
        assert_eq!((cpu.model.as_str(), cpu.migratability), ("base", true));
        assert_eq!(
            (&property("cmov").value, property("cmov").migratable),
            (&CpuValue::Bool(true), Some(true))
        );
        assert_eq!(
            (&property("invtsc").value, property("invtsc").migratable),
            (&CpuValue::Bool(true), Some(false))
        );
        assert_eq!(property("aes").value, CpuValue::Bool(false));
        assert!(caps.hyperv.iter().any(|name| name == "spinlocks"), "{:?}", caps.hyperv);
    }

    #[test]
    fn a_binary_that_is_too_old_or_answers_nonsense_is_refused() {
        let with = |key: &str, value: Value| {
            let mut answers: Answers = serde_json::from_str(KVM).unwrap();
            answers.0.insert(key.to_owned(), value);
            assemble("/q".into(), &answers, None).unwrap_err().to_string()
        };
        let version = json!({ "qemu": { "major": 5, "minor": 2, "micro": 0 }, "package": "" });
        assert_eq!(with("query-version", version), "QEMU version >= 6.2.0 is required, but 5.2.0 found");
        assert_eq!(with("query-target", json!({ "arch": "vax" })), "Unknown QEMU arch vax");
        assert!(with("query-machines", json!(7)).starts_with("answer to 'query-machines' is malformed"));
        let error = assemble("/q".into(), &Answers::default(), None).unwrap_err();
        assert_eq!(error.to_string(), "no answer to 'query-version'");
    }
}
