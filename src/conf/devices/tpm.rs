//! `<tpm>`: a trusted platform module.

use super::info::DeviceInfo;
use crate::conf::Result;
use crate::conf::xml::{Element, Form, Part, Writer, YesNo, xml, xml_enum};

xml! {
    pub struct Tpm {
        attr model: Option<TpmModel> = "model";
        child backend: TpmBackend = "backend";
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum TpmModel {
        Tis = "tpm-tis",
        Crb = "tpm-crb",
        Spapr = "tpm-spapr",
        SpaprProxy = "spapr-tpm-proxy",
    }
}

xml! {
    pub enum TpmBackend by "type" {
        /// The host's own.
        "passthrough" => Passthrough(TpmPassthrough),
        /// A process of the daemon's.
        "emulator" => Emulator(Box<TpmEmulator>),
        /// A process of somebody else's.
        "external" => External(TpmExternal),
    }
}

xml! {
    pub struct TpmPassthrough {
        child_attr device: Option<Box<str>> = "device" / "path";
    }
}

xml! {
    pub struct TpmEmulator {
        attr version: Option<TpmVersion> = "version";
        attr persistent_state: Option<YesNo> = "persistent_state";
        attr debug: Option<u32> = "debug";
        child_attr encryption: Option<Box<str>> = "encryption" / "secret";
        child pcr_banks: Option<PcrBanks> = "active_pcr_banks";
        child source: Option<TpmSource> = "source";
        child profile: Option<TpmProfile> = "profile";
        /// The socket of a running guest's.
        skip socket: Option<Box<str>>;
    }
}

xml_enum! {
    pub enum TpmVersion {
        V1_2 = "1.2",
        V2_0 = "2.0",
    }
}

xml_enum! {
    pub enum PcrBank {
        Sha1 = "sha1",
        Sha256 = "sha256",
        Sha384 = "sha384",
        Sha512 = "sha512",
    }
}

/// Which algorithms measure, in the order of the words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PcrBanks(pub Vec<PcrBank>);

impl Part for PcrBanks {
    fn read(element: Element<'_>) -> Result<Self> {
        let there = |bank: &PcrBank| element.child(bank.as_str()).is_some();
        Ok(Self(PcrBank::ALL.iter().copied().filter(there).collect()))
    }

    fn write(&self, out: &mut Writer, name: &str) {
        if !self.0.is_empty() {
            out.element(name, |out| self.0.iter().for_each(|bank| out.element(bank.as_str(), |_| {})));
        }
    }
}

xml! {
    /// Where the module's state is kept.
    pub struct TpmSource {
        attr kind: TpmSourceKind = "type";
        attr path: Option<Box<str>> = "path";
    }
}

xml_enum! {
    pub enum TpmSourceKind {
        File = "file",
        Dir = "dir",
    }
}

xml! {
    pub struct TpmProfile {
        attr source: Option<Box<str>> = "source";
        attr remove_disabled: Option<RemoveDisabled> = "removeDisabled";
        attr name: Option<Box<str>> = "name";
    }
}

xml_enum! {
    pub enum RemoveDisabled {
        Check = "check",
        FipsHost = "fips-host",
    }
}

xml! {
    pub struct TpmExternal {
        child source: Option<TpmSocket> = "source";
    }
}

/// The socket of a module that somebody else runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmSocket {
    pub path: Option<Box<str>>,
}

impl Part for TpmSocket {
    fn read(element: Element<'_>) -> Result<Self> {
        Ok(Self { path: element.value("path")? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute_str("type", "unix");
        out.attribute_str("mode", "connect");
        if let Some(path) = &self.path {
            out.attribute("path", path);
        }
    }
}

impl TpmProfile {
    /// Whether a reader learns anything from it.
    pub fn is_written(&self, form: Form) -> bool {
        self.source.is_some() || (self.name.is_some() && form.contains(Form::LIVE))
    }
}
