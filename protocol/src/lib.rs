//! libvirt's RPC protocol, for daemons and clients.
//!
//! Bytes become frames in [`frame`], payloads become typed arguments through [`xdr`], and the generated
//! modules hold the data types of each program, one type per procedure ([`procedure::Procedure`]) and event
//! ([`procedure::Event`]), and a table of all of them (`remote::ENTRIES`). [`net`] has what programs share,
//! the error of a failed call among it; [`params`] builds and reads typed parameters; `client` makes calls.
//!
//! Everything below `generated` comes from the texts in `protocol/x`; the package `ferrovirt-codegen` writes
//! it and fails its tests when it is stale.

#[cfg(feature = "client")]
pub mod client;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod every;
pub mod frame;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
#[rustfmt::skip]
mod generated;
pub mod params;
pub mod procedure;
#[cfg(test)]
mod tests;
pub mod xdr;

pub use generated::{admin, keepalive, net, qemu, remote};
