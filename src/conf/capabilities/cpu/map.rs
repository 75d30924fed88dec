//! libvirt's description of CPU models (`/usr/share/libvirt/cpu_map`), as far as x86 goes.

use std::collections::{BTreeSet, HashMap};

use super::data::{CpuData, Place};
use crate::conf::ConfError;
use crate::conf::xml::{Document, Element, Form, parse_any_base};
use crate::util::bitmap::Bitmap;

/// Why the description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CpuMapError {
    #[error("{file}: {error}")]
    Read { file: String, error: std::io::Error },
    #[error("{file}: {error}")]
    Malformed { file: String, error: ConfError },
}

/// All models and features, in the order of the description: newer models come later.
#[derive(Debug, Clone, Default)]
pub struct CpuMap {
    pub(super) vendors: Vec<(String, CpuData)>,
    pub(super) features: Vec<Feature>,
    pub(super) models: Vec<CpuModel>,
    feature_places: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Feature {
    pub(super) name: String,
    pub(super) data: CpuData,
    pub(super) migratable: bool,
}

/// One model.
#[derive(Debug, Clone)]
pub struct CpuModel {
    pub name: String,
    pub vendor: Option<String>,
    /// The version that the unversioned name stands for.
    pub canonical: Option<String>,
    pub(super) data: CpuData,
    pub(super) signatures: Vec<ModelSignature>,
    /// Whether a host is held against this description of the model, not against QEMU's.
    pub(super) is_complete: bool,
    pub(super) names_hosts: bool,
    pub(super) names_guests: bool,
    /// Features that newer QEMU took out of the model.
    pub(super) removed: Vec<String>,
    /// Features that newer QEMU added to the model.
    pub(super) added: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct ModelSignature {
    family: u32,
    model: u32,
    steppings: Option<Bitmap>,
}

impl CpuModel {
    /// Features that newer QEMU took out of the model.
    pub fn removed(&self) -> &[String] {
        &self.removed
    }

    /// Whether a host is held against this description of the model, not against QEMU's.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub(super) fn has_signature(&self, family: u32, model: u32, stepping: u32) -> bool {
        self.signatures.iter().any(|signature| {
            let steppings = signature.steppings.as_ref();
            (signature.family, signature.model) == (family, model)
                && steppings.is_none_or(|steppings| steppings.contains(stepping as usize))
        })
    }
}

impl CpuMap {
    /// Reads `index.xml` and the files it includes, all through `read`.
    pub fn load(read: impl Fn(&str) -> std::io::Result<String>) -> Result<Self, CpuMapError> {
        let text =
            |file: &str| read(file).map_err(|error| CpuMapError::Read { file: file.to_owned(), error });
        let malformed = |file: &str, error| CpuMapError::Malformed { file: file.to_owned(), error };
        let mut map = Self::default();
        for file in included(&text("index.xml")?).map_err(|error| malformed("index.xml", error))? {
            map.read(&text(&file)?).map_err(|error| malformed(&file, error))?;
        }
        Ok(map)
    }

    pub fn model(&self, name: &str) -> Option<&CpuModel> {
        self.models.iter().find(|model| model.name == name)
    }

    pub fn models(&self) -> impl Iterator<Item = &CpuModel> {
        self.models.iter()
    }

    pub fn feature_names(&self) -> impl Iterator<Item = &str> {
        self.features.iter().map(|feature| feature.name.as_str())
    }

    /// Everywhere that some feature has a bit.
    pub fn places(&self) -> BTreeSet<Place> {
        self.features.iter().flat_map(|feature| feature.data.places()).collect()
    }

    /// Adds a feature's bits; a name that nothing is known of adds none.
    pub fn set_feature(&self, data: &mut CpuData, name: &str) {
        if let Some(feature) = self.feature(name) {
            data.add(&feature.data);
        }
    }

    /// Whether a processor has a feature.
    pub fn has_feature(&self, data: &CpuData, name: &str) -> bool {
        self.feature(name).is_some_and(|feature| data.contains(&feature.data))
    }

    /// Whether the feature is a bit of a model specific register.
    pub fn is_in_register(&self, name: &str) -> bool {
        let mut places = self.feature(name).into_iter().flat_map(|feature| feature.data.places());
        places.any(|place| matches!(place, Place::Msr(_)))
    }

    pub(super) fn feature(&self, name: &str) -> Option<&Feature> {
        self.feature_places.get(name).and_then(|place| self.features.get(*place))
    }

    fn read(&mut self, text: &str) -> Result<(), ConfError> {
        let document = Document::parse(text, Form::INACTIVE)?;
        for element in document.root().children() {
            match element.name() {
                "vendor" => {
                    let mut data = CpuData::default();
                    data.set_vendor(&element.required::<String>("string")?);
                    self.vendors.push((element.required("name")?, data));
                }
                "feature" => {
                    let feature = Feature {
                        name: element.required("name")?,
                        data: bits(element)?,
                        migratable: element.attribute("migratable") != Some("no"),
                    };
                    // Without bits it would be found in every processor.
                    if feature.data.places().next().is_some() {
                        self.feature_places.insert(feature.name.clone(), self.features.len());
                        self.features.push(feature);
                    }
                }
                "model" => self.read_model(element)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_model(&mut self, element: Element<'_>) -> Result<(), ConfError> {
        let name: String = element.required("name")?;
        let decode =
            |purpose| element.child("decode").and_then(|decode| decode.attribute(purpose)) == Some("on");
        let mut model = CpuModel {
            name,
            vendor: None,
            canonical: None,
            data: CpuData::default(),
            signatures: Vec::new(),
            is_complete: false,
            names_hosts: decode("host"),
            names_guests: decode("guest"),
            removed: Vec::new(),
            added: Vec::new(),
        };
        let changes = ["signature", "vendor", "feature"];
        let is_another_name = !element.children().any(|child| changes.contains(&child.name()));
        if let Some(ancestor) = element.child("model") {
            let ancestor: String = ancestor.required("name")?;
            let known = self.models.iter_mut().find(|model| model.name == ancestor);
            let known =
                known.ok_or_else(|| ConfError::internal(format!("CPU model '{ancestor}' not found")))?;
            model.vendor.clone_from(&known.vendor);
            model.signatures.clone_from(&known.signatures);
            model.data = known.data.clone();
            if is_another_name {
                known.canonical = Some(model.name.clone());
            }
            for name in known.removed.clone() {
                if let Some(feature) = self.feature(&name) {
                    model.data.subtract(&feature.data);
                }
            }
        }
        let check = element.child("check").and_then(|check| check.attribute("partial"));
        model.is_complete = check == Some("compat");
        self.read_changes(&mut model, element)?;
        self.models.push(model);
        Ok(())
    }

    fn read_changes(&self, model: &mut CpuModel, element: Element<'_>) -> Result<(), ConfError> {
        let signatures = element.children_named("signature").map(signature);
        let signatures = signatures.collect::<Result<Vec<_>, _>>()?;
        if !signatures.is_empty() {
            model.signatures = signatures;
        }
        if let Some(vendor) = element.child("vendor") {
            model.vendor = Some(vendor.required("name")?);
        }
        for child in element.children_named("feature") {
            let name: String = child.required("name")?;
            if child.attribute("removed") == Some("yes") {
                model.removed.push(name);
            } else if child.attribute("added") == Some("yes") {
                model.added.push(name);
            } else {
                self.set_feature(&mut model.data, &name);
            }
        }
        Ok(())
    }
}

/// The files that the index lists for x86, those in groups too.
fn included(index: &str) -> Result<Vec<String>, ConfError> {
    let document = Document::parse(index, Form::INACTIVE)?;
    let mut files = Vec::new();
    let architectures = document.root().children_named("arch");
    for x86 in architectures.filter(|arch| arch.attribute("name") == Some("x86")) {
        for child in x86.children() {
            let inside: Vec<_> =
                if child.name() == "group" { child.children().collect() } else { vec![child] };
            let names = inside.into_iter().filter(|include| include.name() == "include");
            files.extend(names.filter_map(|include| include.attribute("filename")).map(str::to_owned));
        }
    }
    Ok(files)
}

fn number(element: Element<'_>, name: &str) -> Result<u32, ConfError> {
    let Some(text) = element.attribute(name) else { return Ok(0) };
    let number = parse_any_base(text).and_then(|number: u64| u32::try_from(number).ok());
    number.ok_or_else(|| ConfError::internal(format!("Invalid {}[{name}]: {text}", element.name())))
}

/// The bits that make a feature.
fn bits(feature: Element<'_>) -> Result<CpuData, ConfError> {
    let mut data = CpuData::default();
    for child in feature.children() {
        let place = match child.name() {
            "cpuid" => Place::Cpuid { leaf: number(child, "eax_in")?, subleaf: number(child, "ecx_in")? },
            "msr" => Place::Msr(number(child, "index")?),
            _ => continue,
        };
        let registers =
            [number(child, "eax")?, number(child, "ebx")?, number(child, "ecx")?, number(child, "edx")?];
        data.set(place, registers);
    }
    Ok(data)
}

fn signature(element: Element<'_>) -> Result<ModelSignature, ConfError> {
    let steppings = element.attribute("stepping").map(|text| Bitmap::parse(text, 16)).transpose();
    Ok(ModelSignature {
        family: number(element, "family")?,
        model: number(element, "model")?,
        steppings: steppings.map_err(|error| ConfError::internal(error.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Decoded, Policy, Purpose};
    use super::*;
    use crate::conf::capabilities::host::Signature;

    const INDEX: &str = "<cpus><arch name='x86'><include filename='base'/>\
        <group name='g'><include filename='models'/></group></arch>\
        <arch name='arm'><include filename='gone'/></arch></cpus>";
    const BASE: &str = "<cpus><vendor name='AMD' string='AuthenticAMD'/><vendor name='Intel' string='GenuineIntel'/>\
        <feature name='sse'><cpuid eax_in='1' edx='0x1'/></feature>\
        <feature name='avx'><cpuid eax_in='1' ecx='0x2'/></feature>\
        <feature name='empty'/>\
        <feature name='invtsc' migratable='no'><cpuid eax_in='0x80000007' edx='0x100'/></feature>\
        <feature name='mds-no'><msr index='0x10a' eax='0x20' edx='0x0'/></feature></cpus>";
    const MODELS: &str = "<cpus>\
        <model name='old'><decode host='on' guest='on'/><feature name='sse'/></model>\
        <model name='zen'><decode host='on' guest='on'/><signature family='25' model='17' stepping='1-2'/>\
          <vendor name='AMD'/><feature name='sse'/><feature name='avx'/><feature name='mds-no' removed='yes'/></model>\
        <model name='zen-v1'><decode host='on' guest='off'/><model name='zen'/></model>\
        <model name='core'><decode host='on' guest='on'/><vendor name='Intel'/>\
          <feature name='sse'/><feature name='avx'/><feature name='mds-no'/></model></cpus>";

    fn map() -> CpuMap {
        CpuMap::load(|name| match name {
            "index.xml" => Ok(INDEX.to_owned()),
            "base" => Ok(BASE.to_owned()),
            "models" => Ok(MODELS.to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
        .unwrap()
    }

    fn processor(map: &CpuMap, features: &[&str], stepping: u32) -> CpuData {
        let mut data = CpuData::default();
        data.set_vendor("AuthenticAMD");
        data.set_signature(Signature { family: 25, model: 17, stepping });
        features.iter().for_each(|feature| map.set_feature(&mut data, feature));
        data
    }

    fn said(decoded: Option<Decoded>) -> String {
        let decoded = decoded.unwrap();
        let features = decoded.features.iter().map(|(name, policy)| match policy {
            Policy::Require => format!("+{name}"),
            Policy::Disable => format!("-{name}"),
        });
        format!("{} {}", decoded.model, features.collect::<Vec<_>>().join(""))
    }

    #[test]
    fn the_map_knows_models_versions_and_registers() {
        let map = map();
        assert_eq!(map.model("zen").unwrap().canonical.as_deref(), Some("zen-v1"));
        assert_eq!(map.model("zen-v1").unwrap().vendor.as_deref(), Some("AMD"));
        assert!(map.places().contains(&Place::Msr(0x10a)));
        assert!(!map.is_migratable("invtsc") && map.is_migratable("avx"));
        assert!(CpuMap::load(|_| Err(std::io::ErrorKind::NotFound.into())).is_err());
    }

    #[test]
    fn the_closest_model_of_the_same_vendor_is_found() {
        let map = map();
        let decode = |features: &[&str], stepping, purpose| {
            said(map.decode(&processor(&map, features, stepping), purpose, None))
        };
        // A guest's CPU names what QEMU may have taken out; a host's is never one that lacks something.
        assert_eq!(decode(&["sse", "avx"], 1, Purpose::Guest), "zen -mds-no");
        assert_eq!(decode(&["sse", "avx", "invtsc"], 1, Purpose::Host), "zen-v1 +invtsc");
        assert_eq!(decode(&["sse"], 1, Purpose::Guest), "zen -avx-mds-no");
        assert_eq!(decode(&["sse"], 1, Purpose::Host), "old ");
        assert_eq!(decode(&["sse"], 7, Purpose::Guest), "old ");
    }

    #[test]
    fn a_hypervisor_limits_the_choice_and_blocks_features() {
        let map = map();
        let data = processor(&map, &["sse", "avx"], 1);
        let only_old = |name: &str| (name == "old").then(Vec::new);
        assert_eq!(said(map.decode(&data, Purpose::Guest, Some(&only_old))), "old +avx");
        let blocked = |name: &str| (name == "zen").then(|| vec!["invtsc".to_owned()]);
        assert_eq!(said(map.decode(&data, Purpose::Guest, Some(&blocked))), "zen -invtsc-mds-no");
        assert_eq!(map.decode(&data, Purpose::Guest, Some(&|_: &str| None)), None);
    }
}
