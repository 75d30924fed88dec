//! Clients: sockets, frames, sessions, routes and handlers. The only floor that knows the wire.
//!
//! ```text
//! listen → connection (one task each) → router → handlers/* → drivers
//!             ↑ transport: bytes and descriptors      │
//!             └── outbox ← replies, events, streams ←─┘
//! ```
//!
//! A connection's task reads, cuts frames and polls each call once on the spot. A call that has to wait
//! becomes a task of its own, which finishes whether or not the client stays.

pub mod access;
pub mod administration;
pub mod auth;
pub mod connection;
pub mod convert;
mod distinguished_name;
pub mod events;
pub mod fuzz;
pub mod handlers;
pub mod keepalive;
pub mod listen;
pub mod listen_net;
pub mod metrics;
pub mod outbox;
pub mod places;
pub mod router;
pub mod routes;
pub mod server;
pub mod session;
pub mod stream;
pub mod tls;
pub mod transport;
