//! What several CPUs have in common, as the CPU of a guest that runs on all of them.

use super::data::CpuData;
use super::decode::{Known, Policy, Preference, Purpose};
use super::described::{DescribedCpu, check_models};
use super::guest::{CpuError, Which, set};
use super::map::CpuMap;
use crate::conf::domain::{Cpu, CpuFeature, Fallback, FeaturePolicy};

/// Which features the common denominator may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// Those too that keep a guest from being migrated.
    Any,
    /// Only those with which a guest can be migrated.
    Possible,
}

/// What a hypervisor can offer of CPUs.
#[expect(missing_debug_implementations, reason = "a closure is not printed")]
pub struct Offer<'a> {
    pub models: &'a Known<'a>,
    /// All features that it knows, where it says.
    pub features: Option<Vec<&'a str>>,
}

impl CpuMap {
    /// The richest CPU that each of `cpus` can give a guest.
    pub fn baseline(
        &self,
        cpus: &[DescribedCpu],
        offer: Option<&Offer<'_>>,
        migration: Migration,
    ) -> Result<Cpu, CpuError> {
        check_models(cpus)?;
        let mut common: Option<CpuData> = None;
        for described in cpus {
            let bits = self.bits_of(&described.cpu, Which::All)?;
            match &mut common {
                Some(common) => common.intersect(&bits),
                None => common = Some(bits),
            }
        }
        let mut common = common.unwrap_or_default();
        let vendor = self.common_vendor(cpus)?;
        if let Some(features) = offer.and_then(|offer| offer.features.as_ref()) {
            let mut offered = CpuData::default();
            features.iter().for_each(|name| self.set_feature(&mut offered, name));
            common.intersect(&offered);
        }
        if common.is_empty() {
            return Err(CpuError::NothingInCommon);
        }
        let bits = vendor.and_then(|vendor| self.vendors.iter().find(|(name, _)| name == vendor));
        if let Some((_, bits)) = bits {
            common.add(bits);
        }

        let mut names: Vec<&str> = Vec::new();
        for name in cpus.iter().filter_map(|described| described.cpu.model.as_deref()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let preference = Preference { models: &names };
        let known = offer.map(|offer| offer.models);
        let decoded = self.decode_preferring(&common, Purpose::Guest, known, preference);
        let decoded = decoded.ok_or(CpuError::NoSuitableModel)?;
        let mut cpu = Cpu::default();
        if names == [decoded.model.as_str()] {
            cpu.fallback = Fallback::Forbid;
        }
        cpu.model = Some(decoded.model.into());
        if cpus.iter().all(|described| described.cpu.rest.vendor.is_some()) {
            cpu.rest.vendor = decoded.vendor.map(Into::into);
        }
        let wanted = |name: &str| migration == Migration::Any || self.is_migratable(name);
        let features = decoded.features.into_iter().filter(|(name, _)| wanted(name));
        cpu.rest.features.extend(features.map(|(name, policy)| CpuFeature {
            policy: match policy {
                Policy::Require => FeaturePolicy::Require,
                Policy::Disable => FeaturePolicy::Disable,
            },
            name: name.into(),
        }));
        Ok(cpu)
    }

    /// The maker of all of them; the first one's model does not count, only what is said of it.
    fn common_vendor<'a>(&'a self, cpus: &'a [DescribedCpu]) -> Result<Option<&'a str>, CpuError> {
        let mut common: Option<&str> = None;
        for (index, described) in cpus.iter().enumerate() {
            let name = described.cpu.model.as_deref().unwrap_or_default();
            let of_model = self.model(name).and_then(|model| model.vendor.as_deref());
            let of_model = of_model.filter(|_| index > 0);
            let said = described.cpu.rest.vendor.as_deref();
            if let (Some(said), Some(of_model)) = (said, of_model)
                && said != of_model
            {
                let (model, vendor) = (name.to_owned(), of_model.to_owned());
                return Err(CpuError::OtherVendor { vendor, model, said: said.to_owned() });
            }
            let Some(vendor) = said.or(of_model) else { continue };
            match common {
                Some(common) if common != vendor => return Err(CpuError::VendorsDiffer),
                Some(_) => {}
                None if self.vendors.iter().any(|(known, _)| known == vendor) => common = Some(vendor),
                None => return Err(CpuError::UnknownVendor(vendor.to_owned())),
            }
        }
        Ok(common)
    }

    /// Names every feature of the model beside those that are named already, all by the alphabet.
    pub fn expand(&self, cpu: &mut Cpu) -> Result<(), CpuError> {
        let name = cpu.model.as_deref().unwrap_or_default();
        let model = self.model(name).ok_or_else(|| CpuError::UnknownModel(name.to_owned()))?;
        let own = std::mem::take(&mut cpu.rest.features);
        let of_model = self.names(model.data.clone(), FeaturePolicy::Require);
        let named = of_model.into_iter().map(|(name, policy)| CpuFeature { policy, name: name.into() });
        cpu.rest.features.extend(named);
        for feature in own {
            set(cpu, &feature.name, feature.policy);
        }
        for removed in &model.removed {
            if !cpu.rest.features.iter().any(|feature| *feature.name == **removed) {
                set(cpu, removed, FeaturePolicy::Disable);
            }
        }
        cpu.rest.features.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(())
    }
}
