//! Elements that are kept and printed back without being understood.
//!
//! Kinds of devices that the daemon cannot start yet are part of a definition all the same: a client that
//! defines them must find them again. They keep their text; starting such a guest is refused by name.

use crate::conf::Result;
use crate::conf::xml::{Content, Element, Part, Writer};

/// An element without its name: that is the field's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Raw {
    attributes: Vec<(Box<str>, Box<str>)>,
    children: Vec<(Box<str>, Raw)>,
    /// The text, where there are no children.
    text: Option<Box<str>>,
}

impl Raw {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    pub(super) fn set_attribute(&mut self, name: &str, value: &str) {
        self.forget_attributes(&[name]);
        self.attributes.push((name.into(), value.into()));
    }

    /// Drops attributes that a model keeps itself.
    pub(super) fn forget_attributes(&mut self, names: &[&str]) {
        self.attributes.retain(|(key, _)| !names.contains(&&**key));
    }

    pub fn children_named(&self, name: &str) -> impl Iterator<Item = &Raw> {
        self.children.iter().filter(move |(key, _)| **key == *name).map(|(_, child)| child)
    }

    /// What stands in it where no elements do.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref().map(str::trim)
    }

    pub fn child(&self, name: &str) -> Option<&Raw> {
        self.children.iter().find(|(key, _)| **key == *name).map(|(_, child)| child)
    }
}

impl Part for Raw {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut raw = Self::default();
        for (name, value) in element.attributes() {
            raw.attributes.push((name.into(), value.into()));
        }
        let mut text = String::new();
        for content in element.content() {
            match content {
                // The tree's depth is bounded, so is this recursion.
                Content::Element(child) => {
                    raw.children.push((child.qualified_name().into(), Self::read(child)?))
                }
                Content::Text(piece) | Content::CData(piece) => text.push_str(piece),
                Content::Comment(_) | Content::Instruction(_) => {}
            }
        }
        if raw.children.is_empty() && !text.trim().is_empty() {
            raw.text = Some(text.into());
        }
        Ok(raw)
    }

    fn write_attributes(&self, out: &mut Writer) {
        for (name, value) in &self.attributes {
            out.attribute(name, value);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        for (name, child) in &self.children {
            Part::write(child, out, name);
        }
        if let Some(text) = &self.text {
            out.body(text);
        }
    }
}
