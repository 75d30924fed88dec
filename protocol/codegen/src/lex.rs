//! Text to tokens. Comments vanish, except `/** … */`, which documents the token behind it.

use crate::Fault;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Word(String),
    Number(i64),
    Mark(char),
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) line: u32,
    pub(crate) doc: Vec<String>,
}

/// The last token is always [`Kind::End`].
pub(crate) fn lex(text: &str) -> Result<Vec<Token>, Fault> {
    let mut lexer = Lexer { rest: text, line: 1, doc: Vec::new() };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.token()?;
        let end = token.kind == Kind::End;
        tokens.push(token);
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    doc: Vec<String>,
}

impl<'a> Lexer<'a> {
    fn token(&mut self) -> Result<Token, Fault> {
        self.skip_blank()?;
        let line = self.line;
        let kind = match self.rest.chars().next() {
            None => Kind::End,
            Some(c) if c.is_ascii_digit() || c == '-' => self.number()?,
            Some(c) if is_word(c) => Kind::Word(self.take_while(is_word).to_owned()),
            Some(c) if "{}()[]<>=;:,*|".contains(c) => {
                self.advance(1);
                Kind::Mark(c)
            }
            Some(c) => return Err(Fault::at(line, format!("unexpected character '{c}'"))),
        };
        Ok(Token { kind, line, doc: std::mem::take(&mut self.doc) })
    }

    fn skip_blank(&mut self) -> Result<(), Fault> {
        loop {
            self.take_while(char::is_whitespace);
            let Some(comment) = self.rest.strip_prefix("/*") else { return Ok(()) };
            let Some(len) = comment.find("*/") else {
                return Err(Fault::at(self.line, "comment is not closed"));
            };
            if let Some(doc) = comment[..len].strip_prefix('*') {
                self.doc = doc
                    .lines()
                    .map(|line| line.trim().trim_start_matches('*').trim())
                    .map(str::to_owned)
                    .collect();
            }
            self.advance(2 + len + 2);
        }
    }

    fn number(&mut self) -> Result<Kind, Fault> {
        let (line, text) = (self.line, self.take_while(|c| is_word(c) || c == '-'));
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.map(Kind::Number).map_err(|_| Fault::at(line, format!("'{text}' is not a number")))
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let text = &self.rest[..len];
        self.advance(len);
        text
    }

    fn advance(&mut self, len: usize) {
        let (passed, rest) = self.rest.split_at(len);
        self.line += passed.matches('\n').count() as u32;
        self.rest = rest;
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
