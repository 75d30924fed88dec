//! `<capabilities>`: what a host is, and which guests it can run.

pub mod host;
