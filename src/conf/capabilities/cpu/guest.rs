//! A definition's CPU against the bits of a processor: what a guest asks for, and what it really got.

use super::data::CpuData;
use super::decode::{Decoded, Policy};
use super::described::Described;
use super::map::CpuMap;
use crate::conf::domain::{Cpu, CpuCheck, CpuFeature, CpuMatch, FeaturePolicy};

/// Why two CPUs do not go together, in libvirt's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    #[error("Unknown CPU model {0}")]
    UnknownModel(String),
    #[error("Unknown CPU feature {0}")]
    UnknownFeature(String),
    #[error(
        "hypervisor provided conflicting CPU data: feature '{0}' is both enabled and disabled at the same time"
    )]
    Conflict(String),
    #[error("guest CPU doesn't match specification{}", differences(extra, missing))]
    Mismatch { extra: Vec<String>, missing: Vec<String> },
    #[error("no CPU model specified at index {0}")]
    NoModel(usize),
    #[error("Unknown CPU vendor {0}")]
    UnknownVendor(String),
    #[error("CPU vendor {vendor} of model {model} differs from vendor {said}")]
    OtherVendor { vendor: String, model: String, said: String },
    #[error("CPU vendors do not match")]
    VendorsDiffer,
    #[error("CPUs are incompatible")]
    NothingInCommon,
    #[error("Cannot find suitable CPU model for given data")]
    NoSuitableModel,
}

fn differences(extra: &[String], missing: &[String]) -> String {
    let parts = [("extra", extra), ("missing", missing)].into_iter().filter(|(_, names)| !names.is_empty());
    let parts: Vec<_> = parts.map(|(what, names)| format!("{what} features: {}", names.join(","))).collect();
    if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
}

/// The bits of a started guest's CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenCpu {
    pub enabled: CpuData,
    /// What the guest asked for and the hypervisor took away.
    pub disabled: CpuData,
}

/// What a host is to a guest's CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The host lacks something, or has what it must not; with libvirt's sentence.
    Incompatible(String),
    Identical,
    /// The host has all of it, and more.
    Superset,
}

/// Which of a definition's features count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The model, with all that is said about it.
    All,
    Of(FeaturePolicy),
}

impl CpuMap {
    /// Makes the definition of a guest's CPU say exactly what the guest was given.
    pub fn refresh(&self, cpu: &mut Cpu, given: &GivenCpu) -> Result<(), CpuError> {
        let wanted = self.bits_of(cpu, Which::All)?;
        let unwanted = self.bits_of(cpu, Which::Of(FeaturePolicy::Disable))?;
        let name = cpu.model.as_deref().unwrap_or_default();
        let model = self.model(name).ok_or_else(|| CpuError::UnknownModel(name.to_owned()))?;
        let is_strict = cpu.check == Some(CpuCheck::Full);
        let mut disabled = given.disabled.clone();
        let (mut extra, mut missing) = (Vec::new(), Vec::new());
        for feature in &self.features {
            let has = given.enabled.contains(&feature.data);
            let lost = disabled.contains(&feature.data);
            if has && lost {
                return Err(CpuError::Conflict(feature.name.clone()));
            }
            let is_wanted = wanted.contains(&feature.data);
            let is_named = is_wanted || unwanted.contains(&feature.data);
            // The model got the feature after definitions that name the model had been written.
            let reports = is_strict && (is_named || !model.added.contains(&feature.name));
            if has && !is_wanted {
                match reports {
                    true => extra.push(feature.name.clone()),
                    false => set(cpu, &feature.name, FeaturePolicy::Require),
                }
            }
            if lost || (is_wanted && !has) {
                if reports {
                    missing.push(feature.name.clone());
                } else {
                    set(cpu, &feature.name, FeaturePolicy::Disable);
                    disabled.subtract(&feature.data);
                }
            }
        }
        for removed in &model.removed {
            if !cpu.rest.features.iter().any(|feature| *feature.name == **removed) {
                set(cpu, removed, FeaturePolicy::Disable);
            }
        }
        if !extra.is_empty() || !missing.is_empty() || (is_strict && !disabled.is_empty()) {
            return Err(CpuError::Mismatch { extra, missing });
        }
        cpu.check = Some(CpuCheck::Full);
        Ok(())
    }

    /// Whether a host with these bits and of this vendor can give a guest the CPU.
    pub fn compare(
        &self,
        host: &CpuData,
        vendor: Option<&str>,
        Described { arch, cpu }: Described<'_>,
    ) -> Result<Comparison, CpuError> {
        if let Some(arch) = arch.filter(|arch| !arch.is_x86()) {
            let sentence = format!("CPU arch {arch} does not match host arch");
            return Ok(Comparison::Incompatible(sentence));
        }
        if let Some(wanted) = cpu.rest.vendor.as_deref()
            && vendor != Some(wanted)
        {
            let sentence = format!("host CPU vendor does not match required CPU vendor {wanted}");
            return Ok(Comparison::Incompatible(sentence));
        }
        let bits = |policy| self.bits_of(cpu, Which::Of(policy));
        let forced = bits(FeaturePolicy::Force)?;
        let optional = bits(FeaturePolicy::Optional)?;
        let disabled = bits(FeaturePolicy::Disable)?;
        let mut required = bits(FeaturePolicy::Require)?;
        let mut forbidden = bits(FeaturePolicy::Forbid)?;
        forbidden.intersect(host);
        let named = |sentence: &str, bits: &CpuData| {
            Comparison::Incompatible(format!("{sentence}: {}", self.names_of(bits)))
        };
        if !forbidden.is_empty() {
            return Ok(named("Host CPU provides forbidden features", &forbidden));
        }
        for excused in [&forced, &optional, &disabled] {
            required.subtract(excused);
        }
        if !host.contains(&required) {
            required.subtract(host);
            return Ok(named("Host CPU does not provide required features", &required));
        }
        let mut beyond = host.clone();
        for known in [&optional, &required, &disabled, &forced] {
            beyond.subtract(known);
        }
        if beyond.is_empty() {
            return Ok(Comparison::Identical);
        }
        if cpu.matching == CpuMatch::Strict {
            return Ok(named("Host CPU does not strictly match guest CPU: Extra features", &beyond));
        }
        Ok(Comparison::Superset)
    }

    /// The bits of a model and further features.
    pub fn bits<'a>(
        &self,
        model: &str,
        features: impl IntoIterator<Item = &'a str>,
    ) -> Result<CpuData, CpuError> {
        let known = self.model(model).ok_or_else(|| CpuError::UnknownModel(model.to_owned()))?;
        let mut data = known.data.clone();
        for name in features {
            let feature = self.feature(name).ok_or_else(|| CpuError::UnknownFeature(name.to_owned()))?;
            data.add(&feature.data);
        }
        Ok(data)
    }

    /// The bits behind a processor's name.
    pub fn bits_of_decoded(&self, decoded: &Decoded) -> Result<CpuData, CpuError> {
        let mut data = self.bits(&decoded.model, [])?;
        for (name, policy) in &decoded.features {
            let feature = self.feature(name).ok_or_else(|| CpuError::UnknownFeature(name.clone()))?;
            match policy {
                Policy::Require => data.add(&feature.data),
                Policy::Disable => data.subtract(&feature.data),
            }
        }
        Ok(data)
    }

    pub(super) fn bits_of(&self, cpu: &Cpu, which: Which) -> Result<CpuData, CpuError> {
        let with_model = matches!(which, Which::All | Which::Of(FeaturePolicy::Require));
        let mut data = match cpu.model.as_deref().filter(|_| with_model) {
            Some(model) => self.bits(model, [])?,
            None => CpuData::default(),
        };
        for CpuFeature { policy, name } in &cpu.rest.features {
            let counts = match which {
                Which::All => *policy != FeaturePolicy::Optional,
                Which::Of(wanted) => *policy == wanted,
            };
            if !counts {
                continue;
            }
            let feature = self.feature(name).ok_or_else(|| CpuError::UnknownFeature(name.to_string()))?;
            match (which, policy) {
                (Which::All, FeaturePolicy::Disable | FeaturePolicy::Forbid) => data.subtract(&feature.data),
                _ => data.add(&feature.data),
            }
        }
        Ok(data)
    }

    fn names_of(&self, data: &CpuData) -> String {
        let names = self.features.iter().filter(|feature| data.contains(&feature.data));
        names.map(|feature| feature.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn set(cpu: &mut Cpu, name: &str, policy: FeaturePolicy) {
    match cpu.rest.features.iter_mut().find(|feature| *feature.name == *name) {
        Some(feature) => feature.policy = policy,
        None => cpu.rest.features.push(CpuFeature { policy, name: name.into() }),
    }
}
