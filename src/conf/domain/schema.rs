//! Names that nobody knows: what a client wants refused that asks for validation.
//!
//! Reading a definition drops unknown elements and attributes, as libvirt does. With the VALIDATE flags libvirt
//! looks at the text first, by its schema. We look at names only, by a table of what the schema allows where;
//! values are checked when they are read. So a text that libvirt takes is never refused here.

use std::collections::HashMap;

use crate::conf::xml::{Document, Element, Form};
use crate::conf::{ConfError, ErrorKind, Result};

const TABLE: &str = include_str!("schema.txt");
/// Elements that drivers add below `<domain>` live in namespaces that begin so.
const DRIVER_NAMESPACES: &str = "http://libvirt.org/schemas/domain/";

/// Refuses a `<domain>` with an element or an attribute that has no meaning where it stands.
pub fn check(text: &str) -> Result<()> {
    let document = Document::parse(text, Form::INACTIVE)?;
    let root = document.root().expect_root("domain")?;
    Schema::read().check("", root)
}

/// As [`check`] for a `<cpu>` that stands alone: a host's, which names its architecture, or a guest's.
pub fn check_cpu(text: &str) -> Result<()> {
    let document = Document::parse(text, Form::INACTIVE).map_err(ConfError::by_cpu_parser)?;
    let root = document.root();
    let parent = if root.child("arch").is_some() { "host" } else { "domain" };
    Schema::read().check(parent, root)
}

/// Attributes and children by `PARENT/ELEMENT`.
struct Schema {
    rows: HashMap<&'static str, &'static str>,
}

impl Schema {
    fn read() -> Self {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        Self { rows: lines.filter_map(|line| line.split_once(':')).collect() }
    }

    fn check(&self, parent: &str, element: Element<'_>) -> Result<()> {
        let name = element.qualified_name();
        // A name that the parent has and that has no row has nothing in it.
        let words = self.rows.get(format!("{parent}/{name}").as_str()).copied().unwrap_or_default();
        let has = |wanted: &str| words.split_ascii_whitespace().any(|word| word == wanted);
        for (attribute, _) in element.attributes() {
            let is_declaration = attribute == "xmlns" || attribute.starts_with("xmlns:");
            if !is_declaration && !has(&format!("@{attribute}")) {
                return unknown(format!("unknown attribute '{attribute}' in element '{name}'"));
            }
        }
        if has("*") {
            return Ok(());
        }
        for child in element.children() {
            match child.namespace().filter(|uri| Some(*uri) != element.namespace()) {
                Some(uri) if name == "domain" && uri.starts_with(DRIVER_NAMESPACES) => {}
                None if has(child.qualified_name()) => self.check(name, child)?,
                _ => {
                    let child = child.qualified_name();
                    return unknown(format!("unknown element '{child}' in element '{name}'"));
                }
            }
        }
        Ok(())
    }
}

fn unknown(message: String) -> Result<()> {
    Err(ConfError::new(ErrorKind::InvalidSchema, message).by_xml_parser())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::conf::domain::defaults::tests::corpus;

    /// What the corpus has that libvirt's schema refuses as well.
    const REFUSED: &[(&str, &str)] =
        &[("unknown-elements", "unknown element 'f:foreign' in element 'domain'")];

    #[test]
    fn what_libvirt_takes_is_known() {
        for case in corpus() {
            let name = case.file_name().unwrap().to_str().unwrap();
            for file in ["input.xml", "inactive.xml", "live.xml"] {
                let Ok(text) = fs::read_to_string(case.join(file)) else { continue };
                let refused = check(&text).err().map(|error| error.message);
                let expected = REFUSED.iter().find(|(case, _)| *case == name && file == "input.xml");
                assert_eq!(refused.as_deref(), expected.map(|(_, why)| *why), "{name}/{file}");
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_where_they_stand() {
        for (devices, sentence) in [
            ("<disc/>", "unknown element 'disc' in element 'devices'"),
            ("<disk typo='1'/>", "unknown attribute 'typo' in element 'disk'"),
            (
                "<disk><target dev='vda' chassis='1'/></disk>",
                "unknown attribute 'chassis' in element 'target'",
            ),
            ("<x:disk xmlns:x='urn:x'/>", "unknown element 'x:disk' in element 'devices'"),
        ] {
            let text = format!("<domain type='kvm'><devices>{devices}</devices></domain>");
            let error = check(&text).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidSchema, sentence));
        }
        let known = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><metadata><a:b xmlns:a='urn:a' c='d'><e/></a:b>\
                     </metadata><qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>";
        assert_eq!(check(known), Ok(()));
    }
}
