//! Named values of several types: how libvirt passes what grows over time, such as statistics and tunables.

use std::borrow::Cow;

use crate::error::{Error, Origin, Result};

/// One value, in one of libvirt's types.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamValue {
    Int(i32),
    Uint(u32),
    Llong(i64),
    Ullong(u64),
    Double(f64),
    Boolean(bool),
    Text(String),
}

/// What a name is expected to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamType {
    Int,
    Uint,
    Llong,
    Ullong,
    Double,
    Boolean,
    Text,
}

impl ParamType {
    fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Llong => "llong",
            Self::Ullong => "ullong",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::Text => "string",
        }
    }
}

impl ParamValue {
    pub fn kind(&self) -> ParamType {
        match self {
            Self::Int(_) => ParamType::Int,
            Self::Uint(_) => ParamType::Uint,
            Self::Llong(_) => ParamType::Llong,
            Self::Ullong(_) => ParamType::Ullong,
            Self::Double(_) => ParamType::Double,
            Self::Boolean(_) => ParamType::Boolean,
            Self::Text(_) => ParamType::Text,
        }
    }
}

macro_rules! types {
    ($($variant:ident: $type:ty, $getter:ident;)*) => {
        $(
            impl From<$type> for ParamValue {
                fn from(value: $type) -> Self {
                    Self::$variant(value)
                }
            }
        )*

        impl Params {
            $(
                /// The value of a name, if it is there with this type.
                pub fn $getter(&self, name: &str) -> Option<&$type> {
                    match self.get(name)? {
                        ParamValue::$variant(value) => Some(value),
                        _ => None,
                    }
                }
            )*
        }
    };
}

types! {
    Int: i32, int;
    Uint: u32, uint;
    Llong: i64, llong;
    Ullong: u64, ullong;
    Double: f64, double;
    Boolean: bool, boolean;
    Text: String, text;
}

impl From<&str> for ParamValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

/// A constant of this program, or what a client sent.
pub type Name = Cow<'static, str>;

/// A list of named values, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Params(pub Vec<(Name, ParamValue)>);

impl Params {
    pub fn push(&mut self, name: impl Into<Name>, value: impl Into<ParamValue>) {
        self.0.push((name.into(), value.into()));
    }

    pub fn get(&self, name: &str) -> Option<&ParamValue> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses names that a call does not know, other types than it expects, and names that come twice.
    pub fn validate(&self, known: &[(&str, ParamType)]) -> Result<()> {
        let refused = |error: Error| Err(error.from_origin(Origin::NONE));
        for (at, (name, value)) in self.0.iter().enumerate() {
            let Some((_, expected)) = known.iter().find(|(field, _)| field == name) else {
                return refused(Error::argument_unsupported(format!("parameter '{name}' not supported")));
            };
            if self.0.iter().take(at).any(|(before, _)| before == name) {
                return refused(Error::invalid_arg(format!("parameter '{name}' occurs multiple times")));
            }
            if value.kind() != *expected {
                let (found, expected) = (value.kind().name(), expected.name());
                let sentence =
                    format!("invalid type '{found}' for parameter '{name}', expected '{expected}'");
                return refused(Error::invalid_arg(sentence));
            }
        }
        Ok(())
    }
}

impl IntoIterator for Params {
    type Item = (Name, ParamValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_what_its_call_knows_once_and_in_its_type() {
        let known = [("weight", ParamType::Uint), ("device_weight", ParamType::Text)];
        let check = |params: &[(&str, ParamValue)]| {
            let params = params.iter().map(|(name, value)| ((*name).to_owned().into(), value.clone()));
            Params(params.collect()).validate(&known).map_err(|error| error.message())
        };
        assert_eq!(check(&[("weight", 3u32.into()), ("device_weight", "".into())]), Ok(()));
        assert_eq!(
            check(&[("wait", 3u32.into())]).unwrap_err(),
            "argument unsupported: parameter 'wait' not supported"
        );
        assert_eq!(
            check(&[("weight", 3u64.into())]).unwrap_err(),
            "invalid argument: invalid type 'ullong' for parameter 'weight', expected 'uint'"
        );
        assert_eq!(
            check(&[("weight", 3u32.into()), ("weight", 4u32.into())]).unwrap_err(),
            "invalid argument: parameter 'weight' occurs multiple times"
        );
    }
}
