//! `<cpu>`: model, features, topology. NUMA cells are in [`super::numa`].

use super::numa::Numa;
use crate::conf::xml::{Element, OnOff, Part, Writer, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    pub enum CpuMode {
        Custom = "custom",
        HostModel = "host-model",
        HostPassthrough = "host-passthrough",
        Maximum = "maximum",
    }
    refuse |_place, text| ConfError::unsupported(format!("Invalid mode attribute '{text}'")).by_cpu_parser()
}

impl CpuMode {
    /// Modes in which a named model means something.
    pub fn has_model(self) -> bool {
        matches!(self, Self::Custom | Self::HostModel)
    }
}

xml_enum! {
    pub enum CpuMatch {
        Exact = "exact",
        Minimum = "minimum",
        Strict = "strict",
    }
}

xml_enum! {
    /// How strictly the guest's CPU is compared with what it should be.
    pub enum CpuCheck {
        None = "none",
        Partial = "partial",
        Full = "full",
    }
}

xml_enum! {
    pub enum Fallback {
        Allow = "allow",
        Forbid = "forbid",
    }
    refuse |_place, _text| ConfError::unsupported("Invalid fallback attribute").by_cpu_parser()
}

xml_enum! {
    pub enum FeaturePolicy {
        Force = "force",
        Require = "require",
        Optional = "optional",
        Disable = "disable",
        Forbid = "forbid",
    }
    refuse |_place, _text| ConfError::unsupported("Invalid CPU feature policy").by_cpu_parser()
}

xml_enum! {
    pub enum CpuCacheMode {
        Emulate = "emulate",
        Passthrough = "passthrough",
        Disable = "disable",
    }
}

xml_enum! {
    pub enum PhysAddrMode {
        Emulate = "emulate",
        Passthrough = "passthrough",
    }
}

/// A guest's CPU. Only topology or cells given: `mode` is custom and `model` absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpu {
    pub mode: CpuMode,
    pub matching: CpuMatch,
    pub check: Option<CpuCheck>,
    pub migratable: Option<OnOff>,
    pub deprecated_features: Option<OnOff>,
    pub model: Option<Box<str>>,
    pub fallback: Fallback,
    pub vendor_id: Option<Box<str>>,
    pub rest: CpuRest,
}

xml! {
    /// What every mode may have.
    #[derive(Default)]
    pub struct CpuRest {
        text vendor: Option<Box<str>> = "vendor";
        child topology: Option<Topology> = "topology";
        child cache: Option<CpuCache> = "cache";
        child maxphysaddr: Option<MaxPhysAddr> = "maxphysaddr";
        child features: Vec<CpuFeature> = "feature";
        child numa: Option<Box<Numa>> = "numa";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Topology {
        attr sockets: u32 = "sockets";
        attr dies: u32 = "dies", or 1;
        attr clusters: u32 = "clusters", or 1;
        attr cores: u32 = "cores";
        attr threads: u32 = "threads";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct CpuCache {
        attr level: Option<u32> = "level";
        attr mode: CpuCacheMode = "mode";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct MaxPhysAddr {
        attr mode: PhysAddrMode = "mode";
        attr bits: Option<u32> = "bits";
        attr limit: Option<u32> = "limit";
    }
}

xml! {
    pub struct CpuFeature {
        attr policy: FeaturePolicy = "policy", or FeaturePolicy::Require;
        attr name: Box<str> = "name";
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            mode: CpuMode::Custom,
            matching: CpuMatch::Exact,
            check: None,
            migratable: None,
            deprecated_features: None,
            model: None,
            fallback: Fallback::Allow,
            vendor_id: None,
            rest: CpuRest::default(),
        }
    }
}

impl Part for Cpu {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut cpu = Self { mode: element.value("mode")?.unwrap_or(CpuMode::Custom), ..Self::default() };
        cpu.migratable = element.value("migratable")?;
        if cpu.migratable.is_some() && cpu.mode.has_model() {
            let message = "Attribute migratable is only allowed for 'host-passthrough' / 'maximum' CPU mode";
            return Err(ConfError::unsupported(message).by_cpu_parser());
        }
        cpu.matching = element.value("match")?.unwrap_or(CpuMatch::Exact);
        cpu.check = match element.attribute("check") {
            Some("default") => None,
            _ => element.value("check")?,
        };
        cpu.deprecated_features = element.value("deprecated_features")?;
        cpu.rest = CpuRest::read(element)?;
        if cpu.mode.has_model() {
            cpu.read_model(element)?;
        } else {
            cpu.rest.vendor = None;
        }
        cpu.check_rest()?;
        Ok(cpu)
    }

    fn write_attributes(&self, out: &mut Writer) {
        if self.mode == CpuMode::Custom && self.model.is_none() {
            return;
        }
        out.attribute("mode", &self.mode);
        if self.mode == CpuMode::Custom {
            out.attribute("match", &self.matching);
        }
        if let Some(check) = &self.check {
            out.attribute("check", check);
        }
        if let Some(migratable) = &self.migratable {
            out.attribute("migratable", migratable);
        }
        if let Some(deprecated_features) = &self.deprecated_features {
            out.attribute("deprecated_features", deprecated_features);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if self.mode.has_model() && (self.model.is_some() || self.vendor_id.is_some()) {
            out.element("model", |out| {
                if self.model.is_some() {
                    out.attribute("fallback", &self.fallback);
                }
                if let Some(vendor_id) = &self.vendor_id {
                    out.attribute("vendor_id", vendor_id);
                }
                if let Some(model) = &self.model {
                    out.body(model);
                }
            });
        }
        self.rest.write_children(out);
    }

    fn write(&self, out: &mut Writer, name: &str) {
        self.write_group(out, name);
    }
}

impl Cpu {
    fn read_model(&mut self, element: Element<'_>) -> Result<()> {
        let Some(node) = element.child("model") else { return Ok(()) };
        self.model = Some(node.text()).filter(|text| !text.is_empty()).map(Into::into);
        self.fallback = node.value("fallback")?.unwrap_or(Fallback::Allow);
        self.vendor_id = node.value("vendor_id")?;
        match &self.vendor_id {
            Some(id) if id.len() != 12 => {
                Err(ConfError::xml("vendor_id must be exactly 12 characters long").by_cpu_parser())
            }
            Some(id) if id.contains(',') => Err(ConfError::xml("vendor id is invalid").by_cpu_parser()),
            _ => Ok(()),
        }
    }

    pub(in crate::conf) fn check_rest(&self) -> Result<()> {
        let rest = &self.rest;
        if rest.vendor.is_some() && self.model.is_none() {
            return Err(ConfError::xml("CPU vendor specified without CPU model").by_cpu_parser());
        }
        if !rest.features.is_empty() && self.model.is_none() && self.mode == CpuMode::Custom {
            return Err(ConfError::xml("Non-empty feature list specified without CPU model").by_cpu_parser());
        }
        if let Some(topology) = rest.topology {
            let counts = [
                ("sockets", topology.sockets),
                ("dies", topology.dies),
                ("clusters", topology.clusters),
                ("cores", topology.cores),
                ("threads", topology.threads),
            ];
            if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
                return Err(ConfError::zero_attribute(name, "topology"));
            }
        }
        let limits = |bits: MaxPhysAddr| bits.limit.is_some() && bits.mode != PhysAddrMode::Passthrough;
        if rest.maxphysaddr.is_some_and(limits) {
            let sentence = "attribute 'limit' is only supported for maxphysaddr mode 'passthrough'";
            return Err(ConfError::unsupported(sentence).by_cpu_parser());
        }
        if rest.cache.is_some_and(|cache| cache.level.is_some_and(|level| !(1..=3).contains(&level))) {
            return Err(ConfError::xml("invalid CPU cache level, must be in range [1,3]").by_cpu_parser());
        }
        let mut names: Vec<&str> = rest.features.iter().map(|feature| feature.name.as_ref()).collect();
        names.sort_unstable();
        if names.first() == Some(&"") {
            return Err(ConfError::xml("Invalid CPU feature name").by_cpu_parser());
        }
        let mut pairs = names.iter().zip(names.iter().skip(1));
        match pairs.find(|(one, next)| one == next) {
            Some((name, _)) => {
                let message = format!("CPU feature '{name}' specified more than once");
                Err(ConfError::xml(message).by_cpu_parser())
            }
            None => Ok(()),
        }
    }
}
