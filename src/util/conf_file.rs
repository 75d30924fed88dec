//! Files of the form of `libvirtd.conf` and `qemu.conf`: `key = value` lines and comments.
//!
//! ```text
//! max_clients = 20                     # a number
//! unix_sock_group = "libvirt"          # a string, in either kind of quotes, without escapes
//! user_note = """over
//! several lines"""
//! access_drivers = [ "polkit", "x", ]  # a list, over as many lines as it likes
//! ```

use std::fmt;

use thiserror::Error;

/// Deepest sensible size of such a file.
const MAX_LEN: usize = 10 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Integer(i64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    /// What it is, as an error says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "number",
            Self::Text(_) => "string",
            Self::List(_) => "list",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let separator = if index == 0 { " " } else { ", " };
                    write!(f, "{separator}{item}")?;
                }
                f.write_str(" ]")
            }
        }
    }
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub line: usize,
    pub key: String,
    pub value: Value,
}

/// A file that cannot be read as settings, with libvirt's words for why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{line}: {what}")]
pub struct SyntaxError {
    pub line: usize,
    pub what: &'static str,
}

/// All settings of a file in order. A key may come twice; the last one counts.
pub fn parse(text: &str) -> Result<Vec<Setting>, SyntaxError> {
    let mut parser = Parser { rest: text, line: 1 };
    if text.len() > MAX_LEN {
        return Err(parser.error("file is too large"));
    }
    let mut settings = Vec::new();
    loop {
        parser.skip_lines();
        if parser.rest.is_empty() {
            return Ok(settings);
        }
        let line = parser.line;
        let key = parser.name()?;
        parser.skip_blanks();
        if !parser.take("=") {
            return Err(parser.error("expecting an assignment"));
        }
        parser.skip_blanks();
        let value = parser.value()?;
        parser.skip_blanks();
        parser.skip_comment();
        if !parser.rest.is_empty() && !parser.rest.starts_with(['\n', '\r']) {
            return Err(parser.error("expecting a separator"));
        }
        settings.push(Setting { line, key, value });
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, what: &'static str) -> SyntaxError {
        SyntaxError { line: self.line, what }
    }

    /// Moves over `len` bytes, counting lines.
    fn advance(&mut self, len: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at(len);
        self.line += passed.matches('\n').count();
        self.rest = rest;
        passed
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest.starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        self.advance(end)
    }

    fn skip_blanks(&mut self) {
        self.take_while(|c| c == ' ' || c == '\t');
    }

    fn skip_comment(&mut self) {
        if self.rest.starts_with('#') {
            self.take_while(|c| c != '\n');
        }
    }

    /// Over blanks, line ends and comments.
    fn skip_lines(&mut self) {
        loop {
            let before = self.rest.len();
            self.take_while(|c| c.is_ascii_whitespace());
            self.skip_comment();
            if self.rest.len() == before {
                return;
            }
        }
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(self.error("expecting a name"));
        }
        Ok(self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':')).to_owned())
    }

    fn value(&mut self) -> Result<Value, SyntaxError> {
        match self.rest.chars().next() {
            Some('[') => self.list(),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Value, SyntaxError> {
        match self.rest.chars().next() {
            Some('"' | '\'') => self.text(),
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            _ => Err(self.error("expecting a value")),
        }
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let sign = if self.take("-") { "-" } else { "" };
        let digits = self.take_while(|c| c.is_ascii_digit());
        let number = format!("{sign}{digits}").parse();
        number.map(Value::Integer).map_err(|_| self.error("unterminated number"))
    }

    fn text(&mut self) -> Result<Value, SyntaxError> {
        const LONG: &str = "\"\"\"";
        if self.take(LONG) {
            let end = self.rest.find(LONG).ok_or_else(|| self.error("unterminated string"))?;
            let text = self.advance(end).to_owned();
            self.take(LONG);
            return Ok(Value::Text(text));
        }
        let quote = if self.rest.starts_with('"') { '"' } else { '\'' };
        self.advance(quote.len_utf8());
        let line_end = self.rest.find('\n').unwrap_or(self.rest.len());
        let end = self.rest[..line_end].find(quote).ok_or_else(|| self.error("unterminated string"))?;
        let text = self.advance(end).to_owned();
        self.advance(quote.len_utf8());
        Ok(Value::Text(text))
    }

    fn list(&mut self) -> Result<Value, SyntaxError> {
        self.take("[");
        let mut items = Vec::new();
        loop {
            self.skip_lines();
            if self.take("]") {
                return Ok(Value::List(items));
            }
            if self.rest.is_empty() {
                return Err(self.error("list is not closed with ]"));
            }
            items.push(self.scalar()?);
            self.skip_lines();
            if !self.take(",") && !self.rest.starts_with(']') {
                let what = if self.rest.is_empty() {
                    "list is not closed with ]"
                } else {
                    "expecting a separator in list"
                };
                return Err(self.error(what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_value() {
        let text = "# comment\n\n a = 1 # one\nb=\"'x # y\"\nc = 'it\"s'\nd = -2\r\ne = [ \"p\", 3,\n # in between\n 'q', ]\n\
                    f = \"\"\"two\nlines\"\"\"\ng = []";
        let text_of = |text: &str| Value::Text(text.to_owned());
        let expected = [
            (3, "a", Value::Integer(1)),
            (4, "b", text_of("'x # y")),
            (5, "c", text_of("it\"s")),
            (6, "d", Value::Integer(-2)),
            (7, "e", Value::List(vec![text_of("p"), Value::Integer(3), text_of("q")])),
            (10, "f", text_of("two\nlines")),
            (12, "g", Value::List(vec![])),
        ];
        let settings = parse(text).unwrap();
        let read: Vec<_> = settings
            .iter()
            .map(|setting| (setting.line, setting.key.as_str(), setting.value.clone()))
            .collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, what) in [
            ("a = 1\n= 2", 2, "expecting a name"),
            ("a 1", 1, "expecting an assignment"),
            ("\n\na =", 3, "expecting a value"),
            ("a = b", 1, "expecting a value"),
            ("a = \"x\ny\"", 1, "unterminated string"),
            ("a = \"\"\"x\ny\"", 1, "unterminated string"),
            ("a = 1 2", 1, "expecting a separator"),
            ("a = [ 1\n 2 ]", 2, "expecting a separator in list"),
            ("a = [ 1,\n 2\n", 3, "list is not closed with ]"),
            ("a = [ [ 1 ] ]", 1, "expecting a value"),
            ("a = -", 1, "unterminated number"),
            ("a = 99999999999999999999", 1, "unterminated number"),
        ] {
            assert_eq!(parse(text), Err(SyntaxError { line, what }), "{text:?}");
        }
    }
}
