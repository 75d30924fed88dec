//! The server without guests behind it: calls, streams, events, sockets, and clients that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/bus.rs"]
mod bus;

mod admin;
mod auth;
mod calls;
mod catalogue;
mod daemon;
mod events;
mod hostile;
mod metrics;
mod net;
mod process;
mod streams;
mod world;
