//! `<domainCapabilities>`: what a guest of one emulator, architecture, machine and type may have.
//!
//! Most of it is of one form, a section with lists of words, so the model is that form.

use crate::conf::capabilities::cpu::{Decoded, Policy};
use crate::conf::xml::{Form, Writer};
use crate::util::arch::Arch;

/// The document that `virConnectGetDomainCapabilities` answers.
#[derive(Debug, Clone)]
pub struct DomainCapabilities {
    pub emulator: String,
    /// `kvm` or `qemu`
    pub virt_type: &'static str,
    pub machine: Option<String>,
    pub arch: Arch,
    pub max_vcpus: u32,
    pub os: Os,
    pub cpu: CpuModes,
    pub memory_backing: Section,
    pub devices: Vec<Section>,
    pub features: Vec<Section>,
}

/// `<os>`
#[derive(Debug, Clone, Default)]
pub struct Os {
    /// Kinds of firmware that are found by themselves.
    pub firmware: Vec<&'static str>,
    /// Firmware images on this host.
    pub loaders: Vec<String>,
    pub secure_boot: bool,
}

/// A part that is there with its lists, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: &'static str,
    pub supported: bool,
    pub lists: Vec<List>,
}

/// `<enum>`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    pub name: &'static str,
    pub values: Vec<String>,
}

impl Section {
    pub fn new(name: &'static str, lists: Vec<List>) -> Self {
        Self { name, supported: true, lists }
    }

    /// A feature that has no lists.
    pub fn plain(name: &'static str, supported: bool) -> Self {
        Self { name, supported, lists: Vec::new() }
    }

    fn write(&self, out: &mut Writer) {
        out.element(self.name, |out| {
            out.attribute_str("supported", if self.supported { "yes" } else { "no" });
            if self.supported {
                self.lists.iter().for_each(|list| list.write(out));
            }
        });
    }
}

impl List {
    /// Takes the words whose condition holds.
    pub fn of(name: &'static str, words: &[(bool, &str)]) -> Self {
        let values = words.iter().filter(|(holds, _)| *holds).map(|(_, word)| (*word).to_owned()).collect();
        Self { name, values }
    }

    fn write(&self, out: &mut Writer) {
        out.element("enum", |out| {
            out.attribute_str("name", self.name);
            self.values.iter().for_each(|value| out.text_element("value", value));
        });
    }
}

/// `<cpu>`
#[derive(Debug, Clone, Default)]
pub struct CpuModes {
    /// Whether guests can have the host's CPU, and then whether those can be migrated.
    pub host_passthrough: Option<Migratable>,
    pub maximum: Option<Migratable>,
    pub host_model: Option<HostModel>,
    pub models: Vec<CustomModel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migratable {
    OnOrOff,
    Off,
}

#[derive(Debug, Clone)]
pub struct HostModel {
    pub cpu: Decoded,
    /// Bits of physical addresses that the host has, where guests get as many.
    pub phys_bits: Option<u32>,
}

/// A model that a guest may ask for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomModel {
    pub name: String,
    /// Unknown to QEMU of some architectures.
    pub usable: Option<bool>,
    pub deprecated: bool,
    pub vendor: Option<String>,
    pub canonical: Option<String>,
    pub blockers: Vec<String>,
}

impl DomainCapabilities {
    pub fn to_xml(&self) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("domainCapabilities", |out| {
            out.text_element("path", &self.emulator);
            out.text_element("domain", &self.virt_type.to_owned());
            if let Some(machine) = &self.machine {
                out.text_element("machine", machine);
            }
            out.text_element("arch", &self.arch.to_string());
            if self.max_vcpus > 0 {
                out.element("vcpu", |out| out.attribute("max", &self.max_vcpus));
            }
            Section::plain("iothreads", true).write(out);
            self.os.write(out);
            out.element("cpu", |out| self.cpu.write(out));
            self.memory_backing.write(out);
            out.element("devices", |out| self.devices.iter().for_each(|device| device.write(out)));
            out.element("features", |out| self.features.iter().for_each(|feature| feature.write(out)));
        });
        out.finish()
    }
}

impl Os {
    fn write(&self, out: &mut Writer) {
        let words =
            |name, words: &[&str]| List { name, values: words.iter().map(|word| (*word).into()).collect() };
        out.element("os", |out| {
            out.attribute_str("supported", "yes");
            words("firmware", &self.firmware).write(out);
            out.element("loader", |out| {
                out.attribute_str("supported", "yes");
                self.loaders.iter().for_each(|path| out.text_element("value", path));
                words("type", &["rom", "pflash"]).write(out);
                words("readonly", &["yes", "no"]).write(out);
                words("secure", if self.secure_boot { &["yes", "no"] } else { &["no"] }).write(out);
            });
        });
    }
}

impl CpuModes {
    fn write(&self, out: &mut Writer) {
        write_mode(out, "host-passthrough", "hostPassthroughMigratable", self.host_passthrough);
        write_mode(out, "maximum", "maximumMigratable", self.maximum);
        out.element("mode", |out| {
            out.attribute_str("name", "host-model");
            out.attribute_str("supported", if self.host_model.is_some() { "yes" } else { "no" });
            if let Some(model) = &self.host_model {
                model.write(out);
            }
        });
        out.element("mode", |out| {
            out.attribute_str("name", "custom");
            out.attribute_str("supported", if self.models.is_empty() { "no" } else { "yes" });
            self.models.iter().for_each(|model| model.write(out));
        });
    }
}

fn write_mode(out: &mut Writer, name: &str, list: &'static str, migratable: Option<Migratable>) {
    out.element("mode", |out| {
        out.attribute_str("name", name);
        out.attribute_str("supported", if migratable.is_some() { "yes" } else { "no" });
        if let Some(migratable) = migratable {
            List::of(list, &[(migratable == Migratable::OnOrOff, "on"), (true, "off")]).write(out);
        }
    });
}

impl HostModel {
    fn write(&self, out: &mut Writer) {
        out.element("model", |out| {
            out.attribute_str("fallback", "forbid");
            out.body(&self.cpu.model);
        });
        if let Some(vendor) = &self.cpu.vendor {
            out.text_element("vendor", vendor);
        }
        if let Some(bits) = &self.phys_bits {
            out.element("maxphysaddr", |out| {
                out.attribute_str("mode", "passthrough");
                out.attribute("limit", bits);
            });
        }
        for (name, policy) in &self.cpu.features {
            out.element("feature", |out| {
                let policy = match policy {
                    Policy::Require => "require",
                    Policy::Disable => "disable",
                };
                out.attribute_str("policy", policy);
                out.attribute("name", name);
            });
        }
    }
}

impl CustomModel {
    fn write(&self, out: &mut Writer) {
        out.element("model", |out| {
            let usable = match self.usable {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            out.attribute_str("usable", usable);
            if self.deprecated {
                out.attribute_str("deprecated", "yes");
            }
            out.attribute_str("vendor", self.vendor.as_deref().unwrap_or("unknown"));
            if let Some(canonical) = &self.canonical {
                out.attribute("canonical", canonical);
            }
            out.body(&self.name);
        });
        if !self.blockers.is_empty() {
            out.element("blockers", |out| {
                out.attribute("model", &self.name);
                for blocker in &self.blockers {
                    out.element("feature", |out| out.attribute("name", blocker));
                }
            });
        }
    }
}
