//! libvirt's RPC protocol, for daemons and clients.
//!
//! Bytes become frames in [`frame`], payloads become typed arguments through [`xdr`], and the
//! generated modules hold one type per procedure ([`procedure::Procedure`]) of each program.

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
