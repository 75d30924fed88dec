//! A text with every name looked up, every limit a number, and nothing the wire cannot carry.
//!
//! Declarations stand before their use, so no type can contain itself and sizes are known as types are built.

use std::collections::HashMap;

use crate::ast::{
    self, Arm, Condition, Field as AstField, File, ItemKind, Shape, Size, Stream, TypeName, Unit,
};
use crate::wire::{Traits, Wire, common_traits};
use crate::{Fault, names};

/// The structs' fields that are [`Wire::Name`]: ten thousand of them are in one answer about a thousand domains.
const NAMES: &[(&str, &str)] = &[("typed_param", "field")];

#[derive(Debug, Clone)]
pub struct Module {
    pub name: String,
    pub program: Option<Program>,
    pub imports: Vec<String>,
    pub constants: Vec<Constant>,
    pub types: Vec<Type>,
    pub calls: Vec<Call>,
    pub events: Vec<Event>,
    /// What importers see: the wire form behind each type name.
    names: HashMap<String, Wire>,
    limits: HashMap<String, i64>,
    flags: HashMap<String, u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub number: u32,
    pub version: u32,
}

#[derive(Debug, Clone)]
pub struct Constant {
    pub doc: Vec<String>,
    pub name: String,
    pub value: i64,
}

/// A data type, by its Rust name.
#[derive(Debug, Clone)]
pub struct Type {
    pub doc: Vec<String>,
    pub name: String,
    pub body: Body,
    pub traits: Traits,
    pub min_size: usize,
    /// Its text and data are wiped when it is dropped.
    pub is_secret: bool,
}

#[derive(Debug, Clone)]
pub enum Body {
    Enum(Vec<ast::Member>),
    Struct(Vec<Field>),
    Union(Vec<Variant>),
}

#[derive(Debug, Clone)]
pub struct Field {
    pub doc: Vec<String>,
    /// As Rust writes it.
    pub name: String,
    pub wire: Wire,
}

#[derive(Debug, Clone)]
pub struct Variant {
    pub name: String,
    pub value: i32,
    pub wire: Wire,
}

#[derive(Debug, Clone)]
pub struct Call {
    pub doc: Vec<String>,
    /// As the text has it.
    pub name: String,
    pub number: i32,
    pub api: String,
    pub high: bool,
    pub secret: bool,
    pub kind: &'static str,
    pub acl: Vec<Acl>,
    /// The argument that the conditions in `acl` look at.
    pub looks_at: Option<String>,
    /// The class of object that the checks are about, and the argument that names it.
    pub subject: Option<(&'static str, String)>,
    pub args: Option<String>,
    pub ret: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Acl {
    pub object: String,
    pub permission: String,
    pub when: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    Set(u32),
    Clear(u32),
    Equals(u32),
}

#[derive(Debug, Clone)]
pub struct Event {
    pub doc: Vec<String>,
    pub name: String,
    pub number: i32,
    pub message: Option<String>,
}

pub(crate) fn build(file: &File, earlier: &[Module]) -> Result<Module, Fault> {
    let program = match file.unit {
        Unit::Program { number, version, .. } => Some(Program { number, version }),
        Unit::Types { .. } => None,
    };
    let mut module = Module {
        name: file.unit.name().to_owned(),
        program,
        imports: Vec::new(),
        constants: Vec::new(),
        types: Vec::new(),
        calls: Vec::new(),
        events: Vec::new(),
        names: HashMap::new(),
        limits: HashMap::new(),
        flags: HashMap::new(),
    };
    for item in &file.items {
        module.add(item, earlier)?;
    }
    Ok(module)
}

impl Module {
    fn add(&mut self, item: &ast::Item, earlier: &[Module]) -> Result<(), Fault> {
        let (line, name) = (item.line, &item.name);
        match &item.kind {
            ItemKind::Import { types } => self.import(line, name, types, earlier),
            ItemKind::Const { value } => {
                self.constants.push(Constant { doc: item.doc.clone(), name: name.clone(), value: *value });
                unique(&mut self.limits, line, name, *value)
            }
            ItemKind::Flag { value } => {
                let value =
                    u32::try_from(*value).map_err(|_| Fault::at(line, format!("{value} is no flag")))?;
                unique(&mut self.flags, line, name, value)
            }
            ItemKind::Typedef { ty, shape } => {
                let wire = self.wire(line, ty, shape)?;
                unique(&mut self.names, line, name, wire)
            }
            ItemKind::Enum { members } => {
                let traits = Traits { copy: true, eq: true };
                self.declare(item, name, Body::Enum(members.clone()), traits, 4).map(|_| ())
            }
            ItemKind::Struct { fields } => self.structure(item, name, fields).map(|_| ()),
            ItemKind::Union { selector, arms } => self.union(item, selector, arms),
            ItemKind::Call(call) => self.call(item, call),
            ItemKind::Event { number, message } => {
                self.number_is_free(line, *number, name)?;
                let message = self.implied(item, "msg", message)?;
                self.events.push(Event {
                    doc: item.doc.clone(),
                    name: name.clone(),
                    number: *number,
                    message,
                });
                Ok(())
            }
        }
    }

    fn import(&mut self, line: u32, name: &str, types: &[String], earlier: &[Module]) -> Result<(), Fault> {
        let Some(module) = earlier.iter().find(|module| module.name == name) else {
            return Err(Fault::at(line, format!("there is no earlier text '{name}'")));
        };
        for type_name in types {
            let Some(wire) = module.names.get(type_name) else {
                return Err(Fault::at(line, format!("'{name}' has no type '{type_name}'")));
            };
            unique(&mut self.names, line, type_name, wire.seen_from_outside(name))?;
        }
        self.imports.push(name.to_owned());
        Ok(())
    }

    fn call(&mut self, item: &ast::Item, call: &ast::Call) -> Result<(), Fault> {
        let (line, notes) = (item.line, &call.notes);
        self.number_is_free(line, call.number, &item.name)?;
        let Some(checks) = &notes.acl else {
            return Err(Fault::at(line, format!("call '{}' does not say 'acl'", item.name)));
        };
        let kind = match (notes.fds, notes.stream) {
            (false, None) => "Plain",
            (true, None) => "WithFds",
            (false, Some(Stream::Up)) => "StreamUp",
            (false, Some(Stream::Down)) => "StreamDown",
            (false, Some(Stream::Both)) => "StreamBoth",
            (true, Some(_)) => return Err(Fault::at(line, "a stream carries no descriptors")),
        };
        let (acl, looks_at) = self.acl(checks, &call.args)?;
        let api = notes.api.clone().unwrap_or_else(|| names::api(&self.name, &item.name));
        let args = self.implied(item, "args", &call.args)?;
        let ret = self.implied(item, "ret", &call.ret)?;
        let of_call = [&args, &ret].map(|name| name.as_ref().filter(|_| notes.secret));
        for ty in self.types.iter_mut().filter(|ty| of_call.contains(&Some(&ty.name))) {
            ty.is_secret = true;
        }
        self.calls.push(Call {
            doc: item.doc.clone(),
            name: item.name.clone(),
            number: call.number,
            api,
            high: notes.high,
            secret: notes.secret,
            kind,
            subject: subject(&acl, &call.args),
            acl,
            looks_at,
            args,
            ret,
        });
        Ok(())
    }

    fn acl(&self, checks: &[ast::Acl], args: &[AstField]) -> Result<(Vec<Acl>, Option<String>), Fault> {
        let mut looks_at: Option<&str> = None;
        let mut acl = Vec::new();
        for check in checks {
            let (field, when) = match &check.when {
                Condition::Always => (None, When::Always),
                Condition::If(flags) => (Some("flags"), When::Set(self.mask(check.line, flags)?)),
                Condition::Unless(flags) => (Some("flags"), When::Clear(self.mask(check.line, flags)?)),
                Condition::FieldIs { field, value } => {
                    (Some(field.as_str()), When::Equals(self.mask(check.line, std::slice::from_ref(value))?))
                }
            };
            if let Some(field) = field {
                if !args.iter().any(|arg| arg.name == field && arg.ty == TypeName::UnsignedInt) {
                    return Err(Fault::at(check.line, format!("no argument 'unsigned int {field}'")));
                }
                if looks_at.replace(field).is_some_and(|other| other != field) {
                    return Err(Fault::at(check.line, "conditions of one call look at different arguments"));
                }
            }
            acl.push(Acl { object: check.object.clone(), permission: check.permission.clone(), when });
        }
        Ok((acl, looks_at.map(names::field)))
    }

    fn mask(&self, line: u32, flags: &[String]) -> Result<u32, Fault> {
        flags.iter().try_fold(0, |mask, flag| match self.flags.get(flag) {
            Some(bits) => Ok(mask | bits),
            None => Err(Fault::at(line, format!("there is no flag '{flag}'"))),
        })
    }

    fn number_is_free(&self, line: u32, number: i32, name: &str) -> Result<(), Fault> {
        if self.program.is_none() {
            return Err(Fault::at(line, "only a program has calls and events"));
        }
        let calls = self.calls.iter().map(|call| (call.number, &call.name));
        match calls
            .chain(self.events.iter().map(|event| (event.number, &event.name)))
            .find(|(taken, _)| *taken == number)
        {
            Some((_, other)) => Err(Fault::at(line, format!("'{name}' has the number of '{other}'"))),
            None => Ok(()),
        }
    }

    /// The struct that a signature implies, unless it is empty. Answers its Rust name.
    fn implied(
        &mut self,
        item: &ast::Item,
        suffix: &str,
        fields: &[AstField],
    ) -> Result<Option<String>, Fault> {
        if fields.is_empty() {
            return Ok(None);
        }
        let (what, module) = match suffix {
            "args" => ("Arguments", "procedure"),
            "ret" => ("Results", "procedure"),
            _ => ("Message", "event"),
        };
        let target = names::camel(&item.name);
        let doc = vec![format!("{what} of [`{target}`](super::{module}::{target}).")];
        let named = ast::Item { doc, ..item.clone() };
        self.structure(&named, &format!("{}_{suffix}", item.name), fields).map(Some)
    }

    fn structure(&mut self, item: &ast::Item, name: &str, fields: &[AstField]) -> Result<String, Fault> {
        let mut built: Vec<Field> = Vec::new();
        for field in fields {
            let rust = names::field(&field.name);
            if built.iter().any(|other| other.name == rust) {
                return Err(Fault::at(field.line, format!("there are two fields '{}'", field.name)));
            }
            let wire = match self.wire(field.line, &field.ty, &field.shape)? {
                Wire::Text { max } if NAMES.contains(&(name, &field.name)) => Wire::Name { max },
                wire => wire,
            };
            built.push(Field { doc: field.doc.clone(), name: rust, wire });
        }
        let traits = common_traits(built.iter().map(|field| &field.wire));
        let min_size = built.iter().map(|field| field.wire.min_size()).sum();
        self.declare(item, name, Body::Struct(built), traits, min_size)
    }

    fn union(&mut self, item: &ast::Item, selector: &TypeName, arms: &[Arm]) -> Result<(), Fault> {
        let members = self.selector_members(item.line, selector)?;
        let mut variants = Vec::new();
        for Arm { when, field } in arms {
            let Some(member) = members.iter().find(|member| member.name == *when) else {
                return Err(Fault::at(field.line, format!("'{when}' is no member of the union's selector")));
            };
            let wire = self.wire(field.line, &field.ty, &field.shape)?;
            variants.push(Variant { name: names::camel(when), value: member.value, wire });
        }
        let Some(smallest) = variants.iter().map(|variant| variant.wire.min_size()).min() else {
            return Err(Fault::at(item.line, "a union needs an arm"));
        };
        let traits = common_traits(variants.iter().map(|variant| &variant.wire));
        self.declare(item, &item.name, Body::Union(variants), traits, 4 + smallest).map(|_| ())
    }

    fn selector_members(&self, line: u32, selector: &TypeName) -> Result<Vec<ast::Member>, Fault> {
        if let TypeName::Named(name) = selector {
            let rust = names::camel(name);
            for ty in &self.types {
                if let Body::Enum(members) = &ty.body
                    && ty.name == rust
                {
                    return Ok(members.clone());
                }
            }
        }
        Err(Fault::at(line, "a union is selected by an enum of this text"))
    }

    fn declare(
        &mut self,
        item: &ast::Item,
        name: &str,
        body: Body,
        traits: Traits,
        min_size: usize,
    ) -> Result<String, Fault> {
        let rust = names::camel(name);
        let wire = Wire::Data { path: rust.clone(), traits, min_size };
        unique(&mut self.names, item.line, name, wire)?;
        self.types.push(Type {
            doc: item.doc.clone(),
            name: rust.clone(),
            body,
            traits,
            min_size,
            is_secret: false,
        });
        Ok(rust)
    }

    fn wire(&self, line: u32, ty: &TypeName, shape: &Shape) -> Result<Wire, Fault> {
        match (ty, shape) {
            (TypeName::Opaque, Shape::UpTo(size)) => Ok(Wire::Opaque { max: self.limit(line, size)?.0 }),
            (TypeName::Opaque, Shape::Fixed(size)) => {
                Ok(Wire::FixedOpaque { len: self.limit(line, size)?.1 })
            }
            (TypeName::Char, Shape::UpTo(size)) => Ok(Wire::Chars { max: self.limit(line, size)?.0 }),
            (TypeName::Char, Shape::Fixed(size)) => Ok(Wire::FixedChars { len: self.limit(line, size)?.1 }),
            (TypeName::String, Shape::UpTo(size)) => Ok(Wire::Text { max: self.limit(line, size)?.0 }),
            (TypeName::Opaque | TypeName::String, _) => {
                Err(Fault::at(line, "opaque and string need a limit"))
            }
            (_, Shape::One) => self.single(line, ty),
            (_, Shape::Optional) => match self.single(line, ty)? {
                item @ (Wire::Text { .. } | Wire::Data { .. }) => Ok(Wire::Optional(Box::new(item))),
                _ => Err(Fault::at(line, "only text and structs may be absent")),
            },
            (_, Shape::UpTo(size)) => match self.single(line, ty)? {
                item @ (Wire::Text { .. } | Wire::Data { .. } | Wire::Scalar { .. }) => {
                    Ok(Wire::List { item: Box::new(item), max: self.limit(line, size)?.0 })
                }
                _ => Err(Fault::at(line, "a list holds text, structs or numbers")),
            },
            (_, Shape::Fixed(size)) => match self.single(line, ty)? {
                item @ Wire::Scalar { .. } => {
                    Ok(Wire::Array { item: Box::new(item), len: self.limit(line, size)?.1 })
                }
                _ => Err(Fault::at(line, "an array of fixed length holds numbers")),
            },
        }
    }

    fn single(&self, line: u32, ty: &TypeName) -> Result<Wire, Fault> {
        let scalar = |rust, size| Ok(Wire::Scalar { rust, size });
        match ty {
            TypeName::Int => scalar("i32", 4),
            TypeName::UnsignedInt => scalar("u32", 4),
            TypeName::Hyper => scalar("i64", 8),
            TypeName::UnsignedHyper => scalar("u64", 8),
            TypeName::Char => scalar("i8", 4),
            TypeName::UnsignedChar => scalar("u8", 4),
            TypeName::Short => scalar("i16", 4),
            TypeName::UnsignedShort => scalar("u16", 4),
            TypeName::Bool => scalar("bool", 4),
            TypeName::Double => scalar("f64", 8),
            TypeName::Opaque | TypeName::String => Err(Fault::at(line, "opaque and string need a limit")),
            TypeName::Named(name) => match self.names.get(name) {
                Some(wire) => Ok(wire.clone()),
                None => Err(Fault::at(line, format!("there is no type '{name}' before this line"))),
            },
        }
    }

    /// A size as Rust writes it, and its value.
    fn limit(&self, line: u32, size: &Size) -> Result<(String, usize), Fault> {
        let (text, value) = match size {
            Size::Number(value) => (value.to_string(), *value),
            Size::Constant(name) => match self.limits.get(name) {
                Some(value) => (name.clone(), *value),
                None => return Err(Fault::at(line, format!("there is no constant '{name}'"))),
            },
        };
        match usize::try_from(value) {
            Ok(value) if u32::try_from(value).is_ok() => Ok((text, value)),
            _ => Err(Fault::at(line, format!("{value} is no size"))),
        }
    }
}

fn unique<T>(table: &mut HashMap<String, T>, line: u32, name: &str, value: T) -> Result<(), Fault> {
    match table.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(Fault::at(line, format!("'{name}' is declared twice"))),
    }
}

/// The argument that names the object which `acl` is about, if one does.
fn subject(acl: &[Acl], args: &[AstField]) -> Option<(&'static str, String)> {
    /// Classes of objects, types of arguments that name one, and where in them.
    const NAMING: &[(&str, &str, &str, &str)] = &[
        ("domain", "domain", "Domain", ""),
        ("domain", "domain_snapshot", "Domain", ".dom"),
        ("domain", "domain_checkpoint", "Domain", ".dom"),
        ("storage_pool", "storage_pool", "StoragePool", ""),
        ("storage_vol", "storage_vol", "StorageVol", ""),
        ("secret", "secret", "Secret", ""),
    ];
    let class = &acl.iter().find(|check| check.object != "connect")?.object;
    args.iter().filter(|arg| arg.shape == Shape::One).find_map(|arg| {
        let TypeName::Named(named) = &arg.ty else { return None };
        let naming = NAMING.iter().find(|(object, ty, ..)| object == class && ty == named);
        naming.map(|(_, _, variant, inside)| (*variant, names::field(&arg.name) + inside))
    })
}
