//! What each call does: one file per part of the API, each opening with its routes.

pub mod connect;
pub mod events;
