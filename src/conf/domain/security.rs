//! Labels that confine the guest, and memory the host cannot read.

use crate::conf::xml::{Element, Form, Hex, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    pub enum SeclabelType {
        None = "none",
        Dynamic = "dynamic",
        Static = "static",
    }
}

/// `<seclabel>`
#[derive(Debug, Clone, PartialEq)]
pub struct Seclabel {
    pub kind: SeclabelType,
    pub model: Option<Box<str>>,
    pub relabel: bool,
    pub label: Option<Box<str>>,
    pub imagelabel: Option<Box<str>>,
    pub baselabel: Option<Box<str>>,
    /// Made by a security driver, not by the user: older libvirt must not see it.
    pub implicit: bool,
}

impl Part for Seclabel {
    fn read(element: Element<'_>) -> Result<Self> {
        let live = element.form().contains(Form::LIVE);
        let kind = element.value("type")?.unwrap_or(SeclabelType::Dynamic);
        let relabel = element.value::<YesNo>("relabel")?.map_or(kind == SeclabelType::Dynamic, bool::from);
        match (kind, relabel) {
            (SeclabelType::Dynamic, false) => {
                return Err(ConfError::unsupported("dynamic label type must use resource relabeling"));
            }
            (SeclabelType::None, true) => {
                let message = "resource relabeling is not compatible with 'none' label type";
                return Err(ConfError::unsupported(message));
            }
            _ => {}
        }
        let text = |name: &str| -> Option<Box<str>> {
            element.child(name).map(Element::text).filter(|text| !text.is_empty()).map(Into::into)
        };
        let mut label = Self {
            kind,
            model: element.value("model")?,
            relabel,
            label: None,
            imagelabel: None,
            baselabel: None,
            implicit: false,
        };
        if label.model.as_deref() == Some("none") {
            (label.kind, label.relabel) = (SeclabelType::None, false);
            return Ok(label);
        }
        if kind == SeclabelType::Static || (live && kind != SeclabelType::None) {
            label.label = Some(text("label").ok_or_else(|| ConfError::xml("security label is missing"))?);
        }
        if relabel && live && kind != SeclabelType::None {
            label.imagelabel =
                Some(text("imagelabel").ok_or_else(|| ConfError::xml("security imagelabel is missing"))?);
        }
        if kind == SeclabelType::Dynamic {
            label.baselabel = text("baselabel");
        }
        Ok(label)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.kind);
        if let Some(model) = &self.model {
            out.attribute("model", model);
        }
        if self.kind != SeclabelType::None {
            out.attribute("relabel", if self.relabel { &YesNo::Yes } else { &YesNo::No });
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if self.kind == SeclabelType::None {
            return;
        }
        let texts = [
            ("label", &self.label, true),
            ("imagelabel", &self.imagelabel, self.relabel),
            ("baselabel", &self.baselabel, self.kind == SeclabelType::Dynamic),
        ];
        for (name, text, shown) in texts {
            if let (Some(text), true) = (text, shown) {
                out.text_element(name, text);
            }
        }
    }

    fn write(&self, out: &mut Writer, name: &str) {
        let old_enough = !matches!(self.model.as_deref(), Some("dac" | "none"));
        if self.implicit && !old_enough && out.form().contains(Form::MIGRATABLE) {
            return;
        }
        out.element(name, |out| {
            self.write_attributes(out);
            self.write_children(out);
        });
    }
}

xml! {
    /// A key wrapping cipher of s390.
    pub struct Cipher {
        attr name: CipherName = "name";
        attr state: OnOff = "state";
    }
}

xml_enum! {
    pub enum CipherName {
        Aes = "aes",
        Dea = "dea",
    }
}

xml! {
    /// Memory encryption.
    pub enum LaunchSecurity by "type" {
        "sev" => Sev(Box<Sev>),
        "sev-snp" => SevSnp(Box<SevSnp>),
        "s390-pv" => S390Pv,
    }
}

xml! {
    pub struct SevCommon {
        attr kernel_hashes: Option<YesNo> = "kernelHashes";
        text cbitpos: Option<u32> = "cbitpos";
        text reduced_phys_bits: Option<u32> = "reducedPhysBits";
    }
}

xml! {
    pub struct Sev {
        flat common: SevCommon;
        text policy: Hex<4> = "policy";
        text dh_cert: Option<Box<str>> = "dhCert";
        text session: Option<Box<str>> = "session";
    }
}

xml! {
    pub struct SevSnp {
        flat common: SevCommon;
        attr author_key: Option<YesNo> = "authorKey";
        attr vcek: Option<YesNo> = "vcek";
        text policy: crate::conf::xml::Hex<8> = "policy";
        text guest_visible_workarounds: Option<Box<str>> = "guestVisibleWorkarounds";
        text id_block: Option<Box<str>> = "idBlock";
        text id_auth: Option<Box<str>> = "idAuth";
        text host_data: Option<Box<str>> = "hostData";
    }
}
