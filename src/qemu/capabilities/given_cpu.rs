//! The CPU that a started QEMU really gives its guest.
//!
//! ```text
//! start ── known for this machine, CPU and topology? ──yes──▶ remembered bits
//!                        │ no                                      ▲
//!                        ▼                                         │
//!              three questions in one write ───────────────────────┘
//! ```
//!
//! QEMU answers the bits of CPUID in one piece and the names of what it took away in another; what the model
//! specific registers hold is in neither, but in the expansion of what it was asked for. All of it depends on
//! the binary, the host and four arguments of the command line, so it is asked once for each of those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::{QemuCaps, feature_from_qemu};
use crate::conf::capabilities::cpu::{CpuData, CpuMap, GivenCpu, Place};
use crate::qemu::monitor::{
    CpuFeatureWords, ExpandCpuModel, FeatureWord, Monitor, MonitorError, UnavailableFeatures,
};

/// Beyond this many kinds of guests, what is known is thrown away.
const MAX_KNOWN: usize = 256;

/// The arguments that decide what CPU a guest gets.
const DECIDING: [&str; 4] = ["-machine", "-accel", "-cpu", "-smp"];

/// What started guests have been given so far; as old as the knowledge about their binary.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenCpus {
    known: Arc<Mutex<HashMap<CpuArguments, Arc<GivenCpu>>>>,
}

/// The part of a command line that decides what CPU the guest gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuArguments {
    all: Vec<String>,
    cpu: Option<String>,
}

impl CpuArguments {
    pub fn of(args: &[String]) -> Self {
        let mut found = Self::default();
        for pair in args.windows(2) {
            let [name, value] = pair else { continue };
            if DECIDING.contains(&name.as_str()) {
                found.all.extend([name.clone(), value.clone()]);
                if name == "-cpu" {
                    found.cpu = Some(value.clone());
                }
            }
        }
        found
    }

    /// The model and its properties, as QMP has them.
    fn model(&self) -> Option<Value> {
        let mut parts = self.cpu.as_deref()?.split(',');
        let name = parts.next()?;
        let mut props = Map::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, "on"));
            let value = match value {
                "on" => Value::from(true),
                "off" => Value::from(false),
                text => number(text).map_or_else(|| Value::from(text), Value::from),
            };
            props.insert(name.to_owned(), value);
        }
        Some(json!({ "name": name, "props": props }))
    }
}

/// A number as `-cpu` takes it, also `0x1fff`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl QemuCaps {
    /// Asks a QEMU that was started with `arguments` what CPU it gives its guest, unless that is known.
    /// `qom_path` is that of the first vCPU.
    pub async fn given_cpu(
        &self,
        monitor: &Monitor,
        arguments: &CpuArguments,
        qom_path: &str,
        map: &CpuMap,
    ) -> Result<Arc<GivenCpu>, MonitorError> {
        if let Some(known) = self.given.known().get(arguments) {
            return Ok(Arc::clone(known));
        }
        let path = qom_path.to_owned();
        let words = monitor.submit(CpuFeatureWords { path: path.clone(), property: "feature-words" });
        let lost = monitor.submit(UnavailableFeatures { path, property: "unavailable-features" });
        let wanted = arguments.model().map(|model| monitor.submit(ExpandCpuModel { r#type: "full", model }));
        let (words, lost) = (words.reply().await?, lost.reply().await?);
        let mut wanted = match wanted {
            Some(wanted) => wanted.reply().await?.model.props,
            None => Map::new(),
        };
        lost.iter().for_each(|name| drop(wanted.remove(name)));

        let mut given = GivenCpu::default();
        words.iter().for_each(|word| add(&mut given.enabled, word));
        let name = |name| feature_from_qemu(self.arch, name);
        let wanted = wanted.iter().filter(|(_, value)| **value == true).map(|(qemu, _)| name(qemu));
        wanted.filter(|name| map.is_in_register(name)).for_each(|name| {
            map.set_feature(&mut given.enabled, name);
        });
        lost.iter().for_each(|qemu| map.set_feature(&mut given.disabled, name(qemu)));

        let given = Arc::new(given);
        let mut known = self.given.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(arguments.clone(), Arc::clone(&given));
        Ok(given)
    }
}

impl GivenCpus {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<CpuArguments, Arc<GivenCpu>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(data: &mut CpuData, word: &FeatureWord) {
    let place =
        Place::Cpuid { leaf: word.cpuid_input_eax, subleaf: word.cpuid_input_ecx.unwrap_or_default() };
    let bits = match word.cpuid_register.as_str() {
        "EAX" => [word.features, 0, 0, 0],
        "EBX" => [0, word.features, 0, 0],
        "ECX" => [0, 0, word.features, 0],
        "EDX" => [0, 0, 0, word.features],
        _ => return,
    };
    data.set(place, bits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_arguments_decide_and_the_last_cpu_counts() {
        let line = [
            "-name",
            "x",
            "-cpu",
            "EPYC",
            "-smp",
            "2",
            "-cpu",
            "qemu64,tsc-frequency=7,hv-spinlocks=0x1fff,avx=on,vmx=off",
        ];
        let arguments = CpuArguments::of(&line.map(str::to_owned));
        assert_eq!(arguments.all.len(), 6);
        let props = json!({ "tsc-frequency": 7, "hv-spinlocks": 8191, "avx": true, "vmx": false });
        assert_eq!(arguments.model(), Some(json!({ "name": "qemu64", "props": props })));
        assert_eq!(CpuArguments::of(&["-cpu".to_owned()]).model(), None);
    }
}
