//! libvirt's RPC protocol, for daemons and clients.
//!
//! Bytes become frames in [`frame`], payloads become typed arguments through [`xdr`], and the
//! generated modules hold one type per procedure ([`procedure::Procedure`]) of each program.

pub mod frame;
pub mod procedure;
pub mod xdr;
