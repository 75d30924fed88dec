//! A CPU as a client describes it to have it compared: a host's, which names its architecture, or a guest's.

use super::CpuError;
use crate::conf::domain::{Cpu, CpuFeature, CpuMode, FeaturePolicy, schema};
use crate::conf::xml::{Document, Element, Form, Part, YesNo};
use crate::conf::{ConfError, Result};
use crate::util::arch::Arch;

/// Which of the two a text has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Host,
    /// The text itself tells.
    Either,
}

/// A description that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct DescribedCpu {
    /// Known of a host's CPU only. What such a CPU has, it has: its features have no policy.
    pub arch: Option<Arch>,
    pub cpu: Cpu,
}

/// As much of a description as a comparison needs.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    pub arch: Option<Arch>,
    pub cpu: &'a Cpu,
}

impl<'a> Described<'a> {
    pub fn guest(cpu: &'a Cpu) -> Self {
        Self { arch: None, cpu }
    }

    /// Whether it describes a host.
    pub fn is_host(self) -> bool {
        self.arch.is_some()
    }
}

impl DescribedCpu {
    pub fn parse(text: &str, wanted: Wanted) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE).map_err(ConfError::by_cpu_parser)?;
        let root = document.root();
        if root.qualified_name() != "cpu" {
            let sentence = "XML does not contain expected 'cpu' element";
            return Err(ConfError::xml(sentence).by_cpu_parser());
        }
        if wanted == Wanted::Either && root.child("arch").is_none() {
            return Ok(Self { arch: None, cpu: Cpu::read(root)? });
        }
        if wanted == Wanted::Either && root.attribute("match").is_some() {
            let sentence = "'arch' element cannot be used inside 'cpu' element with 'match' attribute'";
            return Err(ConfError::xml(sentence).by_cpu_parser());
        }
        let (arch, cpu) = read_host(root)?;
        Ok(Self { arch: Some(arch), cpu })
    }

    /// As [`Self::parse`], of a text without names that nobody knows.
    pub fn parse_strictly(text: &str, wanted: Wanted) -> Result<Self> {
        schema::check_cpu(text)?;
        Self::parse(text, wanted)
    }

    pub fn described(&self) -> Described<'_> {
        Described { arch: self.arch, cpu: &self.cpu }
    }

    /// The CPUs that a client wants the common denominator of.
    pub fn parse_list<T: AsRef<str>>(texts: &[T], wanted: Wanted) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::parse(text.as_ref(), wanted)).collect()
    }
}

/// Finds the first description that names no model.
pub fn check_models(cpus: &[DescribedCpu]) -> Result<(), CpuError> {
    match cpus.iter().position(|described| described.cpu.model.is_none()) {
        Some(index) => Err(CpuError::NoModel(index)),
        None => Ok(()),
    }
}

fn read_host(root: Element<'_>) -> Result<(Arch, Cpu)> {
    let xml = |sentence: &str| ConfError::xml(sentence.to_owned()).by_cpu_parser();
    let unsupported = |sentence: String| ConfError::unsupported(sentence).by_cpu_parser();
    if root.attribute("mode").is_some() {
        return Err(unsupported("Attribute mode is only allowed for guest CPU".to_owned()));
    }
    if root.attribute("migratable").is_some() {
        let sentence = "Attribute migratable is only allowed for 'host-passthrough' / 'maximum' CPU mode";
        return Err(unsupported(sentence.to_owned()));
    }
    let text = |name| root.child(name).map(Element::text).filter(|text| !text.is_empty());
    let arch = text("arch").ok_or_else(|| xml("Missing CPU architecture"))?;
    let arch = arch.parse().map_err(|_| unsupported(format!("Unknown architecture {arch}")))?;
    check_numbers(root)?;
    let model = text("model").ok_or_else(|| xml("Missing CPU model name"))?;
    let mut cpu = Cpu { mode: CpuMode::Custom, model: Some(model.into()), ..Cpu::default() };
    cpu.rest.vendor = text("vendor").map(Into::into);
    cpu.rest.topology = root.child("topology").map(Part::read).transpose()?;
    for feature in root.children_named("feature") {
        let name = feature.attribute("name").unwrap_or_default().into();
        cpu.rest.features.push(CpuFeature { policy: FeaturePolicy::Require, name });
    }
    cpu.rest.cache = root.child("cache").map(Part::read).transpose()?;
    cpu.rest.maxphysaddr = root.child("maxphysaddr").map(Part::read).transpose()?;
    cpu.check_rest()?;
    Ok((arch, cpu))
}

/// Numbers that a host has and that nothing is made of here: they have to be numbers all the same.
fn check_numbers(root: Element<'_>) -> Result<()> {
    let version = root.child("microcode").and_then(|microcode| microcode.attribute("version"));
    if version.is_some_and(|version| version.parse::<u32>().is_err()) {
        return Err(ConfError::unsupported("invalid microcode version").by_cpu_parser());
    }
    if let Some(signature) = root.child("signature") {
        let family: u32 = signature.required("family")?;
        if family == 0 {
            return Err(ConfError::zero_attribute("family", "signature"));
        }
        signature.required::<u32>("model")?;
        signature.required::<u32>("stepping")?;
    }
    let mut counters = root.children_named("counter");
    if let Some(counter) = counters.find(|counter| counter.attribute("name") == Some("tsc")) {
        counter.required::<u64>("frequency")?;
        counter.value::<YesNo>("scaling")?;
    }
    Ok(())
}
