//! `<metadata>`: other programs' elements, kept verbatim.
//!
//! They are stored as one compact text without the blanks between elements and printed the way
//! libxml2 prints a tree: two spaces a level, double quotes, an element with text in one line.

use std::fmt::Write as _;

use super::{Content, Document, Element, Form, Part, Writer};
use crate::conf::{ConfError, Result};

/// The content of a `<metadata>` element: one element per namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// `<metadata …>…</metadata>`, compact.
    text: Box<str>,
}

impl Part for Metadata {
    /// Keeps the elements that have a namespace, the first one of each.
    fn read(element: Element<'_>) -> Result<Self> {
        let mut seen: Vec<&str> = Vec::new();
        let mut text = String::new();
        print_start(element, Names::Kept, &borrowed(element), &mut text);
        text.push('>');
        for child in element.children() {
            match child.namespace() {
                Some(uri) if !seen.contains(&uri) => {
                    seen.push(uri);
                    print(child, None, Names::Kept, &mut text);
                }
                _ => {}
            }
        }
        text.push_str("</metadata>");
        Ok(Self { text: text.into() })
    }

    fn write(&self, out: &mut Writer, _name: &str) {
        // The text is our own, so it parses; were it not, metadata is better left out than the guest.
        let Ok(document) = Document::parse(&self.text, Form::INACTIVE) else { return };
        out.verbatim(|text, depth| {
            print(document.root(), Some(depth), Names::Kept, text);
            text.push('\n');
        });
    }
}

/// What an element is called where it is printed.
#[derive(Clone, Copy)]
enum Names<'a> {
    /// As it was read.
    Kept,
    /// Elements of this namespace have neither prefix nor declaration.
    Without(&'a str),
    /// Elements of no namespace get this prefix.
    Prefixed(&'a str),
}

impl Names<'_> {
    fn of(self, element: Element<'_>) -> String {
        match self {
            Self::Without(uri) if element.namespace() == Some(uri) => element.name().to_owned(),
            Self::Prefixed(prefix) if element.namespace().is_none() => format!("{prefix}:{}", element.name()),
            _ => element.qualified_name().to_owned(),
        }
    }

    fn declares(self, uri: &str) -> bool {
        !matches!(self, Self::Without(hidden) if hidden == uri)
    }
}

impl Metadata {
    /// The element of namespace `uri` as its own text, in the form in which clients set it: without the
    /// namespace.
    pub fn get(&self, uri: &str) -> Option<String> {
        let document = Document::parse(&self.text, Form::INACTIVE).ok()?;
        let child = document.root().children().find(|child| child.namespace() == Some(uri))?;
        let mut text = String::new();
        let names = Names::Without(uri);
        print_start(child, names, &borrowed(child), &mut text);
        print_rest(child, Some(0), names, &mut text);
        Some(text)
    }

    /// `metadata` without what it has of namespace `uri`. None when nothing is left.
    pub fn without(metadata: Option<&Self>, uri: &str) -> Result<Option<Self>> {
        Self::replaced(metadata, uri, None)
    }

    /// `metadata` with `element` as all it has of namespace `uri`. Elements without a namespace of their own
    /// come to be in it, under `prefix`.
    pub fn with(metadata: Option<&Self>, uri: &str, prefix: &str, element: &str) -> Result<Option<Self>> {
        let document = Document::parse(element, Form::INACTIVE)?;
        if !is_prefix(prefix) {
            return Err(ConfError::internal("failed to validate prefix for a new XML namespace"));
        }
        let root = document.root();
        if root.attribute(&format!("xmlns:{prefix}")).is_some() {
            return Err(ConfError::internal("failed to create a new XML namespace"));
        }
        let names = Names::Prefixed(prefix);
        let mut text = String::new();
        print(root, None, names, &mut text);
        let mut declaration = format!(" xmlns:{prefix}=\"");
        escape_attribute(uri, &mut declaration);
        declaration.push('"');
        text.insert_str(1 + names.of(root).len(), &declaration);
        Self::replaced(metadata, uri, Some(&text))
    }

    fn replaced(metadata: Option<&Self>, uri: &str, element: Option<&str>) -> Result<Option<Self>> {
        let document = Document::parse(metadata.map_or("<metadata/>", |it| &*it.text), Form::INACTIVE)?;
        let others = document.root().children().filter(|child| child.namespace() != Some(uri));
        let mut content = String::new();
        others.for_each(|child| print(child, None, Names::Kept, &mut content));
        content.push_str(element.unwrap_or_default());
        if content.is_empty() {
            return Ok(None);
        }
        let mut text = String::new();
        print_start(document.root(), Names::Kept, &[], &mut text);
        Ok(Some(Self { text: format!("{text}>{content}</metadata>").into() }))
    }
}

/// A name that may stand before a colon.
fn is_prefix(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// Prints an element; `depth` is the indentation of its own line, `None` for no line breaks at all.
fn print(element: Element<'_>, depth: Option<usize>, names: Names<'_>, out: &mut String) {
    print_start(element, names, &[], out);
    print_rest(element, depth, names, out);
}

/// The prefixes that an element and what is in it have from around it, with what they stand for there: alone it
/// has to declare them itself. In the order of their use, as libxml2 does.
fn borrowed(root: Element<'_>) -> Vec<(&str, &str)> {
    fn collect<'a>(
        element: Element<'a>,
        around: Element<'a>,
        inside: &mut Vec<&'a str>,
        found: &mut Vec<(&'a str, &'a str)>,
    ) {
        let outer = inside.len();
        inside.extend(element.attributes().filter_map(|(name, _)| declared_prefix(name)));
        let own = element.qualified_name().split_once(':').map_or("", |(prefix, _)| prefix);
        let others = element.attributes().filter(|(name, _)| declared_prefix(name).is_none());
        let others = others.filter_map(|(name, _)| Some(name.split_once(':')?.0));
        for prefix in std::iter::once(own).chain(others) {
            let known = inside.contains(&prefix) || found.iter().any(|(other, _)| *other == prefix);
            if let Some(uri) = around.declared(prefix).filter(|_| !known && prefix != "xml") {
                found.push((prefix, uri));
            }
        }
        // The tree's depth is bounded, so is this recursion.
        element.children().for_each(|child| collect(child, around, inside, found));
        inside.truncate(outer);
    }
    let mut found = Vec::new();
    if let Some(around) = root.parent() {
        collect(root, around, &mut Vec::new(), &mut found);
    }
    found
}

/// The prefix that an attribute of this name declares, empty for the default namespace.
fn declared_prefix(name: &str) -> Option<&str> {
    if name == "xmlns" { Some("") } else { name.strip_prefix("xmlns:") }
}

fn print_start(element: Element<'_>, names: Names<'_>, borrowed: &[(&str, &str)], out: &mut String) {
    out.push('<');
    out.push_str(&names.of(element));
    // libxml2 prints declarations before attributes.
    let (declarations, others): (Vec<_>, Vec<_>) =
        element.attributes().partition(|(name, _)| declared_prefix(name).is_some());
    let declarations = declarations.into_iter().filter_map(|(name, uri)| Some((declared_prefix(name)?, uri)));
    for (prefix, uri) in declarations.chain(borrowed.iter().copied()).filter(|(_, uri)| names.declares(uri)) {
        let colon = if prefix.is_empty() { "" } else { ":" };
        print_attribute(&format!("xmlns{colon}{prefix}"), uri, out);
    }
    for (name, value) in others {
        print_attribute(name, value, out);
    }
}

fn print_attribute(name: &str, value: &str, out: &mut String) {
    let _ = write!(out, " {name}=\"");
    escape_attribute(value, out);
    out.push('"');
}

fn print_rest(element: Element<'_>, depth: Option<usize>, names: Names<'_>, out: &mut String) {
    let has_text = element.content().any(|content| match content {
        Content::Text(text) => !text.trim().is_empty(),
        Content::CData(_) => true,
        Content::Element(_) | Content::Comment(_) | Content::Instruction(_) => false,
    });
    // Blanks count where they are all there is, or beside text.
    let keeps_blanks = has_text || element.content().all(|content| matches!(content, Content::Text(_)));
    let depth = if keeps_blanks { None } else { depth };
    let mut content =
        element.content().filter(|content| keeps_blanks || !matches!(content, Content::Text(_))).peekable();
    if content.peek().is_none() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    for content in content {
        new_line(depth.map(|depth| depth + 1), out);
        match content {
            Content::Element(child) => print(child, depth.map(|depth| depth + 1), names, out),
            Content::Text(text) => escape_text(text, out),
            Content::CData(text) => {
                let _ = write!(out, "<![CDATA[{text}]]>");
            }
            Content::Comment(text) => {
                let _ = write!(out, "<!--{text}-->");
            }
            Content::Instruction(text) => {
                let _ = write!(out, "<?{text}?>");
            }
        }
    }
    new_line(depth, out);
    out.push_str("</");
    out.push_str(&names.of(element));
    out.push('>');
}

fn new_line(depth: Option<usize>, out: &mut String) {
    if let Some(depth) = depth {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    }
}

fn escape_text(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
}

fn escape_attribute(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            c => out.push(c),
        }
    }
}
