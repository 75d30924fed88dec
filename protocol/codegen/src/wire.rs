//! What stands on the wire for one field, and what follows from it.

/// What stands on the wire for one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A type that Rust has: `i32`, `f64`, `bool`, …
    Scalar {
        rust: &'static str,
        size: usize,
    },
    Text {
        max: String,
    },
    /// Text that is nearly always a constant of whoever sends it: borrowed then, and owned where it was received.
    Name {
        max: String,
    },
    Opaque {
        max: String,
    },
    FixedOpaque {
        len: usize,
    },
    /// Bytes in a word each: XDR's array of char.
    Chars {
        max: String,
    },
    FixedChars {
        len: usize,
    },
    /// Another generated type.
    Data {
        path: String,
        traits: Traits,
        min_size: usize,
    },
    List {
        item: Box<Wire>,
        max: String,
    },
    Array {
        item: Box<Wire>,
        len: usize,
    },
    Optional(Box<Wire>),
}

/// What a type can derive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    pub copy: bool,
    pub eq: bool,
}

impl Wire {
    /// The fewest bytes it takes.
    pub fn min_size(&self) -> usize {
        match self {
            Self::Scalar { size, .. } => *size,
            Self::Text { .. }
            | Self::Name { .. }
            | Self::Opaque { .. }
            | Self::Chars { .. }
            | Self::List { .. }
            | Self::Optional(_) => 4,
            Self::FixedOpaque { len } => len.next_multiple_of(4),
            Self::FixedChars { len } => len * 4,
            Self::Data { min_size, .. } => *min_size,
            Self::Array { item, len } => item.min_size() * len,
        }
    }

    pub fn traits(&self) -> Traits {
        match self {
            Self::Scalar { rust, .. } => Traits { copy: true, eq: *rust != "f64" },
            Self::Text { .. } | Self::Name { .. } | Self::Opaque { .. } | Self::Chars { .. } => {
                Traits { copy: false, eq: true }
            }
            Self::FixedOpaque { .. } | Self::FixedChars { .. } => Traits { copy: true, eq: true },
            Self::Data { traits, .. } => *traits,
            Self::List { item, .. } => Traits { copy: false, ..item.traits() },
            Self::Array { item, .. } | Self::Optional(item) => item.traits(),
        }
    }

    /// With the module's name in front of what it names.
    pub(crate) fn seen_from_outside(&self, module: &str) -> Self {
        let outside = |name: &str| match name.parse::<u32>() {
            Ok(_) => name.to_owned(),
            Err(_) => format!("{module}::{name}"),
        };
        match self {
            Self::Data { path, traits, min_size } => {
                Self::Data { path: outside(path), traits: *traits, min_size: *min_size }
            }
            Self::Text { max } => Self::Text { max: outside(max) },
            Self::Name { max } => Self::Name { max: outside(max) },
            Self::Opaque { max } => Self::Opaque { max: outside(max) },
            Self::Chars { max } => Self::Chars { max: outside(max) },
            Self::List { item, max } => {
                Self::List { item: Box::new(item.seen_from_outside(module)), max: outside(max) }
            }
            Self::Optional(item) => Self::Optional(Box::new(item.seen_from_outside(module))),
            Self::Scalar { .. } | Self::FixedOpaque { .. } | Self::FixedChars { .. } | Self::Array { .. } => {
                self.clone()
            }
        }
    }
}

/// What a type with these fields can derive.
pub(crate) fn common_traits<'a>(wires: impl Iterator<Item = &'a Wire>) -> Traits {
    wires.map(Wire::traits).fold(Traits { copy: true, eq: true }, |all, one| Traits {
        copy: all.copy && one.copy,
        eq: all.eq && one.eq,
    })
}
