//! `<metadata>`: other programs' elements, kept verbatim.
//!
//! They are stored as one compact text without the blanks between elements and printed the way
//! libxml2 prints a tree: two spaces a level, double quotes, an element with text in one line.

use std::fmt::Write as _;

use super::{Content, Document, Element, Form, Part, Writer};
use crate::conf::Result;

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
        print_start(element, &mut text);
        text.push('>');
        for child in element.children() {
            match child.namespace() {
                Some(uri) if !seen.contains(&uri) => {
                    seen.push(uri);
                    print(child, None, &mut text);
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
            print(document.root(), Some(depth), text);
            text.push('\n');
        });
    }
}

impl Metadata {
    /// The element of namespace `uri` as its own text.
    pub fn get(&self, uri: &str) -> Option<String> {
        let document = Document::parse(&self.text, Form::INACTIVE).ok()?;
        let child = document.root().children().find(|child| child.namespace() == Some(uri))?;
        let mut text = String::new();
        print_detached(child, &mut text);
        Some(text)
    }
}

/// Prints an element; `depth` is the indentation of its own line, `None` for no line breaks at all.
fn print(element: Element<'_>, depth: Option<usize>, out: &mut String) {
    print_start(element, out);
    print_rest(element, depth, out);
}

/// As [`print`], with the declaration its prefix needs once it stands alone.
fn print_detached(element: Element<'_>, out: &mut String) {
    print_start(element, out);
    let prefix = element.qualified_name().split_once(':').map_or("", |(prefix, _)| prefix);
    let key = if prefix.is_empty() { "xmlns".to_owned() } else { format!("xmlns:{prefix}") };
    if let (None, Some(uri)) = (element.attribute(&key), element.declared(prefix)) {
        let _ = write!(out, " {key}=\"");
        escape_attribute(uri, out);
        out.push('"');
    }
    print_rest(element, Some(0), out);
}

fn print_start(element: Element<'_>, out: &mut String) {
    out.push('<');
    out.push_str(element.qualified_name());
    // libxml2 prints declarations before attributes.
    let is_declaration = |name: &str| name == "xmlns" || name.starts_with("xmlns:");
    let (declarations, others): (Vec<_>, Vec<_>) =
        element.attributes().partition(|(name, _)| is_declaration(name));
    for (name, value) in declarations.into_iter().chain(others) {
        let _ = write!(out, " {name}=\"");
        escape_attribute(value, out);
        out.push('"');
    }
}

fn print_rest(element: Element<'_>, depth: Option<usize>, out: &mut String) {
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
            Content::Element(child) => print(child, depth.map(|depth| depth + 1), out),
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
    out.push_str(element.qualified_name());
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
