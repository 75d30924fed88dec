//! `<secret>`: what a passphrase is for. The value itself is never part of it.

use crate::conf::xml::{Document, Element, Form, Value as _, Writer, YesNo, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

xml_enum! {
    /// What uses a secret, in the order of `virSecretUsageType`.
    pub enum UsageType {
        None = "none",
        Volume = "volume",
        Ceph = "ceph",
        Iscsi = "iscsi",
        Tls = "tls",
        Vtpm = "vtpm",
    }
}

impl UsageType {
    /// libvirt's number.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The element that names the user, and what libvirt calls both when it is missing.
    fn subject(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::None => return None,
            Self::Volume => ("volume", "volume usage specified, but volume path is missing"),
            Self::Ceph => ("name", "Ceph usage specified, but name is missing"),
            Self::Iscsi => ("target", "iSCSI usage specified, but target is missing"),
            Self::Tls => ("name", "TLS usage specified, but name is missing"),
            Self::Vtpm => ("name", "vTPM usage specified, but name is missing"),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub uuid: Uuid,
    pub kept: Kept,
    pub shown: Shown,
    pub description: Option<Box<str>>,
    pub usage: UsageType,
    /// What of that type uses it. Empty for no type.
    pub usage_id: Box<str>,
}

/// `ephemeral`: whether the value survives the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    InMemory,
    OnDisk,
}

/// `private`: whether clients get the value back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    ToNobody,
    ToWriters,
}

impl Secret {
    /// Reads a definition; `fresh` is its uuid if it has none.
    pub fn parse(text: &str, fresh: Uuid) -> Result<Self> {
        let document = Document::parse(text, Form::INACTIVE)?;
        let element = document.root().expect_root("secret")?;
        let kept = if flag(element, "ephemeral")? { Kept::InMemory } else { Kept::OnDisk };
        let shown = if flag(element, "private")? { Shown::ToNobody } else { Shown::ToWriters };
        let text = |name: &str| element.child(name).map(|child| child.text()).filter(|text| !text.is_empty());
        let uuid = match text("uuid") {
            Some(text) => text.parse().map_err(|_| ConfError::internal("malformed uuid element"))?,
            None => fresh,
        };
        let (usage, usage_id) = read_usage(element)?;
        let description = text("description").map(|text| (*text).into());
        Ok(Self { uuid, kept, shown, description, usage, usage_id })
    }

    pub fn to_xml(&self) -> String {
        let word = |yes| if yes { YesNo::Yes } else { YesNo::No };
        let mut out = Writer::new(Form::INACTIVE);
        out.element("secret", |out| {
            out.attribute("ephemeral", &word(self.kept == Kept::InMemory));
            out.attribute("private", &word(self.shown == Shown::ToNobody));
            out.text_element("uuid", &self.uuid);
            if let Some(description) = &self.description {
                out.text_element("description", description);
            }
            if let Some((subject, _)) = self.usage.subject() {
                out.element("usage", |out| {
                    out.attribute("type", &self.usage);
                    out.text_element(subject, &self.usage_id);
                });
            }
        });
        out.finish()
    }
}

fn flag(element: Element<'_>, name: &str) -> Result<bool> {
    match element.attribute(name).filter(|word| !word.is_empty()) {
        None => Ok(false),
        Some(word) => match YesNo::parse(word) {
            Some(word) => Ok(word.into()),
            None => Err(ConfError::xml(format!("invalid value of '{name}'"))),
        },
    }
}

fn read_usage(element: Element<'_>) -> Result<(UsageType, Box<str>)> {
    let Some(usage) = element.child("usage") else { return Ok((UsageType::None, Box::default())) };
    let kind: UsageType = usage.required("type")?;
    let Some((subject, missing)) = kind.subject() else { return Ok((kind, Box::default())) };
    let id = usage.child(subject).map(|child| child.text()).filter(|text| !text.is_empty());
    let id = id.ok_or_else(|| ConfError::internal(missing))?;
    Ok((kind, (*id).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f";

    #[test]
    fn a_secret_prints_as_libvirt_prints_it() {
        let text = format!(
            "<secret private='yes'><description>a &amp; b</description><uuid>{UUID}</uuid>\
             <usage type='ceph'><name>client.x secret</name></usage></secret>"
        );
        let secret = Secret::parse(&text, Uuid([1; 16])).unwrap();
        assert_eq!(
            secret.to_xml(),
            format!(
                "<secret ephemeral='no' private='yes'>\n  <uuid>{UUID}</uuid>\n  <description>a &amp; b</description>\n  \
                 <usage type='ceph'>\n    <name>client.x secret</name>\n  </usage>\n</secret>\n"
            )
        );
        assert_eq!(Secret::parse(&secret.to_xml(), Uuid([1; 16])).unwrap(), secret);
        assert_eq!(Secret::parse("<secret/>", Uuid([1; 16])).unwrap().uuid, Uuid([1; 16]));
    }

    #[test]
    fn what_is_no_secret_is_refused_in_libvirts_words() {
        let cases = [
            ("<secret ephemeral='maybe'/>", "invalid value of 'ephemeral'"),
            ("<secret><uuid>x</uuid></secret>", "malformed uuid element"),
            ("<secret><usage type='tls'/></secret>", "TLS usage specified, but name is missing"),
            ("<secret><usage/></secret>", "Missing required attribute 'type' in element 'usage'"),
            ("<secrets/>", "expecting root element of 'secret', not 'secrets'"),
        ];
        for (text, sentence) in cases {
            assert_eq!(Secret::parse(text, Uuid([1; 16])).unwrap_err().message, sentence, "{text}");
        }
    }
}
