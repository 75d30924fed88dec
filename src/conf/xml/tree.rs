//! The element tree of one text.
//!
//! Nodes live in one vector in document order, attributes in a second one; both borrow from the text,
//! so parsing a definition allocates a handful of times. An [`Element`] is a reference into the tree,
//! cheap to copy.

use std::borrow::Cow;

use super::{Form, Place, Value, reader};
use crate::conf::{ConfError, Result};

/// "No node": the tree is bounded far below this.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Node<'t> {
    pub kind: NodeKind<'t>,
    pub parent: u32,
    pub next: u32,
}

#[derive(Debug)]
pub(super) enum NodeKind<'t> {
    Element { name: &'t str, first_child: u32, attributes: (u32, u32) },
    Text(Cow<'t, str>),
    CData(&'t str),
    Comment(&'t str),
    Instruction(&'t str),
}

#[derive(Debug)]
pub(super) struct Attribute<'t> {
    pub name: &'t str,
    pub value: Cow<'t, str>,
}

/// A well-formed text.
#[derive(Debug)]
pub struct Document<'t> {
    pub(super) nodes: Vec<Node<'t>>,
    pub(super) attributes: Vec<Attribute<'t>>,
    pub(super) form: Form,
}

impl<'t> Document<'t> {
    /// Parses `text`; `form` says how models shall read it.
    pub fn parse(text: &'t str, form: Form) -> Result<Self> {
        reader::parse(text, form)
    }

    /// As [`Self::parse`], for bytes of unknown origin.
    pub fn parse_bytes(bytes: &'t [u8], form: Form) -> Result<Self> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(text, form),
            Err(error) => Err(reader::not_utf8(bytes, error.valid_up_to())),
        }
    }

    pub fn root(&self) -> Element<'_> {
        // The reader refuses a text without a root and puts the root first.
        Element { document: self, id: 0 }
    }
}

/// One element of a [`Document`].
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    document: &'a Document<'a>,
    id: u32,
}

/// What stands between an element's tags.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    Element(Element<'a>),
    Text(&'a str),
    CData(&'a str),
    Comment(&'a str),
    Instruction(&'a str),
}

impl<'a> Element<'a> {
    pub fn form(self) -> Form {
        self.document.form
    }

    fn node(self) -> Option<&'a Node<'a>> {
        self.document.nodes.get(self.id as usize)
    }

    /// The name as written, prefix included.
    pub fn qualified_name(self) -> &'a str {
        match self.node().map(|node| &node.kind) {
            Some(NodeKind::Element { name, .. }) => name,
            _ => "",
        }
    }

    /// The name without its prefix.
    pub fn name(self) -> &'a str {
        let name = self.qualified_name();
        name.split_once(':').map_or(name, |(_, local)| local)
    }

    /// The namespace the element is in: that of its prefix, or the default one.
    pub fn namespace(self) -> Option<&'a str> {
        match self.qualified_name().split_once(':') {
            Some((prefix, _)) => self.declared(prefix),
            None => self.declared("").filter(|uri| !uri.is_empty()),
        }
    }

    /// What `prefix` stands for here; an empty one asks for the default namespace.
    pub fn declared(self, prefix: &str) -> Option<&'a str> {
        let mut element = Some(self);
        while let Some(here) = element {
            let found = here.attributes().find(|(name, _)| match name.strip_prefix("xmlns") {
                Some("") => prefix.is_empty(),
                Some(rest) => rest.strip_prefix(':') == Some(prefix),
                None => false,
            });
            if let Some((_, uri)) = found {
                return Some(uri);
            }
            element = here.parent();
        }
        None
    }

    pub fn parent(self) -> Option<Element<'a>> {
        let id = self.node()?.parent;
        (id != NONE).then_some(Element { document: self.document, id })
    }

    /// Everything between the tags, in order.
    pub fn content(self) -> impl Iterator<Item = Content<'a>> {
        let document = self.document;
        let mut id = match self.node().map(|node| &node.kind) {
            Some(NodeKind::Element { first_child, .. }) => *first_child,
            _ => NONE,
        };
        std::iter::from_fn(move || {
            let node = document.nodes.get(id as usize)?;
            let here = id;
            id = node.next;
            Some(match &node.kind {
                NodeKind::Element { .. } => Content::Element(Element { document, id: here }),
                NodeKind::Text(text) => Content::Text(text),
                NodeKind::CData(text) => Content::CData(text),
                NodeKind::Comment(text) => Content::Comment(text),
                NodeKind::Instruction(text) => Content::Instruction(text),
            })
        })
    }

    pub fn children(self) -> impl Iterator<Item = Element<'a>> {
        self.content().filter_map(|content| match content {
            Content::Element(element) => Some(element),
            _ => None,
        })
    }

    /// The children of that name (as written: a prefixed child is another kind of child).
    pub fn children_named(self, name: &'a str) -> impl Iterator<Item = Element<'a>> {
        self.children().filter(move |child| child.qualified_name() == name)
    }

    pub fn child(self, name: &str) -> Option<Element<'a>> {
        self.children().find(|child| child.qualified_name() == name)
    }

    /// The child `name` of namespace `uri`, whatever its prefix.
    pub fn child_in(self, uri: &str, name: &str) -> Option<Element<'a>> {
        self.children().find(|child| child.name() == name && child.namespace() == Some(uri))
    }

    /// Attributes as written, namespace declarations included.
    pub fn attributes(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let (from, to) = match self.node().map(|node| &node.kind) {
            Some(NodeKind::Element { attributes, .. }) => *attributes,
            _ => (0, 0),
        };
        let slice = self.document.attributes.get(from as usize..to as usize).unwrap_or(&[]);
        slice.iter().map(|attribute| (attribute.name, attribute.value.as_ref()))
    }

    pub fn attribute(self, name: &str) -> Option<&'a str> {
        self.attributes().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Attribute `name` as a `V`, `None` where it is absent.
    pub fn value<V: Value>(self, name: &str) -> Result<Option<V>> {
        let Some(text) = self.attribute(name) else { return Ok(None) };
        match V::parse(text) {
            Some(value) => Ok(Some(value)),
            None => {
                let place = Place { element: self.name(), attribute: Some(name) };
                Err(V::refuse(place, crate::conf::error::excerpt(text)))
            }
        }
    }

    /// Attribute `name`, which must be there.
    pub fn required<V: Value>(self, name: &str) -> Result<V> {
        self.value(name)?.ok_or_else(|| ConfError::missing_attribute(name, self.name()))
    }

    /// All text in the element and below it; borrowed where it is one piece.
    pub fn text(self) -> Cow<'a, str> {
        let mut text = Cow::Borrowed("");
        self.gather(&mut text);
        text
    }

    fn gather(self, text: &mut Cow<'a, str>) {
        for content in self.content() {
            match content {
                Content::Element(element) => element.gather(text),
                Content::Text(piece) | Content::CData(piece) if text.is_empty() => {
                    *text = Cow::Borrowed(piece)
                }
                Content::Text(piece) | Content::CData(piece) => text.to_mut().push_str(piece),
                Content::Comment(_) | Content::Instruction(_) => {}
            }
        }
    }
}
