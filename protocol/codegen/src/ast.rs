//! What a text says, names not yet looked up.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub unit: Unit,
    pub items: Vec<Item>,
}

/// What the first line declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// `program NAME = NUMBER version N;`
    Program { name: String, number: u32, version: u32 },
    /// `types NAME;`: data types that several programs share.
    Types { name: String },
}

impl Unit {
    pub fn name(&self) -> &str {
        match self {
            Self::Program { name, .. } | Self::Types { name } => name,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub line: u32,
    pub doc: Vec<String>,
    pub name: String,
    pub kind: ItemKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// The item's name is the module's.
    Import {
        types: Vec<String>,
    },
    Const {
        value: i64,
    },
    Flag {
        value: i64,
    },
    Typedef {
        ty: TypeName,
        shape: Shape,
    },
    Enum {
        members: Vec<Member>,
    },
    Struct {
        fields: Vec<Field>,
    },
    Union {
        selector: TypeName,
        arms: Vec<Arm>,
    },
    Call(Call),
    Event {
        number: i32,
        message: Vec<Field>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub doc: Vec<String>,
    pub name: String,
    pub value: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub line: u32,
    pub doc: Vec<String>,
    pub name: String,
    pub ty: TypeName,
    pub shape: Shape,
}

/// `case WHEN: field;`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    pub when: String,
    pub field: Field,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeName {
    Int,
    UnsignedInt,
    Hyper,
    UnsignedHyper,
    Char,
    UnsignedChar,
    Short,
    UnsignedShort,
    Bool,
    Double,
    Opaque,
    String,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    One,
    /// `type *name`
    Optional,
    /// `type name[SIZE]`
    Fixed(Size),
    /// `type name<SIZE>`
    UpTo(Size),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    Number(i64),
    Constant(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub number: i32,
    pub args: Vec<Field>,
    pub ret: Vec<Field>,
    pub notes: Notes,
}

/// The annotations behind a call's signature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    pub api: Option<String>,
    pub high: bool,
    pub stream: Option<Stream>,
    pub fds: bool,
    /// What comes with the call is nobody's to find afterwards.
    pub secret: bool,
    /// `None` when the call does not say.
    pub acl: Option<Vec<Acl>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Up,
    Down,
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    pub line: u32,
    pub object: String,
    pub permission: String,
    pub when: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// All these bits are set.
    If(Vec<String>),
    /// None of these bits is set.
    Unless(Vec<String>),
    /// The argument has this value.
    FieldIs {
        field: String,
        value: String,
    },
}
