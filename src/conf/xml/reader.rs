//! Text into an element tree: quick-xml cuts the tokens, this file checks what it leaves unchecked.
//!
//! A text is refused when it is over [`MAX_TEXT`] bytes, nests deeper than [`MAX_DEPTH`], has an element with
//! more than [`MAX_ATTRIBUTES`] attributes, has more than [`MAX_NODES`] nodes, declares a document type (and thereby entities), or is not
//! well-formed. The sentences are those of libxml2, which libvirt's clients have always seen.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::errors::{Error, IllFormedError, SyntaxError};
use quick_xml::events::Event;
use quick_xml::events::attributes::{AttrError, Attributes};

use super::Form;
use super::tree::{Attribute, Document, NONE, Node, NodeKind};
use crate::conf::{ConfError, ErrorKind, Result};

/// As long as libvirt reads a definition file.
pub(super) const MAX_TEXT: usize = 10 << 20;
/// libxml2's own limit.
pub(super) const MAX_DEPTH: usize = 256;
pub(super) const MAX_ATTRIBUTES: usize = 256;
/// Many times what the largest guest needs; models take more memory than text.
pub(super) const MAX_NODES: usize = 1 << 17;

pub(super) fn parse(text: &str, form: Form) -> Result<Document<'_>> {
    // Positions count from behind a byte order mark, for quick-xml as for us.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_TEXT {
        let message = format!("XML document of {} bytes is over the limit of {MAX_TEXT}", text.len());
        return Err(ConfError::new(ErrorKind::XmlDetail, message));
    }
    let mut builder = Builder::new(text, form);
    if let Some(at) = text.bytes().position(is_illegal) {
        return Err(builder.fail(at, "PCDATA invalid Char value"));
    }
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_comments = true;
    loop {
        let from = reader.buffer_position() as usize;
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => return Err(builder.not_well_formed(from, &error)),
        };
        let to = reader.buffer_position() as usize;
        match event {
            Event::Start(_) => builder.start(from, to, Tag::Open)?,
            Event::Empty(_) => builder.start(from, to, Tag::Empty)?,
            Event::End(_) => builder.end(),
            Event::Text(piece) => builder.text(from, normalize_lines(piece.into_inner()))?,
            Event::GeneralRef(reference) => {
                let resolved = builder.resolve(&reference, to)?;
                builder.text(from, Cow::Owned(resolved.to_string()))?;
            }
            Event::CData(_) => builder.leaf(NodeKind::CData(inside(text, from, to, "<![CDATA[", "]]>"))),
            Event::Comment(_) => builder.leaf(NodeKind::Comment(inside(text, from, to, "<!--", "-->"))),
            Event::PI(_) => builder.leaf(NodeKind::Instruction(inside(text, from, to, "<?", "?>"))),
            Event::Decl(_) => {}
            Event::DocType(_) => {
                return Err(builder.fail(from, "document type declarations are not supported"));
            }
            Event::Eof => return builder.finish(),
        }
    }
}

/// The refusal of bytes that are no text.
pub(super) fn not_utf8(bytes: &[u8], at: usize) -> ConfError {
    let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    let message = format!("at line {line}: Input is not proper UTF-8, indicate encoding !");
    ConfError::new(ErrorKind::XmlDetail, message)
}

fn is_illegal(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r')
}

/// What stands between the delimiters of a token; quick-xml has checked that they are there.
fn inside<'t>(text: &'t str, from: usize, to: usize, open: &str, close: &str) -> &'t str {
    let token = text.get(from..to).unwrap_or_default();
    token.strip_prefix(open).and_then(|token| token.strip_suffix(close)).unwrap_or(token)
}

fn normalize_lines(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\r') { Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")) } else { text }
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Open,
    Empty,
}

struct Builder<'t> {
    text: &'t str,
    document: Document<'t>,
    /// Elements whose end tag is still to come, each with its last child so far.
    open: Vec<Open>,
    /// The root has been closed: only blanks and comments may follow.
    done: bool,
}

struct Open {
    id: u32,
    last_child: u32,
    /// Where its start tag begins.
    at: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str, form: Form) -> Self {
        // A typical definition has an element per 60 bytes and an attribute per 25.
        let nodes = Vec::with_capacity((text.len() / 32).min(4096));
        let attributes = Vec::with_capacity((text.len() / 32).min(4096));
        let document = Document { nodes, attributes, form };
        Self { text, document, open: Vec::with_capacity(16), done: false }
    }

    fn start(&mut self, from: usize, to: usize, tag: Tag) -> Result<()> {
        if self.done {
            return Err(self.fail(from, "Extra content at the end of the document"));
        }
        if self.document.nodes.len() >= MAX_NODES {
            return Err(self.fail(from, "more than 131072 nodes in one document"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.fail(from, "Excessive depth in document: 256 use XML_PARSE_HUGE option"));
        }
        let close = if tag == Tag::Empty { "/>" } else { ">" };
        let tag_text = inside(self.text, from, to, "<", close);
        let name_len = tag_text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(tag_text.len());
        let (name, _) = tag_text.split_at(name_len);
        if !is_name(name) {
            return Err(self.fail(from + 1, "StartTag: invalid element name"));
        }
        let first = self.document.attributes.len();
        self.attributes(tag_text, name_len, from + 1)?;
        let attributes = (first as u32, self.document.attributes.len() as u32);
        let id = self.push(NodeKind::Element { name, first_child: NONE, attributes });
        match tag {
            Tag::Open => self.open.push(Open { id, last_child: NONE, at: from }),
            Tag::Empty => self.done = self.open.is_empty(),
        }
        Ok(())
    }

    /// Reads the attributes of a tag; `base` is where the tag's text begins.
    fn attributes(&mut self, tag: &'t str, name_len: usize, base: usize) -> Result<()> {
        if name_len == tag.len() {
            return Ok(());
        }
        let start_of = |piece: &str| piece.as_ptr() as usize - tag.as_ptr() as usize;
        let mut end = name_len;
        for (count, attribute) in Attributes::new(tag, name_len).enumerate() {
            let attribute = match attribute {
                Ok(attribute) => attribute,
                Err(error) => return Err(self.bad_attribute(tag, base, error)),
            };
            if count >= MAX_ATTRIBUTES {
                return Err(self.fail(base, "more than 256 attributes in one element"));
            }
            let (name, raw) = (attribute.key.into_inner(), attribute.value);
            let Cow::Borrowed(raw) = raw else {
                return Err(self.fail(base, "attributes construct error"));
            };
            let at = start_of(name);
            if at == end || !is_name(name) {
                return Err(self.fail(base + end, "attributes construct error"));
            }
            let value_at = start_of(raw);
            end = value_at + raw.len() + 1;
            let value = self.attribute_value(raw, base + value_at)?;
            self.document.attributes.push(Attribute { name, value });
        }
        Ok(())
    }

    /// References resolved, line ends and tabs turned into blanks.
    fn attribute_value(&self, raw: &'t str, at: usize) -> Result<Cow<'t, str>> {
        let special = |byte: u8| matches!(byte, b'&' | b'<' | b'\n' | b'\t' | b'\r');
        let Some(first) = raw.bytes().position(special) else { return Ok(Cow::Borrowed(raw)) };
        let mut value = String::with_capacity(raw.len());
        let mut position = first;
        value.push_str(raw.get(..first).unwrap_or_default());
        while let Some(rest) = raw.get(position..).filter(|rest| !rest.is_empty()) {
            let mut chars = rest.chars();
            match chars.next() {
                Some('&') => {
                    let Some((name, _)) = chars.as_str().split_once(';') else {
                        return Err(self.fail(at + position, "EntityRef: expecting ';'"));
                    };
                    value.push(self.resolve(name, at + position + name.len() + 2)?);
                    position += name.len() + 2;
                    continue;
                }
                Some('<') => {
                    return Err(self.fail(at + position, "Unescaped '<' not allowed in attributes values"));
                }
                Some('\r') if chars.as_str().starts_with('\n') => {}
                Some('\n' | '\t' | '\r') => value.push(' '),
                Some(plain) => value.push(plain),
                None => {}
            }
            position = raw.len() - chars.as_str().len();
        }
        Ok(Cow::Owned(value))
    }

    /// One of the five entities every XML text knows, or a character reference.
    fn resolve(&self, name: &str, at: usize) -> Result<char> {
        let code = match name {
            "lt" => return Ok('<'),
            "gt" => return Ok('>'),
            "amp" => return Ok('&'),
            "quot" => return Ok('"'),
            "apos" => return Ok('\''),
            _ => name.strip_prefix('#'),
        };
        let Some(code) = code else {
            let name = crate::conf::error::excerpt(name);
            return Err(self.fail(at, &format!("Entity '{name}' not defined")));
        };
        let number = match code.strip_prefix('x') {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => code.parse(),
        };
        let legal = |c: &char| {
            (*c >= ' ' || matches!(c, '\t' | '\n' | '\r')) && !matches!(c, '\u{fffe}' | '\u{ffff}')
        };
        match number.ok().and_then(char::from_u32).filter(legal) {
            Some(resolved) => Ok(resolved),
            None => {
                let code = crate::conf::error::excerpt(code);
                Err(self.fail(at, &format!("xmlParseCharRef: invalid xmlChar value {code}")))
            }
        }
    }

    fn text(&mut self, at: usize, text: Cow<'t, str>) -> Result<()> {
        if self.open.is_empty() {
            return if text.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
                Ok(())
            } else if self.done {
                Err(self.fail(at, "Extra content at the end of the document"))
            } else {
                let blanks = text.len() - text.trim_start_matches([' ', '\t', '\r', '\n']).len();
                Err(self.fail(at + blanks, "Start tag expected, '<' not found"))
            };
        }
        // Pieces around references are one text.
        let last = self.open.last().map_or(NONE, |open| open.last_child);
        if let Some(Node { kind: NodeKind::Text(before), .. }) = self.document.nodes.get_mut(last as usize) {
            before.to_mut().push_str(&text);
            return Ok(());
        }
        self.push(NodeKind::Text(text));
        Ok(())
    }

    /// A node without children; outside the root it is dropped.
    fn leaf(&mut self, kind: NodeKind<'t>) {
        if !self.open.is_empty() {
            self.push(kind);
        }
    }

    fn push(&mut self, kind: NodeKind<'t>) -> u32 {
        let nodes = &mut self.document.nodes;
        let id = nodes.len() as u32;
        let mut parent = NONE;
        if let Some(open) = self.open.last_mut() {
            parent = open.id;
            let before = if open.last_child == NONE { parent } else { open.last_child };
            match nodes.get_mut(before as usize) {
                Some(Node { kind: NodeKind::Element { first_child, .. }, .. }) if before == parent => {
                    *first_child = id
                }
                Some(sibling) => sibling.next = id,
                None => {}
            }
            open.last_child = id;
        }
        nodes.push(Node { kind, parent, next: NONE });
        id
    }

    fn end(&mut self) {
        self.open.pop();
        self.done = self.open.is_empty();
    }

    fn finish(self) -> Result<Document<'t>> {
        if let Some(open) = self.open.last() {
            let name = self.name_of(open.id);
            let line = self.line(open.at);
            let sentence = format!("Premature end of data in tag {name} line {line}");
            return Err(self.fail(self.text.len(), &sentence));
        }
        if !self.done {
            let sentence =
                if self.text.is_empty() { "Document is empty" } else { "Start tag expected, '<' not found" };
            return Err(self.fail(self.text.len(), sentence));
        }
        Ok(self.document)
    }

    fn name_of(&self, id: u32) -> &'t str {
        match self.document.nodes.get(id as usize).map(|node| &node.kind) {
            Some(NodeKind::Element { name, .. }) => crate::conf::error::excerpt(name),
            _ => "",
        }
    }

    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// `at line N: sentence`, the line, and a pointer below the place.
    fn fail(&self, at: usize, sentence: &str) -> ConfError {
        const SHOWN: usize = 200;
        let at = at.min(self.text.len());
        let bytes = self.text.as_bytes();
        // Of a place at the end of a line, that line is shown; of the end of the text, the last that is not empty.
        let is_end =
            |position: &usize| bytes.get(*position).is_some_and(|byte| matches!(byte, b'\n' | b'\r'));
        let mut seen = if at == bytes.len() { at.saturating_sub(1) } else { at };
        while seen > 0 && is_end(&seen) {
            seen -= 1;
        }
        let line_start = (0..seen).rev().find(is_end).map_or(0, |end| end + 1);
        let context: String = self
            .text
            .get(line_start..)
            .unwrap_or_default()
            .chars()
            .take_while(|c| !matches!(c, '\n' | '\r'))
            .take(SHOWN)
            .collect();
        let pointer: String =
            context.chars().take(at - line_start).map(|c| if c == '\t' { '\t' } else { '-' }).collect();
        // There is nothing to show of an empty text; clients of libvirt know it by this word.
        let context = if self.text.is_empty() { "(null)" } else { &context };
        let message = format!("at line {}: {sentence}\n{context}\n{pointer}^", self.line(at));
        ConfError::new(ErrorKind::XmlDetail, message)
    }

    fn bad_attribute(&self, tag: &str, base: usize, error: AttrError) -> ConfError {
        let word_at = |at: usize| {
            let rest = tag.get(at..).unwrap_or_default();
            rest.split(|c: char| c.is_ascii_whitespace() || c == '=').next().unwrap_or_default()
        };
        match error {
            AttrError::ExpectedEq(at) => {
                let start = tag.get(..at).and_then(|head| head.trim_end().rfind(char::is_whitespace));
                let name = word_at(start.map_or(0, |start| start + 1));
                self.fail(base + at, &format!("Specification mandates value for attribute {name}"))
            }
            AttrError::ExpectedValue(at) | AttrError::UnquotedValue(at) => {
                self.fail(base + at, "AttValue: \" or ' expected")
            }
            AttrError::ExpectedQuote(at, quote) => {
                self.fail(base + at, &format!("AttValue: {} expected", char::from(quote)))
            }
            AttrError::Duplicated(at, _) => {
                // libxml2 compares the names once it has all of them.
                self.fail(base + tag.len(), &format!("Attribute {} redefined", word_at(at)))
            }
        }
    }

    fn not_well_formed(&self, from: usize, error: &Error) -> ConfError {
        match error {
            Error::IllFormed(IllFormedError::MismatchedEndTag { expected, found }) => {
                let line = self.open.last().map_or(1, |open| self.line(open.at));
                let sentence = format!("Opening and ending tag mismatch: {expected} line {line} and {found}");
                let end =
                    self.text.get(from..).and_then(|rest| rest.find('>')).map_or(from, |len| from + len + 1);
                self.fail(end, &sentence)
            }
            Error::IllFormed(IllFormedError::UnmatchedEndTag(_)) if self.done => {
                self.fail(from, "Extra content at the end of the document")
            }
            Error::IllFormed(IllFormedError::UnmatchedEndTag(_)) => {
                self.fail(from, "StartTag: invalid element name")
            }
            Error::IllFormed(IllFormedError::UnclosedReference) => {
                self.fail(from, "xmlParseEntityRef: no name")
            }
            Error::IllFormed(IllFormedError::DoubleHyphenInComment) => {
                self.fail(from, "Double hyphen within comment")
            }
            Error::Syntax(SyntaxError::UnclosedTag) => {
                let rest = self.text.get(from + 1..).unwrap_or_default();
                let name = rest.split(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default();
                let name = crate::conf::error::excerpt(name);
                let line = self.line(from);
                self.fail(self.text.len(), &format!("Couldn't find end of Start Tag {name} line {line}"))
            }
            Error::Syntax(SyntaxError::UnclosedSingleQuotedAttributeValue) => {
                self.fail(self.text.len(), "AttValue: ' expected")
            }
            Error::Syntax(SyntaxError::UnclosedDoubleQuotedAttributeValue) => {
                self.fail(self.text.len(), "AttValue: \" expected")
            }
            other => self.fail(from, &other.to_string()),
        }
    }
}

/// A name as XML allows it, less strict beyond ASCII.
fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    let starts = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':') || !c.is_ascii();
    let goes_on = |c: char| starts(c) || c.is_ascii_digit() || matches!(c, '-' | '.');
    chars.next().is_some_and(starts) && chars.all(goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(text: &str) -> String {
        parse(text, Form::INACTIVE).unwrap_err().message
    }

    #[test]
    fn what_is_not_well_formed_is_refused_in_the_usual_words() {
        for (text, expected) in [
            ("foo", "at line 1: Start tag expected, '<' not found\nfoo\n^"),
            ("", "at line 1: Document is empty\n(null)\n^"),
            ("<a>", "at line 1: Premature end of data in tag a line 1\n<a>\n---^"),
            (
                "<a><b></a>",
                "at line 1: Opening and ending tag mismatch: b line 1 and a\n<a><b></a>\n----------^",
            ),
            ("<a></a><b/>", "at line 1: Extra content at the end of the document\n<a></a><b/>\n-------^"),
            (
                "<a>\n<b x></b></a>",
                "at line 2: Specification mandates value for attribute x\n<b x></b></a>\n----^",
            ),
            ("<a x=1/>", "at line 1: AttValue: \" or ' expected\n<a x=1/>\n-----^"),
            ("<a>&foo;</a>", "at line 1: Entity 'foo' not defined\n<a>&foo;</a>\n--------^"),
            ("<a x='&foo;'/>", "at line 1: Entity 'foo' not defined\n<a x='&foo;'/>\n-----------^"),
            ("<a x='<'/>", "at line 1: Unescaped '<' not allowed in attributes values\n<a x='<'/>\n------^"),
            ("<a", "at line 1: Couldn't find end of Start Tag a line 1\n<a\n--^"),
            ("<1/>", "at line 1: StartTag: invalid element name\n<1/>\n-^"),
            ("<a>&#0;</a>", "at line 1: xmlParseCharRef: invalid xmlChar value 0\n<a>&#0;</a>\n-------^"),
            ("<a b='1'c='2'/>", "at line 1: attributes construct error\n<a b='1'c='2'/>\n--------^"),
            ("<a x='1/>", "at line 1: AttValue: ' expected\n<a x='1/>\n---------^"),
        ] {
            assert_eq!(sentence(text), expected, "{text}");
        }
        assert!(sentence("<a x='1' x='2'/>").starts_with("at line 1: Attribute x redefined\n"));
    }

    #[test]
    fn references_and_line_ends_are_resolved() {
        let text = "\u{feff}<?xml version='1.0'?>\n<!-- c --><a x='&lt;&#x41;\n&#10;&amp;'>a&gt;b\r\n<![CDATA[<&]]>c</a>\n";
        let document = parse(text, Form::INACTIVE).unwrap();
        let root = document.root();
        assert_eq!(root.attribute("x"), Some("<A \n&"));
        assert_eq!(root.text(), "a>b\n<&c");
    }

    #[test]
    fn namespaces_are_found_from_the_inside() {
        let text = "<d xmlns:q='urn:q'><q:c a='1'><q:x xmlns:q='urn:z'/></q:c><e xmlns='urn:e'/></d>";
        let document = parse(text, Form::INACTIVE).unwrap();
        let root = document.root();
        let inner = root.child_in("urn:q", "c").unwrap();
        assert_eq!(inner.attribute("a"), Some("1"));
        assert_eq!(inner.children().next().unwrap().namespace(), Some("urn:z"));
        assert_eq!(root.child("e").unwrap().namespace(), Some("urn:e"));
        assert_eq!(root.namespace(), None);
    }

    #[test]
    fn hostile_texts_end_at_a_bound() {
        let nested = "<a>".repeat(100_000);
        assert!(sentence(&nested).contains("Excessive depth"));
        let attributes: String = (0..100_000).map(|n| format!(" a{n}='1'")).collect();
        assert!(sentence(&format!("<a{attributes}/>")).contains("more than 256 attributes"));
        assert!(sentence(&format!("<a>{}</a>", "<b/>".repeat(MAX_NODES))).contains("more than 131072 nodes"));
        let laughs = "<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><l>&b;</l>";
        assert!(sentence(laughs).contains("document type declarations are not supported"));
        assert!(sentence(&"x".repeat(MAX_TEXT + 1)).contains("over the limit"));
        let long = format!("<a x='{}", "y".repeat(MAX_TEXT - 100));
        assert!(sentence(&long).len() < 1000);
        let whole =
            format!("<domain type='kvm'><name>x</name><a b='&lt;1'>{}</a></domain>", "&amp;".repeat(50));
        for end in 0..whole.len() {
            assert!(parse(&whole[..end], Form::INACTIVE).is_err(), "{end}");
        }
        let bad = Document::parse_bytes(b"<a>\n\xff</a>", Form::INACTIVE).unwrap_err();
        assert_eq!(bad.message, "at line 2: Input is not proper UTF-8, indicate encoding !");
    }
}
