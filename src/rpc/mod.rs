//! Clients: sockets, frames, sessions, routes and handlers. The only floor that knows the wire.
