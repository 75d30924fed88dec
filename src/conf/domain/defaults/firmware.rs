//! Which firmware a guest gets: the first of the host's that fits what the definition says of it.
//!
//! ```text
//!   <os firmware='efi'>, features, <loader>, <nvram> ─┐
//!   descriptors of the host, best first ──────────────┴─► loader, template, path of the variables, features, SMM
//! ```

use serde::Deserialize;

use super::{Age, Facts};
use crate::conf::domain::{
    Domain, FirmwareFeature, FirmwareFeatureName, FirmwareFormat, FirmwareKind, Loader, LoaderType, Nvram,
};
use crate::conf::xml::{OnOff, YesNo};
use crate::conf::{ConfError, Result};
use crate::util::arch::Arch;

/// A descriptor as QEMU's `firmware.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Firmware {
    pub interface_types: Vec<String>,
    pub mapping: Mapping,
    pub targets: Vec<Target>,
    pub features: Vec<String>,
}

/// How the image gets into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
pub enum Mapping {
    #[serde(rename_all = "kebab-case")]
    Flash {
        #[serde(default)]
        mode: FlashMode,
        executable: Image,
        nvram_template: Option<Image>,
    },
    Memory {
        filename: String,
    },
    Kernel {
        filename: String,
    },
}

/// Where the variables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlashMode {
    /// In a file of their own.
    #[default]
    Split,
    /// In the same file.
    Combined,
    /// Nowhere.
    Stateless,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Image {
    pub filename: String,
    pub format: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Target {
    pub architecture: String,
    /// Patterns with `*` and `?`.
    pub machines: Vec<String>,
}

/// Pairs that were known before there were descriptors; raw, split.
const KNOWN_PAIRS: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
    ("/usr/share/AAVMF/AAVMF32_CODE.fd", "/usr/share/AAVMF/AAVMF32_VARS.fd"),
];

/// Chooses a firmware. A guest that was defined before keeps its definition when none fits; it does not start.
pub(super) fn complete(domain: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    if domain.os.firmware.is_some() && facts.age == Age::Known {
        // There were only raw images when such definitions were made.
        let usual = domain.os.nvram.as_ref().and_then(|nvram| nvram.format).unwrap_or(FirmwareFormat::Raw);
        domain.os.loader.get_or_insert_default().format.get_or_insert(usual);
    }
    match domain.select_firmware(facts.firmwares, facts.nvram_dir, facts.age) {
        Err(_) if facts.age == Age::Known => Ok(()),
        other => other,
    }
}

impl Domain {
    /// Whether a firmware of the host's is to be looked for.
    pub fn wants_firmware(&self) -> bool {
        let kind = self.os.loader.as_ref().and_then(|loader| loader.kind);
        self.os.firmware.is_some() || kind == Some(LoaderType::Pflash)
    }

    /// Fills in the firmware that fits.
    pub fn select_firmware(&mut self, firmwares: &[Firmware], nvram_dir: &str, age: Age) -> Result<()> {
        self.check_firmware()?;
        if !self.wants_firmware() {
            return Ok(());
        }
        match firmwares.iter().find(|firmware| firmware.fits(self)) {
            Some(firmware) => self.use_firmware(firmware),
            None => match self.os.firmware {
                Some(kind) => {
                    return Err(ConfError::failed(format!(
                        "Unable to find '{kind}' firmware that is compatible with the current configuration"
                    ))
                    .by_qemu_driver());
                }
                None => self.use_known_pair(),
            },
        }
        self.name_nvram(nvram_dir, age);
        Ok(())
    }

    fn use_known_pair(&mut self) {
        let Some(loader) = self.os.loader.as_deref_mut() else { return };
        let plain = loader.readonly != Some(YesNo::No)
            && loader.stateless != Some(YesNo::Yes)
            && !matches!(loader.format, Some(FirmwareFormat::Qcow2));
        let template = KNOWN_PAIRS.iter().find(|(code, _)| plain && loader.path.as_deref() == Some(code));
        loader.format.get_or_insert(FirmwareFormat::Raw);
        if let Some((_, template)) = template {
            loader.readonly = Some(YesNo::Yes);
            let nvram = self.os.nvram.get_or_insert_default();
            nvram.template.get_or_insert_with(|| (*template).into());
            nvram.template_format.get_or_insert(FirmwareFormat::Raw);
        }
    }

    fn use_firmware(&mut self, firmware: &Firmware) {
        let os = &mut self.os;
        match &firmware.mapping {
            Mapping::Flash { mode, executable, nvram_template } => {
                let loader = os.loader.get_or_insert_default();
                loader.kind = Some(LoaderType::Pflash);
                loader.readonly = Some(YesNo::Yes);
                loader.format = executable.known_format();
                loader.path = Some(executable.filename.as_str().into());
                let template = nvram_template.as_ref().filter(|_| *mode == FlashMode::Split);
                // A store of variables that is not on this host cannot be made from a template.
                let remote = os.nvram.as_ref().is_some_and(|nvram| nvram.place.is_remote());
                if *mode == FlashMode::Split && remote {
                    if let Some(nvram) = &mut os.nvram {
                        (nvram.template, nvram.template_format) = (None, None);
                    }
                } else if let Some(template) = template {
                    let nvram = os.nvram.get_or_insert_default();
                    nvram.template = Some(template.filename.as_str().into());
                    nvram.template_format = template.known_format();
                }
            }
            Mapping::Memory { filename } => {
                let loader = os.loader.get_or_insert_default();
                loader.kind = Some(LoaderType::Rom);
                loader.path = Some(filename.as_str().into());
            }
            Mapping::Kernel { filename } => os.kernel = Some(filename.as_str().into()),
        }
        if firmware.has("requires-smm") {
            self.features.smm.get_or_insert_default().state = OnOff::On;
            os.loader.get_or_insert_default().secure = Some(YesNo::Yes);
        }
        let kinds = firmware.interface_types.iter().filter_map(|name| kind_of_interface(name));
        os.firmware = os.firmware.or(kinds.into_iter().next());
        if os.firmware.is_some() {
            self.note_features(firmware);
        }
    }

    fn note_features(&mut self, firmware: &Firmware) {
        let loader = self.os.loader.as_deref();
        let stateful =
            loader.is_some_and(|it| it.kind == Some(LoaderType::Pflash) && it.stateless != Some(YesNo::Yes));
        let has_template = self.os.nvram.as_ref().is_some_and(|nvram| nvram.template.is_some());
        let state = |name: &str| if firmware.has(name) { YesNo::Yes } else { YesNo::No };
        let mut features = Vec::new();
        // What is in variables that were not made from a template is not known.
        if !stateful || has_template {
            let enabled = state("enrolled-keys");
            features.push(FirmwareFeature { enabled, name: FirmwareFeatureName::EnrolledKeys });
        }
        let enabled = state("secure-boot");
        features.push(FirmwareFeature { enabled, name: FirmwareFeatureName::SecureBoot });
        self.os.firmware_features = features;
    }

    /// Says where the variables are kept.
    fn name_nvram(&mut self, directory: &str, age: Age) {
        let Some(loader) = self.os.loader.as_deref() else { return };
        let has_variables = loader.kind == Some(LoaderType::Pflash)
            && loader.readonly == Some(YesNo::Yes)
            && loader.stateless != Some(YesNo::Yes);
        if !has_variables {
            return;
        }
        let named = self.os.nvram.as_ref().is_some_and(|nvram| !nvram.place.is_empty());
        let nvram = self.os.nvram.get_or_insert_default();
        if named {
            nvram.format = nvram.format.or(loader.format);
            return;
        }
        let format = nvram.template_format.or(loader.format);
        let template = nvram.template.as_deref().unwrap_or_default();
        let ending = match format {
            Some(FirmwareFormat::Raw) if age == Age::New && template.ends_with(".raw") => ".raw",
            Some(FirmwareFormat::Raw) => ".fd",
            Some(FirmwareFormat::Qcow2) => ".qcow2",
            None => "",
        };
        let path = format!("{directory}/{}_VARS{ending}", self.name);
        let chosen = Nvram {
            template: nvram.template.take(),
            template_format: nvram.template_format,
            format,
            ..Nvram::default()
        };
        **nvram = chosen;
        nvram.place.path = Some(path.into());
    }
}

fn kind_of_interface(name: &str) -> Option<FirmwareKind> {
    match name {
        "bios" => Some(FirmwareKind::Bios),
        "uefi" => Some(FirmwareKind::Efi),
        _ => None,
    }
}

impl Image {
    fn known_format(&self) -> Option<FirmwareFormat> {
        match self.format.as_str() {
            "raw" => Some(FirmwareFormat::Raw),
            "qcow2" => Some(FirmwareFormat::Qcow2),
            _ => None,
        }
    }
}

impl Firmware {
    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|known| known == feature)
    }

    fn fits(&self, domain: &Domain) -> bool {
        let loader = domain.os.loader.as_deref();
        let wanted = domain.os.firmware.or(match loader.and_then(|loader| loader.kind) {
            Some(LoaderType::Pflash) => Some(FirmwareKind::Efi),
            Some(LoaderType::Rom) => Some(FirmwareKind::Bios),
            None => None,
        });
        self.interface_types.iter().any(|name| wanted.is_some() && kind_of_interface(name) == wanted)
            && self.fits_machine(domain)
            && self.fits_features(domain)
            && self.fits_smm(domain, loader)
            && self.fits_images(domain, loader)
    }

    fn fits_machine(&self, domain: &Domain) -> bool {
        self.runs_on(domain.arch(), domain.machine())
    }

    pub fn runs_on(&self, arch: Arch, machine: &str) -> bool {
        let targets = self.targets.iter().filter(|target| target.architecture == arch.as_str());
        targets.flat_map(|target| &target.machines).any(|pattern| matches(pattern, machine))
    }

    /// Whether guests reach it by this interface, such as `uefi`.
    pub fn has_interface(&self, name: &str) -> bool {
        self.interface_types.iter().any(|interface| interface == name)
    }

    /// Whether it keeps guests from its own memory, as secure boot needs.
    pub fn is_guarded(&self) -> bool {
        self.has("requires-smm")
    }

    /// The image that a definition can name as its loader.
    pub fn loader(&self) -> Option<&str> {
        match &self.mapping {
            Mapping::Flash { executable, .. } => Some(&executable.filename),
            Mapping::Memory { filename } => Some(filename),
            Mapping::Kernel { .. } => None,
        }
    }

    fn fits_features(&self, domain: &Domain) -> bool {
        let pm = domain.pm;
        let asleep = [("acpi-s3", pm.suspend_to_mem), ("acpi-s4", pm.suspend_to_disk)];
        let asked = domain.os.firmware_features.iter().all(|feature| {
            let wanted = feature.enabled == YesNo::Yes;
            self.has(feature.name.as_str()) == wanted
        });
        asked
            && asleep.iter().all(|(name, state)| *state != Some(YesNo::Yes) || self.has(name))
            && domain.launch_security.is_none()
    }

    fn fits_smm(&self, domain: &Domain, loader: Option<&Loader>) -> bool {
        let secure = loader.and_then(|loader| loader.secure);
        if self.has("requires-smm") {
            let off = domain.features.smm.is_some_and(|smm| smm.state == OnOff::Off);
            !off && secure != Some(YesNo::No)
        } else {
            secure != Some(YesNo::Yes)
        }
    }

    fn fits_images(&self, domain: &Domain, loader: Option<&Loader>) -> bool {
        let path = loader.and_then(|loader| loader.path.as_deref());
        let kind = loader.and_then(|loader| loader.kind);
        let readonly = loader.and_then(|loader| loader.readonly);
        match &self.mapping {
            Mapping::Flash { mode, executable, nvram_template } => {
                let stateless = loader.and_then(|loader| loader.stateless) == Some(YesNo::Yes);
                let wanted = if stateless { FlashMode::Stateless } else { FlashMode::Split };
                let template = domain.os.nvram.as_ref().and_then(|nvram| nvram.template.as_deref());
                let has = nvram_template.as_ref();
                let format = loader.and_then(|loader| loader.format);
                path.is_none_or(|path| path == executable.filename)
                    && template.is_none_or(|wanted| has.is_some_and(|has| has.filename == wanted))
                    && kind != Some(LoaderType::Rom)
                    && *mode == wanted
                    && (readonly != Some(YesNo::No) || *mode == FlashMode::Combined)
                    && executable.known_format().is_some()
                    && format.is_none_or(|format| executable.known_format() == Some(format))
                    && has.is_none_or(|template| template.known_format().is_some())
            }
            Mapping::Memory { filename } => {
                path.is_none_or(|path| path == filename)
                    && kind != Some(LoaderType::Pflash)
                    && readonly != Some(YesNo::No)
            }
            Mapping::Kernel { filename } => {
                domain.os.kernel.as_deref().is_none_or(|kernel| kernel == filename)
            }
        }
    }
}

/// Whether `text` is what `pattern` describes, where `*` is any text and `?` any character.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut place) = (0, 0);
    // Where to go on when what followed the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while place < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == text.get(place) => {
                at += 1;
                place += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    at = star_at + 1;
                    place = taken + 1;
                    star = Some((star_at, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).is_none_or(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_of_machines_match_as_in_a_shell() {
        for (pattern, text, fits) in [
            ("pc-q35-*", "pc-q35-10.0", true),
            ("pc-q35-*", "pc-i440fx-10.0", false),
            ("*-4.?", "pc-q35-4.0", true),
            ("*a*b*", "xaxxbx", true),
            ("*a*b", "xaxxbx", false),
            ("q35", "q35", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
