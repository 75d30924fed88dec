//! Reads `.x` interface texts and writes the Rust of `ferrovirt-protocol`: lex, parse, model, emit.
