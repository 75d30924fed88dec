//! Whether guests can have a CPU here.

use super::guest_cpu::GuestCpuError;
use super::{Accel, Features, QemuCaps, feature_from_qemu, processor};
use crate::conf::capabilities::cpu::{Comparison, CpuMap, Decoded, Described, Policy, Purpose};
use crate::conf::domain::{CpuFeature, FeaturePolicy};

/// What a guest's CPU is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// What QEMU offers.
    Qemu,
    /// That, and what the processor itself has.
    Everything,
}

impl QemuCaps {
    /// Whether guests can have the CPU here. Models that QEMU knows are judged by QEMU, unless libvirt's
    /// description of them is as good.
    pub fn compare_cpu(
        &self,
        described: Described<'_>,
        accel: Accel,
        map: &CpuMap,
        against: Against,
    ) -> Result<Comparison, GuestCpuError> {
        let cpu = described.cpu;
        let cpus = self.accel(accel);
        let definition = cpu.model.as_deref().and_then(|model| cpus?.cpu(model));
        let blockers = definition.and_then(|definition| definition.blockers.as_ref());
        let only_disables = cpu.rest.features.iter().all(|it| it.policy == FeaturePolicy::Disable);
        if only_disables && blockers.is_some_and(Vec::is_empty) {
            return Ok(Comparison::Superset);
        }
        let reported = self.host_model(accel, Features::All, map);
        if let (Some(definition), Some(reported)) = (definition, reported) {
            let model = map.model(&definition.name);
            let model = model.ok_or_else(|| GuestCpuError::NoModel(definition.name.clone()))?;
            if !model.is_complete() {
                return self.compare_blockers(described, blockers.map_or(&[], Vec::as_slice), reported, map);
            }
        }
        let full = match against {
            Against::Everything => full_host(self, accel, map),
            Against::Qemu => reported.cloned(),
        };
        let Some(host) = full else { return Ok(Comparison::Incompatible("unknown host CPU".to_owned())) };
        Ok(map.compare(&map.bits_of_decoded(&host)?, host.vendor.as_deref(), described)?)
    }

    /// A CPU whose model QEMU knows: `blockers` is what the host lacks of that.
    fn compare_blockers(
        &self,
        described: Described<'_>,
        blockers: &[String],
        host: &Decoded,
        map: &CpuMap,
    ) -> Result<Comparison, GuestCpuError> {
        let offered = map.bits_of_decoded(host)?;
        let cpu = described.cpu;
        let is_disabled = |name: &str| {
            let mut features = cpu.rest.features.iter();
            features.any(|it| *it.name == *name && it.policy == FeaturePolicy::Disable)
        };
        let blockers = blockers.iter().map(|name| feature_from_qemu(self.arch, name));
        let mut lacking: Vec<&str> = blockers.filter(|name| !is_disabled(name)).collect();
        // As libvirt does, which looks for a policy where a host's features have none.
        let is_required = |it: &&CpuFeature| it.policy == FeaturePolicy::Require && !described.is_host();
        let required = cpu.rest.features.iter().filter(is_required);
        lacking.extend(required.map(|it| &*it.name).filter(|name| !map.has_feature(&offered, name)));
        if lacking.is_empty() {
            return Ok(Comparison::Superset);
        }
        let sentence = format!("Host CPU does not provide required features: {}", lacking.join(", "));
        Ok(Comparison::Incompatible(sentence))
    }
}

/// The host's CPU as QEMU offers it, with what the processor has beyond that where it runs the guest itself.
pub(super) fn full_host(caps: &QemuCaps, accel: Accel, map: &CpuMap) -> Option<Decoded> {
    let reported = caps.host_model(accel, Features::All, map)?;
    if accel == Accel::Tcg {
        return Some(reported.clone());
    }
    let mut full = map.decode(&processor::bits(map)?, Purpose::Guest, None)?;
    let offered = map.bits_of_decoded(reported).ok()?;
    for name in map.feature_names().filter(|name| map.has_feature(&offered, name)) {
        match full.features.iter_mut().find(|(known, _)| known == name) {
            Some((_, policy)) => *policy = Policy::Require,
            None => full.features.push((name.to_owned(), Policy::Require)),
        }
    }
    Some(full)
}
