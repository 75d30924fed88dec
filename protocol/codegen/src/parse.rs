//! Tokens to [`ast::File`](crate::ast::File): one function per production of the grammar.
//!
//! ```text
//! file    = ("program" NAME "=" NUMBER "version" NUMBER | "types" NAME) ";" item*
//! item    = "import" NAME "{" NAME ("," NAME)* "}" ";"
//!         | "const" NAME "=" NUMBER ";" | "flag" NAME "=" NUMBER ";"
//!         | "typedef" field ";" | "enum" NAME "{" NAME "=" NUMBER ("," …)* "}" ";"
//!         | "struct" NAME "{" (field ";")* "}" ";"
//!         | "union" NAME "switch" "(" field ")" "{" ("case" NAME ":" field ";")* "}" ";"
//!         | "call" NUMBER NAME fields ("returns" fields)? note* ";" | "event" NUMBER NAME fields ";"
//! fields  = "(" (field ("," field)*)? ")"
//! field   = type ("*" NAME | NAME ("[" size "]" | "<" size ">")?)
//! note    = "api" NAME | "priority" ("low" | "high") | "stream" ("up" | "down" | "both") | "fds" | "secret"
//!         | "acl" ("none" | check ("," check)*)
//! check   = NAME ":" NAME ("if" NAME "is" NAME | ("if" | "unless") NAME ("|" NAME)*)?
//! ```

use crate::Fault;
use crate::ast::{
    Acl, Arm, Call, Condition, Field, File, Item, ItemKind, Member, Notes, Shape, Size, Stream, TypeName,
    Unit,
};
use crate::lex::{Kind, Token};

pub(crate) fn parse(tokens: Vec<Token>) -> Result<File, Fault> {
    let mut parser = Parser { tokens, next: 0 };
    let unit = parser.unit()?;
    let mut items = Vec::new();
    while parser.peek().kind != Kind::End {
        items.push(parser.item()?);
    }
    Ok(File { unit, items })
}

/// The tokens end with [`Kind::End`], which is never passed.
struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

type Parsed<T> = Result<T, Fault>;

impl Parser {
    fn unit(&mut self) -> Parsed<Unit> {
        let unit = match self.word()?.as_str() {
            "program" => {
                let name = self.word()?;
                self.mark('=')?;
                let number = self.integer()?;
                self.keyword("version")?;
                Unit::Program { name, number, version: self.integer()? }
            }
            "types" => Unit::Types { name: self.word()? },
            other => return self.fault(format!("expected 'program' or 'types', found '{other}'")),
        };
        self.mark(';')?;
        Ok(unit)
    }

    fn item(&mut self) -> Parsed<Item> {
        let Token { line, doc, .. } = self.peek().clone();
        let keyword = self.word()?;
        if keyword == "typedef" {
            let Field { name, ty, shape, .. } = self.field()?;
            self.mark(';')?;
            return Ok(Item { line, doc, name, kind: ItemKind::Typedef { ty, shape } });
        }
        let number = match keyword.as_str() {
            "call" | "event" => self.integer()?,
            _ => 0,
        };
        let name = self.word()?;
        let kind = match keyword.as_str() {
            "import" => ItemKind::Import { types: self.block(Self::listed_word)? },
            "const" => ItemKind::Const { value: self.value()? },
            "flag" => ItemKind::Flag { value: self.value()? },
            "enum" => ItemKind::Enum { members: self.members()? },
            "struct" => ItemKind::Struct { fields: self.block(Self::semicolon_field)? },
            "union" => self.union()?,
            "call" => ItemKind::Call(self.call(number)?),
            "event" => ItemKind::Event { number, message: self.fields()? },
            other => return Err(Fault::at(line, format!("'{other}' begins no declaration"))),
        };
        self.mark(';')?;
        Ok(Item { line, doc, name, kind })
    }

    fn listed_word(&mut self) -> Parsed<String> {
        let word = self.word()?;
        self.comma()?;
        Ok(word)
    }

    /// Between the parts of a block, not behind the last.
    fn comma(&mut self) -> Parsed<()> {
        match self.peek().kind {
            Kind::Mark('}') => Ok(()),
            _ => self.mark(','),
        }
    }

    fn value(&mut self) -> Parsed<i64> {
        self.mark('=')?;
        self.integer()
    }

    fn members(&mut self) -> Parsed<Vec<Member>> {
        self.block(|parser| {
            let doc = parser.peek().doc.clone();
            let name = parser.word()?;
            parser.mark('=')?;
            let value = parser.integer()?;
            parser.comma()?;
            Ok(Member { doc, name, value })
        })
    }

    fn union(&mut self) -> Parsed<ItemKind> {
        self.keyword("switch")?;
        self.mark('(')?;
        let selector = self.field()?.ty;
        self.mark(')')?;
        let arms = self.block(|parser| {
            parser.keyword("case")?;
            let when = parser.word()?;
            parser.mark(':')?;
            Ok(Arm { when, field: parser.semicolon_field()? })
        })?;
        Ok(ItemKind::Union { selector, arms })
    }

    fn call(&mut self, number: i32) -> Parsed<Call> {
        let args = self.fields()?;
        let ret = if self.take_keyword("returns") { self.fields()? } else { Vec::new() };
        Ok(Call { number, args, ret, notes: self.notes()? })
    }

    fn notes(&mut self) -> Parsed<Notes> {
        let mut notes = Notes::default();
        while let Kind::Word(note) = self.peek().kind.clone() {
            self.advance();
            match note.as_str() {
                "api" => notes.api = Some(self.word()?),
                "priority" => notes.high = self.one_of(&[("low", false), ("high", true)])?,
                "stream" => {
                    let ways = [("up", Stream::Up), ("down", Stream::Down), ("both", Stream::Both)];
                    notes.stream = Some(self.one_of(&ways)?);
                }
                "fds" => notes.fds = true,
                "secret" => notes.secret = true,
                "acl" => notes.acl = Some(self.acl()?),
                other => return self.fault(format!("'{other}' is no annotation")),
            }
        }
        Ok(notes)
    }

    fn acl(&mut self) -> Parsed<Vec<Acl>> {
        if self.take_keyword("none") {
            return Ok(Vec::new());
        }
        let mut checks = vec![self.check()?];
        while self.take_mark(',') {
            checks.push(self.check()?);
        }
        Ok(checks)
    }

    fn check(&mut self) -> Parsed<Acl> {
        let line = self.peek().line;
        let object = self.word()?;
        self.mark(':')?;
        let permission = self.word()?;
        let when = if self.take_keyword("unless") {
            let first = self.word()?;
            Condition::Unless(self.more_flags(first)?)
        } else if self.take_keyword("if") {
            let first = self.word()?;
            match self.take_keyword("is") {
                true => Condition::FieldIs { field: first, value: self.word()? },
                false => Condition::If(self.more_flags(first)?),
            }
        } else {
            Condition::Always
        };
        Ok(Acl { line, object, permission, when })
    }

    fn more_flags(&mut self, first: String) -> Parsed<Vec<String>> {
        let mut flags = vec![first];
        while self.take_mark('|') {
            flags.push(self.word()?);
        }
        Ok(flags)
    }

    fn fields(&mut self) -> Parsed<Vec<Field>> {
        self.mark('(')?;
        let mut fields = Vec::new();
        while !self.take_mark(')') {
            if !fields.is_empty() {
                self.mark(',')?;
            }
            fields.push(self.field()?);
        }
        Ok(fields)
    }

    fn semicolon_field(&mut self) -> Parsed<Field> {
        let field = self.field()?;
        self.mark(';')?;
        Ok(field)
    }

    fn field(&mut self) -> Parsed<Field> {
        let Token { line, doc, .. } = self.peek().clone();
        let ty = self.type_name()?;
        let optional = self.take_mark('*');
        let name = self.word()?;
        let shape = match self.peek().kind {
            _ if optional => Shape::Optional,
            Kind::Mark('[') => Shape::Fixed(self.size('[', ']')?),
            Kind::Mark('<') => Shape::UpTo(self.size('<', '>')?),
            _ => Shape::One,
        };
        Ok(Field { line, doc, name, ty, shape })
    }

    fn type_name(&mut self) -> Parsed<TypeName> {
        Ok(match self.word()?.as_str() {
            "unsigned" => self.one_of(&[
                ("int", TypeName::UnsignedInt),
                ("hyper", TypeName::UnsignedHyper),
                ("char", TypeName::UnsignedChar),
                ("short", TypeName::UnsignedShort),
            ])?,
            "int" => TypeName::Int,
            "hyper" => TypeName::Hyper,
            "char" => TypeName::Char,
            "short" => TypeName::Short,
            "bool" => TypeName::Bool,
            "double" => TypeName::Double,
            "opaque" => TypeName::Opaque,
            "string" => TypeName::String,
            name => TypeName::Named(name.to_owned()),
        })
    }

    fn size(&mut self, open: char, close: char) -> Parsed<Size> {
        self.mark(open)?;
        let size = match self.peek().kind {
            Kind::Number(_) => Size::Number(self.integer()?),
            _ => Size::Constant(self.word()?),
        };
        self.mark(close)?;
        Ok(size)
    }

    /// `{ part part … }`
    fn block<T>(&mut self, part: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.mark('{')?;
        let mut parts = Vec::new();
        while !self.take_mark('}') {
            parts.push(part(self)?);
        }
        Ok(parts)
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next]
    }

    fn advance(&mut self) {
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
    }

    fn word(&mut self) -> Parsed<String> {
        match self.peek().kind.clone() {
            Kind::Word(word) => {
                self.advance();
                Ok(word)
            }
            found => self.fault(format!("expected a name, found {}", describe(&found))),
        }
    }

    fn integer<T: TryFrom<i64>>(&mut self) -> Parsed<T> {
        match self.peek().kind {
            Kind::Number(number) => match T::try_from(number) {
                Ok(value) => {
                    self.advance();
                    Ok(value)
                }
                Err(_) => self.fault(format!("{number} is out of range")),
            },
            ref found => self.fault(format!("expected a number, found {}", describe(found))),
        }
    }

    fn mark(&mut self, mark: char) -> Parsed<()> {
        match self.take_mark(mark) {
            true => Ok(()),
            false => self.fault(format!("expected '{mark}', found {}", describe(&self.peek().kind))),
        }
    }

    fn take_mark(&mut self, mark: char) -> bool {
        let found = self.peek().kind == Kind::Mark(mark);
        if found {
            self.advance();
        }
        found
    }

    fn keyword(&mut self, keyword: &str) -> Parsed<()> {
        match self.take_keyword(keyword) {
            true => Ok(()),
            false => self.fault(format!("expected '{keyword}', found {}", describe(&self.peek().kind))),
        }
    }

    fn take_keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(&self.peek().kind, Kind::Word(word) if word == keyword);
        if found {
            self.advance();
        }
        found
    }

    fn one_of<T: Clone>(&mut self, choices: &[(&str, T)]) -> Parsed<T> {
        for (keyword, choice) in choices {
            if self.take_keyword(keyword) {
                return Ok(choice.clone());
            }
        }
        let names: Vec<_> = choices.iter().map(|(keyword, _)| format!("'{keyword}'")).collect();
        self.fault(format!("expected {}, found {}", names.join(" or "), describe(&self.peek().kind)))
    }

    fn fault<T>(&self, message: String) -> Parsed<T> {
        Err(Fault::at(self.peek().line, message))
    }
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Word(word) => format!("'{word}'"),
        Kind::Number(number) => format!("'{number}'"),
        Kind::Mark(mark) => format!("'{mark}'"),
        Kind::End => "the end".to_owned(),
    }
}
