//! From text to models and back.
//!
//! ```text
//!   text ──Document::parse──► Document / Element ──Part::read──► model
//!   text ◄──────────────────── Writer ◄────────────Part::write── model
//! ```
//!
//! [`Document`] is an element tree that borrows from the text; [`crate::conf::xml::xml!`] makes a
//! [`Part`] out of one line per field; [`crate::conf::xml::xml_enum!`] makes a [`Value`] out of a list
//! of words. [`Form`] says which of an object's forms is read or written.

mod fields;
mod metadata;
mod model;
mod reader;
mod tree;
mod value;
mod writer;

pub(crate) use fields::read_body;
pub use fields::{AttrField, ChildField, Part, TextField};
pub use metadata::Metadata;
pub(crate) use model::{xml, xml_enum};
pub use tree::{Content, Document, Element};
pub(crate) use value::parse_any_base;
pub use value::{Dec, Hex, OnOff, Place, Value, YesNo};
pub use writer::Writer;

use super::{ConfError, Result};

bitflags::bitflags! {
    /// Which form of an object is read or written; none set: the inactive definition, without secrets.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Form: u8 {
        /// What a running guest adds: ids, aliases, host-side names.
        const LIVE = 1;
        /// With passwords and keys (`VIR_DOMAIN_XML_SECURE`).
        const SECURE = 2;
        /// Without what older libvirt would not understand (`VIR_DOMAIN_XML_MIGRATABLE`).
        const MIGRATABLE = 4;
        /// The daemon's own status file.
        const STATUS = 8;
    }
}

impl Form {
    pub const INACTIVE: Self = Self::empty();
}

/// What a definition file starts with; see [`Element::expect_root`].
impl Element<'_> {
    /// Refuses another root element the way libvirt does.
    pub fn expect_root(self, name: &str) -> Result<Self> {
        if self.name() == name {
            return Ok(self);
        }
        let found = self.name();
        let refusal = ConfError::xml(format!("expecting root element of '{name}', not '{found}'"));
        Err(refusal.by_xml_parser())
    }
}

/// Reads a text whose root element is `name`.
pub fn read_document<T: Part>(text: &str, name: &str, form: Form) -> Result<T> {
    let document = Document::parse(text, form)?;
    T::read(document.root().expect_root(name)?)
}

/// Writes `part` as element `name` and everything in it.
pub fn write_document<T: Part>(part: &T, name: &str, form: Form) -> String {
    let mut out = Writer::new(form);
    part.write(&mut out, name);
    out.finish()
}
