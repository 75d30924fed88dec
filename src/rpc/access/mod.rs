//! May this client make this call?
//!
//! ```text
//! router ── read_only: by the socket or the flag, before anything is decoded
//!        └─ admission: by the access drivers, between decoding and the handler
//!             about: which objects the arguments mean ── driver: policy, polkit
//! ```
//!
//! Without access drivers, which is the default, a call passes one branch. With them, every call passes
//! [`Asking::admit`] before its handler runs; lists and events show what the client may see.

pub mod about;
mod admission;
pub mod driver;
pub mod events;
pub mod policy;
pub mod polkit;
mod read_only;

pub use admission::{Access, Asking};
pub use read_only::{check, is_reading, origin, refusal, unsupported};
