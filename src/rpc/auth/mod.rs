//! Who clients are, and how they show it.

pub mod identity;
