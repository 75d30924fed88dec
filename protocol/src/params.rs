//! Typed parameters: libvirt's way to pass a set of named values of several types.
//!
//! [`TypedParams`] builds such a list, [`Lookup`] reads one.

use std::borrow::Cow;

use thiserror::Error;

use crate::remote::{TypedParam, TypedParamValue};

/// A parameter is not what the reader of a list expects.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParamError {
    #[error("invalid type '{found}' for parameter '{name}', expected '{expected}'")]
    Type { name: String, expected: &'static str, found: &'static str },
    #[error("parameter '{name}' occurs multiple times")]
    Repeated { name: String },
}

impl TypedParamValue {
    /// The type as libvirt's messages name it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Llong(_) => "llong",
            Self::Ullong(_) => "ullong",
            Self::Double(_) => "double",
            Self::Boolean(_) => "boolean",
            Self::String(_) => "string",
        }
    }
}

/// A list under construction: `TypedParams::new().uint("nr_cpus", 4).string("model", "x").into_vec()`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TypedParams(Vec<TypedParam>);

impl TypedParams {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: TypedParamValue) {
        self.0.push(TypedParam { field: name.into(), value });
    }

    fn with(mut self, name: impl Into<Cow<'static, str>>, value: TypedParamValue) -> Self {
        self.push(name, value);
        self
    }

    pub fn int(self, name: impl Into<Cow<'static, str>>, value: i32) -> Self {
        self.with(name, TypedParamValue::Int(value))
    }

    pub fn uint(self, name: impl Into<Cow<'static, str>>, value: u32) -> Self {
        self.with(name, TypedParamValue::Uint(value))
    }

    pub fn llong(self, name: impl Into<Cow<'static, str>>, value: i64) -> Self {
        self.with(name, TypedParamValue::Llong(value))
    }

    pub fn ullong(self, name: impl Into<Cow<'static, str>>, value: u64) -> Self {
        self.with(name, TypedParamValue::Ullong(value))
    }

    pub fn double(self, name: impl Into<Cow<'static, str>>, value: f64) -> Self {
        self.with(name, TypedParamValue::Double(value))
    }

    pub fn boolean(self, name: impl Into<Cow<'static, str>>, value: bool) -> Self {
        self.with(name, TypedParamValue::Boolean(value.into()))
    }

    pub fn string(self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.with(name, TypedParamValue::String(value.into()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_vec(self) -> Vec<TypedParam> {
        self.0
    }
}

impl From<TypedParams> for Vec<TypedParam> {
    fn from(params: TypedParams) -> Self {
        params.0
    }
}

/// Reads values by name. A name that is absent is `None`, one with another type or twice is an error.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a>(pub &'a [TypedParam]);

macro_rules! getters {
    ($($(#[$doc:meta])* $getter:ident: $variant:ident => $out:ty, |$value:ident| $read:expr;)*) => {$(
        $(#[$doc])*
        pub fn $getter(&self, name: &str) -> Result<Option<$out>, ParamError> {
            match self.only(name)? {
                None => Ok(None),
                Some(TypedParamValue::$variant($value)) => Ok(Some($read)),
                Some(other) => Err(ParamError::Type {
                    name: name.to_owned(),
                    expected: stringify!($getter),
                    found: other.type_name(),
                }),
            }
        }
    )*};
}

impl<'a> Lookup<'a> {
    /// The value of a name that occurs at most once.
    pub fn only(&self, name: &str) -> Result<Option<&'a TypedParamValue>, ParamError> {
        let mut found = self.all(name);
        match (found.next(), found.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(ParamError::Repeated { name: name.to_owned() }),
        }
    }

    /// Every value of a name that may repeat.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a TypedParamValue> {
        self.0.iter().filter(move |param| param.field == name).map(|param| &param.value)
    }

    getters! {
        int: Int => i32, |value| *value;
        uint: Uint => u32, |value| *value;
        llong: Llong => i64, |value| *value;
        ullong: Ullong => u64, |value| *value;
        double: Double => f64, |value| *value;
        /// Any number but zero is true, as in C.
        boolean: Boolean => bool, |value| *value != 0;
        string: String => &'a str, |value| value.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_answers_by_name_and_type() {
        let params = TypedParams::new().uint("cpus", 4).string("model", "x").boolean("live", true).into_vec();
        let lookup = Lookup(&params);
        assert_eq!(lookup.uint("cpus"), Ok(Some(4)));
        assert_eq!(lookup.string("model"), Ok(Some("x")));
        assert_eq!(lookup.boolean("live"), Ok(Some(true)));
        assert_eq!(lookup.int("absent"), Ok(None));
        let wrong = lookup.ullong("cpus").unwrap_err();
        assert_eq!(wrong.to_string(), "invalid type 'uint' for parameter 'cpus', expected 'ullong'");
    }

    #[test]
    fn a_repeated_name_is_refused_where_one_is_meant() {
        let params = TypedParams::new().string("disk", "vda").string("disk", "vdb").into_vec();
        assert_eq!(Lookup(&params).string("disk"), Err(ParamError::Repeated { name: "disk".into() }));
        assert_eq!(Lookup(&params).all("disk").count(), 2);
    }
}
