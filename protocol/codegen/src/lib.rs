//! Turns the `.x` interface texts into the Rust of `ferrovirt-protocol`.
//!
//! ```text
//! text ─lex→ tokens ─parse→ ast::File ─model→ Module ─emit→ Rust source
//! ```
//!
//! Each stage is a function from plain data to plain data. `parse` knows only the grammar; `model` resolves
//! names, numbers and limits and refuses what the wire cannot carry; `emit` cannot fail. Every error names
//! file and line.

pub mod ast;
mod emit;
mod lex;
pub mod model;
mod names;
mod parse;
pub mod wire;

use std::fmt;

/// One interface text.
#[derive(Debug, Clone)]
pub struct Source {
    /// As it stands in error messages.
    pub file: String,
    pub text: String,
}

/// One file of generated Rust, its path below `src/generated`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub path: String,
    pub text: String,
}

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub file: String,
    pub line: u32,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

impl std::error::Error for Error {}

/// Generates all modules. A text may import those before it in `sources`.
pub fn generate(sources: &[Source]) -> Result<Vec<Output>, Error> {
    let mut modules = Vec::new();
    for source in sources {
        let module = lex::lex(&source.text)
            .and_then(parse::parse)
            .and_then(|file| model::build(&file, &modules))
            .map_err(|fault| Error { file: source.file.clone(), line: fault.line, message: fault.message })?;
        modules.push(module);
    }
    Ok(emit::emit(&modules))
}

/// An error before the file's name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    line: u32,
    message: String,
}

impl Fault {
    fn at(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}
