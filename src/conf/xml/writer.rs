//! Text as libvirt prints it: two spaces a level, single quotes, `<empty/>`.

use super::{Form, Value};

/// Builds one text. Inside [`Self::element`] attributes come first, then children or text.
#[derive(Debug)]
pub struct Writer {
    out: String,
    form: Form,
    depth: usize,
    /// The start tag of the innermost element still lacks its `>`.
    tag_open: bool,
    /// The innermost element holds text, so its end tag follows at once.
    after_text: bool,
}

impl Writer {
    pub fn new(form: Form) -> Self {
        Self { out: String::with_capacity(4096), form, depth: 0, tag_open: false, after_text: false }
    }

    pub fn form(&self) -> Form {
        self.form
    }

    pub fn finish(self) -> String {
        self.out
    }

    fn indent(&mut self) {
        if self.tag_open {
            self.out.push_str(">\n");
            self.tag_open = false;
        }
        self.out.extend(std::iter::repeat_n("  ", self.depth));
    }

    /// Writes `<name …>…</name>`, or `<name/>` when `fill` adds no children.
    pub fn element(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.indent();
        self.out.push('<');
        self.out.push_str(name);
        self.tag_open = true;
        self.depth += 1;
        fill(self);
        self.depth -= 1;
        if std::mem::take(&mut self.tag_open) {
            self.out.push_str("/>\n");
            return;
        }
        if !std::mem::take(&mut self.after_text) {
            self.out.extend(std::iter::repeat_n("  ", self.depth));
        }
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push_str(">\n");
    }

    /// As [`Self::element`], but with an end tag on its own line even when `fill` adds no children.
    pub fn block(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.element(name, |out| {
            fill(out);
            if std::mem::take(&mut out.tag_open) {
                out.out.push_str(">\n");
            }
        });
    }

    /// As [`Self::element`], but leaves no trace when `fill` adds nothing.
    pub fn group(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let (start, tag_open) = (self.out.len(), self.tag_open);
        let mut bare = true;
        self.element(name, |out| {
            let inside = out.out.len();
            fill(out);
            bare = out.out.len() == inside;
        });
        if bare {
            self.out.truncate(start);
            self.tag_open = tag_open;
        }
    }

    /// `<name/>`
    pub fn empty(&mut self, name: &str) {
        self.element(name, |_| {});
    }

    /// `<name>value</name>`
    pub fn text_element(&mut self, name: &str, value: &impl Value) {
        self.element(name, |out| out.body(value));
    }

    pub fn attribute(&mut self, name: &str, value: &impl Value) {
        debug_assert!(self.tag_open, "attribute '{name}' after content");
        self.out.push(' ');
        self.out.push_str(name);
        self.out.push_str("='");
        let start = self.out.len();
        value.print(&mut self.out);
        self.keep_blanks(start);
        self.out.push('\'');
    }

    /// An attribute whose value is a word that needs no escaping, or is escaped here.
    pub fn attribute_str(&mut self, name: &str, value: &str) {
        self.out.push(' ');
        self.out.push_str(name);
        self.out.push_str("='");
        let start = self.out.len();
        escape_into(value, &mut self.out);
        self.keep_blanks(start);
        self.out.push('\'');
    }

    /// A reader takes every blank in an attribute for a space.
    fn keep_blanks(&mut self, start: usize) {
        let value = self.out.get(start..).unwrap_or_default();
        if value.contains(['\n', '\t']) {
            let kept = value.replace('\n', "&#10;").replace('\t', "&#9;");
            self.out.replace_range(start.., &kept);
        }
    }

    /// The text of an element that has no children.
    pub fn body(&mut self, value: &impl Value) {
        if std::mem::take(&mut self.tag_open) {
            self.out.push('>');
        }
        self.after_text = true;
        value.print(&mut self.out);
    }

    /// Lines that are already text; `print` gets the output and the depth to indent to.
    pub(super) fn verbatim(&mut self, print: impl FnOnce(&mut String, usize)) {
        self.indent();
        print(&mut self.out, self.depth);
    }
}

/// libvirt's escaping: the five special characters, and control characters XML cannot hold are dropped. Unlike
/// libvirt's, a carriage return stays one for the next reader.
pub(super) fn escape_into(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.bytes().position(needs_care) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = special.chars();
        match chars.next() {
            Some('<') => out.push_str("&lt;"),
            Some('>') => out.push_str("&gt;"),
            Some('&') => out.push_str("&amp;"),
            Some('"') => out.push_str("&quot;"),
            Some('\'') => out.push_str("&apos;"),
            Some('\r') => out.push_str("&#13;"),
            _ => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
}

fn needs_care(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'&' | b'"' | b'\'') || (byte < 0x20 && !matches!(byte, b'\t' | b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_as_short_as_its_content_allows() {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("a", |out| {
            out.empty("b");
            out.group("gone", |_| {});
            out.group("kept", |out| out.attribute("x", &1u32));
            out.text_element("t", &Box::<str>::from("a<b>'\"&\u{1}"));
            out.element("c", |out| {
                out.attribute_str("v", "it's");
                out.group("gone", |out| out.group("too", |_| {}));
            });
        });
        assert_eq!(
            out.finish(),
            "<a>\n  <b/>\n  <kept x='1'/>\n  <t>a&lt;b&gt;&apos;&quot;&amp;</t>\n  <c v='it&apos;s'/>\n</a>\n"
        );
    }

    #[test]
    fn text_that_ends_in_a_newline_keeps_its_end_tag_beside_it() {
        let mut out = Writer::new(Form::INACTIVE);
        out.element("a", |out| out.text_element("d", &Box::<str>::from("two\nlines\n")));
        assert_eq!(out.finish(), "<a>\n  <d>two\nlines\n</d>\n</a>\n");
    }
}
