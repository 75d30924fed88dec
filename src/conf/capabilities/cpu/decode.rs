//! Finds the model that comes closest to what a processor has.
//!
//! Every model is tried, the newest first; what the processor has beyond it is required, what it lacks is
//! disabled. A model with the processor's own family and model number wins; among those, the one with the
//! fewest features to name, where a disabled one counts for more than a required one. A client's own model is
//! preferred: the only one is taken whatever it costs, one of several where it needs fewer features disabled.

use super::data::CpuData;
use super::map::{CpuMap, CpuModel};
use crate::conf::capabilities::host::Signature;

/// What the found model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To describe a host, which lacks nothing of its model.
    Host,
    /// To give a guest a CPU, which may lack some of its model.
    Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Require,
    Disable,
}

/// A model that a hypervisor knows, and the features of it that it cannot provide.
pub type Known<'a> = dyn Fn(&str) -> Option<Vec<String>> + 'a;

/// A processor by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub model: String,
    pub vendor: Option<String>,
    pub signature: Option<Signature>,
    pub features: Vec<(String, Policy)>,
}

/// The models that a client named.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Preference<'a> {
    pub models: &'a [&'a str],
}

impl Preference<'_> {
    fn is_for(self, model: &CpuModel) -> bool {
        self.models.contains(&model.name.as_str())
    }

    fn is_only_for(self, model: &CpuModel) -> bool {
        self.models == [model.name.as_str()]
    }
}

/// How much the first disabled feature counts; each further one counts one more.
const BASE_PENALTY: usize = 2;

impl CpuMap {
    /// The closest model, of those that `known` knows where it is given.
    pub fn decode(&self, data: &CpuData, purpose: Purpose, known: Option<&Known<'_>>) -> Option<Decoded> {
        self.decode_preferring(data, purpose, known, Preference::default())
    }

    pub(super) fn decode_preferring(
        &self,
        data: &CpuData,
        purpose: Purpose,
        known: Option<&Known<'_>>,
        preference: Preference<'_>,
    ) -> Option<Decoded> {
        let mut data = data.clone();
        let vendor = self.vendors.iter().find(|(_, bits)| data.contains(bits));
        if let Some((_, bits)) = vendor {
            data.subtract(bits);
        }
        let vendor = vendor.map(|(name, _)| name.clone());
        let signature = data.signature();
        self.drop_broken_tsx(&mut data, vendor.as_deref(), signature);

        let mut best: Option<(&CpuModel, Vec<(String, Policy)>)> = None;
        for model in self.models.iter().rev() {
            let suits = match purpose {
                Purpose::Host => model.names_hosts,
                Purpose::Guest => model.names_guests,
            };
            let same_vendor = vendor.is_none() || model.vendor.is_none() || vendor == model.vendor;
            let blockers = match known {
                Some(known) => known(&model.name),
                None => Some(Vec::new()),
            };
            let Some(blockers) = blockers.filter(|_| suits && same_vendor) else { continue };
            let features = self.difference(&data, model, purpose, &blockers);
            if purpose == Purpose::Host && features.iter().any(|(_, policy)| *policy == Policy::Disable) {
                continue;
            }
            let is_only = preference.is_only_for(model);
            let better = best.as_ref().is_none_or(|(current, of_current)| {
                let judge = Judge { purpose, signature, is_preferred: preference.is_for(model) };
                is_only || judge.is_better((model, &features), (current, of_current))
            });
            if better {
                best = Some((model, features));
            }
            if is_only {
                break;
            }
        }
        let (model, features) = best?;
        Some(Decoded { model: model.name.clone(), vendor, signature, features })
    }

    /// Whether a guest with the feature can be migrated.
    pub fn is_migratable(&self, feature: &str) -> bool {
        self.feature(feature).is_none_or(|feature| feature.migratable)
    }

    /// The first processors with transactional memory have it broken.
    fn drop_broken_tsx(&self, data: &mut CpuData, vendor: Option<&str>, signature: Option<Signature>) {
        let broken = vendor == Some("Intel")
            && signature.is_some_and(|Signature { family, model, stepping }| {
                family == 6 && (matches!(model, 60 | 69 | 70) || (model == 63 && stepping < 4))
            });
        for feature in ["hle", "rtm"].iter().filter(|_| broken).filter_map(|name| self.feature(name)) {
            data.subtract(&feature.data);
        }
    }

    /// What has to be said beside the model's name.
    fn difference(
        &self,
        data: &CpuData,
        model: &CpuModel,
        purpose: Purpose,
        blockers: &[String],
    ) -> Vec<(String, Policy)> {
        let mut beyond = data.clone();
        beyond.subtract(&model.data);
        let mut lacking = model.data.clone();
        lacking.subtract(data);
        // The hypervisor's model of that name may have more than the description says.
        for feature in blockers.iter().filter_map(|name| self.feature(name)) {
            if !beyond.contains(&feature.data) {
                lacking.add(&feature.data);
            }
        }
        let mut named = self.names(beyond, Policy::Require);
        named.extend(self.names(lacking, Policy::Disable));
        if purpose == Purpose::Guest {
            for removed in &model.removed {
                if !named.iter().any(|(name, _)| name == removed) {
                    named.push((removed.clone(), Policy::Disable));
                }
            }
        }
        named
    }

    /// The features that a set of bits consists of. Bits that two features share count for the first.
    pub(super) fn names<P: Copy>(&self, mut data: CpuData, policy: P) -> Vec<(String, P)> {
        let mut names = Vec::new();
        for feature in &self.features {
            if data.contains(&feature.data) {
                data.subtract(&feature.data);
                names.push((feature.name.clone(), policy));
            }
        }
        names
    }
}

type Candidate<'a> = (&'a CpuModel, &'a Vec<(String, Policy)>);

/// What decides between two models.
struct Judge {
    purpose: Purpose,
    signature: Option<Signature>,
    is_preferred: bool,
}

impl Judge {
    fn is_better(&self, (candidate, features): Candidate<'_>, (current, of_current): Candidate<'_>) -> bool {
        if let Some(Signature { family, model, stepping }) = self.signature {
            let fits = |of: &CpuModel| of.has_signature(family, model, stepping);
            if fits(candidate) != fits(current) {
                return fits(candidate);
            }
        }
        let (named, disabled) = cost(features, self.purpose);
        let (named_now, disabled_now) = cost(of_current, self.purpose);
        named < named_now || (disabled < disabled_now && (named == named_now || self.is_preferred))
    }
}

/// How much is to be said, and how much of it to disable features. As libvirt counts, each disabled feature
/// found also ends the search one feature earlier, so about half of them count.
fn cost(features: &[(String, Policy)], purpose: Purpose) -> (usize, usize) {
    let mut enabled = features.len();
    let mut disabled = 0;
    if purpose == Purpose::Host {
        return (enabled, disabled);
    }
    let mut penalty = BASE_PENALTY;
    for (place, (_, policy)) in features.iter().enumerate() {
        if place >= enabled {
            break;
        }
        if *policy == Policy::Disable {
            enabled -= 1;
            disabled += penalty;
            penalty += 1;
        }
    }
    (enabled + disabled, disabled)
}
