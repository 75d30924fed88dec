//! `<capabilities>`: what a host is, and which guests it can run.
//!
//! Written only: the driver fills these in from the kernel's and QEMU's facts.

pub mod cpu;
pub mod domain;
pub mod host;

use self::host::Host;
use crate::conf::xml::{Form, Writer};
use crate::util::arch::Arch;

/// The document that `virConnectGetCapabilities` answers.
#[derive(Debug, Clone)]
pub struct Capabilities {
    pub host: Host,
    pub guests: Vec<Guest>,
}

/// One architecture that guests can have.
#[derive(Debug, Clone)]
pub struct Guest {
    pub arch: Arch,
    pub emulator: String,
    pub machines: Vec<GuestMachine>,
    pub has_tcg: bool,
    pub has_kvm: bool,
}

/// A machine type under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMachine {
    pub name: String,
    /// What an alias stands for.
    pub canonical: Option<String>,
    pub max_cpus: u32,
    pub deprecated: bool,
}

impl Capabilities {
    pub fn to_xml(&self) -> String {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("capabilities", |out| {
            self.host.write(out);
            self.guests.iter().for_each(|guest| guest.write(out));
        });
        // libvirt parts the sections by blank lines.
        let mut spaced = out.finish();
        for section in ["\n  <host>\n", "\n  <guest>\n", "\n</capabilities>\n"] {
            spaced = spaced.replace(section, &format!("\n{section}"));
        }
        spaced
    }
}

impl Guest {
    fn write(&self, out: &mut Writer) {
        out.element("guest", |out| {
            out.text_element("os_type", &String::from("hvm"));
            out.element("arch", |out| {
                out.attribute_str("name", self.arch.as_str());
                out.text_element("wordsize", &self.arch.bits());
                out.text_element("emulator", &self.emulator);
                self.machines.iter().for_each(|machine| machine.write(out));
                for (supported, name) in [(self.has_tcg, "qemu"), (self.has_kvm, "kvm")] {
                    if supported {
                        out.element("domain", |out| out.attribute_str("type", name));
                    }
                }
            });
            out.element("features", |out| self.write_features(out));
        });
    }

    fn write_features(&self, out: &mut Writer) {
        let switch = |out: &mut Writer, name, toggle| {
            out.element(name, |out| {
                out.attribute_str("default", "on");
                out.attribute_str("toggle", toggle);
            });
        };
        if self.arch == Arch::I686 {
            out.empty("pae");
            out.empty("nonpae");
        }
        if self.arch.is_x86() || matches!(self.arch, Arch::Aarch64 | Arch::Loongarch64) {
            switch(out, "acpi", "yes");
        }
        if self.arch.is_x86() {
            switch(out, "apic", "no");
        }
        out.empty("cpuselection");
        out.empty("deviceboot");
        switch(out, "disksnapshot", "no");
        out.empty("externalSnapshot");
    }
}

impl GuestMachine {
    fn write(&self, out: &mut Writer) {
        out.element("machine", |out| {
            if let Some(canonical) = &self.canonical {
                out.attribute("canonical", canonical);
            }
            if self.max_cpus > 0 {
                out.attribute("maxCpus", &self.max_cpus);
            }
            if self.deprecated {
                out.attribute_str("deprecated", "yes");
            }
            out.body(&self.name);
        });
    }
}
